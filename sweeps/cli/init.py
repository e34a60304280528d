"""`init`: a commented conf/cluster/NAME.yaml for the cluster this runs on, and conf/sweep/mine.yaml to begin from."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
from pathlib import Path

import yaml

from muloco_runner.config import ConfigError
from muloco_runner.paths import config_dir
from muloco_runner.record import ExitCode, write_atomically
from sweeps.clusters import read_cluster
from sweeps.clusters.this_machine import usable_cores, usable_gpus

_SWEEP = """\
# A sweep to begin from: muloco-sweep plan +sweep=mine cluster={cluster}
# Keys are choices (files under conf/) and settings; every combination of a product is a run, and grids add up.
fixed: {{tokens_per_parameter: 5}}
grids:
  - product:
      algorithm: [ddp_adamw, ddp_muon]     # data parallel
      model: [29k, 42k]
      inner_optimizer.lr: sqrt2(-14..-8 by 3)
  - product:
      algorithm: [diloco, muloco]          # an outer step every method.sync_interval steps
      model: [29k, 42k]
      inner_optimizer.lr: sqrt2(-14..-8 by 3)
"""
_LOCAL = """\
# This machine as `muloco-sweep init` found it: {cores} cores, {gpus} GPUs.
kind: local
tick_seconds: 0.2
allocations:
  - name: here
    quota: {{jobs: null}}   # number of slots; null is one per GPU, or per core where there is no GPU
"""


def init(arguments: argparse.Namespace) -> ExitCode:
    """Write both files below ./conf. A cluster's file of another content raises `ConfigError`; a sweep's is kept."""
    found, text = _this_machine() if arguments.local or shutil.which("sinfo") is None else _slurm_cluster()
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", found) if arguments.cluster is None else arguments.cluster
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(f"init {name!r}: a name is one or more of letters, digits, - and _")
    if (config_dir() / "cluster" / f"{name}.yaml").exists():
        raise ConfigError(f"init {name}: a built-in cluster has that name: give another, muloco-sweep init NAME")
    cluster, sweep = Path("conf", "cluster", f"{name}.yaml"), Path("conf", "sweep", "mine.yaml")
    changed = not (cluster.exists() and cluster.read_text() == text)
    if changed and cluster.exists():
        raise ConfigError(f"{cluster} is there already, and nothing was written: move it, or muloco-sweep init NAME")
    read_cluster(name, yaml.safe_load(text))
    kept = sweep.exists()
    if changed:
        _write(cluster, text)
    if not kept:
        _write(sweep, _SWEEP.format(cluster=name))
    if arguments.json:
        print(json.dumps({"cluster_file": str(cluster), "sweep_file": str(sweep), "changed": changed or not kept}))
        return ExitCode.FINISHED
    print(f"{cluster}: check its values\n{sweep}{' was there already and is kept' if kept else ''}")
    print(f"  muloco-sweep plan +sweep=mine cluster={name}")
    return ExitCode.FINISHED


def _this_machine() -> tuple[str, str]:
    return socket.gethostname().partition(".")[0], _LOCAL.format(cores=usable_cores(), gpus=len(usable_gpus()))


def _slurm_cluster() -> tuple[str, str]:
    """Name and file of the SLURM cluster that this machine belongs to."""
    from sweeps.clusters.slurm.describe import cluster_file
    from sweeps.clusters.slurm.slurm_cluster import read_accounting

    accounting = read_accounting()
    if accounting is None:
        raise ConfigError("init: SLURM does not answer; nothing was written: try again later, or give --local")
    return accounting.cluster or "slurm", cluster_file(accounting)


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}: run it in a folder of yours") from None
