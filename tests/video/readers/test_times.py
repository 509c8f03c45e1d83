"""Times in all the forms that data sets write, and frame rates as fractions."""

from __future__ import annotations

from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egoscale.video.readers.times import fraction, rate, seconds


def in_seconds(*texts):
    return pl.DataFrame({"t": list(texts)}, schema={"t": pl.String}).select(seconds("t"))["t"].to_list()


def test_forms_of_epic_kitchens_of_pandas_and_plain_seconds():
    found = in_seconds("00:01:02.50", "0 days 00:00:18.116000", "1 day 00:00:01", "7.44", "1:05", " 12 ", "end", None)
    assert found == [62.5, pytest.approx(18.116), 86401.0, 7.44, 65.0, 12.0, None, None]
    assert in_seconds("nan", "inf", "-inf", "1e999") == [None] * 4, "no times"


@given(st.integers(0, 99 * 3600 * 1000))
def test_a_clock_and_its_seconds_are_the_same_time(ms):
    whole, rest = divmod(ms, 1000)
    clock = f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{rest:03d}"
    assert in_seconds(clock, f"0 days {clock}", f"{ms / 1000}") == [pytest.approx(ms / 1000, abs=1e-9)] * 3


@pytest.mark.parametrize(
    "said, fps",
    [
        (30, (30, 1)),
        ("29.97", (30000, 1001)),
        ("29.97002997002997", (30000, 1001)),
        (59.9400599400599, (60000, 1001)),
        ("47.952047952047955", (48000, 1001)),
        ("23.976", (24000, 1001)),
        ("30000/1001", (30000, 1001)),
        (90.0, (90, 1)),
        (12.5, (25, 2)),
        (1.0, (1, 1)),
        ("fast", (None, None)),
        ("nan", (None, None)),
        (float("inf"), (None, None)),
        ("1e300", (None, None)),
        ("30/0", (None, None)),
        (0, (None, None)),
        (None, (None, None)),
    ],
)
def test_rates_become_the_fractions_that_cameras_run_at(said, fps):
    assert fraction(said) == fps


@given(st.integers(1, 240), st.sampled_from([1, 1001]))
def test_a_rate_that_was_printed_comes_back(whole, den):
    exact = Fraction(whole, 1) if den == 1 else Fraction(whole * 1000, 1001)
    frame = pl.DataFrame({"fps": [f"{float(exact):.3f}"]})
    num, found = frame.select(*(part.alias(str(i)) for i, part in enumerate(rate("fps")))).row(0)
    assert abs(Fraction(num, found) - exact) < Fraction(1, 150)
    if 10 <= whole <= 120:  # else the two families lie closer together than the digits tell apart
        assert Fraction(num, found) == exact
