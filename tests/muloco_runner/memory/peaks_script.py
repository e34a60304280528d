"""One rank of a test job, as `srun` would have started it: what each run that it is given takes at most of its memory.

Arguments: a file to write to, then a run's folder and its settings as JSON, and further ones. The file holds, for each,
the estimate's bytes, the peak's, and the peak phase by the estimate.
"""

import json
import sys
from pathlib import Path

import torch

from benchmarks.train_parts.peak_memory import peak_bytes
from muloco_runner.config import ExecutionConfig, RunConfig
from muloco_runner.data.corpus import load_corpus
from muloco_runner.distributed.rendezvous import joined_ranks, process_rank
from muloco_runner.distributed.traffic import emulated_link
from muloco_runner.memory import estimate_memory
from muloco_runner.memory.choose import choose_placement
from muloco_runner.record import RunFolder
from muloco_runner.training.loop import Trainer
from muloco_runner.training.session import Session

CPU = torch.device("cpu")


def estimate_and_peak(folder: RunFolder, execution: ExecutionConfig) -> tuple[int, int, str]:
    run, place = RunConfig.from_dict(folder.read_config()), process_rank()
    placement = choose_placement(run, execution, place.num_ranks, "cpu", None, place.ranks_per_node)
    estimate = estimate_memory(run, placement)
    corpus, link = load_corpus(run.data), emulated_link(execution, CPU.type)
    attempt = folder.attempt_dir(1)
    with joined_ranks(place, run.num_workers, CPU, attempt, placement.sharded, link, placement.copies) as communicator:

        def train() -> None:
            trainer = Trainer(run, corpus, Session(folder, execution, communicator, CPU))
            for _ in range(run.num_steps):
                trainer.step_workers()
                trainer.method.after_inner_step(trainer.state.step)

        peak = peak_bytes(train, CPU)
        for _ in range(2):
            # On busy cores gloo's threads may give a buffer back some time after its collective has ended.
            if not communicator.sum_over_ranks(torch.tensor(int(peak > 1.1 * estimate.total))):
                break
            peak = min(peak, peak_bytes(train, CPU))
    return estimate.total, peak, estimate.peak_phase


if __name__ == "__main__":
    out, *jobs = sys.argv[1:]
    found = [
        estimate_and_peak(RunFolder(folder), ExecutionConfig(**json.loads(settings)))
        for folder, settings in zip(jobs[::2], jobs[1::2], strict=True)
    ]
    Path(out).write_text(json.dumps(found))
