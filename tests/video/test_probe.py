"""Every clip of a file has the frames that are its own; a shard that is killed goes on; what is lost is told."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from egoscale.video.probe import probe_clips, probe_file
from egoscale.video.scorers import PICTURE, PROBER, Shard, probe_catalog, score_catalog
from egoscale.video.scores import open_catalog, part_path
from egoscale.video.shards import Scorer, run_shard, shard_of


@pytest.fixture
def catalogue(make_catalog, tmp_path):
    """Writes a catalogue of files that were never probed, all whole, at tmp_path/<name>/catalog.parquet."""

    def write(paths, name="set", **columns):
        paths = [str(path) for path in paths]
        ids = columns.pop("clip_id", [Path(path).name for path in paths])
        nothing = dict.fromkeys(
            ("duration_s", "fps_num", "fps_den", "num_frames", "width_px", "height_px", "sha256", "usable",
             "black_fraction", "frozen_fraction"), [None] * len(paths),
        )  # fmt: skip
        columns = {"first_frame": [0] * len(paths), **columns}
        file = tmp_path / name / "catalog.parquet"
        file.parent.mkdir(exist_ok=True)
        make_catalog(**{**nothing, "clip_id": ids, "path": paths, **columns}).write_parquet(file)
        return file

    return write


@pytest.fixture
def videos(write_video, numbered):
    """Twelve small files, one of them broken."""
    files = [write_video(f"videos/{i:02d}.mp4", numbered(8 + i)) for i in range(11)]
    broken = files[0].with_name("99.mp4")
    broken.write_bytes(files[0].read_bytes()[:400])
    return [*files, broken]


# --- clips of a file ----------------------------------------------------------------------------------------


def test_clips_that_follow_each_other_share_no_frame_and_lose_none(shared):
    path = shared / "nasty" / "torchcodec" / "nasa_13013.mp4"  # 325 frames at 25 a second
    whole = probe_file(path)
    edges = [0.0, 0.9, 2.0, 2.02, 7.33, 11.111]
    clips = probe_clips(path, [(a, b - a) for a, b in pairwise(edges)] + [(11.111, None)])
    assert [clip.first_frame for clip in clips] == [0, 22, 50, 50, 183, 278]
    assert sum(clip.num_frames for clip in clips) == whole.num_frames == 325
    assert clips[2].num_frames == 0 and clips[2].reason == "the clip is shorter than a frame"
    assert all(clip.usable for at, clip in enumerate(clips) if at != 2)
    assert {clip.sha256 for clip in clips} == {whole.sha256} and {clip.bytes for clip in clips} == {whole.bytes}
    lumas = [clip.mean_luma * clip.num_frames for clip in clips if clip.num_frames]
    assert sum(lumas) == pytest.approx(whole.mean_luma * 325)
    assert clips[4].duration_s == pytest.approx(95 / 25)


def test_clips_beyond_the_end_of_their_file(shared):
    path = shared / "nasty" / "torchcodec" / "h265_video.mp4"  # 10 frames, 1 s
    over, behind = probe_clips(path, [(0.5, 3.0), (2.0, 1.0)])
    assert (over.first_frame, over.num_frames, over.duration_s, over.usable) == (5, 5, 0.5, True)
    assert not behind.usable and behind.reason == "the clip begins at 2.00 s, the file ends at 1.00 s"


def test_a_clip_with_an_impossible_time_does_not_harm_the_others_of_its_file(write_video, numbered):
    path = write_video("a.mp4", numbered(30))  # 3 s at 10 a second
    nan, inf = float("nan"), float("inf")
    spans = [(0.0, 2.0), (nan, 1.0), (-1.0, 2.0), (1.0, nan), (inf, None), (1e300, 1.0), (-1e-9, 1.0), (2.0, inf)]
    good, no_start, before, no_length, never, late, rounded, rest = probe_clips(path, spans)
    assert (good.usable, good.num_frames) == (True, 20) and (rest.usable, rest.num_frames) == (True, 10)
    assert (rounded.usable, rounded.first_frame, rounded.num_frames) == (True, 0, 10), "an error of rounding"
    assert before.reason == "the clip begins at -1.00 s, before its file"
    assert no_start.reason == "the clip begins at nan s, which is no time" and "inf s" in never.reason
    assert no_length.reason == "the clip has no length: nan s" and "the file ends at 3.00 s" in late.reason
    assert not any(clip.usable for clip in (no_start, before, no_length, never, late))
    assert late.first_frame < 2**63, "fits a column of the catalogue"
    assert before.sha256 == good.sha256 and before.fps_num == good.fps_num


def test_a_file_that_breaks_off_is_good_up_to_there(shared):
    path = shared / "nasty" / "decord" / "corrupted.mp4"  # fails at frame 28 of 50, at 10 a second
    whole, before, across, after = probe_clips(path, [(0.0, None), (0.5, 2.0), (2.5, 1.0), (4.0, 0.5)])
    assert (whole.num_frames, whole.usable) == (28, False) and "frame 28 of 50" in whole.reason
    assert (before.first_frame, before.num_frames, before.usable, before.reason) == (5, 20, True, None)
    assert (across.num_frames, across.usable) == (3, False) and "frame 28 of 50" in across.reason
    assert (after.num_frames, after.usable) == (0, False) and after.reason


def test_only_the_frames_of_clips_are_decoded(shared):
    """The broken frame lies in no clip."""
    path = shared / "nasty" / "decord" / "corrupted.mp4"
    assert all(clip.usable for clip in probe_clips(path, [(0.0, 1.0), (0.5, 1.0), (2.0, 0.8)]))


def test_uneven_frame_times_decide_what_is_in_a_clip(write_uneven):
    """Ten frames in the first second, then one every second."""
    path = write_uneven("uneven.mp4", [i / 10 for i in range(10)] + [1.0, 2.0, 3.0, 4.0])
    whole, first, second = probe_clips(path, [(0.0, None), (0.0, 1.0), (1.0, 2.0)])
    assert whole.num_frames == 14 and whole.irregular_fraction == pytest.approx(3 / 13)
    assert (first.first_frame, first.num_frames) == (0, 10)
    assert (second.first_frame, second.num_frames) == (10, 2)


@pytest.fixture
def write_uneven(tmp_path, numbered):
    """Writes frames with given times, in seconds."""

    def write(name, times_s):
        import av

        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            stream.options = {"bf": "0"}
            stream.codec_context.time_base = Fraction(1, 1000)
            for picture, seconds in zip(numbered(len(times_s)), times_s, strict=True):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


def test_a_clock_in_place_of_a_frame_rate_is_told(write_video, numbered):
    path = write_video("clock.mp4", numbered(20), fps=90_000)
    found = probe_file(path)
    assert not found.usable and "90000 frames a second: the time base" in found.reason
    assert found.num_frames == 20, "the frames are there"


def test_a_member_of_an_archive_is_probed_as_the_file_is(shared, tmp_path):
    path = shared / "nasty" / "torchcodec" / "h265_video.mp4"
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(path, "a/000.mp4")
        tar.add(shared / "MANIFEST.csv", "manifest.csv")
    assert probe_file(tmp_path / "shard.tar" / "a" / "000.mp4") == probe_file(path)
    missing = probe_file(tmp_path / "shard.tar" / "a" / "001.mp4")
    assert not missing.usable and "no member" in missing.reason


@pytest.mark.parametrize("gop", [1, 6, 250])
def test_key_frames_are_counted(write_video, numbered, gop):
    import av

    path = write_video("a.mp4", numbered(24), gop=gop)
    with av.open(str(path)) as container:
        keys = sum(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    assert probe_file(path).gop_frames == 24 / keys


def test_what_is_not_there_or_no_video_is_told(tmp_path):
    (tmp_path / "note.mp4").write_text("a text that calls itself a film")
    (tmp_path / "empty.mp4").touch()
    assert "no such video file" in probe_file(tmp_path / "none.mp4").reason
    assert probe_file(tmp_path / "empty.mp4").reason == "the file is empty (0 bytes)"
    assert "no frame can be decoded: Invalid data" in probe_file(tmp_path / "note.mp4").reason
    assert probe_file(tmp_path).reason, "a folder without pictures"


def test_columns_of_the_probe_are_those_of_its_answer(tmp_path):
    assert list(PROBER.schema) == list(asdict(probe_file(tmp_path / "none.mp4")))


# --- shards -------------------------------------------------------------------------------------------------


def test_shards_together_are_what_one_run_is(videos, catalogue):
    one, three = catalogue(videos, "one"), catalogue(videos, "three")
    finished = probe_catalog(one, jobs=2)
    assert (finished.clips, finished.done_now, finished.lost_now) == (12, 12, 0)
    steps = []
    for index in (2, 0, 1):
        probe_catalog(three, Shard(index, 3), progress=lambda *step: steps.append(step))
    assert open_catalog(three).collect().equals(open_catalog(one).collect())
    filled = {shard_of(str(path), 3) for path in videos}  # by their paths: one in fifty times a shard has none
    assert sum(done == total for done, total, _ in steps) == len(filled) and {unit for *_, unit in steps} == {"clips"}
    for index in range(3):
        rows = pl.read_parquet(part_path(three, "probe", 1, Shard(index, 3)))
        ids = [path.name for path in videos if shard_of(str(path), 3) == index]
        assert rows["clip_id"].to_list() == sorted(ids)


def test_shard_of_a_file_never_changes():
    """Written down: a catalogue may be probed on one machine and scored on another."""
    paths = [f"/data/recording-{i}.mp4" for i in range(8)]
    assert [shard_of(path, 5) for path in paths] == [2, 0, 3, 0, 2, 3, 3, 4]


def test_all_clips_of_a_file_are_in_one_shard_and_in_any_order(shared, catalogue):
    path = shared / "nasty" / "torchcodec" / "nasa_13013.mp4"
    starts = [0.0, 1.0, 3.0, 3.5, 12.0]
    ids = [f"clip-{i}" for i in range(5)]
    file = catalogue(
        [path] * 5, clip_id=ids, start_s=starts, duration_s=[1.0, 2.0, 0.5, None, 9.0], first_frame=[None] * 5
    )
    probe_catalog(file, Shard(shard_of(str(path), 2), 2))
    probe_catalog(file, Shard(1 - shard_of(str(path), 2), 2))
    found = open_catalog(file).collect()
    assert found["num_frames"].to_list() == [25, 50, 13, 237, 25]
    assert found["start_s"].to_list() == starts and found["usable"].all()


def test_a_finished_shard_is_not_done_again_and_a_changed_file_is(videos, catalogue, write_video, numbered):
    file = catalogue(videos)
    probe_catalog(file)
    path = part_path(file, "probe", 1, Shard())
    before = path.read_bytes()
    assert probe_catalog(file).done_now == 0 and path.read_bytes() == before

    write_video("videos/03.mp4", numbered(40))
    more = write_video("videos/50.mp4", numbered(5))
    file = catalogue([*videos[:-1], more])
    finished = probe_catalog(file)
    assert (finished.clips, finished.done_now) == (12, 2), "the changed and the new one; what is gone is gone"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    found = dict(open_catalog(file).select("clip_id", "num_frames").collect().iter_rows())
    assert found["03.mp4"] == 40 and found["50.mp4"] == 5 and "99.mp4" not in found


def test_a_torn_line_is_done_again(videos, catalogue):
    whole, torn = catalogue(videos, "whole"), catalogue(videos, "torn")
    probe_catalog(whole)
    path = part_path(torn, "probe", 1, Shard())
    lines = noted(part_path(whole, "probe", 1, Shard()))
    path.parent.mkdir(parents=True)
    notes = path.with_suffix(".notes.jsonl")
    notes.write_text("".join(lines[:5]) + lines[5][:40])
    assert probe_catalog(torn).done_now == 7
    assert path.read_bytes() == part_path(whole, "probe", 1, Shard()).read_bytes() and not notes.exists()


def noted(path):
    """The lines that led to a finished part."""
    return [json.dumps(row) + "\n" for row in pl.read_parquet(path).iter_rows(named=True)]


def test_a_run_killed_between_its_file_and_its_notes(videos, catalogue):
    file = catalogue(videos)
    probe_catalog(file)
    path = part_path(file, "probe", 1, Shard())
    before, notes = path.read_bytes(), path.with_suffix(".notes.jsonl")
    notes.write_text("".join(noted(path)))
    assert probe_catalog(file).done_now == 0
    assert path.read_bytes() == before and not notes.exists()


def test_a_shard_that_another_process_works_on_is_left_alone(videos, catalogue):
    file = catalogue(videos)
    path = part_path(file, "probe", 1, Shard())
    path.parent.mkdir(parents=True)
    with path.with_suffix(".notes.jsonl").open("a") as notes:
        fcntl.flock(notes, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process works on this shard"):
            probe_catalog(file)
    assert probe_catalog(file).done_now == 12


def test_clips_that_were_probed_or_have_a_reason_are_left_alone(videos, catalogue):
    file = catalogue(videos, usable=[True, False] + [None] * 10, reason=[None, None, "not listed"] + [None] * 9)
    assert probe_catalog(file).clips == 9
    assert probe_catalog(catalogue(videos, "all", usable=[True] * 12)) is None
    with pytest.raises(FileNotFoundError, match="no such catalogue"):
        probe_catalog(file.parent / "none.parquet")


def test_scores_of_clips_that_were_never_probed(videos, catalogue):
    file = catalogue(videos)
    score_catalog(file)
    found = open_catalog(file).collect()
    assert found["usable"].null_count() == 12
    assert found.filter(pl.col("sharpness").is_null())["clip_id"].to_list() == ["99.mp4"]
    assert "Invalid data" in found.filter(pl.col("clip_id") == "99.mp4")["picture_reason"].item()


def test_scores_wait_for_all_shards_of_the_probe(videos, catalogue):
    file = catalogue(videos)
    probe_catalog(file, Shard(0, 3))
    with pytest.raises(FileNotFoundError, match=r"2 of 3 shards are not done: 1, 2.*catalog probe"):
        score_catalog(file)
    for index in (1, 2):
        probe_catalog(file, Shard(index, 3))
    # One shard of scores does not ask for the others.
    assert score_catalog(file, Shard(0, 2)).clips + score_catalog(file, Shard(1, 2)).clips == 11


# --- what is lost -------------------------------------------------------------------------------------------

DECODERS = """
import os, time
from egoscale.video.scorers import probe

def decode(item):
    if item.path.name == "02.mp4":
        os.abort()
    if item.path.name == "05.mp4":
        time.sleep(600)
    return probe(item)
"""


def test_a_decoder_that_dies_or_hangs_costs_its_own_file(videos, catalogue, tmp_path, monkeypatch):
    (tmp_path / "bad_decoders.py").write_text(DECODERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    decode = importlib.import_module("bad_decoders").decode
    file, good = catalogue(videos), catalogue(videos, "good")
    scorer = Scorer(PROBER.name, 1, PROBER.needs, PROBER.schema, decode, PROBER.lost)
    finished = run_shard(pl.scan_parquet(file), file, scorer, Shard(), jobs=2, limit_s=1.0)
    assert (finished.clips, finished.done_now, finished.lost_now) == (12, 12, 2)
    probe_catalog(good)
    rows = {row["clip_id"]: row for row in open_catalog(file).collect().iter_rows(named=True)}
    expected = {row["clip_id"]: row for row in open_catalog(good).collect().iter_rows(named=True)}
    assert "SIGABRT" in rows["02.mp4"]["reason"] and "no sign of life for 1 s" in rows["05.mp4"]["reason"]
    for name in ("02.mp4", "05.mp4"):
        assert not rows[name]["usable"] and rows.pop(name)["bytes"] == expected.pop(name)["bytes"]
    assert rows == expected, "every neighbour is as if nothing had happened"


@pytest.mark.parametrize("verb, scorer", [("probe", PROBER), ("score", PICTURE)])
def test_killed_ten_times_it_ends_as_an_unbroken_run(verb, scorer, long_videos, catalogue, tmp_path):
    """Real processes, killed at random; what one of them had noted, no later one does again."""
    times = 14 if verb == "probe" else 9
    videos = [video for number in range(times) for video in copies(long_videos, tmp_path / f"{number:02d}")]
    broken, whole = (catalogue(videos, name, clip_id=names(videos)) for name in ("broken", "whole"))
    command = [sys.executable, "-m", "egoscale.cli", "catalog", verb, "--jobs", "1"]
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    path = part_path(broken, scorer.name, scorer.version, Shard())
    notes, draw, done = path.with_suffix(".notes.jsonl"), random.Random(verb), 0
    for _ in range(10):
        # Behind this process, which on a busy machine must not come too late to kill it.
        process = subprocess.Popen(["nice", "-n", "10", *command, str(broken)], start_new_session=True)
        wait_for_lines(notes, done + draw.randint(0, 3), process)
        time.sleep(draw.uniform(0, 0.03))
        assert process.poll() is None, "it ended before it could be killed: it needs more to do"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        lines = notes.read_bytes().split(b"\n")[:-1] if notes.exists() else []
        assert len(lines) >= done, "notes only grow"
        done = len(lines)
        assert len({json.loads(line)["clip_id"] for line in lines}) == done, "no clip is done twice"
    assert 0 < done < len(videos), "it was killed in the midst of its work"
    end = subprocess.run([*command, str(broken)], check=True, capture_output=True, text=True)
    assert f"{len(videos)} clips, {done} of them done before" in end.stdout
    assert path.read_bytes() == part_path(whole, scorer.name, scorer.version, Shard()).read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.fixture
def long_videos(write_video, numbered):
    """Five files that take long enough to be caught in the midst of one."""
    return [write_video(f"long/{i}.mp4", numbered(150 + i, 96, 160), fps=30, gop=30) for i in range(5)]


def copies(files, folder):
    folder.mkdir()
    return [Path(shutil.copy2(file, folder)) for file in files]


def names(files):
    return [f"{file.parent.name}-{file.name}" for file in files]


def wait_for_lines(notes, count, process, limit_s=30):
    end = time.monotonic() + limit_s
    while time.monotonic() < end and process.poll() is None:
        if notes.exists() and notes.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)


def test_numbered_frames_are_what_the_probe_sees(write_video, numbered):
    """Mean luma of a grey that rises frame by frame."""
    path = write_video("grey.mp4", numbered(10))
    early, late = probe_clips(path, [(0.0, 0.5), (0.5, 0.5)])
    assert early.mean_luma < late.mean_luma and np.isfinite(early.mean_luma)
