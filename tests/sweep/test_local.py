"""The local executor: everything once, failures alone, and no way of stopping it loses what is finished."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_stages
from rich.console import Console
from toy_stages import behave, compute, sweep

from egoscale.sweep import local, progress
from egoscale.sweep.ledger import RunFolder, collect
from egoscale.sweep.plan import Plan, plan
from egoscale.sweep.progress import Estimate, duration

NUM_JOBS = 13


@pytest.fixture
def planned() -> Plan:
    found = plan(sweep())
    assert len(found.jobs) == NUM_JOBS
    return found


def starts(root: Path) -> dict[str, int]:
    """How often each run was started."""
    folders = [RunFolder(path.parent) for path in root.glob("*/*/recipe.toml")]
    return {str(run): sum(event["event"] == "start" for event in run.events()) for run in folders}


def states(root: Path, planned: Plan) -> dict[str, str]:
    return {str(job): job.run(root).state() for job in planned.jobs.values()}


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def start_sweep(root: Path) -> subprocess.Popen[str]:
    paths = [str(Path(toy_stages.__file__).parent), str(toy_stages.RECIPE.parents[2])]
    code = f"import sys; sys.path[:0] = {paths!r}; import toy_stages; toy_stages.main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def num_done(root: Path) -> int:
    return len(list(root.glob("*/*/result.json")))


def holders(root: Path) -> list[int]:
    found = []
    for lock in root.glob("*/*/lock"):
        try:
            found.append(int(json.loads(lock.read_text())["pid"]))
        except (FileNotFoundError, ValueError):
            continue
    return found


def test_everything_is_computed_once_and_the_second_call_computes_nothing(tmp_path: Path, planned: Plan) -> None:
    said = io.StringIO()
    done = compute(tmp_path, planned, console=Console(file=said))
    assert done.complete
    assert (done.done, done.computed) == (NUM_JOBS, NUM_JOBS)
    assert set(states(tmp_path, planned).values()) == {"done"}
    assert set(starts(tmp_path).values()) == {1}
    assert f"{NUM_JOBS}/{NUM_JOBS} jobs done" in said.getvalue()
    assert collect(tmp_path, planned.jobs.values())["successes"].to_list() == [3, 3]
    start = time.monotonic()
    again = compute(tmp_path, planned)
    assert (again.complete, again.computed) == (True, 0)
    assert time.monotonic() - start < 1.0
    assert set(starts(tmp_path).values()) == {1}


def test_a_larger_grid_computes_only_what_is_new(tmp_path: Path, planned: Plan) -> None:
    compute(tmp_path, planned)
    larger = plan(sweep("grid.demos=[5, 10]"))
    assert compute(tmp_path, larger).computed == len(larger.jobs) - NUM_JOBS == 4


def test_inputs_of_what_is_done_are_not_asked_for_again(tmp_path: Path, planned: Plan) -> None:
    compute(tmp_path, planned)
    for stage in ("film", "encode"):  # a user makes room
        for result in (tmp_path / stage).glob("*/result.json"):
            result.unlink()
    assert compute(tmp_path, planned).computed == 0


def test_a_failure_blocks_only_what_needs_it_and_is_tried_again_later(tmp_path: Path, planned: Plan) -> None:
    behave(tmp_path, world="fail")
    done = compute(tmp_path, planned)
    assert not done.complete
    assert [name.partition("/")[0] for name in done.failed] == ["world"]
    assert "clip kitchen/17" in next(iter(done.failed.values()))
    assert sorted(name.partition("/")[0] for name in done.blocked) == ["evaluate", "finetune"]
    assert done.done == NUM_JOBS - 3  # the cell from scratch is finished
    failed = RunFolder(tmp_path / next(iter(done.failed)))
    assert failed.state() == "failed"
    assert "Traceback" in (failed.path / "log.txt").read_text()

    behave(tmp_path)
    assert compute(tmp_path, planned).complete
    again = starts(tmp_path)
    assert again.pop(str(failed)) == 2
    assert set(again.values()) == {1}


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("full", "the disk is full (weights.bin)"),
        ("killed", "killed by SIGKILL: out of memory?"),
        ("exit", "exited with code 3"),
        ("nothing", "left no result.json"),
    ],
)
def test_reasons_are_told(tmp_path: Path, planned: Plan, behaviour: str, reason: str) -> None:
    behave(tmp_path, film=behaviour)
    done = compute(tmp_path, planned)
    assert reason in next(iter(done.failed.values()))
    run = RunFolder(tmp_path / next(iter(done.failed)))
    assert run.state() == "failed"
    assert reason in run.events()[-1]["reason"]


def test_a_stage_that_saved_and_wants_to_go_on_is_started_again(tmp_path: Path, planned: Plan) -> None:
    behave(tmp_path, tokenizer="requeue")
    assert compute(tmp_path, planned).complete
    assert sum(starts(tmp_path).values()) == NUM_JOBS + 1


def test_cores_are_shared_out_and_the_environment_is_left_alone(
    tmp_path: Path, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    behave(tmp_path, film="threads")
    compute(tmp_path, planned, jobs=2)
    film = next(job for job in planned.jobs.values() if job.stage == "film").run(tmp_path)
    cores = len(os.sched_getaffinity(0))
    assert film.result() == {"threads": str(max(1, cores // 2))}
    assert os.environ["OMP_NUM_THREADS"] == "77"


def test_what_another_process_works_on_is_waited_for(tmp_path: Path, planned: Plan) -> None:
    film = next(job for job in planned.jobs.values() if job.stage == "film").create(tmp_path)
    held = threading.Event()

    def other() -> None:
        with film.lock():
            film.event("start")
            held.set()
            time.sleep(1.5)
            film.finish({})

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    done = compute(tmp_path, planned)
    thread.join()
    assert done.complete
    assert done.computed == NUM_JOBS - 1
    assert starts(tmp_path)[str(film)] == 1


def held_by_a_job(run: RunFolder) -> Path:
    """The lock that job 17_0 took on another machine."""
    run.event("start")
    lock = run.path / "lock"
    lock.write_text(json.dumps({"pid": 71, "started": "x:1", "host": "gpu017", "job": "17_0", "attempt": "0"}))
    return lock


def test_the_lock_of_a_slurm_job_that_has_ended_holds_nothing(
    tmp_path: Path, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, by name, as long as Slurm says that it runs."""
    film = next(job for job in planned.jobs.values() if job.stage == "film").create(tmp_path / "runs")
    lock, programs = held_by_a_job(film), tmp_path / "programs"
    programs.mkdir()
    squeue = programs / "squeue"
    squeue.write_text(f"#!/bin/sh\n[ -e {programs}/ended ] || exec echo RUNNING\necho Invalid job id >&2; exit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(local, "ASK_SLURM_S", 0.5)
    monkeypatch.setattr(progress, "HEARTBEAT_S", 0.2)
    said = io.StringIO()
    waits = "waits for process 71 on gpu017"

    def end() -> None:
        until(lambda: waits in said.getvalue())
        assert lock.exists()
        (programs / "ended").touch()

    thread = threading.Thread(target=end)
    thread.start()
    done = compute(tmp_path / "runs", planned, console=Console(file=said))
    thread.join()
    assert (done.complete, done.computed) == (True, NUM_JOBS)
    assert f"({film}): what held it has ended; its lock is taken away" in said.getvalue()
    assert starts(tmp_path / "runs")[str(film)] == 2


def test_where_there_is_no_slurm_the_lock_of_a_job_is_respected(
    tmp_path: Path, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    film = next(job for job in planned.jobs.values() if job.stage == "film").create(tmp_path)
    lock = held_by_a_job(film)
    threading.Timer(2.5, lambda: (film.finish({}), lock.unlink())).start()
    done = compute(tmp_path, planned)
    assert (done.complete, done.computed) == (True, NUM_JOBS - 1)
    assert starts(tmp_path)[str(film)] == 1


def test_a_killed_sweep_leaves_no_process_and_goes_on(tmp_path: Path, planned: Plan) -> None:
    behave(tmp_path, seconds=0.4)
    first = start_sweep(tmp_path)
    until(lambda: num_done(tmp_path) >= 3 and bool(holders(tmp_path)))
    workers = holders(tmp_path)
    first.kill()
    first.wait()
    until(lambda: not any(alive(pid) for pid in workers), seconds=8)
    finished = {name for name, state in states(tmp_path, planned).items() if state == "done"}
    assert len(finished) >= 3

    behave(tmp_path)
    second = start_sweep(tmp_path)
    out, error = second.communicate(timeout=60)
    assert second.returncode == 0, out + error
    assert set(states(tmp_path, planned).values()) == {"done"}
    counts = starts(tmp_path)
    assert all(counts[name] == 1 for name in finished)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_stops_its_workers_and_keeps_what_is_finished(
    tmp_path: Path, planned: Plan, number: signal.Signals
) -> None:
    behave(tmp_path, seconds=0.8)
    process = start_sweep(tmp_path)
    until(lambda: num_done(tmp_path) >= 2 and bool(holders(tmp_path)))
    workers = holders(tmp_path)
    process.send_signal(number)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 130, out + error
    assert "Traceback" not in error
    assert not any(alive(pid) for pid in workers)
    found = set(states(tmp_path, planned).values())
    assert "done" in found
    assert found <= {"done", "interrupted", "new"}
    assert not list(tmp_path.glob("*/*/lock"))


def test_processes_that_a_worker_started_die_with_the_sweep(tmp_path: Path) -> None:
    behave(tmp_path, film="child")
    process = start_sweep(tmp_path)
    until(lambda: (tmp_path / "child.pid").is_file() and (tmp_path / "child.pid").read_text() != "")
    child = int((tmp_path / "child.pid").read_text())
    assert alive(child)
    process.kill()
    process.wait()
    until(lambda: not alive(child), seconds=12)


def test_the_time_left_is_learnt_from_what_jobs_took(tmp_path: Path, planned: Plan) -> None:
    jobs = list(planned.jobs.values())
    estimate = Estimate(planned, tmp_path, workers=2)
    world = next(job for job in jobs if job.stage == "world")
    whole = estimate.left(jobs, {})
    assert whole >= max(estimate.chains().values()) * 0.999
    estimate.learn(world, 3 * world.weight)
    assert estimate.seconds(world) == pytest.approx(3 * world.weight)
    half_done = estimate.left([], {world.key: (10.0, 0.5)})
    assert 10.0 <= half_done < estimate.left([world], {})


def test_the_time_left_of_other_stages_is_learnt_from_those_whose_size_is_known(tmp_path: Path, planned: Plan) -> None:
    jobs = {job.stage: job for job in planned.jobs.values()}
    estimate = Estimate(planned, tmp_path, workers=2)
    world = estimate.seconds(jobs["world"])
    estimate.learn(jobs["subset"], 0.01)  # there was next to nothing to do
    estimate.learn(jobs["catalog"], 3600.0)  # there was a thousand hours of video
    assert estimate.seconds(jobs["world"]) == world == jobs["world"].weight
    estimate.learn(jobs["tokenizer"], 3 * jobs["tokenizer"].weight)  # this machine is slow
    assert estimate.seconds(jobs["world"]) == pytest.approx(3 * world)
    assert estimate.seconds(jobs["subset"]) == pytest.approx(0.01)


def test_durations_of_earlier_runs_are_read(tmp_path: Path, planned: Plan) -> None:
    behave(tmp_path, seconds=0.2)
    compute(tmp_path, planned)
    estimate = Estimate(planned, tmp_path, workers=1)
    film = next(job for job in planned.jobs.values() if job.stage == "film")
    assert 0.1 < estimate.seconds(film) < 5.0


def test_durations_read_well() -> None:
    assert [duration(s) for s in (4.4, 99, 100, 3540, 4800)] == [
        "4 s",
        "99 s",
        "2 min",
        "59 min",
        "1 h 20 min",
    ]


def test_bars_are_drawn_on_a_terminal(tmp_path: Path, planned: Plan) -> None:
    behave(tmp_path, seconds=0.3)
    screen = io.StringIO()
    compute(tmp_path, planned, console=Console(file=screen, force_terminal=True, width=120))
    assert "sweep tabletop" in screen.getvalue()
    assert f"{NUM_JOBS}/{NUM_JOBS} jobs" in screen.getvalue()
    assert "steps" in screen.getvalue()
