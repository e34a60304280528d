"""A config that leaves a fact out, or describes what is not there, is refused before there is a run."""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from muloco_runner.config import (
    COMPRESSIONS,
    INNER_OPTIMIZERS,
    METHODS,
    OUTER_OPTIMIZERS,
    AdamWConfig,
    ConfigError,
    DiLoCoConfig,
    FromOutside,
    MuonConfig,
    NoCompressionConfig,
    OuterMomentumConfig,
    OuterMuonConfig,
    OuterOptimizerConfig,
    OuterSgdConfig,
    QuantisationConfig,
    RunConfig,
    ScheduleConfig,
    TopKConfig,
)
from muloco_runner.config.variants import Implemented, complete, load, table
from muloco_runner.diloco.compression.codecs import Codec, Exact


@dataclass
class OuterLionConfig(OuterMomentumConfig):
    """States all but the bytes of its state and what builds it."""

    name: str = "lion"
    label = "Lion"
    orthogonalizes = False
    averages = False


@dataclass
class OuterHeavyConfig(OuterSgdConfig):
    """Would be built, estimated and named as SGD."""

    name: str = "heavy"


def test_a_config_that_leaves_facts_out_is_refused_by_their_names() -> None:
    with pytest.raises(TypeError, match="OuterLionConfig does not state implementation, state_bytes"):
        table(lion=OuterLionConfig)


def test_a_config_that_inherits_another_ones_facts_is_refused() -> None:
    with pytest.raises(TypeError, match="OuterHeavyConfig inherits from OuterSgdConfig"):
        table(sgd=OuterSgdConfig, heavy=OuterHeavyConfig)


@pytest.mark.parametrize("implementation", ["muloco_runner.diloco.outer_optimizer:OuterLion", "nowhere.at_all:Lion"])
def test_a_config_without_an_implementation_is_refused(implementation: str) -> None:
    whole = type("Whole", (OuterLionConfig,), {"state_bytes": 4, "step_bytes": 0, "implementation": implementation})
    with pytest.raises(TypeError, match="no such class or function"):
        table(lion=whole)


def test_a_schedule_without_its_decay_is_refused() -> None:
    with pytest.raises(TypeError, match="does not state decay"):
        table(constant=type("ConstantConfig", (ScheduleConfig,), {}))


def test_a_method_without_its_memory_is_refused() -> None:
    with pytest.raises(TypeError, match="nothing is known here of DiLoCoConfig"):
        complete(METHODS, {METHODS["data_parallel"]: "none"})


def test_a_codec_without_a_number_of_its_own_is_refused() -> None:
    with pytest.raises(TypeError, match="scheme"):
        type("Sign", (Exact,), {})
    with pytest.raises(TypeError, match="scheme 1 is Statistical's"):
        type("Sign", (Codec,), {}, scheme=1)  # type: ignore[call-overload]


def test_a_codec_number_that_nobody_has_is_refused() -> None:
    for scheme, bits, by_row in ((99, 4, 0), (1, 3, 0), (0, 4, 0), (1, 4, 2)):
        with pytest.raises(ValueError, match=f"scheme {scheme}, {bits} bits, rows apart {by_row}"):
            Codec.of(scheme, bits, by_row)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"inner_optimizer": AdamWConfig(name="muon")}, "AdamWConfig is adamw"),
        ({"method": DiLoCoConfig(name="data_parallel")}, "DiLoCoConfig is diloco"),
    ],
)
def test_a_config_under_another_ones_name_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunConfig(**fields)


def test_a_methods_parts_are_in_its_table_under_their_names() -> None:
    with pytest.raises(ConfigError, match="OuterHeavyConfig is in no table"):
        DiLoCoConfig(outer_optimizer=OuterHeavyConfig())
    with pytest.raises(ConfigError, match="choose with method/outer_optimizer=sgd or muon"):
        DiLoCoConfig(outer_optimizer=OuterMuonConfig(name="sgd"))
    with pytest.raises(ConfigError, match="NoCompressionConfig is none"):
        DiLoCoConfig(compression=NoCompressionConfig(name="linear"))


def test_facts_are_what_was_published() -> None:
    assert (OuterSgdConfig().state_bytes, OUTER_OPTIMIZERS["adam"]().state_bytes) == (4, 8)
    assert (AdamWConfig().matrix_state_bytes, MuonConfig().matrix_state_bytes) == (8, 4)
    assert [c.bits_per_value for c in (NoCompressionConfig(), QuantisationConfig(bits=2))] == [32, 2]
    # A hundredth of the values, each with an index of 32 bits: as float32, and as 4 bits.
    assert TopKConfig().bits_per_value == pytest.approx(0.64)
    assert TopKConfig(values="linear", bits=4).bits_per_value == pytest.approx(0.36)


@pytest.mark.parametrize("variants", [METHODS, INNER_OPTIMIZERS, OUTER_OPTIMIZERS, COMPRESSIONS])
def test_what_is_named_can_be_loaded(variants: dict[str, type[Implemented]]) -> None:
    for name, cls in variants.items():
        needed: dict[str, Any] = {"_target_": "torch.optim.SGD"} if issubclass(cls, FromOutside) else {}
        if cls is COMPRESSIONS["target"]:
            needed["bits_per_value"] = 1.0
        assert callable(load(cls(name=name, **needed)))  # type: ignore[call-arg]


def test_an_implementation_is_looked_for_without_torch() -> None:
    code = "import sys, muloco_runner.config, muloco_runner.memory; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(found.strip().lower()) is False
    assert OuterOptimizerConfig.__abstractmethods__
