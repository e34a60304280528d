import gzip
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.input.table_files import Table, read_table
from muloco_runner.config import ConfigError


def read(tmp_path: Path, name: str, content: str | bytes, part: str | None = None) -> Table:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, part=part)


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def workbook(sheets: dict[str, list[list[Any]]]) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book, out = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "N,loss\n1,2.5\n3,2.25\n"),
        ("T.CSV", "N,loss\r\n1,2.5\r\n3,2.25\r\n"),
        ("t.csv", "# where it comes from\n#\nN,loss\n1,2.5\n3,2.25"),
        ("t.csv", "# N,loss\n1,2.5\n3,2.25\n"),
        ("t.csv", "N;loss\n1;2.5\n3;2.25\n"),
        ("t.csv", "N|loss\n1|2.5\n3|2.25\n"),
        ("t.csv", "N,loss\n1,2.5,\n3,2.25,\n"),
        ("t.tsv", "N\tloss\n1\t2.5\n3\t2.25\n"),
        ("t.csv", "\ufeffN,loss\n1,2.5\n3,2.25\n"),
        ("t.csv", "N,loss\n1,2.5\n3,2.25\n".encode("utf-16")),
        ("t.csv", "N,loss\n1,2.5\n3,2.25\n".encode("utf-16-le")),
        ("t.csv.gz", gzip.compress(b"N,loss\n1,2.5\n3,2.25\n", mtime=0)),
        ("t.zip", zipped({"a/t.csv": b"N,loss\n1,2.5\n3,2.25\n", "README.txt": b"", "__MACOSX/a/._t.csv": b"x"})),
        ("t.zip", zipped({"t.jsonl.gz": gzip.compress(b'{"N": 1, "loss": 2.5}\n{"N": 3, "loss": 2.25}\n', mtime=0)})),
        ("t.csv", zipped({"t.tsv": "N\tloss\n1\t2.5\n3\t2.25\n".encode("utf-16")})),
        ("t.jsonl", '{"N": 1, "loss": 2.5}\n\n{"N": 3, "loss": 2.25}\n'),
        ("t.ndjson", '{"N": 1, "loss": 2.5}\n{"N": 3, "loss": 2.25}\n'),
        ("t.JSON", json.dumps([{"N": 1, "loss": 2.5}, {"N": 3, "loss": 2.25}])),
        ("t.json", json.dumps({"N": [1, 3], "loss": [2.5, 2.25]})),
        ("t.json", json.dumps({"N": {"0": 1, "1": 3}, "loss": {"0": 2.5, "1": 2.25}})),
        ("t.json", json.dumps({"columns": ["N", "loss"], "data": [[1, 2.5], [3, 2.25]]})),
        ("t.json", json.dumps({"runs": [{"N": 1, "loss": 2.5}, {"N": 3, "loss": 2.25}]})),
        ("t.json", json.dumps({"one": {"N": 1, "loss": 2.5}, "two": {"N": 3, "loss": 2.25}})),
    ],
)
def test_every_kind_of_file_gives_the_same_cells(tmp_path: Path, name: str, content: str | bytes) -> None:
    frame = read(tmp_path, name, content).frame
    assert list(frame.columns) == ["N", "loss"]
    assert frame.to_numpy(dtype=float).tolist() == [[1, 2.5], [3, 2.25]]


def test_rows_of_another_width_are_dropped_by_name(tmp_path: Path) -> None:
    table = read(tmp_path, "t.csv", 'N,note,loss\n1,"a, b",2.5\n2,c,d,9\n3,e\n4,#5,2.25\n')
    assert table.frame["loss"].tolist() == [2.5, 2.25]
    assert table.frame["note"].tolist() == ["a, b", "#5"]
    assert [name for name, _ in table.dropped] == ["line 3", "line 4"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('N,loss\n1,"2.5\n3,2.25\n', "never closed"),
        ("", "no header"),
        ("a;b|c\n1;2|3\n", "say --separator"),
    ],
)
def test_what_cannot_be_read_is_one_message(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, "t.csv", content)


def test_objects_of_trackers_become_columns(tmp_path: Path) -> None:
    lines = [{"run": "a", "config": {"opt": {"lr": 0.1}}, "summary": {"loss": float("nan")}}]
    table = read(tmp_path, "t.jsonl", "\n".join(json.dumps(line) for line in lines))
    assert table.frame.loc[0, "config.opt.lr"] == 0.1
    assert table.frame.loc[0, "summary.loss"] == "NaN"
    written = read(tmp_path, "t.csv", "name,config,summary\na,\"{'lr': 0.1}\",\"{'loss': nan}\"\n")
    assert written.frame.loc[0, "config.lr"] == 0.1
    assert written.frame.loc[0, "summary.loss"] == "nan"
    mlflow = {"data": {"params": [{"key": "lr", "value": "0.1"}], "metrics": [{"key": "loss", "value": 2.5}]}}
    found = read(tmp_path, "t.json", json.dumps({"runs": [mlflow]}))
    assert found.frame.loc[0, "data.params.lr"] == "0.1"


def test_parquet_keeps_what_was_never_logged_from_what_was_lost(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"loss": pa.array([2.5, None, float("nan")])}), tmp_path / "t.parquet")
    cells = read_table(tmp_path / "t.parquet").frame["loss"]
    assert cells[0] == 2.5
    assert pd.isna(cells[1])
    assert cells[2] == "NaN"


SEVERAL = {
    "t.zip": zipped({"a.csv": b"N,loss\n1,2\n", "b.csv": b"N,loss\n3,4\n"}),
    "t.json": json.dumps({"a.csv": [{"N": 1, "loss": 2}], "b.csv": [{"N": 3, "loss": 4}]}).encode(),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_tables_one_is_chosen_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"several tables, a\.csv, b\.csv: say which with --part"):
        read(tmp_path, name, SEVERAL[name])
    with pytest.raises(ConfigError, match=r"no such table \(did you mean b\.csv\?\); it has a\.csv, b\.csv"):
        read(tmp_path, name, SEVERAL[name], "c.csv")
    assert read(tmp_path, name, SEVERAL[name], "b.csv").frame.to_numpy().tolist() == [[3, 4]]


def test_a_sheet_of_a_workbook_is_read_as_its_cells_are(tmp_path: Path) -> None:
    runs = [[], [None, "N", "loss", "loss", "seed"], [], [None, "124M", 2.5, 1, 0], [None, 3, "2,25", 1, None]]
    one = workbook({"notes": [], "runs": runs})
    table = read(tmp_path, "t.xlsx", one)
    assert list(table.frame.columns) == ["N", "loss", "loss.1", "seed"]
    assert table.frame.astype(object).where(table.frame.notna(), None).to_numpy().tolist() == [
        ["124M", 2.5, 1, 0],
        [3, "2,25", 1, None],
    ]
    assert table.ambiguous == {"loss"}
    several = workbook({"runs": runs, "old runs": runs[1:4]})
    with pytest.raises(ConfigError, match="several tables, runs, old runs: say which with --part"):
        read(tmp_path, "t.xlsx", several)
    assert len(read(tmp_path, "t.xlsx", several, "old runs").frame) == 1


def test_a_formula_without_its_value_is_refused_not_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="row 2 of sheet runs has a formula that was never computed, =1\\+1"):
        read(tmp_path, "t.xlsx", workbook({"runs": [["N", "loss"], [1, "=1+1"]]}))


def test_a_workbook_without_openpyxl_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zipped({"xl/workbook.xml": b"<workbook/>", "[Content_Types].xml": b""})
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ConfigError, match=r"pip install 'muloco-sweeps\[excel\]', or save the sheet as \.csv"):
        read(tmp_path, "t.xlsx", content)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.xls", bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600), "older format"),
        ("t.xlsx", b"N,loss\n1,2\n", "ends in"),
        ("t.zip", zipped({"a.txt": b"", "b.pdf": b""}), "none of its members is a table .* it has a.txt, b.pdf"),
        ("t.zip", zipped({"a.csv": b"N,loss\n1,2\n"})[:-30], "ends in|not readable"),
        ("t.csv", "N,loss\n1,2\n\nloss,N\n3,4\n", r"row 4 begins a second table \(loss, N\)"),
        ("t.csv", "N,loss,lr\n1,2,3\n,,\nloss,N,\n3,4,\n", r"row 4 begins a second table"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, name: str, content: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, name, content)


def test_a_part_of_a_file_with_one_table_has_no_effect(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds one table"):
        read(tmp_path, "t.csv", "N,loss\n1,2\n", "runs")
    with pytest.raises(ConfigError, match="holds one table"):
        read(tmp_path, "t.json", '{"N": [1], "loss": [2]}', "runs")


def test_blank_lines_and_a_line_of_units_are_no_second_table(tmp_path: Path) -> None:
    table = read(tmp_path, "t.csv", "N,loss\nmillions,nats\n1,2\n\n\n3,4\n")
    assert table.frame["N"].tolist() == ["millions", "1", "3"]
