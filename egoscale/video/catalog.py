"""The catalogue: one row for every file of every source, read or not, with hours that were really decoded."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from egoscale.recipe import SourceSpec
from egoscale.video.probe import probe_file
from egoscale.video.readers import captaincook4d, folder, takes
from egoscale.video.readers.clip import ClipMetadata

Progress = Callable[[int, int, str], None]

READERS: dict[str, Callable[[Path, str], Iterator[ClipMetadata]]] = {
    "folder": folder.read,
    "takes": takes.read,
    "captaincook4d": captaincook4d.read,
}

SCHEMA: dict[str, pl.DataType] = {
    "clip_id": pl.String(),
    "path": pl.String(),
    "source": pl.String(),
    "recording_id": pl.String(),
    "participant_id": pl.String(),
    "scene_id": pl.String(),
    "task": pl.String(),
    "narration": pl.String(),
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
    "sha256": pl.String(),
    "license": pl.String(),
    "provenance": pl.String(),
    "decoder": pl.String(),
    "decoder_reason": pl.String(),
    "black_fraction": pl.Float64(),
    "frozen_fraction": pl.Float64(),
    "mean_luma": pl.Float64(),
    "usable": pl.Boolean(),
    "reason": pl.String(),
}


def build_catalog(
    sources: Sequence[SourceSpec], out: Path, jobs: int = 1, progress: Progress | None = None
) -> pl.DataFrame:
    """Decodes every file of every source and writes `out/catalog.parquet`, sorted by clip_id.

    A file that cannot be read is a row with `usable` false and a `reason`. What is decoded is noted in
    `out/probed.jsonl` by path, size and time of change, so that a killed build goes on where it was; the note
    is deleted when the catalogue is whole. `jobs` files are decoded at once, each in a process of its own.

    Raises FileNotFoundError for a folder that is not there, ValueError for an empty one or a doubled name.
    """
    clips = [(source, clip) for source in _named(sources) for clip in _clips(source)]
    out.mkdir(parents=True, exist_ok=True)
    notes = Notes(out / "probed.jsonl")
    probed = {clip.path: notes.find(clip.path) for _, clip in clips}
    waiting = [path for path, known in probed.items() if known is None]
    for done, (path, found) in enumerate(_probe(waiting, jobs), start=len(probed) - len(waiting) + 1):
        notes.add(path, found)
        probed[path] = found
        if progress is not None:
            progress(done, len(probed), "files")
    rows = [_row(source, clip, probed[clip.path] or {}) for source, clip in clips]
    catalog = pl.DataFrame(rows, schema=SCHEMA).sort("clip_id")
    part = out / "catalog.parquet.part"
    catalog.write_parquet(part)
    part.rename(out / "catalog.parquet")
    notes.path.unlink(missing_ok=True)
    return catalog


def _named(sources: Sequence[SourceSpec]) -> list[SourceSpec]:
    if not sources:
        raise ValueError("the catalogue has no source: name at least one folder under [[sources]]")
    for source in sources:
        if not source.path:
            raise ValueError(f"source {source.name!r}: `path` is empty, and no input run stands for it")
    named = [s.model_copy(update={"name": s.name or Path(s.path).resolve().name}) for s in sources]
    names = [source.name for source in named]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two sources are called {name!r}: give each its own `name`")
    return named


def _clips(source: SourceSpec) -> list[ClipMetadata]:
    root = Path(source.path).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"source {source.name!r}: {root} is not a folder")
    clips = list(READERS[source.reader](root, source.name))
    if not clips:
        raise ValueError(f"source {source.name!r}: no video in {root} (reader {source.reader!r})")
    return clips


def _row(source: SourceSpec, clip: ClipMetadata, probed: dict[str, Any]) -> dict[str, Any]:
    row = {
        **probed,
        "clip_id": f"{source.name}/{clip.name}",
        "path": str(clip.path),
        "source": source.name,
        "recording_id": clip.recording_id,
        "participant_id": clip.participant_id,
        "scene_id": clip.scene_id,
        "task": clip.task,
        "narration": clip.narration,
        "start_s": 0.0,
        "license": clip.license or source.license or None,
        "provenance": clip.provenance,
    }
    if clip.reason is not None:
        row.update(usable=False, reason=clip.reason)
    return row


def _probe(paths: Sequence[Path], jobs: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    if jobs <= 1 or len(paths) <= 1:
        for path in paths:
            yield path, asdict(probe_file(path))
        return
    # Spawned, not forked: a fork would carry over the threads' locks of polars.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(probe_file, path): path for path in paths}
        for future in as_completed(futures):
            try:
                yield futures[future], asdict(future.result())
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"a decoder took its process down, on {futures[future]} or a file near it. What was"
                    " decoded before is in probed.jsonl: find the file that is not there, and move it away"
                ) from error


class Notes:
    """Probed files, one JSON line each, found again by path, size and time of change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[tuple[str, int, int], dict[str, Any]] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                note = json.loads(line)
                self._known[note["path"], note["size"], note["mtime_ns"]] = note["probe"]
            except (ValueError, KeyError, TypeError):
                continue  # the line on which the last build was killed: its file is decoded again
        self._torn = bool(text) and not text.endswith("\n")

    def find(self, path: Path) -> dict[str, Any] | None:
        return self._known.get(_key(path))

    def add(self, path: Path, probed: dict[str, Any]) -> None:
        name, size, mtime_ns = key = _key(path)
        self._known[key] = probed
        line = json.dumps({"path": name, "size": size, "mtime_ns": mtime_ns, "probe": probed})
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._torn + line + "\n")
        self._torn = False


def _key(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), stat.st_size, stat.st_mtime_ns


def catalog_tables(catalog: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Hours of usable video by source, licence, participant and scene, and what is wrong with the rest."""
    hours = (pl.col("duration_s").sum() / 3600).alias("hours")
    usable = catalog.filter("usable")
    per_source = [
        (pl.col("duration_s").filter("usable").sum() / 3600).alias("hours"),
        pl.col("usable").sum().alias("usable"),
        (~pl.col("usable")).sum().alias("not usable"),
        pl.col("recording_id").n_unique().alias("recordings"),
        pl.col("participant_id").drop_nulls().n_unique().alias("participants"),
        pl.col("scene_id").drop_nulls().n_unique().alias("scenes"),
    ]
    tables = {"source": catalog.group_by("source").agg(per_source)}
    for title, column in (("licence", "license"), ("participant", "participant_id"), ("scene", "scene_id")):
        tables[title] = usable.group_by(column).agg(hours, pl.len().alias("clips")).rename({column: title})
    decoders = usable.filter(pl.col("decoder_reason").is_not_null())
    tables["not by decord"] = decoders.select(pl.col("clip_id").alias("clip"), pl.col("decoder_reason").alias("why"))
    tables["not usable"] = catalog.filter(~pl.col("usable")).select(
        pl.col("clip_id").alias("clip"), pl.col("reason").alias("why")
    )
    return {
        title: table.sort("hours", table.columns[0], descending=[True, False], nulls_last=True)
        if "hours" in table.columns
        else table.sort("clip")
        for title, table in tables.items()
    }


def catalog_info(catalog: pl.DataFrame, max_rows: int = 20, width: int = 110) -> str:
    """The tables as text, each at most `max_rows` long."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=width, no_color=True)
    with console.capture() as text:
        for title, table in catalog_tables(catalog).items():
            if table.is_empty():
                continue
            more = f" (first {max_rows} of {table.height})" if table.height > max_rows else ""
            shown = Table(title=f"{title}{more}", title_justify="left")
            for column in table.columns:
                shown.add_column(column, justify="right" if table[column].dtype.is_numeric() else "left")
            for row in table.head(max_rows).iter_rows():
                shown.add_row(*(_cell(value) for value in row))
            console.print(shown)
    return text.get()


def _cell(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
