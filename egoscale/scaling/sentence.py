"""What a fit says, in words and in plain text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egoscale.scaling.result import Fit


def percent(rate: float) -> str:
    """0.314 -> "31 %"; small rates keep a digit."""
    value = 100 * rate
    return f"{value:.1f} %" if 0 < value < 9.95 else f"{value:.0f} %"


def sentence(fit: Fit) -> str:
    """The law in one sentence with its interval; says plainly when the data show nothing."""
    if fit.refused_ is not None:
        return f"No law: {fit.refused_.message}"
    low, high = fit.slope_limits()
    return _success(fit, low, high) if fit.law.outcome == "success" else _loss(fit, low, high)


def _level(fit: Fit) -> str:
    return f"{100 * fit.study.intervals.level:g} % interval"


def _success(fit: Fit, low: float, high: float) -> str:
    assert fit.cells_ is not None
    sizes, demos = fit.cells_.sizes_S, fit.cells_.x["demos"].min()
    ends = fit.predict([sizes[0], sizes[-1]], demos)["estimate"]
    unit, what = fit.study.size.unit, fit.task or "success"
    with_demos = f"with {demos:g} {fit.study.demos.unit} " if fit.study.demos else ""
    rise = (
        f"{with_demos}the law goes from {percent(ends[0])} at {sizes[0]:g} {unit} to {percent(ends[1])} "
        f"at {sizes[-1]:g} {unit}"
    )
    times = 2 ** fit.parameters_["b"]["estimate"]
    odds = f"multiplies the odds of {what} by {times:.2f} ({_level(fit)} {2**low:.2f} to {2**high:.2f})"
    if low <= 0 <= high:
        return f"These data do not show that more hours of video change {what}: a doubling {odds}; {rise}."
    return f"Each doubling of the hours of video {odds}; {rise}."


def _loss(fit: Fit, low: float, high: float) -> str:
    assert fit.cells_ is not None and fit.study.loss is not None
    label, unit = fit.study.loss.label, fit.study.loss.unit
    value = fit.parameters_[fit.law.slope]["estimate"]
    if fit.law.link == "log":
        what = "the reducible part of the " + label if "E" in fit.parameters_ else "the " + label
        change = f"multiplies {what} by {2**-value:.3f} ({_level(fit)} {2**-high:.3f} to {2**-low:.3f})"
    else:
        k = math.log(2)
        limits = f"{k * low:+.3g} to {k * high:+.3g}"
        change = f"changes the {label} by {k * value:+.3g} {unit} ({_level(fit)} {limits})"
    if low <= 0 <= high:
        return f"These data do not show that more hours of video change the {label}: a doubling {change}."
    floor = fit.parameters_.get("E")
    rest = f", towards a floor of {floor['estimate']:.3g} {unit}" if floor else ""
    return f"Each doubling of the hours of video {change}{rest}."


def number(value: Any) -> str:
    """Three significant digits; a missing value stays visible."""
    return "-" if value is None else f"{value:.3g}"


def summary(fit: Fit) -> str:
    """Plain text for a terminal: warnings first."""
    group = ", ".join(fit.study.label(str(v)) for v in fit.group.values())
    lines = [f"{fit.study.name}: {fit.law.name}" + (f" ({group})" if group else "") + f"   {fit.law.formula}"]
    if fit.refused_ is not None:
        return "\n".join(
            [*lines, f"  refused {fit.refused_.code}: {fit.refused_.message}", f"    {fit.refused_.remedy}"]
        )
    for notice in fit.warnings_:
        lines += [f"  {notice.code}: {notice.message}", f"    {notice.remedy}"]
    lines += ["", "  " + fit.sentence(), ""]
    level = f"{100 * fit.study.intervals.level:g} %"
    for name, p in fit.parameters_.items():
        low, high = p["ci95"]
        lines.append(f"  {name:6} {p['estimate']:10.4g}  {level} {low:.4g} to {high:.4g}  {p['unit']}")
    assert fit.cells_ is not None
    lines.append(f"  {len(fit.cells_.y_N)} cells, {fit.cells_.num_runs} runs, {len(fit.cells_.sizes_S)} sizes")
    if fit.holdout_:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in fit.holdout_["scores"].items())
        held = ", ".join(f"{s:g}" for s in fit.holdout_["sizes"])
        lines.append(f"  held out {held} {fit.study.size.unit}: {fit.holdout_['metric']}: {scores}")
    for f in fit.forecasts_:
        at = f" with {f['demos']:g} demos" if f["demos"] is not None else ""
        lines.append(
            f"  forecast {f['hours']:g} {fit.study.size.unit}{at}: {f['estimate']:.3g} "
            f"[{number(f['ci95'][0])}, {number(f['ci95'][1])}], {f['times_largest']:.2g}x the largest size"
        )
    return "\n".join(lines)
