"""The bench on real files: what it prints is measured, adds up, and says what copies would buy."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from egoscale.cli import main
from egoscale.video.bench import Speed, Way, bench


def table(folder, rows):
    path = folder / "catalog.parquet"
    filled = [
        {"sha256": str(i), "fps_num": 10, "fps_den": 1, "first_frame": 0, "decoder": "auto", "bytes": 10_000,
         "gop_frames": 60.0, "usable": True, "reason": "", **row}
        for i, row in enumerate(rows)
    ]  # fmt: skip
    clips = pl.DataFrame(filled)
    clips.with_columns(duration_s=pl.col("num_frames") * pl.col("fps_den") / pl.col("fps_num")).write_parquet(path)
    return path


@pytest.fixture
def catalog(write_video, numbered, tmp_path):
    rows = [
        {"clip_id": f"{i}", "path": str(write_video(f"{i}.mp4", numbered(60), gop=60)), "num_frames": 60}
        for i in range(3)
    ]
    return table(tmp_path, [*rows, {**rows[0], "clip_id": "short", "num_frames": 3}])


def test_files_as_they_are_and_copies_are_measured(catalog):
    seen = []
    found = bench(catalog, length=4, rate_hz=5.0, size_px=32, seconds=0.3, progress=lambda *told: seen.append(told))
    assert [way.name for way in found.ways] == ["as they are", "copies", "copies at 5 fps"]
    assert (found.num_clips, found.sample_clips, found.source_frames) == (4, 3, 183)
    assert found.hours == pytest.approx(18.3 / 3600) and not found.failed
    for way in found.ways:
        for speed in (way.one_reader, way.all_cores, way.in_order):
            assert speed.frames > 0 and 0.25 < speed.seconds < 30
        assert way.one_reader.frames % 4 == way.all_cores.frames % 4 == 0, "whole windows"
    assert found.ways[0].gop_frames == 60 and found.ways[1].gop_frames <= 12
    assert found.ways[0].bytes_per_hour == pytest.approx(10_000 / 6 * 3600)
    assert found.copied_frames_per_s > 0 and seen[-1] == (9, 9, "measurements")
    assert any("times as fast" in line for line in found.advice())
    assert any("core-hours" in line for line in found.advice())


def test_readers_are_counted_from_what_all_cores_do_together():
    fast, slow = Speed(1000, 1.0), Speed(900, 2.0)
    way = Way("as they are", fast, slow, fast, 0.0, None)
    assert fast.frames_per_s == 1000 and slow.frames_per_s == 450
    assert way.readers_for(1000, cores=2) == 5, "two give 450 together, so one gives 225"
    assert Way("broken", Speed(0, 1.0), Speed(0, 1.0), Speed(0, 1.0), 0.0, None).readers_for(10, 2) == 0


def test_the_verb_prints_what_feeds_a_gpu(catalog, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["video", "bench", str(catalog), "--frames", "4", "--size-px", "32", "--seconds", "0.2", "--no-copies",
              "--model-frames-per-s", "500"])  # fmt: skip
    told = capsys.readouterr()
    assert not stopped.value.code, told.err
    assert "4 clips" in told.out and "parts of 3 measured" in told.out and "readers for 500/s" in told.out
    assert "copies" not in told.out


def test_a_clip_that_breaks_is_named_and_the_rest_is_measured(catalog, tmp_path):
    (tmp_path / "1.mp4").write_bytes(b"no video")
    found = bench(catalog, length=4, rate_hz=5.0, size_px=32, seconds=0.3, copies=False)
    assert set(found.failed) == {"1"} and "1.mp4" in found.failed["1"]
    assert len(found.ways) == 1 and found.ways[0].one_reader.frames > 0 and not found.advice()


def test_what_cannot_be_measured_is_said(catalog, tmp_path):
    with pytest.raises(ValueError, match=r"no clip holds a window of 400 frames at 5 fps \(80 s\)"):
        bench(catalog, length=400)
    for wrong, said in (
        ({"seconds": 0}, "seconds = 0: above 0"),
        ({"length": 0}, "frames of a window = 0: above 0"),
        ({"rate_hz": 0.0}, "frames a second = 0: above 0"),
        ({"rate_hz": float("nan")}, "frames a second = nan: above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            bench(catalog, **wrong)
    nothing = table(tmp_path, [{"clip_id": "a", "path": "a.mp4", "num_frames": 9, "usable": False}])
    with pytest.raises(ValueError, match=r"no clip to read.*egoscale catalog probe"):
        bench(nothing)
    assert np.isfinite(Speed(0, 0.0).frames_per_s)
