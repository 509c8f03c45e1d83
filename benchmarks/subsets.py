"""How long it takes to select from ten million clips, to draw nested subsets of them, and in how much memory.

    python benchmarks/subsets.py > benchmarks/subsets.md

The catalogue is made up (`made_up_catalog.py`; once, not timed). Every measurement is a process of its own, so that
its peak memory is its own; seconds are medians of repeats by the clock, with those of the processor beside them.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
from machine import machine
from made_up_catalog import CLIPS, write_catalog

from egoscale.recipe import SelectRecipe, SubsetRecipe
from egoscale.video.datasheet import write_datasheet
from egoscale.video.scores import open_catalog
from egoscale.video.select import write_selection
from egoscale.video.subset_files import write_subsets

HOLDOUT = {"holdout_participants": 0.05, "holdout_scenes": 0.05}
SIZES = 6  # each twice the one before; the largest takes seven tenths of the hours


def select(folder: Path, out: Path) -> dict[str, Any]:
    """All rules of the default recipe; selection.parquet with every column, and the ledger."""
    ledger = write_selection(open_catalog(folder), SelectRecipe(), out)
    kept = [ledger["kept"][source] for source in ledger["kept"]]
    return {"clips": sum(total["clips"] for total in kept), "hours": sum(total["hours"] for total in kept)}


def datasheet(folder: Path, out: Path) -> dict[str, Any]:
    """The page without pictures (the clips are made up)."""
    ledger = json.loads((folder / "selection" / "ledger.json").read_text())
    out.mkdir()
    page = write_datasheet(folder / "selection" / "selection.parquet", ledger, out / "sheet.html", num_thumbnails=0)
    return {"page_kib": page.stat().st_size / 1024}


def copy(folder: Path, out: Path) -> dict[str, Any]:
    """The limit: polars reads the selection and writes it once, undecided."""
    out.mkdir()
    clips = pl.scan_parquet(folder / "selection" / "selection.parquet").filter("selected")
    clips.sink_parquet(out / "copy.parquet", compression="lz4", statistics=False)
    return {"clips": pl.scan_parquet(out / "copy.parquet").select(pl.len()).collect().item()}


def drawn(folder: Path, out: Path, seeds: int = 1, **keys: Any) -> dict[str, Any]:
    recipe = SubsetRecipe(hours=1, **{**HOLDOUT, **keys})
    hours = json.loads((folder / "sizes.json").read_text())
    table = write_subsets(folder / "selection" / "selection.parquet", recipe, out, hours, range(seeds))
    largest = table.row(-1, named=True)
    return {
        "hours": hours,
        "clips": int(table["num_clips"].sum()),
        "hashes": table["hash"].to_list(),
        "share_error": [table["worst_share_error"].max(), table["worst_source_share_error"].max()],
        "largest": {key: largest[key] for key in ("unique_hours", "num_clips", "num_participants", "num_scenes")},
        "mib": sum(file.stat().st_size for file in out.rglob("manifest.parquet")) / 2**20,
    }


def scenes(folder: Path, out: Path) -> dict[str, Any]:
    recipe = SubsetRecipe(hours=500, axis="scenes", num_groups=1, min_group_hours=0.5, **HOLDOUT)
    table = write_subsets(folder / "selection" / "selection.parquet", recipe, out, groups=[1000, 2000, 4000])
    return {"clips": int(table["num_clips"].sum()), "hashes": table["hash"].to_list()}


WORK: dict[str, tuple[str, Callable[[Path, Path], dict[str, Any]]]] = {
    "select": ("`select`: ten million clips judged and written, with the ledger", select),
    "datasheet": ("datasheet of that selection, without pictures", datasheet),
    "copy": ("limit: polars copies the selected clips once", copy),
    "six": (
        "**six nested subsets, stratified by source x scene**",
        lambda folder, out: drawn(folder, out, stratify=("source", "scene_id"), mixture="nested"),
    ),
    "six-by-task": (
        "six, by source x task (a task a clip: every recording is cut into strata)",
        lambda folder, out: drawn(folder, out, stratify=("source", "task"), mixture="nested"),
    ),
    "six-by-participant": (
        "six, whole participants, by source",
        lambda folder, out: drawn(folder, out, unit="participant", stratify=("source",)),
    ),
    "three-seeds": (
        "six sizes x three seeds, by source x scene",
        lambda folder, out: drawn(folder, out, seeds=3, stratify=("source", "scene_id"), mixture="nested"),
    ),
    "scenes": ("three numbers of scenes (1,000, 2,000, 4,000) at 500 hours", scenes),
}


def once(name: str, folder: Path) -> None:
    """One measurement, in this process; prints a line of JSON."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        out = Path(temporary) / "out"
        before = used_s()
        start = time.perf_counter()
        said = WORK[name][1](folder, out)
        seconds = time.perf_counter() - start
        if name == "select" and not (folder / "selection").exists():
            shutil.copytree(out, folder / "selection")
        if name == "six":
            said["nested"] = nested(out)
    peak = peak_gib()
    print(json.dumps({"seconds": seconds, "processor_s": used_s() - before, "peak_gib": peak, **said}))


def nested(out: Path) -> bool:
    """Whether each manifest holds the one before it, clip by clip."""
    folders = sorted(out.glob("*h-seed0"), key=lambda folder: float(folder.name.split("h-")[0]))
    ids = [pl.scan_parquet(folder / "manifest.parquet").select("clip_id") for folder in folders]
    outside = [
        small.join(large, on="clip_id", how="anti").select(pl.len()).collect(engine="streaming").item()
        for small, large in itertools.pairwise(ids)
    ]
    return not any(outside)


def peak_gib() -> float:
    """The most memory this process has held (`ru_maxrss` of a child starts at its parent's)."""
    held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(held.split()[1]) / 2**20


def used_s() -> float:
    """Seconds of all cores that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measured(name: str, folder: Path, threads: int | None = None) -> dict[str, Any]:
    environment = {**os.environ, **({"POLARS_MAX_THREADS": str(threads)} if threads else {})}
    command = [sys.executable, __file__, "--folder", str(folder), "--once", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where the made-up catalogue is kept; else a temporary one.")
    parser.add_argument("--once", choices=WORK, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        once(asked.once, asked.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        report(asked.folder or Path(temporary), asked.clips, asked.repeats)


def report(folder: Path, clips: int, repeats: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "selection", ignore_errors=True)
    if not (folder / "catalog.parquet").exists():
        write_catalog(folder / "catalog.parquet", clips)
    made = pl.scan_parquet(folder / "catalog.parquet").select(
        pl.len(), *(pl.col(name).n_unique() for name in ("source", "recording_id", "participant_id", "scene_id"))
    )
    counts = made.collect(engine="streaming").row(0)
    runs = {"select": [measured("select", folder) for _ in range(repeats)]}
    hours = runs["select"][0]["hours"]
    (folder / "sizes.json").write_text(json.dumps([float(f"{0.7 * hours / 2**k:.3g}") for k in range(SIZES)][::-1]))
    names = [name for name in WORK if name != "scenes" or clips >= CLIPS]  # a smaller one has no such scenes
    for name in names:
        runs.setdefault(name, [measured(name, folder) for _ in range(repeats)])
    print("# Selecting and drawing subsets from ten million clips\n")
    print(f"{datetime.date.today()}, {machine()} at the end. {versions()}.")
    print("Command: `python benchmarks/subsets.py > benchmarks/subsets.md`. Each row is the median of", repeats)
    print("processes; peak memory is the highest of them. Everything is written to disk: Parquet with all columns.\n")
    print(f"The made-up catalogue: {counts[0]:,} clips, {counts[1]} sources, {counts[3]:,} participants, {counts[4]:,}")
    print(f"scenes; {runs['select'][0]['clips']:,} clips pass, {hours:,.0f} unique hours.")
    print("Sizes:", ", ".join(f"{size:,.6g}" for size in runs["six"][0]["hours"]), "hours.\n")
    print("| what | clock, s | processor, s | peak, GiB | clips written |\n|---|---|---|---|---|")
    for name in names:
        words, _ = WORK[name]
        clock, processor = (median(run[key] for run in runs[name]) for key in ("seconds", "processor_s"))
        peak = max(run["peak_gib"] for run in runs[name])
        written = f"{runs[name][0]['clips']:,}" if "clips" in runs[name][0] else ""
        print(f"| {words} | {clock:.1f} | {processor:.1f} | {peak:.2f} | {written} |")
    six = runs["six"][0]
    alone = measured("six", folder, threads=1)
    same = all(run["hashes"] == six["hashes"] for run in (*runs["six"], alone))
    held = ", ".join(
        f"{value:,.6g} {key.replace('num_', '').replace('_', ' ')}" for key, value in six["largest"].items()
    )
    print("\nSix by source x scene: nested, checked clip by clip:", "yes;" if six["nested"] else "NO;")
    print("hashes equal over all repeats and with one thread (`POLARS_MAX_THREADS=1`):", "yes." if same else "NO.")
    print(f"Worst share error of a stratum {six['share_error'][0]:.2g}, of a source {six['share_error'][1]:.2g}.")
    print(f"The largest holds {held}. The six manifests are {six['mib']:,.0f} MiB.")
    print("Aimed at: under 20 s in all, under 4 GiB.")


def versions() -> str:
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("polars", "numpy"))
    return f"Python {platform.python_version()}, {packages}"


if __name__ == "__main__":
    main()
