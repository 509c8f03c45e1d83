"""Laws: one small class each. A law says what it predicts on its link scale, and nothing about how it is
fitted.

Shapes: B parameter vectors, P parameters, N rows. `x` maps a column name to [N]; "hours" is the size in the
unit of the study, "demos" the number of robot demonstrations (1 where a study or a loss has none). `eta` is
the prediction on the link scale: logit of a success rate, log of a loss, or the loss itself ("identity").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
X = Mapping[str, Array]


@dataclass(frozen=True)
class Parameter:
    """Name, unit ({x} is the unit of the size, {y} of the loss), meaning; `log`: fitted as its logarithm."""

    name: str
    unit: str
    meaning: str
    log: bool = False


class Law(ABC):
    """What all laws share; a new law fills in the class attributes and three methods."""

    name: ClassVar[str]
    formula: ClassVar[str]
    outcome: ClassVar[Literal["success", "loss"]]
    link: ClassVar[Literal["logit", "log", "identity"]]
    parameters: ClassVar[tuple[Parameter, ...]]
    slope: ClassVar[str]  # the parameter that is 0 when hours do nothing
    gain_sign: ClassVar[int]  # sign of the slope when more hours help a metric for which lower is better
    size_parameters: ClassVar[int] = 2  # parameters that only several sizes can tell apart

    @abstractmethod
    def eta(self, theta_BP: Array, x: X) -> Array:
        """Prediction on the link scale, [B, N]."""

    @abstractmethod
    def gradient(self, theta_BP: Array, x: X) -> Array:
        """d eta / d theta, [B, N, P]."""

    @abstractmethod
    def starts(self, x: X, y_N: Array) -> Array:
        """Starting points [S, P]: a grid over exponents or slopes, the rest at its best given them."""

    def bounds(self, y_N: Array) -> tuple[Array, Array]:
        """Lower and upper bound [P]: wide; a fit that ends at one is reported."""
        wide_P = np.full(len(self.parameters), 50.0)
        return -wide_P, wide_P

    def free(self, x: X) -> NDArray[np.bool_]:
        """Which parameters the design can tell apart, [P]."""
        return np.ones(len(self.parameters), dtype=bool)


def _columns(*columns: Array, rows: int) -> Array:
    return np.repeat(np.stack(columns, axis=-1)[None], rows, axis=0)


class LogitLogHours(Law):
    """Log-odds of success rise by `b` for each e-fold of hours and by `c` for each e-fold of demonstrations.

    Doubling the hours multiplies the odds by 2^b wherever one stands. A rate stays inside 0..1 at any
    horizon; no ceiling below 1 is assumed, so a task that saturates early is over-promised: look at the
    held-out size.
    """

    name = "logit-log-hours"
    formula = "logit p = a + b ln(hours) + c ln(demos)"
    outcome = "success"
    link = "logit"
    slope = "b"
    gain_sign = 1  # success: higher is better
    parameters = (
        Parameter("a", "log-odds", "log-odds of success at 1 {x} and 1 demonstration"),
        Parameter("b", "log-odds per e-fold of {x}", "gain from hours of video"),
        Parameter("c", "log-odds per e-fold of demos", "gain from robot demonstrations"),
    )

    def eta(self, theta_BP: Array, x: X) -> Array:
        a, b, c = (theta_BP[:, [k]] for k in range(3))
        return a + b * np.log(x["hours"]) + c * np.log(x["demos"])

    def gradient(self, theta_BP: Array, x: X) -> Array:
        h = np.log(x["hours"])
        return _columns(np.ones_like(h), h, np.log(x["demos"]), rows=len(theta_BP))

    def starts(self, x: X, y_N: Array) -> Array:
        grid = [(b, c) for b in (-1.0, 0.0, 1.0, 2.0) for c in (-1.0, 0.0, 1.0, 2.0)]
        level = np.clip(y_N.mean(), 0.02, 0.98)
        centre = np.log(x["hours"]).mean(), np.log(x["demos"]).mean()
        a = np.log(level / (1 - level))
        rows = [(a - b * centre[0] - c * centre[1], b, c) for b, c in grid]
        free_P = self.free(x)
        return np.unique(np.array(rows) * free_P if free_P[2] else [(r[0], r[1], 0.0) for r in rows[1::4]], axis=0)

    def free(self, x: X) -> NDArray[np.bool_]:
        return np.array([True, True, len(np.unique(x["demos"])) > 1])


class Power(Law):
    """Loss falls by the same share with each doubling of hours, without end: L = A h^-alpha."""

    name = "power"
    formula = "L = A hours^-alpha"
    outcome = "loss"
    link = "log"
    slope = "alpha"
    gain_sign = 1
    parameters = (
        Parameter("A", "{y}", "loss at 1 {x}", log=True),
        Parameter("alpha", "1", "exponent: each doubling multiplies the loss by 2^-alpha"),
    )

    def eta(self, theta_BP: Array, x: X) -> Array:
        return theta_BP[:, [0]] - theta_BP[:, [1]] * np.log(x["hours"])

    def gradient(self, theta_BP: Array, x: X) -> Array:
        h = np.log(x["hours"])
        return _columns(np.ones_like(h), -h, rows=len(theta_BP))

    def starts(self, x: X, y_N: Array) -> Array:
        h = np.log(x["hours"])
        return np.array([(np.log(y_N).mean() + k * h.mean(), k) for k in np.linspace(-0.5, 2.0, 16)])


class PowerOffset(Law):
    """Loss falls towards a floor that no amount of video removes: L = A h^-alpha + E.

    Needs sizes beyond the bend: with four sizes and three parameters the floor is a guess, which its
    interval says.
    """

    name = "power-offset"
    formula = "L = A hours^-alpha + E"
    outcome = "loss"
    link = "log"
    slope = "alpha"
    gain_sign = 1
    size_parameters = 3
    parameters = (
        Parameter("A", "{y}", "reducible loss at 1 {x}", log=True),
        Parameter("alpha", "1", "exponent of the reducible loss"),
        Parameter("E", "{y}", "loss that remains with endless video", log=True),
    )

    def eta(self, theta_BP: Array, x: X) -> Array:
        return np.logaddexp(theta_BP[:, [0]] - theta_BP[:, [1]] * np.log(x["hours"]), theta_BP[:, [2]])

    def gradient(self, theta_BP: Array, x: X) -> Array:
        h = np.log(x["hours"])
        share = np.exp(theta_BP[:, [0]] - theta_BP[:, [1]] * h - self.eta(theta_BP, x))  # of the reducible part
        return np.stack([share, -share * h, 1 - share], axis=-1)

    def starts(self, x: X, y_N: Array) -> Array:
        rows = []
        for exponent in np.geomspace(0.02, 3.0, 32):  # for each exponent A and E by least squares, kept positive
            basis = np.stack([x["hours"] ** -exponent, np.ones_like(y_N)], axis=1)
            amplitude, floor = np.linalg.lstsq(basis, y_N, rcond=None)[0]
            small = 1e-3 * y_N.min()
            rows.append((np.log(max(amplitude, small)), exponent, np.log(max(floor, small))))
        return np.array(rows)

    def bounds(self, y_N: Array) -> tuple[Array, Array]:
        floor = np.log(y_N.min())  # E below a millionth of the smallest loss is no floor at all
        return np.array([-50.0, 0.01, floor - np.log(1e6)]), np.array([50.0, 5.0, np.log(y_N.max())])


class LogLinear(Law):
    """Loss falls by a fixed amount with each e-fold of hours: L = a + b ln h. It crosses any floor sooner or
    later.

    The worst of five families at extrapolation on 92 published curves (median RMSLE .39 against .09 for the
    power law), kept because EgoScale reports it.
    """

    name = "log-linear"
    formula = "L = a + b ln(hours)"
    outcome = "loss"
    link = "identity"
    slope = "b"
    gain_sign = -1
    parameters = (
        Parameter("a", "{y}", "loss at 1 {x}"),
        Parameter("b", "{y} per e-fold of {x}", "change of the loss for each e-fold of hours"),
    )

    def eta(self, theta_BP: Array, x: X) -> Array:
        return theta_BP[:, [0]] + theta_BP[:, [1]] * np.log(x["hours"])

    def gradient(self, theta_BP: Array, x: X) -> Array:
        h = np.log(x["hours"])
        return _columns(np.ones_like(h), h, rows=len(theta_BP))

    def starts(self, x: X, y_N: Array) -> Array:
        h = np.log(x["hours"])
        spread = y_N.std() / max(h.std(), 1e-12)
        return np.array([(y_N.mean() - k * spread * h.mean(), k * spread) for k in np.linspace(-2, 2, 8)])

    def bounds(self, y_N: Array) -> tuple[Array, Array]:
        wide_P = np.full(2, 1e3 * max(1e-12, float(np.abs(y_N).max())))
        return -wide_P, wide_P


LAWS: dict[str, Law] = {law.name: law for law in (LogitLogHours(), Power(), PowerOffset(), LogLinear())}


class Baseline(ABC):
    """A prediction without a law: what a fit must beat on the held-out size to be worth printing."""

    name: ClassVar[str]
    outcomes: ClassVar[tuple[str, ...]]

    def predict(self, x: X, y_N: Array, n_N: Array, ahead: X, smooth: float = 0.0) -> Array:
        """Predict the rows `ahead` from seen rows: `y_N` rate or loss, `n_N` trials (1 for a loss).

        `smooth` successes and failures are added (1/2 of each, Jeffreys), so that a predicted rate is never
        0 or 1.
        """
        out = np.empty(len(ahead["hours"]))
        for row, demos in enumerate(ahead["demos"]):
            same_N = x["demos"] == demos if np.isin(demos, x["demos"]) else np.ones(len(y_N), dtype=bool)
            seen = self.rows(x["hours"], same_N)
            out[row] = ((y_N * n_N)[seen].sum() + smooth) / (n_N[seen].sum() + 2 * smooth)
        return out

    def rows(self, hours_N: Array, same_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which seen rows of the same number of demonstrations are pooled."""
        return same_N


class Constant(Baseline):
    """Hours change nothing: the mean loss of all sizes seen."""

    name = "constant"
    outcomes = ("loss",)


class PooledRate(Baseline):
    """Hours change nothing: the pooled success rate of all sizes seen, for each number of demonstrations."""

    name = "pooled-rate"
    outcomes = ("success",)


class LastValue(Baseline):
    """The next size will do as the largest one seen did: the baseline that beats many published laws."""

    name = "last-value"
    outcomes = ("success", "loss")

    def rows(self, hours_N: Array, same_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
        last: float = hours_N[same_N].max()
        rows_N: NDArray[np.bool_] = same_N & (hours_N == last)
        return rows_N


BASELINES: tuple[Baseline, ...] = (LastValue(), Constant(), PooledRate())
