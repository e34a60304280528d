import functools

import pytest
import torch
import torch._dynamo.utils
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._subclasses.fake_tensor import FakeTensorMode

from muloco_runner.compose import compose_app_config
from muloco_runner.config import ConfigError, ModelConfig
from muloco_runner.model import compile as model_compile
from muloco_runner.model.attention import choose_attention
from muloco_runner.model.transformer import Block, Transformer, build_model

CONFIG = ModelConfig(width=32, num_layers=2, head_width=16, vocab_size=50, sequence_length=24)
CPU = torch.device("cpu")


def test_a_position_sees_neither_the_future_nor_another_document() -> None:
    model = build_model(CONFIG, seed=1, device=CPU)
    tokens = torch.randint(50, (1, 24), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0] * 10 + [1] * 14])
    before = model(tokens, documents)
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 50  # ahead of position 19, in its own document
    changed[0, 3] = (changed[0, 3] + 1) % 50  # behind it, in another one
    after = model(changed, documents)
    torch.testing.assert_close(after[0, 10:20], before[0, 10:20], rtol=0, atol=0)
    assert not torch.allclose(after[0, 3:10], before[0, 3:10])
    assert not torch.allclose(after[0, 20:], before[0, 20:])


def documents_and_text() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(50, (3, 24), generator=generator) for _ in range(2))
    return tokens, torch.tensor([[0] * 24, [0] * 10 + [1] * 14, [3] * 1 + [4] * 23]), targets


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # On purpose, at these sizes.
def test_flex_attention_sees_what_the_mask_shows() -> None:
    """Forward only: torch has no backward pass of it on a CPU."""
    tokens, documents, _ = documents_and_text()
    model = build_model(CONFIG, seed=1, device=CPU)
    logits = []
    for attention in ("sdpa", "flex"):
        model.set_execution(attention, recompute=False, compiled=False)
        with torch.no_grad():
            logits.append(model(tokens, documents))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_flex_attention_is_part_of_a_compiled_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the mask is a graph, all blocks are another, neither is broken up or compiled again."""
    compiler = functools.partial(torch.compile, backend="aot_eager")
    compiled = functools.cache(lambda function, device_type: compiler(function, dynamic=False))
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr("muloco_runner.model.attention._compiled_on_gpus", compiled)
    model = build_model(CONFIG, seed=1, device=CPU)
    model.set_execution("flex", recompute=False, compiled=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    tokens, documents, targets = documents_and_text()
    for rolls in range(3):
        model(tokens, documents.roll(rolls, 0), targets)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


def test_recomputed_activations_give_the_same_gradient_to_the_bit() -> None:
    model = build_model(CONFIG, seed=1, device=CPU)
    found = []
    for recompute in (False, True):
        model.set_execution("sdpa", recompute, compiled=False)
        found.append(torch.autograd.grad(model(*documents_and_text()), list(model.parameters())))
    assert all(torch.equal(kept, again) for kept, again in zip(*found, strict=True))


def test_compiled_blocks_and_loss_are_a_graph_of_equal_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured and differentiated as always, the loss in chunks too; without the C++ compiler at the end, which takes a
    minute."""
    monkeypatch.setattr("muloco_runner.model.logit_chunks.chunk_tokens", lambda vocab_size, device: 24)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model = build_model(CONFIG, seed=1, device=CPU)
    found = []
    torch._dynamo.utils.counters.clear()
    for compiled, recompute in ((False, False), (True, False), (True, True)):
        model.set_execution("sdpa", recompute, compiled)
        found.append(torch.autograd.grad(model(*documents_and_text()), list(model.parameters())))
    for gradients in found[1:]:
        torch.testing.assert_close(gradients, found[0], rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_flex_attention_is_refused_where_it_cannot_train() -> None:
    gpu = torch.device("cuda")
    assert choose_attention("auto", 128, CPU) == choose_attention("auto", 8, gpu) == "sdpa"
    assert choose_attention("auto", 128, gpu) == choose_attention("flex", 128, gpu) == "flex"
    for head_width, device in ((8, gpu), (128, CPU)):
        with pytest.raises(ConfigError, match="flex"):
            choose_attention("flex", head_width, device)


def test_one_document_is_plain_causal_attention() -> None:
    model = build_model(CONFIG, seed=1, device=CPU)
    tokens = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens, torch.zeros_like(tokens)), model(tokens))


def test_positions_matter_only_by_their_distance() -> None:
    """Rotary positions: two equal documents in one sequence get equal logits."""
    model = build_model(CONFIG, seed=1, device=CPU)
    half = torch.randint(50, (1, 12), generator=torch.Generator().manual_seed(0))
    tokens, documents = torch.cat((half, half), 1), torch.tensor([[0] * 12 + [1] * 12])
    logits = model(tokens, documents)
    torch.testing.assert_close(logits[:, :12], logits[:, 12:], rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_the_logits() -> None:
    model = build_model(CONFIG, seed=1, device=CPU)
    generator = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(50, (2, 24), generator=generator) for _ in range(2))
    expected = -model(tokens).log_softmax(-1).gather(2, targets[..., None]).mean()
    torch.testing.assert_close(model(tokens, None, targets), expected)


def test_initial_values_depend_on_the_seed_alone() -> None:
    first, again, other = (build_model(CONFIG, seed, CPU) for seed in (1, 1, 2))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        if parameter.ndim == 2:
            assert not torch.equal(parameter, other.get_parameter(name))
        else:
            assert torch.equal(parameter, torch.ones_like(parameter))


def test_initial_spread_follows_the_published_rule() -> None:
    config = ModelConfig(width=256, num_layers=3, head_width=64, vocab_size=500, sequence_length=8)
    blocks = build_model(config, seed=0, device=CPU)
    deepest = blocks.get_parameter("blocks.2.feed_forward.w2.weight").detach()
    assert abs(float(deepest.std()) / (0.02 / 6**0.5) - 1) < 0.02
    assert abs(float(blocks.get_parameter("embedding.weight").detach().std()) - 1) < 0.02
    head = blocks.get_parameter("head.weight").detach()
    assert abs(float(head.std()) * 16 - 1) < 0.03
    assert float(head.abs().max()) <= 3 / 16


def test_the_meta_device_holds_every_parameter_and_no_value() -> None:
    with torch.device("meta"):
        model = Transformer(CONFIG)
    assert sum(p.numel() for p in model.parameters()) == CONFIG.num_params


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("150m", 150_616_064),
        ("416m", 416_862_208),
        ("914m", 914_343_936),
        ("1.76b", 1_758_666_752),
        ("3.1b", 3_065_436_160),
        ("15b", 15_229_089_792),
    ],
)
def test_the_published_ladder_has_the_published_sizes(size: str, count: int) -> None:
    config = compose_app_config([f"model={size}", "global_batch_tokens=1048576"]).model
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) == count == config.num_params


@torch.no_grad()
def test_a_gpus_autocast_leaves_the_stream_and_attention_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its list of operations to widen is not that of CPUs. Tensors without memory know their device nonetheless."""
    attended: list[Tensor] = []

    def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask: object) -> Tensor:
        attended.extend((q_BHTK, k_BHTK, v_BHTK))
        return torch.empty_like(q_BHTK)

    monkeypatch.setattr("muloco_runner.model.transformer.attend", attend)
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode():
            block = Block(CONFIG)
            for module in block.modules():
                module._parameters.update(
                    {n: torch.empty(p.shape, device="cuda") for n, p in module._parameters.items() if p is not None}
                )
            x_BTD = torch.empty(2, 8, CONFIG.width, dtype=torch.bfloat16, device="cuda")
            cos_TK, sin_TK = torch.empty(2, 8, CONFIG.head_width // 2, dtype=torch.bfloat16, device="cuda").unbind()
            y_BTD = block(x_BTD, cos_TK, sin_TK, None)
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
    assert [(t.device.type, t.dtype) for t in (*attended, y_BTD)] == [("cuda", torch.bfloat16)] * 4


def test_more_shapes_than_graphs_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_compile, "_SHAPES", 2)
    with torch._dynamo.config.patch(recompile_limit=2):
        torch._dynamo.reset()
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
        doubled = model_compile.compile_each_shape(lambda x: 2 * x)
        assert doubled(torch.ones(1)).tolist() == [2.0]
        doubled(torch.ones(2))
        with pytest.raises(FailOnRecompileLimitHit):
            doubled(torch.ones(3))
