"""What people see of a sweep: tables and a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table

from muloco_runner.record import RecordError, RunFolder
from sweeps.controller import Tick
from sweeps.folder import SweepFolder
from sweeps.launch import Sweep
from sweeps.preview import Preview
from sweeps.state import STANDINGS, RunState, SweepState

_LOG_SECONDS = 10.0


def show_plan(preview: Preview) -> None:
    """One line for runs of one kind, then the sums."""
    console = Console()
    table = Table("algorithm", "parameters", "runs", "finished", "GPUs", "minutes each", "verdict", box=None)
    rows: Counter[tuple[str, ...]] = Counter()
    finished: Counter[tuple[str, ...]] = Counter()
    for run in preview.runs:
        labels, need = run.work.labels, run.work.need
        key: tuple[str, ...] = (
            str(labels["algorithm"]),
            f"{labels['num_params']:,}",
            str(need.gpus) if need.gpus else "CPU",
            f"{need.expected_minutes:.1f}",
            str(run.verdict),
        )
        rows[key] += 1
        finished[key] += run.finished
    for row, count in rows.items():
        algorithm, params, *others = row
        table.add_row(algorithm, params, str(count), str(finished[row]), *others)
    console.print(table)
    done = sum(run.finished for run in preview.runs)
    console.print(
        f"{len(preview.runs)} runs, {done} finished; left: {preview.gpu_hours:.1f} GPU-hours, "
        f"{preview.node_hours:.1f} node-hours, about {_minutes(preview.makespan_minutes)} under the quota "
        f"of cluster {preview.sweep.cluster.name}"
    )


@contextlib.contextmanager
def progress(sweep: Sweep) -> Iterator[Callable[[Tick], None]]:
    """What to call after each tick."""
    print(
        f"sweep {sweep.name}: {len(sweep.runs)} runs on {sweep.cluster.name}; state in {sweep.folder.path}", flush=True
    )
    if sys.stdout.isatty():
        with _bar(sweep) as on_tick:
            yield on_tick
    else:
        yield _Lines(sweep)


class _Lines:
    """One line when something has changed, not too often, and each run that is held."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.began, self.said_at, self.said = sweep, time.monotonic(), 0.0, ""
        self.held: set[str] = set()

    def __call__(self, tick: Tick) -> None:
        for name, run in tick.state.runs.items():
            if run.held is not None and name not in self.held:
                self.held.add(name)
                print(f"{name} held: {run.held}", flush=True)
        line = summary(tick.state)
        over = tick.state.is_over
        if line != self.said and (over or time.monotonic() - self.said_at > _LOG_SECONDS):
            self.said, self.said_at = line, time.monotonic()
            print(f"{_minutes((time.monotonic() - self.began) / 60):>8}  {line}", flush=True)


@contextlib.contextmanager
def _bar(sweep: Sweep) -> Iterator[Callable[[Tick], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, refresh_per_second=4) as bar:
        task = bar.add_task(sweep.name, total=len(sweep.runs), now="")

        def on_tick(tick: Tick) -> None:
            bar.update(task, completed=tick.state.counts["done"], now=f"{_live(tick.state)}")

        yield on_tick


def _live(state: SweepState) -> str:
    """The runs at work, each with its step and loss."""
    words = []
    for run in state.runs.values():
        if not run.in_flight:
            continue
        with contextlib.suppress(RecordError):
            status = RunFolder(run.work.folder).read_status()
            if status is not None and status.state == "running":
                loss = f" {status.loss:.3f}" if status.loss is not None else ""
                name = f"{run.work.labels.get('algorithm', run.work.name)}"
                words.append(f"{name} {100 * status.step // max(1, status.num_steps)}%{loss}")
    held = state.counts["held"]
    return " | ".join([*words[:4], *([f"{held} held"] if held else [])])


def show_end(sweep: Sweep, state: SweepState) -> None:
    """The last word of a launch: counts, and every held run with its reason."""
    print(summary(state))
    for run in state.runs.values():
        if run.held is not None:
            print(f"{run.work.name} held: {run.held}  {run.work.folder}")


def show_status(folder: SweepFolder) -> None:
    """One sweep: counts by algorithm and size, then what waits or is held and why."""
    definition = folder.read_definition()
    state, damage = folder.read_state(definition.works)
    console = Console()
    table = Table("algorithm", "parameters", *STANDINGS, title=f"sweep {folder.name}", title_justify="left", box=None)
    groups: dict[tuple[str, int], Counter[str]] = {}
    for run in state.runs.values():
        labels = run.work.labels
        key = (str(labels.get("algorithm", "")), int(labels.get("num_params", 0)))
        groups.setdefault(key, Counter())[run.standing] += 1
    for (algorithm, params), counts in sorted(groups.items()):
        table.add_row(algorithm, f"{params:,}", *(str(counts[word] or "") for word in STANDINGS))
    console.print(table)
    console.print(summary(state))
    for run in state.runs.values():
        if run.held is not None:
            console.print(f"{run.work.name} held: {run.held}", highlight=False)
    for one in damage:
        console.print(f"ledger line {one.line}: {one.why}; passed over", highlight=False)


def summary(state: SweepState) -> str:
    """Counts of runs by state, in one line."""
    counts = state.counts
    words = [f"{counts[word]} {word}" for word in STANDINGS if counts[word]]
    again = sum(_retries(run) for run in state.runs.values())
    if again:
        words.append(f"{again} resubmitted")
    return f"{len(state.runs)} runs: " + ", ".join(words)


def _retries(run: RunState) -> int:
    return max(0, len(run.attempts) - 1)


def _minutes(minutes: float) -> str:
    seconds = round(60 * minutes)
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
