"""The command line: the story of its help, quick answers, errors in one paragraph, exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from egoscale.recipe import SelectRecipe, load_recipe
from egoscale.sweep.ledger import RunFolder
from egoscale.sweep.plan import plan


def egoscale(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from egoscale.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


ROOT = Path(__file__).resolve().parents[1]


def test_the_help_tells_the_story_in_order(tmp_path: Path) -> None:
    done = egoscale("--help", cwd=tmp_path)
    assert done.returncode == 0
    verbs = re.findall(r"^\W*(\w+)  +[A-Z]", done.stdout.partition("Commands")[2], re.MULTILINE)
    story = "init check doctor catalog video train checkpoint export sweep trials fit ask report run"
    assert verbs == story.split()


def test_fit_help_is_quick_and_loads_no_torch(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from egoscale.cli import main\n"
        "try: main(['fit', '--help'])\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--table" in done.stdout
    assert time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["swep"], "sweep"),
        (["sweep", "plan", "sweeps/tabeltop"], "did you mean sweeps/tabletop.toml"),
        (["sweep", "plan", "sweeps/tabletop", "--set", "grid.hour=[1]"], "`hours`"),
        (["sweep", "plan", "sweeps/tabletop", "--set", "film.hours=0.1"], "film at least"),
        (["train", "sweeps/tabletop", "--dry-run"], "egoscale sweep run"),
        (["run", "nowhere"], "no such run folder"),
        (["fit", "tabletop", "--table", "nowhere.csv"], "no such table"),
        (["check", "nothing/of/the/kind"], "no such file"),
        (["sweep", "run", "sweeps/tabletop", "--jobs", "0"], "--jobs"),
    ],
)
def test_bad_input_is_a_paragraph_and_code_2(tmp_path: Path, words: list[str], said: str) -> None:
    done = egoscale(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = egoscale("run", "nowhere", "--debug", cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_init_then_check_in_an_empty_folder(tmp_path: Path) -> None:
    assert egoscale("init", cwd=tmp_path).returncode == 0
    assert (tmp_path / "recipes/sweeps/tabletop.toml").is_file()
    done = egoscale("check", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ok  recipes/sweeps/tabletop.toml" in done.stdout
    (tmp_path / "recipes/sweeps/tabletop.toml").write_text('stage = "sweep"\n')
    done = egoscale("check", cwd=tmp_path)
    assert done.returncode == 2
    assert "`grid` is missing" in done.stderr


def test_check_prints_a_recipe_that_reads_back(tmp_path: Path) -> None:
    done = egoscale("check", "sweeps/tabletop", "--set", "grid.seeds=[7]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "again.toml").write_text(done.stdout)
    expected = load_recipe(ROOT / "recipes/sweeps/tabletop.toml", ["grid.seeds=[7]"])
    assert load_recipe(tmp_path / "again.toml") == expected


def test_plan_status_and_collect_of_a_sweep_that_has_not_begun(tmp_path: Path) -> None:
    words = [
        "sweeps/tabletop",
        "--set",
        "grid.hours=[0, 0.05]",
        "--set",
        "grid.demos=[5]",
        "--set",
        "grid.seeds=[0]",
    ]
    done = egoscale("sweep", "plan", *words, cwd=tmp_path)
    assert done.returncode == 2 and "--anyway" in done.stderr  # one size: no law
    done = egoscale("sweep", "plan", *words, "--anyway", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 cells" in done.stdout and "E_SIZES" in done.stdout
    assert egoscale("sweep", "status", *words, cwd=tmp_path).returncode == 1
    done = egoscale("sweep", "collect", *words, "--out", "table.csv", cwd=tmp_path)
    assert done.returncode == 1  # work is missing
    table = pl.read_csv(tmp_path / "table.csv")
    assert table.height == 2
    assert table["successes"].null_count() == 2


def test_status_tells_why_a_run_failed(tmp_path: Path) -> None:
    sweep = load_recipe(ROOT / "recipes/sweeps/tabletop.toml")
    job = next(iter(plan(sweep).jobs.values()))  # type: ignore[arg-type]
    run = job.create(tmp_path / "runs")
    run.event("start")
    run.fail("the disk is full")
    done = egoscale("sweep", "status", "sweeps/tabletop", cwd=tmp_path)
    assert "the disk is full" in done.stdout


def test_a_half_written_run_folder_is_bad_input(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", SelectRecipe(), {})
    (run.path / "recipe.toml").unlink()
    done = egoscale("run", run.path, cwd=tmp_path)
    assert done.returncode == 2
    assert "half written" in done.stderr


def test_doctor_names_each_thing_it_looked_at(tmp_path: Path) -> None:
    done = egoscale("doctor", cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    for name in ("egoscale", "packages", "GPU", "disk", "MLflow", "threads"):
        assert name in done.stdout
    if done.returncode == 1:
        assert "->" in done.stdout  # a fault comes with its remedy
