"""A run's first weights where they are others': `init_from`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.distributed.dtensor import copy_into
from muloco_runner.model.huggingface import read_weights
from muloco_runner.record import RecordError
from muloco_runner.training.checkpoints.run_weights import read_weights_of_run
from muloco_runner.warm_start import WeightsOfRun, check_excluded, check_fits, check_shape, find_weights, is_excluded


@torch.no_grad()
def start_from_weights(run: RunConfig, models: Sequence[nn.Module]) -> None:
    """Put the weights that `run.init_from` names into every model, but for excluded parameters.

    Weights that are not there, are others than those that name the run, or do not fit raise `ConfigError`.
    """
    if run.init_from is None:
        return
    found = find_weights(run.init_from)
    if run.init_hash not in (None, content := found.content_hash()):
        raise ConfigError(
            f"init_from={run.init_from} holds weights {content} now, this run starts from {run.init_hash}: put the "
            "first ones back, or start the run from the others as a new one"
        )
    check_fits(run, found)
    weight = _weights_of_run(found) if isinstance(found, WeightsOfRun) else read_weights(found.path)
    names = [name for name, _ in models[0].named_parameters()]
    check_excluded(run, names)
    for name in names:
        if is_excluded(run, name):
            continue
        try:
            value = weight(name)
        except KeyError:
            raise ConfigError(f"init_from={run.init_from} holds no {name}: exclude it with init_exclude") from None
        for model in models:
            parameter = model.get_parameter(name)
            check_shape(run, name, value.shape, parameter.shape)
            copy_into(parameter, value)


def _weights_of_run(found: WeightsOfRun) -> Callable[[str], Tensor]:
    try:
        config = RunConfig.from_dict(found.folder.read_config())
    except RecordError as error:
        raise ConfigError(f"init_from: {error}") from None
    return read_weights_of_run(found.folder, config, found.step, None).__getitem__
