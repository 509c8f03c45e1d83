"""Nested, the same on every machine and in every order of rows, and never a held-out person or place."""

from __future__ import annotations

import json

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egoscale.recipe import SubsetRecipe
from egoscale.video.catalog import SCHEMA
from egoscale.video.subset import clip_hash, draw_subset

NO_HOLDOUT = {"holdout_participants": 0.0, "holdout_scenes": 0.0}


def recordings(rows):
    """A selection from (source, recording, participant, scene, seconds) a clip."""
    columns = {
        "clip_id": [f"{source}/{i:05d}" for i, (source, *_) in enumerate(rows)],
        "source": [row[0] for row in rows],
        "recording_id": [row[1] for row in rows],
        "participant_id": [row[2] for row in rows],
        "scene_id": [row[3] for row in rows],
        "duration_s": [row[4] for row in rows],
    }
    empty = {name: [None] * len(rows) for name in SCHEMA if name not in columns}
    table = pl.DataFrame({**columns, **empty}, schema_overrides=SCHEMA).select(*SCHEMA)
    return table.with_columns(selected=pl.lit(True), rule=pl.lit(None, pl.String))


def lab(num_recordings=60, clips=4, seconds=900.0):
    return recordings(
        [
            ("kitchen" if r % 3 else "bench", f"r{r}", f"p{r % 12}", f"s{r % 7}", seconds + r)
            for r in range(num_recordings)
            for _ in range(clips)
        ]
    )


names = st.sampled_from([None, *"abcdefgh"])
rows = st.lists(
    st.tuples(
        st.sampled_from(["one", "two"]),
        st.sampled_from([f"r{i}" for i in range(12)]),
        names,
        names,
        st.floats(1, 5000, allow_nan=False),
    ),
    min_size=1,
    max_size=60,
)
recipes = st.fixed_dictionaries(
    {
        "unit": st.sampled_from(["recording", "participant"]),
        "stratify": st.sampled_from([(), ("source",), ("source", "scene_id")]),
        "holdout_participants": st.sampled_from([0.0, 0.1, 0.4]),
        "holdout_scenes": st.sampled_from([0.0, 0.2]),
        "holdout_seed": st.integers(0, 3),
        "seed": st.integers(0, 3),
    }
)
hours = st.floats(1e-4, 1.0)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def drawn(selection, recipe):
    """The subset, or None where there are too few hours."""
    try:
        return draw_subset(selection, recipe)
    except ValueError as error:
        assert "hours" in str(error)
        return None


@given(rows, recipes, hours, hours)
@quick
def test_a_smaller_subset_lies_in_a_larger_one(clips, keys, one, other):
    selection = recordings(clips)
    small = drawn(selection, SubsetRecipe(hours=min(one, other), **keys))
    large = drawn(selection, SubsetRecipe(hours=max(one, other), **keys))
    if large is None:
        return
    assert small is not None
    assert set(small.manifest["clip_id"]) <= set(large.manifest["clip_id"])
    assert small.heldout.equals(large.heldout)
    assert small.summary["hours"] >= min(one, other) - 1e-9


@given(rows, recipes, hours, st.randoms(use_true_random=False))
@quick
def test_the_order_of_rows_changes_nothing(clips, keys, wanted, random):
    selection = recordings(clips)
    order = list(range(selection.height))
    random.shuffle(order)
    one, other = (drawn(s, SubsetRecipe(hours=wanted, **keys)) for s in (selection, selection[order]))
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.manifest.equals(other.manifest) and one.heldout.equals(other.heldout)
        assert one.summary == other.summary


@given(rows, recipes, hours)
@quick
def test_held_out_people_places_and_recordings_are_never_trained_on(clips, keys, wanted):
    subset = drawn(recordings(clips), SubsetRecipe(hours=wanted, **keys))
    if subset is None:
        return
    train, held = subset.manifest, subset.heldout
    assert not set(train["clip_id"]) & set(held["clip_id"])
    assert not set(train["participant_id"].drop_nulls()) & set(subset.summary["heldout_participants"])
    assert not set(train["scene_id"].drop_nulls()) & set(subset.summary["heldout_scenes"])
    sides = [set(side.select("source", "recording_id").iter_rows()) for side in (train, held)]
    assert not sides[0] & sides[1]
    json.dumps(subset.summary)


@given(rows, st.integers(0, 3), st.sampled_from(["recording", "participant"]))
@quick
def test_units_come_whole(clips, seed, unit):
    selection = recordings(clips)
    total = selection["duration_s"].sum() / 3600
    subset = draw_subset(selection, SubsetRecipe(hours=total / 2, seed=seed, unit=unit, **NO_HOLDOUT))
    chosen = set(subset.manifest["clip_id"])
    keys = ["source", "recording_id"] if unit == "recording" else ["source", "participant_id"]
    for _, members in selection.filter(pl.col(keys[1]).is_not_null()).group_by(keys):
        inside = [clip in chosen for clip in members["clip_id"]]
        assert all(inside) or not any(inside)


def test_known_draw_stays_for_ever():
    """The order is part of every published result: a change of it is a change of SCHEMA_VERSION."""
    subset = draw_subset(lab(), SubsetRecipe(hours=10, seed=3))
    assert subset.summary["hash"] == KNOWN
    assert subset.summary["hash"] == clip_hash(subset.manifest)


def test_seeds_draw_others_and_hold_out_the_same():
    one, other = (draw_subset(lab(), SubsetRecipe(hours=10, seed=seed)) for seed in (0, 1))
    assert set(one.manifest["clip_id"]) != set(other.manifest["clip_id"])
    assert one.heldout.equals(other.heldout) and one.summary["heldout_hours"] > 0


def test_more_data_keeps_the_order_of_what_was_there():
    recipe = {"stratify": (), **NO_HOLDOUT}
    few, many = lab(30), lab(60)
    sizes = [0.5 * i for i in range(1, 30)]

    def order(selection, among):
        seen = []
        for size in sizes:
            for one in draw_subset(selection, SubsetRecipe(hours=size, **recipe)).manifest["recording_id"].unique():
                if one in among and one not in seen:
                    seen.append(one)
        return seen

    old = set(few["recording_id"])
    small = order(few, old)
    large = order(many, old)
    assert [one for one in small if one in large] == [one for one in large if one in small]


def test_the_mixture_is_kept_and_its_error_told():
    selection = lab(600, clips=1)
    for wanted in (20, 60, 120):
        summary = draw_subset(selection, SubsetRecipe(hours=wanted)).summary
        shares = {row["source"]: row for row in summary["strata"]}
        assert set(shares) == {"bench", "kitchen"}
        worst = max(abs(row["share"] - row["share_available"]) for row in shares.values())
        assert summary["worst_share_error"] == worst < 0.02
        assert wanted <= summary["hours"] < wanted + 0.5


def test_too_many_hours_is_an_error_that_tells_how_many_there_are():
    selection = lab()
    available = draw_subset(selection, SubsetRecipe(hours=1)).summary["hours_available"]
    with pytest.raises(ValueError, match=f"{available:.6g} are there to train on"):
        draw_subset(selection, SubsetRecipe(hours=available + 0.001))
    everything = draw_subset(selection, SubsetRecipe(hours=available))
    assert everything.manifest.height + everything.heldout.height == selection.height


def test_clips_that_are_not_selected_do_not_count():
    selection = lab().with_columns(selected=pl.col("source") == "bench")
    assert set(draw_subset(selection, SubsetRecipe(hours=1)).manifest["source"]) == {"bench"}
    with pytest.raises(ValueError, match="no selected clip"):
        draw_subset(selection.with_columns(selected=pl.lit(False)), SubsetRecipe(hours=1))


def test_clips_without_a_participant_are_drawn_by_recording_and_the_summary_says_so():
    selection = recordings([("a", f"r{i % 5}", None if i % 2 else f"p{i}", None, 600.0) for i in range(40)])
    summary = draw_subset(selection, SubsetRecipe(hours=0.5, unit="participant")).summary
    assert any("without a participant are drawn by recording" in note for note in summary["notes"])
    assert any("name no scene" in note for note in summary["notes"])
    assert summary["heldout_participants"] and summary["heldout_scenes"] == []


def test_wrong_table_or_recipe_is_an_error():
    with pytest.raises(ValueError, match="stratify names 'colour'"):
        draw_subset(lab(), SubsetRecipe(hours=1, stratify=("colour",)))
    with pytest.raises(ValueError, match="stands twice"):
        draw_subset(pl.concat([lab(), lab()]), SubsetRecipe(hours=1))


KNOWN = "1063022d47b61b49bd0c58c849fbb9457825a8d1b16973d142ea1ed181ad4bda"
