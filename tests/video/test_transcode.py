"""Copies at training size: the same pictures at the same times, whole or not there, and a table that lists them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egoscale.cli import main
from egoscale.recipe import SelectRecipe, SourceSpec
from egoscale.video.catalog import build_catalog
from egoscale.video.copy_clip import CopySettings, frames_at_rate
from egoscale.video.decode import open_video
from egoscale.video.encoder import CopyError, check_h264, write_h264
from egoscale.video.hours import catalog_tables
from egoscale.video.scores import Shard, open_catalog
from egoscale.video.select import select_clips
from egoscale.video.transcode import estimated_bytes, transcode

SMALL = CopySettings(size_px=32, gop_frames=4, crf=12)


def table(folder: Path, rows: list[dict], name: str = "catalog.parquet") -> Path:
    """A catalogue of these rows; what is left out is filled in."""
    filled = [
        {
            "source": "lab",
            "start_s": 0.0,
            "first_frame": 0,
            "fps_num": 10,
            "fps_den": 1,
            "width_px": 64,
            "height_px": 48,
            "rotation_deg": 90,
            "codec": "hevc",
            "gop_frames": 250.0,
            "bytes": 1,
            "sha256": hashlib.sha256(Path(row["path"]).name.encode()).hexdigest(),
            "provenance": "lab: take 1",
            "decoder": "pyav",
            "decoder_reason": None,
            "irregular_fraction": 0.0,
            "mean_luma": 90.0,
            "usable": True,
            "reason": None,
            **row,
        }
        for row in rows
    ]
    path = folder / name
    pl.DataFrame(filled).with_columns(
        pl.col("reason", "decoder_reason").cast(pl.String), duration_s=pl.col("num_frames") / pl.col("fps_num")
    ).write_parquet(path)
    return path


def rows_by_id(path: Path) -> dict[str, dict]:
    return {row["clip_id"]: row for row in open_catalog(path).collect().iter_rows(named=True)}


def grey(frames: np.ndarray) -> np.ndarray:
    return frames[:, frames.shape[1] // 2, frames.shape[2] // 2].mean(-1)


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio."""
    return 10 * np.log10(255**2 / ((one.astype(float) - other) ** 2).mean())


@pytest.fixture
def clip(write_video, numbered):
    return write_video("clip.mp4", numbered(28), gop=28)


def test_a_copy_of_a_real_clip_shows_what_the_model_saw(shared, tmp_path):
    path = shared / "ego" / "captaincook4d" / "order_error_0.mp4"
    catalog = table(tmp_path, [{"clip_id": "a", "path": str(path), "num_frames": 150, "fps_num": 30}])
    done = transcode(catalog, tmp_path / "copies", CopySettings(128, 12))
    copy = rows_by_id(done.table)["a"]
    assert (copy["num_frames"], copy["width_px"], copy["height_px"], copy["duration_s"]) == (150, 128, 128, 5.0)
    assert (copy["codec"], copy["rotation_deg"], copy["gop_frames"]) == ("h264", 0, pytest.approx(150 / 13))
    with open_video(path) as before, open_video(copy["path"], copy["decoder"]) as after:
        info = after.probe()
        assert (info.num_frames, info.fps_num, info.fps_den, info.start_s) == (150, 30, 1, 0.0)
        assert not info.has_edit_list
        for size in (128, 64):
            seen, kept = (video.frames(range(0, 150, 5), size) for video in (before, after))
            following = after.frames(range(1, 150, 5), size)
            # Measured: 35 dB at 128 px, 38 dB at 64 px; frames that are one apart give 24 and 26 dB.
            assert decibels(seen, kept) > max(33, 6 + decibels(seen, following))
    assert copy["bytes"] == Path(copy["path"]).stat().st_size < path.stat().st_size
    assert copy["sha256"] == hashlib.sha256(Path(copy["path"]).read_bytes()).hexdigest()
    assert copy["bytes"] < estimated_bytes(150, CopySettings(128, 12)) < 4 * copy["bytes"]
    assert copy["original_path"] == str(path) and copy["provenance"].startswith("lab: take 1; copy at 128 px, GOP 12")


def test_parts_of_a_file_become_files_of_their_own(clip, tmp_path):
    parts = [
        {"clip_id": "lab/a/../b c#1", "path": str(clip), "first_frame": 3, "num_frames": 9, "start_s": 0.3},
        {"clip_id": "lab/a/../b c#2", "path": str(clip), "first_frame": 20, "num_frames": 8, "start_s": 2.0},
    ]
    out = tmp_path / "copies"
    copies = rows_by_id(transcode(table(tmp_path, parts), out, SMALL).table)
    for part in parts:
        copy = copies[part["clip_id"]]
        assert Path(copy["path"]).is_relative_to(out / "clips") and copy["path"].endswith(".mp4")
        assert (copy["first_frame"], copy["start_s"], copy["num_frames"]) == (0, 0.0, part["num_frames"])
        assert copy["original_start_s"] == part["start_s"]
        with open_video(copy["path"]) as video:
            shown = part["first_frame"] + np.arange(part["num_frames"])
            assert np.abs(grey(video.frames(range(part["num_frames"]))) - (16 + 8 * shown)).max() < 4
    assert len(list(out.rglob("*.mp4"))) == 2 and not list(out.rglob("*.part"))


def test_fewer_frames_a_second_and_never_more(clip, tmp_path):
    catalog = table(tmp_path, [{"clip_id": "a", "path": str(clip), "num_frames": 28}])
    fewer = rows_by_id(transcode(catalog, tmp_path / "4", CopySettings(32, 4, Fraction(4), 12)).table)["a"]
    assert (fewer["num_frames"], fewer["fps_num"], fewer["fps_den"], fewer["duration_s"]) == (11, 4, 1, 2.75)
    with open_video(fewer["path"]) as video:
        shown = [int(2.5 * k) for k in range(11)]
        assert np.abs(grey(video.frames(range(11))) - (16 + 8 * np.array(shown))).max() < 4
    more = rows_by_id(transcode(catalog, tmp_path / "30", CopySettings(32, 4, Fraction(30), 12)).table)["a"]
    assert (more["num_frames"], more["fps_num"], more["fps_den"]) == (28, 10, 1)


@given(
    num_frames=st.integers(1, 500),
    rate=st.fractions(1, 120, max_denominator=1001),
    wanted=st.fractions(Fraction(1, 10), 120, max_denominator=1001),
)
def test_frames_at_a_rate_are_the_last_ones_shown(num_frames, rate, wanted):
    if wanted > rate:
        wanted = rate
    frames = frames_at_rate(num_frames, rate, wanted)
    assert frames[0] == 0 and frames[-1] < num_frames and (np.diff(frames) >= 1).all()
    assert Fraction(len(frames), 1) / wanted <= max(Fraction(num_frames) / rate, 1 / wanted), "no second is added"
    assert Fraction(len(frames) + 1, 1) / wanted > Fraction(num_frames) / rate, "and none that fits is left out"
    for look, frame in enumerate(frames.tolist()):
        assert frame / rate <= look / wanted < (frame + 1) / rate


@given(st.lists(st.floats(0.001, 0.2), min_size=1, max_size=100), st.fractions(1, 30, max_denominator=100))
def test_frames_at_a_rate_go_by_time_stamps_where_they_are_uneven(steps_s, wanted):
    times_s = np.concatenate([[0.0], np.cumsum(steps_s)])
    frames = frames_at_rate(len(times_s), Fraction(10), wanted, times_s)
    looked_s = np.arange(len(frames)) / float(wanted)
    assert (times_s[frames] <= looked_s + 2e-6).all()
    after = times_s[np.minimum(frames + 1, len(times_s) - 1)]
    assert ((after > looked_s) | (frames == len(times_s) - 1)).all()


def test_a_clip_in_an_archive_is_copied_too(clip, tmp_path):
    with tarfile.open(tmp_path / "shard-000.tar", "w") as archive:
        archive.add(clip, "000017.mp4")
    path = tmp_path / "shard-000.tar" / "000017.mp4"
    catalog = table(tmp_path, [{"clip_id": "a", "path": str(path), "num_frames": 28}])
    copy = rows_by_id(transcode(catalog, tmp_path / "copies", SMALL).table)["a"]
    assert copy["original_path"] == str(path)
    with open_video(copy["path"]) as video:
        assert np.abs(grey(video.frames(range(28))) - (16 + 8 * np.arange(28))).max() < 4


def test_uneven_time_stamps_are_kept_or_made_even(numbered, tmp_path):
    times_ms = np.cumsum([0, 100, 40, 160, 100, 300, 20, 80, 100, 100, 250, 50, 100, 100, 100])
    path = tmp_path / "uneven.mp4"
    write_h264(path, [numbered(15)], times_ms.tolist(), Fraction(1, 1000), 15, 12)
    row = {"clip_id": "a", "path": str(path), "first_frame": 2, "num_frames": 12, "irregular_fraction": 0.5}
    catalog = table(tmp_path, [row])
    kept = rows_by_id(transcode(catalog, tmp_path / "kept", SMALL).table)["a"]
    assert (kept["num_frames"], kept["fps_num"], kept["irregular_fraction"]) == (12, 10, 0.5)
    with open_video(kept["path"]) as video:
        assert video.times_s() == pytest.approx((times_ms[2:14] - times_ms[2]) / 1000)
    even = rows_by_id(transcode(catalog, tmp_path / "even", CopySettings(32, 4, Fraction(5), 12)).table)["a"]
    assert (even["fps_num"], even["irregular_fraction"]) == (5, 0.0)
    shown = [2 + np.flatnonzero(times_ms[2:14] - times_ms[2] <= 200 * k)[-1] for k in range(even["num_frames"])]
    with open_video(even["path"]) as video:
        assert video.times_s() == pytest.approx(np.arange(even["num_frames"]) / 5)
        assert np.abs(grey(video.frames(range(even["num_frames"]))) - (16 + 8 * np.array(shown))).max() < 4


def test_a_small_picture_is_not_enlarged(write_video, numbered, tmp_path):
    path = write_video("small.mp4", numbered(5, 27, 41), pix_fmt="yuv444p")
    catalog = table(tmp_path, [{"clip_id": "a", "path": str(path), "num_frames": 5}])
    copy = rows_by_id(transcode(catalog, tmp_path / "copies", CopySettings(256, crf=12)).table)["a"]
    assert (copy["width_px"], copy["height_px"]) == (26, 26)
    with open_video(copy["path"]) as video:
        assert np.abs(grey(video.frames(range(5))) - (16 + 8 * np.arange(5))).max() < 4


def test_a_clip_that_fails_is_a_row_with_a_reason_and_loses_nobody(clip, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:600])
    whole = {"path": str(clip), "num_frames": 28}
    rows = [
        {"clip_id": "a", **whole},
        {"clip_id": "b", "path": str(broken), "num_frames": 28},
        {"clip_id": "c", **whole, "num_frames": 40},
        {"clip_id": "d", "path": str(tmp_path / "gone.mp4"), "num_frames": 28},
        {"clip_id": "e", **whole, "usable": False, "reason": "it was broken before"},
        {"clip_id": "f", **whole, "fps_num": 0},
        {"clip_id": "g", **whole},
    ]
    done = transcode(table(tmp_path, rows), tmp_path / "copies", SMALL, jobs=2)
    assert (done.copied, done.failed) == (2, 4)
    copies = rows_by_id(done.table)
    assert list(copies) == list("abcdefg")
    assert {clip_id for clip_id, row in copies.items() if row["usable"]} == {"a", "g"}
    assert copies["b"]["reason"].startswith("transcode: ") and "broken.mp4" in copies["b"]["reason"]
    assert "0 to 27" in copies["c"]["reason"] and copies["c"]["path"] == str(clip)
    assert "gone.mp4: no such video file" in copies["d"]["reason"]
    assert copies["e"]["reason"] == "it was broken before" and copies["e"]["original_path"] is None
    assert "28 frames at 0 a second" in copies["f"]["reason"]
    broken.write_bytes(clip.read_bytes())
    again = transcode(tmp_path / "catalog.parquet", tmp_path / "copies", SMALL)
    assert (again.copied, again.failed, again.found) == (3, 3, 2), "when all is done, what failed is tried again"


def test_a_selection_stays_one(clip, tmp_path):
    rows = [
        {"clip_id": "a", "selected": True, "rule": None, "unique_s": 2.8, "duplicate_group": None, "sharpness": 0.3},
        {"clip_id": "b", "selected": True, "rule": None, "unique_s": 0.1, "duplicate_group": "a", "sharpness": 0.4},
        {"clip_id": "c", "selected": False, "rule": "min_sharpness", "unique_s": 0.0, "duplicate_group": None,
         "sharpness": 0.1},
        {"clip_id": "d", "selected": True, "rule": None, "unique_s": 2.8, "duplicate_group": None, "sharpness": 0.3,
         "num_frames": 90},
    ]  # fmt: skip
    selection = table(tmp_path, [{"path": str(clip), "num_frames": 28, **row} for row in rows], "selection.parquet")
    done = transcode(selection.parent, tmp_path / "copies", CopySettings(32, 4, Fraction(4), 12))
    assert done.table == tmp_path / "copies" / "selection.parquet"
    copies = rows_by_id(done.table)
    assert [copies[clip_id]["selected"] for clip_id in "abcd"] == [True, True, False, False]
    assert copies["d"]["rule"] == "transcode" and copies["c"]["rule"] == "min_sharpness"
    assert copies["c"]["path"] == str(clip), "what was not selected is as it was"
    # 2.8 s at 4 frames a second are 11 whole steps: not more seconds than there are in the copy, nor than were unique.
    assert [copies[clip_id]["unique_s"] for clip_id in "ab"] == [2.75, 0.1]
    assert copies["d"]["unique_s"] is None
    assert copies["b"]["duplicate_group"] == "a" and copies["b"]["sharpness"] == 0.4


def test_copies_of_overlapping_parts_share_their_seconds(clip, tmp_path, make_catalog):
    parts = make_catalog(
        path=[str(clip)] * 2, first_frame=[0, 10], num_frames=[20, 18], start_s=[0.0, 1.0], duration_s=[2.0, 1.8],
        fps_num=[10, 10], width_px=[64, 64], height_px=[48, 48], sha256=["clip", "clip"],
    )  # fmt: skip
    parts.write_parquet(tmp_path / "catalog.parquet")
    copies = pl.read_parquet(transcode(tmp_path / "catalog.parquet", tmp_path / "copies", SMALL).table)
    assert copies["path"].n_unique() == 2
    for catalog in (parts, copies):
        selection, _ = select_clips(catalog, SelectRecipe())
        assert selection["unique_s"].to_list() == pytest.approx([2.0, 0.8])


def test_a_catalogue_of_copies_counts_seconds_that_they_share_once(clip, tmp_path, make_catalog):
    """A selection of copies as a source, which is how a sweep reads it."""
    parts = make_catalog(
        path=[str(clip)] * 2, first_frame=[0, 10], num_frames=[20, 18], start_s=[0.0, 1.0], duration_s=[2.0, 1.8],
        fps_num=[10, 10], width_px=[64, 64], height_px=[48, 48], sha256=["clip", "clip"],
    )  # fmt: skip
    selection, _ = select_clips(parts, SelectRecipe())
    selection.write_parquet(tmp_path / "selection.parquet")
    copies = transcode(tmp_path / "selection.parquet", tmp_path / "copies", SMALL).table
    catalog = build_catalog([SourceSpec(path=str(copies), name="lab")], tmp_path / "again.parquet")
    assert catalog["original_path"].to_list() == [str(clip)] * 2 and catalog["path"].n_unique() == 2
    assert catalog["original_start_s"].to_list() == [0.0, 1.0]
    assert catalog["original_sha256"].to_list() == ["clip", "clip"]
    again, ledger = select_clips(catalog, SelectRecipe())
    assert again["unique_s"].to_list() == pytest.approx([2.0, 0.8])
    assert ledger["overlapping"]["lab"]["hours"] == pytest.approx(1 / 3600)
    for table in (parts, catalog):
        assert catalog_tables(table)["source"]["hours"].to_list() == pytest.approx([2.8 / 3600])


def test_a_copy_of_a_copy_leads_back_to_the_first(clip, tmp_path):
    catalog = table(tmp_path, [{"clip_id": "a", "path": str(clip), "num_frames": 28, "start_s": 1.5}])
    first = transcode(catalog, tmp_path / "32", SMALL).table
    second = rows_by_id(transcode(first, tmp_path / "16", CopySettings(16, 1)).table)["a"]
    assert (second["original_path"], second["original_start_s"]) == (str(clip), 1.5)
    assert second["original_sha256"] == rows_by_id(catalog)["a"]["sha256"] != second["sha256"]
    assert second["provenance"].count("copy at") == 2 and second["gop_frames"] == 1.0


def test_shards_together_give_the_table_of_one_run(write_video, numbered, tmp_path):
    rows = [
        {"clip_id": f"{i}", "path": str(write_video(f"{i}.mp4", numbered(6 + i))), "num_frames": 6 + i}
        for i in range(5)
    ]
    catalog = table(tmp_path, rows)
    out = tmp_path / "shards"
    counts = []
    for index in (2, 0, 1):
        done = transcode(catalog, out, SMALL, shard=Shard(index, 3))
        counts.append(done.copied)
        assert (done.table is None) == (index != 1) and len(done.missing) == {2: 2, 0: 1, 1: 0}[index]
    assert sum(counts) == 5
    whole = transcode(catalog, tmp_path / "whole", SMALL)
    at = [pl.read_parquet(one).with_columns(pl.col("path").str.replace(f"/{one.parent.name}/", "/"))
          for one in (done.table, whole.table)]  # fmt: skip
    assert at[0].equals(at[1])
    again = transcode(catalog, out, SMALL)
    assert again.found == again.copied == 5, "another number of shards finds what is there"


def test_a_copy_whose_note_was_lost_is_looked_at_not_made_again(clip, tmp_path):
    catalog = table(tmp_path, [{"clip_id": "a", "path": str(clip), "num_frames": 28}])
    done = transcode(catalog, tmp_path / "copies", SMALL)
    (copy,) = done.table.parent.rglob("*.mp4")
    before = copy.stat()
    next(done.table.parent.glob("parts/*")).unlink()
    assert transcode(catalog, tmp_path / "copies", SMALL).copied == 1
    assert (copy.stat().st_mtime_ns, copy.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    copy.unlink()
    again = transcode(catalog, tmp_path / "copies", SMALL)
    assert again.found == 0 and copy.is_file(), "and one that was deleted is made again"


def test_a_file_that_changed_is_copied_anew(clip, tmp_path):
    rows = [{"clip_id": "a", "path": str(clip), "num_frames": 28}]
    first = rows_by_id(transcode(table(tmp_path, rows), tmp_path / "copies", SMALL).table)["a"]
    changed = table(tmp_path, [{**rows[0], "sha256": "another"}])
    second = transcode(changed, tmp_path / "copies", SMALL)
    assert second.found == 0 and rows_by_id(second.table)["a"]["path"] != first["path"]


def test_what_cannot_work_is_said_before_the_start(clip, tmp_path, capsys):
    rows = [{"clip_id": "a", "path": str(clip), "num_frames": 28}]
    catalog, out = table(tmp_path, rows), tmp_path / "copies"
    transcode(catalog, out, SMALL)
    with pytest.raises(ValueError, match=r"holds copies with gop_frames = 4.*--out"):
        transcode(catalog, out, CopySettings(32, 12))
    huge = table(tmp_path, [{**rows[0], "num_frames": 10**12}], "huge.parquet")
    with pytest.raises(ValueError, match=r"huge: the copies may take [\d,.e+]+ GB and [\d,.]+ GB are free.*--out"):
        transcode(huge, tmp_path / "huge", SMALL)
    assert not list((tmp_path / "huge").rglob("*.mp4"))
    unproven = table(tmp_path, [{**rows[0], "usable": None}], "unproven.parquet")
    with pytest.raises(ValueError, match=r"no clip to copy.*egoscale catalog probe"):
        transcode(unproven, tmp_path / "unproven", SMALL)
    twice = table(tmp_path, rows * 2, "twice.parquet")
    with pytest.raises(ValueError, match="clip 'a' stands there twice"):
        transcode(twice, tmp_path / "twice", SMALL)
    other = tmp_path / "other.parquet"
    pl.DataFrame({"clip_id": ["a"], "usable": [True]}).write_parquet(other)
    with pytest.raises(ValueError, match=r"other\.parquet: no column path"):
        transcode(other, tmp_path / "other", SMALL)
    for settings in ({"size_px": 33}, {"size_px": 8}, {"gop_frames": 0}, {"crf": 0}, {"fps": Fraction(0)}):
        with pytest.raises(ValueError, match=next(iter(settings)).split("_")[0]):
            CopySettings(**settings)
    for arguments in (["--fps", "often"], ["--shard", "3/3"], ["--size-px", "33"]):
        with pytest.raises(SystemExit) as stopped:
            main(["video", "transcode", str(catalog), "--out", str(tmp_path / "bad"), *arguments])
        assert stopped.value.code == 2 and arguments[1] in capsys.readouterr().err


def test_the_proof_of_a_copy_sees_what_is_wrong(numbered, tmp_path):
    path = tmp_path / "copy.mp4"
    frames, step = numbered(9, 32, 32), Fraction(1, 10)
    write_h264(path, [frames[:4], frames[4:]], range(9), step, 4, 20)
    check_h264(path, 32, range(9), step, 4)
    for wrong, message in [
        ((32, range(10), step, 4), "has 9 frames of 10"),
        ((32, range(9), Fraction(1, 12), 4), "frame 1 of the copy is shown at 0.100000 s"),
        ((32, range(9), step, 3), "frame 3 of the copy is no key frame"),
        ((32, range(9), step, 5), "frame 4 of the copy is a key frame"),
        ((64, range(9), step, 4), "is 32x32, not 64x64"),
    ]:
        with pytest.raises(CopyError, match=message):
            check_h264(path, *wrong)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CopyError):
        check_h264(path, 32, range(9), step, 4)
    with pytest.raises(ValueError, match="4 frames for 9 time stamps"):
        write_h264(path, [frames[:4]], range(9), step, 4, 20)
    with pytest.raises(ValueError, match="more frames than the 3"):
        write_h264(path, [frames[:4]], range(3), step, 4, 20)


def test_nothing_that_differs_between_processes_or_processors_is_left_on(numbered, tmp_path):
    """x264 writes its settings into each file; with mbtree, one of some thousand copies came out otherwise."""
    path = tmp_path / "copy.mp4"
    write_h264(path, [numbered(9, 32, 32)], range(9), Fraction(1, 10), 4, 20)
    written = path.read_bytes()
    for setting in (b" mbtree=0 ", b" threads=1 ", b" sliced_threads=0 ", b" scenecut=0 "):
        assert setting in written, setting


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Whole copies, each with what would change if it were written again."""
    return {
        str(path.relative_to(out)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("clips/*/*.mp4")
    }


def test_killed_ten_times_the_copies_are_those_of_an_unbroken_run(write_video, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    rows = []
    for i in range(80):
        path = write_video(f"{i}.mp4", noise[[i % 4]].repeat(60 + i, axis=0))
        rows.append({"clip_id": f"lab/{i:02d}", "path": str(path), "num_frames": 60 + i})
    catalog = table(tmp_path, rows)
    whole = transcode(catalog, tmp_path / "whole", CopySettings(96, 12), jobs=2)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "egoscale.cli", "video", "transcode", str(catalog), "--out", str(out)]
    command += ["--size-px", "96", "--jobs", "2"]
    seen: dict[str, tuple[int, int]] = {}
    for number, wait_s in enumerate(np.random.default_rng(1).uniform(0.0, 0.1, 10)):
        process = subprocess.Popen(command, start_new_session=True)
        begun = time.monotonic()
        while len(finished(out)) == len(seen) and time.monotonic() < begun + 20:
            time.sleep(0.005)  # the workers have begun when one more copy is there
        time.sleep(wait_s)
        if process.poll() is not None:  # it was not looked at in time on a busy machine, and came to its end
            assert number >= 3
            break
        if number % 2:
            process.kill()  # its workers end by themselves
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = finished(out)
        assert seen.items() <= now.items(), "a finished copy was written again"
        seen = now
    subprocess.run(command, check=True, capture_output=True)
    assert seen.items() <= finished(out).items()
    for path in finished(tmp_path / "whole"):
        assert (out / path).read_bytes() == (tmp_path / "whole" / path).read_bytes(), path
    assert len(finished(out)) == 80 and not list(out.rglob("*.part"))
    made = [pl.read_parquet(folder / "catalog.parquet").drop("path") for folder in (whole.table.parent, out)]
    assert made[0].equals(made[1])
