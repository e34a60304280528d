"""The Triton kernels: their numbers in the interpreter, and what the compiler makes of them for Hopper, without a GPU.

Skipped where triton is not installed, unless MULOCO_REQUIRE_TRITON is set.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from muloco_runner.memory.inner_step_peak import most_matrices_at_once

HERE = Path(__file__).parent
HAS_TRITON = find_spec("triton") is not None

pytestmark = pytest.mark.skipif(
    not HAS_TRITON and "MULOCO_REQUIRE_TRITON" not in os.environ,
    reason="needs triton: pip install --no-deps triton==3.7.1 beside a CPU build of torch",
)

if HAS_TRITON:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from muloco_runner.optimizers.orthogonalize.triton import elementwise, products, tiles, waves
else:
    from types import SimpleNamespace

    tiles = SimpleNamespace(SYMMETRIC=(), PRODUCT=(), INTO_PARAMETERS=())  # type: ignore[assignment]

HALVES = {"fp16": "float16", "bf16": "bfloat16"}
SHARED_MEMORY = 227 * 1024
"""Bytes that one program may have on an H100."""
PROCESSORS_SHARED_MEMORY = 228 * 1024
REGISTERS = 64 * 1024
"""Of one processor, 32 bits each."""


def _cannot_interpret() -> bool:
    """Before 3.7 triton's interpreter makes scalars of arrays in a way that numpy 2.4 refuses."""
    if not HAS_TRITON or "MULOCO_REQUIRE_TRITON" in os.environ:
        return False
    return _release(triton.__version__) < (3, 7) and _release(np.__version__) >= (2, 4)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


@pytest.mark.skipif(_cannot_interpret(), reason="triton before 3.7 needs pip install 'numpy<2.4' to be interpreted")
@pytest.mark.parametrize(
    "which",
    [
        "not thorough and not long",
        pytest.param("thorough", marks=pytest.mark.thorough),
        pytest.param("long", marks=pytest.mark.long),
    ],
)
def test_the_kernels_run_in_the_interpreter(which: str) -> None:
    """In a process of its own: triton must find TRITON_INTERPRET when it is first imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", which]
    ran = subprocess.run(
        [*command, *(str(HERE / f"interpreted_{what}.py") for what in ("triton_kernels", "fused_steps"))],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]


# Compiling


class Compiled:
    """A kernel as compiled for an H100."""

    def __init__(
        self, kernel: Any, arguments: dict[str, Any], tile: Any = None, divisible: bool = True, **options: int
    ) -> None:
        """`arguments` are types for what is passed and values for constants; all else is taken from `tile`.

        With `divisible`, integers and addresses are marked as multiples of 16, as a launch finds them to be.
        """
        if tile is not None:
            arguments, options = {**arguments, **tile.constants()}, tile.options()
        signature, constants, hints = {}, {}, {}
        for index, name in enumerate(kernel.arg_names):
            value = arguments[name]
            is_type = isinstance(value, str)
            signature[name] = value if is_type else "constexpr"
            if not is_type:
                constants[name] = value
            elif divisible and value[0] in "*i":
                hints[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constants, hints)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        self.ptx, self.ttir, self.shared_memory = built.asm["ptx"], built.asm["ttir"], built.metadata.shared
        self.usage = self._usage(built.asm["cubin"])

    @staticmethod
    def _usage(cubin: bytes) -> dict[str, int]:
        """Registers and bytes of local memory: what is spilled goes to the stack."""
        file = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
        file.write_bytes(cubin)
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        printed = subprocess.run(
            [str(tool), "--dump-resource-usage", str(file)], capture_output=True, text=True, check=True
        ).stdout
        return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)}

    @property
    def spilled_bytes(self) -> int:
        return self.usage["STACK"] + self.usage["LOCAL"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))


def descriptor(half: str, *block: int) -> str:
    return f"tensordesc<{half}{[1, *block]}>"


def sides_of(tile: Any) -> str:
    return f"{tile.block_m} x {tile.block_n}"


def assert_suits_hopper(kernel: Compiled, tile: Any) -> None:
    assert kernel.spilled_bytes == 0
    assert kernel.ptx.count("wgmma.mma_async") > 0
    assert kernel.ptx.count("cp.async.bulk.tensor") > 0
    assert kernel.shared_memory <= min(SHARED_MEMORY, tile.shared_memory)
    # As many programs a processor as the choice of tiles counts on: by shared memory, of which each program takes a
    # kilobyte more, and by registers, which a warp gets in steps of 256.
    assert tile.programs * (kernel.shared_memory + 1024) <= PROCESSORS_SHARED_MEMORY
    assert tile.programs * tile.num_warps * 32 * (-(-kernel.usage["REG"] // 8) * 8) <= REGISTERS


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("tile", tiles.SYMMETRIC, ids=sides_of)
@pytest.mark.parametrize("transposed", ["left", "right", "neither"])
def test_symmetric_products_compile_for_hopper(transposed: str, tile: Any, half: str) -> None:
    m, n, k = tile.block_m, tile.block_n, tile.block_k
    assert m % n == 0
    addend = descriptor(half, m, n) if transposed == "neither" else None
    arguments = {
        "left": descriptor(half, k, m) if transposed == "left" else descriptor(half, m, k),
        "right": descriptor(half, n, k) if transposed == "right" else descriptor(half, k, n),
        "out": descriptor(half, m, n),
        "mirrored": descriptor(half, n, m),
        "first_addend": addend,
        "second_addend": addend,
        **dict.fromkeys(("factor", "first_weight", "second_weight"), "fp32"),
        "inner": "i32",
        "LEFT_TRANSPOSED": transposed == "left",
        "RIGHT_TRANSPOSED": transposed == "right",
        "DTYPE": getattr(tl, HALVES[half]),
        "UPCAST": False,
    }
    assert_suits_hopper(Compiled(products.symmetric_product, arguments, tile), tile)


def operands(tile: Any, half: str) -> dict[str, Any]:
    m, n, k = tile.block_m, tile.block_n, tile.block_k
    return {
        "left": descriptor(half, m, k),
        "right": descriptor(half, k, n),
        "x": descriptor(half, m, n),
        "p": "fp32",
        **dict.fromkeys(("rows", "columns", "inner"), "i32"),
        "UPCAST": False,
        "GROUP": 8,
    }


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("tile", tiles.PRODUCT, ids=sides_of)
def test_products_compile_for_hopper(tile: Any, half: str) -> None:
    out = {"out": descriptor(half, tile.block_m, tile.block_n), "DTYPE": getattr(tl, HALVES[half])}
    assert_suits_hopper(Compiled(products.product, {**operands(tile, half), **out}, tile), tile)


@pytest.mark.parametrize(("parameter", "cautious"), [("float32", False), ("float32", True), ("bfloat16", False)])
@pytest.mark.parametrize("tile", tiles.INTO_PARAMETERS, ids=sides_of)
def test_products_that_update_parameters_compile_for_hopper(tile: Any, parameter: str, cautious: bool) -> None:
    arguments = {
        **operands(tile, "fp16"),
        **dict.fromkeys(("parameters", "gradients"), "*i64"),
        "hyper": "*fp64",
        "shape_scale": "fp32",
        "PARAMETER": getattr(tl, parameter),
        "ALIGNED": True,
        "CAUTIOUS": cautious,
    }
    kernel = Compiled(products.product_into_parameters, arguments, tile)
    assert_suits_hopper(kernel, tile)
    # Weights are read and written sixteen bytes at a time.
    assert re.search(r"ld\.global\.v4\.b32|ld\.global\.v2\.b64", kernel.ptx)
    assert re.search(r"st\.global\.v4\.b32|st\.global\.v2\.b64", kernel.ptx)


def accumulate(divisible: bool) -> Compiled:
    arguments = {
        "gradients": "*i64", "momentum": "*fp32", "squares": "*fp64", "hyper": "*fp64", "numel": "i32", "strip": "i32",
        "GRADIENT": tl.float32, "NESTEROV": True, "ALIGNED": divisible, "BLOCK": 2048,
    }  # fmt: skip
    return Compiled(elementwise.accumulate_momentum, arguments, divisible=divisible, num_warps=4)


def test_the_prologue_reads_sixteen_bytes_at_a_time_where_it_may() -> None:
    assert re.search(r"ld\.global\.v4\.b32", accumulate(True).ptx)
    assert not re.search(r"ld\.global\.v4\.b32", accumulate(False).ptx)


def test_a_buckets_offsets_are_64_bit() -> None:
    """B R C of a large model's bucket exceeds 2^31."""
    ttir = accumulate(True).ttir
    assert re.search(r"arith\.muli %\w+, %\w+ : i64", ttir)
    assert re.search(r"tt\.addptr %momentum\w*, %\w+ : !tt\.ptr<f32>, i64", ttir)


def test_elementwise_kernels_compile_without_spills() -> None:
    pointers = {"hyper": "*fp64", "ALIGNED": True, "BLOCK": 2048}
    kernels = {
        elementwise.normalise: {
            "gradients": "*i64", "momentum": "*fp32", "squares": "*fp64", "out": "*fp16", "numel": "i32",
            "strip": "i32", "columns": "i32", "row_stride": "i32", "matrix_stride": "i32", "margin": "fp32",
            "epsilon": "fp32", "norm_floor": "fp32", "GRADIENT": tl.float32, "NESTEROV": True, "DTYPE": tl.float16,
            "STRIPS": 256,
        },
        elementwise.update_parameters: {
            "orthogonal": "*i64", "parameters": "*i64", "kept": "fp32", "scale": "fp32", "numel": "i32",
            "DTYPE": tl.float16, "PARAMETER": tl.float32, "CAUTIOUS": True,
        },
        elementwise.adamw: {
            **dict.fromkeys(("parameters", "gradients", "first_moments", "second_moments", "sizes"), "*i64"),
            **dict.fromkeys(("first_corrections", "second_corrections"), "*fp64"),
            **dict.fromkeys(("tensor_of_block", "block_in_tensor"), "*i32"),
            "PARAMETER": tl.float32, "GRADIENT": tl.float32, "DIVISIBLE": True, "CAUTIOUS": True,
        },
    }  # fmt: skip
    for kernel, arguments in kernels.items():
        compiled = Compiled(kernel, {**pointers, **arguments}, num_warps=4)
        assert compiled.spilled_bytes == 0
        assert re.search(r"ld\.global\.v4\.b32|ld\.global\.v2\.b64", compiled.ptx)


# The table


def test_the_last_wave_counts() -> None:
    large, halved = tiles.SYMMETRIC[:2]
    assert halved.programs == 2
    full, one_more = (waves.launch_seconds(number, large, 512) for number in (132, 133))
    assert one_more > 1.7 * full
    assert waves.launch_seconds(264, halved, 512) < 1.6 * waves.launch_seconds(132, halved, 512)
    # 24 matrices of 512 rows: 144 large programs would be two rounds, the second nearly empty; 240 of half the size
    # are one.
    assert waves.symmetric_tile(512, 24, 512, torch.float16) == halved
    assert waves.product_tile(2560, 7040, 10, torch.float16) == tiles.PRODUCT[0]
    assert waves.symmetric_tile(512, 1, 512, torch.float16) == tiles.SYMMETRIC[-1]


@pytest.mark.parametrize(("name", "ranks", "gain"), [("150m", 1, 1.25), ("416m", 8, 1.15), ("3.1b", 1, 1.05)])
def test_tiles_by_waves_save_what_the_model_says(name: str, ranks: int, gain: float) -> None:
    from benchmarks.muon_parts import predicted
    from benchmarks.muon_parts.floors import Ladder

    ladder = Ladder.of(name)
    assert predicted.milliseconds(ladder, ranks, predicted.by_size) > gain * predicted.milliseconds(ladder, ranks)


def test_sums_are_made_in_one_order_whatever_the_tile() -> None:
    assert len({tile.block_k for tile in (*tiles.SYMMETRIC, *tiles.PRODUCT, *tiles.INTO_PARAMETERS)}) == 1


@pytest.mark.parametrize("side", [512, 1024, 1536, 2048, 2560, 4608])
def test_a_launch_has_eight_rounds_of_matrices(side: int) -> None:
    at_once = tiles.matrices_at_once(side, side)
    assert at_once == most_matrices_at_once(side), "the estimate of memory counts them too"
    assert at_once * tiles.tiles_of_triangle(side, tiles.SYMMETRIC[0]) >= 8 * tiles.NUM_PROCESSORS


def test_the_tiles_of_a_triangle_cover_it_once() -> None:
    for side, tile in [(300, tiles.Tile(64, 32, 32, 4, 2)), (64, tiles.Tile(64, 64, 32, 4, 2))]:
        ratio, rows = tile.block_m // tile.block_n, -(-side // tile.block_m)
        assert tiles.tiles_of_triangle(side, tile) == sum(ratio * (row + 1) for row in range(rows))
