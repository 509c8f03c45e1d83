"""A folder of copies: which are finished, and the table that lists them like any catalogue.

`clips/<xx>/<name>.mp4` are the copies, `transcode.json` what they have in common, `parts/` a table a shard (and, of an
unfinished one, its notes), and `catalog.parquet` or `selection.parquet` the whole. A file under `clips/` is whole and
was checked; it came from `unfinished/` by renaming. Its name tells of which clip and of which bytes it was made, so
that a changed file, or another part of it, is another copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import polars as pl

from egoscale.video.on_disk import apart
from egoscale.video.scores import Shard, open_catalog

COPY_SCHEMA: dict[str, pl.DataType] = {
    "clip_id": pl.String(),
    "name": pl.String(),
    "num_frames": pl.Int64(),
    "fps_num": pl.Int64(),
    "fps_den": pl.Int64(),
    "duration_s": pl.Float64(),
    "size_px": pl.Int64(),
    "gop_frames": pl.Float64(),
    "uneven": pl.Boolean(),  # time stamps of its own, not steps of the frame rate
    "bytes": pl.Int64(),
    "sha256": pl.String(),
    "decoder": pl.String(),
    "decoder_reason": pl.String(),
    "reason": pl.String(),  # why there is no copy
}
# Columns of the new table and the columns of the old one that they keep.
LINEAGE = {
    "original_path": ("path", pl.String()),
    "original_start_s": ("start_s", pl.Float64()),
    "original_sha256": ("sha256", pl.String()),
}
RULE = "transcode"  # that loses a clip from a selection


def copy_name(row: Mapping[str, Any]) -> str:
    """Of a row with `clip_id`, `sha256`, `path`, `first_frame`, `num_frames`: 16 hex digits and what can be read."""
    made_of = [row["clip_id"], row["sha256"] or row["path"], row["first_frame"] or 0, row["num_frames"]]
    without_suffix = re.sub(r"\.[A-Za-z0-9]{2,5}$", "", row["clip_id"])
    readable = re.sub(r"[^A-Za-z0-9]+", "_", without_suffix)[-60:].strip("_")
    return f"{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]}-{readable}"


def copy_path(out: Path, name: str) -> Path:
    """Where a copy lies: 256 folders, so that none holds millions of files."""
    return out / "clips" / name[:2] / f"{name}.mp4"


def unfinished_path(out: Path, name: str) -> Path:
    """Where this process writes a copy until it is whole: in a folder of its own, which is soon looked through."""
    return out / "unfinished" / f"{name}.mp4.{os.getpid()}.part"


def asked_for(columns: Iterable[str]) -> pl.Expr:
    """Whether a row is to be copied: a selected one of a selection, a usable one of a catalogue."""
    return pl.col("selected" if "selected" in columns else "usable").fill_null(False)


def table_file(path: Path) -> Path:
    """The table of a folder that holds a selection or a catalogue; a file as it is."""
    selection = path / "selection.parquet"
    return selection if selection.is_file() else path


class FinishedCopies:
    """What is finished of the clips of a shard. A context manager that holds the shard's notes.

    A failure is not tried again by a run that goes on after a kill; it is by one that begins after the shard was done.
    A copy that was deleted, or cut short, is not finished.
    """

    def __init__(self, out: Path, shard: Shard, names: pl.Series) -> None:
        """names: of the copies that belong to the shard. What another number of shards made of them counts too."""
        self._out = out
        self._names = names
        self._part = _part(out, shard)
        self._rows: dict[str, dict[str, Any]] = {}
        self._others: set[str] = set()
        self._notes: IO[str] | None = None

    def __enter__(self) -> FinishedCopies:
        """Raises BlockingIOError where another process works on the shard."""
        self._part.parent.mkdir(parents=True, exist_ok=True)
        notes = self._notes = self._part.with_suffix(".jsonl").open("a+", encoding="utf-8")
        try:
            fcntl.flock(notes, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notes.close()
            raise BlockingIOError(f"{notes.name}: another process copies this shard; wait for it") from None
        mine = set(self._names)
        for row in self._noted():
            if row["name"] not in mine:
                self._others.add(row["name"])
            elif row.get("reason") is not None or self._stands(row):
                self._rows[row["name"]] = row
        notes.seek(0)
        if (text := notes.read()) and not text.endswith("\n"):
            notes.write("\n")  # after the line on which a run was killed
        return self

    def __exit__(self, *_: object) -> None:
        if self._notes is not None:
            self._notes.close()

    def names(self, of_all: bool = False) -> pl.DataFrame:
        """What is finished: one column, `name`; `of_all` shards, as far as their notes can be believed unseen."""
        found = [*self._rows, *(self._others if of_all else ())]
        return pl.DataFrame({"name": found}, schema={"name": pl.String()})

    def add(self, row: Mapping[str, Any]) -> None:
        """Notes a copy or a failure (columns of COPY_SCHEMA)."""
        assert self._notes is not None
        self._rows[row["name"]] = dict(row)
        self._notes.write(json.dumps(row) + "\n")
        self._notes.flush()

    def close(self) -> pl.DataFrame:
        """The shard's part of the table, sorted by clip; on disk it takes the place of the notes."""
        rows = [{column: self._rows[name].get(column) for column in COPY_SCHEMA} for name in self._names]
        part = pl.DataFrame(rows, schema=COPY_SCHEMA).sort("clip_id")
        with _renamed(self._part) as unfinished:
            part.write_parquet(unfinished)
        self._part.with_suffix(".jsonl").unlink(missing_ok=True)
        return part

    def _noted(self) -> Iterator[dict[str, Any]]:
        for part in sorted(self._out.glob("parts/part-*.parquet")):
            yield from pl.read_parquet(part).filter(pl.col("reason").is_null()).iter_rows(named=True)
        for notes in sorted(self._out.glob("parts/part-*.jsonl")):
            for line in notes.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # a torn line: its copy will be found, and looked at again
                    row = json.loads(line)
                    if isinstance(row, dict) and "name" in row:
                        yield row

    def _stands(self, row: Mapping[str, Any]) -> bool:
        with contextlib.suppress(OSError):
            return copy_path(self._out, row["name"]).stat().st_size == int(row["bytes"])
        return False


def _part(out: Path, shard: Shard) -> Path:
    return out / "parts" / f"part-{shard.index:05d}-of-{shard.count:05d}.parquet"


def sweep(out: Path, waiting: pl.Series) -> None:
    """Deletes what killed processes left of copies that are to be made."""
    names = set(waiting)
    for left in out.glob("unfinished/*.part"):
        if left.name.partition(".")[0] in names:
            left.unlink(missing_ok=True)


def gather(table: Path, out: Path, wanted: pl.DataFrame, count: int, note: str) -> tuple[Path | None, list[str]]:
    """Writes the table of copies where the parts of all `count` shards are there.

    Every row of `table` is a row of it. A clip that failed is there with `usable` false and the reason (in a
    selection also `selected` false and the rule "transcode"); one that was not asked for is as it was.

    wanted: `clip_id` and `name` of the clips that are to be there.
    note: added to the provenance of a copy.

    Returns its path, or None and the names of the parts that are not there yet. Two shards that end together write
    the same. Raises ValueError where the parts are of another state of the table.
    """
    parts = [_part(out, Shard(index, count)) for index in range(count)]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        return None, missing
    copies = pl.concat([pl.scan_parquet(part) for part in parts])
    unknown = wanted.join(copies.select("name").collect(), on="name", how="anti")
    if unknown.height:
        raise ValueError(
            f"{out}: the parts know nothing of {unknown.height} clips (first: {unknown['clip_id'].min()!r}): the table"
            " has changed since another shard was run; run all shards again, finished copies are kept"
        )
    copies = copies.join(wanted.lazy().select("name"), on="name", how="semi")
    made = _with_copies(open_catalog(table), copies, out, note)
    path = out / ("selection.parquet" if "selected" in made.collect_schema() else "catalog.parquet")
    with _renamed(path) as part:
        made.sink_parquet(part)
    return path, []


def _with_copies(clips: pl.LazyFrame, copies: pl.LazyFrame, out: Path, note: str) -> pl.LazyFrame:
    """The rows of `clips`, in their order."""
    schema = clips.collect_schema()
    renamed = copies.rename({name: f"copy_{name}" for name in COPY_SCHEMA if name != "clip_id"})
    joined = clips.join(renamed, on="clip_id", how="left", maintain_order="left")
    tried = pl.col("copy_name").is_not_null() & asked_for(schema)
    done = pl.col("copy_reason").is_null()
    # A copy of a copy leads back to the first.
    origin = [
        pl.coalesce(_old(name, schema), pl.when(tried & done).then(_old(of, schema))).cast(kind).alias(name)
        for name, (of, kind) in LINEAGE.items()
    ]
    joined = joined.with_columns(*origin, (tried & done).alias("copied"), (tried & ~done).alias("failed"))
    joined = joined.with_columns(_where("failed", _OF_FAILED, schema))
    joined = joined.with_columns(_where("copied", _of_copy(out, note, schema), schema))
    return joined.select(*schema, *(name for name in LINEAGE if name not in schema))


def _where(condition: str, values: Mapping[str, pl.Expr], schema: pl.Schema) -> list[pl.Expr]:
    """Columns that get another value where a condition holds."""
    changed = []
    for name, kind in schema.items():
        if name in values:
            whole = pl.when(condition).then(values[name]).otherwise(pl.col(name))
            changed.append((whole if kind == pl.Null() else whole.cast(kind)).alias(name))
    return changed


_OF_FAILED = {
    "usable": pl.lit(False),
    "reason": pl.concat_str(pl.lit("transcode: "), "copy_reason"),
    "selected": pl.lit(False),
    "rule": pl.lit(RULE),
    "unique_s": pl.lit(None),
}


def _of_copy(out: Path, note: str, schema: pl.Schema) -> dict[str, pl.Expr]:
    """The columns that are another's for the copy."""
    name = pl.col("copy_name")
    told = ["num_frames", "fps_num", "fps_den", "duration_s", "gop_frames", "bytes", "sha256"]
    told += ["decoder", "decoder_reason"]
    return {
        **{column: pl.col(f"copy_{column}") for column in told},
        "path": pl.concat_str(pl.lit(f"{out}/clips/"), name.str.slice(0, 2), pl.lit("/"), name, pl.lit(".mp4")),
        "start_s": pl.lit(0.0),
        "first_frame": pl.lit(0),
        "width_px": pl.col("copy_size_px"),
        "height_px": pl.col("copy_size_px"),
        "rotation_deg": pl.lit(0),
        "codec": pl.lit("h264"),
        "irregular_fraction": pl.when("copy_uneven").then(_old("irregular_fraction", schema)).otherwise(0.0),
        "provenance": pl.concat_str(pl.col("provenance").fill_null("unknown"), pl.lit(f"; {note}"))
        if "provenance" in schema
        else pl.lit(note),
        "unique_s": pl.min_horizontal(_old("unique_s", schema), "copy_duration_s"),
    }


def _old(name: str, schema: pl.Schema) -> pl.Expr:
    """A column that older tables do not have."""
    return pl.col(name) if name in schema else pl.lit(None)


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Another name to write under, until it is whole."""
    part = apart(path)
    try:
        yield part
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
