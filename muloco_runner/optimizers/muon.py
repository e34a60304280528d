"""Muon on hidden matrices, AdamW on everything else, as one torch optimizer.

Muon (Keller Jordan et al.): the momentum of each matrix is orthogonalised by a Newton-Schulz polynomial and scaled by
its shape; weight decay is decoupled (`update_rule`). Matrices of one shape share a bucket and are orthogonalised
together. All state is created at once, in float32, and saved per parameter. Ranks that train one model share the work:
see `buckets.replicated` for replicas, `buckets.sharded` for parameters whose rows are sharded over the ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from muloco_runner.config import ConfigError
from muloco_runner.config.inner_optimizer import LrScale, MomentumForm
from muloco_runner.distributed.collectives import Collectives
from muloco_runner.distributed.dtensor import copy_into, local
from muloco_runner.distributed.pending import PendingTransfers
from muloco_runner.distributed.traffic import Traffic
from muloco_runner.optimizers.buckets.base import Bucket, GraphCapturable
from muloco_runner.optimizers.buckets.bucketing import BucketContext, create_buckets
from muloco_runner.optimizers.buckets.replicated import ReplicatedBucket, average_gradients, owners_of
from muloco_runner.optimizers.step_graph import StepGraph
from muloco_runner.optimizers.validate import check_group, check_keys, check_saved_groups, check_saved_state


class Muon(torch.optim.Optimizer):
    """Muon on matrices and AdamW on all other parameters.

    Every setting but `process_group`, `traffic` and `cuda_graph` may also be a key of a parameter group, as may
    `algorithm`: "muon" (the default; 2-D parameters only) or "adamw". State is 4 bytes a parameter of a Muon group (the
    momentum) and 8 of an AdamW group (both moments). A setting out of its range, or a backend that cannot run, is a
    `ValueError`. "The study" is arXiv 2505.23725 with its authors' training code; muloco-1 is their package.

    params: parameters or parameter groups; `parameter_groups(model)` makes the two that the study has.
    lr: peak learning rate of both algorithms, which a scheduler scales; a matrix's is multiplied by its `lr_scale`.
        Default 0.02: muloco-1, nanochat and Keller Jordan. MuLoCo's optima in the study: 0.016 to 0.063.
    momentum: factor on the momentum M from step to step, in [0, 1). Default 0.9: the study (the others: 0.95).
    momentum_form: "sum", M <- momentum M + G, or "ema", M <- momentum M + (1 - momentum) G. Default "sum": the study
        and muloco-1 ("ema": Keller Jordan, nanochat and `torch.optim.Muon`).
    nesterov: whether to orthogonalise G + momentum M ("sum") or (1 - momentum) G + momentum M ("ema") in place of M.
        Default False: the study (True: Keller Jordan and nanochat).
    lr_scale: factor on lr by shape: "spectral", sqrt(rows / columns); "keller_jordan", sqrt(max(1, rows / columns));
        "moonlight" (arXiv 2502.16982), 0.2 sqrt(max(rows, columns)). Default "spectral": the study.
    coefficients: Newton-Schulz polynomial: "muloco", "keller_jordan" or "polar_express" (arXiv 2505.16932). Default
        "muloco": the study's, one triple a step.
    num_iterations: Newton-Schulz steps: 5 with "muloco", at most 5 with "polar_express". Default 5: the study.
    betas: AdamW's decay rates of both moments, each in [0, 1). Default (0.9, 0.99): the study (muloco-1: 0.9, 0.95).
    eps: AdamW's term in the denominator. Default 1e-8: the study and muloco-1.
    weight_decay: decoupled decay of both algorithms: W <- (1 - lr weight_decay) W a step, lr without `lr_scale`.
        Default 0: Keller Jordan and nanochat (muloco-1: 0.01; the study: 1e-4 to 0.01 by model size).
    backend: what computes: "reference" (torch), "cpu", "triton" (float16), "triton_bfloat16" (both need the package
        triton), or "auto", the fastest on each parameter's device. Default "auto".
    process_group: ranks that hold the same parameters and share the work: each keeps the momenta of its own matrices
        alone. All of them must call `step`, `state_dict` and `load_state_dict`. Gradients must be averaged already,
        unless `average_gradients` does it. Default None: every rank does all the work. DTensors of `fully_shard` need
        none: their ranks share the work in any case.
    traffic: counts the bytes sent to other ranks. Default None: a count of its own.
    cuda_graph: whether to replay a step as one CUDA graph, which pays for small models; needs a Triton backend and no
        `process_group`. Default False.
    """

    _more_defaults: Mapping[str, Any] = MappingProxyType({})
    """Defaults of the settings that a subclass adds."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.02,
        *,
        momentum: float = 0.9,
        momentum_form: MomentumForm = "sum",
        nesterov: bool = False,
        lr_scale: LrScale = "spectral",
        coefficients: str = "muloco",
        num_iterations: int = 5,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        backend: str = "auto",
        process_group: dist.ProcessGroup | None = None,
        traffic: Traffic | None = None,
        cuda_graph: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "algorithm": "muon",
            "momentum": momentum,
            "momentum_form": momentum_form,
            "nesterov": nesterov,
            "lr_scale": lr_scale,
            "coefficients": coefficients,
            "num_iterations": num_iterations,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "backend": backend,
        }
        self._buckets: list[list[Bucket]] = []
        """[group] -> its buckets."""
        traffic = Traffic() if traffic is None else traffic
        replicas = None if process_group is None else Collectives(process_group, traffic)
        self._context = BucketContext(replicas if replicas is not None and replicas.size > 1 else None, traffic)
        self._graph = StepGraph() if cuda_graph else None
        self._given: dict[Tensor, Tensor] = {}
        self._clip: Tensor | None = None
        super().__init__(params, {**defaults, **self._more_defaults})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, check it and create its state. A key that is no setting is a `ValueError`."""
        if isinstance(param_group, dict):  # else torch refuses it
            check_keys(param_group, self.defaults)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
            buckets = self._create_state(group)
            if self._graph is not None and not all(isinstance(bucket, GraphCapturable) for bucket in buckets):
                raise ConfigError("cuda_graph=True needs backend=triton on a GPU, and no process_group")
        except Exception:
            self.param_groups.pop()
            for parameter in group["params"]:
                self.state.pop(parameter, None)
            raise
        self._buckets.append(buckets)

    def _check(self, group: dict[str, Any]) -> None:
        check_group(group)

    def _create_state(self, group: dict[str, Any]) -> list[Bucket]:
        """Return the buckets of a group; their state is zeros, or what `self.state` has of it already."""
        buckets = create_buckets(group, self._context)
        for bucket in buckets:
            for index, parameter in enumerate(bucket.parameters):
                for name, value in bucket.state(index).items():
                    if name in self.state[parameter]:
                        copy_into(value, self.state[parameter][name])
                    self.state[parameter][name] = value
        return buckets

    def __getstate__(self) -> dict[str, Any]:
        if self._context.replicas is not None:
            raise TypeError("an optimizer that shares its state over ranks cannot be copied: use state_dict()")
        return dict(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_buckets" not in self.__dict__:  # a copy, or unpickled
            self._context, self._graph, self._given, self._clip = BucketContext(), None, {}, None
            self.state = defaultdict(dict, {p: dict(values) for p, values in self.state.items()})
            self._buckets = [self._create_state(group) for group in self.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as torch's optimizers do. With a `process_group` every rank must call it, and gets all."""
        own_state = self.state
        replicated = [bucket for bucket in chain.from_iterable(self._buckets) if isinstance(bucket, ReplicatedBucket)]
        if replicated:
            self.state = own_state.copy()
            for bucket in replicated:
                for parameter, momentum in zip(bucket.parameters, bucket.gather_momenta(), strict=True):
                    self.state[parameter] = {**self.state.get(parameter, {}), "momentum": momentum}
        try:
            return super().state_dict()
        finally:
            self.state = own_state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a saved state into the tensors there are: torch would make new ones, in the parameters' dtype.

        The state of a parameter of which nothing was saved is reset. A state that does not fit is a `ValueError`, and
        changes nothing. The backend stays this optimizer's own.
        """
        own_state, saved_state = self.state, {}

        def before(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            """Check what is loaded, after all other hooks, and keep its tensors from torch."""
            check_saved_groups(given["param_groups"], self.param_groups)
            pairs = list(zip(given["param_groups"], self.param_groups, strict=True))
            groups = [{**own, **saved, "backend": own["backend"]} for saved, own in pairs]
            for group, (saved, own) in zip(groups, pairs, strict=True):
                self._check({**group, "params": own["params"]})
                for number, parameter in zip(saved["params"], own["params"], strict=True):
                    if values := given["state"].get(number):
                        check_saved_state(number, values, self._state_names(own["algorithm"]), parameter)
                        saved_state[parameter] = values
            return {"state": {}, "param_groups": groups}

        def after(_: torch.optim.Optimizer) -> None:
            """Copy the tensors, before all other hooks."""
            self.state = own_state
            for parameter, values in own_state.items():
                if parameter in saved_state:
                    for name, value in values.items():  # other ranks may own more
                        copy_into(value, saved_state[parameter][name])
                else:
                    self._reset_state(parameter)

        hooks = (
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(after, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _state_names(self, algorithm: str) -> set[str]:
        """Return the names of a parameter's state, on all ranks together."""
        return {"momentum"} if algorithm == "muon" else {"step", "exp_avg", "exp_avg_sq"}

    @torch.no_grad()
    def _reset_state(self, parameter: Tensor) -> None:
        for value in self.state[parameter].values():
            local(value).zero_()

    @torch._disable_dynamo  # as of torch's other methods: traced, some of a step's changes got lost
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; return what `closure`, called first, returns.

        A sparse gradient is a `ValueError`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [
            (group, bucket)
            for group, buckets in zip(self.param_groups, self._buckets, strict=True)
            for bucket in buckets
        ]
        for group, bucket in work:
            bucket.prepare(group, [self._gradient(p) for p in bucket.parameters], self._clip)
        if self._graph is None:
            _step_all(work)
        else:
            # A graph is captured on a stream of the current device.
            with torch.cuda.device_of(work[0][1].parameters[0]):
                self._graph.run(
                    lambda: _step_all(work),
                    [bucket.static_arguments(group) for group, bucket in work if isinstance(bucket, GraphCapturable)],
                )
        self._given, self._clip = {}, None
        for _, bucket in work:
            bucket.gradients = []  # their memory is the next backward pass's
        self._after_step()
        return loss

    def _gradient(self, parameter: Tensor) -> Tensor | None:
        gradient = self._given.get(parameter, parameter.grad)
        if gradient is not None and gradient.layout != torch.strided:
            raise ValueError(f"a gradient of {gradient.layout}: must be dense, as of nn.Embedding(sparse=False)")
        return gradient

    def _after_step(self) -> None:
        """Do what a subclass adds to a step: by a `step` of its own, torch would run all hooks twice."""

    @torch.no_grad()
    def average_gradients(self, max_norm: float | None = None) -> Tensor:
        """Average every gradient over `process_group` for the next step; return the norm of all of them (0-D).

        A matrix's mean is computed on its owner alone, which halves what is sent. Where the norm is above `max_norm`
        the next step scales the gradients down to it, as `clip_grad_norm_` would. `grad` itself is not changed.
        """
        self._given, norm = average_gradients(list(chain.from_iterable(self._buckets)), self._context.replicas)
        self._clip = None if max_norm is None else (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    @property
    def owners(self) -> dict[Tensor, int]:
        """The owner of each matrix on which `process_group` shares the work: the rank that alone needs its gradient."""
        return owners_of(chain.from_iterable(self._buckets))

    def use_gradients(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Use these gradients in the next step instead of `grad`: `NOT_OWNED` for a matrix that another rank owns."""
        self._given = dict(gradients)


def _step_all(work: list[tuple[dict[str, Any], Bucket]]) -> None:
    pending = PendingTransfers()
    for group, bucket in work:
        bucket.step(group, pending)
    pending.finish()
