from __future__ import annotations

import time

import pytest
import torch

from egoscale.train.throughput import Meter, gemm_flops_per_s, memory_gb, mfu, peak_flops_per_s, utilisation


def test_bound_and_utilisation():
    torch.set_num_threads(1)
    bound = gemm_flops_per_s(torch.float32, seconds=0.05)
    assert 1e9 < bound < 1e15
    assert mfu(bound / 100, 25, bound) == pytest.approx(0.25)


def test_meter():
    meter = Meter()
    for _ in range(2):
        with meter.waiting():
            time.sleep(0.03)
        with meter.stepping():
            time.sleep(0.01)
    rates = meter.rates(10, frames_per_sample=3)
    assert rates["wait_fraction"] == pytest.approx(0.75, abs=0.1)
    assert rates["samples_per_s"] == pytest.approx(20 / 0.08, rel=0.25)
    assert rates["frames_per_s"] == 3 * rates["samples_per_s"]


@pytest.mark.parametrize(
    ("name", "peak", "memory"),
    [
        ("NVIDIA H200", 989e12, 141),
        ("NVIDIA H100 80GB HBM3", 989e12, 80),
        ("NVIDIA H100 PCIe", 756e12, 80),
        ("NVIDIA A100-SXM4-80GB", 312e12, 80),
        ("NVIDIA A100-SXM4-40GB", 312e12, 40),
        ("NVIDIA A10G", None, None),
        ("NVIDIA L40S", 362e12, 48),
        ("NVIDIA L4", 121e12, 24),
        ("NVIDIA GH200 480GB", 989e12, 96),  # the name counts the processor's
        ("Some Accelerator 9000", None, None),
        # As Slurm calls them, by hand or by NVML.
        ("h100", 989e12, 80),
        ("NVIDIA_H100_80GB_HBM3", 989e12, 80),
        ("nvidia_h100_pcie", 756e12, 80),
        ("nvidia_a100-sxm4-80gb", 312e12, 80),
        ("nvidia_rtx_6000_ada_generation", 364e12, 48),
        ("nvidia_a100_3g.20gb", None, None),  # a part of one
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None, None),
    ],
)
def test_peaks_and_memory_by_name_and_no_guess(name, peak, memory):
    assert (peak_flops_per_s(name), memory_gb(name)) == (peak, memory)


def test_utilisation_on_this_device():
    found = utilisation(1e6, 100.0, "fp32")
    assert found["mfu"] == pytest.approx(3e8 / found["gemm_flops_per_s"])
    if not torch.cuda.is_available():
        assert found["device"] == "cpu" and found["mfu_of_peak"] is None
