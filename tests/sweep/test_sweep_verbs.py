"""What the verbs of a sweep say: of runs by the beginnings of their names, of tables that are not whole."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import toy_stages

from egoscale.cli import main
from egoscale.sweep import slurm, submission
from egoscale.sweep.plan import Job, Plan, plan
from egoscale.sweep.profile import Profile
from egoscale.sweep.study import Study
from egoscale.sweep.submission import Submitted, submit

GRID = ("grid.seeds=[0, 1]", "grid.demos=[5, 10]")


@pytest.fixture
def planned() -> Plan:
    return plan(toy_stages.sweep(*GRID))


def words(verb: str, root: Path, *more: str, grid: tuple[str, ...] = GRID) -> list[str]:
    sets = [word for change in (*toy_stages.SMALL, *grid) for word in ("--set", change)]
    return [*verb.split(), "sweeps/tabletop", *more, *sets, "--root", str(root)]


def code_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def end_all(planned: Plan, root: Path, failed: Sequence[Job]) -> None:
    """A sweep that has ended, without the processes."""
    for job in planned.jobs.values():
        run = job.create(root)
        run.event("start")
        run.fail("clip kitchen/17") if job in failed else run.finish(toy_stages.RESULTS.get(job.stage, {}))


def test_logs_lists_what_a_beginning_may_mean(
    planned: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worlds = [job for job in planned.jobs.values() if job.stage == "world"]
    end_all(planned, tmp_path, worlds)
    assert code_of(*words("sweep logs", tmp_path, "world/")) == 2
    said = capsys.readouterr().err
    assert len(worlds) == 2
    for job in worlds:
        (row,) = (line for line in said.splitlines() if str(job) in line)
        assert row.split(maxsplit=2) == [str(job), "failed", job.title()]
        assert code_of(*words("sweep logs", tmp_path, str(job))) == 0
    capsys.readouterr()
    assert code_of(*words("sweep logs", tmp_path, "")) == 2
    said = capsys.readouterr().err
    assert sum(f"{job.stage}/{job.key}" in said for job in planned.jobs.values()) == 20
    assert f"… and {len(planned.jobs) - 20} more" in said
    assert code_of(*words("sweep logs", tmp_path, "wrold/")) == 2
    said = capsys.readouterr().err
    assert "no run of this sweep is called so" in said and "world/" in said


def test_logs_shows_one_line_or_more(planned: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = next(job for job in planned.jobs.values() if job.stage == "film")
    (film.create(tmp_path).path / "log.txt").write_text("first\nsecond\nlast\n")
    assert code_of(*words("sweep logs", tmp_path, str(film), "--lines", "1")) == 0
    said = capsys.readouterr().out
    assert "last" in said and "second" not in said
    for lines in ("0", "-3"):
        assert code_of(*words("sweep logs", tmp_path, str(film), "--lines", lines)) == 2
        assert "first" not in capsys.readouterr().out


def test_logs_of_the_conclusion(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*words("sweep logs", tmp_path, "conclusion")) == 2
    assert "no conclusion was sent" in capsys.readouterr().err
    ids = itertools.count(101)
    monkeypatch.setattr(slurm, "run", lambda command, *_, **__: f"{next(ids)}\n" if command[0] == "sbatch" else "")
    answer = submit(planned, tmp_path, Profile(name="p"))
    assert answer.conclusion and answer.log
    (line,) = (line for line in submission.lines(answer) if "conclusion" in line)
    assert line.startswith(f"{answer.conclusion.job} ") and str(answer.log) in line
    assert code_of(*words("sweep logs", tmp_path, "conclusion")) == 0
    said = capsys.readouterr().out
    assert f"its log will be {answer.log}" in said and f"job {answer.conclusion.job}" in said
    answer.log.write_text("missing: world/ab12cd34ef56 is failed\nsuccess rises by 3 points\n")
    assert code_of(*words("sweep logs", tmp_path, "conclusion")) == 0
    assert "missing: world/ab12cd34ef56 is failed" in capsys.readouterr().out
    other = Study(plan(toy_stages.sweep("grid.seeds=[2]")), tmp_path)
    assert other.conclusions() == []


@pytest.mark.parametrize("grid", [GRID, ("grid.seeds=[0, 1]", "grid.demos=[]", "grid.hours=[0.25]")])
def test_a_report_on_a_partial_sweep_says_so(
    grid: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = plan(toy_stages.sweep(*grid))
    last = planned.cells[-1] if planned.cells else [job for job in planned.jobs.values() if job.stage == "world"][-1]
    end_all(planned, tmp_path, [last])
    rows = len(planned.cells) or 2
    assert code_of(*words("report", tmp_path, grid=grid)) == 0
    assert f"The table is partial: 1 of {rows} rows are not done (1 failed)." in capsys.readouterr().out
    end_all(planned, tmp_path, [])
    assert code_of(*words("report", tmp_path, grid=grid)) == 0
    assert "is partial" not in capsys.readouterr().out


def test_a_table_of_an_unknown_kind_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(*words("sweep collect", tmp_path, "--out", str(tmp_path / "new" / "table.txt"))) == 2
    assert "must end in .csv or .parquet" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_submission_that_waits_speaks_when_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [Submitted(done=1, held_back=4), Submitted(done=1, held_back=4), Submitted(done=2, held_back=4)]
    monkeypatch.setattr(submission, "submit_all", lambda *_: iter([*answers, Submitted(cancelled=True)]))
    code = code_of(*words("sweep submit", tmp_path, "--profile", "profiles/cpu-test", "--anyway", "--wait"))
    said = capsys.readouterr().out
    assert code == 130 and said.splitlines()[-1].startswith("cancelled meanwhile")
    assert (said.count("1 are done"), said.count("2 are done")) == (1, 1)


def test_cancel_says_what_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*words("sweep cancel", tmp_path)) == 0  # never submitted
    assert capsys.readouterr().out.startswith("0 runs cancelled;")
    monkeypatch.setattr(submission, "cancel", lambda *_: submission.Cancelled(12, 1, 7))
    assert code_of(*words("sweep cancel", tmp_path)) == 0
    said = capsys.readouterr().out
    assert said.startswith("12 runs cancelled, and the conclusion;") and "7 jobs stay in the queue" in said
