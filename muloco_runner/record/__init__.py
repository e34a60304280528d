"""The reports of a run: the files of its folder, typed and versioned, and the exit codes a scheduler can trust.

The run folder is the only interface between the trainer, the sweeps and the analysis. What is best, on an edge and
bracketed among runs is a rule that the latter two share. Standard library only.
"""

from muloco_runner.record.atomic_files import naming, write_atomically, write_folder
from muloco_runner.record.attempt_times import AttemptTimes
from muloco_runner.record.bracket import (
    LEAST_STEPS,
    ONLY_ONE_BATCH,
    PLATEAU,
    BatchBracket,
    Tried,
    batch_edge_of,
    best_of,
    bracket_batches,
    choosing_seeds,
    edge_of,
    steps_beyond,
)
from muloco_runner.record.exit_codes import KILLED_BY_SIGNAL, STOP_SIGNALS, STOPPED_CODES, ExitCode
from muloco_runner.record.goodput import Goodput, Kind, lost_to, read_all_goodput, write_goodput
from muloco_runner.record.records import (
    FORMAT_VERSION,
    RecordError,
    RecordHeader,
    RunResult,
    RunStatus,
    StepRecord,
    why_without_weights,
)
from muloco_runner.record.run_folder import (
    CHECKPOINT_PREFIX,
    CHECKPOINTS_KEPT,
    WANDB_FAILURE,
    AlreadyRunning,
    RunFolder,
    checkpoint_name,
    checkpoint_step,
    checkpoint_steps_in,
)
from muloco_runner.record.tuning import ContestStanding, GroupStanding, SweepTuning, read_all_tuning, write_tuning

__all__ = [
    "CHECKPOINTS_KEPT",
    "CHECKPOINT_PREFIX",
    "FORMAT_VERSION",
    "KILLED_BY_SIGNAL",
    "LEAST_STEPS",
    "ONLY_ONE_BATCH",
    "PLATEAU",
    "STOPPED_CODES",
    "STOP_SIGNALS",
    "WANDB_FAILURE",
    "AlreadyRunning",
    "AttemptTimes",
    "BatchBracket",
    "ContestStanding",
    "ExitCode",
    "Goodput",
    "GroupStanding",
    "Kind",
    "RecordError",
    "RecordHeader",
    "RunFolder",
    "RunResult",
    "RunStatus",
    "StepRecord",
    "SweepTuning",
    "Tried",
    "batch_edge_of",
    "best_of",
    "bracket_batches",
    "checkpoint_name",
    "checkpoint_step",
    "checkpoint_steps_in",
    "choosing_seeds",
    "edge_of",
    "lost_to",
    "naming",
    "read_all_goodput",
    "read_all_tuning",
    "steps_beyond",
    "why_without_weights",
    "write_atomically",
    "write_folder",
    "write_goodput",
    "write_tuning",
]
