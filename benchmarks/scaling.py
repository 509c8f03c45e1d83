"""How fast laws are fitted and resampled: this package, tuned scipy and the published way in the same run.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py > benchmarks/scaling.md

One thread. Seconds are medians of repeats, by the clock and of the processor (the same on a quiet machine); ways that
are compared take turns. Slow ways refit fewer replicates and are scaled, which the table says.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1")

import argparse
import datetime
import importlib.metadata
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
from machine import machine
from scipy.optimize import minimize

from egoscale.scaling import StudySpec, fit
from egoscale.scaling.cells import Cells
from egoscale.scaling.estimate import Criterion, optimum, solve
from egoscale.scaling.intervals import simulate, uncertainty
from egoscale.scaling.law import Array, Inputs
from egoscale.scaling.laws import make_law
from egoscale.scaling.study import InputSpec, IntervalSpec

ROOT = Path(__file__).resolve().parents[1]
DELTA = 1e-3  # of Huber's loss on the logarithm, as Hoffmann et al. (2022, arXiv 2203.15556)
# A, B, E as logarithms, alpha, beta: where the published refit starts each replicate (Besiroglu et al., 2024,
# arXiv 2404.10102), rounded as Hoffmann et al. print them.
HOFFMANN = np.array([np.log(406.4), np.log(410.7), np.log(1.69), 0.34, 0.28])
TOLERANCE = 1e-6  # relative excess of an objective over the best known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=ROOT / "analysis" / "chinchilla" / "table.csv")
    parser.add_argument("--replicates", type=int, default=4000)
    parser.add_argument("--scipy-replicates", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    asked = parser.parse_args()
    print("# How fast laws are fitted and resampled\n")
    print(f"{datetime.date.today()}, {machine()}, one thread. {versions()}.")
    print("Command: `OMP_NUM_THREADS=1 python benchmarks/scaling.py > benchmarks/scaling.md`. Seconds are medians.\n")
    bootstrap(chinchilla(asked.table), asked.replicates, asked.scipy_replicates, asked.repeats)
    others(chinchilla(asked.table), asked.repeats, asked.rows)


def versions() -> str:
    """Versions of what is timed."""
    named = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("numpy", "scipy", "statsmodels", "polars"))
    return f"Python {platform.python_version()}, {named}"


EXCESS = """\
Excess: an objective over the smallest that any way found for a replicate, minus 1; over the first {few} replicates.
The published refit used BFGS with automatic differentiation from Hoffmann's values; no package here has that, so the
numeric gradient, six evaluations of the objective for each, stands in for it."""

Timed = tuple[float, float, Any]


def timed(act: Callable[[], Any]) -> Timed:
    """Seconds by the clock, seconds of the processor, and what came out."""
    wall, work = time.perf_counter(), time.process_time()
    out = act()
    return time.perf_counter() - wall, time.process_time() - work, out


def turns(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Timed]:
    """Medians of each way, the ways taking turns so that a busy minute hits all of them."""
    runs: dict[str, list[Timed]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, act in ways.items():
            runs[name].append(timed(act))
    return {n: (median(r[0] for r in some), median(r[1] for r in some), some[-1][2]) for n, some in runs.items()}


def chinchilla(path: Path) -> Cells:
    """The 240 runs that everyone keeps, each a run of its own."""
    rows = pl.read_csv(path).filter(~pl.col("outlier"))
    params, tokens, loss = (rows[c].cast(pl.Float64).to_numpy() for c in ("params", "tokens", "loss"))
    sizes_S, size_G = np.unique(params, return_inverse=True)
    N = len(loss)
    return Cells(Inputs.of(params, tokens), loss, np.ones(N), np.arange(N), tuple(map(str, range(N))), sizes_S, size_G)


def hand_written(cells: Cells, centre: bool) -> Callable[[Array, Array], tuple[float, Array]]:
    """Huber's loss of the sum of powers and its gradient by hand, for one replicate: what a careful user would write.

    theta: log A, log B, log E, alpha, beta. centre: logarithms about their means, which takes the condition number of
    the problem from thousands to tens. The sum is divided by delta, so that it is of order 1 for scipy's tolerances.
    """
    log_y = np.log(cells.y_N)
    n, d = (np.log(x) - (np.log(x).mean() if centre else 0.0) for x in cells.x.columns)

    def value(theta: Array, weight_N: Array) -> tuple[float, Array]:
        a, b, e, alpha, beta = theta
        first, second, floor = np.exp(a - alpha * n), np.exp(b - beta * d), np.exp(e)
        whole = first + second + floor
        r = log_y - np.log(whole)
        size = np.abs(r)
        straight = size > DELTA
        loss = np.where(straight, DELTA * (size - 0.5 * DELTA), 0.5 * r * r)
        pull = -weight_N * np.clip(r, -DELTA, DELTA) / whole
        by_first, by_second = pull * first, pull * second
        gradient = np.array([by_first.sum(), by_second.sum(), floor * pull.sum(), -by_first @ n, -by_second @ d])
        return float(weight_N @ loss) / DELTA, gradient / DELTA

    return value


def centred(theta: Array, cells: Cells) -> Array:
    """log A, alpha, log B, beta, log E of the package as the careful user's centred parameters."""
    a, alpha, b, beta, e = theta
    n, d = (float(np.log(x).mean()) for x in cells.x.columns)
    return np.array([a - alpha * n, b - beta * d, e, alpha, beta])


def by_scipy(cells: Cells, weights_RN: Array, start: Array, method: str, gradient: bool, centre: bool) -> Array:
    """Objectives [R] of one scipy fit a replicate, in the package's scale."""
    value = hand_written(cells, centre)
    found = []
    for weight_N in weights_RN:
        if gradient:
            out = minimize(value, start, (weight_N,), method, jac=True, options={"gtol": 1e-6})
        else:
            out = minimize(lambda theta, w: value(theta, w)[0], start, (weight_N,), method)
        found.append(out.fun * DELTA)
    return np.array(found)


def bootstrap(cells: Cells, replicates: int, few: int, repeats: int) -> None:
    law, criterion = make_law("additive", 2), Criterion("huber", delta=DELTA)
    best = optimum(law, cells, criterion)
    N = len(cells.y_N)
    weights_RN = np.random.default_rng(42).multinomial(N, np.full(N, 1 / N), size=replicates).astype(float)
    start, ones = best.theta_P, np.ones(N)
    warm = centred(start, cells)
    ways: dict[str, Callable[[], Any]] = {
        "egoscale": lambda: solve(law, cells.x, cells.y_N[None], ones, weights_RN, start[None], criterion)[1],
        "tuned": lambda: by_scipy(cells, weights_RN[:few], warm, "BFGS", True, True),
    }
    times = turns(ways, repeats)
    # The published ways are slow: once is enough for a factor of tens.
    times |= turns({"BFGS": lambda: by_scipy(cells, weights_RN[: few // 4], HOFFMANN, "BFGS", False, False)}, 1)
    times |= turns({"L-BFGS-B": lambda: by_scipy(cells, weights_RN[:few], HOFFMANN, "L-BFGS-B", False, False)}, 1)
    known = np.minimum(times["egoscale"][2][:few], times["tuned"][2])
    for name in ("BFGS", "L-BFGS-B"):
        some = len(times[name][2])
        known[:some] = np.minimum(known[:some], times[name][2])
    print(f"## {replicates:,} bootstrap replicates of L = A N^-alpha + B D^-beta + E, {N} points, 5 parameters\n")
    print(
        "| way | replicates timed | clock, s | processor, s | times egoscale (processor) | worst excess | above 1e-6 |"
    )
    print("|---|---|---|---|---|---|---|")
    own = times["egoscale"][1]
    words = {
        "egoscale": "this package, all replicates in one loop, one warm start",
        "tuned": "scipy BFGS, gradient by hand, centred logarithms, one warm start",
        "BFGS": "scipy BFGS, numeric gradient, from Hoffmann's values",
        "L-BFGS-B": "scipy L-BFGS-B, numeric gradient, from Hoffmann's values",
    }
    for name, words_ in words.items():
        wall, work, value = times[name]
        scale = replicates / len(value)
        excess = value[:few] / known[: min(len(value), few)] - 1
        print(
            f"| {words_} | {len(value):,} | {wall * scale:.2f} | {work * scale:.2f} | {work * scale / own:.1f} | "
            f"{excess.max():.1e} | {np.mean(excess > TOLERANCE):.1%} |"
        )
    print(f"\n{EXCESS.format(few=few)}\n")


def trial_cells(sizes: int, seeds: int, demos: tuple[float, ...], trials: float, run_sd: float) -> Cells:
    """Simulated success counts of pretraining runs."""
    size_S = np.geomspace(1, 20, sizes)
    size_G = np.repeat(np.arange(sizes), seeds)
    run_N = np.repeat(np.arange(len(size_G)), len(demos))
    x = Inputs.of(size_S[size_G][run_N], np.tile(demos, len(size_G)))
    names = tuple(map(str, range(len(size_G))))
    bare = Cells(x, np.zeros(len(run_N)), np.full(len(run_N), trials), run_N, names, size_S, size_G)
    law, rng = make_law("logit-log-hours", 2), np.random.default_rng(0)
    y_N = simulate(law, bare, np.array([[-1.8, 0.5, 0.3]]), run_sd, rng)[0]
    return Cells(x, y_N, bare.n_N, run_N, names, size_S, size_G)


def clustered(cells: Cells, replicates: int) -> Any:
    """Estimate, cluster jackknife and cluster bootstrap of a binomial GLM."""
    law, criterion = make_law("logit-log-hours", 2), Criterion("binomial")
    best = optimum(law, cells, criterion)
    return uncertainty(law, cells, best, criterion, IntervalSpec(replicates=replicates))


def by_statsmodels(cells: Cells, replicates: int) -> Array:
    """The same bootstrap, one statsmodels GLM a replicate."""
    import statsmodels.api as sm

    design = make_law("logit-log-hours", 2).gradient(np.zeros((1, 3)), cells.x)[0]
    rng = np.random.default_rng(0)
    m, S = int(cells.runs_per_size[0]), len(cells.sizes_S)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(replicates):
            weight_G = rng.multinomial(m - 1, np.full(m, 1 / m), size=S).ravel() * m / (m - 1)
            weight_N = cells.n_N * weight_G[cells.run_N]
            keep = weight_N > 0
            model = sm.GLM(cells.y_N[keep], design[keep], family=sm.families.Binomial(), var_weights=weight_N[keep])
            found.append(model.fit().params)
    return np.array(found)


def large(rows: int) -> pl.DataFrame:
    """20 sizes, 10 demonstration counts and as many seeds as make so many rows; run-to-run SD .3, 20 trials a row."""
    demos = tuple(float(round(d)) for d in np.geomspace(5, 500, 10))
    cells = trial_cells(20, max(rows // 200, 1), demos, 20.0, 0.3)
    return pl.DataFrame(
        {
            "hours": cells.x[0],
            "demos": cells.x[1].astype(np.int64),
            "seed": cells.run_N,
            "successes": np.round(cells.y_N * 20).astype(np.int64),
            "trials": np.full(len(cells.y_N), 20),
        }
    )


def large_study() -> StudySpec:
    return StudySpec(
        name="large",
        title="large",
        question="how long does a large table take",
        x=(InputSpec(column="hours", unit="hours"), InputSpec(column="demos", unit="demos")),
        run=("hours", "seed"),
        laws=("logit-log-hours",),
        forecasts=(40.0,),
    )


def command_seconds(*words: str) -> float:
    """Seconds of a fresh process."""
    return timed(lambda: subprocess.run(words, check=True, capture_output=True, cwd=ROOT))[0]


def others(chin: Cells, repeats: int, rows: int) -> None:
    print(
        "## Other limits\n\n| what | clock, s | processor, s | limit, s | peer in the same run |\n|---|---|---|---|---|"
    )
    global_fit(chin, repeats)
    cluster_bootstrap(repeats)
    start_of_the_command(repeats)
    large_table(rows)


def row(what: str, wall: float, work: float | None, limit: float, peer: str) -> None:
    """One row of the second table."""
    print(f"| {what} | {wall:.3f} | {'' if work is None else f'{work:.3f}'} | {limit:g} | {peer} |", flush=True)


def global_fit(chin: Cells, repeats: int) -> None:
    law, criterion = make_law("additive", 2), Criterion("huber", delta=DELTA)
    rng, few = np.random.default_rng(0), 16
    starts = len(law.starts(chin.x, chin.y_N))
    # A box around the published grid of starts (log A, log B, log E, alpha, beta): chosen without looking at the data.
    low, high = np.array([0.0, 0.0, -1.0, 0.0, 0.0]), np.array([25.0, 25.0, 1.0, 2.0, 2.0])
    value, ones = hand_written(chin, False), np.ones(len(chin.y_N))

    def from_box() -> Array:
        box = rng.uniform(low, high, (few, len(low)))
        with np.errstate(over="ignore", invalid="ignore"):  # some corners of the box are absurd
            found = [minimize(lambda t: value(t, ones)[0], start, method="L-BFGS-B") for start in box]
        return np.array([f.fun * DELTA for f in found])

    times = turns({"own": lambda: optimum(law, chin, criterion)}, repeats) | turns({"box": from_box}, 1)
    (wall, work, best), (_, slow, found) = times["own"], times["box"]
    near = np.mean(found <= best.objective * 1.01)
    row(
        f"global fit of the same law, {starts} starts: {best.share_of_starts:.0%} reach the optimum", wall, work, 0.2,
        f"scipy L-BFGS-B, numeric gradient, {starts} random starts: {slow / few * starts:.1f} s, {near:.0%} within 1 %",
    )  # fmt: skip


def cluster_bootstrap(repeats: int) -> None:
    cells = trial_cells(5, 3, (10.0, 30.0, 100.0), 100.0, 0.5)
    clustered(cells, 200), by_statsmodels(cells, 2)  # imports are not part of the question
    times = turns({"own": lambda: clustered(cells, 200), "peer": lambda: by_statsmodels(cells, 50)}, repeats)
    (wall, work, _), (_, slow, _) = times["own"], times["peer"]
    row(
        "binomial GLM, 5 sizes x 3 seeds x 3 demos: estimate, jackknife of 15 runs, 200 cluster bootstraps", wall, work,
        0.5, f"statsmodels GLM, 200 refits one by one: {slow * 4:.2f} s",
    )  # fmt: skip


def start_of_the_command(repeats: int) -> None:
    command = str(Path(sys.executable).with_name("egoscale"))
    bare = median(
        command_seconds(sys.executable, "-c", "import numpy, polars, pydantic, typer") for _ in range(repeats)
    )
    wall = median(command_seconds(command, "fit", "--help") for _ in range(repeats))
    row(
        "`egoscale fit --help`, a fresh process",
        wall,
        None,
        2,
        f"numpy, polars, pydantic and typer alone: {bare:.2f} s",
    )


def large_table(rows: int) -> None:
    table, study = large(rows), large_study()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, work, done = timed(lambda: fit(table, study))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if done.refused_ is not None:
        raise SystemExit(f"the large table was refused: {done.refused_.message}")
    value, low, high = done.slope()
    row(
        f"`fit` of {rows:,} rows (20 sizes x {rows // 200:,} seeds x 10 demos), with hold-out, forecast and warnings: "
        f"slope {value:.3f} [{low:.3f}, {high:.3f}]", wall, work, 30,
        f"peak memory {before / 1e6:.1f} to {peak / 1e6:.1f} GB",
    )  # fmt: skip


if __name__ == "__main__":
    main()
