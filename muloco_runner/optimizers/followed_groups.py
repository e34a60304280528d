"""The buckets of an optimizer's groups, which follow what is done to `param_groups` and `state` between two steps.

As of any torch optimizer, both belong to whoever uses it: parameters are replaced, added and taken out, groups and
settings changed, state assigned and cleared, models moved and cast. Buckets hold the state in memory of their own, so
that before each step what has changed is found, by identity, and taken over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from muloco_runner.config import ConfigError
from muloco_runner.distributed.dtensor import copy_into, local
from muloco_runner.optimizers.ancestors import check_no_foreign_words
from muloco_runner.optimizers.buckets.base import Bucket, GraphCapturable
from muloco_runner.optimizers.buckets.bucketing import BucketContext, GroupBuckets
from muloco_runner.optimizers.buckets.replicated import ReplicatedBucket
from muloco_runner.optimizers.update_rule import follow_cycled_momentum, is_cycled
from muloco_runner.optimizers.validate import (
    COUNTERS,
    SCHEDULED,
    TORCHS_KEYS,
    check_disjoint,
    check_keys,
    check_scheduled,
    check_state,
)

State = dict[str, Tensor]
"""Of one parameter, by name."""


class Followed(Protocol):
    """The optimizer, as far as its groups are concerned."""

    param_groups: list[dict[str, Any]]
    state: defaultdict[Tensor, Any]
    defaults: dict[str, Any]
    eps_is_norm_floor: bool
    """Whether `eps` of a Muon group is its `norm_floor`, as in `torch.optim.Muon`."""

    def check(self, group: dict[str, Any]) -> None:
        """Refuse a group whose settings or parameters cannot be meant."""

    def more_state(self, parameter: Tensor) -> State:
        """Return the state that the optimizer keeps beside the buckets', as at the start."""

    def reset_state(self, parameter: Tensor, name: str, value: Tensor) -> None:
        """Set one tensor of a parameter's state to what it is at the start."""


class FollowedGroups:
    """The buckets of every group, in the groups' order. With replicas all ranks must change groups alike."""

    def __init__(self, context: BucketContext, capturable: bool = False) -> None:
        """`capturable`: whether a CUDA graph is to replay steps, so that other buckets are a `ConfigError`."""
        self._context, self._capturable = context, capturable
        self.groups: list[GroupBuckets] = []
        self._known: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        """By its id: each group, and its settings when they were last followed."""
        self._departed = WeakTensorKeyDictionary()
        """State of parameters that have left the groups, as long as they exist."""

    @property
    def buckets(self) -> Iterator[Bucket]:
        """All of them."""
        return chain.from_iterable(group.buckets for group in self.groups)

    def follow_groups(self, optimizer: Followed) -> bool:
        """Build buckets for every group that is not as it was when it got its buckets; return whether there was one.

        A group that cannot be meant is a `ValueError`, and changes nothing.
        """
        given = optimizer.param_groups
        for group in given:
            if id(group) in self._known:
                _check_changed(group, self._known[id(group)][1], optimizer)
            else:
                _complete(group, optimizer)
                # Of a cycled group that is new, `betas[0]` is what was set last.
                known = {**group, "betas": None} if is_cycled(group) else dict(group)
                self._known[id(group)] = (group, known)
        if len(given) == len(self.groups) and all(map(GroupBuckets.are_of, self.groups, given)):
            return False
        kept = [next((buckets for buckets in self.groups if buckets.are_of(group)), None) for group in given]
        for group, buckets in zip(given, kept, strict=True):
            if buckets is None:
                _complete(group, optimizer)
        check_disjoint(given)
        left = self._state_of([buckets for buckets in self.groups if buckets not in kept], optimizer)
        self.groups = [
            self._build(group, left, optimizer) if buckets is None else buckets
            for group, buckets in zip(given, kept, strict=True)
        ]
        held = {p: dict(values) for group in self.groups for p, values in group.state.items() if values}
        optimizer.state = defaultdict(dict, held)
        stay = {parameter for group in self.groups for parameter in group.parameters}
        for parameter in stay:
            self._departed.pop(parameter, None)
        for parameter in left.keys() - stay:
            self._departed[parameter] = {name: value.clone() for name, value in left[parameter].items()}
        return True

    def follow_settings(self, optimizer: Followed) -> None:
        """Take over what schedulers and others have set in the groups; they must have been followed."""
        for group in optimizer.param_groups:
            if is_cycled(group):
                follow_cycled_momentum(group, self._known[id(group)][1])
        self._known = {id(group): (group, dict(group)) for group in optimizer.param_groups}

    def follow_state(self, optimizer: Followed) -> None:
        """Take over what has been assigned to, or cleared from, the optimizer's state."""
        for group in self.groups:
            _follow_state(group.state, optimizer)

    def full_state(self, optimizer: Followed) -> defaultdict[Tensor, Any]:
        """Return the state of all parameters; with replicas every rank must call it."""
        state = optimizer.state.copy()
        for group in self.groups:
            state.update(_gathered(group, optimizer.state))
        return state

    def _state_of(self, groups: list[GroupBuckets], optimizer: Followed) -> dict[Tensor, State]:
        """Return what state there is of the parameters of these groups; with replicas on every rank."""
        found: dict[Tensor, State] = {}
        for group in groups:
            kept = {p: held for p, held in group.state.items() if optimizer.state.get(p) or not held}
            _follow_state(kept, optimizer)
            for parameter in group.state.keys() - kept.keys():  # cleared: also for ranks that ask for it
                for value in group.state[parameter].values():
                    local(value).zero_()
            found.update(kept)
            found.update(_gathered(group, group.state))
        return found

    def _build(self, group: dict[str, Any], left: Mapping[Tensor, State], optimizer: Followed) -> GroupBuckets:
        """Return a group's buckets. Their state is what there is of it, else as at the start."""
        buckets = GroupBuckets(group, self._context)
        if self._capturable and not all(isinstance(bucket, GraphCapturable) for bucket in buckets.buckets):
            raise ConfigError("cuda_graph=True needs backend=triton on a GPU, and no process_group")
        for parameter, held in buckets.state.items():
            held.update(optimizer.more_state(parameter))
            known = left.get(parameter) or self._departed.get(parameter) or optimizer.state.get(parameter, {})
            for name, value in held.items():
                if name in known:
                    copy_state(name, value, known[name], parameter)
        return buckets


@torch.no_grad()
def copy_state(name: str, own: Tensor, given: Any, parameter: Tensor) -> None:
    """Copy what was given for a parameter's state into its own memory."""
    check_state(name, given, parameter, f"the {name} in the state of a parameter")
    copy_into(own, given if isinstance(given, Tensor) else torch.as_tensor(given))


def _check_changed(group: dict[str, Any], known: Mapping[str, Any], optimizer: Followed) -> None:
    """Check a group whose settings are not as `known`; most steps change one number, or none."""
    changed = [
        name
        for name, value in group.items()
        if name not in COUNTERS and (value is not known.get(name, known) or isinstance(value, Tensor))
    ]
    if group.keys() == known.keys() and all(name in SCHEDULED for name in changed):
        for name in changed:
            check_scheduled(name, group[name])
    else:
        _complete(group, optimizer)
    if "eps" in changed and optimizer.eps_is_norm_floor and group["algorithm"] == "muon":
        group["norm_floor"] = group["eps"]


def _complete(group: dict[str, Any], optimizer: Followed) -> None:
    """Check a group, which may have been put into `param_groups` as it is, and give it what it lacks."""
    check_no_foreign_words(group)
    check_keys(group, optimizer.defaults)
    given = group["params"]
    if not isinstance(given, list):
        group["params"] = [given] if isinstance(given, Tensor) else list(given)
    for name, default in optimizer.defaults.items():
        # torch adds one of its own to the defaults when it loads a state, not to the groups.
        if name not in TORCHS_KEYS:
            group.setdefault(name, default)
    optimizer.check(group)


def _follow_state(states: Mapping[Tensor, State], optimizer: Followed) -> None:
    for parameter, held in states.items():
        given = optimizer.state.get(parameter, {})
        if all(given.get(name) is value for name, value in held.items()):
            continue
        for name, value in held.items():
            if name not in given:
                optimizer.reset_state(parameter, name, value)
            elif given[name] is not value:
                copy_state(name, value, given[name], parameter)
        optimizer.state[parameter] = dict(held)


def _gathered(group: GroupBuckets, own: Mapping[Tensor, State]) -> dict[Tensor, State]:
    """Return the state of the matrices of a group on which replicas share the work; every rank must call it."""
    gathered = {}
    for bucket in group.buckets:
        if isinstance(bucket, ReplicatedBucket):
            for parameter, momentum in zip(bucket.parameters, bucket.gather_momenta(), strict=True):
                gathered[parameter] = {**own.get(parameter, {}), "momentum": momentum}
    return gathered
