"""What goes wrong while a sweep runs, on a real Slurm: nodes, preemption, limits, kills, cancellations."""

from __future__ import annotations

import json
import os
import socket
import sys
import time

import pytest
import toy_stages
from sent_sweeps import (
    EXECUTE,
    LONG,
    SHORT,
    TOYS,
    conclusions,
    element_of,
    finish,
    names,
    of,
    once,
    over,
    profile,
    sound,
    started,
    told,
    until,
    wait,
)

from egoscale.sweep import slurm
from egoscale.sweep.ledger import collect
from egoscale.sweep.plan import plan
from egoscale.sweep.status import lines, standing
from egoscale.sweep.study import Study
from egoscale.sweep.submission import submit

pytestmark = pytest.mark.slurm


@pytest.fixture
def planned():
    return plan(toy_stages.sweep(*SHORT))


def test_a_lost_node(cluster, tmp_path):
    """Slurm starts the run elsewhere, and what waited for it goes on."""
    planned = plan(toy_stages.sweep())
    film = of(planned, "film")
    toy_stages.behave(tmp_path, film="saves", steps=LONG)
    submit(planned, tmp_path, profile(), execute=EXECUTE)
    until(lambda: (film.run(tmp_path).path / "steps.txt").is_file() and started(film, tmp_path))
    node = film.run(tmp_path).events()[-1]["node"]
    cluster.lose(node)
    finish(tmp_path)
    try:
        assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    finally:
        cluster.restore(node)
    starts = [event["node"] for event in film.run(tmp_path).events() if event["event"] == "start"]
    assert starts[0] == node and node not in starts[1:] and len(starts) == 2
    # The job's shell may die a moment after its step, and have noted that as a kill.
    assert [name for name in names(film, tmp_path) if name != "retry"] == ["start", "start", "end"]
    sound(planned, tmp_path)
    assert set(collect(tmp_path, planned.jobs.values())["state"]) == {"done"}


def test_a_lost_daemon_whose_step_goes_on(cluster, planned, tmp_path):
    """Slurm starts the run again elsewhere while the first attempt still works: never both at once."""
    film = of(planned, "film")
    toy_stages.behave(tmp_path, film="saves", steps=LONG)
    submit(planned, tmp_path, profile(), execute=EXECUTE)
    until(lambda: (film.run(tmp_path).path / "steps.txt").is_file() and started(film, tmp_path))
    node = film.run(tmp_path).events()[-1]["node"]
    cluster.kill(node)
    cluster.command("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
    (log,) = Study(planned, tmp_path).logs(str(film))
    # The second attempt waits for the first one, which may have heard of its node and saved.
    until(lambda: (log.is_file() and "waiting" in log.read_text()) or names(film, tmp_path).count("start") == 2)
    finish(tmp_path)
    try:
        assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    finally:
        cluster.restore(node)
    sound(planned, tmp_path)


def test_one_node_of_several_is_lost(cluster, planned, tmp_path):
    """The step ends with it; the run is tried again on whole nodes, or requeued by Slurm, whoever is first."""
    film = of(planned, "film")
    toy_stages.behave(tmp_path, film="apart", steps=LONG)
    two = profile(per_stage={"film": {"num_nodes": 2}})
    submit(planned, tmp_path, two, execute=EXECUTE)
    until(lambda: (film.run(tmp_path).path / "rank1").is_file() and started(film, tmp_path))
    node = (film.run(tmp_path).path / "rank1").read_text()
    cluster.lose(node)
    until(lambda: (film.run(tmp_path).path / "rank1").read_text() not in ("", node), "the second attempt")
    finish(tmp_path)
    try:
        assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    finally:
        cluster.restore(node)
    # Rank 0 has the time to save; whether this is a retry of ours depends on who sees it first.
    assert [name for name in names(film, tmp_path) if name in ("start", "end", "fail")] == ["start", "start", "end"]
    sound(planned, tmp_path)


@pytest.mark.parametrize("partition", ["low", "grace"])
def test_preemption(cluster, planned, tmp_path, partition):
    """Both runs save at TERM, are requeued, and go on where they were; nothing starts on half of one."""
    film, teleop = of(planned, "film"), of(planned, "teleop")
    toy_stages.behave(tmp_path, film="saves", teleop="saves", steps=LONG)
    submit(planned, tmp_path, profile(partition=partition), execute=EXECUTE)
    for job in (film, teleop):
        until(lambda job=job: (job.run(tmp_path).path / "steps.txt").is_file())
    cluster.command("sbatch", "-p", "high", "-N4", "--exclusive", "--wrap", "sleep 3", "-o", "/dev/null")
    for job in (film, teleop):
        until(lambda job=job: "requeue" in names(job, tmp_path))
    finish(tmp_path)
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    for job in (film, teleop):
        assert names(job, tmp_path) == ["start", "save", "requeue", "start", "end"]
    sound(planned, tmp_path)


def test_the_last_element_of_an_array_goes_on_alone(cluster, tmp_path):
    """Its SLURM_JOB_ID is that of the whole array: a requeue by that would begin the others again."""
    planned = plan(toy_stages.sweep("grid.seeds=[0, 1, 2]"))
    subsets = [job for job in planned.jobs.values() if job.stage == "subset"]
    toy_stages.behave(tmp_path, **{str(subsets[-1]): "saves", str(subsets[0]): "saves"}, steps=LONG)
    submit(planned, tmp_path, profile(), execute=EXECUTE)
    until(lambda: all((job.run(tmp_path).path / "steps.txt").is_file() for job in (subsets[0], subsets[-1])))
    slurm.run(["scancel", "--signal=USR1", "--batch", element_of(planned, tmp_path, subsets[-1])])
    until(lambda: names(subsets[-1], tmp_path).count("start") == 2)
    finish(tmp_path)
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    assert names(subsets[-1], tmp_path) == ["start", "save", "requeue", "start", "end"]
    once(planned, tmp_path, subsets[-1])
    sound(planned, tmp_path)


def test_the_time_limit(cluster, tmp_path):
    """A run that hears the signal saves and goes on; one that does not is killed, tried again, and fails readably."""
    planned = plan(toy_stages.sweep())
    film, teleop = of(planned, "film"), of(planned, "teleop")
    toy_stages.behave(tmp_path, film="deaf", teleop="saves", steps=LONG)
    limit = {"film": {"time_limit_min": 5}, "teleop": {"time_limit_min": 1}}
    submit(planned, tmp_path, profile(per_stage=limit, signal_before_end_s=30, max_retries=1), execute=EXECUTE)
    for attempt in (1, 2):
        until(lambda attempt=attempt: names(film, tmp_path).count("start") == attempt)
        time.sleep(2.0)  # it is deaf a moment after its start
        element = element_of(planned, tmp_path, film)
        slurm.run(["scontrol", "update", f"jobid={element}", "EndTime=now+1"])
        until(
            lambda attempt=attempt: (
                names(film, tmp_path).count("retry") + names(film, tmp_path).count("fail") == attempt
            )
        )
        if attempt == 1:  # Slurm remembers the limit that we moved
            until(lambda element=element: "PENDING" in slurm.run(["squeue", "-h", "-j", element, "-o", "%T"]))
            slurm.run(["scontrol", "update", f"jobid={element}", "TimeLimit=5"])
    until(lambda: "requeue" in names(teleop, tmp_path))
    finish(tmp_path)
    found = wait(planned, tmp_path, over)
    assert found.states[teleop.key] == "done", told(planned, tmp_path)
    heard = [event.get("signal") for event in teleop.run(tmp_path).events() if event["event"] == "requeue"]
    assert heard and set(heard) == {"SIGUSR1"}
    assert names(film, tmp_path) == ["start", "retry", "start", "fail"]
    assert "the time limit came before the run had saved" in found.reasons[film.key]
    assert "attempt 2 of 2" in found.reasons[film.key]
    assert found.counts["blocked"] == len(planned.jobs) - 2
    sound(planned, tmp_path)
    assert set(collect(tmp_path, planned.jobs.values())["state"]) == {"new"}


def test_a_run_that_is_always_killed(cluster, tmp_path):
    """It is tried again so often and not more; only what needs it is blocked; the conclusion says what is missing."""
    planned = plan(toy_stages.sweep("grid.seeds=[0, 1]"))
    worlds = [job for job in planned.jobs.values() if job.stage == "world"]
    toy_stages.behave(tmp_path, **{str(worlds[0]): "killed", str(worlds[1]): "exit"})
    submit(planned, tmp_path, profile(max_retries=1), execute=EXECUTE)
    found = wait(planned, tmp_path, over)
    for world, reason in zip(worlds, ("the step was killed by SIGKILL", "the step ended with code 3"), strict=True):
        assert names(world, tmp_path) == ["start", "retry", "start", "fail"], told(planned, tmp_path)
        assert reason in found.reasons[world.key] and "attempt 2 of 2" in found.reasons[world.key]
        assert any(reason in line for line in lines(found))
    assert found.counts["blocked"] == 4 and found.counts["done"] == len(planned.jobs) - 6
    sound(planned, tmp_path)
    until(lambda: conclusions(planned, tmp_path) and "report" in conclusions(planned, tmp_path)[0].read_text())
    log = conclusions(planned, tmp_path)[0].read_text()
    assert f"missing: {worlds[0]} is failed" in log and "partial" in log
    table = collect(tmp_path, planned.jobs.values())
    assert sorted(table["state"]) == ["done", "done", "new", "new"]

    toy_stages.behave(tmp_path)
    again = submit(planned, tmp_path, profile(max_retries=1), execute=EXECUTE)
    assert again.sent == 6
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    sound(planned, tmp_path)


def test_cancelled_by_somebody(cluster, tmp_path):
    """An element at work, one that waits, and a whole array, by `scancel`: they stay so, and are sent again."""
    planned = plan(toy_stages.sweep("grid.seeds=[0, 1]"))
    subsets = [job for job in planned.jobs.values() if job.stage == "subset"]
    latent = [job for job in planned.jobs.values() if job.stage == "latent-action"]
    toy_stages.behave(tmp_path, **{str(subsets[0]): "saves", str(subsets[1]): "saves"}, steps=LONG)
    submit(planned, tmp_path, profile(), execute=EXECUTE)
    for job in subsets:
        until(lambda job=job: (job.run(tmp_path).path / "steps.txt").is_file())
    waiting, working = element_of(planned, tmp_path, latent[1]), element_of(planned, tmp_path, subsets[1])
    slurm.run(["scancel", waiting])
    slurm.run(["scancel", working])
    until(lambda: names(subsets[1], tmp_path)[-1] == "requeue")
    time.sleep(8.0)  # a requeue of its own would bring it back in this time
    found = standing(planned, tmp_path)
    assert found.states[subsets[1].key] == "interrupted" and found.states[subsets[0].key] == "running"
    assert any("CANCELLED" in note and "sweep submit" in note for note in found.notes), found.notes
    slurm.run(["scancel", working.partition("_")[0]])
    found = wait(planned, tmp_path, over)
    assert found.states[subsets[0].key] == "interrupted"
    assert found.counts["done"] and not found.counts["failed"]

    lost = len(planned.jobs) - found.counts["done"]
    finish(tmp_path)
    assert submit(planned, tmp_path, profile(), execute=EXECUTE).sent == lost
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    sound(planned, tmp_path)


def test_a_lock_that_a_lost_node_left(cluster, planned, tmp_path):
    """Nothing can be seen of a process on another machine; that its job has ended is what Slurm knows."""
    film, world = of(planned, "film"), of(planned, "world")
    ended = cluster.command("sbatch", "--parsable", "--wait", "-o", "/dev/null", "--wrap", "true").strip()
    left = {"pid": 71, "started": "x:1", "host": "node-that-is-gone", "job": ended, "attempt": "0"}
    toy_stages.behave(tmp_path, film="saves", steps=LONG)
    submit(planned, tmp_path, profile(), execute=EXECUTE)
    (world.run(tmp_path).path / "lock").write_text(json.dumps(left))  # its element waits for the film
    until(lambda: started(film, tmp_path))
    finish(tmp_path)
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    assert "its lock is taken away" in Study(planned, tmp_path).logs(str(world))[0].read_text()
    sound(planned, tmp_path)


def test_a_lock_that_a_killed_sweep_left_on_the_login_node(cluster, planned, tmp_path):
    """A compute node cannot know that its process is gone: who submits there does."""
    world, tokenizer = of(planned, "world"), of(planned, "tokenizer")
    dead, unknown = ({"pid": 1, "started": "x:1", "host": host} for host in (socket.gethostname(), "login02"))
    for job, owner in ((world, dead), (tokenizer, unknown)):
        (job.create(tmp_path).path / "lock").write_text(json.dumps(owner))
    toy_stages.behave(tmp_path, film="saves", steps=LONG)
    submit(planned, tmp_path, profile(), execute=EXECUTE)
    assert not (world.run(tmp_path).path / "lock").exists()
    assert (tokenizer.run(tmp_path).path / "lock").exists()


def test_a_run_of_two_nodes_that_a_login_node_holds(cluster, planned, tmp_path):
    """All its ranks wait while the holder shows life; then they give their nodes back, so often, and say why."""
    film = of(planned, "film")
    folder = film.create(tmp_path)
    folder.event("start")
    lock = folder.path / "lock"
    lock.write_text(json.dumps({"pid": 4711, "started": "x:1", "host": "login01"}))
    toy_stages.behave(tmp_path, film="apart", steps=LONG)
    submit(planned, tmp_path, profile(per_stage={"film": {"num_nodes": 2}}), execute=EXECUTE)
    (log,) = Study(planned, tmp_path).logs(str(film))
    until(lambda: log.is_file() and log.read_text().count("waiting") == 2)
    assert names(film, tmp_path) == ["start"] and not (folder.path / "rank1").exists(), told(planned, tmp_path)
    os.utime(lock, (0, 0))
    until(lambda: "retry" in names(film, tmp_path))
    reason = folder.events()[-1]["reason"]
    assert "process 4711 on login01 holds the run, and has shown no life" in reason and f"delete {lock}" in reason
    lock.unlink()
    until(lambda: (folder.path / "rank1").exists(), "the second rank")
    finish(tmp_path)
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    assert [name for name in names(film, tmp_path) if name != "retry"] == ["start", "start", "end"]
    sound(planned, tmp_path)


INNER = """#!/bin/bash
export PYTHONPATH={paths}
export SQUEUE_PARTITION=high SQUEUE_STATES=COMPLETED SCANCEL_INTERACTIVE=1 SBATCH_PARTITION=high
export CUDA_VISIBLE_DEVICES=3 RANK=7 WORLD_SIZE=9
srun {python} {script}
"""
SUBMIT = """
import toy_stages
from pathlib import Path
from egoscale.sweep.plan import plan
from egoscale.sweep.profile import Profile
from egoscale.sweep.submission import submit
profile = Profile.model_validate_json({profile!r})
print(submit(plan(toy_stages.sweep(*{overrides!r})), Path({root!r}), profile, execute={execute!r}).sent)
"""


def test_a_submission_from_within_a_job(cluster, planned, tmp_path):
    """The shape of the job that submits, and its person's habits, are not those of the jobs it submits."""
    toy_stages.behave(tmp_path, film="environment")
    script, job, log = (tmp_path / name for name in ("submit.py", "job.sh", "job.log"))
    given = {"root": str(tmp_path), "profile": profile().model_dump_json(), "execute": EXECUTE, "overrides": SHORT}
    script.write_text(SUBMIT.format(**given))
    paths = f"{TOYS}:{toy_stages.RECIPE.parents[2]}"
    job.write_text(INNER.format(paths=paths, python=sys.executable, script=script))
    shape = (
        "--cpus-per-task=2",
        "--mem-per-cpu=150",
        "--ntasks-per-node=1",
        "--time=3",
        "--partition=low",
        "-J",
        "outer",
    )
    cluster.command("sbatch", *shape, "-o", str(log), str(job))
    until(lambda: log.is_file() and log.read_text().strip())
    assert log.read_text().strip() == str(len(planned.jobs))
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    seen = of(planned, "film").run(tmp_path).result()["environment"]
    assert (seen["SLURM_CPUS_PER_TASK"], seen["SLURM_JOB_PARTITION"], seen["SLURM_NTASKS"]) == ("1", "main", "1")
    assert seen["SLURM_MEM_PER_CPU"] == "200"  # the cluster's default
    assert not {"CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "SQUEUE_PARTITION", "SBATCH_PARTITION"} & seen.keys()
    sound(planned, tmp_path)
