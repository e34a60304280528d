"""Error feedback loses nothing, and each parameter goes by the codec that the config means for it."""

import pytest
import torch

from muloco_runner.config import CompressionConfig, ModelConfig, NoCompressionConfig, QuantisationConfig, TopKConfig
from muloco_runner.diloco.compression.codecs import AnyCodec, Exact, Linear, Statistical, TopK
from muloco_runner.diloco.compression.row_ranges import cut, full_ranges
from muloco_runner.diloco.error_feedback import choose_codecs, remembered
from muloco_runner.diloco.exchange import Exchange
from muloco_runner.diloco.flat import views
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.model.transformer import build_model

LOSSY: list[AnyCodec] = [
    Statistical(2),
    Statistical(4, True),
    Linear(2),
    Linear(8, True),
    TopK(0.01),
    TopK(0.1, Statistical(4)),
    TopK(0.1, Statistical(2), 64),
]


@pytest.mark.parametrize("codec", LOSSY, ids=str)
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_what_was_sent_and_what_is_remembered_is_all_there_was(codec: AnyCodec, decay: float) -> None:
    like = [torch.empty(40, 25), torch.empty(7)]
    exchange = Exchange(like, [codec, Exact()], False, Communicator(Topology(1)), torch.device("cpu"))
    deltas = torch.randn(100, 1007, generator=torch.Generator().manual_seed(0))
    error, mean = torch.zeros(1007), torch.empty(1007)
    sent, forgotten = (torch.zeros(1007, dtype=torch.float64) for _ in range(2))
    for delta in deltas:
        forgotten += (1 - decay) * error.double()
        due = remembered(error, decay, delta)
        exchange.average([views(due, like)], views(mean, like), leave_rest=True)
        sent += mean.double()
    torch.testing.assert_close(sent + error.double() + forgotten, deltas.double().sum(0), rtol=0, atol=2e-4)
    assert float(error[-7:].abs().max()) == 0
    # It is worth something: without memory the sum that arrives is further from the sum that was meant.
    lost = torch.zeros(1007)
    for delta in deltas:
        exchange.average([views(delta, like)], views(mean, like))
        lost += delta - mean
    assert float(error.norm()) < float(lost.norm())


def test_gains_are_always_exact_and_embeddings_where_asked() -> None:
    config = ModelConfig(width=16, num_layers=1, head_width=8, vocab_size=32, sequence_length=8)
    model = build_model(config, 0, torch.device("cpu"))
    names = [name for name, _ in model.named_parameters()]

    def exact(compression: CompressionConfig) -> set[str]:
        codecs = choose_codecs(compression, model)
        return {name for name, codec in zip(names, codecs, strict=True) if codec == Exact()}

    gains = {name for name in names if name.endswith("gain")}
    assert exact(NoCompressionConfig()) == set(names)
    assert exact(QuantisationConfig(bits=2)) == gains
    assert exact(TopKConfig()) == gains
    assert exact(QuantisationConfig(exact_embeddings=True)) == gains | {"embedding.weight", "head.weight"}


def test_a_config_names_its_codec() -> None:
    model = build_model(ModelConfig(width=16, num_layers=1, head_width=8, vocab_size=32), 0, torch.device("meta"))
    expected = {
        Statistical(4): QuantisationConfig(),
        Statistical(8, True): QuantisationConfig(bits=8, granularity="row"),
        Linear(2): QuantisationConfig("linear", bits=2),
        TopK(0.1): TopKConfig(fraction=0.1),
        TopK(0.01, Linear(4)): TopKConfig(values="linear", bits=4),
        TopK(0.01, Exact(), 4096): TopKConfig(chunk=4096),
    }
    for codec, config in expected.items():
        assert choose_codecs(config, model)[0] == codec


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64])
def test_cutting_covers_every_value_once_and_evenly(count: int) -> None:
    shapes = [(64, 16), (7,), (48, 16), (0, 4), (16,), (33, 3)]
    codecs: list[AnyCodec] = [Exact(), Exact(), Statistical(4), Exact(), Exact(), Linear(4, True)]
    tensors = [torch.zeros(shape) for shape in shapes]
    runs = cut(full_ranges(tensors, codecs), count)
    assert len(runs) == count
    for run in runs:
        for part in run:
            part.of(tensors).add_(1)
            assert part.of(tensors).numel() == part.size
            if part.size < tensors[part.tensor].numel():
                assert part.tensor != 2, "a tensor with levels of its own was cut"
    assert all(bool((tensor == 1).all()) for tensor in tensors)
    sizes = [sum(part.size for part in run) for run in runs]
    even = sum(tensor.numel() for tensor in tensors) / count
    assert max(sizes) <= even + max(tensors[2].numel(), 16)
