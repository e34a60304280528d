"""The commands that submit nothing: `plan` estimates what a sweep costs, `simulate` simulates it with failures."""

from __future__ import annotations

import argparse
import dataclasses
import json

from muloco_runner.config import ConfigError
from muloco_runner.data.epochs import epochs_of_sweep
from muloco_runner.record import ExitCode
from sweeps.cli.display import outcome_as_dict, plan_as_dict, show_outcome, show_plan, waiting
from sweeps.cli.study_lines import plan_lines, state_so_far, study_as_dict, study_lines
from sweeps.clusters import make_cluster
from sweeps.engine.lower_bound import lower_bound_minutes
from sweeps.engine.quota import VerdictKind
from sweeps.training.preview import check_cap, preview
from sweeps.training.sweep import read_sweep


def plan(arguments: argparse.Namespace) -> ExitCode:
    sweep = read_sweep(arguments.overrides, arguments.allow_large, arguments.same_code)
    cluster = make_cluster(sweep.cluster, sweep.folder.cluster_dir)
    live = cluster.limits(sweep.folder.owns)
    if not live.note:
        cluster.check()
    check_cap(sweep, arguments.max_gpu_hours)
    found = preview(sweep, live, arguments.max_gpu_hours)
    epochs = epochs_of_sweep(sweep.runs)
    if arguments.json:
        study = sweep.definition.study
        extend = study_as_dict(study, state_so_far(sweep)) if study is not None else None
        print(json.dumps({**plan_as_dict(found), "data": epochs, "extend": extend}))
    else:
        show_plan(found, epochs)
        if sweep.definition.study is not None:
            print(*plan_lines(sweep), sep="\n")
    return ExitCode.FINISHED


def simulate_sweep(arguments: argparse.Namespace) -> ExitCode:
    """Run the unfinished runs of a sweep through the real controller on a simulated cluster."""
    # The controller and all that it loads, which plans do without.
    from sweeps.simulation.faults import FAULT_MODELS
    from sweeps.simulation.simulate import simulate
    from sweeps.simulation.surface import PlantedTrials

    sweep = read_sweep(arguments.overrides, arguments.allow_large, arguments.same_code)
    found = preview(sweep, make_cluster(sweep.cluster, sweep.folder.cluster_dir).limits(sweep.folder.owns))
    never = [run for run in found.runs if run.verdict.kind is VerdictKind.NEVER]
    if never:
        raise ConfigError(
            f"{len(never)} runs can never start ({never[0].verdict}): correct the sweep or the cluster first"
        )
    study = sweep.definition.study
    trials = PlantedTrials(study, arguments.seed) if study is not None else None
    # What a planted surface gives is not what finished runs have given.
    finished = {run.work.name for run in found.runs if run.finished} if trials is None else set()
    left = [run.work for run in found.runs if run.work.name not in finished]
    # What a finished trunk has left is there.
    works = [dataclasses.replace(one, trunk=None) if one.trunk and one.trunk.run in finished else one for one in left]
    if lower_bound_minutes(works, sweep.cluster) is None:
        raise ConfigError(
            f"cluster {sweep.cluster.name} has an allocation without a quota of nodes, so its size is unknown: set "
            "quota.nodes of each allocation in its file under conf/cluster"
        )
    faults = dataclasses.replace(FAULT_MODELS[arguments.faults], seed=arguments.seed)
    with waiting(f"simulating {len(works)} runs"):
        outcome = simulate(works, sweep.cluster, faults, trials=trials)
    if arguments.json:
        extend = study_as_dict(study, outcome.state) if study is not None else None
        print(json.dumps({**outcome_as_dict(sweep, outcome), "extend": extend}))
    else:
        show_outcome(sweep, outcome)
        if study is not None:
            print(f"On a planted loss surface (--seed {arguments.seed}):")
            print(*study_lines(study, outcome.state), sep="\n")
    return ExitCode.FINISHED
