"""What goes wrong while a sweep is submitted, on a real Slurm: dead shells, two people, a controller that is away."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import toy_stages
from sent_sweeps import (
    EXECUTE,
    LONG,
    SHORT,
    conclusions,
    element_of,
    finish,
    go,
    kill,
    names,
    of,
    once,
    over,
    profile,
    slow_sbatch,
    sound,
    submitting,
    told,
    until,
    wait,
)

from egoscale.recipe import load_recipe
from egoscale.sweep import slurm
from egoscale.sweep.plan import plan
from egoscale.sweep.study import Study
from egoscale.sweep.submission import cancel, lines, submit, submit_all

pytestmark = pytest.mark.slurm


@pytest.fixture
def planned():
    return plan(toy_stages.sweep(*SHORT))


def in_queue(study):
    """Names of this sweep's jobs that wait or run, an element each, without number and prefix."""
    return [e.name.rpartition("-")[2] for e in study.elements() if e.state in slurm.ALIVE]


@pytest.mark.parametrize(("before_s", "after_s"), [(0.4, 0.0), (0.0, 0.4)])
def test_a_shell_killed_between_two_submissions(cluster, planned, tmp_path, before_s, after_s):
    """Killed before Slurm has an array, or after: `sbatch` itself lives on, and its array may come late."""
    first = submitting(tmp_path, profile(), *SHORT, path=slow_sbatch(tmp_path, before_s, after_s))
    study = Study(planned, tmp_path)
    go(first)
    until(lambda: len(study.journal()) >= 4)
    kill(first)
    noted = study.journal()
    assert noted[-1].job is None and len(noted) < len(planned.jobs)
    second = submit(planned, tmp_path, profile(), execute=EXECUTE)
    assert second.sent + second.queued + second.done == len(planned.jobs)
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    once(planned, tmp_path)
    sound(planned, tmp_path)


def test_two_people_at_once(cluster, tmp_path):
    """They take turns: the second finds what the first has sent."""
    grid = ("grid.seeds=[0, 1]", "grid.demos=[5, 10]")
    planned = plan(toy_stages.sweep(*grid))
    people = [submitting(tmp_path, profile(), *grid) for _ in range(2)]
    for person in people:
        go(person)
    said = [person.communicate(timeout=300) for person in people]
    assert [person.returncode for person in people] == [0, 0], said
    counts = sorted(int(out.splitlines()[-1].split()[0]) for out, _ in said)
    assert counts == [0, len(planned.jobs)], said
    assert in_queue(Study(planned, tmp_path)).count("conclusion") == 1
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    once(planned, tmp_path)
    sound(planned, tmp_path)
    until(lambda: not in_queue(Study(planned, tmp_path)))
    assert len(conclusions(planned, tmp_path)) == 1


def test_the_controller_is_restarted_between_two_submissions(cluster, planned, tmp_path, monkeypatch, capfd):
    """Once gently, with the word lost; once by a kill just after it took an array."""
    real, calls = slurm.sbatch, []

    def sbatch(script, options=()):
        calls.append(script)
        if len(calls) == 3:
            again = threading.Thread(target=cluster.restart_controller, args=(1.0,))
            again.start()
            time.sleep(0.5)
        if len(calls) == 6:
            real(script, options)
            raise slurm.ControllerAwayError("`sbatch` did not answer in 60 s")
        return real(script, options)

    monkeypatch.setattr(slurm, "sbatch", sbatch)
    answer = submit(planned, tmp_path, profile(), execute=EXECUTE)
    assert answer.sent == len(planned.jobs)
    assert "asking again" in capfd.readouterr().err
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    once(planned, tmp_path)
    sound(planned, tmp_path)
    arrays = {element.name for element in Study(planned, tmp_path).elements()}
    assert len(arrays) == len(Study(planned, tmp_path).journal())  # none was sent twice


def test_a_controller_that_stays_away(cluster, planned, tmp_path, monkeypatch):
    """The submission says so and ends; typed again, it goes on. The runs at work do not notice."""
    monkeypatch.setattr(slurm, "PATIENCE_S", 1.0)
    real, calls = slurm.sbatch, []

    def sbatch(script, options=()):
        calls.append(script)
        if len(calls) == 4:
            cluster.kill("slurmctld", signal.SIGTERM)
        return real(script, options)

    toy_stages.behave(tmp_path, film="saves", steps=LONG)
    with monkeypatch.context() as patched:
        patched.setattr(slurm, "sbatch", sbatch)
        with pytest.raises(slurm.SlurmError, match=r"Unable to contact slurm controller .*the same command"):
            submit(planned, tmp_path, profile(), execute=EXECUTE)
    found = told(planned, tmp_path)
    assert "Slurm was not asked" in found
    cluster.start("slurmctld")
    again = submit_again(planned, tmp_path)
    finish(tmp_path)
    assert again.sent and again.sent + again.queued + again.done == len(planned.jobs)
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    once(planned, tmp_path)
    sound(planned, tmp_path)


def submit_again(planned, root):
    def attempt():
        try:
            return submit(planned, root, profile(), execute=EXECUTE)
        except slurm.SlurmError:
            return None

    return until(attempt)


def test_the_controller_is_killed_in_the_middle(cluster, planned, tmp_path):
    """Runs that ended meanwhile are heard of, those that saved and could not be requeued are requeued later."""
    film, teleop = of(planned, "film"), of(planned, "teleop")
    toy_stages.behave(tmp_path, film="saves", teleop="saves", steps=LONG)
    submit(planned, tmp_path, profile(), execute=EXECUTE)
    for job in (film, teleop):
        until(lambda job=job: (job.run(tmp_path).path / "steps.txt").is_file())
    time.sleep(8.0)  # a controller killed just after it started a job holds that job: another test's business
    slurm.run(["scancel", "--signal=USR1", "--batch", element_of(planned, tmp_path, film)])
    cluster.restart_controller(6.0, signal.SIGKILL)
    until(lambda: names(film, tmp_path).count("start") == 2)
    finish(tmp_path)
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    assert names(film, tmp_path) == ["start", "save", "requeue", "start", "end"]
    # A controller that comes back may have a job saved and begun again that nobody asked for: nothing is done twice.
    assert names(teleop, tmp_path) in (["start", "end"], ["start", "save", "requeue", "start", "end"])
    sound(planned, tmp_path)


def test_one_conclusion_at_the_end(cluster, tmp_path):
    """A conclusion that waits is replaced when more is sent; the last one runs, once, and says what is missing."""
    planned = plan(toy_stages.sweep())
    study = Study(planned, tmp_path)
    toy_stages.behave(tmp_path, film="saves", steps=LONG, world="fail")
    submit(planned, tmp_path, profile(), execute=EXECUTE)
    world = of(planned, "world")
    until(lambda: (of(planned, "film").run(tmp_path).path / "steps.txt").is_file())
    slurm.run(["scancel", element_of(planned, tmp_path, world)])
    until(lambda: str(world) not in study.in_queue())
    again = submit(planned, tmp_path, profile(), execute=EXECUTE)
    assert again.sent == 3  # the world model, and what waited for it
    assert in_queue(study).count("conclusion") == 1
    assert submit(planned, tmp_path, profile(), execute=EXECUTE).sent == 0
    assert in_queue(study).count("conclusion") == 1
    finish(tmp_path)
    found = wait(planned, tmp_path, over)
    until(lambda: not in_queue(study))
    (log,) = conclusions(planned, tmp_path)
    assert log.read_text().count("the table is partial: 3 of 13 runs are not done") == 1
    assert f"missing: {world} is failed" in log.read_text() and found.counts["failed"] == 1
    sound(planned, tmp_path)


def test_a_shell_killed_before_the_conclusion(cluster, planned, tmp_path, monkeypatch):
    """Every run is in the queue, the conclusion is not: the next submission sends it."""
    from egoscale.sweep import submission

    toy_stages.behave(tmp_path, film="saves", steps=LONG)
    with monkeypatch.context() as patched:
        patched.setattr(submission, "_submit_conclusion", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            submit(planned, tmp_path, profile(), execute=EXECUTE)
    assert "conclusion" not in in_queue(Study(planned, tmp_path))
    assert submit(planned, tmp_path, profile(), execute=EXECUTE).sent == 0
    assert in_queue(Study(planned, tmp_path)).count("conclusion") == 1


def test_another_grid_of_the_same_sweep_is_left_alone(cluster, tmp_path):
    """It keeps its runs, its recipe and its conclusion; each conclusion is about its own grid."""
    first, second = (plan(toy_stages.sweep(f"grid.seeds=[{seed}]")) for seed in (0, 1))
    toy_stages.behave(tmp_path, film="saves", steps=LONG)
    submit(first, tmp_path, profile(), execute=EXECUTE)
    answer = submit(second, tmp_path, profile(), execute=EXECUTE)
    assert answer.queued + answer.done == len(first.jobs.keys() & second.jobs.keys()) > 5  # some may be done by now
    assert in_queue(Study(first, tmp_path)).count("conclusion") == 2
    for seed, planned in enumerate((first, second)):
        assert load_recipe(Study(planned, tmp_path).recipe).grid.seeds == (seed,)
        assert submit(planned, tmp_path, profile(), execute=EXECUTE).sent == 0
    assert in_queue(Study(first, tmp_path)).count("conclusion") == 2
    finish(tmp_path)
    for planned in (first, second):
        assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
        sound(planned, tmp_path)
    until(lambda: not in_queue(Study(first, tmp_path)))
    for planned in (first, second):
        ((_, log),) = Study(planned, tmp_path).conclusions()
        assert "report:" in log.read_text() and "missing" not in log.read_text()


def test_cancelling_a_grid_leaves_another_in_the_queue(cluster, tmp_path):
    """Arrays are taken apart; runs of both grids go, but for those that the other grid's own runs wait for."""
    toy_stages.behave(tmp_path, film="saves", teleop="saves", steps=LONG)
    first, second = (plan(toy_stages.sweep(f"grid.seeds={list(seeds)}")) for seeds in ((0, 1), (1, 2)))
    for planned in (first, second):
        submit(planned, tmp_path, profile(), execute=EXECUTE)
    study, film = Study(first, tmp_path), str(of(first, "film"))
    until(lambda: (of(first, "film").run(tmp_path).path / "steps.txt").is_file())
    before = study.in_queue().keys()
    gone = {str(job) for job in second.jobs.values() if job.labels.get("seed") in (1, 2)} & before
    assert film in before and len(gone) > 10
    done = cancel(second, tmp_path)
    assert (done.runs, done.conclusions, done.others) == (len(gone), 1, len(before - gone) + 1)
    until(lambda: not gone & study.in_queue().keys())
    assert study.in_queue().keys() == before - gone
    assert in_queue(study).count("conclusion") == 1
    finish(tmp_path)
    found = wait(first, tmp_path, over)
    assert {str(first.jobs[key]) for key, state in found.states.items() if state != "done"} <= gone
    assert cancel(second, tmp_path).runs == 0
    assert cancel(plan(toy_stages.sweep("grid.seeds=[9]")), tmp_path / "elsewhere").runs == 0


def test_a_conclusion_that_was_lost_is_sent_again(cluster, planned, tmp_path):
    """Cancelled after the last run, or with a report older than a result: the same command sends another."""
    study = Study(planned, tmp_path)
    submit(planned, tmp_path, profile(), execute=EXECUTE)
    (conclusion,) = [element for element in study.elements() if element.name.endswith(study.conclusion)]
    slurm.run(["scontrol", "hold", conclusion.array_id])
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    kept = submit(planned, tmp_path, profile(), execute=EXECUTE)  # it waits: none is sent beside it
    assert kept.conclusion.job == conclusion.array_id
    until(lambda: in_queue(study) == ["conclusion"])
    slurm.run(["scancel", conclusion.array_id])
    until(lambda: not in_queue(study))
    again = submit(planned, tmp_path, profile(), execute=EXECUTE)
    assert again.sent == 0 and any(f"log: {again.log}" in line for line in lines(again))
    until(lambda: again.log.is_file() and "report:" in again.log.read_text(errors="replace"))
    until(lambda: not in_queue(study))
    assert submit(planned, tmp_path, profile(), execute=EXECUTE).conclusion is None  # it has told of it
    os.utime(of(planned, "world").run(tmp_path).path / "result.json")
    assert submit(planned, tmp_path, profile(), execute=EXECUTE).conclusion is not None


def test_a_submission_that_waits_hears_of_a_cancellation(cluster, planned, tmp_path):
    """What it held back is not sent; another submission sends it."""
    until(lambda: not slurm.num_queued())  # of the tests before
    toy_stages.behave(tmp_path, film="saves", teleop="saves", steps=LONG)
    turns = submit_all(planned, tmp_path, profile(max_submitted=4), EXECUTE, every_s=0.1)
    first = next(turns)
    assert first.held_back
    assert cancel(planned, tmp_path).runs == first.sent
    (last,) = turns
    assert last.cancelled and not last.arrays
    finish(tmp_path)
    assert submit(planned, tmp_path, profile(), execute=EXECUTE).sent + first.done == len(planned.jobs)
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)


def test_more_than_the_queue_takes(cluster, tmp_path):
    """What fits is sent, inputs first; the rest when there is room; what fails is not sent again and again."""
    planned = plan(toy_stages.sweep("grid.seeds=[0, 1]"))
    worlds = [job for job in planned.jobs.values() if job.stage == "world"]
    toy_stages.behave(tmp_path, **{str(worlds[0]): "fail"})
    few = profile(max_submitted=6)
    until(lambda: not slurm.num_queued())  # of the tests before
    first = submit(planned, tmp_path, few, execute=EXECUTE)
    assert (first.sent, first.held_back) == (5, len(planned.jobs) - 5)
    assert any(f"{first.held_back} held back" in line for line in lines(first))
    assert "conclusion" not in in_queue(Study(planned, tmp_path))
    most = 0
    for _ in submit_all(planned, tmp_path, few, EXECUTE, every_s=1.0):
        most = max(most, slurm.num_queued())
    assert 0 < most <= 6
    found = wait(planned, tmp_path, over)
    assert found.counts["done"] == len(planned.jobs) - 3, told(planned, tmp_path)
    assert names(worlds[0], tmp_path) == ["start", "fail"]
    sound(planned, tmp_path)
    toy_stages.behave(tmp_path)
    for _ in submit_all(planned, tmp_path, few, EXECUTE, every_s=1.0):
        pass
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    sound(planned, tmp_path)
    until(lambda: conclusions(planned, tmp_path))
