"""Muon on hidden matrices, AdamW on everything else, as one torch optimizer.

Muon (Keller Jordan et al.): the momentum of each matrix is orthogonalised by a Newton-Schulz polynomial and scaled by
its shape; weight decay is decoupled (`update_rule`). Matrices of one shape share a bucket and are orthogonalised
together. All state is created at once, in float32, and saved per parameter. Buckets follow `param_groups` and `state`,
whatever is done to these between two steps. Ranks that train one model share the work: see `buckets.replicated` for
replicas, `buckets.sharded` for parameters whose rows are sharded over the ranks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from muloco_runner.config.inner_optimizer import LrScale, MomentumForm, WeightDecayForm
from muloco_runner.distributed.collectives import Collectives
from muloco_runner.distributed.dtensor import local
from muloco_runner.distributed.pending import PendingTransfers
from muloco_runner.distributed.traffic import Traffic
from muloco_runner.optimizers.ancestors import (
    Ancestor,
    defaults_of,
    in_our_words,
    is_foreign,
    saved_settings,
    saved_state,
)
from muloco_runner.optimizers.arena import Arena
from muloco_runner.optimizers.buckets.base import Bucket, Gradients, GraphCapturable, gradients_in_grad
from muloco_runner.optimizers.buckets.bucketing import BucketContext
from muloco_runner.optimizers.buckets.replicated import (
    GradientAgreement,
    average_gradients,
    owners_of,
)
from muloco_runner.optimizers.followed_groups import FollowedGroups, copy_state
from muloco_runner.optimizers.step_graph import StepGraph
from muloco_runner.optimizers.update_rule import is_cycled, step_settings
from muloco_runner.optimizers.validate import (
    check_group,
    check_is_saved,
    check_keys,
    check_saved_groups,
    check_saved_state,
    check_split_names,
)


class Muon(torch.optim.Optimizer):
    """Muon on matrices and AdamW on all other parameters.

    Every setting but `process_group`, `average`, `traffic`, `arena` and `cuda_graph` may also be a key of a parameter
    group, as may `algorithm`: "muon" (the default; two dimensions or more) or "adamw". State is 4 bytes a parameter of
    a Muon group (the momentum) and 8 of an AdamW group (both moments). A setting out of its range, or a backend that
    cannot run, is a `ValueError`. "The study" is arXiv 2505.23725 with its authors' training code; muloco-1 is their
    package.
    `Muon.like` has the defaults of other implementations.

    As of any torch optimizer, `param_groups` and `state` are what a step uses: parameters, groups and settings may be
    replaced, added and taken out, state assigned or cleared, and the model moved or cast, on all ranks alike. What
    leaves `param_groups` keeps its state while it exists; what is new starts without momentum.

    params: parameters or parameter groups; `parameter_groups(model)` makes the two that the study has.
    lr: peak learning rate of both algorithms, which a scheduler scales; a matrix's is multiplied by its `lr_scale`.
        Default 0.02: muloco-1, nanochat and Keller Jordan. MuLoCo's optima in the study: 0.016 to 0.063.
    momentum: factor on the momentum M from step to step, in [0, 1). Default 0.9: the study (the others: 0.95). Of a
        group that OneCycleLR or CyclicLR cycles, also `betas[0]`, which these set: between two steps the one that was
        set; of both, this.
    momentum_form: "sum", M <- momentum M + G, or "ema", M <- momentum M + (1 - momentum) G. Default "sum": the study
        and muloco-1 ("ema": Keller Jordan, nanochat and `torch.optim.Muon`).
    nesterov: whether to orthogonalise G + momentum M ("sum") or (1 - momentum) G + momentum M ("ema") in place of M.
        "corrected" corrects both terms for the start at zero, in "ema" alone and without fused kernels; steps are
        counted in the group's `nesterov_steps`. Default False: the study (True: Keller Jordan, nanochat and torch;
        "corrected": optax).
    lr_scale: factor on lr by shape: "spectral", sqrt(rows / columns); "keller_jordan", sqrt(max(1, rows / columns));
        "moonlight" (arXiv 2502.16982), 0.2 sqrt(max(rows, columns)); "none", 1. Default "spectral": the study.
    coefficients: Newton-Schulz polynomial: "muloco", "keller_jordan" or "polar_express" (arXiv 2505.16932), or a triple
        for every step. Default "muloco": the study's, one triple a step.
    num_iterations: Newton-Schulz steps: 5 with "muloco", at most 5 with "polar_express". Default 5: the study.
    epsilon: term added to the norm that a matrix is divided by. Default 0: scale invariant (the study and muloco-1:
        1e-8; Keller Jordan and nanochat: 1e-7).
    norm_floor: the least norm that a matrix is divided by. Default 0 (torch: 1e-7).
    batched: whether a parameter of more than two dimensions is a batch of matrices, its last two, as experts are.
        Default False: it is one matrix (first, all others), as of a convolution.
    split: into how many equal blocks of rows a matrix is cut before it is orthogonalised, as fused query, key and value
        projections must be; or numbers by a part of the parameters' names, `{"qkv": 3}`, where `params` are (name,
        parameter) pairs; a part that no name has is a `ValueError`. Default 1: not cut.
    betas: AdamW's decay rates of both moments, each in [0, 1). Default (0.9, 0.99): the study (muloco-1: 0.9, 0.95).
    eps: AdamW's term in the denominator. Default 1e-8: the study and muloco-1.
    weight_decay: decoupled decay of both algorithms: W <- (1 - lr weight_decay) W a step, lr without `lr_scale`.
        Default 0: Keller Jordan and nanochat (muloco-1: 0.01; torch: 0.1; the study: 1e-4 to 0.01 by model size).
    weight_decay_form: "decoupled", as above, or "cautious": only of weights that have the sign of the step's update, or
        where one of both is 0 (arXiv 2510.12402). Default "decoupled".
    backend: what computes: "reference" (torch), "cpu", "triton" (float16), "triton_bfloat16" (both need the package
        triton), or "auto", the fastest on each parameter's device. Default "auto".
    process_group: ranks that hold the same parameters and share the work: each keeps the momenta of its own matrices
        alone. All of them must call `step`, `state_dict` and `load_state_dict`. Gradients must be averaged already,
        as DDP does, unless `average` or `average_gradients` does it: a step that finds them to differ is a
        `ValueError`. Default None: every rank does all the work. DTensors of `fully_shard` need none: their ranks share
        the work in any case.
    average: whether a step averages gradients over `process_group` by itself, as nanochat's DistMuon does. Default
        False.
    traffic: counts the bytes sent to other ranks. Default None: a count of its own.
    arena: workspace of fused kernels, which optimizers that step in turn on one stream may share. Default None: one of
        its own.
    cuda_graph: whether to replay a step as one CUDA graph, which pays for small models; needs a Triton backend and no
        `process_group`. Default False.
    others: other implementations' names: `mu` (momentum), `ns_steps` (num_iterations), `ns_coefficients`
        (coefficients), `adjust_lr` and `adjust_lr_fn` (lr_scale), `inner_lr` (lr); in groups `use_muon` (algorithm).
    """

    _more_defaults: Mapping[str, Any] = MappingProxyType({})
    """Defaults of the settings that a subclass adds."""
    eps_is_norm_floor = False
    """Whether `eps` of a Muon group is its `norm_floor`, as in `torch.optim.Muon`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.02,
        *,
        momentum: float = 0.9,
        momentum_form: MomentumForm = "sum",
        nesterov: bool | Literal["corrected"] = False,
        lr_scale: LrScale = "spectral",
        coefficients: str | tuple[float, float, float] = "muloco",
        num_iterations: int = 5,
        epsilon: float = 0.0,
        norm_floor: float = 0.0,
        batched: bool = False,
        split: int | Mapping[str, int] = 1,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        weight_decay_form: WeightDecayForm = "decoupled",
        backend: str = "auto",
        process_group: dist.ProcessGroup | None = None,
        average: bool = False,
        traffic: Traffic | None = None,
        arena: Arena | None = None,
        cuda_graph: bool = False,
        **others: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "algorithm": "muon",
            "momentum": momentum,
            "momentum_form": momentum_form,
            "nesterov": nesterov,
            "nesterov_steps": 0,
            "lr_scale": lr_scale,
            "coefficients": coefficients,
            "num_iterations": num_iterations,
            "epsilon": epsilon,
            "norm_floor": norm_floor,
            "batched": batched,
            "split": split,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "weight_decay_form": weight_decay_form,
            "backend": backend,
        }
        traffic = Traffic() if traffic is None else traffic
        replicas = None if process_group is None else Collectives(process_group, traffic)
        if average and replicas is None:
            raise ValueError("average=True: over which ranks? give process_group as well")
        shares = replicas if replicas is not None and replicas.size > 1 else None
        self._context = BucketContext(shares, traffic, arena=arena or Arena())
        self._graph = StepGraph() if cuda_graph else None
        self._averages = average
        self._begin()
        super().__init__(params, {**_with_others(defaults, others), **self._more_defaults})
        check_split_names(self.param_groups)

    @classmethod
    def like(cls, ancestor: Ancestor, params: ParamsT, **settings: Any) -> Self:
        """Return an optimizer with another implementation's defaults but for `settings`, which may have its names.

        ancestor: "muloco-1"; "nanochat" (with a `process_group` its DistMuon, which averages gradients itself);
            "keller_jordan"; "torch", `torch.optim.Muon`, whose `eps` is our `norm_floor`, in Muon groups too;
            "optax", `optax.contrib.muon`, with nanochat's lr, since it has none; "paper", the study. All but optax
            orthogonalise in bfloat16, which `backend="reference"` does in the parameters' dtype. What none of them has,
            AdamW's part for example, is as by default.
        """
        given = in_our_words(settings)
        if ancestor == "torch" and "eps" in given:
            given["norm_floor"] = given.pop("eps")
        if ancestor == "nanochat" and given.get("process_group") is not None:
            given.setdefault("average", True)
        merged = {**defaults_of(ancestor), **given}
        optimizer = cls.__new__(cls)
        optimizer.eps_is_norm_floor = ancestor == "torch"  # before the groups are read
        optimizer.__init__(params, merged.pop("lr"), **merged)  # type: ignore[misc]
        return optimizer

    def _begin(self) -> None:
        """Set what a copy does not take over."""
        self._gradients: Gradients | None = None
        """Those of the next step, where they have been summed over `process_group` with each matrix's at its owner."""
        self._clip: Tensor | None = None
        self._agreement = None if self._context.replicas is None else GradientAgreement(self._context.replicas)
        self._followed = FollowedGroups(self._context, self._graph is not None)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, check it and create its state. A key that is no setting is a `ValueError`."""
        if isinstance(param_group, dict):  # else torch refuses it
            ours = in_our_words(param_group)
            param_group = param_group if ours.keys() == param_group.keys() else ours
            check_keys(param_group, self.defaults)
            if self.eps_is_norm_floor and "eps" in param_group and param_group.get("algorithm", "muon") == "muon":
                param_group = {"norm_floor": param_group["eps"], **param_group}
        super().add_param_group(param_group)
        try:
            self._follow_groups()
        except Exception:
            self.param_groups.pop()
            raise

    def check(self, group: dict[str, Any]) -> None:
        """Refuse a group whose settings or parameters cannot be meant, with a `ValueError`."""
        check_group(group)

    def more_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state that a subclass keeps of a parameter beside its bucket's, as at the start."""
        return {}

    @torch.no_grad()
    def reset_state(self, parameter: Tensor, name: str, value: Tensor) -> None:
        """Set one tensor of a parameter's state to what it is at the start."""
        local(value).zero_()

    def _follow(self) -> None:
        """Follow what has been done to `param_groups` and `state` since the last step."""
        self._follow_groups()
        self._followed.follow_settings(self)
        self._followed.follow_state(self)

    def _follow_groups(self) -> None:
        if self._followed.follow_groups(self) and self._graph is not None:
            self._graph.release()

    def __getstate__(self) -> dict[str, Any]:
        if self._context.replicas is not None:
            raise TypeError("an optimizer that shares its state over ranks cannot be copied: use state_dict()")
        self._follow()
        return {**super().__getstate__(), "eps_is_norm_floor": self.eps_is_norm_floor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_followed" not in self.__dict__:  # a copy, or unpickled
            self._context, self._graph, self._averages = BucketContext(), None, False
            self._begin()
            self._follow_groups()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as torch's optimizers do. With a `process_group` every rank must call it, and gets all."""
        self._follow()
        own_state = self.state
        self.state = self._followed.full_state(self)
        try:
            return super().state_dict()
        finally:
            self.state = own_state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a saved state into the tensors there are: torch would make new ones, in the parameters' dtype.

        The state of a parameter of which nothing was saved is reset. States of torch's Muon, nanochat's and Keller
        Jordan's are taken over with their settings. A state that does not fit is a `ValueError`, and changes nothing.
        The backend stays this optimizer's own.
        """
        check_is_saved(state_dict)
        self._follow()
        own_state, saved_tensors = self.state, {}

        def before(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            """Check what is loaded, after all other hooks, and keep its tensors from torch."""
            check_saved_groups(given["param_groups"], self.param_groups)
            given = self._translated(given)
            pairs = list(zip(given["param_groups"], self.param_groups, strict=True))
            groups = [{**own, **saved, "backend": own["backend"]} for saved, own in pairs]
            for group, (saved, own) in zip(groups, pairs, strict=True):
                if "base_momentum" not in saved:  # saved before it was cycled: its betas are not its momentum
                    group["betas"] = (group["momentum"], *group["betas"][1:]) if is_cycled(group) else group["betas"]
                self.check({**group, "params": own["params"]})
                for number, parameter in zip(saved["params"], own["params"], strict=True):
                    if values := given["state"].get(number):
                        check_saved_state(number, values, self._state_names(own["algorithm"]), parameter)
                        saved_tensors[parameter] = values
            return {"state": {}, "param_groups": groups}

        def after(_: torch.optim.Optimizer) -> None:
            """Copy the tensors, before all other hooks."""
            self.state = own_state
            for parameter, values in own_state.items():
                for name, value in values.items():  # other ranks may own more
                    if parameter in saved_tensors:
                        copy_state(name, value, saved_tensors[parameter][name], parameter)
                    else:
                        self.reset_state(parameter, name, value)

        hooks = (
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(after, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _translated(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return a saved state in our words, where it is another implementation's."""
        if not is_foreign(given):
            return given
        groups = [
            saved_settings(saved, own) for saved, own in zip(given["param_groups"], self.param_groups, strict=True)
        ]
        check_saved_groups(groups, self.param_groups)
        for group in groups:
            check_keys(group, self.defaults)
        return {"param_groups": groups, "state": {number: saved_state(v) for number, v in given["state"].items()}}

    def _state_names(self, algorithm: str) -> set[str]:
        """Return the names of a parameter's state, on all ranks together."""
        return {"momentum"} if algorithm == "muon" else {"step", "exp_avg", "exp_avg_sq"}

    @torch._disable_dynamo  # type: ignore[attr-defined]  # as of torch's methods: traced, some of a step's changes got lost
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; return what `closure`, called first, returns.

        A sparse gradient, or one that differs between the ranks of `process_group`, is a `ValueError`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._follow()
        if self._averages and self._gradients is None:
            self.average_gradients()
        gradients = self._own_gradients() if self._gradients is None else self._gradients
        work = [
            (settings, bucket)
            for group, buckets in zip(self.param_groups, self._followed.groups, strict=True)
            for settings in [step_settings(group)]
            for bucket in buckets.buckets
        ]
        for settings, bucket in work:
            bucket.prepare(settings, gradients, self._clip)
        del gradients
        if self._graph is None or not work:
            _step_all(work)
        else:
            # A graph is captured on a stream of the current device.
            with torch.cuda.device_of(work[0][1].parameters[0]):
                self._graph.run(
                    lambda: _step_all(work),
                    [bucket.static_arguments(group) for group, bucket in work if isinstance(bucket, GraphCapturable)],
                )
        self._gradients, self._clip = None, None
        for _, bucket in work:
            bucket.drop_gradients()
        self._after_step()
        return loss

    def _own_gradients(self) -> Gradients:
        """Return the gradients in `grad`, which are those of every rank of `process_group`."""
        parameters = [parameter for bucket in self._followed.buckets for parameter in bucket.parameters]
        gradients = gradients_in_grad(parameters)
        if self._agreement is not None:
            self._agreement.check(parameters, gradients)
        return gradients

    def _after_step(self) -> None:
        """Do what a subclass adds to a step: by a `step` of its own, torch would run all hooks twice."""

    @torch.no_grad()
    def average_gradients(self, max_norm: float | None = None) -> Tensor:
        """Average every gradient over `process_group` for the next step; return the norm of all of them (0-D).

        A gradient that only some ranks have counts as zeros on the others. A matrix's mean is computed on its owner
        alone, which halves what is sent. Where the norm is above `max_norm` the next step scales the gradients down to
        it, as `clip_grad_norm_` would. `grad` itself is not changed.
        """
        self._follow()
        self._gradients, norm = average_gradients(list(self._followed.buckets), self._context.replicas)
        self._clip = None if max_norm is None else (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    @property
    def scales_in_kernels(self) -> bool:
        """Whether a factor on all gradients costs no pass over them: every parameter has a fused kernel."""
        self._follow_groups()
        return all(bucket.scales_in_kernels for bucket in self._followed.buckets)

    def scale_gradients(self, factor: Tensor) -> None:
        """Scale the gradients of the next step by `factor` (0-D); `grad` itself is not changed."""
        self._clip = factor

    @property
    def owners(self) -> dict[Tensor, int]:
        """The owner of each matrix on which `process_group` shares the work: the rank that alone needs its gradient."""
        self._follow_groups()
        return owners_of(self._followed.buckets)

    def expect_gradients_at_owners(self) -> None:
        """Take the next step with the gradients that are in `grad` now as sums over `process_group` already: all
        parameters have one, a matrix of `owners` on its owner alone."""
        self._gradients = {parameter: parameter.grad for group in self.param_groups for parameter in group["params"]}


def _with_others(defaults: dict[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults with settings that were given under other implementations' names."""
    ours = in_our_words(others)
    for name, value in ours.items():
        if name in others or name not in defaults:
            raise TypeError(f"{name}={value!r}: no such setting; known are {', '.join(defaults)}")
        if defaults[name] != _DEFAULTS[name].default and name != "lr":
            raise ValueError(f"{name}={defaults[name]!r} is given under another name as well: give one")
    return {**defaults, **ours}


_DEFAULTS = inspect.signature(Muon.__init__).parameters


def _step_all(work: list[tuple[dict[str, Any], Bucket]]) -> None:
    pending = PendingTransfers()
    for group, bucket in work:
        bucket.step(group, pending)
    pending.finish()
