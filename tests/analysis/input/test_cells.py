import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.input.cells import MISSING, NOT_A_NUMBER, NOT_FINITE, OK, Kind, decide_decimal, parse_cell
from analysis.input.expression import Expression
from analysis.input.mapping import Origin, Reader
from analysis.input.table_files import Table
from muloco_runner.config import ConfigError


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("124M", "count", 124e6),
        ("124.5M", "count", 124_500_000),
        ("1.5B", "count", 1.5e9),
        ("0.57 B params", "count", 570_000_000),
        ("20b tokens", "count", 20e9),
        ("2e10", "count", 2e10),
        ("1.5×10^9", "count", 1.5e9),
        ("512Ki", "count", 524288),
        ("1 250 000", "count", 1_250_000),
        ("1'250'000", "count", 1_250_000),
        ("1_250_000", "count", 1_250_000),
        ("1,250,000", "count", 1_250_000),
        ("12 GFLOPs", "flops", 12e9),
        ("3.2 PF-days", "flops", 3.2 * 8.64e19),
        ("1.5h", "seconds", 5400),
        ("20 min", "seconds", 1200),
        ("3m", "seconds", 180),
        ("12GB", "bytes", 12e9),
        ("-0.5", "number", -0.5),
        ("−3", "number", -3),
        (".5", "number", 0.5),
        ("2.31 nats", "loss", 2.31),
    ],
)
def test_numbers_with_units(text: str, kind: Kind, value: float) -> None:
    assert parse_cell(text, kind, "point") == (value, OK)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("", MISSING), ("N/A", MISSING), ("–", MISSING), ("nan", MISSING), ("-inf", NOT_FINITE),
        ("Infinity", NOT_FINITE), ("1.2.3", NOT_A_NUMBER), ("12 34", NOT_A_NUMBER), ("1,2,3", NOT_A_NUMBER),
        ("124Q", NOT_A_NUMBER), ("about 3", NOT_A_NUMBER), ("#3", NOT_A_NUMBER), ("2024-01-01", NOT_A_NUMBER),
    ],
)  # fmt: skip
def test_what_is_no_number_is_said_to_be_none(text: str, state: int) -> None:
    value, found = parse_cell(text, "count", "point")
    assert found == state
    assert math.isnan(value)


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["point", "comma"]))
def test_any_number_is_read_as_it_was_written(value: float, decimal: str) -> None:
    text = repr(value) if decimal == "point" else repr(value).replace(".", ",")
    assert parse_cell(text, "number", "point" if decimal == "point" else "comma") == (value, OK)


@pytest.mark.parametrize(
    ("texts", "decimal"),
    [
        (["3,12", "1,5"], "comma"),
        (["0,123"], "comma"),
        (["1.234.567"], "comma"),
        (["1.234,5"], "comma"),
        (["1,234,567"], "point"),
        (["1,234.5"], "point"),
        (["3.1", "1,234"], "point"),
        (["3,123", "0,5"], "comma"),
        (["17"], "point"),
    ],
)
def test_the_decimal_mark_follows_from_the_numbers(texts: list[str], decimal: str) -> None:
    assert decide_decimal(texts, None)[0] == decimal


@pytest.mark.parametrize("texts", [["1,234", "2,500"], ["3.12", "3,12"]])
def test_an_ambiguous_decimal_mark_is_refused_with_the_flag(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="--decimal comma"):
        decide_decimal(texts, None)
    assert decide_decimal(texts, "comma")[0] == "comma"


def test_arithmetic_on_columns_runs_no_code() -> None:
    columns = {"a b": np.array([2.0, 3.0]), "c": np.array([4.0, 0.0])}
    found = Expression("log(`a b` * c) / 2 + 1 - -c")
    assert found.columns == ("a b", "c")
    with np.errstate(divide="ignore"):
        expected = np.log(columns["a b"] * columns["c"]) / 2 + 1 + columns["c"]
    assert found.value(columns).tolist() == expected.tolist()
    for text in ("__import__('os')", "a.b", "a[0]", "a if b else c", "a ** 9 ** 9", "lambda: 1", "a; b", "", "'x'"):
        with pytest.raises(ValueError, match=r"understood|backquotes"):
            Expression(text)


def test_a_unit_in_the_cell_and_the_mapping_is_one_too_many() -> None:
    table = Table("t", pd.DataFrame({"n": ["124", "1.5k"]}))
    found = Reader(table, {"num_params": Origin(column="n", factor=1e6)}).numbers("num_params")
    assert found.values[0] == 124e6
    assert found.states[1] == NOT_A_NUMBER
