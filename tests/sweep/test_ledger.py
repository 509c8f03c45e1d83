"""Run folders: whole or absent, states from files, locks that die with their process, the table."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import toy_stages

from egoscale.recipe import RecipeError, SelectRecipe, SubsetRecipe
from egoscale.sweep import lock
from egoscale.sweep.ledger import RunFolder, RunLockedError, collect, reason_of, run_key
from egoscale.sweep.lock import process_start
from egoscale.sweep.plan import plan


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, SelectRecipe(), {})


def test_the_key_sees_stage_recipe_and_inputs_and_nothing_else(tmp_path: Path) -> None:
    key = run_key(SelectRecipe(), {"catalog": "a" * 12})
    assert len(key) == 12
    assert int(key, 16) >= 0
    assert key == run_key(SelectRecipe(min_duration_s=0.5), {"catalog": "a" * 12})
    assert key != run_key(SelectRecipe(min_duration_s=0.6), {"catalog": "a" * 12})
    assert key != run_key(SelectRecipe(), {"catalog": "b" * 12})
    assert key != run_key(SelectRecipe(), {"other": "a" * 12})
    assert RunFolder.create(tmp_path / "x", SelectRecipe(), {}).key == run_key(SelectRecipe(), {})


def test_create_is_idempotent_and_open_gives_recipe_and_inputs_back(tmp_path: Path) -> None:
    select = RunFolder.create(tmp_path, SelectRecipe(min_size_px=48), {})
    subset = RunFolder.create(tmp_path, SubsetRecipe(hours=0.5), {"select": select})
    before = (subset.path / "recipe.toml").stat().st_mtime_ns
    assert RunFolder.create(tmp_path, SubsetRecipe(hours=0.5), {"select": select}) == subset
    assert (subset.path / "recipe.toml").stat().st_mtime_ns == before
    opened = RunFolder.open(subset.path)
    assert opened.recipe() == SubsetRecipe(hours=0.5)
    assert str(opened.inputs()["select"]) == str(select) == f"select/{select.key}"
    assert opened.inputs()["select"].recipe() == SelectRecipe(min_size_px=48)


def test_a_half_written_folder_is_named_on_opening_and_mended_on_creating(folder: RunFolder) -> None:
    (folder.path / "recipe.toml").rename(folder.path / ".recipe.toml.x.tmp")  # killed before the rename
    with pytest.raises(RecipeError, match=r"recipe\.toml is missing, so the run folder is half written"):
        RunFolder.open(folder.path)
    RunFolder.create(folder.root, SelectRecipe(), {})
    assert RunFolder.open(folder.path).recipe() == SelectRecipe()
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        RunFolder.open(folder.path.with_name("0" * 12))


def test_damaged_files_are_errors_with_a_path(folder: RunFolder) -> None:
    (folder.path / "inputs.json").write_text('{"catalog": ')
    with pytest.raises(RecipeError, match=r"inputs\.json"):
        RunFolder.open(folder.path).inputs()
    (folder.path / "recipe.toml").write_text('stage = "select"\nmin_siz')
    with pytest.raises(RecipeError, match=r"recipe\.toml: is not valid TOML"):
        RunFolder.open(folder.path).recipe()


def test_states_follow_what_happened(folder: RunFolder) -> None:
    assert folder.state() == "new"
    with folder.lock():
        folder.event("start")
        assert folder.state() == "running"
    assert folder.state() == "interrupted"
    folder.fail("clip 3 is damaged")
    assert folder.state() == "failed"
    folder.event("start")
    assert folder.state() == "interrupted"
    folder.finish({"loss": 0.5})
    assert folder.state() == "done"
    assert folder.result() == {"loss": 0.5}
    assert [event["event"] for event in folder.events()] == ["start", "fail", "start", "end"]


def test_a_torn_last_event_is_left_out_and_the_next_one_is_whole(folder: RunFolder) -> None:
    folder.event("start", step=0)
    with (folder.path / "events.jsonl").open("a") as file:
        file.write('{"time": "2026-01-01T00:')
    assert [event["event"] for event in folder.events()] == ["start"]
    folder.event("save", step=20)
    assert [event["event"] for event in folder.events()] == ["start", "save"]


@pytest.mark.parametrize("text", ["", '{"loss": 0.', "[1]", "null"])
def test_a_result_that_is_not_whole_is_no_result(folder: RunFolder, text: str) -> None:
    folder.event("start")
    (folder.path / "result.json").write_text(text)
    assert folder.result() is None
    assert folder.state() == "interrupted"


def test_a_result_that_cannot_be_written_leaves_the_run_undone(folder: RunFolder) -> None:
    folder.event("start")
    circular: dict[str, object] = {}
    circular["self"] = circular
    with pytest.raises(ValueError, match="Circular"):
        folder.finish(circular)
    assert folder.state() == "interrupted"
    assert not list(folder.path.glob("*.tmp"))


def test_numbers_of_numpy_become_plain(folder: RunFolder) -> None:
    import numpy as np

    folder.finish({"loss": np.float32(0.5), "steps": np.int64(3), "path": folder.path})
    assert folder.result() == {"loss": 0.5, "steps": 3, "path": str(folder.path)}


def test_seconds_add_up_over_attempts(folder: RunFolder) -> None:
    times = [("00:00:00", "start"), ("00:00:10", "save"), ("01:00:00", "start"), ("01:00:05", "end")]
    lines = [json.dumps({"time": f"2026-01-01T{time}+00:00", "event": event}) for time, event in times]
    (folder.path / "events.jsonl").write_text("\n".join(lines) + "\n")
    assert folder.seconds() is None
    (folder.path / "result.json").write_text("{}")
    assert folder.seconds() == 15.0


def test_one_process_at_a_time_and_a_killed_ones_lock_is_taken_over(folder: RunFolder) -> None:
    folder.event("start")
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import time\n"
        "from egoscale.sweep.ledger import RunFolder\n"
        f"with RunFolder.open({str(folder.path)!r}).lock():\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert folder.state() == "running"
    with pytest.raises(RunLockedError, match=f"process {other.pid}"), folder.lock():
        pass
    other.kill()
    other.wait()
    assert folder.state() == "interrupted"
    with folder.lock():
        assert folder.state() == "running"
    assert not (folder.path / "lock").exists()


def test_a_pid_that_came_round_again_holds_nothing(folder: RunFolder) -> None:
    owner = {"pid": os.getpid(), "started": "another boot:123", "host": socket.gethostname()}
    (folder.path / "lock").write_text(json.dumps(owner))
    assert folder.holder() is None
    with folder.lock():
        pass


def test_the_lock_of_another_machine_is_respected(folder: RunFolder) -> None:
    owner = {"pid": 1, "started": "x:1", "host": "node017"}
    (folder.path / "lock").write_text(json.dumps(owner))
    assert folder.state() == "running"
    with pytest.raises(RunLockedError, match="process 1 on node017"), folder.lock():
        pass


def test_a_held_lock_is_touched_for_other_machines_to_see(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    path = folder.path / "lock"
    with folder.lock():
        os.utime(path, (0, 0))
        end = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.02)
        assert lock.silent(path) is None
        path.write_text(json.dumps({"pid": 1, "started": "x:1", "host": "node017"}))  # taken away, and taken
        os.utime(path, (0, 0))
        time.sleep(0.3)
        assert path.stat().st_mtime == 0
        assert "process 1 on node017 holds the run, and has shown no life" in (lock.silent(path) or "")
    assert path.exists()


@pytest.mark.parametrize(
    ("owner", "taken"),
    [
        ({"started": "another boot:123", "host": socket.gethostname()}, True),  # a sweep that was killed here
        ({"started": process_start(os.getpid()), "host": socket.gethostname()}, False),
        ({"started": "x:1", "host": "login01"}, False),  # nothing is known of it
        ({"started": "x:1", "host": "gpu017", "job": "17_0"}, True),
        ({"started": "x:1", "host": "gpu017", "job": "18_0"}, False),
    ],
)
def test_the_lock_of_what_is_known_to_have_ended_is_taken_away(
    folder: RunFolder, owner: dict[str, str], taken: bool
) -> None:
    path = folder.path / "lock"
    path.write_text(json.dumps({"pid": os.getpid(), **owner}))
    assert lock.take_away(path, lambda job: job == "17_0") is taken
    assert path.exists() is not taken
    assert not lock.take_away(folder.path / "none", lambda job: True)


def test_a_torn_lock_holds_nothing(folder: RunFolder) -> None:
    (folder.path / "lock").write_text('{"pid": 1')
    with folder.lock():
        assert folder.holder() is not None


def test_the_table_has_a_row_a_cell_and_missing_numbers_stay_missing(tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep())
    for job in planned.jobs.values():
        run = job.create(tmp_path)
        if job.stage != "evaluate" or job.labels["hours"] == 0:
            run.finish(toy_stages.RESULTS.get(job.stage, {}))
    table = collect(tmp_path, planned.jobs.values()).sort("hours")
    assert table["hours"].to_list() == [0.0, 0.25]
    assert table["arm"].to_list() == ["latent", "latent"]
    assert table["state"].to_list() == ["done", "new"]
    assert table["successes"].to_list() == [3, None]
    assert table["trials_lift"].to_list() == [6, None]
    assert table["world_loss"].to_list() == [None, 0.5]
    assert table["hours_unique"].to_list() == [0.0, 0.24]
    assert table["subset_hash"].to_list() == [None, "abc"]
    assert table["world_key"][0] is None  # from scratch there is no world model, no latent actions, no subset
    assert table["latent_action_key"][0] is None
    assert table["subset_key"][0] is None
    assert table["evaluate_key"].n_unique() == 2
    assert table["tokenizer_key"].n_unique() == 1
    assert table.schema["successes"] == pl.Int64


def test_the_table_of_a_sweep_that_has_not_begun_is_all_null(tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep())
    table = collect(tmp_path, planned.jobs.values())
    assert table.height == 2
    assert table["trials"].null_count() == 2
    assert table.schema["world_loss"] == pl.Float64


def test_the_table_names_the_axes_that_the_grid_names(tmp_path: Path) -> None:
    assert not {"model", "scenes"} & set(collect(tmp_path, plan(toy_stages.sweep()).jobs.values()).columns)
    planned = plan(toy_stages.sweep("grid.scenes=[5]", "grid.models.small={width=32}"))
    world = next(job for job in planned.jobs.values() if job.stage == "world")
    world.create(tmp_path).finish({"num_parameters": 1000})
    table = collect(tmp_path, planned.jobs.values()).sort("hours")
    assert table.select("hours", "model", "scenes", "parameters").rows() == [
        (0.0, "small", None, None),
        (0.25, "small", 5, 1000),
    ]


def test_reasons_are_for_people() -> None:
    assert "the disk is full (a.bin)" in reason_of(OSError(28, "No space left on device", "a.bin"))
    assert reason_of(ValueError("clip 3: fix it")) == "clip 3: fix it"
    assert reason_of(ZeroDivisionError("division by zero")) == "ZeroDivisionError: division by zero"
    assert "out of memory" in reason_of(MemoryError())
