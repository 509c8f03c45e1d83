"""A study: which columns of the table mean what, which laws are fitted, how far they may be trusted.

`analysis/<study>/study.toml` is read into a frozen `StudySpec`. Nothing here looks at numbers: `rules.py`
does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from egoscale.recipe import Spec, load_toml, validate

LawName = Literal["logit-log-hours", "power", "power-offset", "log-linear"]


class InputSpec(Spec):
    """One x column. The unit is part of the law: the same slope in kh and in h are two different laws."""

    column: str
    unit: str = Field(min_length=1)
    label: str = ""


class SuccessSpec(Spec):
    """Counts of closed-loop trials. `tasks` names more columns: successes_<task>, trials_<task>."""

    successes: str = "successes"
    trials: str = "trials"
    label: str = "robot success"
    tasks: tuple[str, ...] = ()


class LossSpec(Spec):
    """A validation metric of the pretraining run, one number a run however many rows repeat it."""

    column: str
    unit: str = Field(min_length=1)
    direction: Literal["lower", "higher"] = "lower"
    minimum: float | None = 0.0  # a law that leaves [minimum, maximum] inside the data is refused
    maximum: float | None = None
    label: str = "held-out loss"


class BaselineSpec(Spec):
    """Rows that saw no video (hours == 0): shown beside the law, never part of it, as ln 0 has no value."""

    label: str = "from scratch"


class IntervalSpec(Spec):
    """How uncertainty is measured; the resampling unit is always the pretraining run."""

    level: float = Field(default=0.95, gt=0.5, lt=1)
    method: Literal["cluster-jackknife"] = "cluster-jackknife"
    replicates: int = Field(default=1000, ge=100, le=20_000)
    seed: int = 0


class HoldoutSpec(Spec):
    """Ordered hold-out: the largest sizes, all their seeds together, are predicted from the smaller ones."""

    num_sizes: int = Field(default=1, ge=1)


class StudySpec(Spec):
    """What a study asks and how it answers."""

    name: str = Field(min_length=1)
    title: str
    question: str
    note: str = ""  # printed above the law, as "the video is simulated"
    simulated: bool = False
    x: tuple[InputSpec, ...] = Field(min_length=1)  # the first is the size: hours of video
    success: SuccessSpec = SuccessSpec()
    loss: LossSpec | None = None
    run: tuple[str, ...] = Field(default=("arm", "hours", "seed"), min_length=1)
    group: tuple[str, ...] = ("arm",)  # one law per value of these columns
    labels: dict[str, str] = Field(default_factory=dict)  # words for values of the group columns; the first leads
    baseline: BaselineSpec = BaselineSpec()
    laws: tuple[LawName, ...] = Field(default=("logit-log-hours",), min_length=1)
    intervals: IntervalSpec = IntervalSpec()
    holdout: HoldoutSpec = HoldoutSpec()
    forecasts: tuple[float, ...] = ()  # sizes to forecast, in the unit of the first x column

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        columns = [column.column for column in self.x]
        if len(set(columns)) != len(columns):
            raise ValueError(f"x names a column twice: {', '.join(columns)}; name each once")
        if self.size.column not in self.run:
            raise ValueError(
                f"run = {list(self.run)} lacks {self.size.column!r}: runs of other sizes would be pooled; add it"
            )
        bad = [size for size in self.forecasts if size <= 0]
        if bad:
            raise ValueError(f"forecasts = {bad[0]:g}: a law in ln {self.size.column} needs sizes above 0")
        return self

    @property
    def size(self) -> InputSpec:
        """The column along which the law runs: hours of video."""
        return self.x[0]

    @property
    def demos(self) -> InputSpec | None:
        """The second input (robot demonstrations), if the study has one."""
        return self.x[1] if len(self.x) > 1 else None

    def label(self, value: str) -> str:
        """Words for a value of a group column: "latent" -> "latent actions"."""
        return self.labels.get(value, value)


def load_study(path: str | Path) -> StudySpec:
    """Read a study. Raises FileNotFoundError or RecipeError (file, key, value, nearest valid name)."""
    return validate(StudySpec, load_toml(path), path)
