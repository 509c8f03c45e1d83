"""Subsets on disk: a folder for each size and seed, and one table over all of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from egoscale.recipe import SubsetRecipe
from egoscale.video.catalog import Progress
from egoscale.video.subset import Draws, clip_hash, draw_subsets

AT_ONCE = 8  # subsets written in one reading of the selection: each buffers a row group, some 100 MB
MANIFEST, HELDOUT, SUMMARY, TABLE = "manifest.parquet", "heldout.parquet", "subset.json", "subsets.csv"
COLUMNS = (
    "axis", "hours_asked", "num_groups", "seed", "unique_hours", "hours_seen", "epochs", "num_steps", "num_clips",
    "num_recordings", "num_participants", "num_scenes", "num_tasks", "worst_share_error", "worst_source_share_error",
    "heldout_hours", "hash", "heldout_hash",
)  # fmt: skip


def write_subsets(
    selection: pl.DataFrame | pl.LazyFrame | Path,
    recipe: SubsetRecipe,
    out: Path,
    hours: Sequence[float] = (),
    seeds: Sequence[int] = (),
    groups: Sequence[int] = (),
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Draws every combination of hours, seeds (and numbers of scenes) into a folder of its own under `out`.

    What is asked for twice is drawn once.

    In each: manifest.parquet and heldout.parquet with the selection's columns, and subset.json, which comes last: a
    folder without it is not done. `out/subsets.csv` is the table over all that `out` holds, and is returned.

    Raises ValueError as `draw_subsets` and `write_draws` do, and where `out` holds subsets with another held-out set.
    """
    once = (tuple(dict.fromkeys(hours)), tuple(dict.fromkeys(seeds)), tuple(dict.fromkeys(groups)))
    draws = draw_subsets(selection, recipe, *once)
    folders = [out / folder_name(size) for size in draws.sizes]
    others = {
        file.parent.name: read_summary(file.parent)
        for file in sorted(out.glob(f"*/{SUMMARY}"))
        if file.parent not in folders
    }
    summaries = write_draws(draws, folders, progress, others)
    rows = {name: _row(summary) for name, summary in others.items()}
    rows |= {folder.name: _row(summary) for folder, summary in zip(folders, summaries, strict=True)}
    ordered = sorted(rows.items(), key=lambda row: (*(row[1][key] or 0 for key in COLUMNS[1:4]), row[0]))
    table = pl.DataFrame([{"folder": name, **row} for name, row in ordered], infer_schema_length=None)
    table.write_csv(part := out / f"{TABLE}.part")
    part.replace(out / TABLE)
    return table


def write_draws(
    draws: Draws,
    folders: Sequence[Path],
    progress: Progress | None = None,
    others: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Writes each size of `draws` into its folder and returns the summaries.

    The selection is read once for every eight sizes, and streamed: memory does not grow with the clips. Nothing that
    was there is replaced before all is written. `others`: summaries that must have the same held-out clips.

    Raises ValueError where two sizes would lie in one folder.
    """
    if twice := [folder for folder in folders if list(folders).count(folder) > 1]:
        raise ValueError(f"{twice[0]}: two of the sizes have this folder: hours, seeds and groups must differ by more")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(folders), AT_ONCE):
        _write_parts(draws, range(first, min(first + AT_ONCE, len(folders))), folders)
    heldout = _part(folders[0] / HELDOUT)
    heldout_hash = clip_hash(pl.scan_parquet(heldout))
    for name, summary in (others or {}).items():
        if summary["heldout_hash"] != heldout_hash:
            _discard(folders)
            raise ValueError(
                f"{folders[0].parent / name}: drawn from another selection or with other held-out rules: its held-out"
                " clips are not those of this draw, and sizes of one study share theirs; give another folder, or"
                " delete it"
            )
    for folder in folders[1:]:
        _same_file(heldout, _part(folder / HELDOUT))
    summaries: list[dict[str, Any]] = []
    for index, folder in enumerate(folders):
        summaries.append(draws.summary(index, pl.scan_parquet(_part(folder / MANIFEST)), heldout_hash))
        _part(folder / SUMMARY).write_text(json.dumps(summaries[-1], indent=1), encoding="utf-8")
        (folder / SUMMARY).unlink(missing_ok=True)  # there is none while the tables change
        for name in (MANIFEST, HELDOUT, SUMMARY):
            _part(folder / name).replace(folder / name)
        if progress is not None:
            progress(index + 1, len(folders), "subsets")
    return summaries


def read_summary(folder: Path) -> dict[str, Any]:
    """What subset.json says of a subset. Raises FileNotFoundError for a folder that is not done."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return summary


def folder_name(size: SubsetRecipe) -> str:
    """As in 2.5h-seed0, or 2.5h-40scenes-seed0 where scenes are drawn."""
    what = "participants" if "participant" in size.axis else "scenes"
    drawn = f"-{size.num_groups}{what}" if size.num_groups is not None else ""
    return f"{size.hours:.12g}h{drawn}-seed{size.seed}"


def _write_parts(draws: Draws, indices: Sequence[int], folders: Sequence[Path]) -> None:
    """Manifests of some sizes, and the held-out clips beside the first, in one reading of the selection."""
    marked = draws.marked(indices)
    marks = [f"drawn:{k}" for k in range(len(indices))]
    files = {mark: _part(folders[index] / MANIFEST) for mark, index in zip(marks, indices, strict=True)}
    if not indices[0]:
        files["held"] = _part(folders[0] / HELDOUT)
    # Statistics of row groups serve nobody who reads a manifest whole; without them, and with lz4 in place of zstd,
    # writing takes a quarter less time (measured on 10 million clips).
    sinks = [
        marked.filter(mark).drop("held", *marks).sink_parquet(file, compression="lz4", statistics=False, lazy=True)
        for mark, file in files.items()
    ]
    pl.collect_all(sinks, engine="streaming")


def _part(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")


def _discard(folders: Sequence[Path]) -> None:
    """What was written beside its place, and the folders that hold nothing else."""
    for folder in folders:
        for name in (MANIFEST, HELDOUT):
            _part(folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _same_file(source: Path, target: Path) -> None:
    """A second name for the file, or a copy where the disk knows no second names."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _row(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {column: summary.get(column) for column in COLUMNS}
