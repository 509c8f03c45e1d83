"""Running one folder to its end, when somebody else does so too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from egoscale import cli_sweep
from egoscale.recipe import load_recipe
from egoscale.resources import find
from egoscale.stages import execute
from egoscale.sweep.element import ended
from egoscale.sweep.ledger import RunFolder
from egoscale.sweep.worker import REQUEUE


def test_a_run_that_was_finished_while_it_was_waited_for_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path, load_recipe(find("recipes", "sweeps/tabletop")).film, {})
    lock = RunFolder.lock

    @contextlib.contextmanager
    def late(run: RunFolder) -> Iterator[None]:
        run.finish({"by": "the other"})  # it held the lock when we looked for a result
        with lock(run):
            yield

    monkeypatch.setattr(RunFolder, "lock", late)
    execute(str(folder.path))
    assert folder.result() == {"by": "the other"}
    assert [event["event"] for event in folder.events()] == ["end"]


@pytest.mark.parametrize(("stage", "works"), [("film", False), ("tokenizer", True)])
def test_a_stage_that_cannot_be_shared_is_the_first_ranks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, works: bool
) -> None:
    folder = RunFolder.create(tmp_path, getattr(load_recipe(find("recipes", "sweeps/tabletop")), stage), {})
    begun: list[str] = []
    monkeypatch.setattr("egoscale.stages.stage", lambda name: lambda work: begun.append(name))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    execute(str(folder.path))
    assert bool(begun) == works and folder.result() is None and not folder.events()


@pytest.mark.parametrize("trouble", ["locked", "no torch"])
def test_a_look_by_hand_at_a_run_of_slurm_leaves_its_story_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trouble: str
) -> None:
    folder = RunFolder.create(tmp_path, load_recipe(find("recipes", "sweeps/tabletop")).film, {})
    if trouble == "no torch":  # what fails by hand before it comes to the lock

        def stages() -> cli_sweep.Stages:
            raise ModuleNotFoundError("No module named 'torch'")

        monkeypatch.setattr(cli_sweep, "stages", stages)
    with folder.lock():
        folder.event("start")
        with pytest.raises(typer.Exit) as stopped:
            cli_sweep.execute(folder)
        folder.event("save", step=5)
    assert stopped.value.exit_code == 1
    assert ("works on this run; wait for it" if trouble == "locked" else "No module named") in capsys.readouterr().err
    assert [event["event"] for event in folder.events()] == ["start", "save"]
    assert ended(folder, REQUEUE, retries=3) == REQUEUE


def test_a_failure_of_ones_own_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path, load_recipe(find("recipes", "sweeps/tabletop")).film, {})

    def broken(work: object) -> dict[str, object]:
        raise ValueError("clip kitchen/17: duration_s = -1")

    monkeypatch.setattr("egoscale.stages.stage", lambda name: broken)
    with pytest.raises(typer.Exit):
        cli_sweep.execute(folder)
    assert folder.state() == "failed" and folder.events()[-1]["reason"] == "clip kitchen/17: duration_s = -1"
