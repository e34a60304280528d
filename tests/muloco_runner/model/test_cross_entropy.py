"""The chunked head and loss against torch's own, and the memory they save."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from muloco_runner.model import cross_entropy
from muloco_runner.model.cross_entropy import (
    LossAndGradient,
    fusible_loss_and_gradient,
    linear_cross_entropy,
    loss_and_gradient,
)
from muloco_runner.model.logit_chunks import chunk_tokens, chunk_within, larger_chunks

N, D, V = 70, 24, 301


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    return x, weight, torch.randint(V, (N,), generator=generator)


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(3 * loss, of)


@pytest.mark.parametrize("differentiate", [loss_and_gradient, fusible_loss_and_gradient])
@pytest.mark.parametrize("chunk", [1, 16, 70, 1000])  # a last chunk shorter, exact, and one chunk only
def test_chunks_give_the_loss_and_gradients_of_the_whole(chunk: int, differentiate: LossAndGradient) -> None:
    x, weight, targets = inputs()
    exact = F.cross_entropy((x.double() @ weight.double().T), targets)
    loss = linear_cross_entropy(x, weight, targets, chunk, differentiate)
    with torch.no_grad():
        assert torch.allclose(linear_cross_entropy(x, weight, targets, chunk), loss)
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-6)
    for ours, wanted in zip(gradients(loss, x, weight), gradients(exact, x, weight), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize("differentiate", [loss_and_gradient, fusible_loss_and_gradient])
def test_huge_logits_stay_finite(differentiate: LossAndGradient) -> None:
    x, weight, targets = inputs()
    loss = linear_cross_entropy(1e4 * x, weight, targets, 16, differentiate)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss, x, weight))


def test_under_autocast_only_the_products_are_narrow() -> None:
    x, weight, targets = inputs(torch.bfloat16)
    plain_x, plain_weight, _ = inputs(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets, 16)
        expected = F.cross_entropy(F.linear(plain_x, plain_weight).float(), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    ours, wanted = gradients(loss, x, weight), gradients(expected, plain_x, plain_weight)
    assert [gradient.dtype for gradient in ours] == [torch.bfloat16, torch.float32]
    for one, other in zip(ours, wanted, strict=True):
        assert (one - other).norm() < 1e-2 * other.norm()


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_the_logits_never_exist_as_a_whole() -> None:
    x, weight, targets = inputs()
    for chunk, largest in ((8, max(8 * V, V * D)), (N, N * V)):
        with LargestTensor() as seen:
            gradients(linear_cross_entropy(x, weight, targets, chunk), x, weight)
        assert seen.elements == largest
    # At the study's vocabulary a chunk is small beside a micro-batch of 16k tokens.
    assert chunk_tokens(128_256, "cpu") < chunk_tokens(128_256, "cuda") < 16_384 / 4
    assert chunk_tokens(256, "cpu") >= 16_384


def test_the_gradient_is_handed_over_once() -> None:
    x, weight, targets = inputs()
    loss = linear_cross_entropy(x, weight, targets, 16)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_the_heads_gradient_is_summed_within_the_product_where_torch_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU's torch does it; where it cannot, each product is rounded first."""
    left, right = (torch.randn(32, 32, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (0, 1))

    def error() -> float:
        cross_entropy.adds_within_product.cache_clear()
        total = torch.zeros(32, 32)
        cross_entropy._add_product(total, left, right)
        return float((total - left.double() @ right.double()).norm() / total.norm())

    def addmm(total: Tensor, left: Tensor, right: Tensor, *, out_dtype: torch.dtype, out: Tensor) -> Tensor:
        assert out is total
        return total.add_((left.to(out_dtype) @ right.to(out_dtype)).to(kept))

    monkeypatch.setattr(torch, "addmm", addmm)
    kept = torch.float32
    assert error() < 1e-6
    kept = torch.bfloat16  # a torch that rounds the product is not asked to
    assert 1e-3 < error() < 1e-2
    assert not cross_entropy.adds_within_product(left.device, left.dtype)
    cross_entropy.adds_within_product.cache_clear()


def test_a_gpus_compiler_reads_the_logits_once_for_maximum_and_sum() -> None:
    """It does where it finds torch's pattern of an online softmax, which is looked for here as it looks."""
    from torch._inductor.fx_passes import post_grad
    from torch._inductor.pattern_matcher import PatternMatcherPass, fwd_only, register_replacement
    from torch.fx.experimental.proxy_tensor import make_fx

    found = []
    patterns = PatternMatcherPass()
    register_replacement(
        post_grad.prepare_softmax_pattern,
        post_grad.prepare_softmax_replacement,
        [torch.empty(4, 8)],
        trace_fn=fwd_only,
        pass_dicts=[patterns],
        extra_check=lambda match: bool(found.append(match) or True),
        scalar_workaround={"dim": -1},
    )
    arguments = torch.randn(4, 8, dtype=torch.bfloat16), torch.randint(8, (4, 1))
    graph = make_fx(fusible_loss_and_gradient, tracing_mode="fake")(*arguments)
    assert patterns.apply(graph.graph) == len(found) == 1


def test_chunks_grow_with_the_memory_of_a_gpu_alone() -> None:
    tokens, words = 32 * 2048, 128_256
    sizes = larger_chunks(tokens, words, "cuda")
    assert sizes == [16_384, 8192, 4096, 0]
    assert [chunk_within(tokens, words, "cuda", most) for most in sizes] == [16_384, 8192, 4096, 2048]
    assert larger_chunks(tokens, words, "cpu") == [0]
    # A smaller micro-batch, since memory was out: still no chunk of all tokens, which would take three times as much.
    assert chunk_within(8192, words, "cuda", 16_384) == 4096
    assert chunk_within(1024, words, "cuda", 16_384) == chunk_tokens(words, "cuda")
