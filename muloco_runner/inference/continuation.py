"""Another budget for a run: the run of that budget, begun from a checkpoint that it would have come to itself.

Up to the first step at which their learning rates differ, two runs that differ in their budget alone are one. So the
other one is named as any other run of its config is, and ends to the bit as if it had been asked for at once.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.record import RecordError, RecordHeader, RunFolder, StepRecord, why_without_weights, write_atomically
from muloco_runner.record.records import to_line
from muloco_runner.targets import hand_on_code, make_importable
from muloco_runner.training.learning_rate import lr_fraction


def prepare_continuation(parent: RunFolder, tokens_per_parameter: float, step: int | None = None) -> RunFolder:
    """Make the folder of the run of this budget beside its parent's, with the parent's record and checkpoint.

    The parent may still be training. step: of the checkpoint to go on from; None for the newest that the other run
    would have come to. A folder that has begun is left as it is. A run that cannot go on raises `ConfigError`, which
    says what would let it; one that another process trains `AlreadyRunning`.
    """
    config, run = runs_of_budgets(parent, tokens_per_parameter)
    try:
        header, result = parent.read_header(), parent.read_result()
    except RecordError as error:
        raise ConfigError(str(error)) from None
    child = RunFolder.of(parent.path.parents[1], run.run_id)
    if has_begun(child):
        return child
    if not parent.checkpoint_steps() or header is None:
        raise ConfigError(f"{parent.path} {why_without_weights(result)}")
    make_importable(config, parent)
    step = _chosen_step(parent, config, run, step)
    child.write_config(run.to_dict())
    hand_on_code(parent, child)
    other = dataclasses.replace(
        header,
        run_id=run.run_id,
        config=run.to_dict(),
        num_steps=run.num_steps,
        num_tokens=run.num_tokens,
        created_at=time.time(),
    )
    lines: list[RecordHeader | StepRecord] = [
        other,
        *(record for record in parent.read_steps() if record.step <= step),
    ]
    with child.exclusive_use():
        # Another process may have begun it since.
        if not has_begun(child):
            write_atomically(child.record_file, "".join(to_line(line) for line in lines))
            child.write_parent(config.run_id, step)
            _copy(parent.checkpoint_at(step), child.checkpoint_at(step))
    return child


def runs_of_budgets(parent: RunFolder, tokens_per_parameter: float) -> tuple[RunConfig, RunConfig]:
    """The parent's run, and the same with this budget. A folder without a run, and its own budget, raise
    `ConfigError`."""
    try:
        config = RunConfig.from_dict(parent.read_config())
    except RecordError as error:
        raise ConfigError(str(error)) from None
    run = dataclasses.replace(config, tokens_per_parameter=tokens_per_parameter)
    if run.num_steps == config.num_steps:
        raise ConfigError(
            f"--tokens-per-parameter {tokens_per_parameter:g} is {run.num_steps} steps, as many as {parent.path} has: "
            "give another budget"
        )
    return config, run


def check_begun_from(child: RunFolder, parent: RunFolder, step: int | None) -> None:
    """A run that has begun from another checkpoint than this one, where one is named, raises `ConfigError`."""
    begun = child.read_parent()
    if step is None or begun == (parent.run_id, step):
        return
    where = "from the beginning" if begun is None else f"from step {begun[1]} of {begun[0]}"
    raise ConfigError(f"{child.path} has begun {where}, not from step {step} of {parent.run_id}: leave --step out")


def has_begun(folder: RunFolder) -> bool:
    """Whether the run has a result, or a checkpoint from which it would go on."""
    return folder.result_file.exists() or bool(folder.checkpoint_steps())


def _chosen_step(parent: RunFolder, config: RunConfig, run: RunConfig, step: int | None) -> int:
    """The step of the checkpoint to go on from. Where none will do `ConfigError` says why."""
    total = config.num_steps
    shared = min(total, run.num_steps)
    parted = next((s for s in range(shared) if lr_fraction(config, s) != lr_fraction(run, s)), shared)
    # A last step ends a run: DiLoCo's workers are brought together there, whatever the interval.
    most = min(parted, total - 1, run.num_steps - 1)
    steps = parent.checkpoint_steps()
    usable = [one for one in steps if one <= most]
    if step in usable or (step is None and usable):
        return usable[-1] if step is None else step
    there = ", ".join(map(str, steps))
    if run.num_steps == 1:
        why = "its only step ends it, so that no checkpoint can serve: give a larger budget"
    elif parted < config.warmup_steps or parted < run.warmup_steps:
        why = "their warm-up differs, which is a share of a run's steps: set schedule.max_warmup_fraction=1"
    elif most == 0:
        why = "their learning rates differ from the first step on, so that no checkpoint can serve: train it by itself"
    else:
        why = (
            f"up to step {most} the learning rates are equal: train with schedule=wsd, whose stable phase is, and "
            f"execution.keep=[{most}]"
        )
    raise ConfigError(
        f"{parent.path}: its checkpoints are of step {there}, and a run of {run.num_steps} steps would have come to "
        f"none of them{'' if step is None else f' ({step} was asked for)'}: {why}"
    )


def _copy(source: Path, target: Path) -> None:
    """Copy a checkpoint, complete once it has its name; its files, which nobody changes, are shared where possible.

    Nobody else writes to the target's folder meanwhile.
    """
    draft = target.with_name(f".{target.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for file in source.iterdir():
        try:
            os.link(file, draft / file.name)
        except OSError:
            shutil.copy2(file, draft / file.name)
    draft.rename(target)
