"""Times and rates in the forms in which data sets write them."""

from __future__ import annotations

from fractions import Fraction

import polars as pl

# "0 days 00:00:18.116", "00:01:02.5", "1:02.5" and "62.5" are the same kind of thing.
NO_TIME = "its start or its end is no time"
BACKWARDS = "it ends before it begins"
MAX_HZ = 1e12  # faster than any clock of a file, and well within whole numbers of 64 bits
CLOCK = r"^\s*(?:(\d+) days? )?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)\s*$"


def seconds(column: str) -> pl.Expr:
    """Seconds of a text column: `hh:mm:ss.ff` (EPIC-KITCHENS), `0 days hh:mm:ss.ffffff` (pandas), or plain numbers.

    Null where it is none of them, or not finite.
    """
    text = pl.col(column).cast(pl.String)
    part = [text.str.extract(CLOCK, group).cast(pl.Float64, strict=False) for group in (1, 2, 3, 4)]
    clock = part[0].fill_null(0) * 86_400 + part[1].fill_null(0) * 3600 + part[2] * 60 + part[3]
    plain = text.str.strip_chars().cast(pl.Float64, strict=False)
    return pl.coalesce(clock, pl.when(plain.is_finite()).then(plain))


def span(begin: str, end: str) -> dict[str, pl.Expr]:
    """`start_s`, `duration_s` and `reason` of a piece between two columns of seconds."""
    unknown = pl.col(begin).is_null() | pl.col(end).is_null()
    late = pl.col(end) <= pl.col(begin)
    told = pl.when(unknown).then(pl.lit(NO_TIME)).when(late).then(pl.lit(BACKWARDS))
    return {
        "start_s": pl.col(begin).fill_null(0.0),
        "duration_s": pl.when(~late).then(pl.col(end) - pl.col(begin)),
        "reason": told,
    }


def rate(column: str) -> tuple[pl.Expr, pl.Expr]:
    """Numerator and denominator of a column of frame rates: numbers, or texts as "29.97" and "30000/1001".

    59.94 and its like are 60000/1001 (NTSC), which two digits cannot say. Null where it is no positive number, or one
    above MAX_HZ.
    """
    text = pl.col(column).cast(pl.String).str.strip_chars()
    given = [text.str.extract(r"^(\d+)\s*/\s*(\d+)$", group).cast(pl.Int64, strict=False) for group in (1, 2)]
    given = [pl.when(given[0] > 0, given[1] > 0).then(part) for part in given]
    hz = text.cast(pl.Float64, strict=False)
    hz = pl.when((hz > 0) & (hz < MAX_HZ)).then(hz)  # for polars, a NaN is above 0
    whole, ntsc = hz.round().cast(pl.Int64), (hz * 1.001).round().cast(pl.Int64)
    is_whole, is_ntsc = (hz - whole).abs() < 0.002, (hz - ntsc * 1000 / 1001).abs() < 0.006
    num = pl.when(is_whole).then(whole).when(is_ntsc).then(ntsc * 1000).otherwise((hz * 1000).round().cast(pl.Int64))
    den = pl.when(hz.is_null()).then(None).when(is_whole).then(1).when(is_ntsc).then(1001).otherwise(1000)
    return pl.coalesce(given[0], num), pl.coalesce(given[1], den.cast(pl.Int64))


def fraction(hz: float | str | None) -> tuple[int | None, int | None]:
    """One frame rate as a fraction, by the same rules; (None, None) for one that says nothing."""
    frame = pl.DataFrame({"hz": [None if hz is None else str(hz)]}, schema={"hz": pl.String})
    num, den = frame.select(*(part.alias(name) for part, name in zip(rate("hz"), ("num", "den"), strict=True))).row(0)
    if num is None or not den:
        return None, None
    reduced = Fraction(num, den)
    return (num, den) if den == 1001 else (reduced.numerator, reduced.denominator)
