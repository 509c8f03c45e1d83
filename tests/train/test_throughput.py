from __future__ import annotations

import time

import pytest
import torch

from egoscale.train.throughput import Meter, gemm_flops_per_s, mfu


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
