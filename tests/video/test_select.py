"""Rules lose clips in order, and the ledger accounts for every hour."""

from __future__ import annotations

import polars as pl
import pytest

from egoscale.recipe import SelectRecipe
from egoscale.video.select import select_clips


@pytest.fixture
def catalog(make_catalog):
    return make_catalog(
        source=["a", "a", "a", "b", "b", "b", "b", "b"],
        usable=[True, False, True, True, True, True, True, True],
        duration_s=[3600.0, 3600.0, 0.2, 3600.0, 3600.0, 3600.0, 3600.0, 3600.0],
        fps_num=[30, 30, 30, 1, 30, 30, 30, 30],
        fps_den=[1, 1, 1, 2, 1, 1, 1, 1],
        height_px=[360, 360, 360, 360, 16, 360, 360, 360],
        black_fraction=[0.0, 0.0, 0.9, 0.0, 0.0, 0.6, 0.0, 0.0],
        frozen_fraction=[None, 0.0, 0.0, 0.0, 0.0, 0.0, 0.95, 0.0],
    )


def test_each_rule_takes_its_clip_and_the_first_one_is_named(catalog):
    selection, _ = select_clips(catalog, SelectRecipe())
    assert selection["rule"].to_list() == [
        None, "usable", "min_duration_s", "min_fps_hz", "min_size_px", "max_black_fraction",
        "max_frozen_fraction", None,
    ]  # fmt: skip
    assert selection["selected"].to_list() == [rule is None for rule in selection["rule"]]
    assert selection.columns == [*catalog.columns, "selected", "rule"]


def test_thresholds_are_the_recipe_s(catalog):
    lenient = SelectRecipe(min_duration_s=0, min_fps_hz=0.5, min_size_px=1, max_black_fraction=1, max_frozen_fraction=1)
    selection, _ = select_clips(catalog, lenient)
    assert selection["selected"].sum() == 7


def test_ledger_accounts_for_every_hour(catalog):
    _, ledger = select_clips(catalog, SelectRecipe())
    for source in ("a", "b"):
        lost = sum(rule.get(source, {"hours": 0})["hours"] for rule in ledger["lost"].values())
        assert ledger["all"][source]["hours"] == pytest.approx(ledger["kept"][source]["hours"] + lost)
    assert ledger["lost"]["usable"] == {"a": {"clips": 1, "hours": 1.0}}
    # The short clip is black too: alone, the black rule would lose two.
    assert ledger["lost"]["max_black_fraction"]["b"]["clips"] == 1
    assert ledger["alone"]["max_black_fraction"]["clips"] == 2


def test_of_equal_files_the_first_id_stays(make_catalog):
    catalog = make_catalog(
        sha256=["x", "x", "y", "x", "z"],
        usable=[False, True, True, True, True],
        source=["a", "b", "b", "c", "c"],
    )
    for order in (catalog, catalog.reverse()):
        selection, ledger = select_clips(order, SelectRecipe())
        kept = selection.filter("selected")["clip_id"].to_list()
        # The unusable copy does not stand for the others.
        assert kept == ["clip-0001", "clip-0002", "clip-0004"]
        assert ledger["lost"]["drop_exact_duplicates"] == {"c": {"clips": 1, "hours": 1.0}}
    selection, _ = select_clips(catalog, SelectRecipe(drop_exact_duplicates=False))
    assert selection["selected"].sum() == 4


def test_files_without_a_digest_are_not_each_other_s_copies(make_catalog):
    catalog = make_catalog(sha256=pl.Series([None, None], dtype=pl.String))
    selection, _ = select_clips(catalog, SelectRecipe())
    assert selection["selected"].to_list() == [True, True]
