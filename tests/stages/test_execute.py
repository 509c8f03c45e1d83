"""Running one folder to its end, when somebody else does so too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from egoscale.recipe import load_recipe
from egoscale.resources import find
from egoscale.stages import execute
from egoscale.sweep.ledger import RunFolder


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
