"""Where a sweep stands: a line a stage, a glyph a run, or the number of each glyph where runs are many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_stages

from egoscale.cli import main
from egoscale.sweep.plan import plan
from egoscale.sweep.status import lines, standing


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
    words = [word for value in toy_stages.SMALL for word in ("--set", value)]
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "status", str(toy_stages.RECIPE), "--watch", "--root", str(root), *words])
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("\nworld ") == 1
