"""How fast a catalogue of ten million clips is built from metadata, and in how much memory.

    python -m benchmarks.catalog FOLDER > benchmarks/catalog.md

FOLDER gets some 4 GB: the made-up tables (`made_up_catalog.py`; kept, and not made twice) and what is built of them.
Every measurement is a process of its own; seconds by the clock and of the processor are medians over the repeats,
memory is the largest peak of any. Beside the build stands what it cannot do without, measured in the same run: polars
alone reads the same tables and writes what it read, in the order in which it comes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import polars as pl

from benchmarks.made_up_catalog import CLIPS, sources, write_tables
from egoscale.recipe import SourceSpec
from egoscale.video.catalog import write_catalog
from egoscale.video.hours import catalog_info

ROOT = Path(__file__).resolve().parents[1]
ONE = "one-source"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--step", choices=STEPS, help="one measurement, in this process")
    asked = parser.parse_args()
    if asked.step:
        measure(STEPS[asked.step], asked.folder)
        return
    write_tables(asked.folder / "tables", asked.clips)
    write_shuffled(asked.folder / ONE, asked.clips)
    found = {step: [in_process(asked.folder, step) for _ in range(asked.repeats)] for step in STEPS}
    report(asked.folder, found, asked.repeats)


def write_shuffled(folder: Path, clips: int) -> None:
    """All clips in one table, in no order: what is worst for sorting."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "source-00.parquet").exists():
        for _, table in sources(clips, num_sources=1):
            table.sample(fraction=1.0, shuffle=True, seed=0).write_parquet(folder / "source-00.parquet")


# --- what is measured ---------------------------------------------------------------------------------------


def build(folder: Path) -> None:
    write_catalog(specs(folder / "tables"), folder / "built" / "catalog.parquet", probe="none")


def build_one(folder: Path) -> None:
    write_catalog(specs(folder / ONE), folder / "built" / "one.parquet", probe="none")


def copy(folder: Path) -> None:
    """What reading and writing alone cost: every table scanned, as text where it is text, and written as Parquet."""
    out = folder / "built" / "copy"
    out.mkdir(parents=True, exist_ok=True)
    for table in sorted((folder / "tables").iterdir()):
        readers: dict[str, Callable[[Path], pl.LazyFrame]] = {
            ".parquet": pl.scan_parquet,
            ".csv": lambda file: pl.scan_csv(file, infer_schema=False),
            ".jsonl": pl.scan_ndjson,
        }
        readers[table.suffix](table).sink_parquet(out / f"{table.name}.parquet")


def info(folder: Path) -> None:
    catalog_info(pl.scan_parquet(folder / "built" / "catalog.parquet"))


STEPS: dict[str, Callable[[Path], None]] = {"build": build, "copy": copy, "info": info, "build-one": build_one}
SAID = {
    "build": "`catalog build --probe none`, 30 tables",
    "copy": "polars alone: the same tables read and written, unsorted, unchecked",
    "info": "`catalog info` of it",
    "build-one": "`catalog build --probe none`, all clips in one Parquet table, shuffled",
}


def specs(folder: Path) -> list[SourceSpec]:
    return [SourceSpec(path=str(table)) for table in sorted(folder.iterdir())]


def measure(step: Callable[[Path], None], folder: Path) -> None:
    begin = time.perf_counter()
    step(folder)
    clock_s = time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss, which a process takes over from the one that started it.
    peak_kib = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    print(json.dumps({"clock_s": clock_s, "cpu_s": used.ru_utime + used.ru_stime, "peak_gib": peak_kib / 2**20}))


def in_process(folder: Path, step: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.catalog", str(folder), "--step", step]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


# --- what is told -------------------------------------------------------------------------------------------


def report(folder: Path, found: dict[str, list[dict[str, float]]], repeats: int) -> None:
    catalog = pl.scan_parquet(folder / "built" / "catalog.parquet")
    clips, hours, num_sources, people, scenes = (
        catalog.select(
            pl.len(),
            pl.col("duration_s").sum() / 3600,
            *(pl.col(column).n_unique() for column in ("source", "participant_id", "scene_id")),
        )
        .collect(engine="streaming")
        .row(0)
    )
    size = {name: sum(file.stat().st_size for file in (folder / name).iterdir()) / 2**20 for name in ("tables", ONE)}
    written = (folder / "built" / "catalog.parquet").stat().st_size / 2**20
    print("# How fast ten million clips are catalogued from metadata\n")
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}."
        f" Python {platform.python_version()}, polars {pl.__version__}."
    )
    print("Command: `python -m benchmarks.catalog FOLDER > benchmarks/catalog.md`.")
    if os.getloadavg()[0] > (os.cpu_count() or 1) + 2:
        print("Other work had most of the cores: processor seconds are what it takes, the clock what it took then.")
    print()
    print(
        f"Made-up metadata: {clips:,} clips, {hours:,.0f} h, {num_sources} sources of very different size,"
        f" {people:,} participants, {scenes:,} scenes, in 30 tables that are in turn Parquet, CSV and JSON lines"
        f" ({size['tables']:,.0f} MiB). The catalogue has {written:,.0f} MiB, sorted by clip id and checked for ids"
        f" that stand twice. Medians of {repeats} processes; memory is the largest peak.\n"
    )
    print("| what | clock, s | processor, s | clips/s by the clock | peak memory, GiB |")
    print("|---|---|---|---|---|")
    for step, runs in found.items():
        clock_s, cpu_s = (median(run[key] for run in runs) for key in ("clock_s", "cpu_s"))
        peak = max(run["peak_gib"] for run in runs)
        print(f"| {SAID[step]} | {clock_s:.1f} | {cpu_s:.1f} | {clips / clock_s:,.0f} | {peak:.2f} |")
    ratio = [median(run["cpu_s"] for run in found[step]) for step in ("build", "copy")]
    print(
        f"\nThe build takes {ratio[0] / ratio[1]:.2f} times the processor seconds of polars alone. Aimed at: under"
        " 120 s and under 4 GiB. Clips are sorted a million at a time: memory does not grow with their number."
    )


if __name__ == "__main__":
    main()
