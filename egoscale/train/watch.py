"""Ranks that watch themselves and each other: a hang is ended with every stack on disk, a slow rank is named.

A hang on one rank is a hang on all (they wait for it in a collective), so each rank has a watchdog of its own.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
import torch.distributed as dist

from egoscale.train.ranks import Ranks

HANG_EXIT_CODE = 86  # of a run that stood still and was ended; its last checkpoint is whole
STARTING_S = 1800.0  # patience until the first step is done: weights are read, kernels compiled, ranks waited for
GRACE_S = 5.0  # between a rank's stacks and its end, which takes the waiting ranks down: theirs come first
BACKSTOP_S = 20.0  # how long the C-level watchdog waits beyond the Python one, which needs the interpreter's lock
# A rank is slow when its own work takes this many times the median's: half as much again is far from the few per
# cent by which equal GPUs differ.
SLOW = 1.5


def stacks_file(out: Path, rank: int) -> Path:
    """Where a rank leaves its stacks."""
    return out / f"stacks-rank{rank}.txt"


class Watchdog:
    """Ends the process when `beat` has not been called for `timeout_s` (0 = never), after writing every stack.

    Until the first step is done it waits half an hour at least.

    Two clocks run: a Python thread, which also records the event, and `faulthandler`, which needs no interpreter
    and so works where C code holds its lock.
    """

    def __init__(self, out: Path, ranks: Ranks, timeout_s: float, event: Callable[..., None]) -> None:
        self.path, self.ranks, self.timeout_s, self.event = stacks_file(out, ranks.rank), ranks, timeout_s, event
        self._beaten, self._patience_s = time.monotonic(), max(timeout_s, STARTING_S)
        self._stop = threading.Event()
        self._file: TextIO | None = None
        self._thread: threading.Thread | None = None
        self.doing = "starting"

    def beat(self, doing: str, started: bool = True) -> None:
        """Life goes on; `doing` is what the report will say if this was the last. `started`: a step was done."""
        self._beaten, self.doing = time.monotonic(), doing
        if started:
            self._patience_s = self.timeout_s

    def __enter__(self) -> Watchdog:
        if self.timeout_s:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w")
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            written = os.fstat(self._file.fileno()).st_size
            self._file.close()
            if error is None or not written:  # stacks of a rank that did not end well are kept
                self.path.unlink(missing_ok=True)

    def _watch(self) -> None:
        assert self._file is not None
        pause = min(1.0, self.timeout_s / 10)
        while not self._stop.wait(pause):
            # Set back at every look: it goes off only when this thread itself gets no turn any more.
            faulthandler.dump_traceback_later(self._patience_s + BACKSTOP_S, exit=True, file=self._file)
            still = time.monotonic() - self._beaten
            if still > self._patience_s:
                self._end(still)

    def _end(self, still: float) -> None:
        assert self._file is not None
        self._file.write(f"rank {self.ranks.rank} stood still for {still:.1f} s while {self.doing}\n\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file, all_threads=True)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.event(
            "hang",
            rank=self.ranks.rank,
            doing=self.doing,
            seconds=round(still, 1),
            stacks=self.path.name,
        )
        time.sleep(GRACE_S)
        os._exit(HANG_EXIT_CODE)


def now(device: torch.device) -> Any:
    """Now, on the device's own clock where it has one: a GPU works later than it is told to."""
    if device.type != "cuda":
        return time.perf_counter()
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds(begun: Any, ended: Any) -> float:
    """Seconds between two `now`s of one device, which must have come by the second."""
    return float(ended - begun if isinstance(begun, float) else begun.elapsed_time(ended) / 1000)


class Stragglers:
    """Compares the ranks' own work: waiting for data, and the forward pass, which at stages 0 to 2 waits for nobody.

    (The whole step takes the same time on every rank, for all wait for the slowest.)
    """

    def __init__(self, ranks: Ranks, event: Callable[..., None]) -> None:
        self.ranks, self.event = ranks, event
        self._told: set[int] = set()

    def compare(self, step: int, data_s: float, forward_s: float) -> dict[str, float]:
        """Seconds a step of this rank since the last call -> the same numbers on every rank for the log: the largest
        over the median, and whose it is. A slow rank is an event, once."""
        if self.ranks.world_size == 1:
            return {}
        table: list[tuple[float, float]] = self.ranks.gathered((data_s, forward_s))
        numbers: dict[str, float] = {}
        for name, values in zip(("data", "forward"), zip(*table, strict=True), strict=True):
            # The lower median: of two ranks, the faster one is the measure of the other.
            middle = statistics.median_low(values)
            largest = max(values)
            rank, ratio = values.index(largest), largest / max(middle, 1e-6)
            numbers |= {f"{name}_s_median": middle, f"{name}_s_max": largest, f"{name}_slowest_rank": float(rank)}
            # Below a millisecond a ratio says nothing.
            if ratio > SLOW and largest - middle > 1e-3 and rank not in self._told:
                self._told.add(rank)
                self.event(
                    "straggler", step=step, rank=rank, what=name, seconds=largest, median=middle, ratio=round(ratio, 2)
                )
        return numbers


def preflight(ranks: Ranks, out: Path, event: Callable[..., None]) -> list[dict[str, Any]]:
    """What each rank stands on, before the first step: host, device, free memory, speed of a matrix product and of an
    all-reduce, free disk. One event; a rank whose product is under half of the median's is named in it.

    Takes about a third of a second. Returns a row a rank, on every rank.
    """
    device = ranks.device
    mine: dict[str, Any] = {
        "rank": ranks.rank,
        "host": os.environ.get("SLURMD_NODENAME") or os.uname().nodename,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "free_memory_gb": round(_free_memory(device) / 1e9, 2),
        "free_disk_gb": round(shutil.disk_usage(out).free / 1e9, 2),
        "matmul_tflops": round(_matmul_flops_per_s(device) / 1e12, 4),
        "allreduce_gb_per_s": round(_allreduce_bytes_per_s(ranks) / 1e9, 3),
    }
    rows: list[dict[str, Any]] = ranks.gathered(mine)
    middle = statistics.median(row["matmul_tflops"] for row in rows)
    slow = [row["rank"] for row in rows if row["matmul_tflops"] < middle / 2]
    event("preflight", ranks=rows, slow=slow)
    return rows


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else []:
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return float("nan")


def _matmul_flops_per_s(device: torch.device) -> float:
    from egoscale.train.throughput import gemm_flops_per_s

    return gemm_flops_per_s(torch.bfloat16 if device.type == "cuda" else torch.float32, seconds=0.05, device=device)


def _allreduce_bytes_per_s(ranks: Ranks, megabytes: int = 8) -> float:
    """Bytes of a tensor over the seconds that adding it up over all ranks takes; 0 for a lone rank."""
    if ranks.world_size == 1:
        return 0.0
    tensor = torch.zeros(megabytes * 2**18, device=ranks.device)
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        dist.all_reduce(tensor)
        tensor[0].item()  # waits for the device
        best = min(best, time.perf_counter() - begun)
    return megabytes * 2**20 / best
