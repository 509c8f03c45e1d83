"""Extrapolation, tested: the largest sizes are held out with all their seeds and predicted from the smaller ones.

Families that predict them equally well are averaged in the forecast band, and the band says how much of it is which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from egoscale.scaling.baselines import BASELINES
from egoscale.scaling.cells import Cells
from egoscale.scaling.estimate import Criterion, optimum, unlink
from egoscale.scaling.intervals import Uncertainty, episodes, next_run, uncertainty
from egoscale.scaling.law import Array, Law
from egoscale.scaling.laws import make_law
from egoscale.scaling.refine import refined
from egoscale.scaling.study import StudySpec

if TYPE_CHECKING:
    from egoscale.scaling.result import Fit

HoldOut = dict[str, Any]
Score = Callable[[Array, Cells], Array]  # a score a row; its weighted mean is the score
DECADE = 10.0
_DRAWS = 400  # of each family in an averaged forecast


def too_few(law: Law, seen: Cells, study: StudySpec) -> bool:
    """Whether the rows that remain when some are held out cannot carry the law."""
    fixed = study.fixed.get(law.name, {})
    return (
        len(seen.sizes_S) < max(3, law.size_parameters(fixed) + 1)
        or len(law.parameters) - len(fixed) >= seen.num_designs
    )


def hold_out(law: Law, cells: Cells, study: StudySpec) -> HoldOut | None:
    """Predict the held-out rows and score the prediction beside last value and no-effect baselines.

    Success: log predictive density per trial (higher is better). Loss: RMSLE, or RMSE where a value is not positive
    (lower is better). standard_error: of the difference to the law, in the mean of the rows' scores, by held-out run.
    rows, ahead: the score of each held-out row, and those rows. None where the rows that remain are too few.
    """
    ahead_S = cells.sizes_S[-study.holdout.num_sizes :]
    ahead_N = cells.ahead_N if cells.ahead_N is not None else cells.x[0] >= ahead_S[0]
    if not ahead_N.any() or ahead_N.all():
        return None
    seen, ahead = cells.where(~ahead_N), cells.where(ahead_N)
    if too_few(law, seen, study):
        return None
    fixed = study.fixed.get(law.name, {})
    criterion = Criterion.of(law, study.objective)
    best = optimum(law, seen, criterion, fixed)
    eta_N = law.eta(best.theta_P[None], ahead.x)[0]
    predicted_N = unlink(law, eta_N)
    spec = study.intervals.model_copy(update={"replicates": 100})
    spread = uncertainty(law, seen, best, criterion, spec)
    if criterion.kind == "binomial" and study.objective.success != "binomial":
        _, best, spread = refined(law, seen, best, spread, study.objective.success, study.intervals.seed)
        eta_N = law.eta(best.theta_P[None], ahead.x)[0]
        predicted_N = unlink(law, eta_N)
    slope_NP = law.gradient(best.theta_P[None], ahead.x)[0]
    error_N = np.sqrt(np.maximum(np.einsum("np,pq,nq->n", slope_NP, spread.covariance_PP, slope_NP), 0))
    wide_N = spread.t(study.intervals.level) * error_N
    metric, score, mean = scorer(law, cells)
    scored = {law.name: score(predicted_N, ahead)}
    smooth = 0.5 if law.outcome == "success" else 0.0
    for baseline in BASELINES:
        if law.outcome in baseline.outcomes:
            scored[baseline.name] = score(baseline.predict(seen.x, seen.y_N, seen.n_N, ahead.x, smooth), ahead)
    scores = {name: mean(values, ahead) for name, values in scored.items()}
    sign = 1 if law.outcome == "success" else -1
    return {
        "sizes": sorted({float(s) for s in ahead.x[0]}),
        "num_sizes_seen": len(seen.sizes_S),
        "num_rows": len(ahead.y_N),
        "num_runs": ahead.num_runs,
        "metric": metric,
        "higher_is_better": sign > 0,
        "scores": scores,
        "standard_error": {name: _error(scored[law.name] - values, ahead) for name, values in scored.items()},
        "rows": scored,
        "ahead": ahead,
        "law_beats_last_value": bool(sign * (scores[law.name] - scores["last-value"]) > 0),
        "worst_error_percent": float(100 * np.max(np.abs(predicted_N / ahead.y_N - 1))) if ahead.y_N.all() else None,
        "mean_error_percent": float(100 * np.mean(np.abs(predicted_N / ahead.y_N - 1))) if ahead.y_N.all() else None,
        "cells": _rows(law, study, ahead, predicted_N, (eta_N - wide_N, eta_N + wide_N), (spread, best.theta_P)),
    }


def _rows(
    law: Law, study: StudySpec, ahead: Cells, predicted_N: Array, mean: tuple[Array, Array],
    fitted: tuple[Uncertainty, Array],
) -> list[dict[str, Any]]:  # fmt: skip
    """One entry for each held-out combination of the inputs (at most 40), its runs pooled."""
    names = [x.column for x in study.x[: len(ahead.x.columns)]]
    designs, first, which = np.unique(
        np.stack([*ahead.x.columns, ahead.x.task_N], axis=1), axis=0, return_index=True, return_inverse=True
    )
    out, shown = [], first[:40]
    trials = np.maximum(np.round(ahead.n_N[shown]), 1).astype(int)
    options = study.intervals
    new = next_run(law, *fitted, ahead.x.where(shown), options.level, trials, options.seed)
    for k in range(len(shown)):
        at, one = which.ravel() == k, first[k]
        observed = float(np.average(ahead.y_N[at], weights=ahead.n_N[at]))
        predicted = float(predicted_N[one])
        out.append(
            {
                **{name: float(value) for name, value in zip(names, designs[k], strict=False)},
                **({"task": law.tasks[int(designs[k][-1])]} if law.tasks else {}),
                "observed": observed,
                "predicted": predicted,
                "ci95": [float(unlink(law, end[one])) for end in mean],
                "next_run95": [float(end[k]) for end in new],
                "error_percent": 100 * (predicted / observed - 1) if observed else None,
            }
        )
    return out


def _error(score_N: Array, ahead: Cells) -> float | None:
    """Standard error of the mean score, or of a mean difference of scores, by held-out run; None for one run."""
    if ahead.num_runs < 2 or not score_N.any():
        return None
    weight = ahead.n_N / ahead.n_N.sum()
    mean = float((weight * score_N).sum())
    sums_G = np.bincount(ahead.run_N, weight * (score_N - mean), ahead.num_runs)
    return float(np.sqrt(ahead.num_runs / (ahead.num_runs - 1) * (sums_G**2).sum()))


def compare(law: Law, cells: Cells, study: StudySpec, own: HoldOut | None) -> list[dict[str, Any]]:
    """Every law of the study with this outcome and the baselines, by their score on the held-out size, best first.

    tied: not worse than the best by more than one standard error of the best's own score, by held-out run (Breiman's
    rule). The error of the difference would be smaller, but runs of one held-out size are one test of the curve, not
    several. With one held-out run there is no error, and only equals are tied.
    """
    if own is None:
        return []
    scored: dict[str, Array] = dict(own["rows"])
    for other_name in study.laws:
        name = str(other_name)
        other = make_law(name, len(cells.x.columns), law.tasks)
        if name in scored or other.outcome != law.outcome or (other.link == "log" and cells.y_N.min() <= 0):
            continue
        if other.num_inputs[0] > len(cells.x.columns) or other.num_inputs[1] < len(cells.x.columns):
            continue  # another number of inputs pools other rows: not the same test
        held = hold_out(other, cells, study)
        if held is not None:
            scored[name] = held["rows"][name]
    _, _, mean = scorer(law, cells)
    ahead, sign = own["ahead"], 1 if own["higher_is_better"] else -1
    scores = {name: mean(rows, ahead) for name, rows in scored.items()}
    order = sorted(scores, key=lambda name: -sign * scores[name])
    out = []
    error = _error(scored[order[0]], ahead) or 0.0
    for name in order:
        worse = sign * float(np.average(scored[order[0]] - scored[name], weights=ahead.n_N))
        out.append({"name": name, "metric": own["metric"], "score": scores[name], "tied": worse <= error})
    return out


def scorer(law: Law, cells: Cells) -> tuple[str, Score, Callable[[Array, Cells], float]]:
    """Name of the score for one outcome, its value for each row, and how rows become one number."""
    if law.outcome == "success":
        return "log predictive density per trial", _log_density, lambda s, c: float(np.average(s, weights=c.n_N))
    if cells.y_N.min() > 0:
        return "RMSLE", lambda predicted, ahead: np.log(np.maximum(predicted, 1e-12) / ahead.y_N) ** 2, _root
    return "RMSE", lambda predicted, ahead: (predicted - ahead.y_N) ** 2, _root


def spans_decades(law: Law, cells: Cells) -> bool:
    """Whether the outcome is a loss above 0 whose largest value is more than ten times its smallest."""
    y_N = cells.y_N
    return law.outcome == "loss" and bool(y_N.min() > 0) and float(y_N.max()) > DECADE * float(y_N.min())


def _root(squares_N: Array, _: Cells) -> float:
    return float(np.sqrt(np.mean(squares_N)))


def _log_density(predicted_N: Array, ahead: Cells) -> Array:
    p = np.clip(predicted_N, 1e-9, 1 - 1e-9)
    density_N: Array = ahead.y_N * np.log(p) + (1 - ahead.y_N) * np.log1p(-p)
    return density_N


def averaged(fits: Sequence[Fit], size: float, second: float | None = None) -> dict[str, Any] | None:
    """One forecast from all laws of a group that are tied on the held-out size, or None with fewer than two.

    Draws of the tied laws are pooled with equal weight (stacking them by so few held-out runs would be false
    precision). parts: variance of parameters within a law, between laws, and of one more run with its episodes. They
    and the estimate are on the scale of the outcome, or, of a loss that spans more than a decade, of its logarithm:
    otherwise the largest value would decide over all others.
    """
    lead = fits[0]
    tied = {row["name"] for row in lead.comparison_ if row["tied"]}
    chosen = [f for f in fits if f.refused_ is None and f.law.name in tied and f.group == lead.group]
    chosen = [f for f in chosen if f.law.outcome == lead.law.outcome]
    if len(chosen) < 2:
        return None
    rng = np.random.default_rng(lead.study.intervals.seed)
    level = lead.study.intervals.level
    means, draws, runs = [], [], []
    for one in chosen:
        cells, best, spread = one.fitted()
        x = one.inputs(np.array([size]), second)
        eta = one.law.eta(best.theta_P[None], x)[0, 0]
        wide = eta + spread.widen(level) * (one.law.eta(spread.draws_RP[:_DRAWS], x)[:, 0] - eta)
        means.append(float(unlink(one.law, eta)))
        draws.append(unlink(one.law, wide))
        scale = np.sqrt(spread.freedom / rng.chisquare(spread.freedom, (len(wide), 1)))
        sds = spread.run_sds(x[0], scale)[:, 0]
        new = unlink(one.law, wide + sds * rng.normal(size=wide.shape))
        if one.law.outcome == "success":
            new = episodes(new, max(int(np.median(cells.n_N)), 1), spread.graded, rng)
        runs.append(new)
    pooled, ahead = np.concatenate(draws), np.concatenate(runs)
    ends = [0.5 - level / 2, 0.5 + level / 2]
    logs = spans_decades(lead.law, lead.fitted()[0]) and min(pooled.min(), ahead.min(), min(means)) > 0
    if logs:
        means, draws, runs = list(np.log(means)), [np.log(d) for d in draws], [np.log(r) for r in runs]
    within = float(np.mean([np.var(d) for d in draws]))
    return {
        "laws": [one.law.name for one in chosen],
        "estimate": float(np.exp(np.mean(means)) if logs else np.mean(means)),
        "scale": "log" if logs else "outcome",
        "ci95": [float(v) for v in np.quantile(pooled, ends)],
        "next_run95": [float(v) for v in np.quantile(ahead, ends)],
        "parts": {
            "parameters": within,
            "family": float(np.var(means)),
            "one_more_run": float(max(np.mean([np.var(r) for r in runs]) - within, 0.0)),
        },
    }
