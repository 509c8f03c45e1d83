"""Tables that list clips: CSV, TSV, JSON lines, Parquet, with any of our columns."""

from __future__ import annotations

import json
import unicodedata

import polars as pl
import pytest

from egoscale.recipe import SourceSpec
from egoscale.video.catalog import chosen_readers, write_catalog
from egoscale.video.readers import folder, table


def rows(frame):
    return {row["clip_id"]: row for row in frame.collect().iter_rows(named=True)}


@pytest.fixture
def lab(tmp_path):
    """A folder with three files that are there; whether they are videos does not matter here."""
    for name in ("a.mp4", "day 2/b.mp4", "forgotten.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"video")
    return tmp_path


def test_a_csv_with_the_least_that_is_needed(lab):
    (lab / "clips.csv").write_text("path\na.mp4\n./day 2/b.mp4\n")
    found = rows(table.read(lab / "clips.csv", "lab"))
    assert set(found) == {"a.mp4", "day 2/b.mp4"}
    assert found["day 2/b.mp4"]["path"] == str(lab / "day 2" / "b.mp4")
    assert found["a.mp4"]["recording_id"] == "a.mp4" and found["a.mp4"]["start_s"] is None
    assert found["a.mp4"]["reason"] is None and found["a.mp4"]["provenance"] == "table: clips.csv"


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tsv", "jsonl", "parquet"])
def test_all_forms_say_the_same(lab, kind):
    said = [
        ("a.mp4", "p1", "s", "29.97", "00:01:00", "640"),
        ("day 2/b.mp4", "p2", None, "30", "12.5", None),
    ]
    names = ("path", "participant", "scene_id", "fps", "duration_s", "width_px")
    said = [dict(zip(names, row, strict=True)) for row in said]
    frame = pl.DataFrame(said)
    file = lab / f"clips.{'csv' if kind == 'semicolons' else kind}"
    if kind in ("csv", "semicolons", "tsv"):
        frame.write_csv(file, separator={"csv": ",", "semicolons": ";", "tsv": "\t"}[kind], include_bom=kind == "csv")
    elif kind == "jsonl":
        file.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in said))
    else:
        frame.write_parquet(file)
    first, second = table.read(file, "lab").collect().sort("path").to_dicts()
    assert (first["participant_id"], first["scene_id"], first["duration_s"], first["width_px"]) == (
        "p1",
        "s",
        60.0,
        640,
    )
    assert (first["fps_num"], first["fps_den"]) == (30000, 1001) and (second["fps_num"], second["fps_den"]) == (30, 1)
    assert (second["scene_id"], second["duration_s"], second["width_px"], second["reason"]) == (None, 12.5, None, None)


def test_pieces_of_one_file_share_its_recording(lab):
    (lab / "clips.csv").write_text("path,start_s,end_s,narration\na.mp4,0,2.5,first\na.mp4,2.5,00:00:04,second\n")
    found = rows(table.read(lab / "clips.csv", "lab"))
    assert [(row["start_s"], row["duration_s"]) for row in found.values()] == [(0.0, 2.5), (2.5, 1.5)]
    assert len(found) == 2 and {row["recording_id"] for row in found.values()} == {"a.mp4"}


def test_what_is_wrong_with_a_row_is_told_in_it(lab):
    (lab / "clips.csv").write_text(
        "path,duration_s,fps,start_s,end_s\n"
        "a.mp4,long,,,\n"
        "gone.mp4,,,,\n"
        ",3,,,\n"
        "day 2/b.mp4,,quick,,\n"
        "day 2/b.mp4,,,5,3\n"
        "shards/x.tar/1.mp4,,,,\n"
    )
    reasons = table.read(lab / "clips.csv", "lab").collect()["reason"].to_list()
    expected = ["duration_s = long: not a number", "No such file: declared by clips.csv", "gives no path",
                "fps = quick: not a frame rate", "ends before it begins", "No such file"]  # fmt: skip
    for reason, words in zip(reasons, expected, strict=True):
        assert words in reason


def test_absolute_paths_and_addresses_are_taken_as_they_are(lab):
    (lab / "clips.jsonl").write_text('{"path": "/far/away.mp4"}\n{"path": "s3://bucket/b.mp4"}\n')
    found = table.read(lab / "clips.jsonl", "lab").collect()
    assert found["path"].to_list() == ["/far/away.mp4", "s3://bucket/b.mp4"] and found["reason"].null_count() == 2


def test_a_folder_lists_what_its_table_forgot_too(lab):
    (lab / "frames").mkdir()
    for index in range(3):
        (lab / "frames" / f"{index}.png").write_bytes(b"picture")
    (lab / "clips.csv").write_text("file,task\na.mp4,wash\nday 2/b.mp4,dry\n")
    found = rows(table.read(lab, "lab"))
    assert set(found) == {"a.mp4", "day 2/b.mp4", "forgotten.mp4", "frames/*.png"}
    assert "not named by clips.csv" in found["forgotten.mp4"]["reason"]
    (lab / "clips.csv").write_text("file\na.mp4\nday 2/b.mp4\nforgotten.mp4\nframes?fps=2\n")
    found = rows(table.read(lab, "lab"))
    assert found["frames?fps=2"]["path"] == f"{lab}/frames?fps=2" and found["frames?fps=2"]["reason"] is None


@pytest.mark.parametrize(
    "names, text, words",
    [
        (("clips.csv",), "name,task\na,b\n", "no table that lists clips"),
        (("one.csv", "two.csv"), "path\na.mp4\n", r"several tables list clips \(one.csv, two.csv\)"),
    ],
)
def test_a_folder_without_one_such_table_is_an_error(lab, names, text, words):
    for name in names:
        (lab / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        table.read(lab, "lab")


def test_a_table_without_a_path_names_what_it_has(lab):
    (lab / "clips.csv").write_text("name,task\na,b\n")
    with pytest.raises(ValueError, match=r"clips\.csv: no column `path` or `file`; it has name, task"):
        table.read(lab / "clips.csv", "lab")


def test_a_catalogue_read_again_under_its_own_name_keeps_its_ids(lab):
    from egoscale.recipe import SourceSpec
    from egoscale.video.catalog import write_catalog

    first = write_catalog([SourceSpec(name="lab", path=str(lab))], lab / "first.parquet", probe="none")
    again = write_catalog([SourceSpec(name="lab", path=str(first))], lab / "again.parquet", probe="none")
    other = write_catalog([SourceSpec(name="merged", path=str(first))], lab / "other.parquet", probe="none")
    ids = pl.read_parquet(first)["clip_id"].to_list()
    assert pl.read_parquet(again)["clip_id"].to_list() == ids and "lab/a.mp4" in ids
    assert pl.read_parquet(other)["clip_id"].to_list() == [f"merged/{one}" for one in ids]


# --- headers ------------------------------------------------------------------------------------------------

PEOPLE = "path, Participant_ID,\ufeffscene_id , TASK\na.mp4, p1, kitchen, wash up\nday 2/b.mp4, p2, hall, dry\n"


@pytest.mark.parametrize("kind", ["utf-8", "utf-8-sig", "utf-16", "tsv", "jsonl", "parquet"])
def test_capitals_blanks_and_marks_about_a_name_lose_no_column(lab, kind):
    file = lab / f"clips.{kind if kind in ('tsv', 'jsonl', 'parquet') else 'csv'}"
    if kind == "jsonl":
        said = [{"Path": "a.mp4", " participant": "p1"}, {"Path": "day 2/b.mp4", "Scene": "hall", " participant": "p2"}]
        file.write_text("".join(json.dumps(one) + "\n" for one in said), encoding="utf-8-sig")
    elif kind == "parquet":
        pl.DataFrame({"PATH": ["a.mp4", "day 2/b.mp4"], "participant_id ": ["p1", "p2"]}).write_parquet(file)
    elif kind == "tsv":  # as Excel writes "Unicode text"
        file.write_text(PEOPLE.replace(",", "\t"), encoding="utf-16")
    else:
        file.write_text(PEOPLE, encoding=kind)
    assert table.finds(lab) == file.name and table.notes(lab) == []
    found = rows(table.read(lab, "lab"))
    assert [found[name]["participant_id"] for name in ("a.mp4", "day 2/b.mp4")] == ["p1", "p2"]
    assert kind in ("jsonl", "parquet") or [row["task"] for row in found.values()][:2] == ["wash up", "dry"]
    assert kind == "parquet" or found["day 2/b.mp4"]["scene_id"] == "hall"


def test_our_name_wins_over_another_spelling_of_it(lab):
    (lab / "clips.csv").write_text("Task,task,PATH,file\nno,wash,a.mp4,b.mp4\nyes,,,day 2/b.mp4\n")
    found = rows(table.read(lab / "clips.csv", "lab"))
    assert {name: row["task"] for name, row in found.items()} == {"a.mp4": "wash", "day 2/b.mp4": "yes"}


def test_columns_that_are_not_read_are_told_with_the_name_that_was_meant(lab):
    (lab / "clips.csv").write_text("path,Participant Id,scenes,iso\na.mp4,p1,hall,400\n")
    _, (chosen, note) = chosen_readers([SourceSpec(name="lab", path=str(lab))])
    assert chosen == "lab: reader table (clips.csv)"
    told = "'Participant Id' (`participant_id` is), 'scenes' (`scene` is), 'iso'"
    assert note == f"lab: clips.csv: columns that are not read: {told}"
    catalog = write_catalog([SourceSpec(name="lab", path=str(lab))], lab / "out.parquet", probe="none")
    assert table.notes(catalog) == [], "a catalogue has columns of its own"


def test_a_folder_says_why_its_table_was_not_taken(lab):
    (lab / "clips.csv").write_text("clip name;who\na.mp4;p1\n")
    (lab / "more.jsonl").write_text("{'path': 'a.mp4'}\n")
    _, lines = chosen_readers([SourceSpec(name="lab", path=str(lab))])
    assert lines[0].startswith("lab: reader folder")
    assert lines[1] == "lab: clips.csv is there, but has no column `path` or `file`; it has clip name, who"
    assert "more.jsonl is there, but cannot be read" in lines[2] and "not JSON" in lines[2]
    for index in range(20):
        (lab / f"{index:02d}.csv").write_text("x,y\n1,2\n")
    assert len(folder.notes(lab)) == 4 and folder.notes(lab)[-1] == "19 more tables are there"


# --- times and places ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_that_are_none_are_told_in_their_own_row(lab, kind):
    nan, inf = float("nan"), float("inf")
    frame = pl.DataFrame(
        {
            "path": ["a.mp4"] * 6,
            "clip_id": ["good", "empty", "before", "endless", "rate", "no rate"],
            "start_s": [0.0, nan, -1.0, inf, 0.0, -1e-9],
            "end_s": [2.0, nan, 2.0, 3.0, 1.0, 1.0],
            "fps": [30.0, nan, 30.0, 30.0, inf, nan],
            "width_px": [640.0, nan, 640.0, 640.0, 640.0, 640.0],
        }
    )
    frame.write_csv(lab / "clips.csv") if kind == "csv" else frame.write_parquet(lab / "clips.parquet")
    found = rows(table.read(lab / f"clips.{kind}", "lab"))
    reasons = {name: row["reason"] for name, row in found.items()}
    assert reasons["good"] is None and (found["good"]["start_s"], found["good"]["duration_s"]) == (0.0, 2.0)
    assert [found["empty"][key] for key in ("reason", "start_s", "duration_s", "fps_num", "width_px")] == [None] * 5
    assert reasons["before"] == "start_s = -1.0: it begins before its file"
    assert reasons["endless"] == "start_s = inf: not a number"
    assert reasons["rate"] == "fps = inf: not a frame rate"
    assert reasons["no rate"] is None and found["no rate"]["fps_num"] is None


def test_an_impossible_time_harms_no_other_clip_of_the_file(write_video, numbered, tmp_path):
    for name in ("m0", "m1"):
        write_video(f"lab/{name}.mp4", numbered(30))
    (tmp_path / "lab" / "clips.csv").write_text(
        "clip_id,path,start_s,end_s\na,m0.mp4,0,2\nb,m0.mp4,nan,nan\nc,m1.mp4,,\nd,m1.mp4,-1,2\ne,m1.mp4,,2\n"
    )
    catalog = pl.read_parquet(write_catalog([SourceSpec(name="lab", path=str(tmp_path / "lab"))], tmp_path / "out"))
    lengths = dict(catalog.filter("usable").select("clip_id", "num_frames").iter_rows())
    assert lengths == {"lab/a": 20, "lab/b": 30, "lab/c": 30, "lab/e": 20}, "an end alone counts from the beginning"
    assert catalog.filter(~pl.col("usable"))["reason"].to_list() == ["start_s = -1.0: it begins before its file"]


def test_a_question_mark_in_a_name_is_a_letter_of_it(lab):
    (lab / "what?.mp4").write_bytes(b"video")
    (lab / "clips.csv").write_text("path\nwhat?.mp4\na.mp4\nday 2/b.mp4\nforgotten.mp4\n")
    found = rows(table.read(lab, "lab"))
    assert len(found) == 4 and {row["reason"] for row in found.values()} == {None}


def test_a_file_named_by_another_way_to_it_is_one_row(lab):
    (lab.parent / "link").unlink(missing_ok=True)
    (lab.parent / "link").symlink_to(lab)
    (lab / "linked.mp4").symlink_to(lab / "forgotten.mp4")
    (lab / "clips.csv").write_text(
        f"path\nday 2//b.mp4\n../{lab.name}/a.mp4\n{lab.parent / 'link'}/forgotten.mp4\n{lab}/day 2/../linked.mp4\n"
    )
    for root in (lab, lab.parent / "link"):
        found = table.read(root, "lab").collect()
        assert found.height == 4 and found["reason"].null_count() == 4
    (lab / "c.mp4").write_bytes(b"video")
    assert table.read(lab, "lab").collect().filter(pl.col("reason").is_not_null())["clip_id"].to_list() == ["c.mp4"]


def test_a_folder_that_is_called_as_a_tar_is_a_folder(lab):
    (lab / "set.tar").mkdir()
    (lab / "set.tar" / "c.mp4").write_bytes(b"video")
    (lab / "clips.csv").write_text("path\nset.tar/c.mp4\na.mp4\nday 2/b.mp4\nforgotten.mp4\n")
    assert table.read(lab, "lab").collect()["reason"].null_count() == 4


@pytest.mark.parametrize("on_disk, in_table", [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_that_are_spelled_in_two_ways_are_one_name(lab, on_disk, in_table):
    file = lab / unicodedata.normalize(on_disk, "küche") / unicodedata.normalize(on_disk, "café.mp4")
    file.parent.mkdir()
    file.write_bytes(b"video")
    named = unicodedata.normalize(in_table, "küche/café.mp4")
    listed = f"path\na.mp4\n{named}\n{named[:-4]} 2.mp4\n"
    (lab / "clips.csv").write_text(listed, encoding="utf-8")
    found = rows(table.read(lab, "lab"))
    assert found[named]["path"] == str(file) and found[named]["reason"] is None
    assert set(found) == {"a.mp4", named, f"{named[:-4]} 2.mp4", "day 2/b.mp4", "forgotten.mp4"}
    assert "No such file" in found[f"{named[:-4]} 2.mp4"]["reason"]
