"""The rows that one law sees, as arrays: one arm, hours above 0, success counts or one loss a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from egoscale.scaling.laws import Array, Law
from egoscale.scaling.study import StudySpec


@dataclass(frozen=True)
class Cells:
    """N rows of G pretraining runs at S sizes.

    x: "hours" and "demos", [N]. y_N: success rate in 0..1, or the loss. n_N: trials (1 for a loss). run_N:
    number of the run, 0..G-1. sizes_S: distinct hours, rising. size_G: number of each run's size, 0..S-1.
    """

    x: dict[str, Array]
    y_N: Array
    n_N: Array
    run_N: NDArray[np.int64]
    runs: tuple[str, ...]
    sizes_S: Array
    size_G: NDArray[np.int64]

    @property
    def num_runs(self) -> int:
        return len(self.runs)

    @property
    def runs_per_size(self) -> NDArray[np.int64]:
        return np.bincount(self.size_G, minlength=len(self.sizes_S))

    def where(self, keep_N: NDArray[np.bool_]) -> Cells:
        """The same with fewer rows, runs and sizes renumbered."""
        kept, run_N = np.unique(self.run_N[keep_N], return_inverse=True)
        sizes_S, size_G = np.unique(self.sizes_S[self.size_G[kept]], return_inverse=True)
        return replace(
            self,
            x={name: values[keep_N] for name, values in self.x.items()},
            y_N=self.y_N[keep_N],
            n_N=self.n_N[keep_N],
            run_N=run_N,
            runs=tuple(self.runs[g] for g in kept),
            sizes_S=sizes_S,
            size_G=size_G,
        )


def count_columns(study: StudySpec, task: str | None = None) -> tuple[str, str]:
    """Columns of successes and trials, of all tasks or of one."""
    if task is None:
        return study.success.successes, study.success.trials
    return f"successes_{task}", f"trials_{task}"


def needed_columns(study: StudySpec, law: Law, task: str | None = None) -> list[str]:
    """Columns that a law cannot do without."""
    columns = [*study.run, *study.group, study.size.column]
    if law.outcome == "success":
        columns += [*count_columns(study, task), *([study.demos.column] if study.demos else [])]
    elif study.loss:
        columns.append(study.loss.column)
    return list(dict.fromkeys(columns))


def in_group(table: pl.DataFrame, group: Mapping[str, object]) -> pl.DataFrame:
    """Rows of one group, whatever their hours."""
    return table.filter([pl.col(column) == value for column, value in group.items()]) if group else table


def above_zero(table: pl.DataFrame, study: StudySpec) -> pl.DataFrame:
    """Rows that saw video."""
    return table.filter(pl.col(study.size.column).fill_null(-1.0) != 0)


def from_scratch(table: pl.DataFrame, study: StudySpec) -> pl.DataFrame:
    """Baseline rows: no video at all."""
    return table.filter(pl.col(study.size.column) == 0)


def gather(rows: pl.DataFrame, study: StudySpec, law: Law, task: str | None = None) -> Cells:
    """Arrays from checked rows; a row whose outcome is missing is left out, not filled in."""
    size = study.size.column
    if law.outcome == "success":
        successes, trials = count_columns(study, task)
        rows = rows.drop_nulls([successes, trials]).filter(pl.col(trials) > 0)
        n_N = rows[trials].cast(pl.Float64).to_numpy()
        y_N = rows[successes].cast(pl.Float64).to_numpy() / n_N
        demos_N = rows[study.demos.column].cast(pl.Float64).to_numpy() if study.demos else np.ones(len(n_N))
    else:
        if study.loss is None:
            raise ValueError(f"study {study.name}: law {law.name} needs a [loss] table; add it to study.toml")
        column = study.loss.column
        # A run has one loss, however many fine-tunings repeat it: repeated rows are not more data.
        rows = rows.drop_nulls([column]).group_by(study.run, maintain_order=True).agg(pl.col(column).mean())
        y_N = rows[column].cast(pl.Float64).to_numpy()
        n_N, demos_N = np.ones(len(y_N)), np.ones(len(y_N))
    hours_N = rows[size].cast(pl.Float64).to_numpy()
    names = [" ".join(f"{c}={v}" for c, v in zip(study.run, row, strict=True)) for row in rows.select(study.run).rows()]
    runs, first, run_N = np.unique(np.array(names), return_index=True, return_inverse=True)
    sizes_S, size_G = np.unique(hours_N[first], return_inverse=True)
    return Cells({"hours": hours_N, "demos": demos_N}, y_N, n_N, run_N, tuple(map(str, runs)), sizes_S, size_G)
