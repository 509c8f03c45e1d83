"""The catalogue: one row for every clip of every source, usable or not, with hours that were really decoded."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import polars as pl

from egoscale.recipe import SourceSpec
from egoscale.video.readers import choose, notes, reader
from egoscale.video.readers.clip import METADATA_SCHEMA
from egoscale.video.scorers import LIMIT_S, probe_catalog
from egoscale.video.scores import PROBE, open_catalog

Progress = Callable[[int, int, str], None]
Probe = Literal["decode", "none"]

SCHEMA: dict[str, pl.DataType] = {
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
    "first_frame": pl.Int64(),  # of a clip that was not probed: 0 = it is the whole file, null = a piece of it
    "fps_num": pl.Int64(),
    "fps_den": pl.Int64(),
    "num_frames": pl.Int64(),
    "width_px": pl.Int64(),
    "height_px": pl.Int64(),
    "rotation_deg": pl.Int64(),
    "codec": pl.String(),
    "gop_frames": pl.Float64(),
    "bytes": pl.Int64(),
    "sha256": pl.String(),
    "license": pl.String(),
    "provenance": pl.String(),
    "decoder": pl.String(),
    "decoder_reason": pl.String(),
    "irregular_fraction": pl.Float64(),
    "black_fraction": pl.Float64(),
    "frozen_fraction": pl.Float64(),
    "mean_luma": pl.Float64(),
    "usable": pl.Boolean(),  # null = never probed
    "reason": pl.String(),
    "original_path": pl.String(),  # of a copy: what it was made of, whose seconds it shares with other copies
    "original_start_s": pl.Float64(),
    "original_sha256": pl.String(),
}


SORTED_CLIPS = 1_000_000  # that are sorted at a time: some 0.4 GB


def build_catalog(
    sources: Sequence[SourceSpec],
    out: Path,
    jobs: int = 1,
    progress: Progress | None = None,
    probe: Probe = "decode",
    limit_s: float | None = LIMIT_S,
) -> pl.DataFrame:
    """`write_catalog`, and its table; `out` may be a folder, for `out/catalog.parquet`."""
    return pl.read_parquet(write_catalog(sources, out, jobs, progress, probe, limit_s))


def write_catalog(
    sources: Sequence[SourceSpec],
    out: Path,
    jobs: int = 1,
    progress: Progress | None = None,
    probe: Probe = "decode",
    limit_s: float | None = LIMIT_S,
) -> Path:
    """Writes the catalogue of all sources, sorted by clip_id, and returns its path.

    A clip that cannot be used is a row with `usable` false and a `reason`. With `probe="none"` only metadata are
    read: lengths are those that are declared, and `usable` is null where nothing speaks against a clip. What
    `egoscale catalog probe` found of an earlier catalogue of that name is taken away once all is decoded; with
    `probe="none"` it stays, and another `probe` decodes what is new or has changed.

    Args:
        out: a .parquet file, or a folder for `catalog.parquet`. What a build has decoded is kept beside it, in
            `<stem>.decoded.scores`: it is not decoded again as long as its file keeps its size and time of change,
            by the build that goes on after a kill or by the next one, which tries again what could not be used.
        jobs: files that are decoded at once, each in a process of its own.
        limit_s: seconds without a sign of life after which a decoder is stopped and its file told unusable.

    Raises:
        BlockingIOError: another process builds this catalogue.
        FileNotFoundError: a source that is not there.
        ValueError: a source without clips, a doubled name of a source or clip, metadata that cannot be read.
    """
    file = out if out.suffix == ".parquet" else out / "catalog.parquet"
    building = file.with_name(f"{file.stem}.decoded.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file):
        if not building.exists():  # else a build was killed, and is gone on with
            _forget_unusable(building)
        _write_metadata(_named(sources), building)
        if probe == "none":
            building.rename(file)
            return file
        probe_catalog(building, jobs=jobs, limit_s=limit_s, progress=progress)
        part = file.with_name(f"{file.name}.part")
        open_catalog(building).select(*SCHEMA).sink_parquet(part)
        part.rename(file)
        for older in file.with_suffix(".scores").glob(f"{PROBE}-v*"):
            shutil.rmtree(older)
        building.unlink()
    return file


def _forget_unusable(building: Path) -> None:
    """A disk that was away, a decoder that was slow on a busy machine: what failed is tried again by another build."""
    for part in building.with_suffix(".scores").glob(f"{PROBE}-v*/part-*.parquet"):
        kept = part.with_suffix(".kept")
        pl.scan_parquet(part).filter("usable").sink_parquet(kept)
        kept.rename(part)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Holds the name of a catalogue; the lock ends with the process, however that ends.

    Raises BlockingIOError, with the process that has it.
    """
    path = file.with_name(f"{file.stem}.building.lock")
    while True:
        with path.open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                who = lock.read().strip() or "another process"
                raise BlockingIOError(
                    f"{file}: {who} builds this catalogue; wait for it, or give another --out"
                ) from None
            if not _is(lock.fileno(), path):  # its last holder has let go of it, and of its name, in between
                continue
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def chosen_readers(sources: Sequence[SourceSpec]) -> tuple[list[SourceSpec], list[str]]:
    """The sources with the reader of each, and lines that say what was chosen and why, and what is not read.

    Raises as `write_catalog`.
    """
    specs, lines = [], []
    for source in _named(sources):
        root = _root(source)
        name, why = choose(root) if source.reader == "auto" else (source.reader, "as asked for")
        specs.append(source.model_copy(update={"reader": name}))
        lines.append(f"{source.name}: reader {name} ({why})")
        lines += [f"{source.name}: {note}" for note in notes(name, root)]
    return specs, lines


def read_metadata(sources: Sequence[SourceSpec]) -> pl.LazyFrame:
    """What the metadata of all sources say, in the columns of METADATA_SCHEMA, source after source.

    Clip ids begin with the name of their source; a licence that the data set does not give is the source's.
    Raises as `write_catalog`.
    """
    return pl.concat([_metadata(source) for source in _named(sources)])


def _metadata(source: SourceSpec) -> pl.LazyFrame:
    root = _root(source)
    name = choose(root)[0] if source.reader == "auto" else source.reader
    module = reader(name)
    if source.clips == "segments" and not hasattr(module, "segments"):
        raise ValueError(f"source {source.name!r}: reader {name!r} knows no segments, only whole recordings")
    try:
        rows = (module.segments if source.clips == "segments" else module.read)(root, source.name)
        schema = rows.collect_schema()
    except (pl.exceptions.PolarsError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise _unreadable(source, error) from error
    columns = {
        column: (pl.col(column) if column in schema else pl.lit(None)).cast(kind).alias(column)
        for column, kind in METADATA_SCHEMA.items()
    }
    columns["clip_id"] = pl.concat_str(pl.lit(f"{source.name}/"), columns["clip_id"]).alias("clip_id")
    columns["source"] = pl.lit(source.name).alias("source")
    columns["license"] = columns["license"].fill_null(pl.lit(source.license or None, pl.String))
    return rows.select(columns.values())  # type: ignore[no-any-return]


def _root(source: SourceSpec) -> Path:
    root = Path(source.path).absolute()
    if not root.exists():
        raise FileNotFoundError(f"source {source.name!r}: {root} is not a folder, nor a table or tar")
    return root


def _named(sources: Sequence[SourceSpec]) -> list[SourceSpec]:
    """The sources, each with its name, in the order of clip ids."""
    if not sources:
        raise ValueError("the catalogue has no source: name at least one folder under [[sources]]")
    for source in sources:
        if not source.path:
            raise ValueError(f"source {source.name!r}: `path` is empty, and no input run stands for it")
    named = [s.model_copy(update={"name": s.name or _name(Path(s.path).resolve())}) for s in sources]
    names = [source.name for source in named]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two sources are called {name!r}: give each its own `name`")
    return sorted(named, key=lambda source: f"{source.name}/")


def _name(path: Path) -> str:
    return path.stem if path.is_file() else path.name


def _unreadable(source: SourceSpec, error: Exception) -> ValueError:
    said = str(error).strip().splitlines()
    return ValueError(
        f"source {source.name!r}: its metadata in {source.path} cannot be read"
        f" ({type(error).__name__}: {said[0] if said else 'no message'}); reader {source.reader!r}"
    )


def _write_metadata(sources: Sequence[SourceSpec], file: Path) -> None:
    """The catalogue as far as metadata tell it, source after source, each sorted by itself."""
    parts = file.with_suffix(".parts")
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    written = []
    for number, source in enumerate(sources):
        rows, part = _metadata(source), parts / f"{number:04d}.parquet"
        try:
            rows.sink_parquet(part, compression="lz4")
        except pl.exceptions.PolarsError as error:
            raise _unreadable(source, error) from error
        clips = pl.concat(pl.scan_parquet(piece) for piece in _sorted(part))
        _check(source, clips)
        written.append(_one_spelling(clips))
    temporary = file.with_name(f"{file.name}.part")
    known = {
        "start_s": pl.col("start_s").fill_null(0.0),
        "first_frame": pl.when(pl.col("start_s").is_null()).then(pl.lit(0, pl.Int64)),
        "usable": pl.when(pl.col("reason").is_not_null()).then(pl.lit(False)),
    }
    columns = [
        known.get(column, pl.col(column) if column in METADATA_SCHEMA else pl.lit(None, kind)).alias(column)
        for column, kind in SCHEMA.items()
    ]
    pl.concat(written).select(columns).sink_parquet(temporary)
    temporary.rename(file)
    shutil.rmtree(parts)


def _sorted(part: Path) -> list[Path]:
    """The rows of a file in the order of their clip ids: as it is, or in files of SORTED_CLIPS that follow each other.

    Sorting a file at once takes memory by its length; this takes it by the length of a piece.
    """
    clips = pl.scan_parquet(part)
    ids = clips.select("clip_id")
    count, wrong = ids.select(pl.len(), (pl.col("clip_id") < pl.col("clip_id").shift(1)).sum()).collect().row(0)
    if not wrong:
        return [part]
    # Every so many ids, sorted: between two of them lie about as many clips as between any other two.
    some = ids.gather_every(max(1, count // (1000 * (1 + count // SORTED_CLIPS)))).collect()["clip_id"].unique().sort()
    bounds = some.gather_every(max(1, SORTED_CLIPS * len(some) // count))[1:].to_list() if count > SORTED_CLIPS else []
    pieces = []
    for number, (low, high) in enumerate(zip([None, *bounds], [*bounds, None], strict=True)):
        piece = part.with_name(f"{part.stem}-{number:04d}.parquet")
        above = pl.lit(True) if low is None else pl.col("clip_id") >= low
        below = pl.lit(True) if high is None else pl.col("clip_id") < high
        clips.filter(above & below).sort("clip_id", maintain_order=True).sink_parquet(piece, compression="lz4")
        pieces.append(piece)
    part.unlink()
    return pieces


def _check(source: SourceSpec, clips: pl.LazyFrame) -> None:
    twice = pl.col("clip_id") == pl.col("clip_id").shift(1)
    found = clips.select(
        pl.len().alias("clips"),
        pl.col("clip_id").null_count().alias("nameless"),
        twice.sum().alias("twice"),
        pl.col("clip_id").filter(twice).first(),
    )
    count, nameless, doubled, example = found.collect().row(0)
    if not count:
        raise ValueError(f"source {source.name!r}: no video in {source.path} (reader {source.reader!r})")
    if nameless:
        raise ValueError(f"source {source.name!r}: {nameless} of {count} clips have no id in {source.path}")
    if doubled:
        raise ValueError(
            f"source {source.name!r}: {doubled} clip ids stand more than once, such as {example!r}:"
            " give each clip an id of its own"
        )


def _one_spelling(clips: pl.LazyFrame) -> pl.LazyFrame:
    """Tasks that differ in case or spaces alone take the spelling that sorts first: strata count them as one."""
    plain = pl.col("task").str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()
    tasks = clips.select(pl.col("task").drop_nulls().unique()).with_columns(plain=plain).collect()
    several = tasks.filter(pl.len().over("plain") > 1).with_columns(one=pl.col("task").min().over("plain"))
    if several.is_empty():
        return clips
    return clips.with_columns(pl.col("task").replace(several["task"], several["one"]))
