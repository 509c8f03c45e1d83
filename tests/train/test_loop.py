"""One process: resuming, signals, bad numbers. What they equal is an unbroken run."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from egoscale.train.checkpoint import discard_checkpoints
from egoscale.train.guards import REQUEUE_EXIT_CODE, Requeue


def test_killed_run_equals_unbroken_run(worker, alone, start, tmp_path):
    [process] = start("kill", tmp_path / "killed")
    unbroken = worker.Tiny()
    result = worker.run(tmp_path / "unbroken", alone, worker.spec(), model=unbroken)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert worker.trace(tmp_path / "killed")[-1]["step"] == 7  # past the checkpoint of step 5
    model = worker.Tiny()
    resumed = worker.run(tmp_path / "killed", alone, worker.spec(), model=model)
    assert worker.trace(tmp_path / "killed") == worker.trace(tmp_path / "unbroken")
    assert [line["step"] for line in worker.trace(tmp_path / "killed")] == list(range(1, 13))
    for name, weight in unbroken.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    assert resumed["loss"] == result["loss"] and resumed["steps"] == 12
    assert resumed["samples_per_s"] > 0 and 0 <= resumed["wait_fraction"] <= 1
    assert [e["step"] for e in worker.events(tmp_path / "killed") if e["event"] == "resume"] == [5]


def test_finished_run_is_not_trained_again(worker, alone, tmp_path):
    first = worker.run(tmp_path, alone, worker.spec())
    again = worker.run(tmp_path, alone, worker.spec(), at=lambda step: pytest.fail(f"asked for step {step}"))
    assert again == first
    discard_checkpoints(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "deepspeed.json",
        "events.jsonl",
        "goodput.jsonl",
        "metrics.jsonl",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_finishes_the_step_and_saves(worker, alone, tmp_path, number):
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Requeue) as stopped:
        worker.run(tmp_path, alone, worker.spec(), worker.killed_at(6, number))
    if number != signal.SIGINT:
        assert stopped.value.code == REQUEUE_EXIT_CODE == 85
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000007"
    kinds = [event["event"] for event in worker.events(tmp_path)]
    assert kinds == ["save", "signal", *(["requeue"] if number != signal.SIGINT else []), "save"]
    assert signal.getsignal(number) == handler
    worker.run(tmp_path, alone, worker.spec())
    assert [line["step"] for line in worker.trace(tmp_path)] == list(range(1, 13))


def test_a_preempted_process_exits_with_the_requeue_code(start, tmp_path):
    [process] = start("term", tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == REQUEUE_EXIT_CODE, output
    assert output == ""  # neither DeepSpeed nor torch has anything to say


def test_sigterm_at_any_time_saves_within_a_step(worker, alone, start, tmp_path, monkeypatch):
    monkeypatch.setenv("ENDING", "")
    folder, lots = tmp_path / "run", random.Random()

    def lines():
        return len(worker.trace(folder)) if (folder / "metrics.jsonl").is_file() else 0

    for more in (lots.randrange(1, 9), lots.randrange(1, 9)):  # steps of 50 ms that it may do before
        wanted = lines() + more
        [process] = start("slow", folder)
        while lines() < wanted and process.poll() is None:
            time.sleep(0.01)
        time.sleep(lots.uniform(0, 0.06))
        done = lines()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=300)
        assert (process.returncode, output) == (REQUEUE_EXIT_CODE, "")
        told = {event["event"]: event.get("step") for event in worker.events(folder)[-4:]}
        # One step was being done, and one may have ended while we looked.
        assert told["signal"] == told["requeue"] == told["save"] <= done + 2
        assert (folder / "checkpoints" / "latest").read_text() == f"step-{told['save']:08d}"
    settings = worker.spec(num_steps=40, save_every_steps=5)
    worker.run(tmp_path / "unbroken", alone, settings)
    worker.run(folder, alone, settings)
    assert worker.trace(folder) == worker.trace(tmp_path / "unbroken")


@pytest.mark.parametrize("stage", [0, 2])
def test_bad_numbers_are_skipped_and_counted(worker, alone, tmp_path, stage):
    settings = worker.spec(zero_stage=stage, micro_batch_size=4)
    held = {}

    def weights_at_step(model):
        held[len(held)] = model.inner.weight.detach().clone()
        return {}

    result = worker.run(tmp_path, alone, settings, worker.nan_at(4), validate=weights_at_step, validate_every_steps=1)
    assert result["bad_steps"] == 1 and result["steps"] == 12
    assert torch.equal(held[3], held[4]) and not torch.equal(held[4], held[5])
    assert torch.isfinite(held[11]).all()
    lines = worker.trace(tmp_path)
    assert lines[4]["loss"] is None and lines[4]["step"] == 5 and lines[4]["bad_steps"] == 1
    clean = worker.run(tmp_path / "clean", alone, settings)
    assert clean["bad_steps"] == 0
    rates = [line["learning_rate"] for line in worker.trace(tmp_path / "clean")]
    assert [line["learning_rate"] for line in lines] == rates  # the schedule has not shifted
    [skip] = [event for event in worker.events(tmp_path) if event["event"] == "skip"]
    assert skip["step"] == 5 and skip["clips"] == [f"clip-4-{i}" for i in range(4, 8)]  # the micro-batch of row 5


def test_an_infinite_loss_with_finite_gradients_is_skipped(worker, alone, tmp_path):
    class Spiked(worker.Tiny):
        def forward(self, batch):
            outputs = super().forward(batch)
            return {**outputs, "loss": outputs["loss"] + torch.inf}

    model = Spiked()
    before = model.inner.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="max_bad_steps = 2"):
        worker.run(tmp_path, alone, worker.spec(max_bad_steps=2), model=model)
    assert torch.equal(before, model.inner.weight)


def test_too_many_bad_steps_stop_the_run_naming_the_clip(worker, alone, tmp_path):
    def same_clip(step):
        return ["broken.mp4" if i == 5 else f"clip-{step}-{i}" for i in range(8)]

    settings = worker.spec(max_bad_steps=2, micro_batch_size=1)
    with pytest.raises(FloatingPointError, match=r"3 steps.*at step 9.*broken\.mp4 \(3x\)"):
        worker.run(tmp_path, alone, settings, worker.nan_at(2, 6, 8, 10), batch_ids=same_clip)
    # The count of bad steps survives a restart.
    with pytest.raises(FloatingPointError, match=r"3 steps.*at step 9"):
        worker.run(tmp_path, alone, settings, worker.nan_at(2, 6, 8, 10), batch_ids=same_clip)


def test_a_run_told_to_stop_says_so_and_goes_on_by_what_it_says(worker, alone, tmp_path):
    """The remedy is a command; its recipe goes on from the checkpoint past the step that stopped the run."""
    from egoscale.recipe import TokenizerRecipe
    from egoscale.stages.carrying import carry
    from egoscale.sweep.ledger import RunFolder

    for settings, said, bad in (
        ({"on_bad_step": "stop", "max_bad_steps": 10}, r'1 step had .* step 9; train\.on_bad_step = "stop"\.', [8]),
        ({"on_bad_step": "stop", "max_bad_steps": 0}, r'1 step had .* step 7; train\.on_bad_step = "stop"\.', [6]),
        ({"max_bad_steps": 1}, r"2 steps had .* step 9; train\.max_bad_steps = 1\.", [6, 8]),
    ):
        recipe = TokenizerRecipe(train=worker.spec(**settings).model_dump())
        run = RunFolder.create(tmp_path / "-".join(map(str, bad)), recipe, {})
        with pytest.raises(FloatingPointError, match=said) as stopped:
            identity = {"run": str(run), "part": "", "seed": 0}
            worker.run(run.path, alone, recipe.train, worker.nan_at(*bad), identity=identity)
        assert "makes another run, from step 0" in str(stopped.value)
        [remedy] = re.findall(r"`egoscale checkpoint reshape RUN --set (.+?)`", str(stopped.value))
        new, step = carry(run, remedy.split(" --set "))
        assert step == 5
        identity["run"] = str(new)
        result = worker.run(new.path, alone, new.recipe().train, worker.nan_at(*bad), identity=identity)
        assert (result["steps"], result["bad_steps"]) == (12, len(bad))


def test_another_identity_is_refused(worker, alone, tmp_path):
    worker.run(tmp_path, alone, worker.spec())
    with pytest.raises(ValueError, match="recipe: 'tiny' in the checkpoint, 'other' now"):
        worker.run(tmp_path, alone, worker.spec(), identity={"recipe": "other", "seed": 0})


def test_damaged_latest_falls_back_loudly(worker, alone, tmp_path):
    unbroken = worker.run(tmp_path / "unbroken", alone, worker.spec())
    worker.run(tmp_path, alone, worker.spec())
    [weights] = (tmp_path / "checkpoints" / "step-00000012").rglob("*model_states.pt")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF
    weights.write_bytes(content)
    assert worker.run(tmp_path, alone, worker.spec())["loss"] == unbroken["loss"]
    told = [event for event in worker.events(tmp_path) if event["event"] in ("fallback", "resume")]
    assert [event["checkpoint"] for event in told] == ["step-00000012", "step-00000010"]
    assert "has changed" in told[0]["reason"]
    assert worker.trace(tmp_path) == worker.trace(tmp_path / "unbroken")


def test_validation_and_weights(worker, alone, tmp_path):
    seen, full = [], {}

    def validate(model):
        seen.append(model.training)
        return {"heldout_loss": float(len(seen))}

    model = worker.Tiny()
    result = worker.run(
        tmp_path,
        alone,
        worker.spec(zero_stage=3, precision="bf16", log_every_steps=6),
        model=model,
        validate=validate,
        validate_every_steps=5,
        weights=full.update,
        learning_rate_scale=lambda name: 0.0 if name.startswith("inner") else 1.0,
        forward_flops_per_sample=2.0 * 8 * 13,
        frames_per_sample=2,
        tokens_per_frame=5,
    )
    assert seen == [False, False, False] and result["heldout_loss"] == 3.0  # steps 5, 10 and the last
    assert [line["step"] for line in worker.trace(tmp_path)] == [1, 5, 6, 10, 12]
    assert result["precision"] == "bf16" and 0 < result["mfu"] < 1
    assert result["frames_per_s"] == pytest.approx(2 * result["samples_per_s"])
    assert result["tokens_per_s"] == pytest.approx(10 * result["samples_per_s"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:  # the share of a matrix product that was measured once, at the start
        rate = 3 * 2.0 * 8 * 13 * line["samples_per_s"] / result["gemm_flops_per_s"]
        assert line["mfu"] == pytest.approx(rate) and line["tokens_per_s"] == 5 * line["frames_per_s"]
    assert result["num_parameters"] == 2 * 13 + 13 + 1
    assert torch.equal(model.inner.weight, worker.Tiny().inner.weight)  # frozen
    assert not torch.equal(model.outer.weight, worker.Tiny().outer.weight)
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, full[name])
    model(worker.batch_at(0))["loss"].backward()  # an ordinary module again


@pytest.mark.parametrize("stage", [1, 3])
def test_what_fails_after_the_last_step_costs_no_step(worker, alone, tmp_path, stage):
    settings = worker.spec(zero_stage=stage, log_every_steps=5)

    def measured(model):
        with torch.no_grad():
            return {"heldout_loss": float(model(worker.batch_at(99))["loss"])}

    def broken(model):
        raise RuntimeError("invalid configuration argument")

    def no_step(step):
        pytest.fail(f"asked for step {step}")

    whole, failed, stopped = (tmp_path / name for name in ("whole", "failed", "stopped"))
    unbroken = worker.run(whole, alone, settings, validate=measured)
    with pytest.raises(RuntimeError, match="invalid configuration"):
        worker.run(failed, alone, settings, validate=broken)
    assert (failed / "checkpoints" / "latest").read_text() == "step-00000012"
    with pytest.raises(Requeue):  # its last line is written, then it is stopped
        worker.run(stopped, alone, settings, worker.killed_at(11, signal.SIGTERM), validate=measured)
    for folder in (failed, stopped):
        resumed = worker.run(folder, alone, settings, no_step, validate=measured)
        assert worker.trace(folder) == worker.trace(whole)
        assert [line["step"] for line in worker.trace(folder)] == [1, 5, 10, 12]
        for name in ("loss", "heldout_loss", "learning_rate"):
            assert resumed[name] == unbroken[name]


def test_config_is_derived_and_merged(worker, alone, tmp_path):
    extra = {"zero_optimization": {"reduce_bucket_size": 77}, "steps_per_print": 10**9}
    worker.run(tmp_path, alone, worker.spec(num_steps=1, zero_stage=1, micro_batch_size=2, deepspeed=extra))
    config = json.loads((tmp_path / "deepspeed.json").read_text())
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (8, 2)
    assert config["gradient_accumulation_steps"] == 4
    assert config["zero_optimization"]["stage"] == 1
    assert config["zero_optimization"]["reduce_bucket_size"] == 77


def test_rooms_import_without_deepspeed_and_mlflow():
    rooms = "egoscale.train.loop, egoscale.train.tracking"
    code = f"import sys, {rooms}; print({{'deepspeed', 'mlflow'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
