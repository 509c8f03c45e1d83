"""The encode stage on files that break after they were catalogued, killed and resumed, in real processes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
import torch

from egoscale.models.video_tokenizer import VideoTokenizer
from egoscale.recipe import EncodeRecipe, SelectRecipe, TokenizerRecipe, TrainSpec
from egoscale.stages import execute
from egoscale.stages.encoding import encoded
from egoscale.stages.models import described, inference
from egoscale.sweep.ledger import RunFolder
from egoscale.train.checkpoint import export_weights
from egoscale.video.decode import open_video
from egoscale.video.latents import LatentShards, to_float32

COUNT = 40
BLOCK = dict(width=16, num_layers=1, num_heads=2, num_kv_heads=1, temporal_every=0, num_registers=0)


@pytest.fixture
def make(tmp_path):
    """make(**recipe): an encode run over 40 clips, of which 3 and 21 broke since (5 %)."""
    import av

    frames = np.random.default_rng(0).integers(0, 255, (30, 32, 32, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i:02d}.mp4" for i in range(COUNT)]
    for path in paths[:1]:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    for path in paths[1:]:
        path.write_bytes(paths[0].read_bytes())
    paths[3].write_bytes(paths[0].read_bytes()[:2000])
    paths[21].unlink()

    root = tmp_path / "runs"
    select = RunFolder.create(root, SelectRecipe(), {})
    pl.DataFrame(
        {
            "clip_id": [f"lab/{i:02d}" for i in range(COUNT)],
            "path": [str(path) for path in paths],
            "decoder": ["pyav"] * COUNT,
            "num_frames": [30 - i % 5 for i in range(COUNT)],
            "first_frame": [i % 5 for i in range(COUNT)],
            "selected": [True] * (COUNT - 1) + [False],
        }
    ).write_parquet(select.path / "selection.parquet")
    select.finish({})
    tokenizer = RunFolder.create(root, TokenizerRecipe(train=TrainSpec(num_steps=1, batch_size=1)), {})
    given = dict(image_size_px=16, patch_size_px=8, num_latents=4, latent_dim=4, max_mask_fraction=0.5)
    given |= dict(encoder=BLOCK, decoder=BLOCK)
    torch.manual_seed(0)
    model = VideoTokenizer(**given)
    export_weights(model.state_dict(), described(VideoTokenizer, given), tokenizer.path / "weights")
    tokenizer.finish({})

    def made(**recipe):
        return RunFolder.create(root, EncodeRecipe(**recipe), {"select": select, "tokenizer": tokenizer}), model

    return made


def test_latents_are_those_of_the_frames_and_broken_clips_are_named(make):
    run, model = make(batch_frames=8, shard_frames=100, max_quarantined_fraction=0.06)
    execute(str(run.path))
    result = run.result()
    assert (result["clips"], result["quarantined"], result["dtype"]) == (37, 2, "float16")
    assert [one["clip"] for one in run.events() if one["event"] == "quarantine"] == ["lab/03", "lab/21"]
    shards = LatentShards.open(run.path / "video", verify=True)
    assert "lab/03" not in shards.clip_ids and result["frames"] == shards.clips.total_frames
    with open_video(run.path.parents[2] / "07.mp4") as video, inference(result["precision"] == "bf16"):
        expected = encoded(model.eval(), video.frames(range(2, 30), 16), 8)
    assert np.array_equal(shards.window("lab/07", 0, 28), expected.astype(np.float32))


def test_bfloat16_is_a_choice_of_the_recipe(make):
    exact, _ = make(max_quarantined_fraction=0.06)
    run, _ = make(dtype="bfloat16", max_quarantined_fraction=0.06, num_readers=5)
    for one in (exact, run):
        execute(str(one.path))
    found, known = (LatentShards.open(one.path / "video").window("lab/05", 0, 20) for one in (run, exact))
    assert run.result()["dtype"] == "bfloat16" and np.allclose(found, known, rtol=1 / 100, atol=1e-3)
    assert np.array_equal(to_float32((found.view(np.uint32) >> 16).astype(np.uint16)), found)


def test_too_many_broken_clips_stop_it_with_the_list(make):
    run, _ = make(max_quarantined_fraction=0.03)
    with pytest.raises(ValueError, match="2 of 39 clips of the selection cannot be read") as caught:
        execute(str(run.path))
    assert "lab/03: " in str(caught.value) and "lab/21: " in str(caught.value)
    with pytest.raises(ValueError, match="2 of 39 clips"):
        execute(str(run.path))


@pytest.mark.ranks
def test_two_ranks_encode_each_its_clips_and_one_goes_on_where_they_were_killed(make, begin):
    whole, _ = make(shard_frames=60, max_quarantined_fraction=0.06)
    execute(str(whole.path))
    run, _ = make(shard_frames=60, max_quarantined_fraction=0.07)  # another run folder
    (run.path / "precision.json").write_bytes((whole.path / "precision.json").read_bytes())

    command = ["import sys; from egoscale.stages import execute; execute(sys.argv[1])", str(run.path)]
    victims = begin(command, 2)
    until = time.monotonic() + 120
    while {one.name[:9] for one in run.path.glob("video/*.json")} != {"shard-000", "shard-001"}:
        assert time.monotonic() < until and all(victim.poll() is None for victim in victims)
        time.sleep(0.001)
    for victim in victims:
        victim.kill()
        victim.wait()
    assert not (run.path / "video" / "index.json").exists()
    kept = sorted(run.path.glob("video/shard-*.json"))
    assert [process.wait(240) for process in begin(command, 3)] == [0, 0, 0]
    result, known = run.result(), whole.result()
    assert result["clips"] == known["clips"] == 37 and result["quarantined"] == 2
    assert 0 < result["encoded_now"] < result["frames"] == known["frames"]
    assert len(kept) >= 2 and set(kept) < set(run.path.glob("video/shard-*.json"))
    assert sum(event["clips"] for event in run.events() if event["event"] == "part") == 37, "no clip was encoded twice"
    one, other = (LatentShards.open(folder.path / "video", verify=True) for folder in (whole, run))
    for clip in one.clip_ids:
        n = one.num_frames(clip)
        assert np.array_equal(one.window(clip, 0, n), other.window(clip, 0, n)), clip
    assert sorted(event["clip"] for event in run.events() if event["event"] == "quarantine") == ["lab/03", "lab/21"]


@pytest.mark.slow
def test_killed_ten_times_its_output_is_byte_for_byte_the_same(make):
    whole, _ = make(batch_frames=4, shard_frames=60, max_quarantined_fraction=0.06)
    execute(str(whole.path))
    run, _ = make(batch_frames=4, shard_frames=60, max_quarantined_fraction=0.07)  # another run folder
    # What the machine preferred at the first start of the one is what the other is given.
    (run.path / "precision.json").write_bytes((whole.path / "precision.json").read_bytes())
    command = [sys.executable, "-c", "import sys; from egoscale.stages import execute; execute(sys.argv[1])"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    when = random.Random(1)
    for kill in range(10):
        process = subprocess.Popen([*command, str(run.path)], env=environ, stderr=subprocess.DEVNULL)
        # Wait until it writes, then a moment more.
        before = len(list((run.path / "video").glob("*.arrow")))
        while process.poll() is None and len(list((run.path / "video").glob("*.arrow"))) <= before + kill % 2:
            time.sleep(0.002)
        time.sleep(when.uniform(0, 0.02))
        process.kill()
        process.wait()
        if run.result() is not None:
            break
    execute(str(run.path))

    def content(folder):
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    assert content(run.path / "video") == content(whole.path / "video")
    named = [one["clip"] for one in run.events() if one["event"] == "quarantine"]
    assert sorted(named) == ["lab/03", "lab/21"]
    assert kill >= 3, "it ended before it could be killed often"
