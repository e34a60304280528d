"""MuLoCo with one worker as a drop-in optimizer: Muon's inner steps, then an outer step with Nesterov momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from muloco_runner.distributed.dtensor import state_dtype
from muloco_runner.muon_rule.setting_checks import check_count
from muloco_runner.optimizers.muon import Muon
from muloco_runner.optimizers.validate import check_range


class MuLoCo1(Muon):
    """Muon whose every `sync_interval`-th step ends in an outer step on delta = anchor - parameters.

    u <- outer_momentum u + outer_lr delta, then parameters <- anchor - outer_momentum u - outer_lr delta, which become
    the next anchor (arXiv 2505.23725). The first anchor is the parameters at construction. State is 8 bytes a parameter
    more than Muon's: anchor and outer momentum. Defaults are those of muloco-1, the authors' package, but for what
    `Muon` says of its own.

    params: parameters or parameter groups, as for `Muon`. Every setting may also be a key of a group. The first anchor
        of a parameter that comes later is its value then.
    inner_lr: peak learning rate of the inner steps, which a scheduler scales; groups and schedulers may call it `lr`.
        Default 0.02. The study's optima with one worker are 0.016 to 0.063.
    outer_lr: learning rate of the outer steps, constant. Default 0.7: also the study's optimum with one worker.
    outer_momentum: factor on u from one outer step to the next, in [0, 1). Default 0.6: also the study's optimum.
    sync_interval: inner steps from one outer step to the next (H). Default 30: also the study's.
    muon: further keywords of `Muon`, all but `lr`, which is a `TypeError`.
    """

    def __init__(
        self,
        params: ParamsT,
        inner_lr: float | Tensor = 0.02,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.6,
        sync_interval: int = 30,
        **muon: Any,
    ) -> None:
        if "lr" in muon:
            raise TypeError("MuLoCo1 takes inner_lr and outer_lr, not lr")
        self._more_defaults = {
            "outer_lr": outer_lr,
            "outer_momentum": outer_momentum,
            "sync_interval": sync_interval,
            "steps_since_sync": 0,
        }
        super().__init__(params, inner_lr, **muon)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        check_count("sync_interval", group["sync_interval"])
        check_range("outer_lr", group["outer_lr"])
        check_range("outer_momentum", group["outer_momentum"], 1)

    def _state_names(self, algorithm: str) -> set[str]:
        return super()._state_names(algorithm) | {"anchor", "outer_momentum"}

    @torch.no_grad()
    def reset_state(self, parameter: Tensor, name: str, value: Tensor) -> None:
        if name == "anchor":
            value.copy_(parameter)
        else:
            super().reset_state(parameter, name, value)

    def more_state(self, parameter: Tensor) -> dict[str, Tensor]:
        dtype = state_dtype(parameter)
        return {
            "anchor": parameter.detach().to(dtype, copy=True),
            "outer_momentum": torch.zeros_like(parameter, dtype=dtype, requires_grad=False),
        }

    def _after_step(self) -> None:
        for group in self.param_groups:
            group["steps_since_sync"] += 1
            if group["steps_since_sync"] >= group["sync_interval"]:  # above it where the interval was shortened
                group["steps_since_sync"] = 0
                self._outer_step(group)

    def _outer_step(self, group: dict[str, Any]) -> None:
        lr, mu = float(group["outer_lr"]), float(group["outer_momentum"])
        for parameter in group["params"]:
            anchor, u = self.state[parameter]["anchor"], self.state[parameter]["outer_momentum"]
            delta = anchor - parameter
            u.mul_(mu).add_(delta, alpha=lr)
            anchor.sub_(u, alpha=mu).sub_(delta, alpha=lr)
            parameter.copy_(anchor)
