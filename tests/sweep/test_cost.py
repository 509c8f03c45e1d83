"""What a sweep would cost: by finished runs, else by the dry run, else unknown; chains and slots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_stages

from egoscale.sweep.bill import Cost, Forecast, lines
from egoscale.sweep.cost import cost
from egoscale.sweep.makespan import makespan
from egoscale.sweep.plan import Job, plan
from egoscale.sweep.profile import Profile, ResourceSpec

GRID = ("grid.hours=[0, 0.1, 0.25]", "grid.demos=[5, 10]", "grid.seeds=[0, 1]")
TRAINED = ("tokenizer", "latent-action", "world", "finetune")


def said(job: Job, device: str) -> Forecast | None:
    """An hour, a GB of weights and 3 GB of checkpoints for everything that trains; twice that on an A100."""
    slower = 2 if device == "A100" else 1
    return Forecast(1.0 * slower, 1e9, 3e9) if job.stage in TRAINED else None


def of(found: Cost, stage: str) -> object:
    return next(one for one in found.stages if one.stage == stage)


def test_runs_by_stage_and_what_several_cells_share(tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep(*GRID))
    found = cost(planned, tmp_path, 2)
    runs = {one.stage: (one.runs, one.shared) for one in found.stages}
    # Each subset, latent action and world model serves two numbers of demonstrations; the tokenizer all cells.
    assert runs["subset"] == (4, 4) and runs["world"] == (4, 4) and runs["tokenizer"] == (1, 1)
    assert runs["finetune"] == (12, 0) and runs["evaluate"] == (12, 0)
    toy_stages.compute(tmp_path, plan(toy_stages.sweep("grid.seeds=[0]")))
    again = cost(planned, tmp_path, 2)
    assert of(again, "world").states == {"done": 1, "running": 0, "failed": 0, "interrupted": 0, "new": 3}
    job = next(job for job in planned.jobs.values() if job.stage == "world" and job.run(tmp_path).state() == "new")
    job.create(tmp_path).fail("no memory")
    assert of(cost(planned, tmp_path, 2), "world").states["failed"] == 1


def test_what_nobody_knows_is_unknown_and_sums_are_lower_limits(tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep(*GRID))
    bare = cost(planned, tmp_path, 2)
    assert of(bare, "world").gpu_hours is None and of(bare, "subset").gpu_hours == 0
    assert set(bare.unknown["gpu_hours"]) == {*TRAINED, "encode", "evaluate"}
    told = cost(planned, tmp_path, 2, forecast=said)
    assert of(told, "world").gpu_hours == 4 and of(told, "world").gpu_hours_from == "dry run"
    assert told.gpu_hours == 1 + 4 + 4 + 12 and told.unknown["gpu_hours"] == ("encode", "evaluate")
    assert told.disk_bytes["weights"] == 21e9 and told.disk_bytes["checkpoints"] == 2 * 3e9  # two jobs at a time
    film = planned.sweep.film
    assert film is not None
    frames = film.hours * 3600 * film.fps_hz
    assert told.disk_bytes["latents"] == pytest.approx(frames * 64 * 16 * 2)
    text = "\n".join(lines(told))
    assert "at least 21 of an H100" in text and "GPU-hours of encode, evaluate" in text


def test_finished_runs_count_before_the_dry_run(tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep(*GRID))
    worlds = [job for job in planned.jobs.values() if job.stage == "world"]
    run = worlds[0].create(tmp_path)
    times = ("2026-01-01T00:00:00+00:00", "2026-01-01T02:00:00+00:00")  # two hours on four GPUs
    events = [{"time": times[0], "event": "start", "gpus": 4}, {"time": times[1], "event": "end"}]
    (run.path / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + "\n")
    (run.path / "weights").mkdir()
    (run.path / "weights/model.safetensors").write_bytes(bytes(5000))
    (run.path / "result.json").write_text("{}")
    found = cost(planned, tmp_path, 2, forecast=said)
    world = of(found, "world")
    assert world.gpu_hours == pytest.approx(3 * 8) and world.gpu_hours_from == "finished runs"
    assert world.hours == pytest.approx(3 * 2) and world.hours_from == "finished runs"
    assert world.disk_bytes == pytest.approx(3 * 5000, rel=1) and world.disk_from == "finished runs"
    (run.path / "events.jsonl").write_text("\n".join(json.dumps({**e, "gpus": 0}) for e in events) + "\n")
    assert of(cost(planned, tmp_path, 2, forecast=said), "world").gpu_hours_from == "dry run"  # a CPU tells nothing


def test_a_profile_says_on_what_and_how_many_at_a_time(tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep(*GRID))
    classes = {
        "default": ResourceSpec(),
        "node": ResourceSpec(tasks_per_node=8, gpus_per_node=8, gpu_type="a100", max_running=2, time_limit_min=10),
    }
    stages = dict.fromkeys(("tokenizer", "latent-action", "world", "finetune"), "node")
    found = cost(planned, tmp_path, 2, Profile(name="site", resources=classes, stages=stages), said)
    assert of(found, "world").gpu_hours == 8 and of(found, "world").hours == 1  # 2 GPU-hours on 8 GPUs, four runs
    assert of(found, "encode").gpu_hours == 0  # its class has no GPU
    assert found.jobs is None and found.profile == "site"
    chain = [step.run.split("/")[0] for step in found.critical]
    assert chain[-1] == "evaluate" and "world" in chain and "tokenizer" in chain
    assert found.critical_hours == pytest.approx(sum(step.hours or 0 for step in found.critical))
    assert found.wall_hours > found.critical_hours  # four world models, two at a time
    assert any("world takes about 0.25 h, more than its time limit of 0.167 h" in note for note in found.notes)
    assert found.document()["stages"][0]["stage"] == "film"


def test_the_gpu_of_the_gpu_hours_is_the_one_they_are_counted_on(tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep(*GRID))
    classes = {
        "default": ResourceSpec(),
        "one": ResourceSpec(gpus_per_node=1, gpu_type="a100"),
        "many": ResourceSpec(gpus_per_node=8, gpu_type="nvidia_b200"),
    }

    def on(stages: dict[str, str], device: str | None = None) -> tuple[Cost, str]:
        found = cost(planned, tmp_path, 2, Profile(name="site", resources=classes, stages=stages), said, device)
        return found, next(line for line in lines(found) if line.startswith("GPU-hours"))

    found, line = on(dict.fromkeys(TRAINED, "one"))
    assert line.split(maxsplit=1)[1] == "42 of an A100" and found.device == "A100" == of(found, "world").device
    assert of(found, "encode").device == ""
    found, line = on({"tokenizer": "one", "world": "many"})
    assert line.split(maxsplit=1)[1] == "2 of an A100, 4 of an NVIDIA B200" and found.device == "A100, NVIDIA B200"
    assert found.document()["stages"][-1]["device"] == ""
    found, line = on({"tokenizer": "one", "world": "many"}, device="B200")
    assert line.split(maxsplit=1)[1] == "5 of a B200" and found.device == "B200"
    found, line = on({})
    assert line.split() == ["GPU-hours", "0"] and found.device == ""


def test_slots_and_chains_decide_the_wall_time() -> None:
    planned = plan(toy_stages.sweep("grid.hours=[0.1, 0.25]", "grid.seeds=[0, 1]"))
    jobs = {key: job for key, job in planned.jobs.items() if job.stage in ("world", "finetune")}
    hours = {key: 3.0 if job.stage == "world" else 1.0 for key, job in jobs.items()}
    place = dict.fromkeys(jobs, "")
    assert makespan(jobs, hours, place, {"": 1}) == 4 * 3 + 4 * 1
    assert makespan(jobs, hours, place, {"": 100}) == 4
    by_stage = {key: job.stage for key, job in jobs.items()}
    assert makespan(jobs, hours, by_stage, {"world": 2, "finetune": 1}) == 8
    assert makespan({}, {}, {}, {"": 1}) == 0


def test_nothing_left_costs_nothing(tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep())
    toy_stages.compute(tmp_path, planned)
    found = cost(planned, tmp_path, 2, forecast=said)
    assert (found.done, found.gpu_hours, found.wall_hours, found.critical) == (found.runs, 0, 0, ())
    assert "nothing left to run" in lines(found)[-1]
