"""Trials on real robots: sheets are blinded, complete and balanced; what comes back is checked to the cell."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby, pairwise
from pathlib import Path

import polars as pl
import pytest
import toy_stages
from hypothesis import given, settings
from hypothesis import strategies as st

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
NAMES = [f"policy-{number:02d}" for number in range(30)]
quick = settings(max_examples=40, deadline=None)


def named(policies: Iterable[str]) -> dict[str, dict[str, object]]:
    """Policies of which nothing is known but the name."""
    return {name: {} for name in policies}


@st.composite
def keys(draw: st.DrawFn) -> Key:
    policies = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=9, unique=True))
    tasks = draw(st.lists(st.sampled_from(["push", "lift", "fold-towel", "pour water"]), min_size=1, unique=True))
    conditions, blocks = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    return schedule(named(policies), tasks, conditions * blocks, conditions, draw(st.integers(0, 2**62)))


def made(num_policies: int = 3, tasks: tuple[str, ...] = ("push", "lift"), trials: int = 4, conditions: int = 2) -> Key:
    return schedule(named(NAMES[:num_policies]), tasks, trials, conditions, seed=7)


def filled(key: Key, seed: int = 0, **columns: str) -> list[dict[str, str]]:
    """The sheet as rows, run to its end."""
    rng = random.Random(seed)
    rows = list(csv.DictReader(io.StringIO(sheet_text(key))))
    return [row | {"success": rng.choice("01"), "operator": "Ada"} | columns for row in rows]


def saved(rows: list[dict[str, str]], path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def key() -> Key:
    return made()


@pytest.fixture
def sealed(key: Key, tmp_path: Path) -> Path:
    (tmp_path / "key.json").write_text(key.text())
    return tmp_path / "key.json"


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


# --- the way back


@quick
@given(keys(), st.integers(0, 10**6))
def test_record_of_a_schedule_counts_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, key: Key, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("trials")
    (folder / "key.json").write_text(key.text())
    rows = filled(key, seed)
    for row in rows:
        grades = ["", "1", "1.0"] if row["success"] == "1" else ["", "0", "0.25", ".5"]
        row["partial_credit"] = random.Random(f"{seed} {row['trial']}").choice(grades)
    random.Random(seed).shuffle(rows)  # a spreadsheet may have sorted them
    found = record(saved(rows, folder / "sheet.csv"), folder / "key.json")
    assert found.key == key and found.num_missing == 0
    for line in found.table().iter_rows(named=True):
        mine = [row for row in rows if key.codes[row["code"]] == line["policy"]]
        credits = [float(row["partial_credit"]) for row in mine if row["partial_credit"]]
        assert (line["successes"], line["trials"]) == (sum(row["success"] == "1" for row in mine), len(mine))
        assert line["graded_trials"] == len(credits) and line["state"] == "done" and line["operator"] == "Ada"
        assert line["mean_partial_credit"] == (pytest.approx(sum(credits) / len(credits)) if credits else None)
        assert sum(line[f"trials_{task}"] for task in key.tasks) == line["trials"]
        assert sum(line[f"successes_{task}"] for task in key.tasks) == line["successes"]
    raw, pairs = found.raw(), found.pairs()
    assert raw["trial"].to_list() == list(range(1, len(rows) + 1))
    assert pairs.height * len(key.codes) == len(rows)
    for name in key.policies:
        assert pairs[name].sum() == raw.filter(policy=name)["success"].sum()


@quick
@given(keys(), st.randoms())
def test_trials_that_were_not_run_are_never_failures(
    tmp_path_factory: pytest.TempPathFactory, key: Key, rng: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("trials")
    (folder / "key.json").write_text(key.text())
    rows = filled(key, success="1", partial_credit="1")
    for row in rows:
        if rng.random() < 0.5:  # not run, or broken off: credit alone is no verdict
            row |= {"success": "", "partial_credit": rng.choice(["", "0.1"])}
    kept = [row for row in rows if row["success"] or rng.random() < 0.5] or rows[:1]  # some rows were never typed in
    found = record(saved(kept, folder / "sheet.csv"), folder / "key.json", partial=True)
    for line in found.table().iter_rows(named=True):
        run = sum(row["success"] == "1" for row in rows if key.codes[row["code"]] == line["policy"])
        all_of_it = len(rows) // len(key.codes)
        assert line["successes"] == line["trials"] == (run or None)  # none at all is not known, and not 0
        assert line["state"] == ("done" if run == all_of_it else "partial")
        assert line["mean_partial_credit"] in (None, 1.0)
    assert found.num_missing == sum(not row["success"] for row in rows)
    assert found.raw()["success"].null_count() == found.num_missing
    assert found.pairs().select(sorted(key.policies)).null_count().sum_horizontal().sum() == 0


Change = Callable[[list[dict[str, str]]], object]
FAULTS: dict[str, tuple[Change, str]] = {
    "unknown code": (lambda rows: rows[2].update(code="Z"), r"row 4, column code = 'Z': not a code of the key"),
    "another code": (
        lambda rows: rows[0].update(code=rows[1]["code"]),
        r"row 2, column code = '\w': was printed as \w; write that again",
    ),
    "doubled": (lambda rows: rows.append(rows[3]), r"row 26, column trial = '4': row 5 is this trial too"),
    "missing": (lambda rows: rows.pop(3), r"column trial: 1 not on the sheet \(4\): put the rows back"),
    "unknown trial": (
        lambda rows: rows[5].update(trial="99"),
        r"row 7, column trial = '99': the sheet has trials 1 to 24",
    ),
    "yes": (lambda rows: rows[0].update(success="yes"), r"row 2, column success = 'yes': write 1 or 0"),
    "two": (lambda rows: rows[0].update(success="2"), r"row 2, column success = '2'"),
    "half": (lambda rows: rows[0].update(success="0.5"), r"'0.5': write 1 or 0; a part of the task goes into partial"),
    "empty": (
        lambda rows: rows[0].update(success=""),
        r"row 2, column success = \(empty\): write 1 or 0; --partial accepts",
    ),
    "credit above 1": (lambda rows: rows[1].update(partial_credit="1.01"), r"row 3, column partial_credit = '1.01'"),
    "credit in per cent": (lambda rows: rows[1].update(partial_credit="50%"), r"'50%': write a number from 0 to 1"),
    "credit below 0": (lambda rows: rows[1].update(partial_credit="-0.5"), r"partial_credit = '-0.5'"),
    "credit nan": (lambda rows: rows[1].update(partial_credit="nan"), r"partial_credit = 'nan'"),
    "success without all credit": (
        lambda rows: rows[1].update(success="1", partial_credit="0.9"),
        r"row 3, column success = '1', column partial_credit = '0.9': 1 and 1 is the whole task, .* leave credit empty",
    ),
    "all credit without success": (
        lambda rows: rows[1].update(success="0", partial_credit="1,0"),
        r"row 3, column success = '0', column partial_credit = '1,0': 1 and 1 is the whole task",
    ),
    "exchanged": (
        lambda rows: [row.update(success=str(n % 2), partial_credit=str(1 - n % 2)) for n, row in enumerate(rows)],
        r"row 2, column success = '0', column partial_credit = '1'",
    ),
    "two commas": (lambda rows: rows[1].update(partial_credit="0,5,5"), r"'0,5,5': write a number from 0 to 1"),
    "task": (lambda rows: rows[1].update(task="pull"), r"row 3, column task = 'pull': was printed as"),
    "block": (lambda rows: rows[1].update(block="9"), r"row 3, column block = '9': was printed as 1"),
    "start": (lambda rows: rows[1].update(initial_condition=""), r"column initial_condition = \(empty\): was printed"),
    "one hash": (lambda rows: rows[1].update(key_sha256="0" * 64), r"row 3, column key_sha256 = '0+': was printed as"),
    "all hashes": (
        lambda rows: [row.update(key_sha256="0" * 64) for row in rows],
        r"row 2, column key_sha256 = '0+': the hash of .*key\.json is \w{64}, so it is another sheet's key",
    ),
    "a column more": (
        lambda rows: [row.update(video="a.mp4") for row in rows],
        r"row 2, column video = 'a.mp4': remarks go into the column note",
    ),
    "a column less": (lambda rows: [row.pop("time") for row in rows], r"row 1: column time is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_sheet_is_refused_with_row_column_value_and_remedy(
    fault: str, key: Key, sealed: Path, tmp_path: Path
) -> None:
    rows = filled(key)
    change, said = FAULTS[fault]
    change(rows)
    sheet = saved(rows, tmp_path / "sheet.csv")
    with pytest.raises(ValueError, match=said):
        record(sheet, sealed)
    if fault in ("missing", "empty"):
        assert record(sheet, sealed, partial=True).num_missing == 1
    else:
        with pytest.raises(ValueError, match=said.partition("; --partial")[0]):
            record(sheet, sealed, partial=True)


def test_a_key_that_was_changed_does_not_fit_its_sheet(key: Key, sealed: Path, tmp_path: Path) -> None:
    sheet = saved(filled(key), tmp_path / "sheet.csv")
    codes = dict(zip(key.codes, reversed(list(key.codes.values())), strict=True))
    sealed.write_text(key.model_copy(update={"codes": codes}).text())
    with pytest.raises(ValueError, match=r"or was changed since; give the key that was written with this sheet"):
        record(sheet, sealed)
    with pytest.raises(FileNotFoundError, match="no such key"):
        record(sheet, tmp_path / "nowhere.json")


@pytest.mark.parametrize("text", ["{}", "[1]", "not json", '{"seed": 1, "codes": {"A": "x"}, "policies": {}}'])
def test_what_is_no_key_is_named(text: str, key: Key, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text(text)
    sheet = saved(filled(key, key_sha256=digest(text)), tmp_path / "sheet.csv")
    with pytest.raises(ValueError, match=r"key\.json: not a key of `egoscale trials schedule`"):
        record(sheet, tmp_path / "key.json")


def test_spreadsheets_save_in_their_own_ways(key: Key, sealed: Path, tmp_path: Path) -> None:
    rows = filled(key)
    expected = record(saved(rows, tmp_path / "sheet.csv"), sealed).raw()
    lines = [list(rows[0]), *([*row.values()] for row in rows)]
    for separator in ",;\t":
        text = "\r\n".join(separator.join(line) + separator for line in lines) + f"\r\n{separator * 11}\r\n"
        (tmp_path / "other.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert record(tmp_path / "other.csv", sealed).raw().equals(expected)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_comma_is_a_decimal_point_too(separator: str, key: Key, sealed: Path, tmp_path: Path) -> None:
    rows = filled(key, success="0")
    for row, credit in zip(rows, ["0,5", ",25", "0,", "0.75"], strict=False):
        row["partial_credit"] = credit
    with (tmp_path / "sheet.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)  # quotes a comma where it must
        writer.writeheader()
        writer.writerows(rows)
    assert record(tmp_path / "sheet.csv", sealed).raw()["partial_credit"].to_list()[:5] == [0.5, 0.25, 0.0, 0.75, None]


@pytest.mark.parametrize(
    ("line", "separator"),
    [
        ("sep=;", ";"),
        ("SEP=,", ","),
        ("sep=\t", "\t"),
        ("sep=|", "|"),
        ('"sep=;"', ";"),
        ("sep=;;;;;", ";"),
        ("sep=;,,,,", ","),
    ],
)
def test_a_first_line_that_names_the_separator_is_no_header(
    line: str, separator: str, key: Key, sealed: Path, tmp_path: Path
) -> None:
    rows = filled(key)
    text = f"{line}\r\n" + "\r\n".join(
        separator.join(cells) for cells in [[*rows[0]], *([*row.values()] for row in rows)]
    )
    (tmp_path / "sheet.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert record(tmp_path / "sheet.csv", sealed).raw()["success"].to_list() == [int(row["success"]) for row in rows]
    (tmp_path / "sheet.csv").write_text(text.replace("Ada", "Ada" + separator, 1))
    with pytest.raises(ValueError, match="row 2, column without a name"):  # numbered as by Excel, which hides the line
        record(tmp_path / "sheet.csv", sealed)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "row 1: column trial is missing"),
        (b"trial,trial\n1,1\n", "row 1: column trial comes twice"),
        (b"\xff\xfet\x00r\x00", "save it as CSV in UTF-8"),
        (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00b\xee\x9dh", "line 1: not UTF-8; .* not as a workbook"),
        (b'trial,block\n"1,2\n', "save it as CSV in UTF-8"),
        (
            "trial,operator\n1,Zoe\n2,Zoë\n".encode("cp1252"),
            "line 3: not UTF-8; save it as CSV in UTF-8",
        ),
        (",".join([*filled(made())[0]]).encode(), "holds no trial"),
    ],
)
def test_files_that_are_no_sheet(content: bytes, said: str, sealed: Path, tmp_path: Path) -> None:
    (tmp_path / "sheet.csv").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        record(tmp_path / "sheet.csv", sealed)
    with pytest.raises(FileNotFoundError, match="no such sheet"):
        record(tmp_path / "nowhere.csv", sealed)


def test_all_faults_are_named_at_once_up_to_a_few(key: Key, sealed: Path, tmp_path: Path) -> None:
    sheet = saved(filled(key, success="maybe"), tmp_path / "sheet.csv")
    with pytest.raises(ValueError, match=r"row 9, column success[^\n]*\n.*and 16 more$") as caught:
        record(sheet, sealed)
    assert str(caught.value).count("maybe") == 8


def test_remarks_may_hold_anything_and_operators_that_share_a_set_are_told(
    key: Key, sealed: Path, tmp_path: Path
) -> None:
    rows = filled(key)
    rows[0] |= {"note": 'slipped, "twice"\nthen stopped', "operator": "Bea", "time": "14:05"}
    found = record(saved(rows, tmp_path / "sheet.csv"), sealed)
    assert found.raw()["note"][0] == 'slipped, "twice"\nthen stopped' and found.raw()["time"][0] == "14:05"
    assert found.split_sets == 1
    assert "Ada; Bea" in found.table()["operator"].to_list()


def test_names_with_accents_stay_one_name_each(key: Key, sealed: Path, tmp_path: Path) -> None:
    rows = filled(key)
    for row, name in zip(
        rows, ["Zo\N{LATIN SMALL LETTER E WITH DIAERESIS}", "Zoe\N{COMBINING DIAERESIS}"] * 12, strict=True
    ):
        row["operator"] = name  # as typed on two machines
    found = record(saved(rows, tmp_path / "sheet.csv"), sealed)
    assert found.split_sets == 0 and set(found.table()["operator"]) == {"Zoë"}


def test_a_spreadsheet_knows_the_sheet_for_utf_8_in_any_locale(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from egoscale.sweep.trials import schedule, write\n"
        "write(schedule({'a': {}, 'b': {}}, ['\\u00f6ffnen'], 2, 1, 0), Path(sys.argv[1]))"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=os.environ | locale, check=True)
    assert (tmp_path / "sheet.csv").read_bytes().startswith(b"\xef\xbb\xbftrial,block,")
    assert "öffnen" in (tmp_path / "sheet.html").read_text(encoding="utf-8")
    found = record(tmp_path / "sheet.csv", tmp_path / "key.json", partial=True)
    assert found.key.tasks == ["öffnen"]


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
