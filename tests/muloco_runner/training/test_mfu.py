import pytest
import torch

from muloco_runner.training.mfu import peak_flops, peak_flops_by_name, peak_memory_bytes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 311.9e12),
        ("NVIDIA RTX A1000", None),  # no A100
        ("NVIDIA L40S", 362e12),
        ("Some other device", None),
    ],
)
def test_a_devices_peak_is_found_by_the_values_of_its_name(name: str, expected: float | None) -> None:
    assert peak_flops_by_name(name, "bfloat16") == expected


def test_float32_has_its_own_peak_and_tf32_half_of_bfloat16s() -> None:
    assert peak_flops_by_name("NVIDIA H100 80GB HBM3", "float32") == 66.9e12
    assert peak_flops_by_name("NVIDIA H100 80GB HBM3", "float32", allow_tf32=True) == 989.4e12 / 2


def test_a_cpu_has_no_stated_peak_but_a_memory() -> None:
    cpu = torch.device("cpu")
    assert peak_flops(cpu, "float32") is None
    # A process that has loaded torch holds more than 64 MB and less than 64 GB: the unit is bytes.
    assert 2**26 < peak_memory_bytes(cpu) < 2**36
