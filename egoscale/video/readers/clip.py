"""What a reader says about clips: the columns of the catalogue that a data set's own metadata decides."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import polars as pl

# A reader gives any of these columns; what its data set does not know is null. `clip_id` is unique within the source
# and does not change when the folder moves; the catalogue puts the source's name in front. `path` may go on through
# an archive as if it were a folder, and end in `?glob=...&fps=...` for a folder (or tar) of pictures. `start_s` is
# null for a clip that is a whole file, and a number, 0 too, for a piece of one. `duration_s`, `num_frames` and the
# like are what the metadata declare. `reason` tells why a clip cannot be used, where that is known before decoding.
# `original_*` tell of a copy which piece of which file it was made of.
METADATA_SCHEMA: dict[str, pl.DataType] = {
    "clip_id": pl.String(),
    "path": pl.String(),
    "source": pl.String(),
    "recording_id": pl.String(),
    "participant_id": pl.String(),
    "scene_id": pl.String(),
    "task": pl.String(),
    "narration": pl.String(),
    "device": pl.String(),
    "split": pl.String(),
    "start_s": pl.Float64(),
    "duration_s": pl.Float64(),
    "fps_num": pl.Int64(),
    "fps_den": pl.Int64(),
    "num_frames": pl.Int64(),
    "width_px": pl.Int64(),
    "height_px": pl.Int64(),
    "rotation_deg": pl.Int64(),
    "codec": pl.String(),
    "bytes": pl.Int64(),
    "license": pl.String(),
    "provenance": pl.String(),
    "reason": pl.String(),
    "original_path": pl.String(),
    "original_start_s": pl.Float64(),
    "original_sha256": pl.String(),
}
BATCH_CLIPS = 50_000


@dataclass(frozen=True)
class ClipMetadata:
    """One clip, for readers that go from file to file; `name` becomes its `clip_id`."""

    name: str
    path: Path
    recording_id: str
    participant_id: str | None = None
    scene_id: str | None = None
    task: str | None = None
    narration: str | None = None
    device: str | None = None
    split: str | None = None
    start_s: float | None = None
    duration_s: float | None = None
    fps_num: int | None = None
    fps_den: int | None = None
    num_frames: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    rotation_deg: int | None = None
    codec: str | None = None
    bytes: int | None = None
    license: str | None = None
    provenance: str | None = None
    reason: str | None = None


def clip_table(clips: Iterable[ClipMetadata]) -> pl.LazyFrame:
    """The rows of a reader that goes from file to file; batches, so that millions of clips stay out of Python."""
    columns = ["clip_id" if field.name == "name" else field.name for field in fields(ClipMetadata)]
    schema = {column: METADATA_SCHEMA[column] for column in columns}
    remaining = iter(clips)
    frames = [pl.DataFrame(schema=schema)]
    while batch := list(itertools.islice(remaining, BATCH_CLIPS)):
        rows = [tuple(_plain(getattr(clip, field.name)) for field in fields(ClipMetadata)) for clip in batch]
        frames.append(pl.DataFrame(rows, schema=schema, orient="row"))
    return pl.concat(frames).lazy()


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
