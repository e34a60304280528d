"""Sampling with a cache says what the whole model says, whatever stands beside a prompt."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from muloco_runner.config import ConfigError, ExecutionConfig, ModelConfig, RunConfig
from muloco_runner.inference.command import main, make_parser
from muloco_runner.inference.load import usable_device
from muloco_runner.inference.sample import CachedModel, SamplingOptions, _draw, check_memory, sample
from muloco_runner.job import run_job
from muloco_runner.model.transformer import Transformer, build_model
from muloco_runner.record import RunFolder

MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
CONFIG = ModelConfig(width=32, num_layers=3, head_width=8, vocab_size=50, sequence_length=64, rope_theta=1e4)
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [8]]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return build_model(CONFIG, 7, torch.device("cpu")).eval()


@torch.no_grad()
def greedy_without_cache(model: Transformer, prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_cached_logits_are_those_of_the_whole_model(model: Transformer) -> None:
    tokens_BT = torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(0))
    pads_B = torch.tensor([0, 4, 9])
    cached = CachedModel(model, pads_B, 20, torch.float32)
    for columns in (slice(0, 12), slice(12, 13), slice(13, 17), slice(17, 20)):
        found_BV = cached.logits(tokens_BT[:, columns])
        for row, pad in enumerate(pads_B.tolist()):
            with torch.no_grad():
                expected_V = model(tokens_BT[row : row + 1, pad : columns.stop])[0, -1]
            torch.testing.assert_close(found_BV[row], expected_V, rtol=0, atol=2e-5)


def test_the_likeliest_tokens_are_those_of_a_plain_loop(model: Transformer) -> None:
    found = sample(model, PROMPTS, 30, SamplingOptions(temperature=0))
    assert found == [greedy_without_cache(model, prompt, 30) for prompt in PROMPTS]


def test_a_row_is_drawn_alike_alone_and_beside_others(model: Transformer) -> None:
    together = sample(model, PROMPTS, 25, SamplingOptions(seed=3))
    assert together == sample(model, PROMPTS, 25, SamplingOptions(seed=3))
    assert together != sample(model, PROMPTS, 25, SamplingOptions(seed=4))
    assert together[0] == sample(model, PROMPTS[:1], 25, SamplingOptions(seed=3))[0]


def test_what_is_too_large_or_no_text_is_refused(model: Transformer) -> None:
    with pytest.raises(ConfigError, match=r"below 2\^43"):
        SamplingOptions(seed=2**43)
    assert sample(model, [[1]], 1, SamplingOptions(seed=2**43 - 1))
    check_memory(model, 4, 1000, torch.float32)
    for rows, length in ((1, 10**14), (10**14, 100)):
        with pytest.raises(ConfigError, match="give fewer tokens or samples"):
            check_memory(model, rows, length, torch.float32)
    with pytest.raises(ConfigError, match="must be a text in UTF-8"):
        make_parser().parse_args(["sample", "3fa", "--prompt", "\udcff"])


@pytest.mark.parametrize("name", ["meta", "mps", "nonsense", "cuda:977"])
def test_devices_without_values_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"device {name}: torch cannot compute there"):
        usable_device(name)
    assert usable_device("cpu").type == "cpu"


def test_a_row_ends_at_the_end_token(model: Transformer) -> None:
    (long,) = sample(model, PROMPTS[:1], 20, SamplingOptions(temperature=0))
    (short,) = sample(model, PROMPTS[:1], 20, SamplingOptions(temperature=0), end=long[5])
    assert short == long[: long.index(long[5])]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SamplingOptions(), [0.5, 0.25, 0.15, 0.1]),
        (SamplingOptions(temperature=0.5), [0.725, 0.181, 0.065, 0.029]),
        (SamplingOptions(top_k=2), [0.667, 0.333, 0.0, 0.0]),
        (SamplingOptions(top_p=0.8), [0.556, 0.278, 0.167, 0.0]),
        (SamplingOptions(top_p=0.5), [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_tokens_are_drawn_with_the_probabilities_asked_for(options: SamplingOptions, expected: list[float]) -> None:
    logits_BV = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    generator = torch.Generator().manual_seed(1)
    drawn = torch.tensor([int(_draw(logits_BV, options, [generator])) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor(expected), rtol=0, atol=0.03)


def test_what_cannot_be_sampled_is_refused(model: Transformer) -> None:
    with pytest.raises(ConfigError, match="empty prompt"):
        sample(model, [[1], []], 3, SamplingOptions())
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 1.5}, {"temperature": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            SamplingOptions(**wrong)  # type: ignore[arg-type]


def test_the_command_continues_a_prompt(
    tiny_run: MakeRun,
    new_folder: MakeFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tiny_run("diloco")
    folder = new_folder(run)
    run_job(folder, ExecutionConfig(device="cpu"))

    def say(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["muloco-model", "sample", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    code, said, beside = say(str(folder.path), "--prompt", "the ", "--prompt", "outer", "--tokens", "40", "--seed", "1")
    assert code == 0, beside
    assert said.startswith("the ")
    assert "\nouter" in said
    assert "45 tokens are more than the 32 that the model was trained on at once" in beside
    assert "80 tokens in" in beside
    root = str(tmp_path / "root")
    again = say(run.run_id[:5], "--root", root, "--prompt", "the ", "--tokens", "40", "--seed", "1")[1]
    assert again.startswith(said.split("\nouter")[0])
    for words in (
        ["nowhere", "--prompt", "a"],
        [str(folder.path)],
        [str(folder.path), "--prompt", "a", "--tokens", "0"],
    ):
        code, said, beside = say(*words)
        assert (code, said, beside.count("\n")) == (2, "", 1), beside
