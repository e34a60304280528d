"""Training from Python, as `muloco-train` does: `from muloco_runner import train`."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from muloco_runner.compose import compose_tree, to_app_config
from muloco_runner.config import ExecutionConfig, ModelConfig, RunConfig
from muloco_runner.paths import config_path, take_config_path, use_config_path
from muloco_runner.record import ExitCode, RunFolder, RunResult, why_without_weights


class NotTrained(RuntimeError):
    """A run that has not come to its end."""

    def __init__(self, words: str, code: ExitCode) -> None:
        super().__init__(words)
        self.code = code
        """As `muloco-train` would have exited; `WANTS_MORE_TIME` where a signal asked it to stop."""


def train(*words: str) -> RunResult:
    """Train one run in this process, or continue it; one that is finished is not trained again.

    Args:
        words: What `muloco-train` takes: choices and values such as `"algorithm=muloco"`, `"model=42k"`,
            `"inner_optimizer.lr=0.02"`, `"root=results"`, and `"--config-dir=FOLDER"`.

    Returns:
        The run's result, losses in nats per token; `diverged` says whether it has one at all. Its folder is
        `ROOT/runs/RUN_ID`, with `result.run_id`.

    Raises:
        ConfigError: A mistake in the words, in one line, before anything is written.
        NotTrained: The run was stopped, or failed; the same call continues it from its last checkpoint.

    Call it from the main thread: signals that ask for a checkpoint are handled meanwhile. Prints progress.
    """
    choices, path = take_config_path(words)
    use_config_path(path)
    code, folder = train_composed(compose_tree(choices))
    result = folder.read_result()
    if result is None:
        status = folder.read_status()
        cause = (status.exit_cause if status else None) or "see its output"
        raise NotTrained(f"run {folder.run_id} has not ended ({code.name.lower()}): {cause}; {folder.path}", code)
    return result


def train_composed(tree: DictConfig, same_code: bool = False) -> tuple[ExitCode, RunFolder]:
    """Trains what `tree` composes, with progress, and prints one last line. Mistakes raise before a folder is made.

    `same_code`: take a target's code that has changed since the run was begun as the same.
    Returns the exit code and the run's folder.
    """
    from muloco_runner.distributed.rendezvous import process_rank
    from muloco_runner.job import check_can_run, check_same_data, run_with_progress
    from muloco_runner.targets import check_targets, record_code

    app = to_app_config(tree)
    run, process = app.run, process_rank()
    check_execution(run, app.execution)
    folder = RunFolder.of(app.root, run.run_id)
    check_same_data(folder, check_can_run(run, folder))
    is_main = process.rank == 0
    if is_main:
        check_targets([run], Path(app.root), same_code)
    folder.write_config(run.to_dict())
    if is_main:
        record_code([run], Path(app.root), snapshot=False)
        if config_path().folders:
            folder.write_config_sources(config_path().to_dict())
    before = folder.read_result()
    code = run_with_progress(folder, app.execution, next_attempt(folder))
    if is_main and before is not None and app.execution.keep not in (None, "none") and not folder.checkpoint_steps():
        print(f"{folder.path} {why_without_weights(before)}", file=sys.stderr)
    if is_main:
        print(last_line(folder, folder.read_result()), flush=True)
    return code, folder


def check_execution(run: RunConfig, execution: ExecutionConfig) -> None:
    """What this process, one of a job's, cannot do for the run raises `ConfigError`."""
    from muloco_runner.distributed.rendezvous import process_rank
    from muloco_runner.distributed.topology import Topology
    from muloco_runner.distributed.traffic import emulated_link
    from muloco_runner.model.attention import choose_attention
    from muloco_runner.optimizers.orthogonalize import choose_backend
    from muloco_runner.training.devices import check_device, choose_device

    process = process_rank()
    execution.check(run.num_steps)
    check_device(execution.device)
    device = choose_device(execution.device, process)
    choose_backend(execution.muon_backend, device)
    run.model.check_execution(execution.attention, execution.activation_checkpointing)
    if isinstance(run.model, ModelConfig):
        choose_attention(execution.attention, run.model.head_width, device)
    emulated_link(execution, device.type)
    Topology(run.num_workers, process.rank, process.num_ranks).check(run)


def next_attempt(folder: RunFolder) -> int:
    """One more than the attempts that left something behind."""
    attempts = folder.path / "attempts"
    numbers = [int(path.name) for path in attempts.glob("*") if path.name.isdigit()]
    return max(numbers, default=0) + 1


def last_line(folder: RunFolder, result: RunResult | None) -> str:
    """run_id, what came of it, folder."""
    if result is None:
        status = folder.read_status()
        ending = f"{status.state} at step {status.step} of {status.num_steps}" if status else "not started"
    elif result.diverged:
        ending = f"diverged: {result.divergence}"
    else:
        ending = losses_of(result)
    return f"{folder.run_id}  {ending}  {folder.path}"


def losses_of(result: RunResult) -> str:
    """The validation loss of a run that did not diverge, in nats and bits, and its loss on each named set."""
    per_byte = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.4f} bits per byte"
    named = "".join(
        f"; {name} " + ("not finite" if found["validation_loss"] is None else f"{found['validation_loss']:.4f}")
        for name, found in (result.named_validation or {}).items()
    )
    return f"validation loss {result.validation_loss:.4f} nats per token{per_byte}{named}"
