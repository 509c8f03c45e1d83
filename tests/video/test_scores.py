"""Scores beside a catalogue are joined by clip; what is unfinished, doubled or in the way is said."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egoscale.video.scores import OUTDATED, Shard, catalog_file, join_columns, open_catalog, part_path


@pytest.fixture
def catalog(make_catalog, tmp_path):
    """Four clips: one probed when the catalogue was built, one with a reason, two that were not probed."""
    file = tmp_path / "catalog.parquet"
    make_catalog(
        clip_id=["a", "b", "c", "d"],
        usable=[True, False, None, None],
        reason=[None, "not listed", None, None],
        duration_s=[10.0, None, 20.0, 30.0],
    ).write_parquet(file)
    return file


def write(catalog, scorer, version, index, count, **columns):
    path = part_path(catalog, scorer, version, Shard(index, count))
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({**columns, "input_key": ["key"] * len(columns["clip_id"])}).write_parquet(path)
    return path


def rows(frame):
    return {row["clip_id"]: row for row in frame.collect().iter_rows(named=True)}


def test_a_catalogue_without_scores_is_itself(catalog):
    assert open_catalog(catalog).collect().equals(pl.read_parquet(catalog))
    assert open_catalog(catalog.parent).collect().equals(pl.read_parquet(catalog)), "named by its folder"


def test_what_was_probed_takes_the_place_of_what_was_declared(catalog):
    write(catalog, "probe", 1, 0, 1, clip_id=["d", "c"], duration_s=[29.5, 0.0], usable=[True, False],
          reason=[None, "the file is empty (0 bytes)"], pixels=[7, None])  # fmt: skip
    found = rows(open_catalog(catalog))
    assert list(found) == ["a", "b", "c", "d"], "in the order of the catalogue"
    assert [found[clip]["duration_s"] for clip in found] == [10.0, None, 0.0, 29.5]
    assert [found[clip]["usable"] for clip in found] == [True, False, False, True]
    assert found["b"]["reason"] == "not listed" and found["c"]["reason"] == "the file is empty (0 bytes)"
    assert found["d"]["pixels"] == 7, "a column that the catalogue has not"
    assert "input_key" not in found["a"]


def test_what_a_build_decoded_is_younger_than_a_probe(catalog):
    write(catalog, "probe", 1, 0, 1, clip_id=["a", "b", "d"], duration_s=[0.0, 1.0, 29.5],
          usable=[False, True, True], reason=["the file is empty (0 bytes)", None, None])  # fmt: skip
    found = rows(open_catalog(catalog))
    assert (found["a"]["usable"], found["a"]["reason"], found["a"]["duration_s"]) == (True, None, 10.0)
    assert (found["b"]["usable"], found["b"]["reason"]) == (False, "not listed")
    assert found["d"]["duration_s"] == 29.5, "what was never decoded is as the probe says"


def test_scores_hold_for_the_bytes_they_were_made_of(catalog):
    pl.read_parquet(catalog).with_columns(sha256=pl.Series(["a1", "b1", None, None])).write_parquet(catalog)
    write(catalog, "probe", 1, 0, 1, clip_id=["c", "d"], sha256=["c1", "d2"], usable=[True, True], reason=[None, None])
    write(catalog, "picture", 2, 0, 1, clip_id=["a", "c", "d"], sharpness=[0.1, 0.3, 0.4],
          picture_reason=[None] * 3, made_of_sha256=["a0", "c1", None])  # fmt: skip
    found = rows(open_catalog(catalog))
    assert [found[clip]["sharpness"] for clip in found] == [None, None, 0.3, None]
    reasons = [found[clip]["picture_reason"] for clip in found]
    assert reasons == [OUTDATED, None, None, OUTDATED], "b was never scored, which is no reason"
    assert "made_of_sha256" not in found["a"]


def test_the_newest_version_of_every_scorer_is_read(catalog):
    write(catalog, "picture", 1, 0, 1, clip_id=["a"], sharpness=[0.1])
    write(catalog, "picture", 2, 0, 2, clip_id=["a"], sharpness=[0.2])
    write(catalog, "picture", 2, 1, 2, clip_id=["d"], sharpness=[0.4])
    write(catalog, "picture", 10, 0, 1, clip_id=["a", "c"], sharpness=[1.0, 1.3])
    write(catalog, "hands", 3, 0, 1, clip_id=["d"], hands=[0.9])
    found = rows(open_catalog(catalog))
    assert [found[clip]["sharpness"] for clip in found] == [1.0, None, 1.3, None]
    assert found["d"]["hands"] == 0.9
    only = open_catalog(catalog, scorers=["hands"]).collect_schema().names()
    assert "hands" in only and "sharpness" not in only


def test_shards_that_are_not_done_are_named(catalog):
    write(catalog, "picture", 1, 1, 4, clip_id=["a"], sharpness=[0.1])
    with pytest.raises(FileNotFoundError, match=r"3 of 4 shards are not done: 0, 2, 3; run `egoscale catalog score`"):
        open_catalog(catalog)
    assert rows(open_catalog(catalog, partial=True))["a"]["sharpness"] == 0.1
    assert rows(open_catalog(catalog, scorers=()))["a"]["usable"], "who asks for no scores is not stopped"


def test_a_scorer_that_has_only_begun_is_not_taken_for_done(catalog):
    path = part_path(catalog, "probe", 1, Shard())
    path.parent.mkdir(parents=True)
    path.with_suffix(".notes.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match=r"1 of 1 shards are not done: 0; run `egoscale catalog probe`"):
        open_catalog(catalog)
    assert open_catalog(catalog, partial=True).collect().equals(pl.read_parquet(catalog))


def test_two_ways_to_cut_into_shards_are_refused(catalog):
    write(catalog, "picture", 1, 0, 1, clip_id=["a"], sharpness=[0.1])
    write(catalog, "picture", 1, 0, 2, clip_id=["a"], sharpness=[0.1])
    for partial in (False, True):
        with pytest.raises(ValueError, match="run in 1 and 2 shards, which overlap; delete the files of one"):
            open_catalog(catalog, partial)


def test_two_scorers_with_one_column_are_refused(catalog):
    write(catalog, "blur", 1, 0, 1, clip_id=["a"], sharpness=[0.1])
    write(catalog, "picture", 1, 0, 1, clip_id=["a"], sharpness=[0.1])
    with pytest.raises(ValueError, match=r"picture-v1: column 'sharpness' is in the catalogue or another scorer"):
        open_catalog(catalog)


def test_a_file_that_is_no_part_is_refused(catalog):
    path = write(catalog, "picture", 1, 0, 1, clip_id=["a"], sharpness=[0.1])
    path.rename(path.with_name("part-copy.parquet"))
    with pytest.raises(ValueError, match="not named part-<i>-of-<n>"):
        open_catalog(catalog)


def test_no_catalogue(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"catalog\.parquet: no such catalogue; `egoscale catalog build`"):
        catalog_file(tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_columns_made_elsewhere_join_by_clip(catalog, tmp_path, suffix):
    made = pl.DataFrame(
        {"clip_id": ["d", "a", "gone"], "hand_visibility": [0.5, 1.0, 0.1], "caption": ["x", None, "z"]}
    )
    file = tmp_path / f"hands{suffix}"
    {".parquet": made.write_parquet, ".csv": made.write_csv, ".jsonl": made.write_ndjson}[suffix](file)
    found = rows(join_columns(open_catalog(catalog), file, ["hand_visibility"]))
    assert list(found) == ["a", "b", "c", "d"]
    assert [found[clip]["hand_visibility"] for clip in found] == [1.0, None, None, 0.5]
    assert found["d"]["caption"] == "x"


def test_clip_ids_that_look_like_numbers_join(make_catalog, tmp_path):
    """A table of comma-separated values does not say that 000017 is a name."""
    file = tmp_path / "catalog.parquet"
    make_catalog(clip_id=["000017", "000018"]).write_parquet(file)
    (tmp_path / "hands.csv").write_text("hands,clip_id\n0.5,000018\n")
    assert rows(join_columns(open_catalog(file), tmp_path / "hands.csv", ["hands"]))["000018"]["hands"] == 0.5


@pytest.mark.parametrize("word", ["", "nan", "NaN", "NA", "n/a", " null ", "None"])
def test_what_nobody_measured_is_null_in_a_table_of_texts(catalog, tmp_path, word):
    (tmp_path / "hands.csv").write_text(f"clip_id,hands\na,0.5\nc,{word}\nd,true\n")
    found = rows(join_columns(open_catalog(catalog), tmp_path / "hands.csv", ["hands"]))
    assert [found[clip]["hands"] for clip in found] == [0.5, None, None, 1.0]


def test_nan_is_null_in_a_table_of_numbers(catalog, tmp_path):
    pl.DataFrame({"clip_id": ["a", "c"], "hands": [0.5, float("nan")]}).write_parquet(tmp_path / "hands.parquet")
    found = rows(join_columns(open_catalog(catalog), tmp_path / "hands.parquet", ["hands"]))
    assert [found[clip]["hands"] for clip in found] == [0.5, None, None, None]


@pytest.mark.parametrize("suffix, late", [(".csv", "d,0.5"), (".jsonl", '{"clip_id": "d", "hands": 0.5}')])
def test_whole_numbers_may_be_followed_by_others_at_any_length(catalog, tmp_path, suffix, late):
    before = [("x{},1" if suffix == ".csv" else '{{"clip_id": "x{}", "hands": 1}}').format(i) for i in range(11_000)]
    lines = ["clip_id,hands"] * (suffix == ".csv") + before + [late]
    (tmp_path / f"hands{suffix}").write_text("\n".join(lines) + "\n")
    assert rows(join_columns(open_catalog(catalog), tmp_path / f"hands{suffix}", ["hands"]))["d"]["hands"] == 0.5


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_what_is_neither_a_number_nor_missing_is_refused_by_its_place(catalog, tmp_path, suffix):
    made = pl.DataFrame({"clip_id": ["a", "c", "d"], "hands": ["0.5", "0,7", "lots"]})
    file = tmp_path / f"hands{suffix}"
    {".csv": made.write_csv, ".jsonl": made.write_ndjson}[suffix](file)
    said = rf"hands\{suffix}: column 'hands', row 2 \(clip 'c'\): '0,7' is not a number"
    with pytest.raises(ValueError, match=said):
        join_columns(open_catalog(catalog), file, ["hands"])
    assert rows(join_columns(open_catalog(catalog), file))["d"]["hands"] == "lots", "a text, where no number is wanted"


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.csv", "clip,hands\na,1\n", "no column `clip_id` to join by; it has clip, hands"),
        ("a.csv", "clip_id,hands\na,1\na,2\n", "clip 'a' stands in it more than once"),
        ("a.csv", "clip_id,duration_s\na,1\n", "has a column 'duration_s' already"),
        ("a.csv", "clip_id,hands\nx/a.mp4,1\n", "not one clip of the catalogue: it names 'x/a.mp4', the catalogue 'a'"),
        ("a.parquet", "no parquet", "not a table that can be read"),
        ("a.jsonl", '{"clip_id": "a", "hands": NaN}\n', "not a table that can be read"),
        ("a.xlsx", "?", r"tables are read from \.parquet, \.csv"),
    ],
)
def test_tables_that_cannot_be_joined_say_why(catalog, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        join_columns(open_catalog(catalog), tmp_path / name)
    assert name in str(caught.value)


def test_a_table_that_is_not_there(catalog, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such table"):
        join_columns(open_catalog(catalog), tmp_path / "none.csv")


@given(st.integers(0, 200), st.integers(-5, 200))
def test_a_shard_reads_what_it_writes(index, count):
    if index < count:
        shard = Shard(index, count)
        assert Shard.parse(str(shard)) == shard
    else:
        with pytest.raises(ValueError, match="0 <= I < N"):
            Shard(index, count)


@pytest.mark.parametrize("text", ["", "3", "1/0", "2/2", "-1/4", "a/b", "1/2/3"])
def test_what_is_no_shard(text):
    with pytest.raises(ValueError, match="say I/N"):
        Shard.parse(text)
