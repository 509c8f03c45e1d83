"""Extrapolation, tested: the largest sizes are held out with all their seeds and predicted from the smaller
ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from egoscale.scaling.cells import Cells
from egoscale.scaling.estimate import optimum, unlink
from egoscale.scaling.intervals import uncertainty
from egoscale.scaling.laws import BASELINES, LAWS, Array, Law
from egoscale.scaling.study import StudySpec

HoldOut = dict[str, object]
Score = Callable[[Array, Cells], float]


def hold_out(law: Law, cells: Cells, study: StudySpec) -> HoldOut | None:
    """Predict the held-out sizes and score the prediction beside last value and no-effect baselines.

    Success: log predictive density per trial (higher is better). Loss: RMSLE, or RMSE where a value is not
    positive (lower is better). None where the smaller sizes are fewer than the law needs.
    """
    ahead_S = cells.sizes_S[-study.holdout.num_sizes :]
    seen_N = cells.x["hours"] < ahead_S[0]
    num_seen = len(cells.sizes_S) - len(ahead_S)
    if num_seen < max(3, law.size_parameters + 1):
        return None
    seen, ahead = cells.where(seen_N), cells.where(~seen_N)
    best = optimum(law, seen)
    eta_N = law.eta(best.theta_P[None], ahead.x)[0]
    predicted_N = unlink(law, eta_N)
    spread = uncertainty(law, seen, best, replicates=100, seed=study.intervals.seed)
    slope_NP = law.gradient(best.theta_P[None], ahead.x)[0]
    error_N = np.sqrt(np.maximum(np.einsum("np,pq,nq->n", slope_NP, spread.covariance_PP, slope_NP), 0))
    wide_N = spread.t(study.intervals.level) * error_N
    low_N, high_N = unlink(law, eta_N - wide_N), unlink(law, eta_N + wide_N)
    metric, score = scorer(law, cells)
    scores = {law.name: score(predicted_N, ahead)}
    smooth = 0.5 if law.outcome == "success" else 0.0
    for baseline in BASELINES:
        if law.outcome in baseline.outcomes:
            scores[baseline.name] = score(baseline.predict(seen.x, seen.y_N, seen.n_N, ahead.x, smooth), ahead)
    sign = 1 if law.outcome == "success" else -1
    rows = []
    for hours, demos in sorted({(h, d) for h, d in zip(ahead.x["hours"], ahead.x["demos"], strict=True)}):
        at = (ahead.x["hours"] == hours) & (ahead.x["demos"] == demos)
        observed = float(np.average(ahead.y_N[at], weights=ahead.n_N[at]))
        predicted = float(predicted_N[at][0])
        rows.append(
            {
                "hours": float(hours),
                "demos": float(demos) if law.outcome == "success" and study.demos else None,
                "observed": observed,
                "predicted": predicted,
                "ci95": [float(low_N[at][0]), float(high_N[at][0])],
                "error_percent": 100 * (predicted / observed - 1) if observed else None,
            }
        )
    return {
        "sizes": [float(s) for s in ahead_S],
        "num_sizes_seen": num_seen,
        "num_runs": ahead.num_runs,
        "metric": metric,
        "higher_is_better": sign > 0,
        "scores": scores,
        "law_beats_last_value": bool(sign * (scores[law.name] - scores["last-value"]) > 0),
        "cells": rows,
    }


def compare(law: Law, cells: Cells, study: StudySpec, own: HoldOut | None) -> dict[str, object] | None:
    """Scores on the held-out size of every law of the study with this outcome, beside the baselines."""
    if own is None:
        return None
    scores: dict[str, float] = dict(own["scores"])  # type: ignore[call-overload]
    for name in study.laws:
        other = LAWS[name]
        if name == law.name or other.outcome != law.outcome or (other.link == "log" and cells.y_N.min() <= 0):
            continue
        held = hold_out(other, cells, study)
        if held is not None:
            scores[name] = held["scores"][name]  # type: ignore[index]
    best = (max if own["higher_is_better"] else min)(scores, key=lambda name: scores[name])
    return {
        "metric": own["metric"],
        "higher_is_better": own["higher_is_better"],
        "scores": scores,
        "best": best,
    }


def scorer(law: Law, cells: Cells) -> tuple[str, Score]:
    """Name and function of the score for one outcome."""
    if law.outcome == "success":
        return "log predictive density per trial", _log_density
    if cells.y_N.min() > 0:
        return "RMSLE", lambda predicted, ahead: _rms(np.log(np.maximum(predicted, 1e-12) / ahead.y_N))
    return "RMSE", lambda predicted, ahead: _rms(predicted - ahead.y_N)


def _log_density(predicted_N: Array, ahead: Cells) -> float:
    p = np.clip(predicted_N, 1e-9, 1 - 1e-9)
    total = (ahead.n_N * (ahead.y_N * np.log(p) + (1 - ahead.y_N) * np.log1p(-p))).sum()
    return float(total / ahead.n_N.sum())


def _rms(errors: Array) -> float:
    return float(np.sqrt(np.mean(errors**2)))
