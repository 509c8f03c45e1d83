"""What a fit is: estimates with intervals, predictions, warnings, or the reason why there is none."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from egoscale.scaling.cells import Cells
from egoscale.scaling.estimate import Optimum, unlink
from egoscale.scaling.intervals import Uncertainty, band
from egoscale.scaling.laws import Array, Law
from egoscale.scaling.rules import Notice
from egoscale.scaling.sentence import sentence, summary
from egoscale.scaling.study import StudySpec


@dataclass(frozen=True)
class Fit:
    """One law over one group of rows, or the reason why there is none (`refused_`).

    parameters_: {name: {estimate, se, ci95, unit}}; ci95 holds the limits at the study's level, .95 unless
    it says otherwise. baseline_: pooled success without video by number of demonstrations. Predictions:
    `predict`.
    """

    law: Law
    study: StudySpec
    group: dict[str, object] = field(default_factory=dict)
    task: str | None = None
    refused_: Notice | None = None
    warnings_: tuple[Notice, ...] = ()
    parameters_: dict[str, dict[str, Any]] = field(default_factory=dict)
    convergence_: dict[str, Any] = field(default_factory=dict)
    holdout_: dict[str, Any] | None = None
    comparison_: dict[str, Any] | None = None
    forecasts_: tuple[dict[str, Any], ...] = ()
    baseline_: tuple[dict[str, Any], ...] = ()
    cells_: Cells | None = None
    optimum_: Optimum | None = None
    uncertainty_: Uncertainty | None = None

    @property
    def dispersion_(self) -> float | None:
        """Pearson chi-square over degrees of freedom (binomial) or residual variance on the link scale."""
        return self.optimum_.dispersion if self.optimum_ else None

    def predict(self, hours: Any, demos: Any = None, level: float | None = None) -> pl.DataFrame:
        """Mean outcome with confidence limits at every pair of `hours` (> 0) and `demos` (default: those in
        the data).

        Columns: hours, demos, estimate, low, high, beyond_data. Raises ValueError when the fit was refused.
        """
        cells, best, spread = self.fitted()
        hours_N = np.atleast_1d(np.asarray(hours, dtype=float))
        if (hours_N <= 0).any():
            raise ValueError(f"hours = {hours_N.min():g}: {self.law.formula} needs hours above 0; see `baseline_`")
        demos_D = np.unique(cells.x["demos"]) if demos is None else np.atleast_1d(np.asarray(demos, dtype=float))
        x = {"hours": np.tile(hours_N, len(demos_D)), "demos": np.repeat(demos_D, len(hours_N))}
        mean, low, high = band(self.law, spread, best.theta_P, x, level or self.study.intervals.level)
        beyond = (x["hours"] > cells.sizes_S[-1]) | (x["hours"] < cells.sizes_S[0])
        return pl.DataFrame({**x, "estimate": mean, "low": low, "high": high, "beyond_data": beyond})

    def mean(self, hours: Array) -> Array:
        """Point prediction at `hours` for the smallest number of demonstrations."""
        cells, best, _ = self.fitted()
        x = {"hours": hours, "demos": np.full(len(hours), cells.x["demos"].min())}
        return unlink(self.law, self.law.eta(best.theta_P[None], x)[0])

    def slope_limits(self) -> tuple[float, float]:
        """Interval of the parameter that is 0 when hours do nothing."""
        low, high = self.parameters_[self.law.slope]["ci95"]
        return float(low), float(high)

    def gain_sign(self) -> int:
        """Sign of the slope when more hours help."""
        loss = self.study.loss
        flip = self.law.outcome == "loss" and loss is not None and loss.direction == "higher"
        return -self.law.gain_sign if flip else self.law.gain_sign

    def influence(self) -> tuple[str | None, float, float]:
        """The run without which the slope's interval would first cover 0, and that interval; or None."""
        cells, _, spread = self.fitted()
        low, high = self.slope_limits()
        at = self._slope_index()
        half = spread.t(self.study.intervals.level) * np.sqrt(spread.covariance_PP[at, at])
        slopes_G = spread.leave_one_out_GP[:, at]
        turned = np.flatnonzero((slopes_G - half <= 0) & (slopes_G + half >= 0))
        if low <= 0 <= high or not len(turned):
            return None, low, high
        worst = int(turned[np.argmin(np.abs(slopes_G[turned]))])
        return cells.runs[worst], float(slopes_G[worst] - half), float(slopes_G[worst] + half)

    def sentence(self) -> str:
        """The law in one sentence, with its interval."""
        return sentence(self)

    def summary(self) -> str:
        """Warnings, law, parameters, held-out size and forecasts as plain text."""
        return summary(self)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON: no NaN (null instead), no numpy."""
        cells, best = self.cells_, self.optimum_
        plain: dict[str, Any] = _plain(
            {
                "study": self.study.name,
                "law": self.law.name,
                "formula": self.law.formula,
                "outcome": self.law.outcome,
                "group": self.group,
                "task": self.task,
                "x_unit": self.study.size.unit,
                "sentence": self.sentence(),
                "parameters": self.parameters_,
                "objective": best.objective if best else None,
                "dispersion": self.dispersion_,
                "run_sd": self.uncertainty_.run_sd if self.uncertainty_ else None,
                "n_rows": len(cells.y_N) if cells else 0,
                "n_runs": cells.num_runs if cells else 0,
                "n_sizes": len(cells.sizes_S) if cells else 0,
                "intervals": {
                    "level": self.study.intervals.level,
                    "parameters": f"{self.study.intervals.method}, t({self.uncertainty_.freedom})",
                    "curve": self.uncertainty_.method,
                }
                if self.uncertainty_
                else None,
                "convergence": self.convergence_ or None,
                "holdout": self.holdout_,
                "forecasts": list(self.forecasts_),
                "comparison": self.comparison_,
                "baseline": list(self.baseline_),
                "warnings": [asdict(n) for n in self.warnings_],
                "refused": asdict(self.refused_) if self.refused_ else None,
            }
        )
        return plain

    def _slope_index(self) -> int:
        return [p.name for p in self.law.parameters].index(self.law.slope)

    def fitted(self) -> tuple[Cells, Optimum, Uncertainty]:
        if self.cells_ is None or self.optimum_ is None or self.uncertainty_ is None:
            why = self.refused_.message if self.refused_ else "not fitted"
            raise ValueError(f"law {self.law.name} was refused and predicts nothing: {why}")
        return self.cells_, self.optimum_, self.uncertainty_


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
