"""Names that would run, break a table or lie about themselves, through every file that a report writes."""

import base64
import csv
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import html5lib
import pytest

from analysis.__main__ import run
from analysis.page.escape import csv_cell, latex, markdown, printable

NAMES = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    '=HYPERLINK("http://x","y")',
    "@SUM(1);=1+1|cmd",
    r"$\frac{1}{$ x_{ $$",
    "[x](javascript:alert(1)) `a` **b** | ![c](http://x)",
    r'_x \1 \g<0> id="y" url(#z) #1b1f24',
    r"\input{x} & 5% # ~ ^ {{ 7*7 }} {% raw %}",
    "]]>--><!-- \x1b[31m\u202eevil\ncode\x00",
    "名前 a b",
    "名前 a_b",
)
TITLE = "</title><script>alert(2)</script> [t](http://x) $t$"
MAPPED = "=loss <b>|`"
SAFE_TEX = {
    "begin", "end", "hline", "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar",
    "pm",
}  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a table whose every text is hostile, in a folder and under a title that are hostile too."""
    folder = tmp_path_factory.mktemp("hostile") / "<img src=x onerror=alert(3)> $a$ [p](http:x) `c`"
    folder.mkdir()
    rows = [
        [name, n, 20 * n, batch, lr, 2 + i / 50 + 30 * n**-0.3 + abs(lr - 0.01) + batch / n / 100]
        for i, name in enumerate(NAMES)
        for n, batch, lr in itertools.product((10**5, 10**6, 10**7), (2048, 4096, 8192), (0.01, 0.02))
    ]
    columns = ("algorithm", "num_params", "num_tokens", "global_batch_tokens", "lr", MAPPED, "run_id")
    rows = [*([*row, f"<i>{k}</i>"] for k, row in enumerate(rows)), ["bad", "<b>1</b>|`x`", 1, 1, 1, 1, "=1+1"]]
    lines = [json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows]
    (folder / "runs.jsonl").write_text("".join(lines))
    (folder / "names.yaml").write_text(json.dumps({"loss": MAPPED}))
    arguments = ["--table", folder / "runs.jsonl", "--mapping", folder / "names.yaml", "--title", TITLE]
    assert run([*map(str, arguments), "--bootstrap", "0"]) == 0
    return folder / "report"


def elements(text: str) -> list[Any]:
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)
    return list(tree.iter())


def tag(element: Any) -> str:
    return str(element.tag).rsplit("}", 1)[-1].lower() if isinstance(element.tag, str) else "comment"


def assert_nothing_runs(nodes: list[Any]) -> None:
    for node in nodes:
        assert tag(node) not in ("script", "img", "iframe", "object", "embed", "base", "link", "i", "b")
        for name, value in node.attrib.items():
            short = name.rsplit("}", 1)[-1].lower()
            assert not short.startswith("on"), (tag(node), name)
            if short in ("href", "src"):
                assert value.startswith(("#", "data:image/png;base64,")), value


def test_a_page_has_no_script_and_shows_names_as_they_are(hostile: Path) -> None:
    nodes = elements((hostile / "report.html").read_text())
    assert_nothing_runs(nodes)
    texts = {"".join(node.itertext()) for node in nodes}
    for name in NAMES:
        assert printable(name) in texts
    assert TITLE in texts
    (policy,) = (node.attrib["content"] for node in nodes if "http-equiv" in node.attrib)
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_figures_are_xml_that_runs_nothing_and_name_every_series(hostile: Path) -> None:
    legends: set[str] = set()
    files = list((hostile / "figures").glob("*.svg"))
    for file in files:
        nodes = list(ElementTree.parse(file).getroot().iter())
        assert_nothing_runs(nodes)
        legends |= {str(node.text).strip() for node in nodes if tag(node) == "text"}
    assert {printable(name) for name in NAMES} <= legends
    maps = [file for file in files if file.stem.startswith("map_")]
    assert len(maps) == len(NAMES), "no figure lies over another's file"
    assert all(re.fullmatch(r"\w{1,80}", file.stem) for file in files)


def test_markdown_has_no_tags_links_or_code_but_our_own(hostile: Path) -> None:
    text = (hostile / "report.md").read_text()
    plain = re.sub(r"\\[!-/:-@\[-`{-~]", "", text)
    plain = re.sub(r"!\[[^\[\]]*\]\(figures/\w+\.svg\)", "", plain)
    assert not re.search(r"[<>`]|\]\(|\]:|\*\*", plain)
    for table in re.findall(r"(?:^\|.*\n)+", plain, re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_no_cell_of_a_csv_is_a_formula(hostile: Path) -> None:
    seen = set()
    for file in (hostile / "tables").glob("*.csv"):
        with file.open(newline="") as lines:
            for row in csv.reader(lines):
                for cell in row:
                    seen.add(cell)
                    number = re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", cell)
                    assert number or not re.match(r"\s*[-=+@\t\r]", cell), (file.name, cell)
    assert "'" + NAMES[2] in seen
    assert csv_cell(-1.5) == -1.5
    assert csv_cell("-1.5e-3") == "-1.5e-3"
    assert csv_cell("\t=1") == "'\t=1"
    assert csv_cell("-1+cmd") == "'-1+cmd"


def test_latex_has_only_our_own_commands(hostile: Path) -> None:
    files = list((hostile / "tables").glob("*.tex"))
    for file in files:
        text = "\n".join(line for line in file.read_text().splitlines() if not line.startswith("%"))
        assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= SAFE_TEX
        bare = re.sub(r"\\[^a-zA-Z]", "", text.replace("\\\\", ""))
        assert bare.count("{") == bare.count("}")
        assert not re.search(r"[%#_~^]", bare)
        assert not bare.count("$") % 2
        (columns,) = re.findall(r"tabular\}\{([lr]+)\}", text)
        assert {line.count("&") for line in bare.splitlines() if "&" in line} == {len(columns) - 1}
    assert latex("[1em]") == "{}[1em]"
    assert latex(r"\a{b}") == r"\textbackslash{}a\{b\}"


def test_the_json_holds_the_names_without_what_moves_a_terminal(hostile: Path) -> None:
    report = json.loads((hostile / "report.json").read_text())
    assert set(report["series"]) == {printable(name) for name in NAMES}
    assert printable("a\x1b\u202eb\ud800") == r"a\x1b\u202eb\ud800"
    assert report["title"] == TITLE
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", (hostile / "report.json").read_text())


def test_two_reports_compared_have_only_text_of_their_names(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(hostile), str(hostile)]) == 0
    plain = re.sub(r"\\[!-/:-@\[-`{-~]", "", capsys.readouterr().out)
    assert not re.search(r"[<>`\x1b]|\]\(", plain)


def test_an_interactive_page_runs_only_its_own_scripts(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = pytest.importorskip("plotly.offline")
    from analysis.report.interactive import write_interactive

    monkeypatch.setattr(offline, "get_plotlyjs", lambda: "window.Plotly = {};")
    write_interactive(json.loads((hostile / "report.json").read_text()), tmp_path / "page.html")
    nodes = elements((tmp_path / "page.html").read_text())
    scripts = [node for node in nodes if tag(node) == "script"]
    assert_nothing_runs([node for node in nodes if tag(node) != "script"])
    (policy,) = (node.attrib["content"] for node in nodes if "http-equiv" in node.attrib)
    run_by = [node for node in scripts if "type" not in node.attrib]
    digests = [base64.b64encode(hashlib.sha256(node.text.encode()).digest()).decode() for node in run_by]
    assert re.findall(r"'sha256-([^']*)'", policy) == digests
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    (data,) = (json.loads(node.text) for node in scripts if "type" in node.attrib)
    names = {trace["name"] for figure in data for trace in figure["data"]}
    assert len(names) == len(NAMES)
    assert not any("<" in name for name in names)


def test_what_is_escaped_says_the_same() -> None:
    assert markdown("DDP-AdamW K=1 at 0.5 [1, 2]") == r"DDP-AdamW K=1 at 0.5 \[1, 2\]"
    assert markdown("cbs_1pct") == "cbs_1pct"
    assert markdown("<b> _x_ a|b") == r"&lt;b&gt; \_x\_ a\|b"
