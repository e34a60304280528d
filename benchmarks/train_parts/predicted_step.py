"""What a training step takes on an H100 by arithmetic, part by part: `python -m benchmarks.train_parts.predicted_step`.

Rates are assumed: what each kind of kernel reaches at best where it was measured elsewhere. Needs triton, no GPU.
"""

from __future__ import annotations

import sys

from benchmarks.models import model_named
from benchmarks.muon_parts import predicted
from benchmarks.muon_parts.floors import BYTES_A_PARAMETER, Ladder
from muloco_runner.config import ModelConfig

BATCH_TOKENS = 65536
PEAK = 989.4e12
"""Of the data sheet, bfloat16."""
BLOCKS, HEAD, ATTENTION = 600e12, 650e12, 400e12
"""Operations a second of the products of blocks and of the head, and of FlexAttention."""
BYTES = 3.0e12
"""Bytes a second from memory."""
ADAMW_BYTES = 28
"""A parameter: gradient, weight and two moments read, three written."""


def parts_of(name: str, model: ModelConfig, chunk: int, passes: int) -> dict[str, float]:
    """Return milliseconds by part. `passes` over the logits are the loss's own, `chunk` tokens at once."""
    tokens, width, layers = BATCH_TOKENS, model.width, model.num_layers
    head, ladder = model.vocab_size * width, Ladder.of(name)
    # An element of every kept activation is written once and read once or twice, in half precision.
    kept = layers * (13 * width + 4 * model.ffn_width) * tokens
    # The head's gradient, float32: read and written with each chunk; after a rounded product that too, both ways.
    a_chunk = 8 if passes == 2 else 12
    seconds = {
        "blocks": 6 * model.num_hidden_params * tokens / BLOCKS,
        "elementwise": 6 * kept / BYTES,
        "attention": 6 * layers * model.sequence_length * width * tokens / ATTENTION,  # causal: half of 12
        "head": 6 * head * tokens / HEAD,
        "logits": 2 * passes * model.vocab_size * tokens / BYTES + 2 * model.vocab_size * tokens / BYTES,
        "head's gradient": tokens / chunk * a_chunk * head / BYTES,
        "Muon": predicted.milliseconds(ladder) / 1e3 + BYTES_A_PARAMETER * ladder.num_params / BYTES,
        "AdamW": ADAMW_BYTES * ladder.embedding_and_head / BYTES,
    }
    return {part: 1e3 * value for part, value in seconds.items()}


def main() -> int:
    print("          ms by part: as it is (one online pass, large chunks, sums within the product), and as it was")
    for name in ("150m", "416m"):
        model = model_named(name)
        for words, chunk, passes in (("as it is", 16384, 2), ("as it was", 2048, 3)):
            parts = parts_of(name, model, chunk, passes)
            total = sum(parts.values())
            mfu = 6 * model.num_params * BATCH_TOKENS / (total / 1e3) / PEAK
            shown = ", ".join(f"{part} {value:.1f}" for part, value in parts.items())
            print(f"{name:>5} {words:>9}: {shown}; step {total:.1f}, MFU (6N) {mfu:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
