"""What people see of a sweep: tables and a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from muloco_runner.record import RecordError, RunFolder
from sweeps.decide import MAX_GPU_HOURS
from sweeps.state import STANDINGS, AttemptState, RunState, SweepState

if TYPE_CHECKING:
    from sweeps.controller import Tick
    from sweeps.launch import Sweep
    from sweeps.ledger import Damage
    from sweeps.preview import Preview
    from sweeps.simulation import Outcome

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
    if preview.note:
        console.print(preview.note)


def plan_as_dict(preview: Preview) -> dict[str, Any]:
    """For `--json`."""
    return {
        "sweep": preview.sweep.name,
        "cluster": preview.sweep.cluster.name,
        "gpu_hours": preview.gpu_hours,
        "node_hours": preview.node_hours,
        "makespan_minutes": preview.makespan_minutes,
        "note": preview.note,
        "runs": [
            {
                "run": run.work.name,
                "finished": run.finished,
                "verdict": run.verdict.kind.value,
                "why": run.verdict.why,
                "nodes": run.work.need.nodes,
                "gpus": run.work.need.gpus,
                "expected_minutes": run.work.need.expected_minutes,
                "labels": run.work.labels,
            }
            for run in preview.runs
        ],
    }


def show_outcome(sweep: Sweep, outcome: Outcome) -> None:
    """What a simulation came to."""
    console = Console()
    console.print(f"{sweep.name} on {sweep.cluster.name}, simulated: {summary(outcome.state)}", highlight=False)
    words = f"makespan {_minutes(outcome.makespan_minutes)}, {outcome.node_hours:.1f} node-hours held"
    if outcome.lower_bound_minutes:
        share = outcome.makespan_minutes / outcome.lower_bound_minutes
        words += f"; {share:.3f} times the lower bound {_minutes(outcome.lower_bound_minutes)}"
    console.print(words, highlight=False)
    table = Table("attempts", "ended by", box=None)
    for cause, count in outcome.attempts.most_common():
        table.add_row(str(count), cause)
    console.print(table)
    for line in _reasons(list(outcome.state.runs.values()), lambda run: run.held or ""):
        console.print(line, highlight=False, soft_wrap=True)


def outcome_as_dict(sweep: Sweep, outcome: Outcome) -> dict[str, Any]:
    """For `--json`."""
    return {
        "sweep": sweep.name,
        "cluster": sweep.cluster.name,
        "runs": dict(outcome.state.counts),
        "makespan_minutes": outcome.makespan_minutes,
        "lower_bound_minutes": outcome.lower_bound_minutes,
        "node_hours": outcome.node_hours,
        "attempts": dict(outcome.attempts),
        "held": {name: run.held for name, run in outcome.state.runs.items() if run.held is not None},
    }


@contextlib.contextmanager
def waiting(words: str) -> Iterator[None]:
    """A spinner on a terminal, nothing in a log."""
    with Console(stderr=True).status(words) if sys.stderr.isatty() else contextlib.nullcontext():
        yield


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


def show_status(
    name: str,
    state: SweepState,
    damage: Sequence[Damage],
    runs: Sequence[RunState],
    reason: Callable[[RunState], str],
) -> None:
    """One sweep: counts by algorithm and size, what was spent, then what waits or is held and why."""
    console = Console()
    console.print(status_table(name, state, runs, reason), highlight=False)
    for one in damage:
        console.print(f"ledger line {one.line}: {one.why}; passed over", highlight=False)


def status_table(
    name: str, state: SweepState, runs: Sequence[RunState], reason: Callable[[RunState], str]
) -> RenderableType:
    table = Table("algorithm", "parameters", *STANDINGS, title=f"sweep {name}", title_justify="left", box=None)
    groups: dict[tuple[str, int], Counter[str]] = {}
    for run in runs:
        labels = run.work.labels
        key = (str(labels.get("algorithm", "")), int(labels.get("num_params", 0)))
        groups.setdefault(key, Counter())[run.standing] += 1
    for (algorithm, params), counts in sorted(groups.items()):
        table.add_row(algorithm, f"{params:,}", *(str(counts[word] or "") for word in STANDINGS))
    return Group(table, summary(state), _spent(state, runs), *_reasons(runs, reason))


def _spent(state: SweepState, runs: Sequence[RunState]) -> str:
    """GPU-hours, the estimate against the clock, and the work left."""
    spent = sum(state.spent_gpu_hours.values())
    cap = state.own_limits.get(MAX_GPU_HOURS)
    words = [f"{spent:.1f} GPU-hours used" + (f" of {cap:g}" if cap is not None else "")] if spent or cap else []
    actual = [sum(_minutes_of(attempt) for attempt in run.attempts) for run in runs if run.done and run.attempts]
    expected = [run.work.need.expected_minutes for run in runs if run.done and run.attempts]
    if actual:
        words.append(f"finished runs took {sum(actual):.1f} minutes together, {sum(expected):.1f} were expected")
    left = sum(run.work.need.expected_minutes for run in runs if run.standing not in ("done", "held"))
    if left:
        words.append(f"{left:.1f} minutes of runs left")
    return "; ".join(words)


def _minutes_of(attempt: AttemptState) -> float:
    if attempt.started_at is None or attempt.ended_at is None:
        return 0.0
    return (attempt.ended_at - attempt.started_at) / 60


def _reasons(runs: Sequence[RunState], reason: Callable[[RunState], str]) -> list[str]:
    """Each reason once, with how many runs it concerns and one of them."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if run.standing in ("waiting", "held") and (why := reason(run)):
            found.setdefault((run.standing, why), []).append(run.work.name)
    return [
        f"{len(names)} {standing}: {why}  ({names[0]}{', ...' if len(names) > 1 else ''})"
        for (standing, why), names in found.items()
    ]


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
