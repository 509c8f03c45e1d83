"""Every rule fires on the data it is about, says what to do, and is silent on a sound study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from egoscale.scaling import Fit, StudySpec, fit

Make = Callable[..., pl.DataFrame]
Change = Callable[[pl.DataFrame], pl.DataFrame]
HOURS = pl.col("hours")


def changed(study: StudySpec, **keys: Any) -> StudySpec:
    return StudySpec.model_validate(study.model_dump() | keys)


def codes(found: Fit) -> set[str]:
    return {w.code for w in found.warnings_}


REFUSED: list[tuple[str, str, Change]] = [
    ("E_COLUMNS", "logit-log-hours", lambda t: t.rename({"successes": "success"})),
    ("E_COLUMNS", "logit-log-hours", lambda t: t.rename({"arm": "branch"})),
    ("E_COLUMNS", "power", lambda t: t.drop("prior_loss")),
    ("E_EMPTY", "power", lambda t: t.with_columns(prior_loss=pl.lit(None, pl.Float64))),
    ("E_EMPTY", "logit-log-hours", lambda t: t.filter(HOURS == 0)),
    ("E_SIZES", "logit-log-hours", lambda t: t.filter(HOURS.is_in([0.0, 0.05, 1.0]))),
    ("E_PARAMETERS", "power-offset", lambda t: t.filter(HOURS.is_in([0.0, 0.05, 0.25, 1.0]))),
    ("E_COUNTS", "logit-log-hours", lambda t: t.with_columns(successes=pl.col("trials") + 1)),
    ("E_COUNTS", "logit-log-hours", lambda t: t.with_columns(trials=pl.lit(0))),
    ("E_HOURS", "logit-log-hours", lambda t: t.with_columns(hours=-HOURS)),
    ("E_HOURS", "power", lambda t: t.with_columns(hours=pl.when(HOURS == 1).then(None).otherwise(HOURS))),
    ("E_DEMOS", "logit-log-hours", lambda t: t.with_columns(demos=pl.col("demos") - 10)),
    ("E_LOSS", "power", lambda t: t.with_columns(prior_loss=pl.col("prior_loss") - 0.5)),
    ("E_LOSS", "log-linear", lambda t: t.with_columns(prior_loss=pl.col("prior_loss") / 0.0)),
    ("E_DUPLICATE", "logit-log-hours", lambda t: pl.concat([t, t.tail(90)])),
]


@pytest.mark.parametrize(("code", "law", "change"), REFUSED)
def test_refusal(code: str, law: str, change: Change, table: pl.DataFrame, study: StudySpec) -> None:
    found = fit(change(table), study, law)
    assert found.refused_ is not None and found.refused_.code == code
    assert found.refused_.message and found.refused_.remedy and found.refused_.severity == "error"
    assert found.sentence().startswith("No law") and not found.parameters_
    with pytest.raises(ValueError, match="refused"):
        found.predict([1.0])


def test_missing_column_names_the_nearest(table: pl.DataFrame, study: StudySpec) -> None:
    found = fit(table.rename({"successes": "success"}), study)
    assert found.refused_ is not None and "`success`" in found.refused_.message


def test_loss_law_without_a_loss_table(table: pl.DataFrame, study: StudySpec) -> None:
    found = fit(table, changed(study, loss=None), "power")
    assert found.refused_ is not None and found.refused_.code == "E_NO_LOSS"


def test_score_that_rises_takes_no_power_law(table: pl.DataFrame, study: StudySpec) -> None:
    score = changed(study, loss={"column": "target_r2", "unit": "1", "direction": "higher", "maximum": 1.0})
    refused, fitted = fit(table, score, "power"), fit(table, score, "log-linear")
    assert refused.refused_ is not None and refused.refused_.code == "E_DIRECTION"
    assert fitted.parameters_["b"]["estimate"] > 0 and "W_HARM" not in codes(fitted)


def test_law_that_leaves_the_range_inside_the_data_is_refused(make: Make, study: StudySpec) -> None:
    """L = .024 - .003 ln D holds for thousands of hours; read as hours it is negative from 2,981 h on."""
    sizes = (1000.0, 2000.0, 4000.0, 10_000.0, 20_000.0)
    published = make(sizes=sizes, arms=("latent",), scratch=False).with_columns(prior_loss=0.024 - 0.003 * HOURS.log())
    found = fit(published, study, "log-linear")
    assert found.refused_ is not None and found.refused_.code == "E_RANGE"
    assert "thousands of hours" in found.refused_.remedy
    first = float(found.refused_.message.split(" at ")[1].split()[0].replace("e+03", "e3"))
    assert 2900 < first < 3400  # 2,981 h, to the grid on which the law is checked


def one_cell_missing(table: pl.DataFrame) -> pl.DataFrame:
    cell = (HOURS == 1) & (pl.col("seed") == 0) & (pl.col("demos") == 10)
    return table.with_columns(successes=pl.when(cell).then(None).otherwise("successes"))


def without_noise(table: pl.DataFrame) -> pl.DataFrame:
    rate = 1 / (1 + (1.0 - HOURS.log()).exp())
    return table.with_columns(successes=(pl.col("trials") * rate).round().cast(int))


def collapse_at_the_end(table: pl.DataFrame) -> pl.DataFrame:
    few = pl.col("trials") // 10
    return table.with_columns(successes=pl.when(HOURS == 1).then(few).otherwise("successes"))


WARNED: list[tuple[str, str, dict[str, Any], Change, dict[str, Any]]] = [
    ("W_ONE_SEED", "logit-log-hours", {"num_seeds": 1}, lambda t: t, {}),
    ("W_PARTIAL", "logit-log-hours", {}, lambda t: t.slice(1), {}),
    ("W_PARTIAL", "logit-log-hours", {}, one_cell_missing, {}),
    ("W_DECADE", "power", {"sizes": (0.2, 0.4, 0.8, 1.6)}, lambda t: t, {}),
    ("W_NO_EFFECT", "logit-log-hours", {"b": 0.0}, lambda t: t, {}),
    ("W_NO_EFFECT", "power", {"alpha": 0.0}, lambda t: t, {}),
    ("W_HARM", "logit-log-hours", {"b": -0.9, "a": 1.5}, lambda t: t, {}),
    ("W_HARM", "power", {"alpha": -0.3}, lambda t: t, {}),
    ("W_OVERDISPERSED", "logit-log-hours", {"run_sd": 1.2}, lambda t: t, {}),
    ("W_UNDERDISPERSED", "logit-log-hours", {}, without_noise, {}),
    ("W_SEPARATION", "logit-log-hours", {"a": -6.0}, lambda t: t, {}),
    ("W_FEW_EPISODES", "logit-log-hours", {"trials_per_verb": 5}, lambda t: t, {}),
    ("W_HORIZON", "power", {}, lambda t: t, {"forecasts": (4.0,)}),
    ("W_RANGE_AHEAD", "log-linear", {}, lambda t: t, {"forecasts": (400.0,)}),
    ("W_SIMULATED", "power", {}, lambda t: t, {"simulated": True}),
    ("W_HOLDOUT", "logit-log-hours", {}, collapse_at_the_end, {}),
    ("W_NO_HOLDOUT", "logit-log-hours", {"sizes": (0.1, 0.3, 1.0)}, lambda t: t, {}),
    ("W_HOURS_DRAWN", "power", {}, lambda t: t.with_columns(hours_unique=HOURS * 0.8), {}),
    ("W_SCRATCH", "logit-log-hours", {"b": 0.0}, lambda t: t, {}),
    ("W_NO_BASELINE", "logit-log-hours", {"scratch": False}, lambda t: t, {}),
    ("W_BOUND", "power-offset", {"alpha": -0.1}, lambda t: t, {}),
]  # fmt: skip


@pytest.mark.parametrize(("code", "law", "world", "change", "keys"), WARNED)
def test_warning(
    code: str,
    law: str,
    world: dict[str, Any],
    change: Change,
    keys: dict[str, Any],
    make: Make,
    study: StudySpec,
) -> None:
    found = fit(change(make(**world)), changed(study, **keys), law)
    assert found.refused_ is None and code in codes(found), codes(found)
    notice = next(w for w in found.warnings_ if w.code == code)
    assert notice.message.endswith((".", "!")) and notice.remedy


@pytest.mark.parametrize("law", ["logit-log-hours", "power", "log-linear"])
def test_a_sound_study_is_silent(law: str, make: Make, study: StudySpec) -> None:
    sound = make(seed=5, run_sd=0.05, verb_spread=0.0, trials_per_verb=100)
    found = fit(sound, changed(study, simulated=False, forecasts=(2.0,)), law)
    assert found.refused_ is None and codes(found) == set()


def test_no_effect_is_said_plainly(make: Make, study: StudySpec) -> None:
    found = fit(make(b=0.0), study)
    assert "do not show" in found.sentence()
    assert any("do not show an effect" in w.message for w in found.warnings_)


def test_conclusion_that_hangs_on_one_run_names_it(make: Make, study: StudySpec) -> None:
    found = fit(make(b=0.15, num_seeds=2, seed=10, verb_spread=0.0), study)
    assert found.slope_limits()[0] > 0
    run, low, high = found.influence()
    assert run is not None and low < 0 < high
    assert any(run in w.message for w in found.warnings_ if w.code == "W_INFLUENCE")
    assert "hours=1.0" in run  # the end of the line has the longest lever


def test_all_or_nothing_data_still_end(make: Make, study: StudySpec) -> None:
    split = make().with_columns(successes=pl.when(HOURS >= 0.5).then("trials").otherwise(0))
    found = fit(split, study)
    assert found.refused_ is None and "W_SEPARATION" in codes(found)
    assert found.predict([1.0])["estimate"].min() > 0.5
