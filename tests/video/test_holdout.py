"""Who is held out by name stays so, whatever data are added; a name that nobody has is an error."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egoscale.recipe import SubsetRecipe
from egoscale.sweep.ledger import run_key
from egoscale.video.subset import draw_subset, draw_subsets

NO_HOLDOUT = {"holdout_participants": 0.0, "holdout_scenes": 0.0}


def recordings(rows):
    """A selection from (source, recording, participant, scene, seconds) a clip."""
    columns = ("source", "recording_id", "participant_id", "scene_id")
    return pl.DataFrame(
        {
            "clip_id": [f"{source}/{i:05d}" for i, (source, *_) in enumerate(rows)],
            **{name: pl.Series([row[k] for row in rows], dtype=pl.String) for k, name in enumerate(columns)},
            "task": pl.Series([None] * len(rows), dtype=pl.String),
            "duration_s": [row[4] for row in rows],
        }
    )


def drawn(selection, recipe):
    """The draw, or None where nothing is left to train on."""
    try:
        return draw_subset(selection, recipe)
    except ValueError as error:
        assert "are there to train on" in str(error)
        return None


LAB = recordings([("lab", f"r{r}", f"p{r % 12}", f"s{r % 7}", 900.0) for r in range(60) for _ in range(4)])
names = st.sampled_from([None, *"abcdefgh"])
seconds = st.floats(1, 5000, allow_nan=False)
row = st.tuples(st.sampled_from(["one", "two"]), st.sampled_from([f"r{i}" for i in range(12)]), names, names, seconds)
rows = st.lists(row, min_size=1, max_size=60)
recipes = st.fixed_dictionaries(
    {
        "unit": st.sampled_from(["recording", "participant"]),
        "holdout_participants": st.sampled_from([0.0, 0.01, 0.1, 0.4]),
        "holdout_scenes": st.sampled_from([0.0, 0.01, 0.2]),
        "holdout_seed": st.integers(0, 3),
    }
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(rows, rows, recipes)
@quick
def test_with_earlier_names_given_more_data_put_nobody_held_out_into_training(clips, more, keys):
    """Newcomers are recordings of their own, of old and new people and places."""
    old = recordings(clips)
    new = recordings(clips + [(source, f"new-{name}", *rest) for source, name, *rest in more])
    new = new.with_columns(clip_id=pl.Series([*old["clip_id"], *(f"z/{i}" for i in range(len(more)))]))
    before = drawn(old, SubsetRecipe(hours=1e-4, **keys))
    if before is None:
        return
    told = before.summary
    names = {
        "heldout_participants": tuple(told["heldout_participants"] + told["heldout_unnamed"]),
        "heldout_scenes": tuple(told["heldout_scenes"]),
    }
    same = drawn(old, SubsetRecipe(hours=1e-4, **keys, **names))
    assert same.summary["hash"] == told["hash"], "nothing new, no change"
    after = drawn(new, SubsetRecipe(hours=1e-4, **keys, **names))
    if after is not None:
        assert set(before.heldout["clip_id"]) <= set(after.heldout["clip_id"])
        every = draw_subsets(new, SubsetRecipe(hours=after.summary["hours_available"] - 1e-6, **keys, **names))
        assert not set(before.heldout["clip_id"]) & set(every.manifest(0).collect()["clip_id"])


def test_who_is_named_is_held_out_and_nobody_for_being_the_smallest():
    named = draw_subset(LAB, SubsetRecipe(hours=1, **NO_HOLDOUT, heldout_participants=("p3",), heldout_scenes=("s2",)))
    assert (named.summary["heldout_participants"], named.summary["heldout_scenes"]) == (["p3"], ["s2"])
    assert not {"p3"} & set(named.manifest["participant_id"]) and not {"s2"} & set(named.manifest["scene_id"])
    tiny = {"holdout_participants": 1e-9, "holdout_scenes": 0.0}
    (smallest,) = draw_subset(LAB, SubsetRecipe(hours=1, **tiny)).summary["heldout_participants"]
    other = next(name for name in ("p1", "p2") if name != smallest)
    kept = draw_subset(LAB, SubsetRecipe(hours=1, **tiny, heldout_participants=(other,)))
    assert kept.summary["heldout_participants"] == [other]
    nobody = draw_subset(LAB, SubsetRecipe(hours=1, **tiny, heldout_participants=()))
    assert nobody.summary["heldout_participants"] == [smallest]


def test_a_recording_that_names_nobody_is_held_out_by_its_own_name():
    table = recordings([("lab", f"r{r}", None, None, 600.0) for r in range(9)])
    recipe = SubsetRecipe(hours=1, holdout_participants=1e-9, holdout_scenes=0.0)
    (one,) = draw_subset(table, recipe).summary["heldout_unnamed"]
    assert one.startswith("lab/r")
    other = next(name for name in ("lab/r0", "lab/r1") if name != one)
    named = draw_subset(table, recipe.model_copy(update={"heldout_participants": (other,)}))
    assert named.summary["heldout_unnamed"] == [other] and set(named.heldout["recording_id"]) == {other[4:]}


@pytest.mark.parametrize("key, name", [("heldout_participants", "p33"), ("heldout_scenes", "s22")])
def test_a_name_that_no_clip_has_is_an_error(key, name):
    said = rf"{key} names '{name}', and no selected clip does \(did you mean '{name[:2]}'\?\): correct the name"
    with pytest.raises(ValueError, match=said):
        draw_subset(LAB, SubsetRecipe(hours=1, **NO_HOLDOUT, **{key: (name,)}))


def test_recipes_that_name_nobody_keep_their_keys():
    assert run_key(SubsetRecipe(hours=0.5), {}) == "a242bcc28cc1"
