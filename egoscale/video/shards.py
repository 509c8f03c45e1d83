"""One scorer over one shard of a catalogue: a process pool here, a task of a Slurm array there; killed, it goes on.

What is done is noted, a line a clip, in a file that only grows; a finished shard is one Parquet file, sorted by clip,
written under another name and renamed. Notes and finished file hold for each clip a key of what it was computed from:
a clip whose file or place in it has changed is done again, any other never twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import polars as pl

from egoscale.video.scores import CONTENT, INPUT_KEY, MADE_OF, Shard, part_path
from egoscale.video.workers import Lost, each

SYNC_EVERY_S = 1.0  # a killed process loses no note, a machine that goes down those of a second
Progress = Callable[[int, int, str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class FileClips:
    """Clips of one file: for each what the scorer needs of its row of the catalogue, with `clip_id`."""

    path: Path
    clips: tuple[Row, ...]

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Scorer:
    """What is run over the clips of a file, and the columns that come of it. The functions stand in modules."""

    name: str
    version: int
    needs: tuple[str, ...]  # columns of the catalogue; with CONTENT, its rows tell of which bytes they were made
    schema: Mapping[str, pl.DataType]
    score: Callable[[FileClips], list[Row]]  # a row for each clip, in order
    lost: Callable[[FileClips, str], list[Row]]  # the same, of a file that took its process down, with the reason


@dataclass(frozen=True)
class Finished:
    """A shard that is done: its file, clips in it, those done by this call, and those whose file was lost."""

    path: Path
    clips: int
    done_now: int
    lost_now: int


def run_shard(
    catalog: pl.LazyFrame,
    file: Path,
    scorer: Scorer,
    shard: Shard,
    jobs: int = 1,
    limit_s: float | None = None,
    progress: Progress | None = None,
) -> Finished:
    """Scores the clips of `catalog` whose files fall into the shard, and writes its part beside `file`.

    A file falls into a shard by a hash of its path, so that all clips of a file are done by one process and the file
    is opened once.

    Raises BlockingIOError where another process works on this shard.
    """
    path = part_path(file, scorer.name, scorer.version, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = _keyed(_of_shard(catalog.select("clip_id", "path", *scorer.needs), shard), scorer)
    schema = {"clip_id": pl.String(), **scorer.schema, INPUT_KEY: pl.String()}
    if CONTENT in scorer.needs:
        schema[MADE_OF] = pl.String()
    with _notes(path.with_suffix(".notes.jsonl")) as notes:
        known = _known(path, Path(notes.name), schema)
        waiting = wanted.join(known, on=["clip_id", INPUT_KEY], how="anti")
        lost, done, noted = 0, wanted.height - waiting.height, time.monotonic()
        for item, answer in each(scorer.score, _by_file(waiting), jobs, limit_s):
            if isinstance(answer, Lost):
                lost += len(item.clips)
            rows = scorer.lost(item, answer.reason) if isinstance(answer, Lost) else answer
            _note(notes, item, rows)
            if time.monotonic() - noted > SYNC_EVERY_S:
                os.fsync(notes.fileno())
                noted = time.monotonic()
            done += len(rows)
            if progress is not None:
                progress(done, wanted.height, "clips")
        _finish(path, Path(notes.name), wanted, schema)
        Path(notes.name).unlink()
    return Finished(path, wanted.height, waiting.height, lost)


def _of_shard(catalog: pl.LazyFrame, shard: Shard) -> pl.DataFrame:
    paths = catalog.select(pl.col("path").unique()).collect()["path"].drop_nulls()
    mine = [path for path in paths if shard_of(path, shard.count) == shard.index]
    chosen = pl.LazyFrame({"path": mine}, schema={"path": pl.String})
    return catalog.join(chosen, on="path", how="semi").collect().sort("path", "clip_id")


def shard_of(path: str, count: int) -> int:
    """The shard of a file: the same on every machine and in every version."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big") % count


def _keyed(clips: pl.DataFrame, scorer: Scorer) -> pl.DataFrame:
    """With a key over the file's size and time of change and over what the scorer is told of the clip."""
    stamps = {path: _stamp(path) for path in clips["path"].unique()}  # not the path: data may move
    keys = [
        hashlib.blake2b(json.dumps([row, stamps[path]]).encode(), digest_size=12).hexdigest()
        for path, row in zip(clips["path"], clips.drop("path").iter_rows(named=True), strict=True)
    ]
    return clips.with_columns(pl.Series(INPUT_KEY, keys, dtype=pl.String))


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of change: of the file, or of the archive that it lies in, or of the folder of pictures."""
    for at in (Path(path), Path(path.partition("?")[0])):
        for place in (at, *at.parents[:-1]):
            try:
                stat = place.stat()
            except OSError:
                continue
            if place == at or place.is_file():
                return stat.st_size, stat.st_mtime_ns
            break
    return -1, -1


def _by_file(clips: pl.DataFrame) -> Iterator[FileClips]:
    for (path,), rows in clips.group_by("path", maintain_order=True):
        yield FileClips(Path(str(path)), tuple(rows.drop("path").to_dicts()))


# --- what is done -------------------------------------------------------------------------------------------


@contextmanager
def _notes(path: Path) -> Iterator[IO[str]]:
    """The notes of a shard, held by this process alone, without the line on which the last one was killed."""
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{path}: another process works on this shard; wait for it") from None
        file.truncate(_whole_lines(path))
        yield file


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 2**16)
            file.seek(begin)
            at = file.read(end - begin).rfind(b"\n")
            if at >= 0:
                return begin + at + 1
            end = begin
    return 0


def _note(notes: IO[str], item: FileClips, rows: Sequence[Row]) -> None:
    for clip, row in zip(item.clips, rows, strict=True):
        key = {"clip_id": clip["clip_id"], INPUT_KEY: clip[INPUT_KEY]}
        key |= {MADE_OF: clip[CONTENT]} if CONTENT in clip else {}
        notes.write(json.dumps({**key, **row}, allow_nan=False) + "\n")
    notes.flush()


def _known(path: Path, notes: Path, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    return pl.concat(
        [table.select("clip_id", INPUT_KEY) for table in _tables(path, notes, schema)], how="vertical"
    ).collect()


def _tables(path: Path, notes: Path, schema: Mapping[str, pl.DataType]) -> list[pl.LazyFrame]:
    """What was finished earlier, and what is noted since."""
    finished = [pl.scan_parquet(path)] if path.exists() else []
    return [*finished, pl.scan_ndjson(notes, schema=dict(schema))]


def _finish(path: Path, notes: Path, wanted: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> None:
    rows = pl.concat([table.select(*schema) for table in _tables(path, notes, schema)], how="vertical")
    mine = wanted.lazy().select("clip_id", INPUT_KEY)
    # Twice only where the last run was killed between renaming its file and deleting its notes.
    table = rows.join(mine, on=["clip_id", INPUT_KEY], how="semi").unique("clip_id").sort("clip_id").collect()
    if path.exists() and table.equals(pl.read_parquet(path)):
        return
    part = path.with_suffix(".parquet.tmp")
    table.write_parquet(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.rename(path)
