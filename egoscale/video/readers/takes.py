"""A folder with a `takes.csv`: what `egoscale film` writes, and what a lab can write for its own recordings.

One line a take: `take_id, file, recording_id, participant_id, scene_id, task, narration, license`; further
columns are let alone. `file` is relative to the folder. An empty cell means unknown.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from egoscale.video.readers.clip import ClipMetadata, video_files

COLUMNS = ("take_id", "file", "recording_id", "participant_id", "scene_id", "task", "narration", "license")


def read(root: Path, source: str) -> Iterator[ClipMetadata]:
    """Every take of the table, and every file that the table forgot (not usable).

    Raises FileNotFoundError without a takes.csv, ValueError for a missing column, an empty or repeated
    take_id.
    """
    table = root / "takes.csv"
    if not table.is_file():
        raise FileNotFoundError(f"{table}: not there; a source with reader = 'takes' needs one")
    listed: set[Path] = set()
    seen: dict[str, int] = {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"{table}: no column {', '.join(missing)}; the columns are {', '.join(COLUMNS)}")
        for line, row in enumerate(rows, start=2):
            take = _cell(row, "take_id")
            relative = _cell(row, "file")
            if take is None or relative is None:
                raise ValueError(f"{table}: line {line} has no take_id or no file")
            if take in seen:
                raise ValueError(f"{table}: take_id {take!r} stands in lines {seen[take]} and {line}")
            seen[take] = line
            path = root / relative
            listed.add(path)
            yield ClipMetadata(
                name=take,
                path=path,
                recording_id=_cell(row, "recording_id") or take,
                participant_id=_cell(row, "participant_id"),
                scene_id=_cell(row, "scene_id"),
                task=_cell(row, "task"),
                narration=_cell(row, "narration"),
                license=_cell(row, "license"),
                provenance=f"takes.csv: {take}",
            )
    for path in video_files(root):
        if path not in listed:
            name = path.relative_to(root).as_posix()
            yield ClipMetadata(
                name=name, path=path, recording_id=name, provenance="folder", reason="not listed in takes.csv"
            )


def _cell(row: dict[str, str | None], column: str) -> str | None:
    return (row[column] or "").strip() or None
