"""What frames lead to: coded once, by all ranks, kept until the run is done; killed and resumed, in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from egoscale.models.latent_action import LatentActionModel
from egoscale.recipe import (
    EncodeRecipe,
    LatentActionRecipe,
    LatentActionSpec,
    SelectRecipe,
    SubsetRecipe,
    TrainSpec,
    WorldRecipe,
    WorldSpec,
)
from egoscale.stages import codes, execute
from egoscale.stages.models import described, inference, load
from egoscale.sweep.ledger import RunFolder
from egoscale.train.checkpoint import export_weights
from egoscale.train.watch import HANG_EXIT_CODE
from egoscale.video.latent_writer import write_latents
from egoscale.video.latents import LatentShards

BLOCKS = {"width": 16, "num_layers": 1, "temporal_every": 0}
# A process that codes in many small parts, and slowly enough to be met in the midst of them.
SLOW = """
import sys, time
from egoscale.stages import codes, execute
codes.GROUP_FRAMES, codes.SHARD_FRAMES = 60, 100
told = codes.Watchdog.beat
def beat(self, *given, **named):
    time.sleep(float(sys.argv[2]))
    told(self, *given, **named)
codes.Watchdog.beat = beat
execute(sys.argv[1])
"""
CLIPS, HELDOUT = 60, 5


def frames_of(clip: int) -> int:
    return 25 + clip % 11


def weights(root: Path, max_stride_frames: int = 8) -> RunFolder:
    given = LatentActionSpec.model_validate({"encoder": BLOCKS, "decoder": BLOCKS}).model_dump()
    given.pop("beta_warmup_fraction")
    given |= {"num_latents": 4, "latent_dim": 4, "max_stride_frames": max_stride_frames}
    torch.manual_seed(0)
    model = LatentActionModel(**given)
    run = RunFolder.create(root, LatentActionRecipe(train=TrainSpec(num_steps=1, batch_size=max_stride_frames)), {})
    export_weights(model.state_dict(), described(LatentActionModel, given), run.path / "weights")
    run.finish({})
    return run


@pytest.fixture
def make(tmp_path):
    """make(**recipe): a world run on the latents of 60 clips, 5 of them held out."""
    root = tmp_path / "runs"
    lots = np.random.default_rng(0)
    latents = [(f"lab/{i:02d}", lots.normal(size=(frames_of(i), 4, 4)).astype(np.float16)) for i in range(CLIPS)]
    encode = RunFolder.create(root, EncodeRecipe(), {})
    write_latents(encode.path / "video", latents, 400)
    encode.finish({})
    subset = RunFolder.create(root, SubsetRecipe(hours=1.0), {})
    rows = pl.DataFrame({"clip_id": [name for name, _ in latents]}).with_columns(
        path=pl.lit("/videos/none.mp4"), narration=pl.lit("take it"), task=pl.lit("take"), fps_num=10, fps_den=1
    )
    # Backwards, so that no clip has the number that it has among the latents.
    rows[HELDOUT:].reverse().write_parquet(subset.path / "manifest.parquet")
    rows[:HELDOUT].write_parquet(subset.path / "heldout.parquet")
    subset.finish({})
    video = RunFolder.create(root, SelectRecipe(), {})
    video.finish({})
    inputs = {"encode": encode, "subset": subset, "latent-action": weights(root), "video": video}

    def made(**recipe):
        model = WorldSpec.model_validate({"blocks": {"width": 16, "num_layers": 1}, "context_frames": 4})
        train = TrainSpec(num_steps=2, batch_size=4, precision="fp32", log_every_steps=1)
        given = {"model": model, "train": train, "strides_frames": (2, 5), **recipe}
        return RunFolder.create(root, WorldRecipe(**given), inputs)

    return made


def end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        assert process.wait(240) == 0


def parts(run: RunFolder) -> list[dict]:
    return [event for event in run.events() if event["event"] == "part"]


def trained(run: RunFolder) -> tuple[bytes, dict]:
    result = run.result()
    kept = ("loss", "world_loss", "prior_loss", "steps", "hours_seen")
    return (run.path / "weights" / "weights.safetensors").read_bytes(), {name: result[name] for name in kept}


def test_codes_are_those_of_the_model_for_each_frame_and_what_it_leads_to(make, monkeypatch):
    run = make()
    held = {}
    scaled = codes.scale_of

    def looked_at(work, group, known):
        held["codes"], held["scale"] = known.windows([0], [0], frames_of(CLIPS - 1))[0], scaled(work, group, known)
        held["all"] = np.concatenate(
            [known.windows([i], [0], known.num_frames(c))[0] for i, c in enumerate(known.clip_ids)]
        )
        held["ids"] = known.clip_ids
        return held["scale"]

    monkeypatch.setattr("egoscale.stages.worlds.scale_of", looked_at)
    execute(str(run.path))
    latents = LatentShards.open(run.inputs()["encode"].path / "video")
    assert held["ids"] == [f"lab/{i:02d}" for i in reversed(range(HELDOUT, CLIPS))]
    n = frames_of(CLIPS - 1)
    frames = torch.from_numpy(latents.window(held["ids"][0], 0, n))
    model, _ = load(run.inputs()["latent-action"].path, "LatentActionModel")
    for index, stride in enumerate((1, 2, 5)):
        with inference():
            expected = model.encode(frames, frames[np.minimum(np.arange(n) + stride, n - 1)])[0].numpy()
        assert np.allclose(held["codes"][:, index], expected, atol=1e-6)
    mean, std = held["scale"]
    assert np.array_equal(mean, held["all"].mean(0)) and np.array_equal(std, np.maximum(held["all"].std(0), 0.3))
    assert not (run.path / codes.CODES).exists(), "codes are of use only until the run is done"
    assert sum(part["clips"] for part in parts(run)) == CLIPS


@pytest.mark.parametrize("call", [16, 7])
def test_a_long_take_is_coded_in_pieces_that_reach_beyond_themselves(make, call, monkeypatch):
    run = make()
    latents = LatentShards.open(run.inputs()["encode"].path / "video")
    steps = np.linspace(1.0, 2.5, CLIPS).__getitem__
    given = (run.inputs()["latent-action"].path, latents, (2, 5), steps, False)
    whole = dict(codes.latent_action_coder(*given)(list(range(8))))
    monkeypatch.setattr(codes, "CALL_FRAMES", call)
    pieces = list(codes.latent_action_coder(*given)(list(range(8))))
    assert max(len(piece) for _, piece in pieces) == call and [clip for clip, _ in pieces] == sorted(
        c for c, _ in pieces
    )
    for clip in range(8):
        other = np.concatenate([piece for number, piece in pieces if number == clip])
        assert len(other) == frames_of(clip) and np.allclose(whole[clip], other, atol=1e-6)


@pytest.mark.ranks
def test_two_ranks_code_each_its_share_and_train_as_one_does(make, begin):
    one, two = make(), make(hours=1.0)  # hours are told and change nothing
    end([*begin([SLOW, str(one.path), "0"]), *begin([SLOW, str(two.path), "0"], 2)])
    assert len(parts(one)) > 10 and sum(part["clips"] for part in parts(two)) == CLIPS
    config, other = (json.loads((run.path / "weights" / "config.json").read_text()) for run in (one, two))
    assert config == other and max(part["clips"] for part in parts(two)) < CLIPS / 2
    assert trained(one)[1]["world_loss"] == pytest.approx(trained(two)[1]["world_loss"], rel=1e-5)


def test_killed_while_coding_it_goes_on_with_what_has_no_codes_yet(make, begin):
    whole, run = make(), make(hours=1.0)
    (process,) = begin([SLOW, str(whole.path), "0"])
    seen = 0
    for kill in range(3):
        (victim,) = begin([SLOW, str(run.path), "0.15"])
        until = time.monotonic() + 120
        while len(parts(run)) <= seen + 1 and time.monotonic() < until and victim.poll() is None:
            time.sleep(0.01)
        os.killpg(victim.pid, signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL, kill
        seen = len(parts(run))
    made = {file: file.stat().st_mtime_ns for file in (run.path / "codes").glob("*/*.arrow")}
    assert len(made) >= 3 and run.result() is None
    end([process, *begin([SLOW, str(run.path), "0"])])
    assert sum(part["clips"] for part in parts(run)) == CLIPS, "a clip was coded twice"
    assert trained(run) == trained(whole)


def test_a_rank_that_stands_still_while_coding_is_ended_with_its_stacks(make, begin):
    run = make(train=TrainSpec(num_steps=2, batch_size=4, precision="fp32", hang_timeout_s=1.0))
    (process,) = begin([SLOW, str(run.path), "30"])
    assert process.wait(120) == HANG_EXIT_CODE
    (told,) = (event for event in run.events() if event["event"] == "hang")
    assert told["doing"].startswith("making codes of clip lab/")
    assert "while making codes" in (run.path / "stacks-rank0.txt").read_text()


def test_strides_beyond_what_the_codes_were_trained_on_are_refused(make):
    run = make(strides_frames=(2, 9))
    with pytest.raises(ValueError, match=r"strides_frames \[2, 9\] go beyond the max_stride_frames 8"):
        execute(str(run.path))


def test_tracked_hands_are_codes_too_and_a_clip_without_one_is_named(make):
    run = make(actions="hand")
    with pytest.raises(FileNotFoundError, match=r"hands\.parquet: actions"):
        execute(str(run.path))
    takes = [f"{i:02d}" for i in range(CLIPS)]
    hands = [
        {"take_id": take, "frame": frame, "x_m": frame / 10, "y_m": 0.0, "z_m": 0.0, "opening": 1.0}
        for i, take in enumerate(takes)
        for frame in range(frames_of(i))
    ]
    file = run.inputs()["video"].path / "hands.parquet"
    pl.DataFrame(hands[frames_of(0) :]).write_parquet(file)
    with pytest.raises(ValueError, match="no tracked hand for clip 'lab/00'"):
        execute(str(run.path))
    pl.DataFrame(hands).write_parquet(file)
    execute(str(run.path))
    config = json.loads((run.path / "weights" / "config.json").read_text())
    means = np.array(config["code_mean"])  # [1 + K, 4]: metres x 10, of the frame 1, 2 and 5 ahead
    assert means[:, 3] == pytest.approx(10) and (np.diff(means[:, 0]) > 0).all()


@pytest.mark.parametrize("shape", [(3, 32), (2, 4), (2, 1)])
def test_codes_are_averaged_as_one_array_would_be(shape, tmp_path):
    lots = np.random.default_rng(1)
    some = [(2 + 3 * lots.normal(size=(int(lots.integers(1, 90)), *shape))).astype(np.float32) for _ in range(400)]
    write_latents(tmp_path, ((f"lab/{i:03d}", one) for i, one in enumerate(some)), 4000)
    mean, std = codes.mean_and_std(LatentShards.open(tmp_path))
    whole = np.concatenate(some)
    assert mean.dtype == std.dtype == np.float32
    assert np.array_equal(mean, whole.mean(0)) and np.array_equal(std, whole.std(0))


def test_averages_of_very_many_codes_stay_exact():
    class Clips(list):
        total_frames = 80 * 2**18

        def chunks(self):
            yield np.array([(2**18,)] * 80, np.dtype([("num_frames", np.int64)]))

    class Known:
        clips, num_tokens, dim = Clips(), 2, 1

        def windows(self, which, starts, length):
            return np.full((1, length, 2, 1), 1.0 + 2 * (which[0] % 2), np.float32)

    mean, std = codes.mean_and_std(Known())
    assert mean == pytest.approx(np.full((2, 1), 2.0), rel=1e-6)  # one sum in fp32 stops at 2^24
    assert std == pytest.approx(np.full((2, 1), 1.0), rel=1e-6)
