"""Every window is reached in proportion to its seconds, none leaves its clip, on disk as in memory."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egoscale.video.clip_index import ClipIndex, index_clips
from egoscale.video.clips import WindowTable, frames_of

UNIT = st.floats(0, 1, exclude_max=True)


def manifest(path, num_frames, fps=(30, 1), **columns):
    """A manifest of clips named 0, 1, 2, ..."""
    count = len(num_frames)
    rates = fps if isinstance(fps, list) else [fps] * count
    table = {
        "clip_id": [str(i) for i in range(count)],
        "path": [f"/videos/{i}.mp4" for i in range(count)],
        "decoder": [None if i % 2 else "pyav" for i in range(count)],
        "num_frames": num_frames,
        "fps_num": [num for num, _ in rates],
        "fps_den": [den for _, den in rates],
        **columns,
    }
    pl.DataFrame(table, schema_overrides={"decoder": pl.String}).write_parquet(path)
    return path


@given(st.lists(st.integers(0, 20), min_size=1, max_size=20), st.integers(1, 8))
def test_equal_parts_of_the_unit_interval_are_the_windows(num_frames, length):
    wanted = [(c, s) for c, n in enumerate(num_frames) for s in range(n - length + 1)]
    if not wanted:
        with pytest.raises(ValueError, match="no window"):
            WindowTable(num_frames, length)
        return
    table = WindowTable(num_frames, length)
    middles = (np.arange(len(wanted)) + 0.5) / len(wanted)
    clip, start = table.locate(middles)
    assert list(zip(clip.tolist(), start.tolist(), strict=True)) == wanted
    assert table.num_windows == len(wanted)
    assert table.num_empty == sum(n < length for n in num_frames)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=30), st.integers(1, 8), st.lists(UNIT, max_size=40))
def test_clips_of_one_rate_are_drawn_by_whole_numbers(num_frames, length, u):
    """The arithmetic of equal windows in integers, which the demonstration was trained with."""
    windows = np.maximum(np.array(num_frames) - length + 1, 0)
    if not windows.sum():
        return
    ends = np.cumsum(windows)
    window = np.minimum((np.array(u) * ends[-1]).astype(np.int64), ends[-1] - 1)
    clip = np.searchsorted(ends, window, side="right")
    found = WindowTable(num_frames, length, [59.94] * len(num_frames)).locate(u)
    assert np.array_equal(found[0], clip) and np.array_equal(found[1], window - (ends - windows)[clip])


@given(
    st.lists(st.tuples(st.integers(1, 400), st.sampled_from([12.0, 15.0, 24.0, 29.97, 30.0, 60.0])), min_size=1),
    st.integers(1, 16),
    st.sampled_from([None, 5.0, 7.5, 30.0]),
    st.lists(UNIT, min_size=1),
)
def test_no_window_leaves_its_clip_at_any_rate(clips, length, rate_hz, u):
    frames, fps = (np.array(column) for column in zip(*clips, strict=True))
    try:
        table = WindowTable(frames, length, fps, rate_hz)
    except ValueError as error:
        assert "no window" in str(error)
        return
    clip, start = table.locate([*u, 0.0, np.nextafter(1.0, 0.0)])
    shown = frames_of(start, length, table.stride(clip))
    assert (shown >= 0).all() and (shown[:, -1] < frames[clip]).all()
    if rate_hz is not None:
        assert (fps[clip] >= 0.99 * rate_hz).all(), "a slower clip would show frames twice"
        # By time: within half a frame of where the frame would be.
        assert np.abs((shown - start[:, None]) - np.arange(length) * (fps[clip] / rate_hz)[:, None]).max() <= 0.75


def test_a_second_weighs_the_same_at_any_frame_rate():
    """Two clips of 100 s, one of 60 frames a second and one of 15: half of the windows begin in each."""
    table = WindowTable([6000, 1500], 1, [60, 15])
    clip, start = table.locate((np.arange(7500) + 0.5) / 7500)
    assert (clip == 0).sum() == 3750 and start.max() == 5999
    assert np.bincount(start[clip == 1]).tolist() == [2 + i % 2 for i in range(1500)] or (clip == 1).sum() == 3750
    assert table.frame_s(np.array([0, 1])) == pytest.approx([1 / 60, 1 / 15])
    at_rate = WindowTable([6000, 1500, 9000], 16, [60, 15, 4], 5.0)
    assert at_rate.stride(np.array([0, 1])).tolist() == [12.0, 3.0]
    assert at_rate.num_windows == 6000 - 180 + 1500 - 45 and at_rate.num_empty == 1


def test_ends_of_the_interval_and_shapes():
    table = WindowTable([10, 2**40], 4)
    clip, start = table.locate(np.array([[0.0, np.nextafter(1.0, 0.0)]]))
    assert clip.tolist() == [[0, 1]] and start[0, 0] == 0 and start[0, 1] <= 2**40 - 4
    assert table.locate([])[0].shape == (0,)
    for outside in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            table.locate(outside)


def test_wrong_tables():
    with pytest.raises(ValueError, match="2 frame counts and 1 frame rates"):
        WindowTable([3, 4], 1, [30])
    with pytest.raises(ValueError, match="at least 1 frame"):
        WindowTable([3], 0)
    with pytest.raises(ValueError, match="no window of 4 frames in 0 clips"):
        WindowTable([], 4)
    with pytest.raises(
        ValueError, match=r"no window of 4 frames at 60 frames a second in 1 clips.* or for a lower rate"
    ):
        WindowTable([100], 4, [30], 60)
    with pytest.raises(ValueError, match="needs the clips' own frame rates"):
        WindowTable([100], 4, None, 5)
    with pytest.raises(ValueError, match="rate_hz = 0"):
        WindowTable([100], 4, [30], 0.0)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=50),
    st.lists(st.sampled_from([(30, 1), (30000, 1001), (15, 1)]), min_size=50, max_size=50),
    st.sampled_from([None, 5.0]),
    st.lists(UNIT, min_size=1, max_size=50),
)
def test_on_disk_and_in_memory_draw_the_same(tmp_path_factory, num_frames, fps, rate_hz, u):
    folder = tmp_path_factory.mktemp("index")
    rates = fps[: len(num_frames)]
    file = manifest(folder / "manifest.parquet", num_frames, rates)
    clips = index_clips(file, folder / "index")
    try:
        known = WindowTable(num_frames, 3, [num / den for num, den in rates], rate_hz)
    except ValueError:
        with pytest.raises(ValueError, match="no window of 3 frames"):
            WindowTable.on_disk(clips, 3, rate_hz)
        return
    table = WindowTable.on_disk(clips, 3, rate_hz)
    many = np.resize(u, 5000)  # enough for the sweep
    for numbers in (u, many):
        assert [a.tolist() for a in table.locate(numbers)] == [a.tolist() for a in known.locate(numbers)]
    chosen = table.locate(u)[0]
    assert table.stride(chosen).tolist() == pytest.approx(known.stride(chosen).tolist())


def test_many_clips_are_searched_by_blocks(tmp_path):
    num_frames = np.random.default_rng(0).integers(0, 90, 10_000)
    clips = index_clips(manifest(tmp_path / "m.parquet", num_frames), tmp_path)
    table, known = WindowTable.on_disk(clips, 16), WindowTable(num_frames, 16)
    u = np.random.default_rng(1).random(500)
    assert [a.tolist() for a in table.locate(u)] == [a.tolist() for a in known.locate(u)]
    ends = np.cumsum(np.maximum(num_frames - 15, 0)) / known.num_windows
    edges = np.clip(np.concatenate([ends[2047::2048], ends[2048::2048]]), 0, np.nextafter(1, 0))
    assert [a.tolist() for a in table.locate(edges)] == [a.tolist() for a in known.locate(edges)]


def test_the_index_knows_what_the_manifest_says(tmp_path):
    file = manifest(tmp_path / "m.parquet", [40, 50, 60], [(30, 1), (25, 1), (30, 1)], first_frame=[None, 7, 0])
    clips = index_clips(file, tmp_path / "index")
    assert len(clips) == 3 and clips.clip_ids() == ["0", "1", "2"] and clips.total_frames == 150
    assert clips.total_s == pytest.approx(40 / 30 + 50 / 25 + 60 / 30) and clips.mixed
    assert clips.texts(0) == {"clip_id": "0", "path": "/videos/0.mp4", "decoder": "pyav"}
    assert clips.rows(np.array([1, 0]))["first_frame"].tolist() == [7, 0]
    assert clips.find(["2", "none", "0"]).tolist() == [2, -1, 0]
    copy = pickle.loads(pickle.dumps(clips))
    assert copy.clip_id(1) == "1" and copy.seconds(np.array([1])) == pytest.approx([1 / 25])


def test_an_index_that_another_process_has_not_renamed_yet_is_left_to_it(tmp_path):
    """Ranks that begin together make the same index: one is gone the moment its owner renames it."""
    file = manifest(tmp_path / "m.parquet", [5, 9, 7])
    made = index_clips(file, tmp_path / "index").folder
    unfinished = made.with_name(f".{made.name}.elsewhere.17")
    made.rename(unfinished)
    found = index_clips(file, tmp_path / "index")
    assert found.folder == made and unfinished.is_dir()
    assert WindowTable.on_disk(found, 2).num_windows == 18


def test_an_index_is_made_once_for_each_content(tmp_path):
    file = manifest(tmp_path / "m.parquet", [40, 50])
    first = index_clips(file, tmp_path / "index")
    made = (first.folder / "index.json").stat().st_mtime_ns
    assert index_clips(file, tmp_path / "index").folder == first.folder
    file.touch()  # the same bytes at another time
    assert index_clips(file, tmp_path / "index").folder == first.folder
    assert (first.folder / "index.json").stat().st_mtime_ns == made
    manifest(file, [40, 51])
    second = index_clips(file, tmp_path / "index")
    assert second.folder != first.folder and second.total_frames == 91
    (second.folder / "index.json").unlink()  # as a killed process may leave it
    assert index_clips(file, tmp_path / "index").total_frames == 91


def test_unhappy_manifests(tmp_path):
    with pytest.raises(FileNotFoundError):
        index_clips(tmp_path / "none.parquet", tmp_path)
    with pytest.raises(ValueError, match="the manifest is empty"):
        index_clips(manifest(tmp_path / "empty.parquet", []), tmp_path / "index")
    twice = manifest(tmp_path / "twice.parquet", [3, 4], clip_id=["a", "a"])
    with pytest.raises(ValueError, match="clip 'a' comes twice"):
        index_clips(twice, tmp_path / "index")
    bare = tmp_path / "bare.parquet"
    pl.DataFrame({"clip_id": ["a"], "path": ["a.mp4"]}).write_parquet(bare)
    with pytest.raises(ValueError, match="has no column num_frames, fps_num, fps_den"):
        index_clips(bare, tmp_path / "index")
    clips = index_clips(manifest(tmp_path / "m.parquet", [40, 50]), tmp_path / "index")
    numbers = (clips.folder / "rows.npy").read_bytes()
    (clips.folder / "rows.npy").write_bytes(numbers[:-8])
    with pytest.raises(ValueError, match=r"rows\.npy: 56 bytes of numbers, 64 were written"):
        ClipIndex.open(clips.folder)
    with pytest.raises(ValueError, match="needs clips whose frame rate is known"):
        WindowTable.on_disk(index_clips(manifest(tmp_path / "u.parquet", [9], (0, 1)), tmp_path / "index"), 1, 5.0)


MEMORY = """
import sys
import numpy as np
from pathlib import Path
from egoscale.video.clip_index import index_clips
from egoscale.video.clips import WindowTable

def resident_kb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

before = resident_kb()
clips = index_clips(Path(sys.argv[1]), Path(sys.argv[2]))
table = WindowTable.on_disk(clips, 16)
for seed in range(20):
    chosen, _ = table.locate(np.random.default_rng(seed).random(256))
    table.stride(chosen), clips.rows(chosen), [clips.clip_id(i) for i in chosen[:16].tolist()]
print(resident_kb() - before)
"""


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    used = []
    for count in (1_000, 400_000):
        file = manifest(tmp_path / f"{count}.parquet", np.full(count, 900))
        WindowTable.on_disk(index_clips(file, tmp_path), 16)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(file), str(tmp_path)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        used.append(int(done.stdout))
    assert used[1] - used[0] < 8_000, f"{used} kB resident for 1,000 and 400,000 clips"
