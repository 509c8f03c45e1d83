"""The commands of `docs/real-robot-trials.md` run as they stand there: a finished sweep, sheets filled in between."""

from __future__ import annotations

import contextlib
import csv
import io
import random
import re
import shlex
from pathlib import Path

import polars as pl
import pytest

from egoscale.cli import main
from egoscale.recipe import SweepRecipe, load_recipe
from egoscale.sweep.plan import plan

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "real-robot-trials.md"
TASKS = 'success.tasks=["push", "lift"]'


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("egoscale ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's sweep is finished, as far as its trials need it."""
    lab = tmp_path_factory.mktemp("lab")
    sweep = load_recipe(ROOT / "recipes/sweeps/tabletop.toml")
    assert isinstance(sweep, SweepRecipe)
    for job in plan(sweep).jobs.values():
        run = job.create(lab / "runs")
        if job.stage == "world":
            run.finish({"world_loss": 0.5, "prior_loss": 0.5 - 0.05 * job.labels["hours"] ** 0.3})
        elif job.stage in ("subset", "finetune"):
            run.finish({"hours": job.labels["hours"], "hash": job.key})
    return lab


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, str]:
    """What each command printed, in the order of the page; after the first day a third of the sheet is filled in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return {command: _run(command, folder) for command in commands()}


def _run(command: str, folder: Path) -> str:
    words = shlex.split(command)
    if words[1:3] == ["trials", "record"]:
        _fill(folder / "trials", share=0.3 if "--partial" in words else 1.0)
    if words[1:3] == ["ask", "pairs"]:  # the page says how: once for the sweep's sheet, and here for the other one
        _fill(folder / "others")
        _main(["trials", "record", "others/sheet.csv", "--key", "others/key.json", "--out", "others/table.csv"])
    return _main(words[1:])


def _main(words: list[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as stopped:
        main(words)
    assert not stopped.value.code, words
    return said.getvalue()


def _fill(sheets: Path, share: float = 1.0) -> None:
    with (sheets / "sheet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rng = random.Random(3)
    for row in rows[: int(share * len(rows))]:
        row |= {"success": rng.choice("0011"), "operator": rng.choice(["Ada", "Bea"])}
        row["partial_credit"] = "1" if row["success"] == "1" else "0.5"
    with (sheets / "sheet.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("command", commands())
def test_command_of_the_page_runs(command: str, told: dict[str, str]) -> None:
    assert told[command].strip()


def test_the_page_says_what_happens(folder: Path, told: dict[str, str]) -> None:
    first, *_ = told.values()
    assert "to tell 50 % from 70 % with power 0.8 takes 93 trials a policy" in first
    partial, whole = (said for command, said in told.items() if command.startswith("egoscale trials record"))
    assert "were not run; they count nowhere" in partial and "not run" not in whole
    table = pl.read_csv(folder / "real" / "table.csv")
    assert table.height == 20 and set(table["trials"]) == {20} and set(table["state"]) == {"done"}
    assert table["world_key"].null_count() == 4  # from scratch
    for name in re.findall(r"^\| `([\w.-]+)` \|", PAGE.read_text(), re.M):
        assert (folder / "real" / name).is_file()
    assert "enough" in next(said for command, said in told.items() if "--difference" in command)


def test_two_sheets_become_one_table_as_the_page_says(
    folder: Path, told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    first = next(command for command in told if "--sweep" in command)
    _main(shlex.split(first.replace("--out trials", "--out trials-2"))[1:])
    _fill(folder / "trials-2", share=0.5)
    words = "trials record trials-2/sheet.csv --key trials-2/key.json --out real/table-2.csv --partial"
    _main(words.split())
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    exec(code, {})
    both, *each = (pl.read_csv(f"real/{name}.csv").sort("policy") for name in ("both", "table", "table-2"))
    same = ["arm", "hours", "demos", "seed", "world_key", "finetune_key"]
    assert both.select(same).equals(each[0].select(same))
    for name in ("successes", "trials", "successes_push", "trials_lift"):
        assert both[name].to_list() == [a + b for a, b in zip(each[0][name], each[1][name], strict=True)]
    _main(["fit", "tabletop", "--table", "real/both.csv", "--set", TASKS, "--out", "real/fit-both", "--no-figures"])
