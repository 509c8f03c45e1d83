"""A table that lists clips: CSV, TSV, JSON lines or Parquet, with a path and any of the catalogue's columns.

    path,participant_id,scene_id,task
    monday/a.mp4,p1,kitchen,wash up
    monday/b.mp4,p2,kitchen,wash up

`path` (or `file`) is relative to the folder of the table, or absolute. Further columns that are read: all of
METADATA_SCHEMA, `end_s` in place of `duration_s`, `fps` (29.97, 30000/1001) in place of `fps_num` and `fps_den`, and
the short names of ALIASES, in capitals or not, blanks about them or not; others are let alone, and told by `notes`.
Times are seconds, or `hh:mm:ss.ff`; NaN is an empty cell. A row with a `start_s` or an `end_s` is a piece of its file;
one without is the whole of it.

A column `selected` marks a table of `egoscale catalog select`: a row where it is false is not usable. A catalogue or
selection read as a source of the name that its own rows give keeps its clip ids: `lab=selection.parquet` holds
`lab/a.mp4`, not `lab/lab/a.mp4`.

The source is the table itself, or a folder with one such table in it: then files that it does not name are rows too.
"""

from __future__ import annotations

import codecs
import difflib
import json
import os
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import islice
from pathlib import Path

import polars as pl

from egoscale.video.images import QUERY
from egoscale.video.readers.clip import METADATA_SCHEMA
from egoscale.video.readers.files import media
from egoscale.video.readers.match import MISSING, UNNAMED
from egoscale.video.readers.times import BACKWARDS, rate, seconds
from egoscale.video.stream import first_line

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
TIMES = ("start_s", "end_s", "duration_s", "original_start_s")
NUMBERS = tuple(name for name, kind in METADATA_SCHEMA.items() if kind.is_numeric() and name not in TIMES)
OTHER = ("end_s", "fps")
READ = (*METADATA_SCHEMA, *OTHER, "selected")
UNREADABLE = (pl.exceptions.PolarsError, OSError, ValueError)
NOTED_TABLES = 3  # of a folder without a list of clips; there may be a table beside every video
HEADER_LINES = 100  # of JSON lines, whose keys are taken for those of all
GIVEN = ("source",)  # columns that the catalogue decides
NOT_SELECTED = "not selected"
ABSOLUTE = r"^/|^[a-zA-Z][a-zA-Z0-9+.-]*://"


def finds(root: Path) -> str | None:
    """The table that lists clips: named as the source, or the only one in the folder."""
    found = _tables(root)
    return ", ".join(file.name for file in found) or None


def notes(root: Path) -> list[str]:
    """The columns of the table that are not read, each with the name that may have been meant."""
    return [note for file in _tables(root) if (note := unread(file))]


def unread(table: Path) -> str | None:
    """The columns of one table that are not read; None where there are none.

    None, too, for a catalogue, whose others are its own, and for a table that cannot be read: reading it tells why.
    """
    try:
        names = _header(table)
    except UNREADABLE:
        return None
    known = _known(names)
    others = [name for name in names if name not in known]
    if not others or {"clip_id", "source"} <= set(known.values()):
        return None
    told = []
    for other in others:
        near = difflib.get_close_matches(_plain(other).replace(" ", "_"), [*READ, *ALIASES], n=1)
        told.append(f"{other!r}" + (f" (`{near[0]}` is)" if near else ""))
    return f"{table.name}: columns that are not read: {', '.join(told)}"


def no_lists(root: Path) -> list[str]:
    """Tables in a folder that list no clips, and why not."""
    files = _files(root)
    told = []
    for file in files[:NOTED_TABLES]:
        try:
            names = _header(file)
        except UNREADABLE as error:
            told.append(f"{file.name} is there, but cannot be read: {first_line(error)}")
            continue
        if "path" not in _known(names).values():
            has = ", ".join(names[:12]) or "none"
            told.append(f"{file.name} is there, but has no column `path` or `file`; it has {has}")
    if told and len(files) > NOTED_TABLES:
        told.append(f"{len(files) - NOTED_TABLES} more tables are there")
    return told


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
        raise ValueError(f"{table}: no column `path` or `file`; it has {', '.join(_header(table)[:12]) or 'none'}")
    rows = rows.with_columns(_filled(column, kind) for column, kind in rows.collect_schema().items() if column in known)
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
        [(one.name, str(one.path), one.reason) for one in media(root)],
        schema={"clip_id": pl.String, "path": pl.String, "fault": pl.String},
        orient="row",
    )
    # A table may name a folder of pictures with a query of its own, or a file of an archive.
    place = pl.col("path").str.replace(f"(?s){QUERY.pattern}", "${1}")
    there = there.with_columns(place=place)
    named = clips.select(place=place).drop_nulls().unique().collect()
    tar = pl.col("place").str.extract(r"^(.*\.tar)/")
    shards = named.select(place=tar).drop_nulls().unique()
    unnamed = there.join(named, on="place", how="anti").join(shards, on="place", how="anti")
    if not unnamed.is_empty():  # two paths may lead to one file: by "..", by "//", by a link on the way
        others = pl.concat([named.filter(tar.is_null()), shards]).join(there, on="place", how="anti")
        real_folder = cache(os.path.realpath)  # a folder is looked up once for all that lies in it

        def straight(place: str) -> str:
            folder, _, name = place.rpartition("/")
            return f"{real_folder(folder)}/{name}"

        meant = set(map(straight, others["place"]))
        unnamed = unnamed.filter([not {straight(one), os.path.realpath(one)} & meant for one in unnamed["place"]])
    return pl.concat(
        [
            clips,
            unnamed.lazy().select(
                "clip_id",
                "path",
                recording_id="clip_id",
                provenance=pl.lit("folder"),
                reason=pl.coalesce("fault", pl.lit(UNNAMED.format(table=table))),
            ),
        ],
        how="diagonal_relaxed",
    )


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _tables(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() in SUFFIXES else []
    return [file for file in _files(root) if _lists_clips(file)]


def _lists_clips(file: Path) -> bool:
    try:
        return "path" in _known(_header(file)).values()
    except UNREADABLE:
        return False


def _header(file: Path) -> list[str]:
    """The names of the columns as they are written."""
    if not _is_json(file):
        return _scanned(file).collect_schema().names()
    with file.open(encoding=_encoding(file)) as text:
        try:
            objects = [json.loads(line) for line in islice(text, HEADER_LINES) if line.strip()]
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: a line that is not JSON: {error.doc.strip()[:80]!r}") from None
    return list(dict.fromkeys(key for one in objects if isinstance(one, dict) for key in one))


def _scan(table: Path) -> pl.LazyFrame:
    """The table with our names for its columns; of CSV and JSON every value is text."""
    rows = _scanned(table)
    return _named(rows, _known(name for name in rows.collect_schema().names() if name not in GIVEN))


def _scanned(table: Path) -> pl.LazyFrame:
    if table.suffix.lower() == ".parquet":
        return pl.scan_parquet(table)
    text = _text(table)
    if _is_json(table):
        names = [*METADATA_SCHEMA, *OTHER, *ALIASES, *_known(_header(table))]
        return pl.scan_ndjson(text, schema=dict.fromkeys(names, pl.String()))
    return pl.scan_csv(text, infer_schema=False, separator=_separator(table), encoding="utf8-lossy")


def _plain(name: str) -> str:
    return name.replace("\ufeff", "").strip().lower()


def _known(names: Iterable[str]) -> dict[str, str]:
    """Of the names in a table those that are read, {name: our name for it}; capitals and blanks about it do not
    count."""
    meant = {name: ALIASES.get(_plain(name), _plain(name)) for name in names}
    return {name: column for name, column in meant.items() if column in READ}


def _named(rows: pl.LazyFrame, known: dict[str, str]) -> pl.LazyFrame:
    """The columns by our names for them; where a table has several for one, ours wins, then ALIASES in their order."""
    rank = {name: place for place, name in enumerate(ALIASES, 1)}
    of: dict[str, list[str]] = {}
    for name in sorted(known, key=lambda name: (name != known[name], rank.get(_plain(name), 0))):
        of.setdefault(known[name], []).append(name)
    made = [pl.coalesce(names).alias(column) for column, names in of.items() if names != [column]]
    return rows.with_columns(made).drop(name for name in known if name not in of)


def _is_json(table: Path) -> bool:
    return table.suffix.lower() in (".jsonl", ".ndjson")


def _encoding(table: Path) -> str:
    with table.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _text(table: Path) -> Path | bytes:
    """What polars reads: the file, or its text in UTF-8, of UTF-16 (Excel's "Unicode text") and of JSON with a mark."""
    if _encoding(table) == "utf-16":
        return table.read_bytes().decode("utf-16").encode()
    with table.open("rb") as file:
        marked = file.read(3) == codecs.BOM_UTF8
    return table.read_bytes()[3:] if marked and _is_json(table) else table


def _separator(table: Path) -> str:
    with table.open(encoding=_encoding(table), errors="replace") as text:
        header = text.readline()
    return max(",;\t", key=header.count) if table.suffix.lower() == ".csv" else "\t"


def _filled(column: str, kind: pl.DataType) -> pl.Expr:
    """A column of a table, null where its cell is empty: without a letter, or NaN where a number belongs."""
    number = column in (*TIMES, *NUMBERS, *OTHER)
    if kind != pl.String:
        return pl.col(column).fill_nan(None) if number and kind.is_float() else pl.col(column)
    text = pl.col(column).str.strip_chars()
    empty = (text == "") | (text.str.to_lowercase() == "nan") if number else text == ""
    return pl.when(~empty).then(text).alias(column)


def _typed(rows: pl.LazyFrame, known: set[str]) -> list[pl.Expr]:
    """All columns of a reader in their types; a number that is none is told in `reason`."""
    schema = rows.collect_schema()
    made: dict[str, pl.Expr] = {}
    faults: list[pl.Expr] = []
    for column in (*TIMES, *NUMBERS):
        if column in known:
            made[column] = seconds(column) if column in TIMES else _whole(column)
            if schema[column] == pl.String or schema[column].is_float():
                wrong = pl.col(column).is_not_null() & made[column].is_null()
                faults.append(pl.when(wrong).then(pl.format(f"{column} = {{}}: not a number", pl.col(column))))
    if "end_s" in made:
        end, empty = made.pop("end_s"), pl.col("start_s").is_null() if "start_s" in known else pl.lit(True)
        first = pl.when(empty & end.is_not_null()).then(0.0)
        made["start_s"] = pl.coalesce(made["start_s"], first) if "start_s" in made else first
        length = end - made["start_s"]
        made["duration_s"] = pl.coalesce(made["duration_s"], length) if "duration_s" in made else length
    if "start_s" in made:
        before = made["start_s"].round(6) < 0  # but for an error of rounding
        faults.append(pl.when(before).then(pl.format("start_s = {}: it begins before its file", made["start_s"])))
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
    """Absolute paths, spelled as the files are; relative ones are looked for, batch by batch as the table is read."""
    folder = table.parent.absolute()

    def spelled(paths: pl.Series) -> pl.Series:
        foreign = paths.filter(paths.str.contains(r"[^\x00-\x7f]")).drop_nulls().unique()
        return paths.replace({path: _spelled(folder, path) for path in foreign})

    clips = clips.with_columns(pl.col("path").map_batches(spelled, return_dtype=pl.String, is_elementwise=True))
    relative = ~pl.col("path").str.contains(ABSOLUTE)

    def gone(paths: pl.Series) -> pl.Series:
        wanted = paths.filter(~paths.str.contains(ABSOLUTE)).unique()
        missing = [path for path in wanted.drop_nulls() if not _there(_file(folder, path))]
        return paths.is_in(missing).fill_null(False)

    missing = pl.col("path").map_batches(gone, return_dtype=pl.Boolean, is_elementwise=True)
    placed = pl.concat_str(pl.lit(f"{folder}/"), pl.col("path").str.strip_prefix("./"))
    return clips.with_columns(
        reason=pl.coalesce("reason", pl.when(missing).then(pl.lit(MISSING.format(table=table.name)))),
        path=pl.when(relative).then(placed).otherwise("path"),
    )


def _file(folder: Path, path: str) -> Path:
    """What must be there: a member of an archive is if the archive is; whether it holds it shows when it is decoded."""
    asked = QUERY.match(path)
    path = asked[1] if asked else path
    archive, inside, _ = path.partition(".tar/")
    return folder / (f"{archive}.tar" if inside else path)


def _there(file: Path) -> bool:
    """Whether it is, or may be: what lies in a folder that is closed to us shows when it is decoded."""
    try:
        return file.exists()
    except OSError:
        return True


def _spelled(folder: Path, path: str) -> str:
    """A path with its accents in one letter or in two, as the file has them: a Mac takes the letter apart."""
    forms = (path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path))
    return next((form for form in forms if _there(_file(folder, form))), path)
