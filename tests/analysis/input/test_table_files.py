import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.input.table_files import Table, read_table
from muloco_runner.config import ConfigError


def read(tmp_path: Path, name: str, content: str | bytes) -> Table:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path)


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


def test_rows_of_another_width_are_dropped_by_name_and_change_no_other(tmp_path: Path) -> None:
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
