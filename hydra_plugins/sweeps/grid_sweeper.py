"""`hydra/sweeper=grid`: a multirun's jobs from a file of the application, conf/sweep/NAME.yaml by `+sweep=NAME`.

    # conf/sweep/NAME.yaml
    grids:
      - product: {optimizer: [adam, sgd], lr: sqrt2(-12..-6)}
        zip: {model: [small, large], batch: [64, 256]}

The language is that of `sweeps.grid`; the settings here are applied in `sweeps.hydra_apps`.
"""

# Annotations are not postponed here: Hydra runs a plugin's module before it is in sys.modules, where a dataclass would
# look its postponed ones up.
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig


@dataclass
class GridSweeperConf:
    _target_: str = "hydra_plugins.sweeps.grid_sweeper.GridSweeper"
    sweep: Any = None
    """The sweep itself: grids, and what holds in all of them; null takes the application's own node `sweep`. Lists on
    the command line narrow it or add to it; without a sweep they are all there is."""
    detach: bool = False
    """Submit, print how to watch, and return without results. Needs hydra/launcher=quota."""
    allow_large: bool = False
    """Take more than 100,000 jobs without asking."""
    launch_with: str | None = None
    """`module:function` of an application whose runs are known to the sweep engine, called as
    function(arguments, detach, allow_large) in place of the launcher; returns an exit code."""


class GridSweeper(Sweeper):
    """Unions of products, zips, conditions and exclusions. Job folders are named by content, not by position."""

    def __init__(self, sweep: Any, detach: bool, allow_large: bool, launch_with: str | None) -> None:
        self.sweep_config, self.detach, self.allow_large, self.launch_with = sweep, detach, allow_large, launch_with
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: "HydraContext", task_function: "TaskFunction", config: "DictConfig") -> None:
        from hydra.core.plugins import Plugins

        self.config, self.hydra_context = config, hydra_context
        if self.launch_with is None:
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )

    def sweep(self, arguments: list[str]) -> Any:
        from hydra.errors import CompactHydraException

        from muloco_sweeps import claim_names

        # The application's folder, which is on the path, may hold a `sweeps` of its own.
        claim_names(error=CompactHydraException)
        from sweeps.hydra_apps.grid_sweep import hand_over, sweep

        if self.launch_with is not None:
            return hand_over(self.launch_with, arguments, self.detach, self.allow_large)
        return sweep(self, arguments)


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="muloco-sweeps")
