"""Clips that a table declares, and the files that are there: what is in one and not in the other is told."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from egoscale.video.readers.files import Media

MISSING = "No such file: declared by {table}, and not in the folder"
UNNAMED = "not named by {table}"
COPY = "the same video is taken from {path}"


def keyed(files: Iterable[tuple[str, Media]]) -> pl.LazyFrame:
    """Files with the name (`key`) by which a table knows them; of several with one key the first is taken.

    One that cannot be read as it lies (`fault`) has no key: a table does not mean it.
    """
    rows = [(None if one.reason else key, one.name, str(one.path), one.reason) for key, one in files]
    schema = {"key": pl.String, "name": pl.String, "path": pl.String, "fault": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row").lazy()


def matched(declared: pl.LazyFrame, files: pl.LazyFrame, table: str) -> pl.LazyFrame:
    """Rows of a reader: declared clips with their file, then the files that belong to none.

    Args:
        declared: columns of a reader and `key`; its `path`, if there is one, is where the file should be.
        files: of `keyed`. Several clips may share a file.
        table: the name of the table, for the reasons.
    """
    taken = files.unique("key", keep="first", maintain_order=True)
    columns = declared.collect_schema().names()
    expected = pl.col("path") if "path" in columns else pl.lit(None, pl.String)
    known = pl.col("reason") if "reason" in columns else pl.lit(None, pl.String)
    placed = declared.with_columns(path=expected, reason=known).join(
        taken.select("key", found="path"), on="key", how="left", maintain_order="left"
    )
    placed = placed.with_columns(
        path=pl.coalesce("found", "path"),
        reason=pl.coalesce("reason", pl.when(pl.col("found").is_null()).then(pl.lit(MISSING.format(table=table)))),
    ).drop("found", "key")
    unnamed = files.join(declared.select("key"), on="key", how="anti").with_columns(
        reason=pl.coalesce("fault", pl.lit(UNNAMED.format(table=table)))
    )
    copies = (
        files.join(declared.select("key"), on="key", how="semi")
        .join(taken.select("key", taken="path"), on="key")
        .filter(pl.col("path") != pl.col("taken"))
        .with_columns(reason=pl.format(COPY.format(path="{}"), "taken"))
    )
    others = pl.concat([unnamed.select("name", "path", "reason"), copies.select("name", "path", "reason")])
    return pl.concat(
        [
            placed,
            others.select(
                clip_id="name", path="path", recording_id="name", provenance=pl.lit("folder"), reason="reason"
            ),
        ],
        how="diagonal_relaxed",
    )
