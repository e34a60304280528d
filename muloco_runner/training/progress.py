"""Progress of one run: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from muloco_runner.config import RunConfig
from muloco_runner.record import StepRecord

_SECONDS_BETWEEN_LINES = 2.0


@contextlib.contextmanager
def show_progress(run: RunConfig, enabled: bool) -> Iterator[Callable[[StepRecord], None]]:
    """Yields what to call with each logged step; it does nothing where not `enabled`."""
    if not enabled:
        yield lambda record: None
        return
    title = f"{run.algorithm} N={run.num_params:,} K={run.num_workers} B={run.global_batch_tokens:,}"
    if sys.stdout.isatty():
        with _bar(title, run.num_steps) as on_record:
            yield on_record
    else:
        print(f"{title} steps={run.num_steps:,} run_id={run.run_id}", flush=True)
        yield _LinePrinter(run.num_steps)


class _LinePrinter:
    def __init__(self, num_steps: int) -> None:
        self.num_steps, self.printed_at = num_steps, 0.0

    def __call__(self, record: StepRecord) -> None:
        now = time.monotonic()
        if record.step < self.num_steps and now - self.printed_at < _SECONDS_BETWEEN_LINES:
            return
        self.printed_at = now
        print(f"step {record.step}/{self.num_steps}  {describe(record, self.num_steps)}", flush=True)


@contextlib.contextmanager
def _bar(title: str, num_steps: int) -> Iterator[Callable[[StepRecord], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=num_steps, now="")
        yield lambda record: progress.update(task, completed=record.step, now=describe(record, num_steps))


def describe(record: StepRecord, num_steps: int) -> str:
    """Loss, tokens per second and time left."""
    texts = [f"loss {record.loss:.4f}" if record.loss is not None else "loss not finite"]
    if record.tokens_per_second and record.train_seconds:
        left = record.train_seconds / record.step * (num_steps - record.step)
        texts.append(f"{record.tokens_per_second:,.0f} tokens/s")
        texts.append(f"{_duration(left)} left")
    if record.validation_loss is not None:
        texts.append(f"validation loss {record.validation_loss:.4f}")
        texts += [f"{name} {loss:.4f}" for name, loss in (record.named_validation_losses or {}).items()]
    return "  ".join(texts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
