"""How many tokens' logits are held at once. Standard library only: the memory estimate counts them too."""

_CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}
_TILE = 128


def chunk_tokens(vocab_size: int, device: str) -> int:
    """Tokens whose logits are held at once: on a GPU more, where each chunk's pass over the head's gradient costs."""
    tokens = _CHUNK_LOGITS.get(device, _CHUNK_LOGITS["cuda"]) // vocab_size
    # Whole tiles of the product where there are some.
    return tokens // _TILE * _TILE or max(1, tokens)
