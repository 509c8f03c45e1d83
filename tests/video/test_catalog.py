"""Every file is a row; what is wrong with it is in the row; a killed build goes on; metadata alone make a catalogue."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

import egoscale.video.catalog as catalog_module
from egoscale.recipe import SourceSpec
from egoscale.video.catalog import SCHEMA, build_catalog, chosen_readers, read_metadata
from egoscale.video.hours import catalog_info, catalog_tables
from egoscale.video.probe import probe_file

TAKE_COLUMNS = [
    "take_id",
    "file",
    "recording_id",
    "participant_id",
    "scene_id",
    "task",
    "narration",
    "license",
]


@pytest.fixture
def lab(write_video, numbered, tmp_path):
    """Three recordings and a broken one."""
    for name in ("a.mp4", "b.mp4", "inner/c.mp4"):
        write_video(f"lab/{name}", numbered(10 + len(name)))
    (tmp_path / "lab" / "broken.mp4").write_bytes(b"\0" * 500)
    (tmp_path / "lab" / "notes.txt").write_text("not a video, and no row")
    return tmp_path / "lab"


def takes_folder(tmp_path, write_video, numbered, rows):
    root = tmp_path / "takes"
    root.mkdir(exist_ok=True)
    for row in rows:
        if row.get("write", True):
            write_video(f"takes/{row['file']}", numbered(10))
    with (root / "takes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, TAKE_COLUMNS, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def nasty_catalog(tmp_path_factory):
    from pathlib import Path

    shared = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not shared.is_dir():
        pytest.skip("the folder `shared` with real videos does not lie beside the repository")
    out = tmp_path_factory.mktemp("nasty")
    source = SourceSpec(path=str(shared / "nasty"), license="see MANIFEST.csv")
    catalog = build_catalog([source], out, jobs=2)
    with (shared / "MANIFEST.csv").open(newline="") as file:
        manifest = {row["path"]: row for row in csv.DictReader(file) if row["path"].startswith("nasty/")}
    return catalog, manifest


def test_every_nasty_file_is_a_row_with_the_frames_that_were_counted_by_hand(nasty_catalog):
    catalog, manifest = nasty_catalog
    rows = {row["clip_id"]: row for row in catalog.iter_rows(named=True)}
    assert set(rows) == set(manifest) and len(rows) == 35
    for clip, facts in manifest.items():
        row = rows[clip]
        assert row["num_frames"] == int(facts["frames"] or 0), clip
        assert row["sha256"] == facts["sha256"] and row["bytes"] == int(facts["bytes"]), clip
        assert row["usable"] == (facts["checked"] == "ok" and bool(facts["fps"])), clip
        assert row["usable"] or row["reason"], clip
        if not row["usable"]:
            continue
        assert row["codec"] == facts["codec_or_type"], clip
        assert sorted((row["width_px"], row["height_px"])) == sorted((int(facts["width"]), int(facts["height"])))
        assert row["duration_s"] == pytest.approx(float(facts["duration_s"]), abs=0.011), clip
        # decord must not read what it cannot open or counts otherwise; what it would do wrong is told.
        if facts["decord"] != f"ok:{facts['frames']}" or "rotation" in facts["extra"]:
            assert row["decoder"] != "decord" and row["decoder_reason"], clip


def test_reasons_of_the_unusable_say_what_is_wrong(nasty_catalog):
    catalog, _ = nasty_catalog
    reasons = dict(catalog.filter(~pl.col("usable")).select("clip_id", "reason").iter_rows())
    expected = {
        "nasty/decord/corrupted.mp4": "fails at frame 28 of 50",
        "nasty/moviepy/result.webm": "0 bytes",
        "nasty/torchcodec/gradient.gif": "no frame rate",
        "nasty/torchcodec/nasa_13013.mp4.audio.mp3": "only audio",
        "nasty/torchcodec/sine_mono_s16.wav": "only audio",
    }
    assert set(reasons) == set(expected)
    for clip, words in expected.items():
        assert words in reasons[clip]


def test_reasons_against_decord(nasty_catalog):
    catalog, _ = nasty_catalog
    why = dict(catalog.select("clip_id", "decoder_reason").iter_rows())
    assert "av1" in why["nasty/torchcodec/av1_video.mkv"]
    assert "rotation of 90" in why["nasty/decord/video_90.mov"]
    assert "edit list" in why["nasty/torchcodec/discard_first_keyframe.mp4"]
    assert "2 video streams" in why["nasty/torchcodec/nasa_13013.mp4"]


def test_captaincook4d_clips(shared, tmp_path):
    root = tmp_path / "cook"
    root.mkdir()
    for name in ("technique_error_1_3.mp4", "order_error_0.mp4"):
        shutil.copy(shared / "ego" / "captaincook4d" / name, root)
    # The same footage under the name of a full recording, with the data set's own tables beside it.
    shutil.copy(shared / "ego" / "captaincook4d" / "order_error_1.mp4", root / "10_16_360p.mp4")
    shutil.copytree(shared / "annotations" / "captaincook4d", root / "annotations")
    catalog = build_catalog([SourceSpec(reader="captaincook4d", path=str(root), name="cook")], tmp_path / "out")
    rows = {row["clip_id"]: row for row in catalog.iter_rows(named=True)}
    here = {"cook/technique_error_1_3.mp4", "cook/order_error_0.mp4", "cook/10_16_360p.mp4"}
    assert {clip for clip, row in rows.items() if row["usable"]} == here
    assert len(rows) == 384 + 2, "the tables declare 383 recordings that are not there"
    panel = rows["cook/technique_error_1_3.mp4"]
    assert panel["task"] == "Technique Error" and "technique_error_1, panel 3" in panel["provenance"]
    assert panel["participant_id"] is None and panel["license"] == "Apache-2.0"
    assert (panel["num_frames"], panel["duration_s"], panel["split"]) == (150, 5.0, None)
    full = rows["cook/10_16_360p.mp4"]
    assert (full["recording_id"], full["participant_id"], full["scene_id"]) == (
        "10_16", "captaincook4d-person-5", "captaincook4d-kitchen-2",
    )  # fmt: skip
    assert full["task"] and full["split"] == "train" and full["duration_s"] == 5.0, "decoded, not as declared"


def test_folder_lists_every_file(lab, tmp_path):
    steps = []
    catalog = build_catalog(
        [SourceSpec(path=str(lab), license="CC-BY-4.0")],
        tmp_path / "out",
        progress=lambda *step: steps.append(step),
    )
    assert list(catalog.columns) == list(SCHEMA)
    assert catalog["clip_id"].to_list() == ["lab/a.mp4", "lab/b.mp4", "lab/broken.mp4", "lab/inner/c.mp4"]
    assert catalog["usable"].to_list() == [True, True, False, True]
    assert catalog["num_frames"].to_list() == [15, 15, 0, 21]
    assert set(catalog["license"]) == {"CC-BY-4.0"}
    assert catalog["sha256"][0] == hashlib.sha256((lab / "a.mp4").read_bytes()).hexdigest()
    assert catalog.equals(pl.read_parquet(tmp_path / "out" / "catalog.parquet"))
    assert steps == [(i, 4, "clips") for i in range(1, 5)]
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["catalog.decoded.scores", "catalog.parquet"]


def test_several_processes_give_the_same_catalogue(lab, tmp_path):
    source = [SourceSpec(path=str(lab))]
    assert build_catalog(source, tmp_path / "one").equals(build_catalog(source, tmp_path / "two", jobs=2))


BUILD = """
import sys
from pathlib import Path
import egoscale.video.catalog as catalog_module
from egoscale.recipe import SourceSpec
from egoscale.video.catalog import write_catalog

if __name__ == "__main__":
    write_catalog([SourceSpec(path=sys.argv[1], name="lab")], Path(sys.argv[2]))
"""


def test_a_build_that_is_killed_goes_on_where_it_was(shared, tmp_path):
    """Real files, each of which takes a moment; killed with -9 when two of them are noted."""
    lab, out = tmp_path / "lab", tmp_path / "out"
    lab.mkdir()
    for name in ("order_error_0", "order_error_1", "order_error_2", "order_error_3", "measurement_error_0"):
        shutil.copy(shared / "ego" / "captaincook4d" / f"{name}.mp4", lab)
    (lab / "broken.mp4").write_bytes(b"\0" * 500)
    source = [SourceSpec(path=str(lab), name="lab")]
    (tmp_path / "build.py").write_text(BUILD)
    process = subprocess.Popen([sys.executable, str(tmp_path / "build.py"), str(lab), str(out)])
    folder, noted = out / "catalog.decoded.scores", []
    while len(noted) < 2 and process.poll() is None:
        noted = [line for file in folder.rglob("*.notes.jsonl") for line in file.read_text().splitlines()]
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert noted and not (out / "catalog.parquet").exists()
    with next(folder.rglob("*.notes.jsonl")).open("a") as file:
        file.write('{"clip_id": "torn li')  # killed while writing
    changed = lab / f"{json.loads(noted[0])['clip_id'].removeprefix('lab/')}"
    changed.write_bytes(b"changed since")
    steps = []
    catalog = build_catalog(source, out, progress=lambda done, total, unit: steps.append(done))
    assert len(steps) <= 6 - len(noted) + 1, "what was noted is not decoded again, but for the file that changed"
    assert catalog.equals(build_catalog(source, tmp_path / "fresh", jobs=2))
    assert catalog.filter(pl.col("clip_id") == f"lab/{changed.name}")["usable"].to_list() == [False]
    assert sorted(path.name for path in out.iterdir()) == ["catalog.decoded.scores", "catalog.parquet"]


def test_takes_are_read_with_their_metadata(write_video, numbered, tmp_path):
    rows = [
        {"take_id": "t1", "file": "videos/r1/t1.mp4", "recording_id": "r1", "participant_id": "p1",
         "scene_id": "s1", "task": "lift", "narration": "lifts, slowly", "license": "CC0-1.0"},
        {"take_id": "t2", "file": "videos/r1/t2.mp4", "recording_id": "r1"},
        {"take_id": "t3", "file": "videos/r2/t3.mp4", "write": False},
    ]  # fmt: skip
    root = takes_folder(tmp_path, write_video, numbered, rows)
    write_video("takes/videos/forgotten.mp4", numbered(5))
    source = SourceSpec(reader="takes", path=str(root), name="film", license="Apache-2.0")
    catalog = build_catalog([source], tmp_path / "out")
    by_id = {row["clip_id"]: row for row in catalog.iter_rows(named=True)}
    first = by_id["film/t1"]
    assert [first[column] for column in TAKE_COLUMNS[2:]] == [
        "r1", "p1", "s1", "lift", "lifts, slowly", "CC0-1.0",
    ]  # fmt: skip
    assert by_id["film/t2"]["participant_id"] is None and by_id["film/t2"]["license"] == "Apache-2.0"
    assert not by_id["film/t3"]["usable"] and "No such file" in by_id["film/t3"]["reason"]
    forgotten = by_id["film/videos/forgotten.mp4"]
    assert not forgotten["usable"] and "not listed in takes.csv" in forgotten["reason"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("take_id,file\nt,a.mp4\n", "no column recording_id, participant_id"),
        (",".join(TAKE_COLUMNS) + "\n,a.mp4,,,,,,\n", "line 2 has no take_id"),
        (",".join(TAKE_COLUMNS) + "\nt,a.mp4,,,,,,\nt,b.mp4,,,,,,\n", "'t' stands in lines 2 and 3"),
    ],
)
def test_wrong_takes_table_is_an_error_that_names_it(tmp_path, text, words):
    (tmp_path / "takes.csv").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        build_catalog([SourceSpec(reader="takes", path=str(tmp_path))], tmp_path / "out")
    assert "takes.csv" in str(caught.value)


def test_folder_that_is_missing_or_empty_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder, nor a table"):
        build_catalog([SourceSpec(path=str(tmp_path / "nowhere"))], out)
    with pytest.raises(ValueError, match="no video in"):
        build_catalog([SourceSpec(path=str(tmp_path / "empty"))], out)
    with pytest.raises(FileNotFoundError, match=r"takes\.csv"):
        build_catalog([SourceSpec(reader="takes", path=str(tmp_path / "empty"))], out)
    with pytest.raises(ValueError, match="no source"):
        build_catalog([], out)
    with pytest.raises(ValueError, match="path"):
        build_catalog([SourceSpec(path="")], out)
    with pytest.raises(ValueError, match="two sources are called 'empty'"):
        build_catalog([SourceSpec(path=str(tmp_path / "empty"))] * 2, out)


def test_scores_tell_black_and_frozen(write_video, tmp_path):
    rng = np.random.default_rng(0)
    moving = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    still = np.repeat(moving[:1], 20, 0)
    half = np.concatenate([moving[:10], np.zeros_like(moving[:10])])
    scores = {
        name: probe_file(write_video(f"{name}.mp4", frames))
        for name, frames in (("moving", moving), ("still", still), ("half", half))
    }
    assert scores["moving"].frozen_fraction == 0 and scores["moving"].black_fraction == 0
    assert scores["still"].frozen_fraction > 0.9
    assert scores["half"].black_fraction == 0.5 and 0.4 < scores["half"].frozen_fraction < 0.5
    assert 100 < scores["moving"].mean_luma < 155


def test_info_counts_hours_and_names_the_unusable(nasty_catalog):
    catalog, _ = nasty_catalog
    tables = catalog_tables(catalog)
    source = tables["source"].row(0, named=True)
    assert (source["usable"], source["not usable"]) == (30, 5)
    usable_s = catalog.filter("usable")["duration_s"].sum()
    assert source["hours"] == pytest.approx(usable_s / 3600)
    assert tables["licence"]["hours"].sum() == pytest.approx(usable_s / 3600)
    text = catalog_info(catalog)
    for words in ("nasty", "see MANIFEST.csv", "only audio", "edit list"):
        assert words in text


def test_info_of_what_was_only_declared(tmp_path):
    (tmp_path / "a.csv").write_text(
        "path,duration_s,task,participant,license\n"
        "/far/1.mp4,1800,Wash  up,p1,CC0-1.0\n"
        "/far/2.mp4,3600,wash up,p2,\n"
        "/far/3.mp4,none,dry,p2,\n"
        "gone.mp4,7200,dry,,\n"
    )
    source = SourceSpec(path=str(tmp_path / "a.csv"), license="CC-BY-4.0")
    catalog = build_catalog([source], tmp_path / "out", probe="none")
    assert catalog["usable"].to_list() == [None, None, False, False]
    assert catalog["first_frame"].to_list() == [0] * 4 and catalog["start_s"].to_list() == [0.0] * 4
    tables = catalog_tables(catalog)
    assert tables["source"].row(0, named=True) == {
        "source": "a", "hours": 0.0, "declared hours": 1.5, "usable": 0, "never probed": 2, "not usable": 2,
        "recordings": 4, "participants": 2, "scenes": 0,
    }  # fmt: skip
    assert dict(tables["licence"].select("licence", "declared hours").iter_rows()) == {"CC-BY-4.0": 1.0, "CC0-1.0": 0.5}
    assert tables["task"]["task"].to_list() == ["Wash  up"], "spellings of one task count as one"
    why = dict(tables["not usable"].select("such as", "why").iter_rows())
    assert why["a//far/3.mp4"] == "duration_s = none: not a number" and "No such file" in why["a/gone.mp4"]
    assert "declared hours" in catalog_info(catalog) and "2.0000" in catalog_info(catalog)


def test_sources_are_sorted_by_what_clip_ids_begin_with(tmp_path):
    for name in ("lab-2", "lab", "lab.old"):
        (tmp_path / f"{name}.jsonl").write_text('{"path": "/b.mp4"}\n{"path": "/a.mp4"}\n')
    sources = [SourceSpec(path=str(tmp_path / f"{name}.jsonl"), name=name) for name in ("lab.old", "lab", "lab-2")]
    catalog = build_catalog(sources, tmp_path / "catalog.parquet", probe="none")
    assert catalog["clip_id"].is_sorted() and catalog.height == 6
    assert catalog.equals(pl.read_parquet(tmp_path / "catalog.parquet"))
    assert read_metadata(sources).collect()["clip_id"].sort().to_list() == catalog["clip_id"].to_list()


@pytest.mark.parametrize("at_a_time", [1, 3, 7, 1000])
def test_order_of_rows_and_pieces_that_are_sorted_change_nothing(tmp_path, monkeypatch, at_a_time):
    names = [f"/day-{i % 7}/{i * 37 % 101:03d}.mp4" for i in range(101)]
    orders = {"there": names, "back": names[::-1], "sorted": sorted(names)}
    monkeypatch.setattr(catalog_module, "SORTED_CLIPS", at_a_time)
    built = []
    for name, listed in orders.items():
        (tmp_path / name).mkdir()
        pl.DataFrame({"path": listed}).write_parquet(tmp_path / name / "clips.parquet")
        source = SourceSpec(path=str(tmp_path / name / "clips.parquet"))
        built.append(build_catalog([source], tmp_path / f"{name}.parquet", probe="none"))
    assert built[0]["path"].to_list() == sorted(names)
    assert built[0].equals(built[1]) and built[0].equals(built[2])


def test_a_clip_id_that_stands_twice_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("path,clip_id\n/1.mp4,x\n/2.mp4,y\n/3.mp4,x\n")
    with pytest.raises(ValueError, match="source 'a': 1 clip ids stand more than once, such as 'a/x'"):
        build_catalog([SourceSpec(path=str(tmp_path / "a.csv"))], tmp_path / "out", probe="none")


def test_metadata_that_cannot_be_read_name_the_source(tmp_path):
    (tmp_path / "a.csv").write_text("path,task\n/1.mp4,cut, wash and dry\n")
    with pytest.raises(ValueError, match=r"source 'a': its metadata in .*a\.csv cannot be read.*more fields"):
        build_catalog([SourceSpec(path=str(tmp_path / "a.csv"))], tmp_path / "out", probe="none")
    with pytest.raises(ValueError, match="reader 'table' knows no segments"):
        read_metadata([SourceSpec(path=str(tmp_path / "a.csv"), clips="segments")])


def test_a_declared_length_does_not_shorten_a_whole_file(write_video, numbered, tmp_path):
    write_video("lab/a.mp4", numbered(40))
    (tmp_path / "lab" / "clips.csv").write_text("path,duration_s,num_frames\na.mp4,1.0,10\n")
    clip = build_catalog([SourceSpec(path=str(tmp_path / "lab"))], tmp_path / "out").row(0, named=True)
    assert (clip["num_frames"], clip["duration_s"], clip["first_frame"]) == (40, 4.0, 0)


def test_what_auto_chose_is_told(lab, tmp_path):
    specs, lines = chosen_readers([SourceSpec(path=str(lab))])
    assert specs[0].reader == "folder" and lines == ["lab: reader folder (no table or layout of a known data set)"]


def test_the_verbs_build_and_info(lab, tmp_path, capsys):
    from egoscale.cli import main

    with pytest.raises(SystemExit) as left:
        main(["catalog", "build", f"mine={lab}", "--out", str(tmp_path / "c.parquet"), "--license", "CC0-1.0"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "mine: reader folder" in said and "CC0-1.0" in said and "no frame can be decoded" in said
    assert set(pl.read_parquet(tmp_path / "c.parquet")["source"]) == {"mine"}
    with pytest.raises(SystemExit) as left:
        main(["catalog", "info", str(tmp_path / "c.parquet")])
    assert left.value.code == 0 and "not usable" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["catalog", "build", str(lab), "--reader", "epic", "--out", str(tmp_path / "d.parquet")])
    assert left.value.code == 2 and "sources.0.reader" in capsys.readouterr().err
