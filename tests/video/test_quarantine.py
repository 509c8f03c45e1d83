"""Broken clips are named once, replaced by arithmetic and counted, whoever reads and resumes; too many stop the run."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from egoscale.video.batches import WindowBatches
from egoscale.video.clip_index import index_clips
from egoscale.video.clips import WindowTable
from egoscale.video.quarantine import Quarantine
from egoscale.video.windows import FrameWindows

COUNT, BATCH, STEPS, LENGTH, SIZE = 40, 8, 25, 4, 16


@pytest.fixture
def damaged(tmp_path, numbered, write_video):
    """40 clips, catalogued whole; then clip 7 is cut off and clip 23 replaced by a shorter file (5 % of the clips)."""
    whole, short = write_video("whole.mp4", numbered(28)), write_video("short.mp4", numbered(14))
    for i in range(COUNT):
        (tmp_path / f"{i:02d}.mp4").write_bytes(whole.read_bytes())
    manifest = tmp_path / "manifest.parquet"
    pl.DataFrame(
        {
            "clip_id": [f"lab/{i:02d}" for i in range(COUNT)],
            "path": [str(tmp_path / f"{i:02d}.mp4") for i in range(COUNT)],
            "decoder": ["pyav"] * COUNT,
            "num_frames": [28] * COUNT,
            "fps_num": [10] * COUNT,
            "fps_den": [1] * COUNT,
        }
    ).write_parquet(manifest)
    clips = index_clips(manifest, tmp_path / "index")
    (tmp_path / "07.mp4").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "23.mp4").write_bytes(short.read_bytes())
    return clips


def draw(step, attempt):
    return np.random.default_rng([step, attempt, 5]).random(BATCH)


def opened(clips, file, fraction=0.05, event=None, **options):
    quarantine = Quarantine(file, COUNT, fraction, event)
    table = WindowTable.on_disk(clips, LENGTH)
    source = FrameWindows(clips, SIZE, cache_bytes=0)
    return WindowBatches(source, table, LENGTH, BATCH, draw, quarantine, num_steps=STEPS, **options)


@pytest.fixture
def unbroken(damaged, tmp_path):
    """Batches of a run that was never interrupted, by one thread."""
    with opened(damaged, tmp_path / "unbroken.jsonl") as batches:
        return [batches.at(step).copy() for step in range(STEPS)]


def test_samples_of_broken_clips_are_their_own_next_draws(damaged, tmp_path, unbroken):
    table = WindowTable.on_disk(damaged, LENGTH)
    source = FrameWindows(damaged, SIZE)
    lines = [json.loads(line) for line in (tmp_path / "unbroken.jsonl").read_text().splitlines()]
    since = {name: min(one["step"] for one in lines if one["clip"] == name) for name in ("lab/07", "lab/23")}
    replaced = 0
    for step in range(STEPS):
        for sample in range(BATCH):
            for attempt in range(100):
                clip, start = table.locate(draw(step, attempt)[sample])
                name, reads = f"lab/{int(clip):02d}", int(clip) != 7 and (int(clip) != 23 or start + LENGTH <= 14)
                if reads and since.get(name, STEPS) >= step:
                    break
                replaced += 1
            expected = source.windows([clip], [start], LENGTH)[0]
            assert np.array_equal(unbroken[step][sample], expected), (step, sample)
    assert replaced >= 5
    assert {one["clip"] for one in lines} == {"lab/07", "lab/23"}


@pytest.mark.parametrize("num_readers, steps_together", [(0, 3), (2, 1), (3, 4)])
def test_threads_read_the_same(damaged, tmp_path, unbroken, num_readers, steps_together):
    with opened(damaged, tmp_path / "q", num_readers=num_readers, steps_together=steps_together) as batches:
        for step in range(STEPS):
            assert np.array_equal(batches.at(step), unbroken[step]), step


@pytest.mark.parametrize("stopped, resumed", [(3, 0), (10, 4), (16, 16), (24, 11)])
def test_a_resumed_run_reads_the_same(damaged, tmp_path, unbroken, stopped, resumed):
    told = []
    options = dict(event=lambda event, **fields: told.append(fields["clip"]), num_readers=2, steps_together=2)
    with opened(damaged, tmp_path / "q", **options) as batches:
        for step in range(stopped):
            assert np.array_equal(batches.at(step), unbroken[step])
    with opened(damaged, tmp_path / "q", **options) as batches:
        for step in range(resumed, STEPS):
            assert np.array_equal(batches.at(step), unbroken[step]), step
        seen = batches.seen(STEPS)
        assert len(batches.quarantine) == 2
    assert sorted(told) == ["lab/07", "lab/23"], "each is told once, over both runs"
    with opened(damaged, tmp_path / "unbroken.jsonl") as batches:
        assert batches.seen(STEPS) == seen
    assert seen.hours_seen == pytest.approx(STEPS * BATCH * LENGTH / 10 / 3600)
    assert seen.epochs == pytest.approx(STEPS * BATCH * LENGTH / (38 * 28))


def test_ranks_that_read_their_own_samples_agree(damaged, tmp_path, unbroken):
    halves = [np.arange(BATCH) < BATCH // 2, np.arange(BATCH) >= BATCH // 2]
    ranks = [opened(damaged, tmp_path / "q", rows=rows, num_readers=2) for rows in halves]
    for step in range(STEPS):
        read = [batches.at(step) for batches in ranks]
        assert np.array_equal(read[0] + read[1], unbroken[step]), step
        assert ranks[0].ids(step) == ranks[1].ids(step) or step == STEPS - 1
    for batches in ranks:
        batches.close()


def test_past_the_limit_the_run_stops_with_the_list(damaged, tmp_path):
    file = tmp_path / "q"
    with opened(damaged, file, fraction=0.03) as batches, pytest.raises(ValueError) as caught:
        for step in range(STEPS):
            batches.at(step)
    said = str(caught.value)
    assert "2 of 40 clips cannot be read any more, beyond max_quarantined_fraction = 0.03" in said
    assert "lab/07: " in said and "lab/23: " in said and str(file) in said
    with pytest.raises(ValueError, match="2 of 40 clips"):
        Quarantine(file, COUNT, 0.03)
    assert len(Quarantine(file, COUNT, 0.05)) == 2


def test_every_clip_broken_ends(damaged, tmp_path):
    for i in range(COUNT):
        Path(damaged.texts(i)["path"]).unlink()
    with opened(damaged, tmp_path / "q", fraction=1.0) as batches, pytest.raises(ValueError, match="in quarantine"):
        for step in range(STEPS):
            batches.at(step)


def test_the_file_survives_a_torn_line_and_other_writers(tmp_path):
    file, told = tmp_path / "run" / "quarantine.jsonl", []
    one = Quarantine(file, 10, event=lambda event, **fields: told.append((event, fields["clip"])))
    one.add("a", "gone", step=3, sample=1)
    with file.open("a") as torn:
        torn.write('{"clip": "b", "st')
    two = Quarantine(file, 10, event=lambda event, **fields: told.append((event, fields["clip"])))
    assert list(two.reasons) == ["a"] and "b" not in two
    two.add("a", "gone still", step=2, sample=0)
    two.add("c", "no such file", step=9)
    assert one.reasons == {"a": "gone"}
    one.refresh()
    assert one.reasons == {"a": "gone", "c": "no such file"} and len(one) == 2
    assert told == [("quarantine", "a"), ("quarantine", "c")]
    assert one.bars("a", 4, 7) and one.bars("a", 3, 1) and one.bars("a", 2, 0)
    assert not one.bars("a", 2, 1) and not one.bars("c", 9, 1) and one.bars("c", 9, 0)


def test_a_clip_whose_event_a_kill_took_is_told_at_the_next_start(tmp_path):
    file, events = tmp_path / "quarantine.jsonl", []

    def event(name, **fields):
        events.append(fields)

    def told():
        return [fields["clip"] for fields in events]

    Quarantine(file, 10, event=event).add("a", "gone", step=3)
    Quarantine(file, 10).add("b", "broken", step=5)  # killed between the line and its event
    for _ in range(2):
        Quarantine(file, 10, event=event, told=told)
    assert events == [{"clip": "a", "reason": "gone", "step": 3}, {"clip": "b", "reason": "broken", "step": 5}]


def add_many(file, first, answers):
    told = []
    quarantine = Quarantine(file, 1000, event=lambda event, **fields: told.append(fields["clip"]))
    for number in range(50):
        quarantine.add(f"clip-{number}", "broken", step=first)
    answers.put(told)


def test_processes_tell_each_clip_once(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=add_many, args=(tmp_path / "q", i, answers)) for i in range(4)]
    for process in processes:
        process.start()
    told = [clip for _ in processes for clip in answers.get(timeout=30)]
    for process in processes:
        process.join()
    assert sorted(told) == sorted(f"clip-{number}" for number in range(50))
    assert len(Quarantine(tmp_path / "q", 1000)) == 50


TRAIN_STEPS = 250

STAGE = """
import sys
from egoscale.stages import execute
execute(sys.argv[1])
"""


@pytest.fixture
def stage_run(damaged, tmp_path):
    """make(**recipe): a tokenizer run on the damaged clips, with one shared, finished subset."""
    from egoscale.recipe import BlockSpec, SubsetRecipe, TokenizerRecipe, TrainSpec, VideoTokenizerSpec
    from egoscale.sweep.ledger import RunFolder

    subset = RunFolder.create(tmp_path / "runs", SubsetRecipe(hours=1.0), {})
    manifest = pl.read_parquet(tmp_path / "manifest.parquet")
    manifest.write_parquet(subset.path / "manifest.parquet")
    manifest[:5].write_parquet(subset.path / "heldout.parquet")
    subset.finish({})
    block = BlockSpec(width=16, num_layers=1, num_heads=2, num_kv_heads=1, temporal_every=0, num_registers=0)

    def make(seed=0, **recipe):
        return RunFolder.create(
            tmp_path / "runs",
            TokenizerRecipe(
                tokenizer=VideoTokenizerSpec(
                    image_size_px=16, patch_size_px=8, num_latents=4, latent_dim=4, encoder=block, decoder=block
                ),
                train=TrainSpec(num_steps=TRAIN_STEPS, batch_size=BATCH, save_every_steps=5),
                window_frames=LENGTH,
                seed=seed,
                **recipe,
            ),
            {"subset": subset},
        )

    return make


def killed(run):
    """Starts the run in a process of its own and kills it after its first checkpoint."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", STAGE, str(run.path)], env=environ, stderr=subprocess.DEVNULL)
    while not list(run.path.glob("*/latest")) and not list(run.path.glob("*/*/latest")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run.result() is None, "killed too late"


def test_training_goes_on_without_five_percent_of_its_clips(stage_run):
    """Once unbroken, once killed -9 in the middle and resumed: the weights are the same bytes."""
    from egoscale.stages import execute

    results, weights = [], []
    for kill in (False, True):
        run = stage_run(num_readers=2 + kill)  # another run folder, the same batches
        if kill:
            killed(run)
        execute(str(run.path))
        results.append(run.result())
        weights.append((run.path / "weights" / "weights.safetensors").read_bytes())
        named = [event["clip"] for event in run.events() if event["event"] == "quarantine"]
        assert sorted(named) == ["lab/07", "lab/23"], "once each, over both attempts"
    assert weights[0] == weights[1]
    for result in results:
        assert result["quarantined"] == 2
        assert result["hours_seen"] == pytest.approx(TRAIN_STEPS * BATCH * LENGTH / 10 / 3600)
        assert 0 < result["unique_hours_seen"] <= 38 * 28 / 10 / 3600 + 14 / 10 / 3600
        assert result["epochs"] == pytest.approx(TRAIN_STEPS * BATCH * LENGTH / (38 * 28))
    assert results[0]["unique_hours_seen"] == results[1]["unique_hours_seen"]


def test_a_recipe_that_allows_fewer_stops_with_the_list(stage_run):
    from egoscale.stages import execute

    run = stage_run(max_quarantined_fraction=0.01)
    with pytest.raises(ValueError, match=r"cannot be read any more, beyond max_quarantined_fraction = 0\.01"):
        execute(str(run.path))
    assert run.result() is None and (run.path / "quarantine-manifest.jsonl").is_file()
