"""How numbers look on a page."""

import re

import pytest

from analysis.page.numbers import FORMATS, estimate, show
from analysis.page.page_table import Column, Table


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("ratio", 1.4023, "1.40"),
        ("ratio", 0.9506, "0.951"),
        ("ratio", 123.4, "123"),
        ("ratio", 1234.5, "1234"),
        ("ratio", 82364961181286.0, "8.24e13"),
        ("ratio", 8.78e-22, "8.78e-22"),
        ("number", 0.0025, "0.0025"),
        ("number", 16.6667, "16.7"),
        ("number", 20000.0, "2e4"),
        ("count", 81_504, "81.5k"),
        ("count", 8.236e25, "8.24e25"),
        ("count", 8.78e-22, "8.78e-22"),
        ("flops", 1.43e14, "1.43e14"),
        ("hours", 1213.0, "1\u202f210"),
        ("hours", 1.2e6, "1.2e6"),
        ("integer", 2200, "2\u202f200"),
        ("integer", 123_456_789.0, "1.23e8"),
        ("standard_error", 0.00212, "0.0021"),
        ("standard_error", 0.000084, "0.000084"),
        ("loss", 2.93534, "2.9353"),
        ("bytes", 1.2149e9, "1.21 GB"),
        ("bytes", 512.0, "512 B"),
        ("bytes", 0.0, "0 B"),
    ],
)
def test_a_number_has_three_digits_and_powers_of_ten(kind: str, value: float, text: str) -> None:
    assert show(value, kind) == text


def test_no_number_is_long() -> None:
    for kind, form in FORMATS.items():
        for exponent in range(-25, 26):
            for mantissa in (1.0, 1.23456789, 9.9999):
                text = form(mantissa * 10.0**exponent)
                if kind not in ("seconds", "bytes", "percent", "spread", "share"):
                    assert len(text) <= 9, (kind, mantissa, exponent, text)
                    assert float(re.sub(r"[kMBT\u202f]", "", text)) > 0 or exponent < 0


def test_an_interval_that_says_nothing_is_not_printed() -> None:
    assert estimate(1.4, [1.3, 1.5], "ratio") == "1.40 [1.30, 1.50]"
    assert estimate(1.4, [8.78e-22, 8e13], "ratio").startswith("not identified")
    columns = [Column("x", "ratio"), Column("x 95% interval", "ratio", joint=" ")]
    table = Table("t", "T", columns, [[1.4, [8.78e-22, 8e13]], [1.4, [1.3, 1.5]], [1.4, None]])
    assert [row[0][:17] for row in table.cells()] == ["not identified: i", "1.40 [1.30, 1.50]", "1.40"]
    assert "e-22" not in table.to_markdown() + table.to_latex()
    assert table.to_csv().splitlines()[1] == "1.4,8.78e-22,80000000000000.0"


def test_an_error_stands_beside_its_value_or_apart_in_a_file() -> None:
    table = Table("t", "T", [Column("loss", "loss"), Column("se", "standard_error", joint=" ± ")], [[2.9, 0.012]])
    assert table.to_markdown().splitlines() == ["| loss |", "|---:|", "| 2.9000 ± 0.012 |"]
    assert table.to_csv() == '"loss","se"\n2.9,0.012\n'
