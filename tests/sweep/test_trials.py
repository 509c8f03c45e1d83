"""Trials on real robots: sheets are blinded, complete and balanced."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import re
import shutil
import subprocess
from collections import Counter
from itertools import groupby, pairwise
from pathlib import Path

import polars as pl
import pytest
import toy_stages
from hypothesis import given
from hypothesis import strategies as st
from trial_sheets import NAMES, filled, keys, made, named, quick, saved

from egoscale.cli import main
from egoscale.recipe import RecipeError, WorldRecipe
from egoscale.sweep.ledger import collect
from egoscale.sweep.plan import plan
from egoscale.sweep.trials import HASH, Key, digest, of_run, policy, schedule, sheet_text, write
from egoscale.sweep.trials_page import page_text
from egoscale.sweep.trials_record import record

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


# --- the sheet


@quick
@given(keys())
def test_every_block_holds_each_policy_once_for_each_task_and_initial_condition(key: Key) -> None:
    conditions = {row.initial_condition for row in key.plan}
    for _, rows in groupby(key.plan, key=lambda row: row.block):
        found = Counter((row.code, row.task, row.initial_condition) for row in rows)
        assert found == Counter((code, task, at) for code in key.codes for task in key.tasks for at in conditions)


@quick
@given(keys())
def test_policies_alternate_and_every_policy_is_equally_often_first_second_last(key: Key) -> None:
    places: Counter[tuple[str, str, int]] = Counter()
    sets = [(place, [row.code for row in rows]) for place, rows in groupby(key.plan, key=lambda row: row.set)]
    for (_, task, _), codes in sets:
        assert sorted(codes) == sorted(key.codes)  # each once, one after another, from the same state
        places.update((task, code, place) for place, code in enumerate(codes))
    for task in key.tasks:
        counts = [places[task, code, place] for code in key.codes for place in range(len(key.codes))]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("num", [2, 3, 4, 5, 6])
def test_what_went_before_is_balanced_over_a_square(num: int) -> None:
    length = num * (2 if num % 2 else 1)
    key = made(num, ("push",), trials=length, conditions=1)
    orders = [[row.code for row in rows] for _, rows in groupby(key.plan, key=lambda row: row.set)]
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert len(follows) == num * (num - 1) and len(set(follows.values())) == 1


@quick
@given(keys(), st.randoms())
def test_the_same_seed_gives_the_same_sheet_in_whatever_order_things_are_named(key: Key, rng: random.Random) -> None:
    policies, tasks = list(key.policies), key.tasks
    rng.shuffle(policies)
    rng.shuffle(tasks)
    conditions = max(row.initial_condition for row in key.plan)
    again = schedule(named(policies), tasks, conditions * key.plan[-1].block, conditions, key.seed)
    assert again.text() == key.text() and sheet_text(again) == sheet_text(key)


def test_letters_and_orders_change_with_the_seed() -> None:
    many = [schedule(named(NAMES[:6]), ["push"], 2, 1, seed) for seed in range(20)]
    assert len({tuple(key.codes.items()) for key in many}) > 15
    assert len({key.trials for key in many}) > 15
    first = Counter(key.codes["A"] for key in many)
    assert max(first.values()) < 12


def test_more_policies_than_letters() -> None:
    assert list(schedule(named(NAMES), ["push"], 1, 1, 0).codes)[24:28] == ["Y", "Z", "AA", "AB"]


def test_sheet_and_page_show_letters_alone_and_the_hash_of_the_key(key: Key, tmp_path: Path) -> None:
    files = write(key, tmp_path / "out")
    sheet, page, sealed = (path.read_text() for path in files)
    assert not re.search(r"policy-\d\d|seed", sheet + page)
    assert hashlib.sha256(files[2].read_bytes()).hexdigest() == digest(sealed)
    assert {row[HASH] for row in csv.DictReader(io.StringIO(sheet))} == {digest(sealed)}
    assert page.count(digest(sealed)) == page.count("<section>")
    assert files[2].stat().st_mode & 0o077 == 0
    assert set(json.loads(sealed)["codes"].values()) == set(NAMES[:3])
    assert not re.search(r"(src|href)=|url\(|<script|https?:", page)


@quick
@given(keys())
def test_the_page_has_every_trial_once_in_order(key: Key) -> None:
    page = page_text(key, "0" * 64)
    assert [int(number) for number in re.findall(r"<tr><td>(\d+)</td>", page)] == list(range(1, len(key.trials) + 1))
    assert all(section.count("<tr><td>") <= 20 for section in page.split("<section>"))
    assert page.count('class="box"') == 2 * len(key.trials)


def test_a_sheet_is_never_written_over_another(key: Key, tmp_path: Path) -> None:
    sheet = write(key, tmp_path)[0]
    assert write(key, tmp_path)[0] == sheet  # the same again changes nothing
    saved(filled(key), sheet)
    before = sheet.read_bytes()
    with pytest.raises(ValueError, match=r"sheet\.csv: there is another one, perhaps filled in"):
        write(key, tmp_path)
    assert sheet.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policies": NAMES[:1]}, "two or more"),
        ({"tasks": []}, "--tasks none"),
        ({"tasks": ["push", ""]}, "--tasks ''"),
        ({"tasks": ["=1+1"]}, "--tasks '=1\\+1'"),
        ({"tasks": ["push", "push"]}, "each task once"),
        ({"num_trials": 0}, "both must be 1 or more"),
        ({"num_conditions": -1}, "both must be 1 or more"),
        ({"num_trials": 7}, "say 5 or 10"),
        ({"num_trials": 3}, "say 5$"),
        ({"num_trials": 10**9}, "trials in all"),
    ],
)
def test_designs_that_are_refused(change: dict[str, object], said: str) -> None:
    asked = {"policies": NAMES[:3], "tasks": ["push"], "num_trials": 10, "num_conditions": 5, "seed": 0} | change
    with pytest.raises(ValueError, match=said):
        schedule(**asked | {"policies": named(asked["policies"])})  # type: ignore[arg-type, call-overload]


# --- policies that are runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A finished sweep of toys."""
    for job in plan(toy_stages.sweep()).jobs.values():
        job.create(tmp_path / "runs").finish(toy_stages.RESULTS.get(job.stage, {}))
    return tmp_path / "runs"


def test_policies_of_a_sweep_come_back_as_its_own_table_has_them(runs: Path, tmp_path: Path) -> None:
    planned = plan(toy_stages.sweep())
    policies = dict(of_run(job.run(runs)) for job in planned.jobs.values() if job.stage == "finetune")
    key = schedule(policies, ["touch", "lift"], 6, 3, 0)
    shutil.rmtree(runs / "world")  # the key knows all; the runs may lie on another machine by now
    (tmp_path / "key.json").write_text(key.text())
    table = record(saved(filled(key), tmp_path / "sheet.csv"), tmp_path / "key.json").table().sort("hours")
    for job in planned.jobs.values():
        if job.stage == "world":
            job.create(runs).finish(toy_stages.RESULTS["world"])
    simulated = collect(runs, planned.jobs.values()).sort("hours")
    same = [name for name in simulated.columns if not name.startswith(("successes", "trials", "evaluate"))]
    assert table.select(same).equals(simulated.select(same))
    # Columns, order and types are those of the sweep's table; what only robots have comes last.
    assert table.columns[: len(simulated.columns)] == simulated.columns
    assert table.schema.items() >= simulated.schema.items()
    assert table["evaluate_key"].null_count() == 2
    assert table["trials"].to_list() == [12, 12] and table["trials_lift"].to_list() == [6, 6]


SIZES = ("grid.models.small={width=32, num_layers=1}", "grid.models.large={width=64, num_layers=2}")
PARAMETERS = {32: 10_000, 64: 80_000}


@pytest.fixture
def sized(tmp_path: Path) -> Path:
    """A finished sweep of toys, in which numbers of scenes and sizes differ."""
    for job in plan(toy_stages.sweep("grid.scenes=[1, 2]", *SIZES)).jobs.values():
        found = dict(toy_stages.RESULTS.get(job.stage, {}))
        if isinstance(job.recipe, WorldRecipe):
            found["num_parameters"] = PARAMETERS[job.recipe.model.blocks.width]
        job.create(tmp_path / "runs").finish(found)
    return tmp_path / "runs"


def tabled(folder: Path) -> pl.DataFrame:
    """The table of a sheet that the command line wrote into a folder, filled in here."""
    rows = list(csv.DictReader((folder / "sheet.csv").open(newline="")))
    sheet = saved([row | {"success": "1"} for row in rows], folder / "sheet.csv")
    return record(sheet, folder / "key.json").table()


def test_scenes_and_sizes_of_a_sweep_are_in_the_table_of_its_real_trials(sized: Path, tmp_path: Path) -> None:
    changes = [word for change in ("grid.scenes=[1, 2]", *SIZES) for word in ("--set", change)]
    changes += [word for change in toy_stages.SMALL for word in ("--set", change)]
    words = ("--sweep", "sweeps/tabletop", *changes, "--root", sized)
    tasks = ("--tasks", "touch,lift", "--trials", "2", "--initial-conditions", "1")
    assert run("trials", "schedule", *words, *tasks, "--out", tmp_path / "out") == 0
    table = tabled(tmp_path / "out")
    simulated = collect(sized, plan(toy_stages.sweep("grid.scenes=[1, 2]", *SIZES)).jobs.values())
    same = [name for name in simulated.columns if not name.startswith(("successes", "trials", "evaluate"))]
    assert {"scenes", "model", "parameters"} < set(same)
    assert table.columns[: len(simulated.columns)] == simulated.columns
    assert table.sort("finetune_key").select(same).equals(simulated.sort("finetune_key").select(same))
    assert table.select("hours", "scenes", "model", "seed").is_unique().all()  # no row is another's double


def test_policies_named_one_by_one_tell_their_scenes_and_sizes(sized: Path, tmp_path: Path) -> None:
    policies = dict(policy(str(run), sized) for run in (sized / "finetune").iterdir())
    write(schedule(policies, ["touch"], 1, 1, 0), tmp_path / "all")
    table = tabled(tmp_path / "all")
    assert "model" not in table.columns  # a name in a grid; no run knows it
    found = sorted(table.select("hours", "scenes", "parameters").rows(), key=str)
    assert found == [(0.0, None, None)] * 2 + [(0.25, n, size) for n in (1, 2) for size in PARAMETERS.values()]
    one = {name: row for name, row in policies.items() if row["parameters"] == 10_000}
    write(schedule(one, ["touch"], 1, 1, 0), tmp_path / "one")
    assert "parameters" not in tabled(tmp_path / "one").columns  # as of a sweep whose grid names no sizes
    for stage in ("subset", "world"):
        shutil.rmtree(sized / stage)  # gone from this machine: not known, and no error
    rows = [policy(str(run), sized)[1] for run in (sized / "finetune").iterdir()]
    assert {(row["scenes"], row["parameters"]) for row in rows} == {(None, None)}


def test_a_policy_is_a_run_below_root_or_a_path_or_a_name(runs: Path) -> None:
    run = next((runs / "finetune").iterdir())
    assert policy(str(run), Path("elsewhere")) == policy(f"finetune/{run.name}", runs)
    name, row = policy(str(run), runs)
    assert name == f"finetune/{run.name}" and row["finetune_key"] == run.name and row["demos"] == 5
    assert policy("openvla-7b@main", runs) == ("openvla-7b@main", {})
    with pytest.raises(FileNotFoundError, match="no such run folder; the name of a policy has no slash"):
        policy("runs/finetune/000000000000", runs)
    with pytest.raises(RecipeError, match="a run of stage evaluate; robots run policies"):
        policy(str(next((runs / "evaluate").iterdir())), runs)
    (run / "result.json").unlink()
    with pytest.raises(RecipeError, match="is new, not done"):
        policy(str(run), runs)
    for bad in ("", "=cmd", "block", "a\nb", "x" * 81, "a,b"):
        with pytest.raises(ValueError, match="policy"):
            policy(bad, runs)


# --- the command line


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return int(stopped.value.code or 0)


DESIGN = ("--tasks", "push, lift", "--trials", "10", "--initial-conditions", "5")


def test_schedule_and_record_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trials", "schedule", *NAMES[:2], *DESIGN, "--seed", "1", "--out", tmp_path) == 0
    said = capsys.readouterr().out
    assert "40 trials: 2 policies" in said and "takes 93 trials a policy; this sheet has 20 (power 0.25)" in said
    assert "--trials 50 would do" in said and "SHA-256 of the key" in said and (tmp_path / "sheet.html").is_file()
    rows = [
        row | {"success": "1", "operator": "Ada"} for row in csv.DictReader((tmp_path / "sheet.csv").open(newline=""))
    ]
    saved(rows, tmp_path / "sheet.csv")
    words = ("trials", "record", tmp_path / "sheet.csv", "--key", tmp_path / "key.json", "--out")
    for kind in ("csv", "parquet"):
        assert run(*words, tmp_path / "real" / f"table.{kind}") == 0
        assert "20/20" in capsys.readouterr().out
        assert (tmp_path / "real" / f"table-trials.{kind}").is_file()
    pairs = tmp_path / "real" / "table-pairs.csv"
    assert run("ask", "pairs", pairs, "--a", NAMES[0], "--b", NAMES[1]) == 0
    assert run(*words, tmp_path / "table.txt") == 2
    assert run(*words, tmp_path / "sheet.csv") == 2
    saved(rows[:-1], tmp_path / "sheet.csv")
    assert run(*words, tmp_path / "table.csv") == 2 and "--partial" in capsys.readouterr().err
    assert run(*words, tmp_path / "table.csv", "--partial") == 0
    assert "partial: 1 of 40 trials were not run" in capsys.readouterr().out
    assert sorted(pl.read_csv(tmp_path / "table.csv")["state"].to_list()) == ["done", "partial"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "a"], "named twice"),
        (["a", "b", "--difference", "0.6"], "a success rate lies between 0 and 1"),
        (["a", "b", "--difference", "0"], "name two rates"),
        (["a", "b", "--power", "1"], "power = 1"),
        (["a", "b", "--set", "grid.seeds=[0]"], "name it with --sweep"),
        (["--sweep", "sweeps/tabletop"], "none of its 20 policies"),
        ([], "0 policies"),
    ],
)
def test_bad_schedules_write_nothing(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--out", tmp_path / "out", "--root", tmp_path / "runs")
    assert run("trials", "schedule", *words, *DESIGN, *where) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_a_seed_every_key_is_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("trials", "schedule", *NAMES[:2], *DESIGN, "--out", tmp_path / name) == 0
    seeds = {json.loads((tmp_path / name / "key.json").read_text())["seed"] for name in ("a", "b")}
    assert len(seeds) == 2


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine to print the page")
@pytest.mark.parametrize("num", [2, 7, 25])
def test_every_page_fits_on_one_sheet_of_paper(num: int, tmp_path: Path) -> None:
    key = schedule(named(NAMES[:num]), ["fold-the-very-large-blue-tea-towel-twice"], 6, 3, 0)
    page = write(key, tmp_path / "out")[1]
    paper = tmp_path / "page.pdf"
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
        "--no-pdf-header-footer", f"--print-to-pdf={paper}", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) == page.read_text().count("<section>")
