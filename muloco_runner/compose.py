"""Names on a command line to a checked `RunConfig`: the only module that knows Hydra's ConfigStore.

Needs hydra-core and omegaconf, not torch: the trainer's entry, the sweeps and a login node share it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from muloco_runner import config as vocabulary
from muloco_runner.config import (
    AnyModelConfig,
    ConfigError,
    DataConfig,
    ExecutionConfig,
    InnerOptimizerConfig,
    MethodConfig,
    RunConfig,
    ScheduleConfig,
)
from muloco_runner.config.keys import no_such_setting
from muloco_runner.config.names import OLD_CHOICES, OLD_VALUES, warn_renamed
from muloco_runner.config.run import VARIANTS
from muloco_runner.data.identity import named_by_content
from muloco_runner.paths import ENTRY_POINTS, config_dir, config_groups, config_path, packaged_files
from muloco_runner.warm_start import named_by_weights

AROUND_RUNS = ("root", "cluster", "execution")
"""What the command line may say of a sweep beside its runs."""


_FOREIGN_MODEL = "model=hf:"
_HYDRAS_ADVICE = re.compile(r"Could not override '([^']+)'\.\s+To append to your config use \+")


@dataclass
class AppConfig(RunConfig):
    """The whole tree that the command line composes: a run, and around it what must not change its result."""

    # Left open here: a default of one variant would refuse to be replaced by another.
    model: AnyModelConfig = MISSING
    data: DataConfig = MISSING
    method: MethodConfig = MISSING
    inner_optimizer: InnerOptimizerConfig = MISSING
    schedule: ScheduleConfig = MISSING
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    root: str = "results"
    """Folder that holds runs/<run_id>."""
    cluster: Any = None
    """Read by the sweeps."""
    sweep: Any = None
    """Read by the sweeps."""

    @cached_property
    def run(self) -> RunConfig:
        """The run, named by the content of its data where there is any."""
        run = RunConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(RunConfig)})
        return named_by_content(named_by_weights([run]), self.root)[0]


class OwnFolderSource(ConfigSource):
    """A user's own config folder: the package's groups in it, and nothing else, such as another program's config.yaml.

    Hydra would take any folder there for a group, and refuse `seed=1` where there is a folder `seed`.
    """

    @staticmethod
    def scheme() -> str:
        return "muloco"

    def load_config(self, config_path: str) -> ConfigResult:
        file = self._file(config_path)
        return self._read(file, config_path.rpartition("/")[0])

    def _read(self, file: Path, group: str) -> ConfigResult:
        try:
            header = ConfigSource._get_header_dict(file.read_text(encoding="utf-8"))
            config = OmegaConf.load(file)
            if group in _OWN_SETTINGS and isinstance(config, DictConfig):
                config = _with_arguments(config, _OWN_SETTINGS[group])
        except (OSError, ValueError, YAMLError) as error:
            raise ConfigLoadError(f"{file}: {error}") from None
        return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", config, header)

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        return config_path in config_groups() and (Path(self.path) / config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        return config_path.rpartition("/")[0] in config_groups() and self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        names: list[str] = []
        for path in sorted((Path(self.path) / config_path).iterdir()):
            inside = f"{config_path}/{path.name}" if config_path else path.name
            if self.is_group(inside) if path.is_dir() else self.is_config(inside):
                self._list_add_result(names, inside, path.name, results_filter)
        return sorted(set(names))

    def _file(self, config_path: str) -> Path:
        return Path(self.path) / self._normalize_file_name(config_path)


class PackagesSource(OwnFolderSource):
    """Files that other installed packages offer by entry points."""

    @staticmethod
    def scheme() -> str:
        return "muloco-packages"

    def load_config(self, config_path: str) -> ConfigResult:
        group, name = self._split(config_path)
        files = packaged_files(group)[name]
        if len(files) > 1:
            raise ConfigLoadError(
                f"{group}={name}: several packages offer it, {' and '.join(map(str, files))}: uninstall one, or copy "
                "the file that is meant into your own conf/"
            )
        if not files[0].is_file():
            raise ConfigLoadError(
                f"{group}={name}: an installed package offers it by an entry point of {ENTRY_POINTS[group]}, and its "
                f"file {files[0]} is missing: install the package anew, or have a file {group}/{name}.yaml in your own "
                "conf/"
            )
        return self._read(files[0], group)

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path in ENTRY_POINTS

    def is_config(self, config_path: str) -> bool:
        group, name = self._split(config_path)
        # Schemas are asked for at every start, and looking at all installed packages takes milliseconds.
        return not name.startswith("base_") and name in packaged_files(group)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        names: list[str] = []
        for name in packaged_files(config_path):
            self._list_add_result(names, f"{config_path}/{name}", f"{name}.yaml", results_filter)
        return names

    def _split(self, config_path: str) -> tuple[str, str]:
        group, _, name = config_path.rpartition("/")
        return group, name.removesuffix(".yaml")


_OWN_SETTINGS = {
    # Betas and eps in a file are the target's, in the dataclass those of AdamW on the rest.
    "inner_optimizer": {f.name for f in dataclasses.fields(vocabulary.TargetConfig)} - {"betas", "eps"},
    "model": {f.name for f in dataclasses.fields(vocabulary.TargetModelConfig)},
    "data": {f.name for f in dataclasses.fields(vocabulary.TargetDataConfig)},
    "schedule": {f.name for f in dataclasses.fields(vocabulary.TargetScheduleConfig)},
    "method/compression": {f.name for f in dataclasses.fields(vocabulary.TargetCompressionConfig)},
    "method/outer_optimizer": {f.name for f in dataclasses.fields(vocabulary.TargetOuterConfig)},
}
"""Groups in which a file may name a class by `_target_` -> the settings that are no arguments of the class."""


def _with_arguments(config: DictConfig, known: set[str]) -> DictConfig:
    """The file of a target in the form of its dataclass: keys that are not `known` settings are its arguments."""
    if "_target_" not in config:
        return config
    values = {str(key): value for key, value in OmegaConf.to_container(config).items()}  # type: ignore[union-attr]
    defaults = values.pop("defaults", ["base_target"])
    own = {key: value for key, value in values.items() if key not in known}
    kept = {key: value for key, value in values.items() if key in known}
    arguments = values.get("arguments") or {}
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments: {arguments!r}: must be keys with their values")
    if twice := sorted(set(own) & {str(key) for key in arguments}):
        raise ValueError(f"{', '.join(twice)}: is given twice, in the file and under arguments: give it once")
    return OmegaConf.create({"defaults": defaults, **kept, "arguments": {**own, **arguments}})


class OwnFolders(SearchPathPlugin):
    """Puts the user's own config folders before the package's, where Hydra's --config-dir would put one after it, and
    other packages' files last."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_path().folders:
            search_path.prepend("own", f"{OwnFolderSource.scheme()}://{folder}", anchor="main")
        search_path.append("packages", f"{PackagesSource.scheme()}://installed")


@cache
def register() -> None:
    """Registers every dataclass of the vocabulary as the schema that the YAML files extend."""
    Plugins.instance().register(OwnFolderSource)
    Plugins.instance().register(PackagesSource)
    Plugins.instance().register(OwnFolders)
    store = ConfigStore.instance()
    store.store(name="base_app", node=AppConfig)
    store.store(group="model", name="base_model", node=vocabulary.ModelConfig)
    store.store(group="model", name="base_target", node=vocabulary.TargetModelConfig)
    store.store(group="data", name="base_data", node=vocabulary.DataConfig)
    store.store(group="data", name="base_target", node=vocabulary.TargetDataConfig)
    store.store(group="execution", name="base_execution", node=ExecutionConfig)
    for group, variants in (
        ("method", vocabulary.METHODS),
        ("method/outer_optimizer", vocabulary.OUTER_OPTIMIZERS),
        ("method/compression", vocabulary.COMPRESSIONS),
        ("inner_optimizer", vocabulary.INNER_OPTIMIZERS),
        ("schedule", vocabulary.SCHEDULES),
    ):
        for name, node in variants.items():
            store.store(group=group, name=f"base_{name}", node=_with_open_choices(node))
    for group, files in OLD_CHOICES.items():
        for name, content in files.items():
            store.store(group=group, name=name, node=dict(content))


def _with_open_choices(schema: type) -> DictConfig:
    """The schema without defaults where one of several may stand: a default would refuse to be replaced by another."""
    node: DictConfig = OmegaConf.structured(schema)
    hints = get_type_hints(schema)
    for f in dataclasses.fields(schema):
        if hints[f.name] in VARIANTS:
            node[f.name] = MISSING
    return node


def compose_tree(overrides: Sequence[str]) -> DictConfig:
    """The composed, not yet checked tree of `overrides` (Hydra's override grammar). Mistakes raise `ConfigError`."""
    register()
    GlobalHydra.instance().clear()
    words = with_foreign_models(overrides)
    try:
        with initialize_config_dir(str(config_dir()), version_base=None, job_name="muloco"):
            return compose("config", overrides=words)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(unreadable(words) or one_line(error)) from error


def with_foreign_models(words: Sequence[str]) -> list[str]:
    """A command line in which `model=hf:DIR`, a Hugging Face folder, is what it stands for: the folder's model and its
    weights. A folder of another kind of model, and a second `model=`, raise `ConfigError`."""
    check_one_model(words)
    found: list[str] = []
    for word in words:
        if not word.startswith(_FOREIGN_MODEL):
            found.append(as_meant(word))
            continue
        from muloco_runner.model.foreign_config import read_model_config

        folder = word.removeprefix(_FOREIGN_MODEL)
        values = dataclasses.asdict(read_model_config(Path(folder)))
        found += ["model=ladder", *(f"model.{key}={value}" for key, value in values.items())]
        if not any(other.startswith("init_from=") for other in words):
            found.append(f"init_from={QuotedString(folder, Quote.single).with_quotes()}")
    return found


def check_one_model(words: Sequence[str]) -> None:
    """A second `model=` beside `model=hf:DIR` raises `ConfigError`: neither would be as it was asked for."""
    models = [word for word in words if word.lstrip("+").startswith("model=")]
    if len(models) > 1 and any(word.startswith(_FOREIGN_MODEL) for word in models):
        raise ConfigError(f"{' '.join(models)}: one model at a time: leave all but one of these words out")


def as_meant(word: str) -> str:
    """A word of the command line in Hydra's grammar: a path in quotes, with whatever signs a shell hands it on.

    Paths are what `root=` says, and of other keys what is there. Any other word is as it was; a second root raises
    `ConfigError`.
    """
    key, _, value = word.partition("=")
    if key == "root" and not value.strip("'\""):
        raise ConfigError(f"{word}: names no folder: give one, such as root=results")
    if _IN_QUOTES.fullmatch(value) or "${" in value:
        return word
    if key == "root":
        if "," in value and not os.path.exists(value):
            raise ConfigError(f"{word}: one root at a time; a folder with a comma in its name is {_quoted(word)}")
        return f"root={_in_quotes(os.path.expanduser(value))}"
    path = value.removeprefix(_PATHS.get(key, ""))
    is_path = key in _PATHS and value.startswith(_PATHS[key]) and bool(path) and os.path.exists(path)
    return f"{key}={_in_quotes(value)}" if is_path else word


_IN_QUOTES = re.compile(r"'.*'|\".*\"", re.DOTALL)
_PATHS = {"init_from": "", "data.path": "", "+sweep": "", "sweep": "", "model": "hf:"}
"""Keys whose value may be a path -> what stands before it."""


def _in_quotes(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def _quoted(word: str) -> str:
    """The word with its value in Hydra's quotes, as it is typed in a shell."""
    key, _, value = word.partition("=")
    return shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")


def unreadable(words: Sequence[str]) -> str:
    """The first word that Hydra's grammar cannot read, and how it is written instead; empty where it reads all."""
    for word in words:
        if "=" in word and not word.startswith("-"):
            try:
                OverridesParser.create().parse_override(word)
            except HydraException:
                return f"{word}: cannot be read: text with quotes, brackets or other signs is written {_quoted(word)}"
    return ""


def to_app_config(tree: DictConfig) -> AppConfig:
    """The tree as checked dataclasses. Mistakes raise `ConfigError`."""
    try:
        for path, names in OLD_VALUES.items():
            if (value := OmegaConf.select(tree, path)) in names:
                warn_renamed(f"{path}={value}", f"{path}={names[value]}")
                OmegaConf.update(tree, path, names[value])
        _refuse_unknown(tree)
        _add_facts(tree, ("model", "data"))
        app = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    assert isinstance(app, AppConfig)
    return app


def compose_model(name: str) -> AnyModelConfig:
    """The model of that name alone, whatever runs it could be trained in."""
    tree = compose_tree([f"model={name}"])
    _add_facts(tree, ("model",))
    model = OmegaConf.to_object(tree.model)
    assert isinstance(model, AnyModelConfig)
    return model


def _add_facts(tree: DictConfig, parts: Sequence[str]) -> None:
    """Gives a model and data from outside, and only such ones, what is found by trying them."""
    for part in parts:
        if "_target_" in tree[part]:
            from muloco_runner.targets import facts_of  # costs milliseconds that only targets need

            values = OmegaConf.to_container(tree[part], resolve=True)
            (facts,) = facts_of(part, [values])  # type: ignore[list-item]
            OmegaConf.update(tree, f"{part}.facts", facts)


def _refuse_unknown(tree: DictConfig, above: str = "") -> None:
    """A key that was added with + and is no setting would have no effect: it raises `ConfigError`."""
    schema = OmegaConf.get_type(tree)
    if not dataclasses.is_dataclass(schema):
        return  # the cluster and the sweep, which the sweeps read
    known = {f.name for f in dataclasses.fields(schema)}
    for key in map(str, tree):
        if key not in known:
            raise ConfigError(no_such_setting(f"{above}{key}", AppConfig, _groups()))
        if not OmegaConf.is_missing(tree, key) and isinstance(tree[key], DictConfig):
            _refuse_unknown(tree[key], f"{above}{key}.")


def _groups() -> list[str]:
    """Choices that are no settings themselves, such as algorithm."""
    return [group for group in config_groups() if "/" not in group]


def compose_app_config(overrides: Sequence[str]) -> AppConfig:
    """`muloco-train`'s command line as checked dataclasses."""
    return to_app_config(compose_tree(overrides))


def one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages, the cause included, without their line breaks and search paths."""
    said = _joined(str(error))
    if isinstance(error, ConfigError):
        return said
    if unknown := _HYDRAS_ADVICE.match(said):
        # Following it would add a key that nothing reads.
        return no_such_setting(unknown[1], AppConfig, _groups())
    cause = "" if error.__cause__ is None else _joined(str(error.__cause__))
    # A message that was made of its cause's says it once.
    return said if cause in said else f"{said} {cause}"


def _joined(text: str) -> str:
    lines = []
    for line in (part.strip() for part in text.splitlines()):
        if line.startswith(("Config search path", "full_key", "object_type")):
            break
        if line:
            lines.append(line)
    return " ".join(lines)
