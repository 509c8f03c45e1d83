"""Scores beside a catalogue: one folder a scorer and version, one file a shard, joined by clip when it is read.

`catalog.parquet` is followed by `catalog.scores/<scorer>-v<version>/part-<i>-of-<n>.parquet`. A table of scores is
never changed: a better scorer is a higher version, and the highest is read. What `egoscale catalog probe` finds lies
there too; its columns take the place of those that were only declared, of clips that the catalogue itself knows
nothing of. Scores that name the bytes they were made of hold for these bytes alone: of a clip whose file is another
by now they are null.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from polars import selectors

PROBE = "probe"
INPUT_KEY = "input_key"  # tells of what a row was computed; of no interest to readers
CONTENT = "sha256"  # of the catalogue: the bytes of a clip's file
MADE_OF = "made_of_sha256"  # what CONTENT was when a row was computed
OUTDATED = "made of other bytes than the file has now"
SCORER = re.compile(r"(?P<name>[a-z][a-z0-9_-]*)-v(?P<version>\d+)")
PART = re.compile(r"part-(?P<index>\d{5})-of-(?P<count>\d{5})\.parquet")
TEXTS = (".csv", ".jsonl", ".ndjson")  # tables whose numbers are written out, and read by `_numbers`
UNMEASURED = ("", "nan", "na", "n/a", "null", "none")  # what stands in them where nobody measured, in any case


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 0) of `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count <= 99_999:
            raise ValueError(f"shard {self}: say I/N with 0 <= I < N, as in 0/8 to 7/8")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "I/N". Raises ValueError where it is not that."""
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None:
            raise ValueError(f"shard {text!r}: say I/N with 0 <= I < N, as in 0/8 to 7/8")
        return cls(int(match[1]), int(match[2]))


def scorer_folder(catalog: Path, scorer: str, version: int) -> Path:
    """Where the parts of one scorer lie."""
    return catalog.with_suffix(".scores") / f"{scorer}-v{version}"


def part_path(catalog: Path, scorer: str, version: int, shard: Shard) -> Path:
    """Where one shard of one scorer lies."""
    return scorer_folder(catalog, scorer, version) / f"part-{shard.index:05d}-of-{shard.count:05d}.parquet"


def open_catalog(path: Path, partial: bool = False, scorers: Collection[str] | None = None) -> pl.LazyFrame:
    """A catalogue with everything that is known of its clips: what was probed in shards, and the newest scores.

    Args:
        path: the catalogue, or the folder that holds a `catalog.parquet`.
        partial: read what there is of an unfinished scorer; its other clips have nulls.
        scorers: join only these; None = all.

    Raises:
        FileNotFoundError: no catalogue; shards of the newest version of a scorer that are not there.
        ValueError: a scorer that was run twice with different numbers of shards, a file that is no part of one, two
            scorers with the same column.
    """
    file = catalog_file(path)
    catalog = pl.scan_parquet(file)
    columns = catalog.collect_schema().names()
    for name, folder in sorted(_newest(file).items(), key=lambda found: (found[0] != PROBE, found[0])):
        parts = _parts(folder, partial) if scorers is None or name in scorers else []
        if not parts:
            continue
        scores = pl.scan_parquet(parts)
        of_bytes = MADE_OF in scores.collect_schema() and CONTENT in columns
        scores = scores.drop(INPUT_KEY, *(() if of_bytes else (MADE_OF,)), strict=False)
        added = [column for column in scores.collect_schema().names() if column not in ("clip_id", MADE_OF)]
        if name == PROBE:
            catalog = _probed(catalog, columns, scores, added)
        else:
            if twice := [column for column in added if column in columns]:
                raise ValueError(f"{folder}: column {twice[0]!r} is in the catalogue or another scorer already")
            catalog = catalog.join(scores, on="clip_id", how="left", maintain_order="left")
        if of_bytes:
            catalog = _of_these_bytes(catalog, name, added)
        columns += [column for column in added if column not in columns]
    return catalog


def join_columns(catalog: pl.LazyFrame, file: Path, numbers: Collection[str] = ()) -> pl.LazyFrame:
    """A catalogue with the columns of a table made elsewhere, joined by `clip_id`: hand visibility, captions, ….

    Args:
        file: .parquet, .csv or .jsonl with a column `clip_id`, each clip at most once. Clips that it does not name
            have nulls.
        numbers: columns that are numbers. Of a CSV all others are texts. NaN and words for it are nulls.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, no `clip_id`, a clip twice, a column that the catalogue has, no clip of the
            catalogue in it, or a number that is none.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such table of columns")
    if file.suffix.lower() not in (".parquet", *TEXTS):
        raise ValueError(f"{file}: tables are read from .parquet, {', '.join(TEXTS)}")
    try:
        table = _table(file, numbers)
        added = table.collect_schema().names()
        table = table.with_columns(pl.col("clip_id").cast(pl.String)) if "clip_id" in added else table
        ids = table.select(pl.col("clip_id") if "clip_id" in added else pl.lit(None)).collect().to_series()
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{file}: not a table that can be read ({str(error).splitlines()[0]})") from None
    if "clip_id" not in added:
        raise ValueError(f"{file}: no column `clip_id` to join by; it has {', '.join(added[:8])}")
    if both := sorted((set(added) & set(catalog.collect_schema().names())) - {"clip_id"}):
        raise ValueError(f"{file}: the catalogue has a column {both[0]!r} already; give yours another name")
    if ids.n_unique() < len(ids):
        raise ValueError(f"{file}: clip {ids.filter(ids.is_duplicated()).min()!r} stands in it more than once")
    known = catalog.select("clip_id").join(ids.to_frame().lazy(), on="clip_id", how="semi")
    if len(ids) and not known.select(pl.len()).collect().item():
        example = catalog.select(pl.col("clip_id").first()).collect().item()
        raise ValueError(f"{file}: not one clip of the catalogue: it names {ids[0]!r}, the catalogue {example!r}")
    if file.suffix.lower() in TEXTS:
        table = _numbers(file, table, [column for column in added if column in numbers])
    table = table.with_columns(selectors.float().fill_nan(None))
    return catalog.join(table, on="clip_id", how="left", maintain_order="left")


def _table(file: Path, numbers: Collection[str]) -> pl.LazyFrame:
    """The table, with the text of its ids (000017 is no number) and of its numbers where they are written out."""
    if file.suffix.lower() == ".parquet":
        return pl.scan_parquet(file)
    if file.suffix.lower() == ".csv":
        return pl.scan_csv(file, infer_schema=False)
    rows = pl.scan_ndjson(file)
    there = [column for column in ("clip_id", *numbers) if column in rows.collect_schema()]
    return pl.scan_ndjson(file, schema_overrides=dict.fromkeys(there, pl.String()))


def _numbers(file: Path, table: pl.LazyFrame, columns: Collection[str]) -> pl.LazyFrame:
    """These columns as numbers. Raises ValueError for a text that is neither a number nor a word for none."""
    for column in columns:
        text = pl.col(column).str.strip_chars()
        plain = text.str.to_lowercase()
        known = pl.when(~plain.is_in(UNMEASURED)).then(text.replace({"true": "1", "false": "0"}))
        wrong = known.is_not_null() & known.cast(pl.Float64, strict=False).is_null()
        bad = table.with_row_index("row", 1).filter(wrong).select("row", "clip_id", column).first().collect()
        if bad.height:
            row, clip, value = bad.row(0)
            raise ValueError(
                f"{file}: column {column!r}, row {row} (clip {clip!r}): {value!r} is not a number, which limits need;"
                " leave it empty where nobody measured"
            )
        table = table.with_columns(known.cast(pl.Float64, strict=False).alias(column))
    return table


def catalog_file(path: Path) -> Path:
    """The file of a catalogue, which may be named by its folder. Raises FileNotFoundError."""
    file = path / "catalog.parquet" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such catalogue; `egoscale catalog build` writes one")
    return file


def _newest(catalog: Path) -> dict[str, Path]:
    """The folder of the highest version of each scorer."""
    found: dict[str, tuple[int, Path]] = {}
    root = catalog.with_suffix(".scores")
    for folder in root.iterdir() if root.is_dir() else ():
        match = SCORER.fullmatch(folder.name)
        if match is not None and folder.is_dir() and any(folder.glob("part-*")):
            found[match["name"]] = max(found.get(match["name"], (-1, folder)), (int(match["version"]), folder))
    return {name: folder for name, (_, folder) in found.items()}


def _parts(folder: Path, partial: bool) -> list[Path]:
    parts, counts = {}, set()
    for file in folder.glob("part-*.parquet"):
        if (match := PART.fullmatch(file.name)) is None:
            raise ValueError(f"{file}: not named part-<i>-of-<n>.parquet; move it elsewhere")
        parts[int(match["index"])] = file
        counts.add(int(match["count"]))
    if len(counts) > 1:
        ways = " and ".join(str(count) for count in sorted(counts))
        raise ValueError(f"{folder}: it was run in {ways} shards, which overlap; delete the files of one")
    missing = [i for i in range(max(counts, default=1)) if i not in parts]
    if missing and not partial:
        shown = ", ".join(map(str, missing[:20])) + (", …" if len(missing) > 20 else "")
        verb = PROBE if folder.name.startswith(f"{PROBE}-v") else "score"
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {max(counts, default=1)} shards are not done: {shown};"
            f" run `egoscale catalog {verb}` with --shard for each of them, or delete the folder"
        )
    return [parts[i] for i in sorted(parts)]


def _probed(catalog: pl.LazyFrame, columns: list[str], scores: pl.LazyFrame, added: list[str]) -> pl.LazyFrame:
    """What was probed takes the place of what was declared, for the clips that were.

    A clip that a build has decoded, or that has a reason, is as the catalogue says: it is younger than the probe.
    """
    found = scores.rename({column: f"{column}:probed" for column in added}).with_columns(pl.lit(True).alias(":probed"))
    joined = catalog.join(found, on="clip_id", how="left", maintain_order="left")
    joined = joined.with_columns(pl.col(":probed") & pl.col("usable").is_null() & pl.col("reason").is_null())
    replaced = [
        pl.when(pl.col(":probed")).then(pl.col(f"{column}:probed")).otherwise(pl.col(column)).alias(column)
        if column in columns
        else pl.col(f"{column}:probed").alias(column)
        for column in added
    ]
    return joined.with_columns(replaced).drop(":probed", *(f"{column}:probed" for column in added))


def _of_these_bytes(catalog: pl.LazyFrame, scorer: str, added: list[str]) -> pl.LazyFrame:
    """Without the scores of clips whose file is another than the one they were made of; the scorer's reason says so."""
    scored = pl.col(MADE_OF).is_not_null() | pl.any_horizontal(pl.col(added).is_not_null())
    outdated = scored & ~pl.col(MADE_OF).eq_missing(pl.col(CONTENT))
    told = {f"{scorer}_reason": pl.lit(OUTDATED)}
    kept = [pl.when(outdated).then(told.get(column)).otherwise(pl.col(column)).alias(column) for column in added]
    return catalog.with_columns(kept).drop(MADE_OF)
