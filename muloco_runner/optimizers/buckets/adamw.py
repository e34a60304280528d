"""The AdamW step of a group: torch's fused kernel, on whatever lies on this rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from muloco_runner.distributed.dtensor import local, state_dtype
from muloco_runner.distributed.pending import PendingTransfers
from muloco_runner.optimizers.buckets.base import Gradients
from muloco_runner.optimizers.update_rule import decay_


class AdamWBucket:
    """Parameters of one AdamW group, dtype and device, their moments and step counts."""

    scales_in_kernels = False

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        # Each on its parameter's device, as the fused kernel wants it.
        self.steps = [torch.zeros((), dtype=torch.float32, device=p.device) for p in parameters]
        self.exp_avgs, self.exp_avg_sqs = (
            [torch.zeros_like(p, dtype=state_dtype(p), memory_format=torch.contiguous_format) for p in parameters]
            for _ in range(2)
        )
        self.gradients: list[Tensor | None] = []
        self.clip: Tensor | None = None

    def state(self, index: int) -> dict[str, Tensor]:
        return {"step": self.steps[index], "exp_avg": self.exp_avgs[index], "exp_avg_sq": self.exp_avg_sqs[index]}

    def prepare(self, group: dict[str, Any], gradients: Gradients, clip: Tensor | None) -> None:
        self.gradients, self.clip = [gradients.get(parameter) for parameter in self.parameters], clip

    def step(self, group: dict[str, Any], pending: PendingTransfers) -> None:
        chosen = [index for index, gradient in enumerate(self.gradients) if gradient is not None]
        parameters = [local(self.parameters[index]) for index in chosen]
        # The fused kernel takes one dtype and one layout: a parameter that is narrower than its state, or does not lie
        # in one piece row by row, takes the step as a copy.
        wide = [parameter.to(state_dtype(parameter)).contiguous() for parameter in parameters]
        gradients = [
            local(gradient).to(parameter.dtype).contiguous()
            for index, parameter in zip(chosen, wide, strict=True)
            if (gradient := self.gradients[index]) is not None
        ]
        if not chosen:
            return
        if self.clip is not None:
            gradients = list(torch._foreach_mul(gradients, self.clip))
        exp_avgs, decay = [local(self.exp_avgs[index]) for index in chosen], group["weight_decay"]
        if group["weight_decay_form"] == "cautious" and decay:
            # torch's kernel would decay every weight. An update has the sign of its first moment.
            for weight, exp_avg, gradient in zip(wide, exp_avgs, gradients, strict=True):
                update = exp_avg.lerp(gradient, 1 - group["betas"][0])
                decay_([weight], [update], 1 - group["lr"] * decay, "cautious")
            decay = 0.0
        adamw(
            wide,
            gradients,
            exp_avgs,
            [local(self.exp_avg_sqs[index]) for index in chosen],
            [],
            [self.steps[index] for index in chosen],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=decay,
            eps=group["eps"],
            maximize=False,
        )
        for parameter, result in zip(parameters, wide, strict=True):
            if result is not parameter:
                parameter.copy_(result)

    def drop_gradients(self) -> None:
        self.gradients = []
