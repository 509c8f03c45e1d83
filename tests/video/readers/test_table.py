"""Tables that list clips: CSV, TSV, JSON lines, Parquet, with any of our columns."""

from __future__ import annotations

import json

import polars as pl
import pytest

from egoscale.video.readers import table


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
