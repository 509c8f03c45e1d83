"""Fit a law to the table of a study, with intervals by pretraining run, a held-out size and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from egoscale.scaling.cautions import cautions
from egoscale.scaling.cells import above_zero, count_columns, from_scratch, gather, in_group
from egoscale.scaling.estimate import Optimum, optimum
from egoscale.scaling.intervals import Uncertainty, next_run, parameter_limits, uncertainty, wilson
from egoscale.scaling.laws import LAWS, Law
from egoscale.scaling.result import Fit
from egoscale.scaling.rules import Case, enough_sizes, range_kept, refusal
from egoscale.scaling.select import compare, hold_out
from egoscale.scaling.study import StudySpec


def fit(
    table: pl.DataFrame,
    study: StudySpec,
    law: str | None = None,
    group: Mapping[str, object] | None = None,
    task: str | None = None,
) -> Fit:
    """Fit one law (default: the study's first) to one group (default: the study's first) of the table.

    Data that cannot carry the law give a Fit with `refused_` set, never an exception; a law or task that
    does not exist raises ValueError with the valid names.
    """
    name = law or study.laws[0]
    if name not in LAWS:
        raise ValueError(f"law {name!r} does not exist; choose one of {', '.join(LAWS)}")
    if task is not None and task not in study.success.tasks:
        raise ValueError(
            f"task {task!r} is not in study {study.name}: {', '.join(study.success.tasks) or 'it has none'}"
        )
    chosen = LAWS[name]
    absent = [c for c in (*study.run, *study.group, study.size.column) if c not in table.columns]
    where = dict(group) if group is not None else ({} if absent else next(iter(groups(table, study)), {}))
    rows = table if absent else above_zero(in_group(table, where), study)
    case = Case(study, chosen, rows, where, task, baseline=None if absent else from_scratch(table, study))
    bare = Fit(chosen, study, where, task)
    if (found := refusal(case)) is not None:
        return replace(bare, refused_=found)
    cells = gather(rows, study, chosen, task)
    case = replace(case, cells=cells)
    if (found := enough_sizes(case)) is not None:
        return replace(bare, refused_=found)
    best = optimum(chosen, cells)
    spread = uncertainty(chosen, cells, best, study.intervals.replicates, study.intervals.seed)
    done = replace(
        bare,
        cells_=cells,
        optimum_=best,
        uncertainty_=spread,
        parameters_=_parameters(chosen, study, best, spread),
        convergence_=_convergence(best),
        baseline_=_baseline(table, study, task) if chosen.outcome == "success" else (),
    )
    if (found := range_kept(replace(case, fit=done))) is not None:
        return replace(bare, refused_=found)
    held = hold_out(chosen, cells, study)
    done = replace(done, holdout_=held, comparison_=compare(chosen, cells, study, held), forecasts_=_forecasts(done))
    return replace(done, warnings_=cautions(replace(case, fit=done)))


def fit_study(table: pl.DataFrame, study: StudySpec) -> list[Fit]:
    """Every law of the study over every group that saw video; the leading group first."""
    found = groups(table, study) or [{}]
    return [fit(table, study, law, group) for group in found for law in study.laws]


def fit_tasks(table: pl.DataFrame, study: StudySpec, group: Mapping[str, object] | None = None) -> dict[str, Fit]:
    """The study's first success law for each task by itself."""
    law = next((name for name in study.laws if LAWS[name].outcome == "success"), "logit-log-hours")
    return {task: fit(table, study, law, group, task) for task in study.success.tasks}


def groups(table: pl.DataFrame, study: StudySpec) -> list[dict[str, object]]:
    """Values of the group columns among rows with video, in the order of the study's labels."""
    if not study.group:
        return [{}]
    if any(c not in table.columns for c in (*study.group, study.size.column)):
        return []
    seen = above_zero(table, study).select(study.group).unique().rows(named=True)
    order = list(study.labels)

    def rank(row: dict[str, object]) -> list[int]:
        return [order.index(v) if v in order else len(order) for v in map(str, row.values())]

    return sorted(seen, key=lambda row: (rank(row), list(map(str, row.values()))))


def _parameters(law: Law, study: StudySpec, best: Optimum, spread: Uncertainty) -> dict[str, dict[str, Any]]:
    t = spread.t(study.intervals.level)
    out = {}
    for k, parameter in enumerate(law.parameters):
        if best.free_P[k]:
            estimate, se, low, high = parameter_limits(best.theta_P[k], spread.covariance_PP[k, k], t, parameter.log)
            if parameter.name in best.active_bounds:  # the jackknife does not move it: the draws say how far it may be
                draws_R = np.exp(spread.draws_RP[:, k]) if parameter.log else spread.draws_RP[:, k]
                low, high = np.quantile(draws_R, [0.5 - study.intervals.level / 2, 0.5 + study.intervals.level / 2])
                se = float("nan")
            unit = parameter.unit.format(x=study.size.unit, y=study.loss.unit if study.loss else "")
            meaning = parameter.meaning.format(x=study.size.unit)
            out[parameter.name] = {
                "estimate": estimate, "se": se, "ci95": [low, high], "unit": unit, "meaning": meaning,
            }  # fmt: skip
    return out


def _convergence(best: Optimum) -> dict[str, Any]:
    second = best.basins[0] if best.basins else None
    return {
        "share_of_starts_at_optimum": best.share_of_starts,
        "active_bounds": list(best.active_bounds),
        "second_basin": {"objective": second[0], "theta": list(second[1])} if second else None,
    }


def _forecasts(done: Fit) -> tuple[dict[str, Any], ...]:
    cells, best, spread = done.fitted()
    if not done.study.forecasts:
        return ()
    level, seed = done.study.intervals.level, done.study.intervals.seed
    trials = int(np.median(cells.n_N))
    out = []
    for row in done.predict(sorted(done.study.forecasts)).rows(named=True):
        x = {"hours": np.array([row["hours"]]), "demos": np.array([row["demos"]])}
        low, high = next_run(done.law, spread, best.theta_P, x, level, trials, seed)
        out.append(
            {
                "hours": row["hours"],
                "demos": row["demos"] if done.law.outcome == "success" and done.study.demos else None,
                "estimate": row["estimate"],
                "ci95": [row["low"], row["high"]],
                "next_run95": [
                    float(low[0]),
                    float(high[0]),
                ],  # one more run with as many episodes as the others
                "times_largest": row["hours"] / float(cells.sizes_S[-1]),
            }
        )
    return tuple(out)


def _baseline(table: pl.DataFrame, study: StudySpec, task: str | None) -> tuple[dict[str, Any], ...]:
    successes, trials = count_columns(study, task)
    rows = from_scratch(table, study).drop_nulls([successes, trials])
    if rows.is_empty():
        return ()
    demos = study.demos.column if study.demos else None
    keys = [demos] if demos else []
    sums = [pl.col(successes).sum().alias("s"), pl.col(trials).sum().alias("n"), pl.len().alias("runs")]
    pooled = rows.group_by(keys).agg(sums).sort(keys) if keys else rows.select(sums)
    out = []
    for row in pooled.rows(named=True):
        low, high = wilson(np.array([row["s"]]), np.array([row["n"]]), study.intervals.level)
        out.append(
            {
                "demos": row[demos] if demos else None,
                "successes": row["s"],
                "trials": row["n"],
                "runs": row["runs"],
                "rate": row["s"] / row["n"] if row["n"] else None,
                "wilson95": [float(low[0]), float(high[0])],
            }
        )
    return tuple(out)
