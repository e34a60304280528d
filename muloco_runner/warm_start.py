"""The weights that a run starts from (`init_from`): which they are, and their content, which names the run.

Standard library only, for login nodes; `muloco_runner.training.checkpoints.initial_weights` reads them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from muloco_runner.config import AnyModelConfig, ConfigError, ModelConfig, RunConfig
from muloco_runner.model.foreign_config import read_model_config
from muloco_runner.record import RecordError, RunFolder, checkpoint_step, why_without_weights

NOT_IN_SHAPES = ("model.rope_theta", "model.norm_eps", "model.head_width", "model.num_layers")
"""Settings by which weights of the same shapes compute something else; `init_exclude` may name them."""


@dataclasses.dataclass(frozen=True)
class WeightsOfRun:
    """A checkpoint of a run."""

    folder: RunFolder
    step: int

    def content_hash(self) -> str:
        path = self.folder.checkpoint_at(self.step)
        try:
            digests = json.loads((path / "manifest.json").read_text())["sha256"]
            content = [digests["shared.pt"], digests["worker-0.pt"]]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"init_from: {path}: the checkpoint is damaged: choose another one") from None
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def model(self) -> AnyModelConfig:
        """Of the model that they are of."""
        try:
            return RunConfig.from_dict(self.folder.read_config()).model
        except RecordError as error:
            raise ConfigError(f"init_from: {error}") from None


@dataclasses.dataclass(frozen=True)
class WeightsInFolder:
    """A Hugging Face folder."""

    path: Path

    def content_hash(self) -> str:
        files = sorted(file for file in self.path.rglob("*.safetensors") if file.is_file())
        if not files:
            raise ConfigError(f"init_from={self.path}: the folder holds no .safetensors file")
        stamp = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in [self.path / "config.json", *files])
        return _hash_of_files(stamp)

    def model(self) -> AnyModelConfig:
        """Of the model that they are of."""
        return read_model_config(self.path)


@cache
def _hash_of_files(stamp: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in stamp:
        with open(name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def find_weights(init_from: str) -> WeightsOfRun | WeightsInFolder:
    """The newest checkpoint of a run's folder, a checkpoint's own folder, or a Hugging Face folder. Anything else
    raises `ConfigError`."""
    path = Path(init_from)
    step = checkpoint_step(path)
    if step is not None:
        run = RunFolder(path.absolute().parent.parent)
        if step in run.checkpoint_steps():
            return WeightsOfRun(run, step)
    run = RunFolder(path)
    if run.config_file.is_file():
        steps = run.checkpoint_steps()
        if not steps:
            try:
                result = run.read_result()
            except RecordError as error:
                raise ConfigError(f"init_from: {error}") from None
            raise ConfigError(f"init_from={init_from} {why_without_weights(result)}")
        return WeightsOfRun(run, steps[-1])
    if (path / "config.json").is_file():
        return WeightsInFolder(path)
    raise ConfigError(
        f"init_from={init_from}: neither a run's folder nor a Hugging Face folder: give ROOT/runs/RUN_ID, one of its "
        "checkpoints, or what `muloco-model export` wrote"
    )


def named_by_weights(runs: Iterable[RunConfig]) -> list[RunConfig]:
    """The runs with `init_hash` filled in where they start from weights; weights that are absent, or that do not fit,
    raise `ConfigError`."""
    return [
        run if run.init_from is None or run.init_hash is not None else _named(run, find_weights(run.init_from))
        for run in runs
    ]


def _named(run: RunConfig, found: WeightsOfRun | WeightsInFolder) -> RunConfig:
    check_fits(run, found)
    return dataclasses.replace(run, init_hash=found.content_hash())


def check_fits(run: RunConfig, found: WeightsOfRun | WeightsInFolder) -> None:
    """Weights of other shapes than the run's model, or by which it would compute something else than the model that
    they are of, raise `ConfigError`, unless `init_exclude` names what differs. Models from outside are not compared.
    """
    here = run.model
    there = found.model() if isinstance(here, ModelConfig) else here
    if not (isinstance(here, ModelConfig) and isinstance(there, ModelConfig)):
        return
    own, theirs = shapes_by_name(here), shapes_by_name(there)
    check_excluded(run, own)
    for name, shape in own.items():
        if is_excluded(run, name):
            continue
        if name not in theirs:
            raise ConfigError(f"init_from={run.init_from} holds no {name}: exclude it with init_exclude")
        check_shape(run, name, theirs[name], shape)
    for setting in NOT_IN_SHAPES:
        key = setting.partition(".")[2]
        mine, other = getattr(here, key), getattr(there, key)
        # Layers that are not there are missing parameters, which were excluded.
        if mine == other or setting in run.init_exclude or (key == "num_layers" and mine > other):
            continue
        raise ConfigError(
            f"init_from={run.init_from}: its model has {setting}={other}, this run {mine}, by which the same weights "
            f"compute something else: say {setting}={other}, or add {setting} to init_exclude to go on with {mine}"
        )


def check_excluded(run: RunConfig, names: Iterable[str]) -> None:
    """Patterns of `init_exclude` that match none of the parameters' names raise `ConfigError`."""
    names = list(names)
    settings = NOT_IN_SHAPES if isinstance(run.model, ModelConfig) else ()
    for pattern in run.init_exclude:
        if pattern not in settings and not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"init_exclude: {pattern!r} matches no parameter; there are {names[0]}, ..., {names[-1]}")


def is_excluded(run: RunConfig, name: str) -> bool:
    """Whether this parameter starts at random all the same."""
    return any(fnmatchcase(name, pattern) for pattern in run.init_exclude)


def check_shape(run: RunConfig, name: str, there: Sequence[int], here: Sequence[int]) -> None:
    """A parameter of another shape raises `ConfigError`."""
    if tuple(there) != tuple(here):
        raise ConfigError(
            f"init_from={run.init_from}: {name} is {tuple(there)} there and {tuple(here)} here: choose the same model, "
            "or exclude it with init_exclude"
        )


def shapes_by_name(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the model's parameters, by the names that `muloco_runner.model.transformer` gives them."""
    width, ffn = model.width, model.ffn_width
    block: dict[str, tuple[int, ...]] = {
        **{f"attention.{name}.weight": (width, width) for name in ("wq", "wk", "wv", "wo")},
        **{f"attention.{name}.gain": (model.head_width,) for name in ("q_norm", "k_norm")},
        "feed_forward.w1.weight": (ffn, width),
        "feed_forward.w2.weight": (width, ffn),
        "feed_forward.w3.weight": (ffn, width),
        **{
            f"{part}_{norm}.gain": (width,)
            for part in ("attention", "feed_forward")
            for norm in ("pre_norm", "post_norm")
        },
    }
    blocks = {f"blocks.{n}.{name}": shape for n in range(model.num_layers) for name, shape in block.items()}
    vocabulary = (model.vocab_size, width)
    return {"embedding.weight": vocabulary, **blocks, "norm.gain": (width,), "head.weight": vocabulary}
