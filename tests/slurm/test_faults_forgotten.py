"""A Slurm that forgets jobs two seconds after their end, as without accounting it does after some minutes.

A dependency on a job that is forgotten counts as satisfied, whatever became of it: the run folders know better.
"""

from __future__ import annotations

import pytest
import toy_stages
from sent_sweeps import EXECUTE, LONG, element_of, finish, names, of, once, over, profile, sound, told, until, wait

from egoscale.sweep import slurm
from egoscale.sweep.plan import plan
from egoscale.sweep.status import lines, standing
from egoscale.sweep.study import Study
from egoscale.sweep.submission import submit

pytestmark = pytest.mark.slurm


def forgotten(study, job):
    """Whether Slurm knows nothing of a run's array any more."""
    (sent,) = [sent for sent in study.journal() if str(job) in sent.runs.values()]
    return all(element.array_id != sent.job for element in study.elements())


def test_nothing_starts_on_an_input_that_failed_and_is_forgotten(forgetful, tmp_path, monkeypatch):
    planned = plan(toy_stages.sweep())
    film, catalog, study = of(planned, "film"), of(planned, "catalog"), Study(planned, tmp_path)
    toy_stages.behave(tmp_path, film="fail")
    real, aimed = slurm.sbatch, []

    def late(script, options=()):
        if "catalog" in script and not aimed:  # sent when what it waits for has failed and is gone
            until(lambda: forgotten(study, film), "forgetting")
            aimed.append("--dependency=afterok:" in script)
        return real(script, options)

    monkeypatch.setattr(slurm, "sbatch", late)
    submit(planned, tmp_path, profile(), execute=EXECUTE)
    assert aimed == [True]
    until(lambda: names(catalog, tmp_path) == ["blocked"])  # Slurm started it; it looked, and did not begin
    assert names(film, tmp_path) == ["start", "fail"]
    found = wait(planned, tmp_path, over)
    assert found.counts["done"] == 1 and found.counts["blocked"] == len(planned.jobs) - 2, told(planned, tmp_path)
    assert "is failed, not done" in catalog.run(tmp_path).events()[0]["reason"]
    sound(planned, tmp_path)
    toy_stages.behave(tmp_path)
    assert submit(planned, tmp_path, profile(), execute=EXECUTE).sent == len(planned.jobs) - 1
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    sound(planned, tmp_path)


def test_what_waited_for_a_failed_run_waits_for_its_new_attempt(forgetful, tmp_path):
    """Sent again when Slurm has forgotten the first one; another element of the array is at work all the while."""
    planned = plan(toy_stages.sweep("grid.seeds=[0, 1]"))
    study = Study(planned, tmp_path)
    worlds = [job for job in planned.jobs.values() if job.stage == "world"]
    mine = [job for job in planned.jobs.values() if worlds[0] in job.inputs.values()]
    toy_stages.behave(tmp_path, **{str(worlds[0]): "fail", str(worlds[1]): "saves"}, steps=LONG)
    submit(planned, tmp_path, profile(), execute=EXECUTE)
    until(lambda: worlds[0].run(tmp_path).state() == "failed", "the failure")
    until(lambda: str(worlds[0]) not in study.newest() and str(mine[0]) not in study.newest(), "forgetting")
    toy_stages.behave(tmp_path, **{str(worlds[0]): "saves"}, steps=LONG)
    found = standing(planned, tmp_path)
    again = {str(planned.jobs[key]) for key, state in found.states.items() if state in ("failed", "blocked")}
    assert len(again) == 3, lines(found)
    assert submit(planned, tmp_path, profile(), only=again, execute=EXECUTE).sent == 3
    first, second = (element_of(planned, tmp_path, job) for job in (worlds[0], mine[0]))
    waits = slurm.run(["squeue", "-h", "-j", second, "-o", "%E"])
    assert first.partition("_")[0] in waits, waits
    finish(tmp_path)
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    assert names(worlds[0], tmp_path) == ["start", "fail", "start", "end"]
    assert names(worlds[1], tmp_path) == ["start", "end"] and names(mine[0], tmp_path) == ["start", "end"]
    sound(planned, tmp_path)


def test_a_cancelled_run_that_is_forgotten_is_told_and_sent_again(forgetful, tmp_path):
    planned = plan(toy_stages.sweep())
    study, world = Study(planned, tmp_path), of(planned, "world")
    toy_stages.behave(tmp_path, film="saves", steps=LONG)
    submit(planned, tmp_path, profile(), execute=EXECUTE)
    slurm.run(["scancel", element_of(planned, tmp_path, world)])
    until(lambda: str(world) not in study.newest(), "forgetting")
    finish(tmp_path)
    found = wait(planned, tmp_path, over)
    # What waited for it was started when it was forgotten, and did not begin, or was cancelled with it.
    assert found.counts["done"] == len(planned.jobs) - 3
    assert any("in Slurm's queue no more" in note and "forgotten by Slurm" in note for note in found.notes), found.notes
    assert submit(planned, tmp_path, profile(), execute=EXECUTE).sent == 3
    assert wait(planned, tmp_path, over).complete, told(planned, tmp_path)
    once(planned, tmp_path)
    sound(planned, tmp_path)
