"""What a plan says before anything is submitted."""

from pathlib import Path

import pytest

from muloco_runner.config import ExecutionConfig
from muloco_runner.paths import config_dir
from sweeps.cli.display import plan_as_dict, show_plan
from sweeps.cli.filters import params_of as num_params
from sweeps.cli.status_table import _names
from sweeps.clusters import make_cluster
from sweeps.engine.cluster import Limit, Limits, Resource
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, QuotaConfig
from sweeps.engine.quota import VerdictKind
from sweeps.engine.work import Need, Work
from sweeps.store.definition import Definition
from sweeps.training.model_names import model_name
from sweeps.training.preview import Preview, preview
from sweeps.training.sweep import Sweep, read_sweep


def sweep_of(root: Path, nodes: int, *needs: Need) -> Sweep:
    allocation = AllocationConfig("a", gpus_per_node=8, whole_nodes=True, quota=QuotaConfig(nodes=nodes))
    cluster = ClusterConfig("c", "slurm", [allocation])
    works = [Work(f"r{n}", str(root / f"r{n}"), "m:f", need=need) for n, need in enumerate(needs)]
    return Sweep("s", root, [], ExecutionConfig(), Definition("s", "c", {}, works), cluster)


def numbers(found: Preview) -> list[float]:
    return [found.gpu_hours, found.node_hours, found.makespan_minutes]


def test_costs_count_what_is_left_and_a_shared_node_once(tmp_path: Path) -> None:
    small, whole, wide = Need(1, 2, 1, 0, 60), Need(1, 8, 1, 0, 120), Need(2, 8, 1, 0, 30)
    sweep = sweep_of(tmp_path, 2, small, small, small, small, whole, wide)
    # The wide one first (30 minutes), then the whole one beside the four small ones.
    assert numbers(preview(sweep, Limits())) == pytest.approx([8 + 16 + 8, 1 + 1 + 2, 150])
    place = Path(sweep.definition.works[4].folder)
    place.mkdir()
    (place / "result.json").write_text("{}")
    assert numbers(preview(sweep, Limits())) == pytest.approx([8 + 8, 1 + 1, 90])


def test_a_run_that_never_fits_is_named_and_costs_nothing(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, 2, Need(3, 8, 1, 0, 60), Need(1, 8, 1, 0, 60))
    found = preview(sweep, Limits())
    assert [run.verdict.kind for run in found.runs] == [VerdictKind.NEVER, VerdictKind.RUN]
    assert numbers(found) == pytest.approx([8, 1, 60])


def test_a_run_of_several_jobs_takes_their_time_together(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, 1, Need(1, 8, 1, 0, 3000))
    assert sweep.cluster.allocations[0].max_wall_minutes < 3000
    assert numbers(preview(sweep, Limits())) == pytest.approx([400, 50, 3000])


def test_a_plan_says_which_limit_cuts_runs_and_into_how_many_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(tmp_path, 1, Need(1, 8, 1, 0, 3000), Need(1, 8, 1, 0, 200), Need(1, 8, 1, 0, 100))
    limit = Limit("partition gpu MaxTime", Resource.WALL_MINUTES, 180)
    found = preview(sweep, Limits({"a": [limit]}))
    assert [run.num_jobs for run in found.runs] == [17, 2, 1]
    assert found.cuts == [
        "2 runs of more than 3 h (partition gpu MaxTime): cut into up to 17 jobs each, which go on from the last "
        "checkpoint"
    ]
    assert preview(sweep, Limits()).cuts[0].startswith("1 run of more than 1 d (max_wall_minutes)")


FEW = ("compression_small", "demo")
"""Sweep files whose plans `make test` makes; the others, of hundreds of runs, are `make test-thorough`'s."""


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in FEW else [pytest.mark.thorough])
        for path in sorted((config_dir() / "sweep").glob("*.yaml"))
    ],
)
def test_every_sweep_file_has_a_plan_where_there_is_no_slurm(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    sweep = read_sweep([f"+sweep={path.stem}", "cluster=h100"])
    found = preview(sweep, make_cluster(sweep.cluster, sweep.folder.cluster_dir).limits(sweep.folder.owns))
    assert "scontrol" in found.note
    assert {run.verdict.kind for run in found.runs} == {VerdictKind.RUN}
    assert len(found.runs) > 1
    assert found.node_hours * 8 >= 0.999 * found.gpu_hours > 0
    assert all(run.fit is not None and run.fit.fits for run in found.runs)
    show_plan(found)
    (heads,) = [line for line in capsys.readouterr().out.splitlines() if "each holds" in line]
    assert heads.split()[-2:] == ["GB", "of"]
    assert all(0 < run["memory"]["bytes"] < run["memory"]["gpu_bytes"] for run in plan_as_dict(found)["runs"])


def test_the_clusters_limits_and_other_peoples_jobs_count(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, 4, *[Need(1, 8, 1, 0, 60)] * 4)
    assert preview(sweep, Limits()).makespan_minutes == pytest.approx(60)
    limit = Limit("QOS normal GrpTRES.node", Resource.NODES, 3, used_by_others=1)
    found = preview(sweep, Limits({"a": [limit]}))
    assert found.makespan_minutes == pytest.approx(120)


@pytest.mark.parametrize(
    ("asked", "keeps"),
    [([], "none"), (["execution.final_checkpoint=true"], "final"), (["execution.keep=last_2"], "last_2")],
)
def test_runs_of_a_sweep_keep_their_last_state_only_where_asked(asked: list[str], keeps: str, tmp_path: Path) -> None:
    sweep = read_sweep(["+sweep=demo", "model=29k", f"root={tmp_path}", *asked])
    assert {work.arguments["execution"]["keep"] for work in sweep.definition.works} == {keeps}


def test_a_cap_on_gpu_hours_says_which_runs_fit(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, 4, Need(1, 8, 1, 0, 600), Need(1, 8, 1, 0, 60), Need(1, 4, 1, 0, 60))
    assert preview(sweep, Limits()).affordable is None
    # A job has its node alone, so the last one costs 8 too.
    assert preview(sweep, Limits(), max_gpu_hours=13).affordable == {"r1"}
    assert preview(sweep, Limits(), max_gpu_hours=16).affordable == {"r1", "r2"}
    assert preview(sweep, Limits(), max_gpu_hours=0).affordable == set()


def test_a_plan_is_read_as_an_offer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=3.1b,150m", "algorithm=ddp_muon,muloco", "global_batch_tokens=1048576", "cluster=h100"]
    sweep = read_sweep([*words, f"root={tmp_path}"])
    found = preview(sweep, Limits(), max_gpu_hours=100)
    show_plan(found)
    said = capsys.readouterr().out
    # As typed, with a sum for each size, the quota by name, and what the times rest on.
    assert " 3.1b " in said
    assert said.count("together") == 2
    assert "2 of the 4 unfinished runs fit into the cap" in said
    assert "(h100: nodes=16)" in said
    assert "Each GPU holds " in said
    # Size, runs and hours: a sum has no time of its own.
    assert all(len(line.split()) == 4 for line in said.splitlines() if "together" in line)
    assert "a first guess, at 200 TFLOP/s a GPU" in said
    assert plan_as_dict(found)["runs"][0]["within_cap"] in (True, False)


def test_a_plan_names_what_never_runs_and_counts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = read_sweep(["model=3.1b,150m", "global_batch_tokens=1048576", "cluster=h100", f"root={tmp_path}"])
    name = "association of the account that nobody else has, GrpTRES.node"
    show_plan(preview(sweep, Limits({one.name: [Limit(name, Resource.NODES, 0)] for one in sweep.cluster.allocations})))
    lines = capsys.readouterr().out.splitlines()
    assert "2 of the 2 runs can never run: correct the sweep or the cluster" in lines
    # At 80 columns too, where the table would cut it.
    assert any(line.startswith("NEVER, ") and name in line for line in lines)


def test_every_model_file_has_its_name_back() -> None:
    names = [path.stem for path in (config_dir() / "model").glob("*.yaml") if path.stem != "ladder"]
    assert {name: model_name(num_params(name)) for name in names} == {name: name for name in names}
    assert _names(("num_params", "algorithm"), (num_params("82k"), "muloco")) == ["82k", "muloco"]
