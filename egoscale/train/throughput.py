"""How fast it goes, and against what: samples and frames per second, the share of a matrix multiplication's speed,
and of the device's peak.

The first bound is measured in the same process (same threads, same clock, same neighbours): an unknown device is no
problem and a busy machine does not flatter or blame the model. The second is what the maker promises, known for some
devices by name and never guessed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

TRAINING_FACTOR = 3.0  # forward + backward over forward alone: the backward pass multiplies by weights and by inputs


# Dense bf16 with fp32 sums (no sparsity) and gigabytes (1e9 bytes), as the makers' data sheets give them, by words of
# the name that CUDA or Slurm reports; the first that fits counts. An H100 by itself is the SXM part, an A100 the one of
# 80 GB, a GH200 the one of 96 GB.
DEVICES = (
    ("GB200", 2.5e15, 186),
    ("B200", 2.25e15, 180),
    ("GH200", 989e12, 96),
    ("H200 NVL", 835e12, 141),
    ("H200", 989e12, 141),
    ("H100 NVL", 835e12, 94),
    ("H100 PCIe", 756e12, 80),
    ("H100", 989e12, 80),
    ("H800", 989e12, 80),
    ("A100", 312e12, 80),
    ("A800", 312e12, 80),
    ("L40S", 362e12, 48),
    ("A40", 149.7e12, 48),
    ("A10", 125e12, 24),
    ("L4", 121e12, 24),
    ("RTX 6000 Ada", 364e12, 48),
    ("MI300X", 1307e12, 192),
)
MIG = re.compile(r"\b\d+g\.\d+gb\b")  # a part of a GPU, as NVIDIA names it: "3g.20gb"


def peak_flops_per_s(device_name: str) -> float | None:
    """The bf16 peak of a device by its name; None for one that is not in the table: no guess is made."""
    found = _device(device_name)
    return found[1] if found else None


def memory_gb(device_name: str) -> float | None:
    """Gigabytes of a device by its name, those of the name where it says fewer ("A100-SXM4-40GB"); None as above."""
    found = _device(device_name)
    if found is None:
        return None
    return min([float(found[2]), *(float(size) for size in re.findall(r"\b(\d+)GB\b", _plain(device_name)))])


def _device(name: str) -> tuple[str, float, int] | None:
    """The row of a device, whoever wrote its name: CUDA ("NVIDIA H100 PCIe"), NVML through Slurm ("nvidia_h100_pcie")
    or a person ("h100")."""
    plain = _plain(name)
    if MIG.search(plain.lower()):
        return None
    rows = ((row, re.escape(_plain(row[0]))) for row in DEVICES)
    return next((row for row, words in rows if re.search(rf"\b{words}\b", plain)), None)


def _plain(name: str) -> str:
    """In capitals, with spaces between words."""
    return re.sub(r"[_-]", " ", name).upper()


def gemm_flops_per_s(dtype: torch.dtype, seconds: float = 0.2, device: torch.device | None = None) -> float:
    """Floating-point operations per second of a large square matrix multiplication: the bound of a
    transformer.

    Best of the runs that fit into `seconds`. 768 on a CPU, large enough to be bound by arithmetic. On a GPU 8,192, and
    eight in a row: at 700 TFLOP/s a single product of 4,096 takes .2 ms, of which waiting for it would be a tenth.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, in_a_row = (8192, 8) if device.type == "cuda" else (768, 1)
    a = torch.randn(size, size, device=device).to(dtype)
    product = torch.empty_like(a)
    best, begun, runs = float("inf"), time.perf_counter(), 0
    while runs < 3 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        for _ in range(in_a_row):
            torch.matmul(a, a, out=product)
        product[0, 0].item()  # waits for the device
        if runs:  # the first run pays for warming up
            best = min(best, (time.perf_counter() - start) / in_a_row)
        runs += 1
    return 2.0 * size**3 / best


def mfu(flops_per_sample: float, samples_per_s: float, bound_flops_per_s: float) -> float:
    """Model FLOPs utilisation in [0, 1]: arithmetic the model needs (recomputation not counted) over the
    bound."""
    return flops_per_sample * samples_per_s / bound_flops_per_s


def gemm(precision: str) -> float:
    """`gemm_flops_per_s` of this process's device in the precision of a run's products."""
    return gemm_flops_per_s(torch.bfloat16 if precision == "bf16" else torch.float32)


def utilisation(forward_flops: float, samples_per_s: float, precision: str, bound: float = 0.0) -> dict[str, Any]:
    """What `samples_per_s` of one device come to, in model FLOPs (forward x 3; recomputation not counted).

    mfu: share of a matrix multiplication's speed, `bound` or measured now (`gemm`); mfu_of_peak: share of the device's
    bf16 peak, None where the device is unknown; device: its name.
    """
    cuda = torch.cuda.is_available()
    bound = bound or gemm(precision)
    name = torch.cuda.get_device_name() if cuda else "cpu"
    peak = peak_flops_per_s(name) if cuda else None
    flops = TRAINING_FACTOR * forward_flops
    return {
        "mfu": mfu(flops, samples_per_s, bound),
        "mfu_of_peak": mfu(flops, samples_per_s, peak) if peak else None,
        "gemm_flops_per_s": bound,
        "device": name if peak or not cuda else f"{name} (unknown device: no peak)",
    }


@dataclass
class Meter:
    """Seconds spent waiting for data and computing; the two shares of a training run that a user can act
    upon."""

    waiting_s: float = 0.0
    stepping_s: float = 0.0
    steps: int = 0
    forward_s: float = 0.0  # of stepping_s, in the forward pass

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.waiting_s += time.perf_counter() - begun

    @contextmanager
    def stepping(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.stepping_s += time.perf_counter() - begun
        self.steps += 1

    def add(self, other: Meter) -> None:
        """Count another interval in."""
        self.waiting_s += other.waiting_s
        self.stepping_s += other.stepping_s
        self.steps += other.steps
        self.forward_s += other.forward_s

    def own_seconds(self) -> tuple[float, float]:
        """Seconds a step of waiting for data and of the forward pass: what a rank spends without the others."""
        steps = max(1, self.steps)
        return self.waiting_s / steps, self.forward_s / steps

    def rates(self, batch_size: int, frames_per_sample: int = 0, tokens_per_frame: int = 0) -> dict[str, float]:
        """Global samples (and frames, and their tokens) per second, and the share of time spent waiting for data."""
        seconds = max(self.waiting_s + self.stepping_s, 1e-9)
        samples_per_s = self.steps * batch_size / seconds
        rates = {"samples_per_s": samples_per_s, "wait_fraction": self.waiting_s / seconds}
        if frames_per_sample:
            rates["frames_per_s"] = samples_per_s * frames_per_sample
        if tokens_per_frame:
            rates["tokens_per_s"] = samples_per_s * frames_per_sample * tokens_per_frame
        return rates
