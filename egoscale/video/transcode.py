"""Copies of clips at training size: the picture a model sees, with key frames close together.

A copy is the centre square of the clip, averaged to `size_px` by the arithmetic that the loader itself uses
(`egoscale.video.picture.square`), so a loader that asks for that size gets the copy's own pixels, and one that asks
for less averages them further, which also averages the encoder's noise away: a model of 64 px sees a copy of 256 px at
41 dB, one of 64 px at 33 dB (`benchmarks/transcode.md`). What lies outside of the square no model of this package sees,
and it would be 44 % of a 16:9 picture. A clip that is smaller keeps its size: nothing is enlarged. A clip that is a
part of a file becomes a file of its own. Frames keep their times: even ones as steps of the frame rate, uneven ones by
their time stamps.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl

from egoscale.video.copies import FinishedCopies, asked_for, copy_name, gather, sweep, table_file
from egoscale.video.copy_clip import CopyJob, CopySettings, copy_clip
from egoscale.video.on_disk import write_json
from egoscale.video.scores import Shard, open_catalog
from egoscale.video.shards import shard_of
from egoscale.video.workers import Lost, each

Progress = Callable[[int, int, str], None]

LIMIT_S = 300.0  # a decoder that gives no PIECE_FRAMES in five minutes hangs
# Of a frame at CRF 20 and of a key frame on top, rather too many: real kitchens at 256 px and 30 fps took 0.19 at GOP
# 250, 0.24 at 12 and 0.61 at 1; at GOP 12 also 0.38 at 128 px, and 0.77 at 5 fps, where frames differ more.
BITS_PER_PIXEL, BITS_PER_KEY_PIXEL = 0.24, 0.60


@dataclass(frozen=True)
class Transcoded:
    """What a run did: clips of its shard, and the table of all shards where the others are done too."""

    copied: int
    failed: int
    found: int  # of both together: what an earlier run had done
    bytes: int
    table: Path | None
    missing: tuple[str, ...]  # parts of other shards that the table waits for


def transcode(
    table: Path,
    out: Path,
    settings: CopySettings | None = None,
    jobs: int = 1,
    shard: Shard | None = None,
    limit_s: float | None = LIMIT_S,
    progress: Progress | None = None,
) -> Transcoded:
    """Copies the selected clips of a selection, or the usable ones of a catalogue; see `copies` for what `out` holds.

    A run that was killed goes on with the clip it was at. A clip that fails is a row with a reason; a run that begins
    when all was done tries the failed ones again.

    Args:
        jobs: clips at once, each in a process of its own with one thread.
        shard: clips of one file fall into one shard.
        limit_s: seconds without a frame after which a decoder is taken to hang.

    Raises:
        FileNotFoundError: no such table.
        ValueError: a table without clips to copy, a folder with copies of other settings, or a disk that by an estimate
            is too small for the copies.
        BlockingIOError: another process copies this shard.
        OSError: the disk is full.
    """
    settings, shard = settings or CopySettings(), shard or Shard()
    table = table_file(table)
    wanted = _wanted(table, shard.count)
    out = out.absolute()
    _settle(out, settings)
    mine = wanted.filter(shard=shard.index)
    with FinishedCopies(out, shard, mine["name"]) as finished:
        _check_disk(out, wanted.join(finished.names(of_all=True), on="name", how="anti"), settings)
        waiting = mine.join(finished.names(), on="name", how="anti", maintain_order="left")
        sweep(out, waiting["name"])
        found = mine.height - waiting.height
        for done, (job, copy) in enumerate(_copies(waiting, out, settings, jobs, limit_s), start=found + 1):
            finished.add({"clip_id": job.clip_id, "name": job.name, **copy})
            if progress is not None:
                progress(done, mine.height, "clips")
        part = finished.close()
    path, missing = gather(table, out, wanted, shard.count, f"copy at {settings}")
    failed = int(part["reason"].is_not_null().sum())
    return Transcoded(part.height - failed, failed, found, int(part["bytes"].sum()), path, tuple(missing))


def estimated_bytes(num_frames: int, settings: CopySettings) -> int:
    """Bytes of so many frames, rather too many; CRF 6 less doubles them."""
    bits = BITS_PER_PIXEL + BITS_PER_KEY_PIXEL / settings.gop_frames
    bits *= 2 ** ((20 - settings.crf) / 6) * max(1.0, 256 / settings.size_px) ** 0.6
    if settings.fps is not None:
        bits *= min(3.0, max(1.0, 30 / float(settings.fps)) ** 0.6)
    return int(num_frames * settings.size_px**2 * bits / 8)


def _wanted(table: Path, shards: int) -> pl.DataFrame:
    """The clips to be copied, with `name` and `shard`; those of one file in a row, so that it is opened once."""
    clips = open_catalog(table)
    columns = clips.collect_schema().names()
    needed = ("clip_id", "path", "sha256", "num_frames", "fps_num", "fps_den")
    if missing := [column for column in needed if column not in columns]:
        raise ValueError(f"{table}: no column {', '.join(missing)}: neither a catalogue nor a selection")
    optional = {"first_frame": pl.Int64(), "irregular_fraction": pl.Float64(), "decoder": pl.String()}
    absent = [pl.lit(None, kind).alias(name) for name, kind in optional.items() if name not in columns]
    wanted = clips.filter(asked_for(columns)).with_columns(absent).select(*needed, *optional).collect()
    if wanted.is_empty():
        raise ValueError(f"{table}: no clip to copy: none is selected, or proven usable by `egoscale catalog probe`")
    if wanted["clip_id"].is_duplicated().any():
        doubled = wanted.filter(pl.col("clip_id").is_duplicated())["clip_id"].min()
        raise ValueError(f"{table}: clip {doubled!r} stands there twice: clip ids must be unique")
    names = [copy_name(row) for row in wanted.iter_rows(named=True)]
    places = [shard_of(path, shards) for path in wanted["path"]]
    return wanted.with_columns(
        name=pl.Series(names, dtype=pl.String), shard=pl.Series(places, dtype=pl.Int64)
    ).sort("path", "first_frame", "clip_id")  # fmt: skip


def _settle(out: Path, settings: CopySettings) -> None:
    """One folder, one kind of copies."""
    note = out / "transcode.json"
    asked = {**asdict(settings), "fps": None if settings.fps is None else str(settings.fps)}
    if note.exists():
        there = json.loads(note.read_text(encoding="utf-8"))
        if differ := [f"{key} = {there.get(key)}" for key in asked if there.get(key) != asked[key]]:
            raise ValueError(f"{out}: holds copies with {', '.join(differ)}: ask for the same, or name another --out")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(note, asked)


def _check_disk(out: Path, waiting: pl.DataFrame, settings: CopySettings) -> None:
    """Of all shards, for they fill the same disk."""
    frames = pl.col("num_frames").cast(pl.Float64)
    if settings.fps is not None:
        share = float(settings.fps) * pl.col("fps_den") / pl.col("fps_num")
        frames = pl.when(share < 1).then(frames * share).otherwise(frames)
    need = estimated_bytes(int(waiting.select(frames.sum()).item()), settings)
    free = shutil.disk_usage(out).free
    if need > free:
        raise ValueError(
            f"{out}: the copies may take {need / 1e9:,.3g} GB and {free / 1e9:,.3g} GB are free: name another --out, or"
            " ask for a smaller --size-px, fewer --fps or a larger --crf"
        )


def _copies(
    waiting: pl.DataFrame, out: Path, settings: CopySettings, jobs: int, limit_s: float | None
) -> Iterator[tuple[CopyJob, dict[str, Any]]]:
    todo = (_job(row, out, settings) for row in waiting.iter_rows(named=True))
    for job, copy in each(copy_clip, todo, jobs, limit_s):
        if isinstance(copy, Lost):
            yield job, {"reason": copy.reason}
        elif "full" in copy:
            raise OSError(errno.ENOSPC, f"{copy['full']}: make room and run the same again: it goes on here", str(out))
        else:
            yield job, copy


def _job(row: dict[str, Any], out: Path, settings: CopySettings) -> CopyJob:
    return CopyJob(
        clip_id=row["clip_id"],
        path=row["path"],
        decoder=row["decoder"],
        first_frame=row["first_frame"] or 0,
        num_frames=row["num_frames"] or 0,
        rate=Fraction(row["fps_num"] or 0, row["fps_den"] or 1),
        uneven=bool(row["irregular_fraction"]),
        name=row["name"],
        out=out,
        settings=settings,
    )
