"""Size of the chunks in which logits are computed. Standard library only: the memory estimate counts them too."""

_CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}
_MOST_LOGITS = 1 << 31
"""Beyond, kernels would count in 64 bits, and the head's gradient is reread so seldom that nothing is gained."""
_TILE = 128


def chunk_tokens(vocab_size: int, device: str) -> int:
    """Tokens whose logits are in memory at once: more on a GPU, where each chunk rereads the head's gradient."""
    tokens = _CHUNK_LOGITS.get(device, _CHUNK_LOGITS["cuda"]) // vocab_size
    # Whole tiles of the product where there are some.
    return tokens // _TILE * _TILE or max(1, tokens)


def chunk_within(tokens: int, vocab_size: int, device: str, most: int) -> int:
    """Tokens whose logits are in memory at once, of `tokens` in all: up to `most` where that is more than
    `chunk_tokens`, and at most half of them, since a chunk of all is computed otherwise."""
    return max(chunk_tokens(vocab_size, device), min(most, tokens // 2))


def larger_chunks(tokens: int, vocab_size: int, device: str) -> list[int]:
    """Values of `most` that are worth their memory, the largest first: none on a CPU, whose sums keep their order."""
    least, found = chunk_tokens(vocab_size, device), [0]
    most = 2 * least
    while device != "cpu" and most <= tokens // 2 and most * vocab_size < _MOST_LOGITS:
        found.insert(0, most)
        most *= 2
    return found
