"""A sweep on a real Slurm of four nodes."""

from __future__ import annotations

import pytest
import sent_sweeps
import toy_stages
from sent_sweeps import EXECUTE, over, wait

from egoscale.sweep.plan import plan
from egoscale.sweep.status import lines
from egoscale.sweep.study import Study
from egoscale.sweep.submission import submit

pytestmark = pytest.mark.slurm


@pytest.fixture
def profile():
    return sent_sweeps.profile()


def test_a_sweep_is_sent_once_and_computed_once(cluster, profile, tmp_path):
    planned = plan(toy_stages.sweep("grid.seeds=[0, 1]", "grid.demos=[5, 10]"))
    first = submit(planned, tmp_path, profile, execute=EXECUTE)
    assert first.sent == len(planned.jobs) and len(first.arrays) < 20
    second = submit(planned, tmp_path, profile, execute=EXECUTE)
    assert (second.sent, second.queued + second.done) == (0, len(planned.jobs))
    found = wait(planned, tmp_path, over)
    assert found.complete, "\n".join(lines(found))
    for job in planned.jobs.values():
        names = [event["event"] for event in job.run(tmp_path).events()]
        assert names == ["start", "end"], job
    third = submit(planned, tmp_path, profile, execute=EXECUTE)
    assert (third.sent, third.done) == (0, len(planned.jobs))


def test_a_failure_blocks_only_what_needs_it_and_is_sent_again(cluster, profile, tmp_path):
    toy_stages.behave(tmp_path, world="fail")
    planned = plan(toy_stages.sweep("grid.seeds=[0, 1]"))
    submit(planned, tmp_path, profile, execute=EXECUTE)
    found = wait(planned, tmp_path, over)
    worlds = [key for key, job in planned.jobs.items() if job.stage == "world"]
    assert {found.states[key] for key in worlds} == {"failed"}
    assert all("clip kitchen/17" in found.reasons[key] for key in worlds)
    assert found.counts["blocked"] == 4  # fine-tuning and evaluation of two seeds; from scratch they went on
    assert found.counts["done"] == len(planned.jobs) - 2 - 4
    toy_stages.behave(tmp_path)
    again = submit(planned, tmp_path, profile, execute=EXECUTE)
    assert again.sent == 6
    assert wait(planned, tmp_path, over).complete


def test_a_dead_shell_between_two_submissions_loses_nothing(cluster, profile, tmp_path, monkeypatch):
    from egoscale.sweep import submission

    planned = plan(toy_stages.sweep())
    real, calls = submission.slurm.sbatch, []

    def dying(script, options=()):
        calls.append(real(script, options))
        if len(calls) == 4:  # Slurm has it, the journal has not
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(submission.slurm, "sbatch", dying)
    with pytest.raises(KeyboardInterrupt):
        submit(planned, tmp_path, profile, execute=EXECUTE)
    monkeypatch.setattr(submission.slurm, "sbatch", real)
    assert Study(planned, tmp_path).journal()[-1].job is None
    submit(planned, tmp_path, profile, execute=EXECUTE)
    assert wait(planned, tmp_path, over).complete
    for job in planned.jobs.values():
        assert [event["event"] for event in job.run(tmp_path).events()] == ["start", "end"], job
