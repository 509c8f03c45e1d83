"""A grid is judged by the rules of the fit before anything is run."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from egoscale.scaling import StudySpec, load_study
from egoscale.scaling.design import FEWEST_EPISODES, findings

ROOT = Path(__file__).resolve().parents[2]
SIZES = (0.0, 0.05, 0.15, 0.4, 1.0)


@pytest.fixture(scope="module")
def tabletop() -> StudySpec:
    return load_study(ROOT / "analysis/tabletop/study.toml")


def grid(
    sizes: tuple[float, ...] = SIZES, seeds: int = 2, trials: int = 150, demos: tuple[int, ...] = (20, 80)
) -> pl.DataFrame:
    rows = [
        {"arm": "latent", "hours": hours, "demos": d, "seed": s, "trials": trials}
        for hours in sizes
        for d in demos
        for s in range(seeds)
    ]
    empty = {"successes": pl.Int64, "prior_loss": pl.Float64}
    return pl.DataFrame(rows).with_columns(pl.lit(None, kind).alias(name) for name, kind in empty.items())


def codes(study: StudySpec, cells: pl.DataFrame, severity: str = "error") -> set[str]:
    return {notice.code for notice in findings(study, cells) if notice.severity == severity}


def test_the_shipped_grids_pass(tabletop: StudySpec) -> None:
    assert not codes(tabletop, grid()) and not codes(tabletop, grid(), "warning")


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        (grid(sizes=(0.0, 0.05, 1.0)), "E_SIZES"),
        (grid(sizes=(0.0,)), "E_SIZES"),
        (grid(sizes=(0.1, 0.2, 0.4, 0.8)), "W_DECADE"),
        (grid(seeds=1), "W_ONE_SEED"),
        (grid(trials=2, demos=(20,)), "W_FEW_EPISODES"),
        (grid().drop("trials"), "E_COLUMNS"),
    ],
)
def test_grids_that_are_refused(tabletop: StudySpec, cells: pl.DataFrame, code: str) -> None:
    assert code in codes(tabletop, cells)
    assert all(notice.remedy for notice in findings(tabletop, cells))


def test_what_weakens_a_law_is_a_warning(tabletop: StudySpec) -> None:
    few = grid(trials=FEWEST_EPISODES)  # of four cells a size
    assert codes(tabletop, few) == set() and "W_FEW_EPISODES" in codes(tabletop, few, "warning")
    assert "W_NO_HOLDOUT" in codes(tabletop, grid(sizes=(0.05, 0.3, 1.0)), "warning")
    partly = pl.concat([grid(), grid(sizes=(2.0,), seeds=1)])
    assert codes(tabletop, partly) == set() and "W_ONE_SEED" in codes(tabletop, partly, "warning")


def test_a_law_that_is_not_the_first_only_warns(tabletop: StudySpec) -> None:
    three = [notice for notice in findings(tabletop, grid(sizes=(0.05, 0.3, 1.0))) if notice.code == "E_PARAMETERS"]
    assert three and all(notice.severity == "warning" and "will not be fitted" in notice.message for notice in three)
