"""Damaged copies of real files: each ends as a usable clip or as a row with a reason, and costs no neighbour.

A sample of what `benchmarks/damaged.py` does with a thousand; its table is `benchmarks/damaged.md`.
"""

from __future__ import annotations

import random

import damaged
import polars as pl
import pytest

NUM_COPIES = 90


if not damaged.REAL.is_dir():
    pytest.skip("the folder `shared` with real videos does not lie beside the repository", allow_module_level=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(copies, the catalogue after probe and score)."""
    folder = tmp_path_factory.mktemp("damaged")
    copies = damaged.damaged_copies(damaged.small_files(), folder, NUM_COPIES, seed=4)
    damaged.catalogue(copies, folder / "catalog.parquet")
    return copies, damaged.outcome(folder / "catalog.parquet", jobs=2, limit_s=30.0)


def test_every_copy_is_usable_or_has_a_reason_and_no_neighbour_is_lost(found):
    copies, rows = found
    assert damaged.wrong(rows, copies) == []
    assert rows.height == NUM_COPIES and rows["usable"].null_count() == 0


def test_what_cannot_be_used_says_precisely_why(found):
    _, rows = found
    for clip, reason in rows.filter(~pl.col("usable")).select("clip_id", "reason").iter_rows():
        assert any(
            words in reason
            for words in ("frame", "empty", "cannot be read", "its process died", "no sign of life", "the clip")
        ), (clip, reason)
        assert "/" not in reason and len(reason) < 250, "one line, and no path: that is in the row"


def test_usable_clips_hold_what_they_say(found):
    """Read again, to the last frame, by the decoder that the row names."""
    from egoscale.video.decode import open_video

    _, rows = found
    usable = rows.filter("usable", pl.col("source") != "whole").sample(12, seed=0)
    for path, decoder, num_frames, width, height in usable.select(
        "path", "decoder", "num_frames", "width_px", "height_px"
    ).iter_rows():
        with open_video(path, decoder) as video:
            assert video.frames([0, num_frames - 1]).shape == (2, height, width, 3)


def test_each_way_of_damage_is_in_the_sample(found):
    copies, rows = found
    assert {copy.kind for copy in copies} == {damaged.WHOLE, *damaged.KINDS}
    assert 0.2 < rows["usable"].mean() < 0.9, "neither all broken nor all harmless"


def test_damage_is_done():
    content = bytes(range(256)) * 40
    for kind in ("truncated", "flipped", "zeroed"):
        for seed in range(20):
            changed = bytearray(content)
            damaged.damage(changed, kind, random.Random(seed))
            assert changed != content and (len(changed) < len(content)) == (kind == "truncated")
