"""Readers whose folders say which videos there are: LeRobot, Aria, HOT3D, Nymeria, OpenEgo, EgoDex, CERD.

Real folders are those of `shared`. Where there are none, the tree is made after the documentation of the data set.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from egoscale.recipe import SourceSpec
from egoscale.video.catalog import build_catalog
from egoscale.video.probe import probe_file
from egoscale.video.readers import (
    aria,
    captaincook4d,
    cerd,
    egodex,
    folder,
    hot3d,
    lerobot,
    nymeria,
    openego,
    reader,
    table,
    webdataset,
)

NO_VRS = importlib.util.find_spec("projectaria_tools") is None


def rows(frame):
    return {row["clip_id"]: row for row in frame.collect().iter_rows(named=True)}


def touch(path, content=b"video"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


# --- LeRobot ------------------------------------------------------------------------------------------------


def test_lerobot_episodes_of_both_layouts_are_the_same_clips(shared):
    old = rows(lerobot.read(shared / "robot" / "g1_pick_bottle_v21", "g1"))
    new = rows(lerobot.read(shared / "robot" / "g1_pick_bottle_v30", "g1"))
    assert set(old) == set(new) and len(old) == 10
    for name, episode in old.items():
        assert episode["num_frames"] == new[name]["num_frames"] and episode["task"] == new[name]["task"]
        assert episode["duration_s"] == pytest.approx(new[name]["duration_s"], abs=1e-6)
        assert episode["start_s"] is None and new[name]["start_s"] is not None
    sixth = new["episode_000005/observation.images.cam_high"]
    assert sixth["path"].endswith("file-001.mp4") and sixth["start_s"] == pytest.approx(8.6666667)
    assert (sixth["width_px"], sixth["height_px"], sixth["codec"]) == (640, 480, "av1")


def test_lerobot_cameras_and_videos_that_are_not_there_are_told(shared, tmp_path):
    found = rows(lerobot.read(shared / "robot" / "gr00t_picknplace_v20", "gr1"))
    phantom = [row for name, row in found.items() if name.endswith("images.egoview")]
    assert len(phantom) == 5
    assert all("names the camera 'observation.images.egoview'" in row["reason"] for row in phantom)
    assert sum(row["reason"] is None for row in found.values()) == 5
    tables = rows(lerobot.read(shared / "robot" / "lerobot_v30_apple_storage_novideo", "apple"))
    assert [row["duration_s"] for row in tables.values()] == pytest.approx([299 / 30, 10.0, 10.0])
    assert all("No such file" in row["reason"] for row in tables.values())
    copy = tmp_path / "set"
    shutil.copytree(shared / "robot" / "g1_pick_bottle_v21" / "meta", copy / "meta")
    touch(copy / "videos" / "chunk-000" / "observation.images.cam_high" / "episode_000099.mp4")
    stray = rows(lerobot.read(copy, "g1"))["videos/chunk-000/observation.images.cam_high/episode_000099.mp4"]
    assert "not named by meta/info.json" in stray["reason"]


def test_a_lerobot_version_that_is_not_read_is_an_error(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text('{"codebase_version": "v9.0", "features": {}}')
    with pytest.raises(ValueError, match=r"'v9\.0': v2\.0, v2\.1 and v3\.0 are read"):
        lerobot.read(tmp_path, "set")


# --- Aria ---------------------------------------------------------------------------------------------------


def test_aria_recordings_tell_what_they_need(shared):
    found = rows(aria.read(shared / "ego" / "aria_vrs", "aria"))
    assert set(found) == {
        "adt/segmentations.vrs", "adt/video.vrs", "aea/recording.vrs",
        "gen2/aria_gen2_unit_test_sequence_with_bluetooth.vrs",
    }  # fmt: skip
    everyday = found["aea/recording.vrs"]
    assert (everyday["scene_id"], everyday["task"]) == ("aea-2024-location-1", "script 1")
    assert found["adt/video.vrs"]["scene_id"] == "adt-2023-Apartment"
    if NO_VRS:
        assert "pip install 'egoscale[readers]'" in everyday["reason"] and "vrs_to_mp4" in everyday["reason"]


@pytest.mark.skipif(
    NO_VRS and importlib.util.find_spec("pyvrs") is None, reason="needs the package projectaria-tools or vrs"
)
def test_aria_recordings_are_measured_by_their_colour_camera(shared):
    found = rows(aria.read(shared / "ego" / "aria_vrs", "aria"))
    facts = {
        name: (row["num_frames"], row["fps_num"], row["width_px"], row["height_px"], row["device"])
        for name, row in found.items()
    }
    assert facts["aea/recording.vrs"] == (8, 20, 1408, 1408, "Aria Gen 1")
    assert facts["adt/video.vrs"] == (3, 30, 1408, 1408, "Aria Gen 1")
    assert facts["gen2/aria_gen2_unit_test_sequence_with_bluetooth.vrs"] == (3, 10, 2016, 1512, "Aria Gen 2")
    assert "no frames of a colour camera" in found["adt/segmentations.vrs"]["reason"]


def test_an_mp4_made_of_a_recording_is_the_clip(shared, tmp_path):
    shutil.copytree(shared / "ego" / "aria_vrs" / "aea", tmp_path / "aea")
    film = touch(tmp_path / "aea" / "recording.mp4")
    (clip,) = rows(aria.read(tmp_path, "aria")).values()
    assert clip["path"] == film and clip["reason"] is None and clip["scene_id"] == "aea-2024-location-1"


def test_perception_outputs_without_a_recording_are_a_row(shared):
    (clip,) = rows(aria.read(shared / "annotations" / "aria_mps_sample", "mps")).values()
    assert "no recording" in clip["reason"] and clip["recording_id"] == "aria_mps_sample"


# --- HOT3D --------------------------------------------------------------------------------------------------


def test_hot3d_sequences(shared):
    found = rows(hot3d.read(shared / "annotations" / "hot3d_sample", "hot3d"))
    glasses = found["Aria/P0003_c701bd11"]
    assert (glasses["participant_id"], glasses["device"], glasses["num_frames"]) == ("hot3d-P0003", "Aria Gen 1", 34)
    headset = found["Quest3/P0002_273c2819"]
    assert (headset["participant_id"], headset["device"], headset["num_frames"]) == ("hot3d-P0002", "Quest 3", 15)
    assert all("No such file: declared by metadata.json" in row["reason"] for row in found.values())


def picture(path, grey):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 24, 3), grey, np.uint8)).save(path)


def test_hot3d_clips_are_tars_of_pictures(tmp_path):
    """Made after the README of HOT3D-Clips, with 4 frames in place of 150."""
    root = tmp_path / "hot3d"
    (root / "train_aria").mkdir(parents=True)
    with tarfile.open(root / "train_aria" / "clip-001849.tar", "w") as tar:
        for frame in range(4):
            for stream in ("214-1", "1201-1"):
                file = tmp_path / "frames" / f"{frame:06d}.image_{stream}.jpg"
                picture(file, 40 * frame if stream == "214-1" else 250)
                tar.add(file, file.name)
            tar.addfile(tarfile.TarInfo(f"{frame:06d}.hands.json"))
    definitions = {
        "1849": {"sequence_id": "P0001_23fa0ee8", "device": "Aria", "per_frame_timestamps_ns": []},
        "2000": {"sequence_id": "P0010_aaaaaaaa", "device": "Quest3", "per_frame_timestamps_ns": []},
    }
    (root / "clip_definitions.json").write_text(json.dumps(definitions))
    (root / "clip_splits.json").write_text(json.dumps({"train": [1849], "test_ht_pose": [2000], "test_bop": [2000]}))
    found = rows(hot3d.read(root, "hot3d"))
    clip, missing = found["clip-001849"], found["clip-002000"]
    assert (clip["recording_id"], clip["participant_id"], clip["split"]) == ("P0001_23fa0ee8", "hot3d-P0001", "train")
    assert clip["path"] == f"{root}/train_aria/clip-001849.tar?glob=*.image_214-1.jpg&fps=30"
    assert (missing["split"], missing["device"]) == ("test_ht_pose", "Quest 3")
    assert "test_quest3/clip-002000.tar?glob=*.image_1201-1.jpg" in missing["path"] and "No such" in missing["reason"]
    probed = build_catalog([SourceSpec(path=str(root))], tmp_path / "out").sort("clip_id").row(0, named=True)
    assert (probed["usable"], probed["num_frames"], probed["fps_num"], probed["width_px"]) == (True, 4, 30, 24)
    assert probed["mean_luma"] == pytest.approx(60, abs=2), "only pictures of the one stream"


# --- Nymeria ------------------------------------------------------------------------------------------------


def test_nymeria_sequences(tmp_path):
    """Made after the layout in nymeria_dataset/nymeria/definitions.py; the first line of the narration is a remark."""
    name = "20230607_s0_james_johnson_act0_e72nhq"
    (tmp_path / name / "narration").mkdir(parents=True)
    (tmp_path / name / "metadata.json").write_text(
        json.dumps({"fake_name": "james_johnson", "location": 42, "script": "S1-cooking", "head_duration_sec": 912.5})
    )
    (tmp_path / name / "narration" / "activity_summarization.csv").write_text(
        "# written by hand\nstart_time,end_time,Describe my activity\n100.0,130.0,C is cooking.\n130.0,160.0,C eats.\n"
    )
    for recording in ("recording_head", "recording_lwrist", "recording_observer"):
        touch(tmp_path / name / recording / "data" / "data.vrs", b"not really VRS")
    touch(tmp_path / name / "recording_head" / "data" / "et.vrs")
    bare = "20230607_s0_james_johnson_act1_f00000"
    (tmp_path / bare).mkdir()
    (tmp_path / bare / "metadata.json").write_text("{}")
    assert nymeria.finds(tmp_path) == name
    found = rows(nymeria.read(tmp_path, "nymeria"))
    clip = found[name]
    assert (clip["participant_id"], clip["scene_id"], clip["task"]) == (
        "nymeria-james_johnson", "nymeria-location-42", "S1-cooking",
    )  # fmt: skip
    assert (clip["narration"], clip["duration_s"]) == ("C is cooking. C eats.", 912.5)
    assert clip["recording_id"] == found[bare]["recording_id"] == "20230607_s0_james_johnson"
    assert clip["reason"], "not decodable, whatever is installed"
    assert "No such file" in found[bare]["reason"]
    assert found[f"{name}/recording_lwrist/data/data.vrs"]["reason"] == "filmed from the left wrist"
    assert "observer" in found[f"{name}/recording_observer/data/data.vrs"]["reason"]
    assert "no pictures" in found[f"{name}/recording_head/data/et.vrs"]["reason"]


# --- OpenEgo, EgoDex, CERD, pictures ------------------------------------------------------------------------


def test_openego_demos_and_their_actions(shared, tmp_path):
    sample = shared / "annotations" / "openego_hocap"
    (demo,) = rows(openego.read(sample, "openego")).values()
    assert (demo["num_frames"], demo["fps_num"], demo["duration_s"]) == (676, 30, pytest.approx(676 / 30))
    assert demo["task"].startswith("Picking up and moving") and "No such file" in demo["reason"]
    if importlib.util.find_spec("h5py") is not None:
        assert demo["participant_id"] == "openego-subject_1"
    shutil.copytree(sample, tmp_path / "HO-Cap")
    video = touch(tmp_path / "HO-Cap" / "demo_0000" / "video.mp4")
    pieces = rows(openego.segments(tmp_path, "openego"))
    second = pieces["HO-Cap/demo_0000/001"]
    assert (second["start_s"], second["duration_s"], second["path"]) == (6.9, pytest.approx(2.9), video)
    assert "remote control" in second["narration"] and second["reason"] is None and len(pieces) == 4


def test_egodex_pairs_of_video_and_poses(tmp_path):
    """Made after arXiv 2505.11709: <part>/<task>/<n>.mp4 beside <n>.hdf5, which is read where h5py is installed."""
    touch(tmp_path / "part1" / "add_remove_lid" / "0.mp4")
    touch(tmp_path / "part1" / "add_remove_lid" / "preview.mp4")
    touch(tmp_path / "test" / "fold_towel" / "3.hdf5", b"")
    poses = tmp_path / "part1" / "add_remove_lid" / "0.hdf5"
    if importlib.util.find_spec("h5py") is None:
        touch(poses, b"")
    else:
        import h5py

        with h5py.File(poses, "w") as file:
            file.create_dataset("transforms/camera", data=np.zeros((90, 4, 4)))
            file.attrs["llm_type"], file.attrs["which_llm_description"] = "reversible", "2"
            file.attrs["llm_description"], file.attrs["llm_description2"] = "Remove the lid.", "Put the lid on."
            file.attrs["environment"] = "desk"
    assert egodex.finds(tmp_path) == "part1/add_remove_lid/0.hdf5"
    found = rows(egodex.read(tmp_path, "egodex"))
    assert set(found) == {"part1/add_remove_lid/0.mp4", "part1/add_remove_lid/preview.mp4", "test/fold_towel/3.mp4"}
    one = found["part1/add_remove_lid/0.mp4"]
    assert (one["task"], one["fps_num"], one["reason"]) == ("add remove lid", 30, None)
    if importlib.util.find_spec("h5py") is not None:
        assert (one["narration"], one["num_frames"], one["duration_s"]) == ("Put the lid on.", 90, 3.0)
        assert one["scene_id"] == "egodex-desk"
    assert "as an episode is" in found["part1/add_remove_lid/preview.mp4"]["reason"]
    missing = found["test/fold_towel/3.mp4"]
    assert "No such file" in missing["reason"] and missing["split"] == "test"


def test_cerd_sessions_are_videos_or_the_key_frames_with_hand_poses(shared, tmp_path):
    sample = shared / "ego" / "cerd_pour_water"
    found = rows(cerd.read(sample, "cerd"))
    film, frames = found["pour_water_02_1fps.mp4"], found["pour_water_02/rgb_left/*.png"]
    assert film["reason"] is None and "which is a clip of its own" in frames["reason"]
    assert film["task"] == "pour water", "info.json holds the text of its template"
    assert film["participant_id"] == "cerd-S001" and film["license"] == "CC-BY-4.0"
    shutil.copytree(sample / "pour_water_02", tmp_path / "cerd" / "pour_water_02")
    (clip,) = rows(cerd.read(tmp_path / "cerd", "cerd")).values()
    assert (clip["num_frames"], clip["fps_num"], clip["duration_s"], clip["reason"]) == (12, 1, 12.0, None)
    assert clip["path"] == f"{tmp_path}/cerd/pour_water_02/rgb_left?glob=*.png&fps=1"
    probed = build_catalog([SourceSpec(path=str(tmp_path / "cerd"))], tmp_path / "out").row(0, named=True)
    assert (probed["usable"], probed["num_frames"], probed["duration_s"]) == (True, 12, 12.0)
    assert (probed["width_px"], probed["height_px"], probed["participant_id"]) == (1280, 720, "cerd-S001")


def test_a_folder_of_pictures_needs_a_rate_and_links_are_followed_once(tmp_path):
    for index in range(3):
        picture(tmp_path / "lab" / "frames" / f"{index}.png", 10)
    touch(tmp_path / "elsewhere" / "a.mp4")
    (tmp_path / "lab" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "lab" / "loop").symlink_to(tmp_path / "lab")
    touch(tmp_path / "lab" / ".hidden" / "b.mp4")
    found = rows(folder.read(tmp_path / "lab", "lab"))
    assert set(found) == {"frames/*.png", "linked/a.mp4"}
    assert "nothing tells their frame rate" in found["frames/*.png"]["reason"]


# --- what cannot be read where it lies ----------------------------------------------------------------------


@contextmanager
def anybody():
    """Root, to whom no folder is closed, is somebody else for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def closed():
    """Two videos in a folder that nobody may list, and one beside it, where anybody can look."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        lab = Path(name) / "lab"
        touch(lab / "a.mp4")
        for video in ("b.mp4", "c.mp4"):
            touch(lab / "locked" / "day 1" / video)
        (lab / "locked" / "day 1").chmod(0)
        yield lab
        (lab / "locked" / "day 1").chmod(0o755)


def test_a_folder_that_cannot_be_listed_is_a_row_with_the_cause(closed):
    with anybody():
        found = rows(folder.read(closed, "lab"))
    assert set(found) == {"a.mp4", "locked/day 1/"} and found["a.mp4"]["reason"] is None
    assert found["locked/day 1/"]["path"] == str(closed / "locked" / "day 1")
    assert found["locked/day 1/"]["reason"] == (
        "this folder cannot be listed, and what is in it is not known: Permission denied"
    )


def test_every_reader_tells_of_a_folder_that_cannot_be_listed(shared, closed):
    (closed / "clips.csv").write_text("path\na.mp4\nlocked/day 1/b.mp4\nlocked/day 1/caf\u00e9.mp4\n")
    something = shared / "annotations" / "something_something_v2"
    for labels in something.glob("*"):
        shutil.copy(labels, closed)
    readers = ("aria", "captaincook4d", "cerd", "egodex", "hot3d", "webdataset", "table", "something_something")
    with anybody():
        found = {name: rows(reader(name).read(closed, "lab")) for name in readers}
        found["steps"] = rows(captaincook4d.segments(closed, "lab"))
    for name, clips in found.items():
        assert "Permission denied" in clips["locked/day 1/"]["reason"], name
    assert found["table"]["a.mp4"]["reason"] is None
    named = found["table"]["locked/day 1/b.mp4"]
    with anybody():
        assert named["reason"] is None and "Permission denied" in probe_file(Path(named["path"])).reason


def test_a_source_that_cannot_be_listed_at_all_is_an_error(closed):
    with anybody(), pytest.raises(PermissionError, match="day 1"):
        folder.read(closed / "locked" / "day 1", "lab")


def test_packed_and_unfinished_videos_are_rows(tmp_path):
    names = ("a.mp4", "shard-0.tar.gz", "c.MP4.GZ", "d.mp4.part", "poses.csv.gz", "notes.gz", "table.parquet.part")
    for name in names:
        touch(tmp_path / "lab" / name)
    for module in (folder, webdataset):
        reasons = {name: row["reason"] for name, row in rows(module.read(tmp_path / "lab", "lab")).items()}
        assert set(reasons) == {"a.mp4", "shard-0.tar.gz", "c.MP4.GZ", "d.mp4.part"} and reasons["a.mp4"] is None
        assert "packed with gzip" in reasons["shard-0.tar.gz"] and "unpack it" in reasons["c.MP4.GZ"]
        assert "part of a download" in reasons["d.mp4.part"]
    (tmp_path / "lab" / "clips.csv").write_text("path\na.mp4\n")
    assert "unpack it" in rows(table.read(tmp_path / "lab", "lab"))["shard-0.tar.gz"]["reason"]
