"""Tars of samples, read without unpacking; and Egocentric-10K, which is made of them.

No tar of Egocentric-10K can be handed on: those here are made after its documentation. The texts are real.
"""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from egoscale.recipe import SourceSpec
from egoscale.video.catalog import build_catalog
from egoscale.video.decode import open_video
from egoscale.video.readers import egocentric10k, webdataset


def rows(frame):
    return {row["clip_id"]: row for row in frame.collect().iter_rows(named=True)}


@pytest.fixture
def write_tar(tmp_path):
    def write(name, members):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for member, content in members.items():
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


def test_a_sample_is_a_clip_whose_path_goes_on_through_the_tar(write_tar, tmp_path):
    said = {"duration": 5.5, "fps": 29.97, "width": 640, "participant_id": "p7", "caption": "washes up", "extra": [1]}
    write_tar(
        "shards/000.tar",
        {"0001.mp4": b"vv", "0001.json": said, "0002.webm": b"w", "0002.txt": b" dries ", "0003.json": {"a": 1}},
    )
    (tmp_path / "shards" / "README.md").write_text("about")
    found = rows(webdataset.read(tmp_path / "shards", "set"))
    assert set(found) == {"000.tar/0001", "000.tar/0002"}
    first = found["000.tar/0001"]
    assert first["path"] == str(tmp_path / "shards" / "000.tar" / "0001.mp4") and first["bytes"] == 2
    assert (first["duration_s"], first["fps_num"], first["fps_den"], first["width_px"]) == (5.5, 30000, 1001, 640)
    assert (first["participant_id"], first["narration"]) == ("p7", "washes up")
    assert found["000.tar/0002"]["narration"] == "dries"
    assert set(rows(webdataset.read(tmp_path / "shards" / "000.tar", "set"))) == set(found)


def test_damaged_tars_and_tars_of_pictures_are_rows(write_tar, tmp_path):
    whole = write_tar("set/000.tar", {"a.mp4": b"v" * 3000, "b.mp4": b"v" * 3000})
    (tmp_path / "set" / "cut.tar").write_bytes(whole.read_bytes()[:4000])
    (tmp_path / "set" / "none.tar").write_bytes(b"not a tar at all" * 100)
    write_tar("set/pictures.tar", {f"{i:03d}.jpg": b"p" for i in range(4)})
    found = rows(webdataset.read(tmp_path / "set", "set"))
    assert set(found) == {
        "000.tar/a", "000.tar/b", "cut.tar/a", "cut.tar/", "none.tar/", "pictures.tar/*.jpg",
    }  # fmt: skip
    assert "damaged" in found["cut.tar/"]["reason"] and "damaged" in found["none.tar/"]["reason"]
    assert found["pictures.tar/*.jpg"]["num_frames"] == 4 and "frame rate" in found["pictures.tar/*.jpg"]["reason"]


def test_every_video_of_a_sample_is_a_clip(write_tar, tmp_path):
    """Sound and unknown formats beside a video are none; an ordinary sample keeps its id."""
    write_tar(
        "set/000.tar",
        {
            **{f"P01.kitchen.{i:04d}.mp4": b"v" for i in (1, 2, 3)},
            "000.left.mp4": b"v", "000.right.MP4": b"v", "000.json": {"participant_id": "p1"},
            "a.wav": b"s", "a.imu": b"s", "a.mp4": b"v", "a.depth.gz": b"d", "a.json": {"recording": "r7"},
            "b.mp4.gz": b"z",
        },
    )  # fmt: skip
    found = rows(webdataset.read(tmp_path / "set", "set"))
    assert set(found) == {
        "000.tar/P01.kitchen.0001.mp4", "000.tar/P01.kitchen.0002.mp4", "000.tar/P01.kitchen.0003.mp4",
        "000.tar/000.left.mp4", "000.tar/000.right.MP4", "000.tar/a", "000.tar/b.mp4.gz",
    }  # fmt: skip
    left, right = found["000.tar/000.left.mp4"], found["000.tar/000.right.MP4"]
    assert left["recording_id"] == right["recording_id"] and right["path"].endswith("000.tar/000.right.MP4")
    assert left["participant_id"] == right["participant_id"] == "p1"
    assert found["000.tar/a"]["recording_id"] == "r7", "as its own metadata say"
    assert found["000.tar/a"]["path"].endswith("/a.mp4")
    assert "unpack it" in found["000.tar/b.mp4.gz"]["reason"]
    assert sum(row["reason"] is None for row in found.values()) == 6


def test_shards_that_count_from_zero_hold_recordings_of_their_own(write_tar, tmp_path):
    for shard in range(3):
        write_tar(f"set/shard-{shard}.tar", {"000000.mp4": b"v", "000000.json": b'{"duration": Infinity}'})
    found = rows(webdataset.read(tmp_path / "set", "set"))
    assert set(found) == {f"shard-{shard}.tar/000000" for shard in range(3)}
    assert len({row["recording_id"] for row in found.values()}) == 3
    assert {row["duration_s"] for row in found.values()} == {None}


def test_pictures_with_capitals_in_their_suffix_are_found(write_tar, tmp_path):
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (16, 16), (90, 90, 90)).save(picture, "JPEG")
    write_tar("set/000.tar", {f"{i}.JPG": picture.getvalue() for i in range(3)})
    (clip,) = rows(webdataset.read(tmp_path / "set", "set")).values()
    with open_video(f"{clip['path']}&fps=3") as video:
        assert video.probe().num_frames == clip["num_frames"] == 3


def test_videos_in_a_tar_are_decoded_where_they_lie(write_tar, write_video, numbered, tmp_path):
    film = write_video("film.mp4", numbered(12)).read_bytes()
    write_tar("set/000.tar", {"a.mp4": film, "a.json": {"duration": 99}, "b.mp4": film[: len(film) // 2]})
    catalog = build_catalog([SourceSpec(path=str(tmp_path / "set"))], tmp_path / "out")
    whole, broken = catalog.sort("clip_id").to_dicts()
    assert (whole["usable"], whole["num_frames"], whole["duration_s"], whole["first_frame"]) == (True, 12, 1.2, 0)
    assert not broken["usable"] and broken["reason"]


FACTS = {"factory_id": "factory_002", "worker_id": "worker_009", "video_index": 3, "duration_sec": 1200.0,
         "width": 1920, "height": 1080, "fps": 30.0, "size_bytes": 2, "codec": "h265"}  # fmt: skip


def test_egocentric10k_names_worker_and_factory(write_tar, tmp_path):
    tar = "ego/factory_002/workers/worker_009/factory002_worker009_part00.tar"
    write_tar(tar, {"factory002_worker009_00003.mp4": b"vv", "factory002_worker009_00003.json": FACTS})
    (tmp_path / "ego/factory_002/workers/worker_009/intrinsics.json").write_text("{}")
    (clip,) = rows(egocentric10k.read(tmp_path / "ego", "ego")).values()
    assert (clip["participant_id"], clip["scene_id"]) == (
        "egocentric10k-factory_002-worker_009", "egocentric10k-factory_002",
    )  # fmt: skip
    assert (clip["duration_s"], clip["width_px"], clip["codec"], clip["license"]) == (
        1200.0,
        1920,
        "h265",
        "Apache-2.0",
    )
    assert clip["path"].endswith("part00.tar/factory002_worker009_00003.mp4") and clip["reason"] is None
    assert clip["recording_id"] == "factory002_worker009_00003", "its names stand once in the whole set"


def test_texts_about_egocentric10k_declare_videos_and_explain_those_that_are_there(shared, write_tar, tmp_path):
    texts = shared / "annotations" / "egocentric10k_derived"
    declared = rows(egocentric10k.read(texts, "ego"))
    first = declared["factory001_worker001_00000"]
    assert first["task"] == "Metal stamping" and first["narration"].startswith("load raw metal blank into die; ")
    assert 0 < first["duration_s"] <= 1800 and "No such file" in first["reason"]
    (tmp_path / "ego").mkdir()
    for folder in texts.iterdir():
        (tmp_path / "ego" / folder.name).symlink_to(folder)
    tar = "ego/factory_001/workers/worker_001/factory001_worker001_part00.tar"
    write_tar(tar, {"factory001_worker001_00000.mp4": b"v"})
    found = rows(egocentric10k.read(tmp_path / "ego", "ego"))
    assert len(found) == len(declared)
    here = found["factory_001/workers/worker_001/factory001_worker001_part00.tar/factory001_worker001_00000"]
    assert here["task"] == "Metal stamping" and here["reason"] is None
    pieces = rows(egocentric10k.segments(tmp_path / "ego", "ego"))
    piece = pieces["factory001_worker001_00000/000"]
    assert (piece["start_s"], piece["duration_s"], piece["narration"]) == (3.0, 65.0, "load raw metal blank into die")
    assert piece["path"] == here["path"] and piece["reason"] is None
