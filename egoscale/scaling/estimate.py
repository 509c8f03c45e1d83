"""Point estimates, many at once: damped Fisher scoring for B data sets or starts in one numpy loop.

One loop serves all laws: binomial likelihood where the link is logit, least squares on the link scale
otherwise. The estimate that is reported for a binomial law comes from statsmodels; this loop does its
resampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from egoscale.scaling.cells import Cells
from egoscale.scaling.laws import Array, Law, X

_CHUNK = 256  # data sets per batch: batches above ~1,000 fall out of the cache (measured, research/anchors-laws)


@dataclass(frozen=True)
class Optimum:
    """The best point found and how it was found.

    objective: deviance (binomial) or sum of squared residuals on the link scale. dispersion: Pearson
    chi-square over its degrees of freedom (binomial), else residual variance. basins: (objective, theta) of
    other optima, best first.
    """

    theta_P: Array
    free_P: NDArray[np.bool_]
    objective: float
    dispersion: float
    share_of_starts: float
    active_bounds: tuple[str, ...]
    basins: tuple[tuple[float, tuple[float, ...]], ...]


def link(law: Law, y: Array) -> Array:
    """Outcome to link scale (not for counts, which may be 0 or all)."""
    return np.log(y) if law.link == "log" else y


def unlink(law: Law, eta: Array) -> Array:
    """Link scale to success rate or loss."""
    if law.link == "logit":
        return 0.5 * (1 + np.tanh(0.5 * eta))
    return np.exp(eta) if law.link == "log" else eta


def solve(
    law: Law,
    x: X,
    y_BN: Array,
    n_N: Array,
    weights_BN: Array,
    start_BP: Array,
    max_iterations: int = 80,
) -> tuple[Array, Array]:
    """Minimise the weighted objective of B problems at once; returns theta [B, P] and objective [B].

    y_BN and weights_BN may have one row for all. Parameters at a bound with the gradient pointing outwards
    are held.
    """
    size = max(len(y_BN), len(weights_BN), len(start_BP))

    def part(a_B: Array, first: int) -> Array:
        return a_B if len(a_B) == 1 else a_B[first : first + _CHUNK]

    parts = [
        _solve(law, x, part(y_BN, i), n_N, part(weights_BN, i), part(start_BP, i), max_iterations)
        for i in range(0, size, _CHUNK)
    ]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _solve(
    law: Law, x: X, y_BN: Array, n_N: Array, weights_BN: Array, start_BP: Array, max_iterations: int
) -> tuple[Array, Array]:
    num = max(len(y_BN), len(weights_BN), len(start_BP))
    lower_P, upper_P = law.bounds(y_BN)
    free_P = law.free(x)
    wn_BN = np.broadcast_to(weights_BN * n_N, (num, len(n_N)))
    y_BN = np.broadcast_to(y_BN, wn_BN.shape)
    target_BN = y_BN if law.link == "logit" else link(law, y_BN)
    theta = np.clip(np.broadcast_to(start_BP, (num, len(free_P))), lower_P, upper_P)
    eta = law.eta(theta, x)
    objective = _objective(law, eta, target_BN, wn_BN)
    damping = np.full(num, 1e-4)
    going = np.ones(num, dtype=bool)
    eye = np.eye(len(free_P))
    for _ in range(max_iterations):
        if not going.any():
            break
        at = np.flatnonzero(going)
        J, w = law.gradient(theta[at], x), wn_BN[at]
        if law.link == "logit":
            p = unlink(law, eta[at])
            score, curvature = w * (target_BN[at] - p), w * np.maximum(p * (1 - p), 1e-10)
        else:
            score, curvature = w * (target_BN[at] - eta[at]), w
        g = np.einsum("bnp,bn->bp", J, score)
        H = np.einsum("bnp,bn,bnq->bpq", J, curvature, J)
        held = ~free_P | ((theta[at] <= lower_P) & (g < 0)) | ((theta[at] >= upper_P) & (g > 0))
        g = np.where(held, 0.0, g)
        H = np.where(held[:, :, None] | held[:, None, :], 0.0, H)
        scale = np.einsum("bpp->bp", H)
        H = H + eye * (damping[at, None] * scale + np.where(held, 1.0, 1e-300))[:, None, :]
        step = np.clip(_solved(H, g), -20, 20)
        trial = np.clip(theta[at] + step, lower_P, upper_P)
        trial_eta = law.eta(trial, x)
        value = _objective(law, trial_eta, target_BN[at], w)
        better = value <= objective[at]
        gained = objective[at] - value
        moved = at[better]
        theta[moved], eta[moved], objective[moved] = trial[better], trial_eta[better], value[better]
        damping[at] = np.clip(np.where(better, damping[at] * 0.1, damping[at] * 10), 1e-12, 1e12)
        small = np.abs(trial - theta[at]).max(axis=1) if len(at) else np.zeros(0)
        done = (better & (gained <= 1e-13 * (np.abs(value) + 1e-13))) | (~better & (damping[at] >= 1e10) & (small < 1))
        going[at[done]] = False
    return theta, objective


def _solved(H: Array, g: Array) -> Array:
    step: Array
    try:
        step = np.linalg.solve(H, g[..., None])[..., 0].astype(np.float64)
    except np.linalg.LinAlgError:  # one singular replicate must not end the other 255
        step = np.einsum("bpq,bq->bp", np.linalg.pinv(H, hermitian=True), g)
    return step


def _objective(law: Law, eta: Array, target: Array, weights: Array) -> Array:
    misfit: Array = 2 * (np.logaddexp(0, eta) - target * eta) if law.link == "logit" else (target - eta) ** 2
    total: Array = (weights * misfit).sum(axis=1)
    return total


def optimum(law: Law, cells: Cells) -> Optimum:
    """The best of all starts, with the share of starts that reach it and the basins of the others."""
    starts_SP = law.starts(cells.x, cells.y_N)
    ones = np.ones((1, len(cells.y_N)))
    theta_SP, value_S = solve(law, cells.x, cells.y_N[None], cells.n_N, ones, starts_SP, max_iterations=300)
    best = int(np.argmin(value_S))
    # Objectives within 1e-6 of the spread of the data count as the same optimum.
    scale = (
        float(cells.n_N.sum())
        if law.link == "logit"
        else max(float(np.var(link(law, cells.y_N))), 1e-300) * len(ones[0])
    )
    same = value_S - value_S[best] <= 1e-6 * scale
    basins: list[tuple[float, tuple[float, ...]]] = []
    for k in np.argsort(value_S):
        if not same[k] and all(abs(value_S[k] - value) > 1e-6 * scale for value, _ in basins):
            basins.append((float(value_S[k]), tuple(map(float, theta_SP[k]))))
    theta_P, free_P = theta_SP[best], law.free(cells.x)
    if law.link == "logit":
        theta_P = _glm(law, cells, theta_P, free_P)
    lower_P, upper_P = law.bounds(cells.y_N)
    names = [p.name for p in law.parameters]
    active = tuple(n for n, v, lo, hi in zip(names, theta_P, lower_P, upper_P, strict=True) if v <= lo or v >= hi)
    eta_N = law.eta(theta_P[None], cells.x)[0]
    if law.link == "logit":
        p = np.clip(unlink(law, eta_N), 1e-12, 1 - 1e-12)
        pearson = float((cells.n_N * (cells.y_N - p) ** 2 / (p * (1 - p))).sum())
        objective = float(_objective(law, eta_N[None], cells.y_N[None], cells.n_N[None])[0])
    else:
        pearson = objective = float(value_S[best])
    freedom = max(len(cells.y_N) - int(free_P.sum()), 1)
    return Optimum(theta_P, free_P, objective, pearson / freedom, float(same.mean()), active, tuple(basins[:3]))


def _glm(law: Law, cells: Cells, theta_P: Array, free_P: NDArray[np.bool_]) -> Array:
    """The same law by statsmodels: proportions and var_weights (counts would mislead its dispersion)."""
    import warnings

    import statsmodels.api as sm

    design = law.gradient(theta_P[None], cells.x)[0][:, free_P]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # separation is reported by a rule, with a remedy
        fitted = sm.GLM(cells.y_N, design, family=sm.families.Binomial(), var_weights=cells.n_N).fit(
            start_params=theta_P[free_P], tol=1e-12
        )
    out = theta_P.copy()
    if fitted.converged and np.isfinite(fitted.params).all():
        out[free_P] = fitted.params
    return out
