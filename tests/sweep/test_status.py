"""Where a sweep stands: a line a stage, a glyph a run, or the number of each glyph where runs are many."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import toy_stages

from egoscale import cli_sweep_plan
from egoscale.cli import main
from egoscale.sweep.plan import Plan, plan
from egoscale.sweep.status import lines, standing
from egoscale.sweep.study import Study

AWAY = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for Slurm's commands, before all others; `sacct` is there, and keeps no accounts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    program(folder / "sacct", "exit 1")
    return folder


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def sent(planned: Plan, root: Path) -> str:
    """Note every run of a sweep as an element of array 7; the rows that `squeue` would show while all wait."""
    study = Study(planned, root)
    runs = [str(job) for job in planned.jobs.values()]
    study.note(name="000-all", runs=dict(enumerate(runs)), job="7")
    return "\n".join(f"7|{index}|PENDING|Priority||{study.prefix}000-all" for index in range(len(runs)))


def watched(root: Path) -> int:
    words = [word for value in toy_stages.SMALL for word in ("--set", value)]
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "status", str(toy_stages.RECIPE), "--watch", "--root", str(root), *words])
    return int(ended.value.code or 0)


def test_a_line_a_stage_and_a_glyph_a_run(tmp_path: Path) -> None:
    toy_stages.behave(tmp_path, world="fail")
    planned = plan(toy_stages.sweep("grid.seeds=[0, 1]"))
    toy_stages.compute(tmp_path, planned)
    found = standing(planned, tmp_path)
    text = lines(found)
    worlds = next(line for line in text if line.startswith("world"))
    assert worlds.split() == ["world", "0/2", "✗✗"]
    assert sum("clip kitchen/17" in line for line in text) == 2
    assert next(line for line in text if line.startswith("finetune")).split()[1] == "2/4"
    assert "runs done" in text[-1] and "left" not in text[-1]  # what is left waits for what failed


def test_many_runs_are_counted(tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep("grid.seeds=[0]", f"grid.demos={list(range(1, 55))}"))
    one = next(job for job in planned.jobs.values() if job.stage == "finetune")
    one.create(tmp_path).finish({})
    text = lines(standing(planned, tmp_path))
    assert next(line for line in text if line.startswith("finetune")).split() == [
        "finetune", "1/108", "●", "1", "·", "107",
    ]  # fmt: skip
    assert len(text) == 11 + 2 and max(map(len, text)) < 130


def test_a_run_at_work_tells_how_far_it_is(tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep())
    world = next(job for job in planned.jobs.values() if job.stage == "world")
    run = world.create(tmp_path)
    steps = world.recipe.train.num_steps  # type: ignore[union-attr]  # a world recipe
    with run.lock():
        run.event("start")
        (run.path / "metrics.jsonl").write_text(json.dumps({"step": steps // 2}) + "\n" + '{"step": 9')  # torn
        assert standing(planned, tmp_path).fractions == {}
        (run.path / "metrics.jsonl").write_text(json.dumps({"step": steps // 2}) + "\n")
        found = standing(planned, tmp_path)
    assert found.fractions == {world.key: 0.5} and found.left_s > 0
    assert any("◐  (50% of their steps)" in line for line in lines(found))


def test_a_run_that_failed_for_want_of_its_lock_is_not_at_work(tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep())
    film = next(job for job in planned.jobs.values() if job.stage == "film")
    run = film.create(tmp_path)
    lock = run.path / "lock"
    lock.write_text(json.dumps({"pid": 71, "started": "x:1", "host": "login01"}))
    run.event("start")
    os.utime(lock, (0, 0))
    assert standing(planned, tmp_path).states[film.key] == "running"
    run.fail(f"delete {lock}")
    found = standing(planned, tmp_path)
    assert found.states[film.key] == "failed" and found.reasons[film.key] == f"delete {lock}"
    assert found.counts["blocked"]
    lock.touch()
    assert standing(planned, tmp_path).states[film.key] == "running"


def test_what_was_done_is_not_read_again(tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep())
    toy_stages.compute(tmp_path, planned)
    first = standing(planned, tmp_path)
    for job in planned.jobs.values():
        (job.run(tmp_path).path / "result.json").unlink()
    assert standing(planned, tmp_path, before=first).complete and not standing(planned, tmp_path).complete


def test_watching_ends_when_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    toy_stages.compute(root, plan(toy_stages.sweep()))
    capsys.readouterr()
    assert watched(root) == 0
    assert capsys.readouterr().out.count("\nworld ") == 1


def test_when_slurm_has_forgotten_all_it_is_told_and_no_time_is_promised(tmp_path: Path, programs: Path) -> None:
    planned = plan(toy_stages.sweep())
    rows = sent(planned, tmp_path)
    program(programs / "squeue", f"cat <<.\n{rows}\n.")
    waiting = standing(planned, tmp_path)
    assert waiting.counts == {"queued": len(planned.jobs)} and waiting.left_s == 0
    program(programs / "squeue", "exit 0")
    found = standing(planned, tmp_path)
    told = f"{len(planned.jobs)} forgotten by Slurm; `egoscale sweep submit` sends them again"
    assert found.counts == {"new": len(planned.jobs)} and told in found.notes[-1]
    assert lines(found)[-1].endswith("runs done (0%)")
    program(programs / "sacct", "echo '7_0|CANCELLED by 0|0:0|0|'")
    assert "1 CANCELLED" in standing(planned, tmp_path).notes[-1]


def test_where_slurm_is_silent_what_it_said_before_stays(tmp_path: Path, programs: Path) -> None:
    planned = plan(toy_stages.sweep())
    rows = sent(planned, tmp_path)
    film, teleop = (next(job for job in planned.jobs.values() if job.stage == stage) for stage in ("film", "teleop"))
    film.create(tmp_path).fail("an earlier attempt")  # sent again, and waiting
    program(programs / "squeue", f"cat <<.\n{rows}\n.")
    before = standing(planned, tmp_path)
    assert before.counts == {"queued": len(planned.jobs)} and before.silent_since is None
    program(programs / "squeue", AWAY)
    teleop.create(tmp_path).finish({})
    found = standing(planned, tmp_path, before=before)
    assert found.counts == {"queued": len(planned.jobs) - 1, "done": 1} and not found.reasons
    again = standing(planned, tmp_path, before=found)
    assert again.counts == found.counts and again.silent_since == found.silent_since is not None
    assert any(f"cannot be asked since {found.silent_since:%H:%M:%S}" in line for line in lines(again))
    program(programs / "squeue", "exit 0")
    back = standing(planned, tmp_path, before=again)
    assert back.silent_since is None and back.states[film.key] == "failed" and not back.counts["queued"]


def test_a_watch_outlasts_a_controller_that_is_away(
    tmp_path: Path, programs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in ("WATCH_EVERY_S", "WATCH_SILENT_S"):
        monkeypatch.setattr(cli_sweep_plan, pause, 0.01)
    root = tmp_path / "runs"
    rows = sent(plan(toy_stages.sweep()), root)
    looks = tmp_path / "looks"
    all_wait = f"cat <<.\n{rows}\n."
    program(
        programs / "squeue",
        f"echo >> {looks}\ncase $(wc -l < {looks}) in\n1|6) {all_wait}\n;;\n[2-5]) {AWAY};;\nesac",
    )
    assert watched(root) == 1
    assert len(looks.read_text()) == 6 + 2  # it was seen to be idle twice, after it had answered again
    said = capsys.readouterr().out
    assert said.count("cannot be asked since") == 1  # and what was queued stays so: the lines did not change again
    away = said.partition("waiting in the queue")[2].partition("cannot be asked")[0]
    assert f"\n○ queued {len(rows.splitlines())}\n" in away


def test_a_watch_where_slurm_is_not_ends(
    tmp_path: Path, programs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs"
    sent(plan(toy_stages.sweep()), root)
    monkeypatch.setenv("PATH", str(programs))
    assert watched(root) == 1
    assert "`squeue` is not on this machine" in capsys.readouterr().out
