"""Every file is a row; what is wrong with it is in the row; a killed build goes on."""

from __future__ import annotations

import csv
import hashlib
import shutil

import numpy as np
import polars as pl
import pytest

import egoscale.video.catalog as catalog_module
from egoscale.recipe import SourceSpec
from egoscale.video.catalog import SCHEMA, build_catalog, catalog_info, catalog_tables
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
    catalog = build_catalog([SourceSpec(path=str(shared / "nasty"), license="see MANIFEST.csv")], out)
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
        # decord must not read what it cannot open or counts otherwise; whatever it reads is told.
        if facts["decord"] != f"ok:{facts['frames']}" or "rotation" in facts["extra"]:
            assert row["decoder"] == "pyav" and row["decoder_reason"], clip
        assert (row["decoder"] == "decord") == (row["decoder_reason"] is None), clip


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


def test_reasons_for_pyav(nasty_catalog):
    catalog, _ = nasty_catalog
    why = dict(catalog.select("clip_id", "decoder_reason").iter_rows())
    assert "cannot open" in why["nasty/torchcodec/av1_video.mkv"]
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
    assert set(rows) == {"cook/technique_error_1_3.mp4", "cook/order_error_0.mp4", "cook/10_16_360p.mp4"}
    panel = rows["cook/technique_error_1_3.mp4"]
    assert panel["task"] == "Technique Error" and "technique_error_1, panel 3" in panel["provenance"]
    assert panel["participant_id"] is None and panel["license"] == "Apache-2.0"
    assert (panel["num_frames"], panel["duration_s"], panel["decoder"]) == (150, 5.0, "decord")
    full = rows["cook/10_16_360p.mp4"]
    assert (full["recording_id"], full["participant_id"], full["scene_id"]) == (
        "10_16", "captaincook4d-person-5", "captaincook4d-kitchen-2",
    )  # fmt: skip
    assert full["task"]


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
    assert steps == [(i, 4, "files") for i in range(1, 5)]
    assert not (tmp_path / "out" / "probed.jsonl").exists()


def test_several_processes_give_the_same_catalogue(lab, tmp_path):
    source = [SourceSpec(path=str(lab))]
    assert build_catalog(source, tmp_path / "one").equals(build_catalog(source, tmp_path / "two", jobs=2))


def test_killed_build_goes_on(lab, tmp_path, monkeypatch):
    source, out = [SourceSpec(path=str(lab))], tmp_path / "out"
    probed = []

    def dies_at_third(path):
        if len(probed) == 2:
            raise KeyboardInterrupt
        probed.append(path.name)
        return probe_file(path)

    monkeypatch.setattr(catalog_module, "probe_file", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        build_catalog(source, out)
    assert probed == ["a.mp4", "b.mp4"] and not (out / "catalog.parquet").exists()
    with (out / "probed.jsonl").open("a") as file:
        file.write('{"path": "torn li')  # killed while writing
    (lab / "b.mp4").write_bytes(b"changed since")

    again = []
    monkeypatch.setattr(catalog_module, "probe_file", lambda path: (again.append(path.name), probe_file(path))[1])
    catalog = build_catalog(source, out)
    assert again == ["b.mp4", "broken.mp4", "c.mp4"], "a.mp4 is known, b.mp4 is another file now"
    assert catalog.equals(build_catalog(source, tmp_path / "fresh"))


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
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
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
