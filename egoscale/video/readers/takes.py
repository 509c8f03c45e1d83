"""A folder with a `takes.csv`: what `egoscale film` writes, and what a lab can write for its own recordings.

One line a take: `take_id, file, recording_id, participant_id, scene_id, task, narration, license`, all of them, and
any further column that `table` reads. `file` is relative to the folder. An empty cell means unknown.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from egoscale.video.readers import table

COLUMNS = ("take_id", "file", "recording_id", "participant_id", "scene_id", "task", "narration", "license")


def finds(root: Path) -> str | None:
    """The table, where there is one."""
    return "takes.csv" if (root / "takes.csv").is_file() else None


def notes(root: Path) -> list[str]:
    """The columns of the table that are not read."""
    note = table.unread(root / "takes.csv")
    return [note] if note else []


def read(root: Path, source: str) -> pl.LazyFrame:
    """Every take of the table, and every file that the table forgot (not usable).

    Raises FileNotFoundError without a takes.csv, ValueError for a missing column, an empty or repeated
    take_id.
    """
    file = root / "takes.csv"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not there; a source with reader = 'takes' needs one")
    rows = pl.scan_csv(file, infer_schema=False, row_index_name="line", row_index_offset=2)
    names = rows.collect_schema().names()
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise ValueError(f"{file}: no column {', '.join(missing)}; the columns are {', '.join(COLUMNS)}")
    cells = rows.select("line", *(pl.col(column).str.strip_chars() for column in ("take_id", "file")))
    empty = (pl.col("take_id").fill_null("") == "") | (pl.col("file").fill_null("") == "")
    for (line,) in cells.filter(empty).select("line").head(1).collect().iter_rows():
        raise ValueError(f"{file}: line {line} has no take_id or no file")
    twice = cells.group_by("take_id").agg(pl.col("line").sort()).filter(pl.col("line").list.len() > 1)
    for take, lines in twice.sort("take_id").head(1).collect().iter_rows():
        raise ValueError(f"{file}: take_id {take!r} stands in lines {' and '.join(map(str, lines))}")
    takes = table.listed(file).with_columns(
        recording_id=pl.col("recording_id"), provenance=pl.format("takes.csv: {}", "clip_id")
    )
    unnamed = table.with_unnamed(takes, root, file.name)
    listed = pl.col("reason").str.replace("^not named by", "not listed in")
    return unnamed.with_columns(reason=pl.when(pl.col("provenance") == "folder").then(listed).otherwise("reason"))
