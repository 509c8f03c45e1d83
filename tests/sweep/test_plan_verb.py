"""`egoscale sweep plan`: a page or JSON, and no grid without a law unless told to go on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import toy_stages

from egoscale.cli import main

LAWFUL = ("film.hours=1.4", "grid.hours=[0.0, 0.05, 0.15, 0.4, 1.0]", "grid.seeds=[0, 1]", "grid.demos=[20, 80]")


def sweep(verb: str, root: Path, *overrides: str, more: tuple[str, ...] = ()) -> int:
    words = [word for value in overrides for word in ("--set", value)]
    with pytest.raises(SystemExit) as ended:
        main(["sweep", verb, str(toy_stages.RECIPE), "--root", str(root), *words, *more])
    return int(ended.value.code or 0)


def test_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("plan", tmp_path, *LAWFUL) == 0
    said = capsys.readouterr().out
    assert "20 cells from 70 runs" in said
    for word in ("GPU-hours", "disk", "longest chain", "wall time", "unknown"):
        assert any(line.startswith(word) for line in said.splitlines()), word
    assert not list(tmp_path.iterdir())  # it changes nothing


def test_json_has_the_same_under_stable_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("plan", tmp_path, *LAWFUL, more=("--json", "--profile", "profiles/h100")) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {
        "name", "cells", "runs", "done", "stages", "device", "gpu_hours", "disk_bytes", "critical", "critical_hours",
        "wall_hours", "jobs", "profile", "unknown", "notes", "study", "law", "refused",
    }  # fmt: skip
    assert set(said["stages"][0]) == {
        "stage", "runs", "shared", "states", "device", "gpu_hours", "gpu_hours_from", "hours", "hours_from",
        "disk_bytes", "disk_from",
    }  # fmt: skip
    assert (said["profile"], said["jobs"], said["refused"], said["study"]) == ("h100", None, False, "tabletop")
    world = next(stage for stage in said["stages"] if stage["stage"] == "world")
    assert world["gpu_hours"] > 0 and world["gpu_hours_from"] == "dry run"
    assert said["device"] == world["device"] == "H100"


def test_the_gpu_is_the_profiles_unless_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hours = {}
    for words in ((), ("--device", "H100")):
        assert sweep("plan", tmp_path, *LAWFUL, more=("--json", "--profile", "profiles/a100", *words)) == 0
        said = json.loads(capsys.readouterr().out)
        hours[said["device"]] = next(stage["gpu_hours"] for stage in said["stages"] if stage["stage"] == "world")
    assert hours["A100"] == pytest.approx(hours["H100"] * 989 / 312)


def test_a_grid_without_a_law_is_refused_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = (*LAWFUL, "grid.hours=[0.0, 0.05, 1.0]")
    assert sweep("plan", tmp_path, *two) == 2
    said = capsys.readouterr()
    assert "E_SIZES  2 distinct size(s)" in said.out and "--anyway" in said.err
    assert sweep("plan", tmp_path, *two, more=("--anyway",)) == 0
    capsys.readouterr()
    assert sweep("submit", tmp_path, *two, more=("--profile", "profiles/cpu-test")) == 2
    assert "E_SIZES" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_without_torch_what_it_would_say_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("egoscale.stages.forecasting", "egoscale.stages.dry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    assert sweep("plan", tmp_path, *LAWFUL) == 0
    assert "GPU-hours of tokenizer, encode, latent-action, world" in capsys.readouterr().out
