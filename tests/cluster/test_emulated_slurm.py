"""The test cluster itself: without these facts the other tests of this folder would prove nothing."""

from __future__ import annotations

import emulated_slurm
import pytest
from emulated_slurm import GPUS_PER_NODE, EmulatedSlurm, wait_for

pytestmark = pytest.mark.slurm


def test_a_job_sees_the_gpus_that_it_asked_for(slurm: EmulatedSlurm, tmp_path) -> None:
    output = tmp_path / "out"
    command = ["sbatch", "--wait", "--gpus-per-node=4", f"--output={output}", "--wrap=echo $CUDA_VISIBLE_DEVICES"]
    slurm.run(*command)
    devices = output.read_text().strip().split(",")
    assert len(set(devices)) == 4
    assert set(devices) <= {str(number) for number in range(GPUS_PER_NODE)}


def test_a_lost_node_ends_its_job_and_comes_back(slurm: EmulatedSlurm) -> None:
    job = slurm.hold_nodes(1)
    slurm.wait_for_start(job)
    node = slurm.run("squeue", "-h", "-j", job, "-o", "%N").strip()
    slurm.lose_node(node)
    slurm.declare_down(node)
    wait_for(lambda: node not in slurm.run("squeue", "-h", "-j", job, "-o", "%N"), "requeued job")
    slurm.revive_node(node)
    slurm.declare_up(node)
    slurm.run("scancel", job)
    slurm.wait_until_idle()


def test_a_limit_of_a_qos_binds(slurm: EmulatedSlurm) -> None:
    slurm.limit(GrpTRES="node=1")
    jobs = [slurm.hold_nodes(1, qos="capped") for _ in range(2)]
    slurm.wait_for_start(jobs[0])
    wait_for(lambda: "QOSGrpNodeLimit" in slurm.run("squeue", "-h", "-o", "%i %r"), "job that waits for its limit")
    assert len(jobs) == 2
    assert len(slurm.run("squeue", "-h", "-t", "R").splitlines()) == 1


def test_a_wait_in_vain_says_what_was_seen_instead(slurm: EmulatedSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    job = slurm.hold_nodes(1, begin="now+1hour")
    monkeypatch.setattr(emulated_slurm, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(TimeoutError, match=f"(?s)no end within 0.2 s.*squeue:.*{job} .*PENDING.*sinfo:.*node01 "):
        wait_for(lambda: not slurm.run("squeue", "-h", "-j", job), "end")
