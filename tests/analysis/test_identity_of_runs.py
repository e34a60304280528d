"""Runs that differ in anything that may change a result are never seeds of one setting."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from planted import run_config, write_run

from analysis.input.run_rows import _row_of_config
from analysis.questions.compared_pairs import partners
from analysis.runs import _settings, load_study
from analysis.series import content_of, series_labels, tell_classes_apart
from analysis.style import Style, partner_of
from muloco_runner.config import (
    DataParallelConfig,
    DiLoCoConfig,
    ModelConfig,
    MuonConfig,
    RunConfig,
)
from muloco_runner.config.compression import COMPRESSIONS
from muloco_runner.config.data import DATA
from muloco_runner.config.inner_optimizer import INNER_OPTIMIZERS
from muloco_runner.config.model import MODELS, TargetModelConfig
from muloco_runner.config.outer_optimizer import OUTER_OPTIMIZERS
from muloco_runner.config.schedule import SCHEDULES

FACTS = {"num_params": 10**8, "num_layers": 4, "shapes": [], "content_hash": "0" * 16}
GIVEN: dict[str, dict[str, Any]] = {
    "TargetModelConfig": {"_target_": "lab.Net", "facts": FACTS},
    "TargetConfig": {"_target_": "lab.Lion"},
    "TargetOuterConfig": {"_target_": "lab.Outer"},
    "TargetCompressionConfig": {"_target_": "lab.Codec", "bits_per_value": 8.0},
    "TargetScheduleConfig": {"_target_": "lab.decay"},
    "TargetDataConfig": {"_target_": "lab.documents"},
}
BY_THE_CORPUS = {
    f"data.{name}"
    for name in ("source", "path", "validation_fraction", "content_hash", "mixture", "name", "_target_", "arguments",
                 "version")
}  # fmt: skip
"""What the hash of the data in each result says."""
WITHOUT_EFFECT = {
    "data.validation", "data.validation_hash",  # further sets, beside the one that is compared
    "data.label", "data.facts",
    "model.flops_per_token", "model.activation_bytes_per_token", "model.trial_arguments", "model.facts",
    "inner_optimizer.state_bytes_per_parameter", "method.outer_optimizer.state_bytes_per_parameter",
    "schedule.label",
}  # fmt: skip
"""What no loss that is compared depends on."""


def variant(cls: type, **values: Any) -> Any:
    return cls(**GIVEN.get(cls.__name__, {}), **values)


def every_config() -> Iterator[RunConfig]:
    def run(**parts: Any) -> RunConfig:
        return RunConfig(**{"inner_optimizer": MuonConfig(), "global_batch_tokens": 2048 * 512, **parts})

    yield from (run(model=variant(cls)) for cls in MODELS.values())
    yield from (run(data=variant(cls)) for cls in DATA.values())
    yield from (run(inner_optimizer=variant(cls)) for cls in INNER_OPTIMIZERS.values())
    yield from (run(schedule=variant(cls)) for cls in SCHEDULES.values())
    yield run(method=DataParallelConfig())
    for cls in OUTER_OPTIMIZERS.values():
        yield run(method=DiLoCoConfig(outer_optimizer=variant(cls)))
    for name, codec in COMPRESSIONS.items():
        yield run(method=DiLoCoConfig(compression=variant(codec, name=name)))


def fields_of(part: Any, path: str = "") -> Iterator[str]:
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{path}{f.name}.")
        else:
            yield f"{path}{f.name}"


def changed(config: RunConfig, path: str) -> RunConfig:
    """Another value in one field, whether it is allowed or not."""
    out = copy.deepcopy(config)
    *above, last = path.split(".")
    part: Any = out
    for name in above:
        part = getattr(part, name)
    match getattr(part, last):
        case bool() as value:
            setattr(part, last, not value)
        case int() | float() as value:
            setattr(part, last, value * 2 + 1)
        case str() as value:
            setattr(part, last, f"{value}x")
        case None:
            setattr(part, last, 8 if last in ("bits", "chunk") else "x")
        case list() as value:
            setattr(part, last, [*value, *(value[:1] or ["x"])])
        case dict() as value:
            setattr(part, last, {**value, "x": 1})
        case value:
            raise AssertionError(value)
    return out


def test_every_field_tells_runs_apart_or_has_no_effect() -> None:
    told: dict[str, set[bool]] = {}
    for config in every_config():
        before = _row_of_config(config)
        for path in fields_of(config):
            row = _row_of_config(changed(config, path))
            text = [str(_settings([one["setting"] for one in (before, row)])[i]) for i in (0, 1)]
            same = text[0] == text[1] and content_of(before) == content_of(row)
            rest = {name: str(value) for name, value in row.items() if name not in ("setting", "method")}
            same = same and rest == {name: str(before[name]) for name in rest}
            told.setdefault(path, set()).add(not same)
    silent = {path for path, found in told.items() if found == {False}}
    names = {path for path in told if path.rpartition(".")[2] == "name"}
    assert silent - names == BY_THE_CORPUS - {"data.name"} | WITHOUT_EFFECT
    assert all(len(found) == 1 for path, found in told.items() if path not in names)


def settings_of(root: Path) -> list[tuple[str, int]]:
    runs = load_study(root).runs
    return sorted((str(name), len(rows)) for (name, _), rows in runs.groupby(["series", "hyper_parameters"]))


def test_a_warm_start_is_a_series_of_its_own(tmp_path: Path) -> None:
    cold = run_config()
    warm = [dataclasses.replace(cold, init_from="/w", init_hash=digits * 16, seed=1) for digits in "ab"]
    for config in (cold, *warm):
        write_run(tmp_path, config, 3.0)
    name = "DDP-AdamW"
    assert settings_of(tmp_path) == [(name, 1), *((f"{name} init_from={digits * 16}", 1) for digits in "ab")]


def test_only_warm_starts_keep_their_name(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, dataclasses.replace(run_config(seed=seed), init_from="/w", init_hash="a" * 16), 3.0)
    assert settings_of(tmp_path) == [("DDP-AdamW", 2)]


def test_a_warm_start_is_named_beside_others_of_any_algorithm() -> None:
    warm = {"init_from": "/w", "init_hash": "a" * 16}
    method = DiLoCoConfig(num_workers=2)
    configs = [RunConfig(), RunConfig(**warm), RunConfig(method=method, **warm)]
    names = series_labels([_row_of_config(config) for config in configs])
    assert names == ["DDP-AdamW", *(f"{name} init_from={'a' * 16}" for name in ("DDP-AdamW", "DiLoCo K=2"))]
    assert partner_of(Style(), names[2], "DiLoCo", {names[2]: 2}, set(names)) == names[1]


@pytest.mark.parametrize(
    ("field", "value"), [("rope_theta", 100.0), ("norm_eps", 1e-5), ("ffn_ratio", 2.5), ("head_width", 32)]
)
def test_another_shape_is_another_setting(tmp_path: Path, field: str, value: float) -> None:
    config = run_config()
    write_run(tmp_path, config, 3.0)
    write_run(tmp_path, dataclasses.replace(config, seed=1), 3.0)
    other = dataclasses.replace(config.model, **{field: value})
    write_run(tmp_path, dataclasses.replace(config, model=other, seed=1), 3.0, num_params=config.num_params)
    assert settings_of(tmp_path) == [("DDP-AdamW", 1), ("DDP-AdamW", 2)]


def test_own_models_of_one_name_are_series_and_versions_settings() -> None:
    facts = {"facts": FACTS}
    models = [
        ModelConfig(),
        TargetModelConfig(_target_="one.Net", **facts),
        TargetModelConfig(_target_="two.Net", **facts),
    ]
    names = series_labels([_row_of_config(RunConfig(model=model)) for model in models])
    assert names[0] == "DDP-AdamW"
    assert names[1:] == [f"DDP-AdamW model=Net model._target_={package}.Net" for package in ("one", "two")]
    assert series_labels([_row_of_config(RunConfig(model=model)) for model in models[:2]])[1] == "DDP-AdamW model=Net"
    versions = [TargetModelConfig(_target_="one.Net", version=version, **facts) for version in ("1", "2")]
    settings = _settings([_row_of_config(RunConfig(model=model))["setting"] for model in versions])
    assert settings[0].replace("model.version=1", "model.version=2") == settings[1] != settings[0]


def test_a_series_alone_is_named_without_its_compression() -> None:
    codec = COMPRESSIONS["statistical"]()
    methods = [DiLoCoConfig(), DiLoCoConfig(num_workers=2, compression=codec)]
    assert series_labels([_row_of_config(RunConfig(method=method)) for method in methods]) == [
        "DiLoCo K=1",
        "DiLoCo K=2",
    ]


def test_the_report_calls_an_own_optimizer_by_its_label(tmp_path: Path) -> None:
    own = INNER_OPTIMIZERS["target"](_target_="lab.Lion", label="ours")  # type: ignore[call-arg]
    write_run(tmp_path, dataclasses.replace(run_config(), inner_optimizer=own), 3.0, algorithm="DDP-Lion")
    assert load_study(tmp_path).series == ["DDP-ours"]


def test_a_series_of_another_model_is_no_partner() -> None:
    """Whose algorithm has runs of that model alone."""
    own = {name: TargetModelConfig(_target_=f"{name}.Net", facts=FACTS) for name in ("one", "two")}
    rows = [
        _row_of_config(RunConfig(model=model, method=method))
        for model, method in ((own["one"], DataParallelConfig()), (own["two"], DiLoCoConfig()))
    ]
    assert series_labels(rows) == ["DDP-AdamW", "DiLoCo K=1"]
    tell_classes_apart(rows)
    assert series_labels(rows) == ["DDP-AdamW model=one.Net", "DiLoCo K=1 model=two.Net"]
    rows[0] = _row_of_config(RunConfig())
    names = series_labels(rows)
    assert names == ["DDP-AdamW", "DiLoCo K=1 model=two.Net"]
    assert partner_of(Style(), names[1], "DiLoCo", {names[1]: 1}, set(names)) not in names


def test_two_own_optimizers_of_one_name_are_two_series(tmp_path: Path) -> None:
    """As two sweeps of one root may leave them; each is the partner of its own."""
    methods = (DataParallelConfig(), DiLoCoConfig())
    for package in ("lab_a", "lab_b"):
        own = INNER_OPTIMIZERS["target"](_target_=f"{package}.Lion")  # type: ignore[call-arg]
        for method in methods:
            run = dataclasses.replace(run_config(), inner_optimizer=own, method=method)
            write_run(tmp_path, run, 3.0, algorithm=run.algorithm)
    study = load_study(tmp_path)
    assert study.series == [
        "DDP-lab_a.Lion",
        "DDP-lab_b.Lion",
        "DiLoCo-lab_a.Lion K=1",
        "DiLoCo-lab_b.Lion K=1",
    ]
    rows = study.runs[["series", "algorithm", "num_workers", "num_params"]]
    assert partners(rows, Style()) == {f"DiLoCo-{p}.Lion K=1": f"DDP-{p}.Lion" for p in ("lab_a", "lab_b")}
    outer = [OUTER_OPTIMIZERS["target"](_target_=f"{p}.Outer", lr=0.5) for p in ("lab_a", "lab_b")]  # type: ignore[call-arg]
    names = series_labels([_row_of_config(RunConfig(method=DiLoCoConfig(outer_optimizer=one))) for one in outer])
    assert names == [f"DiLoCo K=1 outer_optimizer._target_={p}.Outer" for p in ("lab_a", "lab_b")]
