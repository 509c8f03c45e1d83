"""Latents come back as they went in, from any window, after any kill; damage is named."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from egoscale.video.latents import LatentShards, finished_clips, to_float32, write_latents


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
    table = datasets.Dataset.from_file(str(tmp_path / "shard-00000.arrow"))
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
        broken.window(next(iter(index["shards"][1]["clips"])), 0, 1)

    write_latents(tmp_path, clips(), shard_frames=10)
    assert shard.read_bytes() == good
    LatentShards.open(tmp_path, verify=True)

    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        LatentShards.open(tmp_path)


def test_windows_outside_a_clip_and_unknown_clips(tmp_path):
    write_latents(tmp_path, clips(2), shard_frames=10)
    shards = LatentShards.open(tmp_path)
    for start, length in ((0, 4), (3, 1), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="'lab/0' has 3 frames"):
            shards.window("lab/0", start, length)
    with pytest.raises(ValueError, match="no latents of clip 'lab/9'"):
        shards.num_frames("lab/9")


@pytest.mark.parametrize(
    "bad, words",
    [
        (np.zeros((2, 4, 3), np.float32), "latents are float32"),
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
    with pytest.raises(ValueError, match="'lab/0' comes twice"):
        write_latents(tmp_path, clips(1) * 2, shard_frames=100)
