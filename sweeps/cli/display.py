"""Output of `plan`, `simulate` and `launch`: tables and a bar on a terminal, plain lines in a log, JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table

from sweeps.cli.study_lines import study_lines
from sweeps.cli.terminal import make_console, wrapped
from sweeps.engine.quota import Verdict, VerdictKind
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.works import Shape
from sweeps.formatting import duration, in_bytes, plural
from sweeps.node.reports import read_progress
from sweeps.progress_lines import NO_ANSWER, Lines, held_line, summary
from sweeps.training.best import best_results, training_runs_of
from sweeps.training.disk import checkpoints_at_once
from sweeps.training.entry import speed_of
from sweeps.training.model_names import model_name

if TYPE_CHECKING:
    from sweeps.controller import Tick
    from sweeps.simulation.simulate import Outcome
    from sweeps.training.disk import DiskUse
    from sweeps.training.gpus import Fit
    from sweeps.training.preview import PlannedRun, Preview
    from sweeps.training.sweep import Sweep


_HELD = {
    "full": "all weights of its worker, alone",
    "copy": "all of them, as the worker's other GPUs do (DDP)",
    "rows": "a share of each weight (FSDP)",
    "recomputing": "activations are computed again in the backward pass",
}
"""What the words of the column `each holds` mean (`Placement`)."""


def show_plan(preview: Preview, epochs: Sequence[str] = ()) -> None:
    """Print one line for runs of one kind, sums by size, then the whole and what it rests on; `epochs` over the data
    last."""
    console = make_console()
    kinds: dict[tuple[Any, ...], list[PlannedRun]] = {}
    for run in preview.runs:
        algorithm, num_params = run.work.labels["algorithm"], run.work.labels["num_params"]
        need = run.work.need
        gpus = str(need.gpus) if need.gpus else "CPU"
        kinds.setdefault((num_params, algorithm, str(need.nodes), gpus, str(run.verdict)), []).append(run)
    sizes = [kind[0] for kind in kinds]
    table = Table(box=None, pad_edge=False)
    for name in ("algorithm", "size", "runs", "finished", "nodes", "GPUs", "each", "GPU-hours", "verdict"):
        table.add_column(name, justify="left" if name in ("algorithm", "verdict") else "right")
    for num_params in dict.fromkeys(sizes):
        of_size = {kind[1:]: runs for kind, runs in kinds.items() if kind[0] == num_params}
        for (algorithm, nodes, gpus, _), runs in of_size.items():
            table.add_row(algorithm, *_sums(num_params, runs, nodes, gpus), runs[0].verdict.kind.value)
        if len(of_size) > 1 and len(set(sizes)) > 1:
            together = [run for runs in of_size.values() for run in runs]
            size, count, done, _, _, _, hours = _sums(num_params, together, "", "")
            table.add_row("together", size, count, done, "", "", "", hours, "", style="bold")
    console.print(table)
    for line in _reasons(preview.runs):
        console.print(wrapped(line, console.width), soft_wrap=True)
    if any(run.fit for run in preview.runs):
        console.print()
        console.print(_memory_table(preview.runs))
        held = " ".join({run.fit.description for run in preview.runs if run.fit is not None})
        legend = [f"{word}: {meaning}" for word, meaning in _HELD.items() if word in held]
        console.print(wrapped("Each GPU holds " + "; ".join(legend), console.width), soft_wrap=True, end="\n\n")
    for line in (*_totals(preview), *epochs):
        console.print(wrapped(line, console.width), soft_wrap=True)


def _reasons(runs: Sequence[PlannedRun]) -> Iterator[str]:
    """Yield each verdict that has a reason, whole: a column of the table would cut it."""
    found: dict[Verdict, list[PlannedRun]] = {}
    for run in runs:
        if run.verdict.why and not run.finished:
            found.setdefault(run.verdict, []).append(run)
    for verdict, alike in found.items():
        sizes = ", ".join(dict.fromkeys(model_name(run.work.labels["num_params"]) for run in alike))
        yield f"{verdict.kind.value}, {plural(len(alike), 'run')} of {sizes}: {verdict.why}"


def _sums(num_params: int, runs: Sequence[PlannedRun], nodes: str, gpus: str) -> tuple[str, ...]:
    done = sum(run.finished for run in runs)
    hours = sum(_gpu_hours(run) for run in runs if not run.finished)
    each = _spread([60 * run.work.need.expected_minutes for run in runs])
    counts = (f"{len(runs):,}", f"{done:,}" if done else "")
    return (model_name(num_params), *counts, nodes, gpus, each, _hours(hours) if hours else "")


def _hours(hours: float) -> str:
    """Format an estimate, without digits that it has not."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:,.1f}"


def _gpu_hours(run: PlannedRun) -> float:
    return run.work.need.gpus * run.work.need.expected_minutes / 60


def _totals(preview: Preview) -> Iterator[str]:
    done = sum(run.finished for run in preview.runs)
    cluster = preview.sweep.cluster
    own = {
        one.name: {key: most for key, most in vars(one.quota).items() if most is not None}
        for one in cluster.allocations
    }
    quotas = [
        f"{name}: " + ", ".join(f"{key}={most:g}" for key, most in given.items())
        for name, given in own.items()
        if given
    ]
    quota = f" ({'; '.join(quotas)})" if quotas else ""
    never = sum(run.verdict.kind is VerdictKind.NEVER and not run.finished for run in preview.runs)
    if never:
        yield f"{never:,} of the {plural(len(preview.runs), 'run')} can never run: correct the sweep or the cluster"
    if preview.affordable is None:
        gpu_hours = f"{_hours(preview.gpu_hours)} GPU-hours, " if preview.gpu_hours else ""
        yield (
            f"{plural(len(preview.runs), 'run')}, {done:,} finished; left: {gpu_hours}"
            f"{_hours(preview.node_hours)} node-hours, about {duration(60 * preview.makespan_minutes)} under the quota "
            f"of cluster {cluster.name}{quota}, where all of it is free throughout and no run fails"
        )
    else:
        fitting = [run for run in preview.runs if run.work.name in preview.affordable]
        hours = sum(_gpu_hours(run) for run in fitting)
        sizes = Counter(model_name(run.work.labels["num_params"]) for run in fitting)
        yield (
            f"{len(fitting):,} of the {plural(len(preview.runs) - done, 'unfinished run')} fit into the cap, with "
            f"{_hours(hours)} of {_hours(preview.gpu_hours)} GPU-hours, in about "
            f"{duration(60 * preview.makespan_minutes)} under the quota of cluster {cluster.name}{quota}"
            + "".join(f"; {count:,} of {name}" for name, count in sizes.items())
        )
    if preview.spared_hours:
        trunks = Counter(run.work.trunk.run for run in preview.runs if run.work.trunk is not None and not run.finished)
        hours = preview.spared_hours
        less = f"{_hours(hours)} GPU-hours" if preview.gpu_hours else f"{duration(3600 * hours)} of a core"
        yield (
            f"Branches: {plural(sum(trunks.values()), 'run')} go on from checkpoints of {plural(len(trunks), 'run')} "
            f"of the largest budget, for {less} less than if each were trained by itself"
        )
    yield from preview.cuts
    measured = " for what finished runs do not tell yet" if done else ""
    yield f"Times are a first guess{measured}, {speed_of(cluster)}; launched, they follow what runs take."
    if preview.disk is not None:
        yield _disk_line(preview.disk, checkpoints_at_once(preview.sweep.execution))
    if preview.weights:
        yield preview.weights
    if preview.note:
        yield preview.note


def _disk_line(disk: DiskUse, checkpoints: int) -> str:
    files = "" if disk.free_files is None else f" and {disk.free_files:,} files"
    line = (
        f"Disk: up to {in_bytes(disk.peak_bytes)} and {disk.peak_files:,} files while it runs (checkpoints of up to "
        f"{in_bytes(disk.largest_checkpoint_bytes)}, {checkpoints - 1} of each run and one being written), "
        f"{in_bytes(disk.left_bytes)} and {disk.left_files:,} files in the end; free in {disk.file_system}: "
        f"{in_bytes(disk.free_bytes)}{files}"
    )
    return line if disk.fits else f"{line}: it will NOT fit: make room, choose another root=, or lower the quota"


def _spread(seconds: Sequence[float]) -> str:
    least, most = duration(min(seconds)), duration(max(seconds))
    return least if least == most else f"{least} to {most}"


def _memory_table(runs: Sequence[PlannedRun]) -> Table:
    """Return the estimated memory of each GPU; one line for runs of one kind."""
    kinds: dict[tuple[str, str, str, str], list[Fit]] = {}
    for run in runs:
        if run.fit is not None:
            algorithm, num_params = run.work.labels["algorithm"], run.work.labels["num_params"]
            kind = (algorithm, model_name(num_params), str(run.work.need.gpus), run.fit.description)
            kinds.setdefault(kind, []).append(run.fit)
    table = Table(box=None, pad_edge=False)
    for name in ("algorithm", "size", "GPUs", "each holds", "micro-batch", "GB", "of"):
        table.add_column(name, justify="left" if name in ("algorithm", "each holds") else "right")
    for kind, fits in kinds.items():
        sequences = _range([str(fit.placement.micro_batch_sequences) for fit in fits], int)
        gigabytes = _range([f"{fit.estimate.total / 1e9:.1f}" for fit in fits], float)
        table.add_row(*kind, sequences, gigabytes, f"{fits[0].gpu_bytes / 1e9:g}")
    return table


def _range(numbers: Sequence[str], value: Callable[[str], float]) -> str:
    """Format the range of numbers that are text already; `value` parses one."""
    least, most = min(numbers, key=value), max(numbers, key=value)
    return least if least == most else f"{least} to {most}"


def plan_as_dict(preview: Preview) -> dict[str, Any]:
    """Return the values of `plan --json`."""
    return {
        "sweep": preview.sweep.name,
        "cluster": preview.sweep.cluster.name,
        "gpu_hours": preview.gpu_hours,
        "node_hours": preview.node_hours,
        "makespan_minutes": preview.makespan_minutes,
        "note": preview.note,
        "speed": speed_of(preview.sweep.cluster),
        "cuts": list(preview.cuts),
        "weights": preview.weights,
        "spared_hours": preview.spared_hours,
        "disk": preview.disk and {**dataclasses.asdict(preview.disk), "fits": preview.disk.fits},
        "runs": [
            {
                "run": run.work.name,
                "finished": run.finished,
                "within_cap": None if preview.affordable is None else run.work.name in preview.affordable,
                "verdict": run.verdict.kind.value,
                "why": run.verdict.why,
                "nodes": run.work.need.nodes,
                "gpus": run.work.need.gpus,
                "memory": _memory_as_dict(run.fit),
                "expected_minutes": run.work.need.expected_minutes,
                "trunk": run.work.trunk and {"run": run.work.trunk.run, "step": run.work.trunk.step},
                "jobs": run.num_jobs,
                "labels": run.work.labels,
            }
            for run in preview.runs
        ],
    }


def _memory_as_dict(fit: Fit | None) -> dict[str, Any] | None:
    """Return the memory estimate of one GPU, for `--json`."""
    if fit is None:
        return None
    placement, estimate = fit.placement, fit.estimate
    return {
        "bytes": estimate.total,
        "gpu_bytes": fit.gpu_bytes,
        "worst_moment": estimate.peak_phase,
        "sharded": placement.sharded,
        "recompute": placement.recompute,
        "micro_batch_sequences": placement.micro_batch_sequences,
    }


def show_outcome(sweep: Sweep, outcome: Outcome) -> None:
    """Print the result of a simulation."""
    console = make_console()
    console.print(f"{sweep.name} on {sweep.cluster.name}, simulated: {summary(outcome.state)}")
    text = f"makespan {duration(60 * outcome.makespan_minutes)}, {outcome.node_hours:.1f} node-hours held"
    if outcome.lower_bound_minutes:
        share = outcome.makespan_minutes / outcome.lower_bound_minutes
        text += f"; {share:.3f} times the lower bound {duration(60 * outcome.lower_bound_minutes)}"
    console.print(text)
    table = Table("attempts", "ended by", box=None)
    for cause, count in outcome.attempts.most_common():
        table.add_row(str(count), cause)
    console.print(table)
    for why, names in outcome.state.counters.held.items():
        console.print(wrapped(f"{len(names)} held: {why}", console.width), soft_wrap=True)


def outcome_as_dict(sweep: Sweep, outcome: Outcome) -> dict[str, Any]:
    """Return the values of `simulate --json`."""
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
def waiting(message: str) -> Iterator[None]:
    """Show a spinner on a terminal, nothing in a log."""
    with Console(stderr=True).status(message) if sys.stderr.isatty() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def progress(sweep: Sweep, out: TextIO) -> Iterator[Callable[[Tick], None]]:
    """Yield what to call after each tick: it shows the progress of a launch on `out`."""

    def print_line(line: str) -> None:
        print(line, file=out, flush=True)

    print_line(f"sweep {sweep.name}: {len(sweep.runs)} runs on {sweep.cluster.name}; state in {sweep.folder.path}")
    if out.isatty():
        with _bar(sweep, out) as on_tick:
            yield on_tick
    else:
        yield Lines(print_line, sweep.folder.cluster_dir)


@contextlib.contextmanager
def _bar(sweep: Sweep, out: TextIO) -> Iterator[Callable[[Tick], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, refresh_per_second=4, console=Console(file=out)) as bar:
        task = bar.add_task(sweep.name, total=len(sweep.runs), detail="")

        def on_tick(tick: Tick) -> None:
            detail = (tick.waits_for or _details(tick.state)) if tick.queue_read else NO_ANSWER
            bar.update(task, total=len(tick.state.runs), completed=tick.state.num_with_result, detail=detail)

        yield on_tick


def _details(state: SweepState) -> str:
    """Return the running runs, each with its progress and loss, and the number of held ones."""
    parts = []
    in_flight = (state.runs.get(a.work.name) for job in state.jobs.values() for a in job.request.attempts)
    for run in itertools.islice((run for run in in_flight if run is not None), 8):
        progress = read_progress(run.work)
        if progress is not None and progress.share is not None and not progress.message:
            loss = f" {progress.figures['loss']:.3f}" if "loss" in progress.figures else ""
            parts.append(f"{run.work.labels.get('algorithm', run.work.name)} {int(100 * progress.share)}%{loss}")
    held = state.counts["held"]
    return " | ".join([*parts[:4], *([f"{held} held"] if held else [])])


def show_end(sweep: Sweep, state: SweepState, verdicts: Mapping[Shape, Verdict]) -> None:
    """Print how a launch ended: counts, runs that no limit lets start, every held run with its reason, then the best
    results and how to have the report."""
    print(summary(state))
    for shape, verdict in verdicts.items():
        if state.waiting.get(shape):
            print(f"{len(state.waiting[shape])} waiting: {verdict}")
    num_behind = sum(state.runs[name].is_waiting for names in state.behind.values() for name in names)
    if num_behind:
        print(f"{num_behind} waiting: for checkpoints of their trunks")
    for why, names in state.counters.held.items():
        for name in names:
            print(held_line(state.runs[name], why, sweep.folder.cluster_dir))
    if sweep.definition.study is not None:
        print(*study_lines(sweep.definition.study, state), sep="\n")
    added = training_runs_of(state.runs[name].work for name in state.added)
    best = best_results([*sweep.runs, *added], sweep.root)
    for line in best:
        print(line)
    if best:
        root = shlex.quote(str(sweep.root))
        print(f"report: muloco-report {root} --out {shlex.quote(str(sweep.root / 'report'))}")
