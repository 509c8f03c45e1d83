"""What becomes of damaged video: real files, truncated, with flipped bits, zeroed in part, renamed; probed and scored.

    OMP_NUM_THREADS=1 python benchmarks/damaged.py > benchmarks/damaged.md

Every tenth copy is whole: a neighbour that must come out as if nothing lay beside it. The damage is drawn with a fixed
seed. Exit code 1 where a copy ends neither as a usable clip nor as a row with a reason, or where a neighbour is lost.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from machine import machine

from egoscale.video.catalog import SCHEMA
from egoscale.video.scorers import LIMIT_S, probe_catalog, score_catalog
from egoscale.video.scores import open_catalog

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data"
MAX_BYTES = 150_000  # of a file that is copied: many kinds, each quickly read
SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif"}
WHOLE = "whole"
KINDS = ("truncated", "flipped", "zeroed", "renamed")


@dataclass(frozen=True)
class Copy:
    """One file of the experiment."""

    path: Path
    source: str
    kind: str


def small_files(real: Path = REAL) -> list[Path]:
    """Real files of video that are quickly read, and one that is empty, in order."""
    files = (path for path in real.rglob("*") if path.suffix in SUFFIXES and path.stat().st_size <= MAX_BYTES)
    return sorted(files)


def damaged_copies(files: Sequence[Path], out: Path, count: int, seed: int = 0) -> list[Copy]:
    """Writes `count` copies, every tenth whole, the others damaged in one of the four ways."""
    draw = random.Random(seed)
    copies = []
    for number in range(count):
        file = files[draw.randrange(len(files))]
        kind = WHOLE if number % 10 == 0 else KINDS[number % len(KINDS)]
        content, suffix = bytearray(file.read_bytes()), file.suffix
        if kind == "renamed":
            suffix = draw.choice([other for other in ("", ".txt", ".mp3", *sorted(SUFFIXES)) if other != suffix])
        elif kind != WHOLE and content:
            damage(content, kind, draw)
        path = out / f"{number:05d}-{kind}-{file.stem}{suffix}"
        path.write_bytes(content)
        copies.append(Copy(path, f"{file.parent.name}/{file.name}", kind))
    return copies


def damage(content: bytearray, kind: str, draw: random.Random) -> None:
    """In place. Half of the flips and zeroes strike the first or last 2,000 bytes, where headers and indices lie."""
    if kind == "truncated":
        del content[draw.randrange(len(content)) :]
        return
    begin = draw.randrange(len(content))
    if draw.random() < 0.5:
        begin = draw.choice([0, max(0, len(content) - 2000)]) + draw.randrange(min(2000, len(content)))
        begin = min(begin, len(content) - 1)
    if kind == "zeroed":
        length = min(len(content) - begin, int(2 ** draw.uniform(0, 14)))
        content[begin : begin + length] = bytes(length)
        return
    for _ in range(int(2 ** draw.uniform(0, 9))):
        at = min(begin + int(draw.expovariate(1 / 500)), len(content) - 1)
        content[at] ^= 1 << draw.randrange(8)


def catalogue(copies: Sequence[Copy], file: Path) -> None:
    """A catalogue of metadata alone."""
    rows = {
        "clip_id": [copy.path.name for copy in copies],
        "path": [str(copy.path) for copy in copies],
        "source": [copy.kind for copy in copies],
        "recording_id": [copy.path.name for copy in copies],
        "provenance": [copy.source for copy in copies],
        "start_s": [0.0] * len(copies),
        "first_frame": [0] * len(copies),
    }
    empty = {name: [None] * len(copies) for name in SCHEMA if name not in rows}
    pl.DataFrame({**rows, **empty}, schema_overrides=SCHEMA).select(*SCHEMA).write_parquet(file)


def outcome(file: Path, jobs: int, limit_s: float) -> pl.DataFrame:
    """The catalogue after probe and score, with `lost`: whether the decoder hung or took its process down."""
    probe_catalog(file, jobs=jobs, limit_s=limit_s)
    score_catalog(file, jobs=jobs, limit_s=limit_s)
    told = pl.coalesce("reason", "picture_reason", pl.lit(""))
    lost = told.str.contains("its process died|no sign of life")
    return open_catalog(file).with_columns(lost=lost).collect()


def wrong(found: pl.DataFrame, copies: Sequence[Copy]) -> list[str]:
    """What should not be, a line each."""
    rows = {row["clip_id"]: row for row in found.iter_rows(named=True)}
    lines = [f"{copy.path.name}: no row" for copy in copies if copy.path.name not in rows]
    whole: dict[str, tuple[object, ...]] = {}
    for copy in copies:
        row = rows.get(copy.path.name, {})
        if row.get("usable") is None or (not row["usable"] and len(row["reason"] or "") < 10):
            lines.append(f"{copy.path.name}: neither usable nor with a reason")
        if row.get("usable") and row["sharpness"] is None and not row["picture_reason"]:
            lines.append(f"{copy.path.name}: usable, and neither scored nor with a reason")
        if copy.kind == WHOLE:
            now = (row["usable"], row["num_frames"], row["mean_luma"], row["sharpness"], str(row["frame_hashes"]))
            if whole.setdefault(copy.source, now) != now or row["lost"]:
                lines.append(f"{copy.path.name}: a whole file that came out differently beside damaged ones")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--copies", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=25, help="how many of the reasons are shown")
    asked = parser.parse_args()
    files = small_files()
    with tempfile.TemporaryDirectory() as folder:
        copies = damaged_copies(files, Path(folder), asked.copies, asked.seed)
        catalogue(copies, Path(folder) / "catalog.parquet")
        began = time.monotonic()
        found = outcome(Path(folder) / "catalog.parquet", asked.jobs, asked.limit_s)
        seconds = time.monotonic() - began
        complaints = wrong(found, copies)
    print("# What becomes of damaged video\n")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("av", "numpy", "polars"))
    print(
        f"{datetime.date.today()}, {machine()}, {asked.jobs} processes, Python {platform.python_version()}, {versions}."
    )
    print("Command: `OMP_NUM_THREADS=1 python benchmarks/damaged.py > benchmarks/damaged.md`.\n")
    print(f"{len(copies)} copies of {len(files)} real files of at most {MAX_BYTES:,} bytes, probed and scored in")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{seconds:.0f} s; the largest worker took {memory:.2f} GiB.\n")
    table(found)
    print(f"\nNeither usable nor with a reason, or a neighbour lost: {len(complaints)}.")
    for line in complaints:
        print(f"- {line}")
    reasons(found, asked.show)
    sys.exit(bool(complaints))


def table(found: pl.DataFrame) -> None:
    print("| copies | number | usable | not usable, with a reason | of these: decoder hung or died | scored |")
    print("|---|---|---|---|---|---|")
    for kind in (WHOLE, *KINDS):
        rows = found.filter(source=kind)
        usable = int(rows["usable"].sum())
        scored = rows["sharpness"].is_not_null().sum()
        print(f"| {kind} | {rows.height} | {usable} | {rows.height - usable} | {rows['lost'].sum()} | {scored} |")


def reasons(found: pl.DataFrame, show: int) -> None:
    plain = pl.coalesce("reason", "picture_reason").str.replace_all(r"\d+", "N").alias("reason")
    told = found.select(plain).drop_nulls().group_by("reason").len().sort("len", "reason", descending=[True, False])
    print(f"\n## Reasons, numbers as N, the {min(show, told.height)} most frequent of {told.height}\n")
    for reason, count in told.head(show).iter_rows():
        print(f"- {count}: {reason}")


if __name__ == "__main__":
    main()
