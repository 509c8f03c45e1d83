"""Latents come back as they went in, from any window, after any kill; damage is named."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest

from egoscale.video import latent_writer
from egoscale.video.batches import WindowBatches
from egoscale.video.clips import WindowTable
from egoscale.video.latent_writer import finished_clips, write_latents
from egoscale.video.latents import LatentShards, to_float32


def clips(count=7, seed=0):
    """(clip_id, float16 [T, 4, 3]) with T from 3 to 9."""
    rng = np.random.default_rng(seed)
    return [(f"lab/{i}", rng.normal(size=(3 + i, 4, 3)).astype(np.float16)) for i in range(count)]


def test_windows_come_back_as_written(tmp_path):
    write_latents(tmp_path, iter(clips()), shard_frames=10)
    shards = LatentShards.open(tmp_path, verify=True)
    assert shards.clip_ids == [clip for clip, _ in clips()]
    assert len(list(tmp_path.glob("*.arrow"))) > 2
    for clip, latents in clips():
        assert shards.num_frames(clip) == len(latents)
        whole = shards.window(clip, 0, len(latents))
        assert whole.dtype == np.float32 and np.array_equal(whole, latents.astype(np.float32))
        assert np.array_equal(shards.window(clip, 1, 2), latents[1:3].astype(np.float32))
    copy = pickle.loads(pickle.dumps(shards))
    assert np.array_equal(copy.window("lab/3", 2, 3), shards.window("lab/3", 2, 3))


def test_shards_are_ordinary_data_sets(tmp_path):
    import datasets

    write_latents(tmp_path, clips(2), shard_frames=100)
    table = datasets.Dataset.from_file(str(tmp_path / "shard-000-00000.arrow"))
    assert table.column_names == ["clip_id", "frame", "latent"] and len(table) == 7
    assert table[4]["clip_id"] == "lab/1" and table[4]["frame"] == 1 and len(table[4]["latent"]) == 12


def test_bfloat16_travels_as_its_bits(tmp_path):
    values = np.array([0.0, 1.0, -2.5, 3.140625, 1e30], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16).reshape(5, 1, 1)
    write_latents(tmp_path, [("clip", bits)], shard_frames=10)
    back = LatentShards.open(tmp_path).window("clip", 0, 5).reshape(-1)
    assert np.array_equal(back, to_float32(bits).reshape(-1))
    assert np.allclose(back, values, rtol=1 / 128)


def test_killed_writer_goes_on_at_the_next_shard(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    write_latents(whole, clips(), shard_frames=10)

    def killed():
        for clip, latents in clips():
            if clip == "lab/6":
                raise KeyboardInterrupt
            yield clip, latents

    with pytest.raises(KeyboardInterrupt):
        write_latents(part, killed(), shard_frames=10)
    with pytest.raises(FileNotFoundError, match="never finished"):
        LatentShards.open(part)
    done = finished_clips(part)
    assert len(done) == 5, "lab/5 was held in memory"
    before = {path: path.stat().st_mtime_ns for path in part.glob("*.arrow")}
    write_latents(part, ((clip, latents) for clip, latents in clips() if clip not in done), shard_frames=10)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "whole shards are left alone"
    assert json.loads((part / "index.json").read_text()) == json.loads((whole / "index.json").read_text())


class Meeting:
    """Threads that write one folder as ranks do."""

    def __init__(self, count):
        self.barrier, self.values = threading.Barrier(count, timeout=30), [None] * count

    def one(self, number):
        held = self

        class Rank:
            rank, world_size = number, len(held.values)

            def gathered(self, value):
                held.barrier.wait()  # all have read what was there before
                held.values[number] = value
                held.barrier.wait()
                return list(held.values)

        return Rank()


def written_by(count, folder, given):
    """Every so many-th clip by each of them; what each was told of its shards."""
    meeting, told = Meeting(count), [[] for _ in range(count)]

    def write(rank):
        mine = meeting.one(rank)
        done = finished_clips(folder, mine)
        some = (one for one in given[rank::count] if one[0] not in done)
        write_latents(folder, some, 10, done, mine, lambda *counts: told[rank].append(counts))

    with ThreadPoolExecutor(count) as pool:
        for writer in [pool.submit(write, rank) for rank in range(count)]:
            writer.result()
    return told


def test_several_write_one_folder_and_another_number_of_them_goes_on(tmp_path):
    known = dict(clips(12))
    assert len(written_by(3, tmp_path, list(known.items())[:7])) == 3
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.arrow")}
    damaged = sorted(first)[1]
    lost = json.loads(damaged.with_suffix(".json").read_text())["clips"]
    damaged.write_bytes(b"none")
    told = written_by(2, tmp_path, list(known.items()))
    shards = LatentShards.open(tmp_path, verify=True)
    assert sorted(shards.clip_ids) == sorted(known)
    assert all(np.array_equal(shards.window(clip, 0, len(one)), one.astype(np.float32)) for clip, one in known.items())
    assert all(path.stat().st_mtime_ns == then for path, then in first.items() if path != damaged)
    assert sum(count for some in told for count, _ in some) == 12 - 7 + len(lost) and lost


def test_shards_of_others_that_do_not_show_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_writer, "SHOWN_WITHIN_S", 0.1)

    class Elsewhere:
        rank, world_size = 0, 2

        def gathered(self, value):
            return [value, ["shard-001-00000.json"] if isinstance(value, list) and value else value]

    with pytest.raises(FileNotFoundError, match=r"1 files .* as shard-001-00000\.json: is it the same folder"):
        write_latents(tmp_path, clips(3), 10, {}, Elsewhere())


def test_damaged_shard_is_named_and_written_again(tmp_path):
    write_latents(tmp_path, clips(), shard_frames=10)
    shard = sorted(tmp_path.glob("*.arrow"))[1]
    good = shard.read_bytes()

    shard.write_bytes(good[:-40])
    with pytest.raises(ValueError, match=rf"{shard.name}: damaged shard: .* bytes"):
        LatentShards.open(tmp_path)

    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    shard.write_bytes(flipped)
    LatentShards.open(tmp_path)
    with pytest.raises(ValueError, match=rf"{shard.name}: damaged shard: its SHA-256"):
        LatentShards.open(tmp_path, verify=True)

    shard.write_bytes(b"\0" * len(good))
    index = json.loads((tmp_path / "index.json").read_text())
    broken = LatentShards.open(tmp_path)
    with pytest.raises(ValueError, match=rf"{shard.name}: damaged shard"):
        broken.window("lab/3", 0, 1)

    write_latents(tmp_path, clips(), shard_frames=10)
    assert shard.read_bytes() == good and json.loads((tmp_path / "index.json").read_text()) == index
    LatentShards.open(tmp_path, verify=True)

    (tmp_path / "clips" / "names.arrow").write_bytes(b"ARROW1")
    with pytest.raises(ValueError, match=r"names\.arrow: damaged .*SHA-256"):
        LatentShards.open(tmp_path, verify=True)
    with pytest.raises(ValueError, match=r"names\.arrow: not a whole Arrow file"):
        LatentShards.open(tmp_path)
    write_latents(tmp_path, clips(), shard_frames=10)

    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        LatentShards.open(tmp_path)


def test_windows_outside_a_clip_and_unknown_clips(tmp_path):
    write_latents(tmp_path, clips(2), shard_frames=10)
    shards = LatentShards.open(tmp_path)
    for start, length in ((0, 4), (3, 1), (-1, 2)):
        with pytest.raises(ValueError, match="'lab/0' has 3 frames"):
            shards.window("lab/0", start, length)
    with pytest.raises(ValueError, match="no window of 0 frames"):
        shards.window("lab/0", 0, 0)
    with pytest.raises(ValueError, match="no latents of clip 'lab/9'"):
        shards.num_frames("lab/9")


@pytest.mark.parametrize(
    "bad, words",
    [
        (np.zeros((2, 4, 3), np.float64), "latents are float64"),
        (np.zeros((0, 4, 3), np.float16), r"shape \(0, 4, 3\)"),
        (np.zeros((2, 12), np.float16), r"shape \(2, 12\)"),
        (np.zeros((2, 4, 5), np.float16), "the clips before"),
        (np.full((2, 4, 3), np.nan, np.float16), "not finite"),
        (np.full((2, 4, 3), 0x7FC0, np.uint16), "the clips before"),
    ],
)
def test_wrong_latents_are_refused_by_clip(tmp_path, bad, words):
    with pytest.raises(ValueError, match=words) as caught:
        write_latents(tmp_path, [*clips(1), ("lab/bad", bad)], shard_frames=10)
    assert "'lab/bad'" in str(caught.value)


def test_no_clip_and_a_clip_twice(tmp_path):
    with pytest.raises(ValueError, match="no clip"):
        write_latents(tmp_path, [], shard_frames=10)
    for shard_frames in (100, 3):
        with pytest.raises(ValueError, match="'lab/0' comes twice"):
            write_latents(tmp_path / str(shard_frames), clips(1) * 2, shard_frames)
        assert not (tmp_path / str(shard_frames) / "index.json").exists()


def subset(path, names, fps=(10, 1)):
    count = len(names)
    pl.DataFrame({"clip_id": names, "fps_num": [fps[0]] * count, "fps_den": [fps[1]] * count}).write_parquet(path)
    return path


def test_a_manifest_chooses_and_orders_the_clips(tmp_path):
    write_latents(tmp_path / "all", clips(), shard_frames=10)
    shards = LatentShards.open(tmp_path / "all")
    manifest = subset(tmp_path / "m.parquet", ["lab/5", "lab/1", "never encoded", "lab/6"])
    chosen = shards.of_manifest(manifest, tmp_path / "index")
    assert chosen.clip_ids == ["lab/5", "lab/1", "lab/6"] and chosen.clips.fps_hz == 10
    known = dict(clips())
    found = chosen.windows([2, 0, 1], [5, 0, 1], 3)
    for windows, name, start in zip(found, ("lab/6", "lab/5", "lab/1"), (5, 0, 1), strict=True):
        assert np.array_equal(windows, known[name][start : start + 3].astype(np.float32))
    copy = pickle.loads(pickle.dumps(chosen))
    assert np.array_equal(copy.windows([0], [0], 2), chosen.windows([0], [0], 2))
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "index").rglob("*.*")}
    shards.of_manifest(manifest, tmp_path / "index")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "index").rglob("*.*")} == made
    with pytest.raises(ValueError, match="latents of none of its clips"):
        shards.of_manifest(subset(tmp_path / "none.parquet", ["x"]), tmp_path / "index")


def test_batches_of_latents_at_a_training_rate(tmp_path):
    """The same interface as frames: windows by time, of many clips at once."""
    write_latents(tmp_path / "all", clips(12), shard_frames=20)
    names = [name for name, _ in clips(12)]
    manifest = subset(tmp_path / "m.parquet", names, (30, 1))
    shards = LatentShards.open(tmp_path / "all").of_manifest(manifest, tmp_path / "index")
    table = WindowTable.on_disk(shards.clips, 3, 10.0)

    def draw(step, attempt):
        return np.random.default_rng(step).random(5)

    with WindowBatches(shards, table, 3, 5, draw, num_readers=2, num_steps=4) as batches:
        for step in range(4):
            found = batches.at(step)
            for window, clip, start in zip(found, *table.locate(draw(step, 0)), strict=True):
                expected = dict(clips(12))[names[clip]][start : start + 7 : 3].astype(np.float32)
                assert np.array_equal(window, expected)
    assert table.num_empty == 4, "clips of 3 to 6 frames are shorter than 7"


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from egoscale.video.latent_writer import finished_clips, write_latents

out, pause_s = Path(sys.argv[1]), float(sys.argv[2])
done = finished_clips(out)

def clips():
    rng = np.random.default_rng(0)
    for i in range(60):
        latents = rng.normal(size=(20 + i % 7, 4, 8)).astype(np.float16)
        if f"lab/{i}" not in done:
            time.sleep(pause_s)  # the encoder at work
            with (out / "encoded.txt").open("a") as log:
                log.write(f"{i}\\n")
            yield f"lab/{i}", latents

out.mkdir(exist_ok=True)
print("begun", flush=True)
write_latents(out, clips(), 100, done)
"""


def test_killed_ten_times_it_is_byte_for_byte_the_same(tmp_path):
    def start(out, pause_s):
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", WRITER, str(out), str(pause_s)], env=environ, stdout=subprocess.PIPE
        )

    def content(out):
        return {
            str(file.relative_to(out)): file.read_bytes()
            for file in sorted(out.rglob("*"))
            if file.is_file() and file.name != "encoded.txt"
        }

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole, 0).wait(60) == 0
    when = random.Random(4)
    for _ in range(10):
        process = start(broken, 0.02)
        process.stdout.readline()
        time.sleep(when.uniform(0, 0.25))
        process.kill()
        process.wait()
    assert not (broken / "index.json").exists()
    assert start(broken, 0).wait(60) == 0
    assert content(broken) == content(whole)
    LatentShards.open(broken, verify=True)
    # No clip of a finished shard is encoded twice: what is done again lay in memory, at most a shard a kill.
    encoded = (broken / "encoded.txt").read_text().split()
    assert len(encoded) <= 60 + 10 * 6
