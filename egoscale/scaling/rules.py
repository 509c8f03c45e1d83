"""What the data cannot support: coded rules, each a small function with a message and a remedy.

`E_...` refuses a law before it is fitted (or, E_RANGE, after); `W_...` is printed above it. A rule returns
None when it has nothing to say. Thresholds that are not self-evident name their source.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from egoscale.scaling.cells import Cells, count_columns, needed_columns
from egoscale.scaling.laws import Law
from egoscale.scaling.study import StudySpec

if TYPE_CHECKING:
    from egoscale.scaling.result import Fit

MIN_SIZES = 3
FAR_HORIZON = 3.0  # forecasts beyond 3x the largest size (research/anchors-laws, "Warn")
FEW_EPISODES = 300  # per size: 10 points at 80 % power need 293-387 episodes an arm (research/anchors-laws, "Inverse")


@dataclass(frozen=True)
class Notice:
    """One finding in words for the reader of a report."""

    code: str
    severity: Literal["error", "warning", "note"]
    message: str
    remedy: str


@dataclass(frozen=True)
class Case:
    """What a rule may look at: rows with video of one group, and, later, the arrays and the fit."""

    study: StudySpec
    law: Law
    rows: pl.DataFrame
    group: Mapping[str, object] = field(default_factory=dict)
    task: str | None = None
    cells: Cells | None = None
    fit: Fit | None = None
    baseline: pl.DataFrame | None = None

    @property
    def size(self) -> str:
        return self.study.size.column

    @property
    def unit(self) -> str:
        return self.study.size.unit


Finding = Notice | None


def _error(code: str, message: str, remedy: str) -> Notice:
    return Notice(code, "error", message, remedy)


def _warning(code: str, message: str, remedy: str) -> Notice:
    return Notice(code, "warning", message, remedy)


# --- refusals: before anything is fitted ------------------------------------------------------------------


def columns_present(case: Case) -> Finding:
    if case.law.outcome == "loss" and case.study.loss is None:
        return _error(
            "E_NO_LOSS",
            f"study {case.study.name} asks for the law {case.law.name}, which fits a loss, but names no loss column.",
            "Add a [loss] table (column, unit, direction) to study.toml, or take the law out of `laws`.",
        )
    missing = [c for c in needed_columns(case.study, case.law, case.task) if c not in case.rows.columns]
    if not missing:
        return None
    near = difflib.get_close_matches(missing[0], case.rows.columns, n=1, cutoff=0.0)
    hint = f" The nearest column is `{near[0]}`." if near else ""
    return _error(
        "E_COLUMNS",
        f"The table lacks {', '.join(f'`{c}`' for c in missing)}.{hint}",
        "Collect the table again, or name the right columns in study.toml.",
    )


def rows_present(case: Case) -> Finding:
    column = case.study.loss.column if case.law.outcome == "loss" and case.study.loss else None
    outcome = column or count_columns(case.study, case.task)[0]
    if case.rows.height and case.rows[outcome].drop_nulls().len():
        return None
    where = ", ".join(f"{k} = {v}" for k, v in case.group.items()) or "the table"
    return _error(
        "E_EMPTY",
        f"No finished cell with video and a value of `{outcome}` in {where}.",
        "Run the sweep further (`egoscale status` names what is missing) and collect again.",
    )


def sizes_valid(case: Case) -> Finding:
    values = case.rows[case.size].cast(pl.Float64)
    bad = values.is_null() | values.is_nan() | (values <= 0) | values.is_infinite()
    if not bad.any():
        return None
    return _error(
        "E_HOURS",
        f"{bad.sum()} row(s) have {case.size} = {values.filter(bad)[0]} and the law takes its logarithm.",
        f"Give each row its {case.size} in {case.unit}, above 0; rows without video have exactly 0 "
        "and are the baseline.",
    )


def counts_valid(case: Case) -> Finding:
    if case.law.outcome != "success":
        return None
    successes, trials = count_columns(case.study, case.task)
    known = case.rows.drop_nulls([successes, trials])
    bad = known.filter((pl.col(successes) > pl.col(trials)) | (pl.col(successes) < 0) | (pl.col(trials) <= 0))
    if bad.is_empty():
        return None
    row = bad.row(0, named=True)
    return _error(
        "E_COUNTS",
        f"{bad.height} row(s) are no counts: {row[successes]} successes in {row[trials]} trials at "
        f"{row[case.size]:g} {case.unit}.",
        f"`{successes}` and `{trials}` are counts of episodes, not rates; evaluate that run again.",
    )


def demos_valid(case: Case) -> Finding:
    if case.law.outcome != "success" or case.study.demos is None:
        return None
    demos = case.rows[case.study.demos.column].cast(pl.Float64)
    bad = demos.is_null() | (demos <= 0)
    if not bad.any():
        return None
    return _error(
        "E_DEMOS",
        f"{bad.sum()} row(s) have {case.study.demos.column} = {demos.filter(bad)[0]} and the law takes its logarithm.",
        "Leave cells without demonstrations out of the law, or fit a study whose x has no demonstrations.",
    )


def loss_valid(case: Case) -> Finding:
    if case.law.outcome != "loss" or case.study.loss is None:
        return None
    loss = case.study.loss
    values = case.rows[loss.column].drop_nulls().cast(pl.Float64)
    if case.law.link == "log" and loss.direction == "higher":
        return _error(
            "E_DIRECTION",
            f"{case.law.name} falls with hours, but `{loss.column}` is better when higher.",
            "Fit log-linear, or a column that falls: a loss, or 1 - score.",
        )
    bad = values.is_nan() | values.is_infinite() | ((values <= 0) if case.law.link == "log" else False)
    if not bad.any():
        return None
    return _error(
        "E_LOSS",
        f"{bad.sum()} value(s) of `{loss.column}` cannot enter {case.law.formula}, for example "
        f"{values.filter(bad)[0]}.",
        "A diverged run has no loss: leave its value empty. A metric that may be negative takes log-linear.",
    )


def cells_unique(case: Case) -> Finding:
    keys = [*case.study.run, *([case.study.demos.column] if case.study.demos else [])]
    keys = [k for k in keys if k in case.rows.columns]
    twice = case.rows.group_by(keys).len().filter(pl.col("len") > 1).sort(keys)
    if case.law.outcome != "success" or twice.is_empty():
        return None
    cell = ", ".join(f"{k} = {twice[k][0]}" for k in keys)
    return _error(
        "E_DUPLICATE",
        f"{twice.height} cell(s) stand in the table more than once, for example {cell}.",
        "One row per cell: filter the table to one evaluation, or add what differs to the study's `run` columns.",
    )


def enough_sizes(case: Case) -> Finding:
    sizes = case.cells.sizes_S if case.cells else np.zeros(0)
    if len(sizes) < MIN_SIZES:
        return _error(
            "E_SIZES",
            f"{len(sizes)} distinct size(s) above 0 ({_list(sizes)} {case.unit}): a line through two "
            "points fits anything.",
            f"Run at least {MIN_SIZES} sizes, better 5 over a factor of 10 or more.",
        )
    if case.law.size_parameters >= len(sizes):
        return _error(
            "E_PARAMETERS",
            f"{case.law.name} has {case.law.size_parameters} parameters along {case.size} and the "
            f"table {len(sizes)} sizes.",
            f"Fit a law with fewer parameters, or run {case.law.size_parameters + 1 - len(sizes)} more size(s).",
        )
    return None


REFUSALS: tuple[Callable[[Case], Finding], ...] = (
    columns_present, rows_present, sizes_valid, counts_valid, demos_valid, loss_valid, cells_unique,
)  # fmt: skip


def range_kept(case: Case) -> Finding:
    """Refuse a law that leaves the metric's range inside the data (EgoScale's does, read in hours)."""
    if case.fit is None or case.cells is None or case.law.outcome != "loss":
        return None
    low, high = _limits(case)
    hours = np.geomspace(case.cells.sizes_S[0], case.cells.sizes_S[-1], 50)
    value = case.fit.mean(hours)
    out = (value < low) | (value > high)
    if not out.any():
        return None
    return _error(
        "E_RANGE",
        f"{case.law.name} gives {value[out][0]:.3g} at {hours[out][0]:.3g} {case.unit}, inside the "
        "data but outside the "
        f"metric's range {low:g} to {high:g}.",
        "Check the unit of the size column (hours or thousands of hours?), or fit the power law.",
    )


def _limits(case: Case) -> tuple[float, float]:
    loss = case.study.loss
    low = loss.minimum if loss and loss.minimum is not None else -np.inf
    high = loss.maximum if loss and loss.maximum is not None else np.inf
    return low, high


def _list(values: np.ndarray) -> str:
    return ", ".join(f"{v:g}" for v in values) or "none"


def refusal(case: Case) -> Finding:
    """The first rule that forbids the fit."""
    return next((finding for rule in REFUSALS if (finding := rule(case))), None)
