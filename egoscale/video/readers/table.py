"""A table that lists clips: CSV, TSV, JSON lines or Parquet, with a path and any of the catalogue's columns.

    path,participant_id,scene_id,task
    monday/a.mp4,p1,kitchen,wash up
    monday/b.mp4,p2,kitchen,wash up

`path` (or `file`) is relative to the folder of the table, or absolute. Further columns that are read: all of
METADATA_SCHEMA, `end_s` in place of `duration_s`, `fps` (29.97, 30000/1001) in place of `fps_num` and `fps_den`, and
the short names of ALIASES; others are let alone. Times are seconds, or `hh:mm:ss.ff`. A row with a `start_s` is a
piece of its file; one without is the whole of it.

A column `selected` marks a table of `egoscale catalog select`: a row where it is false is not usable. A catalogue or
selection read as a source of the name that its own rows give keeps its clip ids: `lab=selection.parquet` holds
`lab/a.mp4`, not `lab/lab/a.mp4`.

The source is the table itself, or a folder with one such table in it: then files that it does not name are rows too.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from egoscale.video.readers.clip import METADATA_SCHEMA
from egoscale.video.readers.files import media
from egoscale.video.readers.match import MISSING, UNNAMED
from egoscale.video.readers.times import BACKWARDS, rate, seconds

ALIASES = {
    "file": "path",
    "video": "path",
    "video_path": "path",
    "take_id": "clip_id",
    "clip": "clip_id",
    "recording": "recording_id",
    "participant": "participant_id",
    "scene": "scene_id",
    "licence": "license",
}
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")
TIMES = ("start_s", "end_s", "duration_s")
NUMBERS = tuple(name for name, kind in METADATA_SCHEMA.items() if kind.is_numeric() and name not in TIMES)
OTHER = ("end_s", "fps")
GIVEN = ("source",)  # columns that the catalogue decides
NOT_SELECTED = "not selected"
ABSOLUTE = r"^/|^[a-zA-Z][a-zA-Z0-9+.-]*://"


def finds(root: Path) -> str | None:
    """The table that lists clips: named as the source, or the only one in the folder."""
    found = _tables(root)
    return ", ".join(file.name for file in found) or None


def read(root: Path, source: str) -> pl.LazyFrame:
    """Every row of the table; a file that is not there, or is not named, is a row with its reason.

    Raises FileNotFoundError where no table lists clips, ValueError where several do, or for a table without a path.
    """
    found = _tables(root)
    if not found:
        raise FileNotFoundError(
            f"{root}: no table that lists clips ({', '.join(SUFFIXES)} with a column `path` or `file`)"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{root}: several tables list clips ({names}): name the one that counts as the source")
    clips = listed(found[0], source)
    return clips if root.is_file() else with_unnamed(clips, root, found[0].name)


def listed(table: Path, source: str = "") -> pl.LazyFrame:
    """The clips of one table, read as the source of that name. Raises ValueError for one without a path, or that cannot
    be read."""
    rows = _scan(table)
    names = rows.collect_schema().names()
    known = {column for column in (*METADATA_SCHEMA, *OTHER) if column in names and column not in GIVEN}
    if "path" not in known:
        raise ValueError(f"{table}: no column `path` or `file`; it has {', '.join(names[:12]) or 'none'}")
    rows = rows.with_columns(
        _trimmed(column).alias(column) for column in sorted(known) if rows.collect_schema()[column] == pl.String
    )
    if "selected" in names:  # of a selection: what its rules lost stays lost
        lost = pl.col("selected").cast(pl.String).str.to_lowercase().is_in(["false", "0"])
        before = [pl.col("reason").cast(pl.String)] if "reason" in known else []
        rows = rows.with_columns(reason=pl.coalesce(*before, pl.when(lost).then(pl.lit(NOT_SELECTED))))
        known.add("reason")
    if {"clip_id", "source"} <= set(names):  # a catalogue: the name of its source will stand before the ids again
        known_as = pl.col("source").cast(pl.String) == source
        bare = pl.col("clip_id").cast(pl.String).str.strip_prefix(f"{source}/")
        rows = rows.with_columns(clip_id=pl.when(known_as).then(bare).otherwise(pl.col("clip_id")))
    typed = rows.with_row_index("row", 1).select("row", *_typed(rows, known))
    name = pl.col("path").str.strip_prefix("./")
    piece = pl.when(pl.col("start_s").is_not_null()).then(pl.format("{}@{}", name, pl.col("start_s")))
    clip = pl.coalesce("clip_id", piece, name, pl.format("row {}", "row"))
    typed = typed.with_columns(
        clip_id=clip,
        recording_id=pl.coalesce("recording_id", pl.when(pl.col("start_s").is_null()).then(clip), name),
        provenance=pl.coalesce("provenance", pl.lit(f"table: {table.name}")),
        reason=pl.when(pl.col("path").is_null()).then(pl.lit("the table gives no path")).otherwise(pl.col("reason")),
    )
    return _placed(typed.drop("row"), table)


def with_unnamed(clips: pl.LazyFrame, root: Path, table: str) -> pl.LazyFrame:
    """Clips of a table, and the files below its folder that it does not name."""
    there = pl.DataFrame(
        [(one.name, str(one.path), one.num_pictures) for one in media(root)],
        schema={"clip_id": pl.String, "path": pl.String, "pictures": pl.Int64},
        orient="row",
    ).lazy()
    # A table may name a folder of pictures with a query of its own, a file of an archive, or a path with links in it.
    there = there.with_columns(place=pl.col("path").str.split("?").list.first())
    named = clips.select(place=pl.col("path").str.split("?").list.first()).unique()
    shards = named.select(place=pl.col("place").str.extract(r"^(.*\.tar)/")).drop_nulls().unique()
    unnamed = there.join(named, on="place", how="anti").join(shards, on="place", how="anti")
    return pl.concat(
        [
            clips,
            unnamed.select(
                "clip_id",
                "path",
                recording_id="clip_id",
                provenance=pl.lit("folder"),
                reason=pl.lit(UNNAMED.format(table=table)),
            ),
        ],
        how="diagonal_relaxed",
    )


def _tables(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() in SUFFIXES else []
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    return [file for file in files if _lists_clips(file)]


def _lists_clips(file: Path) -> bool:
    try:
        return bool({"path", *(name for name, column in ALIASES.items() if column == "path")} & set(_header(file)))
    except (pl.exceptions.PolarsError, OSError, ValueError):
        return False


def _header(file: Path) -> list[str]:
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        with file.open("rb") as text:
            line = text.readline()
        return pl.read_ndjson(line, infer_schema_length=1).columns if line.strip() else []
    return _scan(file).collect_schema().names()


def _scan(table: Path) -> pl.LazyFrame:
    """The table with our names for its columns; of CSV and JSON every value is text."""
    suffix = table.suffix.lower()
    wanted = [*METADATA_SCHEMA, *OTHER, *ALIASES]
    if suffix == ".parquet":
        rows = pl.scan_parquet(table)
    elif suffix in (".jsonl", ".ndjson"):
        rows = pl.scan_ndjson(table, schema=dict.fromkeys(wanted, pl.String()))
        return _aliased(rows, [name for name in wanted if name not in GIVEN])
    else:
        rows = pl.scan_csv(table, infer_schema=False, separator=_separator(table), encoding="utf8-lossy")
    return _aliased(rows, rows.collect_schema().names())


def _aliased(rows: pl.LazyFrame, names: list[str]) -> pl.LazyFrame:
    """Short names made long; where a table has both, the long one wins."""
    short: dict[str, list[str]] = {}
    for alias, column in ALIASES.items():
        if alias in names:
            short.setdefault(column, [column] if column in names else []).append(alias)
    made = [pl.coalesce(columns).alias(column) for column, columns in short.items()]
    aliases = [alias for columns in short.values() for alias in columns if alias in ALIASES]
    return rows.with_columns(made).drop(aliases) if made else rows


def _separator(table: Path) -> str:
    with table.open(encoding="utf-8-sig", errors="replace") as text:
        header = text.readline()
    return max(",;\t", key=header.count) if table.suffix.lower() == ".csv" else "\t"


def _trimmed(column: str) -> pl.Expr:
    text = pl.col(column).str.strip_chars()
    return pl.when(text != "").then(text)


def _typed(rows: pl.LazyFrame, known: set[str]) -> list[pl.Expr]:
    """All columns of a reader in their types; a number that is none is told in `reason`."""
    schema = rows.collect_schema()
    made: dict[str, pl.Expr] = {}
    faults: list[pl.Expr] = []
    for column in (*TIMES, *NUMBERS):
        if column in known:
            made[column] = seconds(column) if column in TIMES else _whole(column)
            if schema[column] == pl.String:
                wrong = pl.col(column).is_not_null() & made[column].is_null()
                faults.append(pl.when(wrong).then(pl.format(f"{column} = {{}}: not a number", pl.col(column))))
    if "end_s" in made:
        end = made.pop("end_s") - made.get("start_s", pl.lit(0.0))
        made["duration_s"] = pl.coalesce(made["duration_s"], end) if "duration_s" in made else end
    if "fps" in known:
        for part, column in zip(rate("fps"), ("fps_num", "fps_den"), strict=True):
            made[column] = pl.coalesce(made[column], part) if column in made else part
        wrong = pl.col("fps").is_not_null() & made["fps_num"].is_null()
        faults.append(pl.when(wrong).then(pl.format("fps = {}: not a frame rate", pl.col("fps").cast(pl.String))))
    if "duration_s" in made:
        backwards = made["duration_s"] < 0
        faults.append(pl.when(backwards).then(pl.lit(BACKWARDS)))
        made["duration_s"] = pl.when(~backwards).then(made["duration_s"])
    if "reason" in known:
        faults.insert(0, pl.col("reason").cast(pl.String))
    made["reason"] = pl.coalesce(faults) if faults else pl.lit(None)
    found = []
    for column, kind in METADATA_SCHEMA.items():
        if column in GIVEN:
            continue
        value = made.get(column, pl.col(column) if column in known else pl.lit(None))
        found.append(value.cast(kind).alias(column))
    return found


def _whole(column: str) -> pl.Expr:
    """Whole numbers, of which spreadsheets make 30.0."""
    return pl.col(column).cast(pl.Float64, strict=False).round().cast(pl.Int64, strict=False)


def _placed(clips: pl.LazyFrame, table: Path) -> pl.LazyFrame:
    """Absolute paths; relative ones are looked for, batch by batch as the table is read."""
    folder = table.parent.absolute()
    relative = ~pl.col("path").str.contains(ABSOLUTE)

    def gone(paths: pl.Series) -> pl.Series:
        wanted = paths.filter(~paths.str.contains(ABSOLUTE)).unique()
        missing = [path for path in wanted.drop_nulls() if not _file(folder, path).exists()]
        return paths.is_in(missing).fill_null(False)

    missing = pl.col("path").map_batches(gone, return_dtype=pl.Boolean, is_elementwise=True)
    placed = pl.concat_str(pl.lit(f"{folder}/"), pl.col("path").str.strip_prefix("./"))
    return clips.with_columns(
        reason=pl.coalesce("reason", pl.when(missing).then(pl.lit(MISSING.format(table=table.name)))),
        path=pl.when(relative).then(placed).otherwise("path"),
    )


def _file(folder: Path, path: str) -> Path:
    """What must be there: a member of an archive is if the archive is; whether it holds it shows when it is decoded."""
    path = path.split("?", 1)[0]
    archive, inside, _ = path.partition(".tar/")
    return folder / (f"{archive}.tar" if inside else path)
