"""Spikes, time limits: what a run notices about itself."""

from __future__ import annotations

import json
import time

import pytest

from egoscale.train.guards import Requeue, Spikes, seconds_left, stalled


def test_a_spike_is_told_with_its_clips_and_does_not_raise_the_level():
    told: list[dict] = []
    spikes = Spikes(6.0, lambda name, **fields: told.append({"name": name, **fields}))
    for step in range(200):
        assert not spikes.add(step, 1.0 + 0.01 * (step % 7), list)
    for step in (200, 201):
        assert spikes.add(step, 2.0, lambda: ["p03/take-7"])
    assert not spikes.add(202, 1.02, list)
    assert [(e["name"], e["step"], e["clips"]) for e in told] == [("spike", s, ["p03/take-7"]) for s in (200, 201)]
    assert told[0]["deviations"] > 6 and len(spikes.recent) == Spikes.WINDOW
    again = Spikes(6.0, lambda *_, **__: None, json.loads(json.dumps(spikes.recent)))
    assert again.recent == spikes.recent


def test_few_losses_and_falling_losses_are_no_spikes():
    spikes = Spikes(6.0, lambda *_, **__: None)
    assert not any(spikes.add(step, loss, list) for step, loss in enumerate([1.0, 50.0, 0.2]))
    falling = Spikes(6.0, lambda *_, **__: None)
    assert not any(falling.add(step, 10.0 * 0.97**step, list) for step in range(300))
    assert not Spikes(0.0, lambda *_, **__: None).add(999, 1e9, list)


def test_the_limit_of_a_job():
    assert seconds_left({}) == float("inf")
    now = int(time.time())
    assert seconds_left({"SLURM_JOB_END_TIME": str(now + 60)}) == pytest.approx(60, abs=2)
    assert seconds_left({"EGOSCALE_END_TIME": str(now + 9), "SLURM_JOB_END_TIME": "NONE"}) == pytest.approx(9, abs=2)


def test_a_run_saves_and_requeues_before_its_time_limit(worker, alone, tmp_path, monkeypatch):
    unbroken = worker.run(tmp_path / "unbroken", alone, worker.spec())
    monkeypatch.setenv("EGOSCALE_END_TIME", str(int(time.time()) + 100))
    with pytest.raises(Requeue) as stop:
        worker.run(tmp_path / "run", alone, worker.spec(stop_before_limit_s=180.0))
    assert stop.value.reason == "time limit" and stop.value.code == 85
    assert [e["event"] for e in worker.events(tmp_path / "run")][-3:] == ["signal", "requeue", "save"]
    assert worker.events(tmp_path / "run")[-1]["step"] == 1
    monkeypatch.delenv("EGOSCALE_END_TIME")
    assert worker.run(tmp_path / "run", alone, worker.spec())["loss"] == unbroken["loss"]


def test_a_run_told_to_stop_at_a_bad_number_does(worker, alone, tmp_path):
    with pytest.raises(FloatingPointError, match=r"1 step .* the last at step 5.*clip-4-5"):
        worker.run(tmp_path, alone, worker.spec(on_bad_step="stop", micro_batch_size=1), worker.nan_at(4))


def test_a_spike_in_a_run_names_its_clips(worker, alone, tmp_path):
    def at(step):
        batch = worker.batch_at(step)
        if step == 60:
            batch["y"] += 100.0
        return batch

    worker.run(tmp_path, alone, worker.spec(num_steps=64), at)
    [spike] = [event for event in worker.events(tmp_path) if event["event"] == "spike" and event["step"] == 61]
    assert spike["clips"][0] == "clip-60-0"


def test_a_requeued_run_that_saves_nothing_is_not_started_for_ever():
    def attempts(*saves):
        return [{"event": name} for saved in saves for name in ("start", *(["save"] if saved else []))]

    twice = {"SLURM_RESTART_COUNT": "2"}
    assert "the last 2 attempts saved nothing" in stalled(attempts(True, False, False), twice)
    assert not stalled(attempts(False, True), twice)
    assert not stalled(attempts(True, False, True, False), twice)
    assert not stalled(attempts(False), twice)
    coding = [{"event": name} for _ in range(3) for name in ("start", "part", "part")]
    assert not stalled(coding, twice)  # it has not come to its first step, and comes nearer
    assert not stalled(attempts(False, False, False), {"SLURM_RESTART_COUNT": "1"})
    assert not stalled(attempts(False, False, False), {})  # by hand
