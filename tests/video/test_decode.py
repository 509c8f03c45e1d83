"""Frames by index: the right ones, from either decoder, in every process; and errors that name the file."""

from __future__ import annotations

import os
import pickle
import signal
import time

import numpy as np
import pytest

from egoscale.video.decode import DecodeError, open_video


def grey(frames):
    """The level in the middle of each frame, [T]."""
    return frames[:, frames.shape[1] // 2, frames.shape[2] // 2].mean(-1)


@pytest.fixture
def clip(write_video, numbered):
    return write_video("clip.mp4", numbered(28))


@pytest.mark.parametrize("decoder", ["auto", "decord", "pyav"])
def test_frames_are_those_asked_for_in_any_order_and_number(clip, decoder):
    indices = [27, 0, 13, 13, 12, 26, 1, 3, 25]
    with open_video(clip, decoder) as video:
        frames = video.frames(indices)
        assert frames.shape == (9, 48, 64, 3) and frames.dtype == np.uint8
        # 8 levels lie between neighbours; h264 at crf 12 is nearer than half of that.
        assert np.abs(grey(frames) - (16 + 8 * np.array(indices))).max() < 4
        assert video.frames([]).shape == (0, 48, 64, 3)


def test_header_is_told(clip):
    with open_video(clip) as video:
        info = video.probe()
    assert (info.num_frames, info.fps_num, info.fps_den, info.width_px, info.height_px) == (28, 10, 1, 64, 48)
    assert (info.codec, info.pix_fmt, info.rotation_deg, info.has_edit_list) == ("h264", "yuv420p", 0, False)
    assert info.duration_s == pytest.approx(2.8) and info.num_video_streams == 1


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
def test_both_decoders_give_equal_frames(write_video, pix_fmt):
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    path = write_video("noise.mp4", noise, pix_fmt=pix_fmt)
    with open_video(path, "decord") as one, open_video(path, "pyav") as other:
        # Measured: no difference at all. One level is allowed, for a chroma filter of another FFmpeg.
        difference = np.abs(one.frames(range(20)).astype(int) - other.frames(range(20)))
        assert difference.max() <= 1


def test_both_decoders_give_equal_frames_of_a_real_clip(shared):
    path = shared / "ego" / "captaincook4d" / "order_error_0.mp4"
    indices = [149, 0, 75, 74, 3]
    with open_video(path) as one, open_video(path, "pyav") as other:
        assert one.decoder == "decord" and other.decoder == "pyav"
        assert np.abs(one.frames(indices).astype(int) - other.frames(indices)).max() <= 1


def test_size_is_the_centre_square_averaged(write_video):
    frames = np.zeros((2, 32, 64, 3), np.uint8)
    frames[:, :, 16:32] = 200  # left half of the centre square
    frames[:, :, :16] = 90  # outside of it
    path = write_video("halves.mp4", frames, pix_fmt="yuv444p")
    with open_video(path) as video:
        small = video.frames([0, 1], size_px=8)
        assert small.shape == (2, 8, 8, 3)
        assert np.abs(small[:, :, :3].astype(int) - 200).max() <= 6
        assert small[:, :, 5:].max() <= 6
        assert video.frames([0], size_px=40).shape == (1, 40, 40, 3)
        with pytest.raises(ValueError, match="size_px"):
            video.frames([0], size_px=0)


@pytest.mark.parametrize("indices", [[28], [-1], [3, 99]])
def test_index_outside_the_file_is_an_error(clip, indices):
    with open_video(clip) as video, pytest.raises(ValueError, match=r"clip\.mp4: frame .* 0 to 27"):
        video.frames(indices)


def test_missing_file_and_unknown_decoder(tmp_path, clip):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        open_video(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match="'auto', 'decord' or 'pyav'"):
        open_video(clip, "torchcodec")


def test_file_that_is_no_video_fails_when_read_not_before(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_bytes(b"not a video" * 100)
    video = open_video(path)
    with pytest.raises(DecodeError, match=r"text\.mp4: pyav fails"):
        video.probe()


def test_file_cut_off_names_file_frame_and_decoder(write_video, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    whole = write_video("whole.mp4", noise)
    # Header first, as a download that broke off has it.
    import av

    front = tmp_path / "front.mp4"
    with av.open(str(whole)) as source, av.open(str(front), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(front.read_bytes()[: front.stat().st_size * 6 // 10])
    with open_video(cut) as video:
        assert video.probe().num_frames == 40, "a header promises what is not there"
        first = video.frames([0, 5])
        with pytest.raises(DecodeError) as caught:
            video.frames(range(40))
        assert caught.value.decoder == "pyav" and 5 < caught.value.frame_index < 40
        assert "cut.mp4" in str(caught.value) and f"frame {caught.value.frame_index}" in str(caught.value)
        assert pickle.loads(pickle.dumps(caught.value)).frame_index == caught.value.frame_index
        assert np.array_equal(video.frames([0, 5]), first), "readable frames stay readable"
    with open_video(whole, "pyav") as video:
        assert np.array_equal(video.frames([0, 5]), first)


def test_closed_video_opens_again(clip):
    video = open_video(clip)
    before = video.frames([4])
    video.close()
    video.close()
    assert np.array_equal(video.frames([4]), before)


def test_video_travels_to_another_process_by_pickle(clip):
    with open_video(clip) as video:
        before = video.frames([7])
        assert np.array_equal(pickle.loads(pickle.dumps(video)).frames([7]), before)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_video_opened_before_a_fork_is_read_after_it(clip, decoder):
    """A decord reader of the parent hangs in the child; each process must open its own."""
    video = open_video(clip, decoder)
    before = video.frames(range(28))
    child = os.fork()
    if child == 0:
        same = np.array_equal(video.frames(range(28)), before)
        del video
        os._exit(0 if same else 1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert np.array_equal(video.frames(range(28)), before), "the parent's reader still works"


def test_edit_list_is_obeyed(shared):
    with open_video(shared / "nasty" / "torchcodec" / "discard_first_keyframe.mp4") as video:
        assert video.decoder == "pyav" and "edit list" in video.decoder_reason
        assert video.probe().num_frames == 25 and video.probe().has_edit_list
        # Frame 20 read from its key frame equals frame 20 read from the start.
        assert np.array_equal(video.frames([20])[0], video.frames(range(25))[20])


@pytest.mark.parametrize("degrees, shape", [(0, (320, 568)), (90, (568, 320)), (180, (320, 568)), (270, (568, 320))])
def test_rotated_video_is_shown_upright(shared, degrees, shape):
    path = shared / "nasty" / "decord" / f"video_{degrees}.mov"
    with open_video(path) as video, open_video(path, "decord") as peer:
        assert video.probe().rotation_deg == degrees
        assert video.frames([0]).shape[1:3] == shape
        assert (video.probe().height_px, video.probe().width_px) == shape
        assert np.array_equal(video.frames([0]), peer.frames([0]))


def test_random_access_equals_reading_through(shared):
    """Key frames, reordering and seeks: any frame alone is the frame of the whole."""
    for name in ("nasa_13013.mp4", "av1_video.mkv", "h265_10bits.mp4"):
        with open_video(shared / "nasty" / "torchcodec" / name, "pyav") as video:
            whole = video.frames(range(video.probe().num_frames), size_px=16)
            some = np.random.default_rng(0).integers(0, len(whole), 6)
            for index in some:
                assert np.array_equal(video.frames([index], size_px=16)[0], whole[index]), (name, index)


def test_decord_that_fails_midway_gives_over_to_pyav(shared):
    path = shared / "nasty" / "decord" / "corrupted.mp4"
    with open_video(path) as video:
        assert video.decoder == "decord", "nothing in the header tells"
        early = video.frames([0, 3])
        with pytest.raises(DecodeError) as caught:
            video.frames(range(50), size_px=32)
        assert (caught.value.decoder, caught.value.frame_index) == ("pyav", 28)
        assert video.decoder == "pyav" and "decord fails at frame" in video.decoder_reason
        assert np.array_equal(video.frames([0, 3]), early)
        assert video.frames(range(28), size_px=32).shape == (28, 32, 32, 3)
    with open_video(path, "decord") as video, pytest.raises(DecodeError, match="decord fails"):
        video.frames(range(50))


@pytest.mark.parametrize("size", [1, 7, 24, 48, 50])
def test_resizing_is_the_mean_over_areas(size):
    """Against the definition: enlarged by the size, every output pixel covers whole pixels; average them."""
    from egoscale.video.picture import square

    frames = np.random.default_rng(0).integers(0, 256, (2, 48, 60, 3), dtype=np.uint8)
    fine = frames[:, :, 6:54].repeat(size, 1).repeat(size, 2)
    means = fine.reshape(2, size, 48, size, 48, 3).mean((2, 4))
    assert np.abs(square(frames, size) - means).max() <= 0.51
