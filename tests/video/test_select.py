"""Rules lose clips in order, and the ledger accounts for every hour."""

from __future__ import annotations

import json

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egoscale.recipe import ColumnSpec, LimitSpec, RecipeError, ScoreLimits, SelectRecipe, validate
from egoscale.video.hours_ledger import ledger_table, source_table, totals
from egoscale.video.select import select_clips, write_selection


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
    assert selection.columns == [*catalog.columns, "selected", "rule", "unique_s", "duplicate_group"]


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


def test_clips_that_were_never_probed_count_only_where_the_recipe_trusts_metadata(make_catalog):
    catalog = make_catalog(
        usable=[None, None, True, None],
        reason=[None, "no video of it was published", None, None],
        duration_s=[3600.0, 3600.0, 3600.0, None],
        fps_num=[None, 30, 30, 30],
    )
    selection, ledger = select_clips(catalog, SelectRecipe())
    assert selection["rule"].to_list() == ["probed", "usable", None, "probed"]
    assert ledger["unusable"] == {"no video of it was published": {"clips": 1, "hours": 1.0}}
    selection, ledger = select_clips(catalog, SelectRecipe(trust_metadata=True))
    assert selection["rule"].to_list() == [None, "usable", None, "probed"]  # hours that nobody knows do not count
    assert ledger["not_scored"]["min_fps_hz"] == {"clips": 1, "hours": 1.0}
    assert ledger["notes"] == ["1 clips have no known length: their hours stand nowhere in this ledger"]


def scored(catalog, **columns):
    return catalog.with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def test_every_score_may_be_limited_from_both_sides(make_catalog):
    catalog = scored(
        make_catalog(clip_id=[f"c{i}" for i in range(6)]),
        sharpness=[1.0, 5.0, 9.0, None, 5.0, float("nan")],
        num_cuts=[0, 0, 0, 0, 4, 0],
    )
    scores = ScoreLimits(sharpness=LimitSpec(min=2, max=8), num_cuts=LimitSpec(max=3))
    selection, ledger = select_clips(catalog, SelectRecipe(scores=scores))
    assert selection["rule"].to_list() == ["min_sharpness", None, "max_sharpness", None, "max_num_cuts", None]
    not_scored = [ledger["not_scored"][f"{end}_sharpness"]["clips"] for end in ("min", "max")]
    assert not_scored == [2, 2], "nobody measured null, nor NaN"
    assert ledger["recipe"]["scores"] == {"sharpness": {"min": 2.0, "max": 8.0}, "num_cuts": {"max": 3.0}}


def test_a_limit_on_a_score_that_nobody_made_is_an_error_that_says_who_makes_it(make_catalog):
    recipe = SelectRecipe(scores=ScoreLimits(sharpness=LimitSpec(min=1)))
    with pytest.raises(ValueError, match=r"`scores.sharpness`: there is no column 'sharpness'.*egoscale catalog score"):
        select_clips(make_catalog(clip_id=["a"]), recipe)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"scores": {"sharpness": {}}}, "give `min`, `max` or both"),
        ({"scores": {"sharpness": {"min": 2.0, "max": 1.0}}}, "min 2 is above max 1"),
        ({"scores": {"sharpnes": {"min": 2.0}}}, "unknown key `scores.sharpnes`.*`sharpness`"),
        ({"columns": [{"file": "x.csv", "column": "a"}]}, "table `columns.0`: give `min`"),
    ],
)
def test_a_recipe_with_a_limit_that_means_nothing_is_an_error(keys, said):
    with pytest.raises(RecipeError, match=said):
        validate(SelectRecipe, {"stage": "select", **keys}, "select.toml")


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_columns_made_elsewhere_are_joined_by_clip_id(make_catalog, tmp_path, suffix):
    catalog = make_catalog(clip_id=["a", "b", "c"])
    file = tmp_path / f"hands.{suffix}"
    table = pl.DataFrame({"clip_id": ["c", "a"], "hands": [0.9, 0.1], "note": ["x", "y"]})
    {"csv": table.write_csv, "parquet": table.write_parquet, "jsonl": table.write_ndjson}[suffix](file)
    recipe = SelectRecipe(columns=(ColumnSpec(file=str(file), column="hands", min=0.5),))
    selection, ledger = select_clips(catalog, recipe)
    assert selection["rule"].to_list() == ["min_hands", None, None]
    assert selection["hands"].to_list() == [0.1, None, 0.9] and "note" not in selection.columns
    assert ledger["not_scored"]["min_hands"]["clips"] == 1
    assert [(one["file"], len(one["sha256"])) for one in ledger["columns"]] == [(str(file), 64)]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_nan_passes_no_limit_and_counts_as_not_measured(make_catalog, tmp_path, suffix):
    file = tmp_path / f"hands.{suffix}"
    table = pl.DataFrame({"clip_id": ["a", "b", "c"], "hands": [0.9, float("nan"), 0.05]})
    {"csv": table.write_csv, "parquet": table.write_parquet}[suffix](file)
    recipe = SelectRecipe(columns=(ColumnSpec(file=str(file), column="hands", min=0.2),))
    selection, ledger = select_clips(make_catalog(clip_id=["a", "b", "c"]), recipe)
    assert selection["rule"].to_list() == [None, None, "min_hands"]
    assert selection["hands"].to_list() == [0.9, None, 0.05]
    assert ledger["not_scored"]["min_hands"]["clips"] == 1


def test_wrong_columns_are_errors(make_catalog, tmp_path):
    catalog = make_catalog(clip_id=["a", "b"])
    file = tmp_path / "hands.csv"
    file.write_text("clip_id,hands,said\na,1,yes\nb,2,no\n")

    def limits(*columns):
        return SelectRecipe(columns=tuple(ColumnSpec(**column, min=1) for column in columns))

    for columns, said in (
        ([{"file": str(file), "column": "hand"}], "hands.csv: no column 'hand' in it; it has hands, said"),
        ([{"file": str(file), "column": "said"}], r"column 'said', row 1 \(clip 'a'\): 'yes' is not a number"),
        ([{"column": "codec"}], "column 'codec' holds no numbers"),
        ([{"column": "duration_s"}], "two rules are called 'min_duration_s'"),
    ):
        with pytest.raises(ValueError, match=said):
            select_clips(catalog, limits(*columns))
    with pytest.raises(FileNotFoundError, match=r"gone.csv"):
        select_clips(catalog, limits({"file": str(tmp_path / "gone.csv"), "column": "hands"}))
    with pytest.raises(ValueError, match="stands twice"):
        select_clips(pl.concat([catalog, catalog]), SelectRecipe())
    selection, _ = select_clips(catalog, SelectRecipe())
    with pytest.raises(ValueError, match="this is a selection"):
        select_clips(selection, SelectRecipe())


def pieces(make_catalog, spans, **columns):
    """Clips from (file, start, end) in seconds."""
    return make_catalog(
        clip_id=[f"c{i:03d}" for i in range(len(spans))],
        path=[f"/videos/{file}.mp4" for file, *_ in spans],
        recording_id=[file for file, *_ in spans],
        start_s=[float(start) for _, start, _ in spans],
        duration_s=[float(end - start) for _, start, end in spans],
        sha256=[None] * len(spans),
        **columns,
    )


def test_seconds_that_clips_of_a_file_share_are_counted_once(make_catalog):
    spans = [("x", 0, 3600), ("x", 1800, 5400), ("x", 2000, 3000), ("y", 1800, 5400), ("x", 5400, 5400 + 3600)]
    selection, ledger = select_clips(pieces(make_catalog, spans), SelectRecipe())
    assert selection["unique_s"].to_list() == [3600.0, 1800.0, 0.0, 3600.0, 3600.0]
    assert selection["selected"].all()
    assert ledger["kept"] == {"lab": {"clips": 5, "hours": 3.5}}
    assert ledger["overlapping"] == {"lab": {"clips": 2, "hours": pytest.approx(0.5 + 1000 / 3600)}}
    # What is lost covers nothing.
    bad = pieces(make_catalog, spans, black_fraction=[1.0, 0.0, 0.0, 0.0, 0.0])
    selection, _ = select_clips(bad, SelectRecipe())
    assert selection["unique_s"].to_list() == [None, 3600.0, 0.0, 3600.0, 3600.0]


spans = st.lists(
    st.tuples(st.sampled_from("xyz"), st.integers(0, 40), st.integers(1, 40)).map(lambda s: (s[0], s[1], s[1] + s[2])),
    min_size=1,
    max_size=25,
)
limits = st.builds(
    SelectRecipe,
    min_duration_s=st.integers(0, 30).map(float),
    max_black_fraction=st.sampled_from([0.3, 1.0]),
    max_frozen_fraction=st.sampled_from([0.3, 1.0]),
    drop_exact_duplicates=st.booleans(),
)


@given(spans, limits, st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_ledger_is_exact_whatever_is_lost(make_catalog, spans, recipe, data):
    def column(values):
        return data.draw(st.lists(st.sampled_from(values), min_size=len(spans), max_size=len(spans)))

    catalog = pieces(
        make_catalog,
        spans,
        source=column(["a", "b"]),
        usable=column([True, True, False, None]),
        black_fraction=column([0.0, 0.5, None]),
        frozen_fraction=column([0.0, 0.5]),
    ).with_columns(sha256=pl.Series(column(["s", "t", None]), dtype=pl.String))
    order = data.draw(st.permutations(range(len(spans))))
    selection, ledger = select_clips(catalog, recipe)
    shuffled, same = select_clips(catalog[order], recipe)
    assert selection.equals(shuffled) and ledger == same
    # Of every source: kept + overlapping + lost = all.
    for source, total in ledger["all"].items():
        nothing = {"clips": 0, "hours": 0.0}
        parts = [ledger[part].get(source, nothing)["hours"] for part in ("kept", "overlapping")]
        parts += [sources.get(source, nothing)["hours"] for sources in ledger["lost"].values()]
        assert sum(parts) == pytest.approx(total["hours"])
        clips = ledger["kept"].get(source, nothing)["clips"]
        assert clips + sum(s.get(source, nothing)["clips"] for s in ledger["lost"].values()) == total["clips"]
    # Unique seconds are those that any kept clip of a file covers.
    covered = {
        (file, second)
        for (file, start, end), kept in zip(spans, selection["selected"], strict=True)
        if kept
        for second in range(start, end)
    }
    assert selection["unique_s"].sum() == len(covered)
    assert totals(ledger["kept"])["hours"] == pytest.approx(len(covered) / 3600)
    # A rule alone loses at least what only it loses, and what it loses first; overlaps are parts of both.
    for rule, only in ledger["only"].items():
        lost = totals(ledger["lost"][rule])["hours"]
        assert only <= lost + 1e-12 and lost <= ledger["alone"][rule]["hours"] + 1e-12
    for one, others in ledger["overlaps"].items():
        for other, both in others.items():
            assert both["clips"] <= min(ledger["alone"][one]["clips"], ledger["alone"][other]["clips"])
    json.dumps(ledger)


def test_overlaps_of_rules_in_hours(make_catalog):
    catalog = make_catalog(
        black_fraction=[0.9, 0.9, 0.0, 0.9],
        frozen_fraction=[0.95, 0.0, 0.95, 0.95],
        duration_s=[3600.0, 3600.0, 3600.0, 0.1],
        usable=[True, True, True, True],
    )
    _, ledger = select_clips(catalog, SelectRecipe())
    both = {"clips": 2, "hours": pytest.approx(1 + 0.1 / 3600)}
    short = {"clips": 1, "hours": pytest.approx(0.1 / 3600)}
    assert ledger["overlaps"] == {
        "min_duration_s": {"max_black_fraction": short, "max_frozen_fraction": short},
        "max_black_fraction": {"max_frozen_fraction": both},
    }
    assert ledger["only"]["max_black_fraction"] == ledger["only"]["max_frozen_fraction"] == 1.0
    table = {row["rule"]: row for row in ledger_table(ledger).iter_rows(named=True)}
    assert table["max_frozen_fraction"]["hours"] == 1.0
    assert table["max_frozen_fraction"]["alone_hours"] == pytest.approx(2 + 0.1 / 3600)
    assert source_table(ledger).row(0, named=True) == {
        "source": "lab", "clips": 0, "hours": 0.0, "of_clips": 4, "of_hours": pytest.approx(3 + 0.1 / 3600),
        "overlapping_hours": 0.0,
    }  # fmt: skip


def test_pieces_of_one_file_are_not_copies_of_each_other(make_catalog):
    catalog = make_catalog(
        clip_id=["a", "b", "c", "d"],
        sha256=["0" * 64] * 4,
        path=["/x.mp4", "/x.mp4", "/copy-of-x.mp4", "/copy-of-x.mp4"],
        start_s=[0.0, 3600.0, 0.0, 9000.0],
        recording_id=["x", "x", "y", "y"],
    )
    selection, ledger = select_clips(catalog, SelectRecipe())
    assert selection["rule"].to_list() == [None, None, "drop_exact_duplicates", None]
    selection, ledger = select_clips(catalog, SelectRecipe(drop_exact_duplicates=False))
    assert selection["duplicate_group"].to_list() == ["a", None, "a", None]
    assert ledger["duplicates"] == {"groups": 1, "clips": 2, "compared": None}


def hashed(catalog, frames):
    """With the hashes of `egoscale catalog score`: one number a second."""
    return catalog.with_columns(
        frame_hashes=pl.Series(frames, dtype=pl.List(pl.UInt64)),
        clip_hash=pl.Series([one[0] if one else None for one in frames], dtype=pl.UInt64),
    )


def test_of_clips_that_look_alike_the_first_that_passes_stays(make_catalog):
    first, other = [0xF0F0_3C3C_AAAA_5555, 0x0FF0_1234_9876_ABCD, 0xDEAD_BEEF_0123_4567], [0x1111_7777_2222_EEEE] * 3
    other = [0x1111_7777_2222_EEEE, 0x8421_FEDC_0246_1357, 0x3141_5926_5358_9793]
    catalog = hashed(
        make_catalog(clip_id=["a", "b", "c", "d", "e"], duration_s=[3.0] * 5, black_fraction=[0.9, 0.0, 0.0, 0.0, 0.0]),
        [first, first, other, first, None],
    )
    selection, ledger = select_clips(catalog, SelectRecipe())
    assert selection["duplicate_group"].to_list() == [None, "b", None, "b", None]
    assert selection["selected"].to_list() == [False, True, True, True, True]
    assert "frame_hashes" not in selection.columns and "clip_hash" in selection.columns
    assert ledger["duplicates"] == {"groups": 1, "clips": 2, "compared": 3}
    selection, ledger = select_clips(catalog, SelectRecipe(drop_near_duplicates=True))
    assert selection["rule"].to_list() == ["max_black_fraction", None, None, "drop_near_duplicates", None]
    assert totals(ledger["lost"]["drop_near_duplicates"])["clips"] == 1


def test_a_file_with_several_recordings_is_told_of(make_catalog):
    catalog = pieces(make_catalog, [("x", 0, 10), ("x", 10, 20)]).with_columns(recording_id=pl.Series(["one", "two"]))
    _, ledger = select_clips(catalog, SelectRecipe())
    assert "1 files hold clips of several recordings (one is /videos/x.mp4)" in ledger["notes"][0]


def test_a_selection_in_a_file_is_the_one_in_memory(catalog, tmp_path):
    selection, ledger = select_clips(catalog, SelectRecipe())
    written = write_selection(catalog.reverse().lazy(), SelectRecipe(), tmp_path / "out")
    assert written == ledger == json.loads((tmp_path / "out" / "ledger.json").read_text())
    assert pl.read_parquet(tmp_path / "out" / "selection.parquet").equals(selection)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ledger.json", "selection.parquet"]


def test_nothing_selected_is_an_error_and_the_ledger_says_why(catalog, tmp_path):
    with pytest.raises(
        ValueError, match=r"no clip passes the rules of `select`: lost are usable 1 clips, 1 h; min_dur"
    ):
        write_selection(catalog.lazy(), SelectRecipe(min_size_px=9999), tmp_path)
    assert totals(json.loads((tmp_path / "ledger.json").read_text())["kept"])["clips"] == 0
    assert not (tmp_path / "selection.parquet").exists()
