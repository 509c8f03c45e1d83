"""Folders and tars of pictures as clips, and recordings of Project Aria."""

from __future__ import annotations

import io
import sys
import tarfile
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from egoscale.video.decode import DecodeError, open_video
from egoscale.video.place import contents


def picture(level: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Levels 0, 10, ... 110, named without leading zeros, beside a note and a hidden file."""
    for index in range(12):
        Image.fromarray(picture(10 * index)).save(tmp_path / f"frame_{index}.png")
    (tmp_path / "info.json").write_text("{}")
    (tmp_path / "._frame_0.png").write_bytes(b"what a Mac leaves behind")
    return tmp_path


def test_folder_is_a_clip_in_the_order_of_its_numbers(folder):
    with open_video(f"{folder}?fps=29.97") as video:
        info = video.probe()
        assert (info.num_frames, info.width_px, info.height_px, info.codec) == (12, 16, 12, "png")
        assert Fraction(info.fps_num, info.fps_den) == Fraction("29.97") and info.gop_frames == 1
        assert info.duration_s == pytest.approx(12 / 29.97) and info.irregular_fraction == 0
        assert video.times_s()[[0, 11]] == pytest.approx([0, 11 / 29.97])
        assert video.frames([11, 2, 2, 10])[:, 5, 5, 0].tolist() == [110, 20, 20, 100]
        assert video.frames([3], size_px=4).shape == (1, 4, 4, 3)
        assert (video.decoder, video.decoder_reason) == ("pillow", None)
        with pytest.raises(ValueError, match="frame 12 asked for; the file has 0 to 11"):
            video.frames([12])


@pytest.mark.parametrize("end", ["", "?fps=30000/1001", "/?glob=*.png&fps=5", "?glob=*_[0-4].png"])
def test_query_says_which_pictures_and_how_many_a_second(folder, end):
    info = open_video(f"{folder}{end}").probe()
    assert info.num_frames == (5 if "[0-4]" in end else 12)
    rate = Fraction(end.split("fps=")[1]) if "fps" in end else 0
    assert Fraction(info.fps_num, info.fps_den) == rate
    assert (info.irregular_fraction is None) == (not rate)


def test_query_that_cannot_be_understood_is_an_error(folder):
    for end in ("?fps=fast", "?fps=0", "?fps=1/0"):
        with pytest.raises(ValueError, match="a number above 0"):
            open_video(f"{folder}{end}")
    with pytest.raises(ValueError, match=r"'rate=3' in the query"):
        open_video(f"{folder}?glob=*.png&rate=3")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_video(f"{folder}/none?glob=*.png")
    with pytest.raises(ValueError, match="'pyav' cannot read it: pillow can"):
        open_video(folder, "pyav")


def test_file_whose_name_has_a_query_in_it_is_that_file(write_video, numbered):
    path = write_video("what?fps=3.mp4", numbered(4))
    assert open_video(path).probe().num_frames == 4


@pytest.fixture
def two_cameras(tmp_path):
    """As HOT3D keeps a clip: one tar, an image of each camera and notes for each frame."""
    path = tmp_path / "clip-000123.tar"
    with tarfile.open(path, "w") as tar:
        for index in range(5):
            for camera, size in (("214-1", (12, 16)), ("1201-1", (8, 10))):
                file = io.BytesIO()
                Image.fromarray(picture(40 + 20 * index, *size)[:, :, 0]).save(file, "jpeg")
                for name, data in (
                    (f"{index:06d}.image_{camera}.jpg", file.getvalue()),
                    (f"{index:06d}.hands.json", b"{}"),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return path


def test_tar_of_pictures_is_a_clip_of_the_camera_that_is_named(two_cameras):
    with open_video(f"{two_cameras}?glob=*.image_214-1.jpg&fps=30") as video:
        info = video.probe()
        assert (info.num_frames, info.width_px, info.height_px, info.codec) == (5, 16, 12, "jpeg")
        assert info.pix_fmt == "L"
        levels = video.frames(range(5))[:, 6, 8]
        assert np.abs(levels.astype(int) - np.arange(40, 140, 20)[:, None]).max() <= 2
    damaged = two_cameras.read_bytes()[: two_cameras.stat().st_size // 2]
    two_cameras.with_name("half.tar").write_bytes(damaged)
    with pytest.raises(DecodeError, match=r"half\.tar is damaged at byte"):
        open_video(f"{two_cameras.with_name('half.tar')}?glob=*.image_214-1.jpg&fps=30").probe()
    images = b"".join(contents(f"{two_cameras}?glob=*.image_214-1.jpg"))
    assert images.count(b"\xff\xd8\xff") == 5, "contents are the pictures, one after another"
    with open_video(two_cameras) as video, pytest.raises(DecodeError, match=r"is 10x8, the first 16x12.*\?glob="):
        video.frames(range(2))


def test_pictures_in_a_folder_of_a_tar(folder, tmp_path):
    path = tmp_path / "all.tar"
    with tarfile.open(path, "w") as tar:
        for index in range(12):
            tar.add(folder / f"frame_{index}.png", f"./take/rgb/frame_{index}.png")
    for place in (f"{path}/take/rgb?fps=10", f"{path}?glob=take/rgb/*.png&fps=10"):
        assert open_video(place).frames([10])[0, 0, 0, 0] == 100
    with pytest.raises(DecodeError, match=r"no picture of the form '\*\.png'"):
        open_video(f"{path}?glob=*.png&fps=10").probe()


def test_picture_that_is_broken_or_of_more_bits_is_named(folder):
    whole = (folder / "frame_3.png").read_bytes()
    (folder / "frame_3.png").write_bytes(whole[: len(whole) // 2])
    with open_video(folder) as video:
        with pytest.raises(DecodeError, match=r"pillow fails at frame 3: frame_3\.png: ") as caught:
            video.frames(range(12))
        assert caught.value.frame_index == 3 and video.frames([2, 4]).shape[0] == 2
    Image.fromarray(np.zeros((12, 16), np.uint16)).save(folder / "frame_0.png")
    with pytest.raises(DecodeError, match=r"frame_0\.png: pixels of kind I;16"):
        open_video(folder).probe()


def test_picture_is_turned_upright_as_its_camera_says(tmp_path):
    stored = np.zeros((8, 12, 3), np.uint8)
    stored[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a turn by 90 degrees clockwise
    Image.fromarray(stored).save(tmp_path / "0.png", exif=exif)
    with open_video(tmp_path) as video:
        info = video.probe()
        assert (info.width_px, info.height_px, info.rotation_deg) == (8, 12, 90)
        shown = video.frames([0])[0]
        assert shown.shape == (12, 8, 3) and shown[:4].min() == 255 and shown[4:].max() == 0


def test_empty_folder_is_no_clip(tmp_path):
    with pytest.raises(DecodeError, match=r"no picture \(\.bmp, "):
        open_video(tmp_path).probe()


def test_real_pictures_and_their_film_show_the_same(shared):
    take = shared / "ego" / "cerd_pour_water"
    folder = f"{take / 'pour_water_02' / 'rgb_left'}?glob=*.png&fps=1"
    with open_video(folder) as pictures, open_video(take / "pour_water_02_1fps.mp4") as film:
        assert pictures.probe().num_frames == film.probe().num_frames == 12
        assert pictures.probe().duration_s == film.probe().duration_s == 12
        one, other = (video.frames([0, 11], size_px=64).astype(int) for video in (pictures, film))
    assert np.abs(one - other).mean() < 2


def test_aria_recording_without_its_package_says_what_to_install(shared, monkeypatch):
    monkeypatch.setitem(sys.modules, "projectaria_tools", None)
    monkeypatch.setitem(sys.modules, "projectaria_tools.core", None)
    path = shared / "ego" / "aria_vrs" / "aea" / "recording.vrs"
    with pytest.raises(DecodeError, match=r"not installed: pip install 'egoscale\[readers\]'"):
        open_video(path).probe()


@pytest.mark.parametrize(
    "name, frames, size, fps, turn",
    [
        ("adt/video.vrs", 3, (1408, 1408), 30, 90),
        ("aea/recording.vrs", 8, (1408, 1408), 20, 90),
        ("gen2/aria_gen2_unit_test_sequence_with_bluetooth.vrs", 3, (2016, 1512), 10, 0),
    ],
)
def test_aria_recordings_give_the_colour_camera_upright(shared, name, frames, size, fps, turn):
    pytest.importorskip("projectaria_tools")
    with open_video(shared / "ego" / "aria_vrs" / name) as video:
        info = video.probe()
        assert (info.num_frames, info.width_px, info.height_px) == (frames, *size)
        assert (info.fps_num, info.fps_den, info.rotation_deg, video.decoder) == (fps, 1, turn, "vrs")
        assert np.diff(video.times_s()) == pytest.approx(1 / fps, rel=0.05)
        shown = video.frames([frames - 1, 0], size_px=64)
        assert shown.shape == (2, 64, 64, 3) and shown.std() > 10


def test_aria_recording_without_the_camera_or_cut_off(shared, tmp_path):
    pytest.importorskip("projectaria_tools")
    with pytest.raises(DecodeError, match="no stream 'camera-rgb'"):
        open_video(shared / "ego" / "aria_vrs" / "adt" / "segmentations.vrs").probe()
    cut = tmp_path / "cut.vrs"
    cut.write_bytes((shared / "ego" / "aria_vrs" / "aea" / "recording.vrs").read_bytes()[:1_000_000])
    with open_video(cut) as video:
        assert video.probe().num_frames < 8
        assert len(video.frames(range(video.probe().num_frames), size_px=8)) == video.probe().num_frames
    (tmp_path / "text.vrs").write_bytes(b"not a recording" * 1000)
    with pytest.raises(DecodeError, match=r"text\.vrs: vrs fails"):
        open_video(tmp_path / "text.vrs").probe()
