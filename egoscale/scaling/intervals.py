"""Intervals. The resampling unit is the pretraining run (arm x hours x seed), never an episode.

Coverage of nominal 95 % for the slope (3 seeds / 1 seed a size, run-to-run SD 0.5 logit): naive GLM
.56/.58, dispersion-scaled .75/.87, clustered by run .92/.91, cluster jackknife .94/.96 - so the jackknife is
the default.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from egoscale.scaling.cells import Cells
from egoscale.scaling.estimate import Optimum, solve, unlink
from egoscale.scaling.laws import Array, Law

MIN_CLUSTERS = 8  # below this a bootstrap of runs repeats the same few samples


@dataclass(frozen=True)
class Uncertainty:
    """Jackknife covariance and bootstrap draws of one estimate.

    covariance_PP: of theta. freedom: of the t distribution. leave_one_out_GP: theta without each run.
    draws_RP: theta refitted on each replicate. method: how the draws were made. run_sd: run-to-run standard
    deviation on link scale.
    """

    covariance_PP: Array
    freedom: int
    leave_one_out_GP: Array
    draws_RP: Array
    method: str
    run_sd: float
    band_freedom: int

    def t(self, level: float) -> float:
        """Two-sided quantile of Student's t for a parameter."""
        return _t(level, self.freedom)

    def band_t(self, level: float) -> float:
        """The same for a band; runs drawn within S sizes leave G - S degrees of freedom."""
        return _t(level, self.band_freedom)

    def widen(self, level: float) -> float:
        """What turns a percentile interval into one for few runs: t over normal quantile."""
        from scipy.stats import norm

        return self.band_t(level) / float(norm.ppf(0.5 + level / 2))


def _t(level: float, freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, freedom))


def uncertainty(law: Law, cells: Cells, best: Optimum, replicates: int, seed: int) -> Uncertainty:
    """Cluster jackknife for parameters, cluster bootstrap for curves and bands."""
    G, P = cells.num_runs, len(best.theta_P)
    keep_GN = (cells.run_N[None] != np.arange(G)[:, None]).astype(float)
    start = best.theta_P[None]
    left_GP, _ = solve(law, cells.x, cells.y_N[None], cells.n_N, keep_GN, start)
    shift_GP = left_GP - start  # about the estimate itself: a little conservative, as CR3
    covariance_PP = (G - 1) / G * shift_GP.T @ shift_GP
    # t(G - 2) for the slope of a line in ln hours; one degree less for each further parameter of the size.
    freedom = max(G - law.size_parameters, 1)
    run_sd = _run_sd(law, cells, best)
    rng = np.random.default_rng(seed)
    if min(cells.runs_per_size) >= 2 and cells.num_runs >= MIN_CLUSTERS:
        weights_RN = _run_weights(cells, replicates, rng)[:, cells.run_N]
        draws_RP, _ = solve(law, cells.x, cells.y_N[None], cells.n_N, weights_RN, start)
        method, band_freedom = "cluster bootstrap of runs, stratified by size", max(G - len(cells.sizes_S), 1)
    else:
        y_RN = simulate(law, cells, best.theta_P[None].repeat(replicates, 0), run_sd, rng)
        draws_RP, _ = solve(law, cells.x, y_RN, cells.n_N, np.ones((1, len(cells.n_N))), start)
        method, band_freedom = "parametric bootstrap with run-to-run noise", freedom
    assert draws_RP.shape == (replicates, P)
    return Uncertainty(covariance_PP, freedom, left_GP, draws_RP, method, run_sd, band_freedom)


def _run_weights(cells: Cells, replicates: int, rng: np.random.Generator) -> Array:
    """Weights [R, G]: of the m runs of a size, m - 1 are drawn with replacement and weigh m / (m - 1).

    Drawing m of m would understate the variance by (m - 1) / m, a third at three seeds (Rao and Wu, 1988).
    """
    weights = np.zeros((replicates, cells.num_runs))
    for size, m in enumerate(cells.runs_per_size):
        runs = np.flatnonzero(cells.size_G == size)
        weights[:, runs] = rng.multinomial(m - 1, np.full(m, 1 / m), size=replicates) * (m / (m - 1))
    return weights


def _run_sd(law: Law, cells: Cells, best: Optimum) -> float:
    """Run-to-run standard deviation on the link scale by moments, after binomial noise is taken off."""
    eta_N = law.eta(best.theta_P[None], cells.x)[0]
    if law.link != "logit":
        return float(np.sqrt(best.objective / max(len(cells.y_N) - int(best.free_P.sum()), 1)))
    p = unlink(law, eta_N)
    G = cells.num_runs
    excess_G = np.bincount(cells.run_N, cells.n_N * (cells.y_N - p), G)
    variance_G = np.bincount(cells.run_N, cells.n_N * p * (1 - p), G)
    shrink = (G - law.size_parameters) / G  # residuals of a fitted line are smaller than its errors
    excess = (excess_G**2 / max(shrink, 0.2) - variance_G).sum()
    return float(np.sqrt(max(0.0, excess / max((variance_G**2).sum(), 1e-12))))


def simulate(law: Law, cells: Cells, theta_RP: Array, run_sd: float, rng: np.random.Generator) -> Array:
    """New outcomes [R, N] at the same cells: noise shared within a run, then binomial noise."""
    eta_RN = law.eta(theta_RP, cells.x) + rng.normal(0, run_sd, (len(theta_RP), cells.num_runs))[:, cells.run_N]
    mean = unlink(law, eta_RN)
    return rng.binomial(cells.n_N.astype(int), mean) / cells.n_N if law.link == "logit" else mean


def band(law: Law, u: Uncertainty, theta_P: Array, x: dict[str, Array], level: float) -> tuple[Array, Array, Array]:
    """Estimate and confidence limits [N] of the mean at `x`: t times the bootstrap error on the link scale.

    Percentiles of so few runs are too narrow: they covered .90, this .93 (1,000 tables, 5 sizes x 3 seeds).
    """
    eta_N = law.eta(theta_P[None], x)[0]
    wide_N = u.band_t(level) * np.sqrt(((law.eta(u.draws_RP, x) - eta_N) ** 2).mean(axis=0))
    return unlink(law, eta_N), unlink(law, eta_N - wide_N), unlink(law, eta_N + wide_N)


def next_run(
    law: Law, u: Uncertainty, theta_P: Array, x: dict[str, Array], level: float, trials: int, seed: int
) -> tuple[Array, Array]:
    """Prediction limits [N] for one new run of `trials` episodes: parameter, run and binomial noise."""
    rng = np.random.default_rng(seed)
    eta_N = law.eta(theta_P[None], x)[0]
    eta_RN = eta_N + u.widen(level) * (law.eta(u.draws_RP, x) - eta_N)
    eta_RN = eta_RN + u.run_sd * rng.standard_t(u.freedom, eta_RN.shape)
    mean = unlink(law, eta_RN)
    values = rng.binomial(trials, mean) / trials if law.link == "logit" else mean
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return low, high


def wilson(successes: Array, trials: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Wilson score limits of a success rate, from statsmodels; runs are pooled, seed noise is not in them."""
    return _proportion(successes, trials, level, "wilson")


def jeffreys(successes: Array, trials: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Jeffreys limits (Beta(1/2, 1/2) prior), from statsmodels."""
    return _proportion(successes, trials, level, "jeffreys")


def exact(successes: Array, trials: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Clopper-Pearson limits, from statsmodels: never too narrow, often too wide."""
    return _proportion(successes, trials, level, "beta")


def _proportion(successes: Array, trials: Array, level: float, method: str) -> tuple[Array, Array]:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(np.asarray(successes, float), np.asarray(trials, float), 1 - level, method)
    return np.atleast_1d(low), np.atleast_1d(high)


def parameter_limits(theta: float, variance: float, t: float, log: bool) -> tuple[float, float, float, float]:
    """Estimate, standard error and limits on the parameter's own scale (`log`: fitted as logarithm)."""
    error = float(np.sqrt(max(variance, 0.0)))
    if not log:
        return theta, error, theta - t * error, theta + t * error
    with np.errstate(over="ignore"):
        return (
            float(np.exp(theta)),
            float(np.exp(theta) * error),
            float(np.exp(theta - t * error)),
            float(np.exp(theta + t * error)),
        )
