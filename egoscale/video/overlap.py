"""Seconds that clips of one file share: cut with overlap, they are still the same video."""

from __future__ import annotations

import polars as pl


def in_original(catalog: pl.LazyFrame) -> pl.LazyFrame:
    """With `path` and `start_s` of what copies were made of: copies of pieces are files of their own, and share the
    seconds that the pieces shared."""
    names = catalog.collect_schema().names()
    own = [name for name in ("path", "start_s") if f"original_{name}" in names]
    return catalog.with_columns(pl.coalesce(f"original_{name}", name).alias(name) for name in own)


def unique_microseconds(pieces: pl.DataFrame) -> pl.DataFrame:
    """`row` and `unique_us`, the microseconds of a piece that no earlier piece of its file covers.

    pieces: `row` (their order where two begin at once), `file` (a number for each file), `start_us`, `us`. Only files
    with several pieces are sorted, which is cheap where most files are one clip.
    """
    shared = pieces.filter(pl.len().over("file") > 1).sort("file", "start_us", "row")
    end = pl.col("start_us") + pl.col("us")
    covered = end.cum_max().shift().over("file")
    fresh = end - pl.max_horizontal("start_us", covered.fill_null(0))
    return shared.select("row", unique_us=fresh.clip(0))
