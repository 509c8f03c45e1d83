"""What probe, score and near-duplicates cost, beside what they cannot do without, and how right the motion is.

    OMP_NUM_THREADS=1 python benchmarks/scores.py > benchmarks/scores.md

One process. Speeds are of the processor, in frames of video (30 a second), median of repeats; ways that are compared
take turns on the same 20 real head-mounted clips.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import argparse
import datetime
import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
from machine import machine
from numpy.typing import NDArray

from egoscale.video.decode import open_video
from egoscale.video.duplicates import near_duplicates
from egoscale.video.motion import motion_between
from egoscale.video.probe import probe_file
from egoscale.video.score import score_clip
from egoscale.video.workers import each

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data" / "ego"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--hashes", type=int, help="only the near-duplicates, of clips with so many hashes")
    asked = parser.parse_args()
    if asked.hashes:
        print(duplicates(asked.clips, asked.hashes))
        return
    print("# What probe, score and near-duplicates cost\n")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("av", "numpy", "polars"))
    print(f"{datetime.date.today()}, {machine()}, Python {platform.python_version()}, {versions}.")
    print("Command: `OMP_NUM_THREADS=1 python benchmarks/scores.py > benchmarks/scores.md`.\n")
    speeds(sorted((REAL / "captaincook4d").glob("*.mp4")), asked.repeats)
    pans()
    print("\n## Near-duplicates: 1 % of clips are copies with the bits turned that a slight crop turns\n")
    print("| clips | hashes each | clock, s | processor, s | copies found | wrong pairs | peak memory, GiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for hashes in (5, 20):
        # A process of its own: memory is its peak.
        command = [sys.executable, __file__, "--clips", str(asked.clips), "--hashes", str(hashes)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)
    overhead()


# --- speed --------------------------------------------------------------------------------------------------


def speeds(clips: list[Path], repeats: int) -> None:
    ways: dict[str, Callable[[Path], object]] = {
        "decode every frame": lambda path: decoded(path, 1),
        "probe": probe_file,
        "decode 5 frames a second": lambda path: decoded(path, 6),
        "score": scored,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, work in ways.items():
            began = time.process_time()
            for clip in clips:
                work(clip)
            seconds[way].append(time.process_time() - began)
    frames = 150 * len(clips)
    print(f"## {len(clips)} clips of 640x360, h264, {frames} frames\n")
    print("| way | frames/s | times real time |\n|---|---|---|")
    for way in ways:
        speed = frames / median(seconds[way])
        print(f"| {way} | {speed:,.0f} | {speed / 30:.0f} |")
    luma = np.random.default_rng(0).normal(128, 40, (33, 90, 160)).astype(np.float32)
    began = time.process_time()
    for _ in range(10):
        motion_between(luma)
    pairs = 320 / (time.process_time() - began)
    print(f"| of these, motion between frames 160x90, five a second | {pairs * 6:,.0f} | {pairs / 5:.0f} |")


def decoded(path: Path, step: int) -> None:
    with open_video(path) as video:
        for begin in range(0, 150, 30 * step):
            video.frames(range(begin, min(150, begin + 30 * step), step))


def scored(path: Path) -> None:
    with open_video(path) as video:
        score_clip(video, 0, 150, 30.0)


# --- motion -------------------------------------------------------------------------------------------------


def pans() -> None:
    """A real picture, 1280x720, seen through a window of 960x540 that moves by known fractions of its width."""
    with open_video(REAL / "cerd_pour_water" / "pour_water_02_1fps.mp4") as video:
        pictures = video.frames([1, 3, 5, 7, 9]) @ np.array([0.299, 0.587, 0.114])
    print("\n## Motion of a real picture that is moved, 5 pictures in 4 directions\n")
    print("| moved, picture widths | found, median | error, median | error, largest |\n|---|---|---|---|")
    for moved in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        found = []
        for picture in pictures:
            for right, down in ((1, 0), (0.8, 0.6), (0.8, -0.6), (-1, 0)):
                places = [(90 + side * down * moved * 480, 160 + side * right * moved * 480) for side in (-1, 1)]
                luma = np.stack([window(picture, *place) for place in places]).astype(np.float32)
                found.append(motion_between(luma).camera[0])
        error = np.abs(np.array(found) / moved - 1)
        print(f"| {moved} | {np.median(found):.4f} | {100 * np.median(error):.1f} % | {100 * error.max():.1f} % |")


def window(picture: NDArray[np.float64], top: float, left: float) -> NDArray[np.float64]:
    """Means over 6 x 6 pixels of 540 x 960, between pixels bilinear: [90, 160]."""
    row, column = int(np.floor(top)), int(np.floor(left))
    down, right = top - row, left - column
    part = np.pad(picture, 100, mode="edge")[row + 100 : row + 641, column + 100 : column + 1061]
    part = part[:-1] * (1 - down) + part[1:] * down
    part = part[:, :-1] * (1 - right) + part[:, 1:] * right
    means: NDArray[np.float64] = part.reshape(90, 6, 160, 6).mean((1, 3))
    return means


# --- near-duplicates ----------------------------------------------------------------------------------------


def duplicates(clips: int, hashes: int) -> str:
    """A row of the table. Seconds that follow each other differ in ten bits, as they do in real clips."""
    import resource

    draw = np.random.default_rng(0)
    frames = np.empty((clips, hashes), np.uint64)
    frames[:, 0] = draw.integers(1, 2**64, clips, dtype=np.uint64)
    for second in range(1, hashes):
        frames[:, second] = turned(frames[:, second - 1], np.full(64, 10 / 64), draw)
    whole = draw.integers(1, 2**64, clips, dtype=np.uint64)
    copies = clips // 100
    of = draw.choice(clips // 2, copies, replace=False)
    at = clips // 2 + draw.choice(clips // 2, copies, replace=False)
    crop = np.linspace(0.04, 0.12, 64)  # five bits, more of the high frequencies
    frames[at], whole[at] = turned(frames[of], crop, draw), turned(whole[of], crop, draw)
    ids = pl.Series("clip_id", [f"source/clip-{number:08d}" for number in range(clips)])
    lists = pl.Series("frame_hashes", frames.reshape(-1)).reshape((clips, hashes)).cast(pl.List(pl.UInt64))
    table = pl.DataFrame([ids, lists, pl.Series("clip_hash", whole)])
    del frames, lists
    clock, processor = time.monotonic(), time.process_time()
    found = near_duplicates(table.lazy())
    clock, processor = time.monotonic() - clock, time.process_time() - processor
    groups = dict(found.iter_rows())
    right = sum(groups.get(ids[int(b)]) == ids[int(a)] for a, b in zip(of, at, strict=True))
    wrong = found.filter(pl.col("clip_id") != pl.col("duplicate_group")).height - right
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    times = f"{clock:.1f} | {processor:.1f}"
    return f"| {clips:,} | {hashes} | {times} | {100 * right / copies:.2f} % | {wrong} | {memory:.1f} |"


def turned(hashes: NDArray[np.uint64], chance: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.uint64]:
    """Hashes with each bit turned with its own chance."""
    result = hashes.copy()
    for bit in range(64):
        result ^= (draw.random(hashes.shape, np.float32) < chance[bit]).astype(np.uint64) << np.uint64(bit)
    return result


# --- workers ------------------------------------------------------------------------------------------------


def overhead() -> None:
    began = time.monotonic()
    list(each(os.path.exists, ["x"]))
    start = time.monotonic() - began
    began = time.monotonic()
    list(each(os.path.exists, ["x"] * 5000))
    items = 5000 / (time.monotonic() - began - start)
    print(f"\nA worker process starts in {start:.2f} s and takes {items:,.0f} items a second that cost nothing.")


if __name__ == "__main__":
    main()
