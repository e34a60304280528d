"""Hydra's own acceptance suites, as they are, with our launcher: on this machine and on a real SLURM.

They start a process for each of their jobs: `make test` has our own tests of the launcher.
"""

from pathlib import Path

import pytest
from emulated_slurm import EmulatedSlurm
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

LAUNCHER = ["hydra/launcher=quota"]
BATCHES = [*LAUNCHER, "hydra/sweeper=basic", "hydra.sweeper.max_batch_size=2"]
# One slot: the suites' jobs do nothing, and each process that starts costs a second.
LOCAL = ["hydra.launcher.quota.jobs=1", "hydra.launcher.tick_seconds=0.05"]
SLURM = ["hydra.launcher.cluster=slurm", "hydra.launcher.tick_seconds=0.3"]
# Before any test: where nothing was discovered yet, Hydra 1.4's suites depend on their order.
PLUGINS = Plugins.instance()


def test_hydra_discovers_the_plugins() -> None:
    assert "QuotaLauncher" in {found.__name__ for found in PLUGINS.discover(Launcher)}
    assert "GridSweeper" in {found.__name__ for found in PLUGINS.discover(Sweeper)}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, where the state of a multirun goes, and Hydra as in a new process: composing a config for
    another test has set the version that Hydra is to behave as."""
    monkeypatch.chdir(tmp_path)
    fresh = {kind: one for kind, one in Singleton._instances.items() if kind.__name__ != "VersionBase"}
    monkeypatch.setattr(Singleton, "_instances", fresh)


@pytest.fixture
def cluster(shared_slurm: EmulatedSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(shared_slurm.configuration))


@pytest.mark.long  # CI has them under the next Hydra, and on SLURM under this one
@pytest.mark.parametrize(("launcher_name", "overrides"), [("quota", LOCAL)])
class TestLauncherHere(LauncherTestSuite):
    pass


@pytest.mark.long  # CI has them under the next Hydra, and on SLURM under this one
@pytest.mark.parametrize(("launcher_name", "overrides"), [("quota", [*BATCHES, *LOCAL])])
class TestBatchesHere(BatchedSweeperTestSuite):
    pass


@pytest.mark.long  # CI has them under the next Hydra, and on SLURM under this one
@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", *LAUNCHER, *LOCAL])])
class TestIntegrationHere(IntegrationTestSuite):
    pass


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("quota", SLURM)])
class TestLauncherOnSlurm(LauncherTestSuite):
    pass


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("quota", [*BATCHES, *SLURM])])
class TestBatchesOnSlurm(BatchedSweeperTestSuite):
    pass


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", *LAUNCHER, *SLURM])])
class TestIntegrationOnSlurm(IntegrationTestSuite):
    pass
