"""Size of the chunks in which logits are computed. Standard library only: the memory estimate counts them too."""

_CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}
_TILE = 128


def chunk_tokens(vocab_size: int, device: str) -> int:
    """Tokens whose logits are in memory at once: more on a GPU, where each chunk rereads the head's gradient."""
    tokens = _CHUNK_LOGITS.get(device, _CHUNK_LOGITS["cuda"]) // vocab_size
    # Whole tiles of the product where there are some.
    return tokens // _TILE * _TILE or max(1, tokens)
