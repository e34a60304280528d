"""What train_lm.py and jax_train_lm.py share: arguments, text, first weights, batches, learning rates, table and plot.

numpy alone, and matplotlib for the plot: the same seed gives both frameworks the same numbers to begin with.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

VOCABULARY = 256  # bytes
VALIDATION_BATCHES = 8
SETTINGS = (
    ("steps", 300, 1, "inner steps"),
    ("batch-size", 16, 1, "sequences in a step"),
    ("seq-len", 128, 1, "bytes in a sequence"),
    ("d-model", 64, 1, "width"),
    ("n-heads", 4, 1, "attention heads"),
    ("n-layers", 2, 1, "transformer layers"),
    ("sync-interval", 30, 1, "inner steps between outer steps (H)"),
    ("eval-interval", 50, 1, "steps between validations"),
    ("log-interval", 50, 1, "steps between lines of the training loss"),
    ("inner-lr", 0.02, 0, "peak learning rate of inner steps"),
    ("outer-lr", 0.7, 0, "learning rate of outer steps"),
    ("outer-momentum", 0.6, 0, "Nesterov momentum of outer steps, below 1"),
    ("weight-decay", 0.01, 0, "decoupled, of all parameters"),
    ("grad-clip", 1.0, 0, "largest gradient norm; 0 for none"),
    ("warmup-steps", 30, 0, "of the learning rate, which then falls to a tenth by a cosine"),
    ("seed", 42, 0, "of first weights and batches"),
)
"""Name, default, smallest value, what it is."""
DOWNLOADS = {
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "openwebtext": ("Skylion007/openwebtext", None),
}
"""Data sets that muloco-1's example downloads by these names: their names at Hugging Face."""
Weights = dict[str, np.ndarray]


def arguments(description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for; what cannot be done ends the program with exit code 2."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="python", help="FILE, FOLDER of .txt, .md and .py files, or python: the standard library")
    for name, value, _, text in SETTINGS:
        add(f"--{name}", type=type(value), default=value, help=text)
    add("--compare", action="store_true", help="train with plain Muon as well")
    add("--compile", action="store_true", help="compile the model (JAX does so in any case)")
    add("--plot", default="train_lm.png", help="where the plot goes")
    add("--cache-dir", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.cache_dir is not None:
        parser.error("--cache-dir: nothing is downloaded and so nothing is cached: leave it out")
    for name, _, least, _ in SETTINGS:
        end = 1 if name == "outer-momentum" else math.inf
        if not least <= (given := getattr(args, name.replace("-", "_"))) < end:
            parser.error(f"--{name} {given}: must be at least {least}" + (" and below 1" if end == 1 else ""))
    if args.d_model % args.n_heads:
        parser.error(f"--n-heads {args.n_heads}: must divide --d-model {args.d_model}")
    try:
        args.text = read_text(args.dataset)
    except OSError as error:
        parser.error(f"--dataset {args.dataset}: {_how_to_get(args.dataset, error)}")
    if len(validation(args)) < args.seq_len + 2:
        parser.error(f"--dataset {args.dataset}: {len(args.text):,} bytes are too few for --seq-len {args.seq_len}")
    return args


def _how_to_get(dataset: str, error: OSError) -> str:
    """Return what to do for a text that is not there."""
    if dataset not in DOWNLOADS:
        return f"{error.strerror}; give a file, a folder, or python"
    names = ", ".join(repr(name) for name in DOWNLOADS[dataset] if name)
    texts = f"datasets.load_dataset({names}, split='train')['text']"
    return (
        f'nothing is downloaded here: write its text to a file, python -c "import datasets; '
        f"open('{dataset}.txt', 'w').writelines({texts})\", and give --dataset {dataset}.txt"
    )


def read_text(dataset: str) -> np.ndarray:
    """Return a text's bytes; of a folder all its texts, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"]) if dataset == "python" else Path(dataset)
    if root.is_file():
        return np.frombuffer(root.read_bytes(), np.uint8)
    root.stat()
    found = root.glob("*.py") if dataset == "python" else root.rglob("*")
    files = sorted(file for file in found if file.suffix in (".txt", ".md", ".py") and file.is_file())
    return np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)


def validation(args: argparse.Namespace) -> np.ndarray:
    """Return the last twentieth of the text, on which nobody trains."""
    return args.text[len(args.text) - len(args.text) // 20 :]


def first_weights(args: argparse.Namespace) -> Weights:
    """Return weights by name, (out, in): normal with 0.02, gains 1."""
    width, hidden = args.d_model, 64 * math.ceil(args.d_model * 8 / 3 / 64)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (VOCABULARY, width),
        "position_embedding.weight": (args.seq_len, width),
    }
    for layer in range(args.n_layers):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.{name}.weight": (width, width) for name in ("query", "key", "value", "mix")}
        shapes |= {f"{block}.{name}.weight": (hidden, width) for name in ("gate", "up")}
        shapes |= {f"{block}.down.weight": (width, hidden)}
        shapes |= {f"{block}.{name}.weight": (width,) for name in ("attention_norm", "mlp_norm")}
    shapes |= {"norm.weight": (width,), "head.weight": (VOCABULARY, width)}
    random = np.random.default_rng(args.seed)
    return {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else (0.02 * random.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def batch(args: argparse.Namespace, step: int) -> np.ndarray:
    """Return the sequences of a step, one byte longer than the model sees: (batch, seq_len + 1), int64."""
    text, steps = (validation(args), [1, step]) if step < 0 else (args.text[: -len(validation(args))], [0, step])
    random = np.random.default_rng([args.seed, *map(abs, steps)])
    starts = random.integers(0, len(text) - args.seq_len - 1, args.batch_size)
    return text[starts[:, None] + np.arange(args.seq_len + 1)].astype(np.int64)


def validation_loss(args: argparse.Namespace, loss_of: Callable[[np.ndarray], float]) -> float:
    """Return the mean loss on batches that are the same each time."""
    return sum(loss_of(batch(args, -1 - number)) for number in range(VALIDATION_BATCHES)) / VALIDATION_BATCHES


def learning_rates(args: argparse.Namespace) -> list[float]:
    """Return the inner learning rate of each step: linear warm-up, then a cosine to a tenth."""
    warmup = min(args.warmup_steps, args.steps)
    after = [math.cos(math.pi * step / max(1, args.steps - warmup)) for step in range(args.steps - warmup)]
    rising = [args.inner_lr * (step + 1) / warmup for step in range(warmup)]
    return rising + [args.inner_lr * (0.55 + 0.45 * cosine) for cosine in after]


@dataclass
class History:
    """What a training told: losses in nats a byte, by step."""

    name: str
    training: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)

    def add(self, args: argparse.Namespace, loss: float, validate: Callable[[], float]) -> None:
        """Record a step, and validate after it where it is time."""
        self.training.append(loss)
        step = len(self.training)
        if step % args.log_interval == 0:
            mean = sum(self.training[-args.log_interval :]) / args.log_interval
            print(f"{self.name:<8} step {step:>6}  training {mean:.4f}  mean of {args.log_interval} steps")
        if step % args.eval_interval == 0 or step == args.steps:
            self.validation[step] = validate()
            print(f"{self.name:<8} step {step:>6}  training {loss:.4f}  validation {self.validation[step]:.4f}")


def report(args: argparse.Namespace, histories: list[History]) -> None:
    """Print a table of the last losses and write the plot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    print("\noptimizer   validation loss   best   (nats a byte)")
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for history in histories:
        losses = list(history.validation.values())
        print(f"{history.name:<11} {losses[-1]:>15.4f} {min(losses):>6.4f}")
        (line,) = axes.plot(range(1, args.steps + 1), history.training, alpha=0.3)
        axes.plot(list(history.validation), losses, "o-", color=line.get_color(), label=history.name)
    axes.set(xlabel="step", ylabel="loss, nats a byte (dots: validation)")
    axes.legend()
    figure.savefig(args.plot, dpi=150, bbox_inches="tight")
    pyplot.close(figure)
    print(f"wrote {args.plot}")
