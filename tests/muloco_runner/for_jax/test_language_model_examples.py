"""examples/train_lm.py and examples/jax_train_lm.py: the same numbers, and mistakes in words."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("optax") is not None:
    import jax  # noqa: F401  # sets environment variables, which no test may leave behind

EXAMPLES = Path(__file__).parents[3] / "examples"
SMALL = (
    "--steps 12 --sync-interval 5 --warmup-steps 3 --eval-interval 6 --batch-size 4 --seq-len 16 --d-model 16 --compare"
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A command line; the examples can be imported while there is one."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("the cat sat on the mat, and the dog ate the rest of it. " * 60)
    sys.path.insert(0, str(EXAMPLES))
    yield [*SMALL.split(), "--dataset", str(folder), "--plot", str(folder / "plot.png")]
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def in_torch(words: list[str]) -> tuple[Any, str]:
    import train_lm

    with contextlib.redirect_stdout(io.StringIO()) as said:
        histories = train_lm.main(words)
    return histories, said.getvalue()


def test_torch_trains_prints_a_table_and_writes_a_plot(words: list[str], in_torch: tuple[Any, str]) -> None:
    (muloco, muon), said = in_torch
    assert muloco.training[:5] == pytest.approx(muon.training[:5]), "the same until the first outer step"
    assert muloco.training[5] != muon.training[5]
    assert muloco.training[-1] < muloco.training[0] - 0.5
    table = said.partition("validation loss")[2]
    assert f"MuLoCo      {muloco.validation[12]:15.4f}" in table
    assert Path(words[-1]).stat().st_size > 1000


def test_jax_has_the_numbers_of_torch(words: list[str], in_torch: tuple[Any, str]) -> None:
    pytest.importorskip("muloco_runner.jax")
    import jax_train_lm

    for theirs, ours in zip(in_torch[0], jax_train_lm.main(words), strict=True):
        assert ours.training == pytest.approx(theirs.training, abs=2e-4), ours.name
        assert ours.validation == pytest.approx(theirs.validation, abs=2e-4), ours.name


def test_a_norm_of_0_clips_nothing(words: list[str], in_torch: tuple[Any, str]) -> None:
    """As in the published example; the norm would be divided by otherwise, and nothing learnt."""
    import train_lm

    few = [*words, "--steps", "4", "--log-interval", "2"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        (unclipped, _), (loose, _) = (train_lm.main([*few, "--grad-clip", norm]) for norm in ("0", "1e9"))
    assert unclipped.training == loose.training
    assert f"step      4  training {sum(loose.training[2:]) / 2:.4f}  mean of 2 steps" in said.getvalue()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--dataset", "nowhere.txt"], "--dataset nowhere.txt: No such file or directory; give a file, a folder"),
        (["--n-heads", "3"], "--n-heads 3: must divide --d-model 16"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--warmup-steps", "-1"], "--warmup-steps -1: must be at least 0"),
        (
            ["--dataset", "wikitext"],
            "datasets.load_dataset('Salesforce/wikitext', 'wikitext-103-raw-v1', split='train')",
        ),
        (["--cache-dir", "data"], "--cache-dir: nothing is downloaded and so nothing is cached: leave it out"),
        (["--outer-momentum", "1"], "--outer-momentum 1.0: must be at least 0 and below 1"),
        (["--inner-lr", "-1"], "--inner-lr -1.0: must be at least 0"),
        (["--seq-len", "500"], "bytes are too few for --seq-len 500"),
    ],
)
def test_mistakes_end_with_one_line(
    words: list[str], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import lm_setup as setup

    with pytest.raises(SystemExit, match="2"):
        setup.arguments("", [*words, *more])
    assert said in capsys.readouterr().err
