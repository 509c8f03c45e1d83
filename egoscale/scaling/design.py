"""Whether a grid could carry its study's laws, asked before anything is run: by the rules of a fit, on cells without
outcomes.

What a fit only warns of, because its runs are done and paid for, is refused here where it could be had for the asking:
one seed a size, sizes within a decade, so few episodes that no effect would be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import polars as pl

from egoscale.scaling.cautions import few_decades, few_episodes, one_seed
from egoscale.scaling.cells import above_zero, from_scratch, gather, in_group
from egoscale.scaling.findings import Case, Finding, Notice, error, listed, warning
from egoscale.scaling.fit import groups
from egoscale.scaling.laws import make_law
from egoscale.scaling.rules import columns_present, refusal, refusal_after
from egoscale.scaling.select import too_few
from egoscale.scaling.study import StudySpec

# At 80 % power, two shares about one half: n = 2 (1/4) ((1.96 + 0.84) / difference)^2 tell 50 points apart.
FEWEST_EPISODES = 16
PLACEHOLDER = 0.5  # for outcomes: neither no success nor nothing but success, and a loss that any range holds


def findings(study: StudySpec, cells: pl.DataFrame) -> tuple[Notice, ...]:
    """What stands against the study's laws on a grid: errors, then warnings, then notes.

    cells: a row a planned cell, with the columns of the table to come; outcomes are ignored. The first law of the study
    must be possible in every group that sees video; another that is not is a warning.
    """
    table = _with_placeholders(study, cells)
    if above_zero(table, study).is_empty() if study.size.column in table.columns else False:
        return (_no_video(study),)
    found: dict[Notice, None] = {}
    for number, name in enumerate(study.laws):
        case = Case(study, make_law(name, len(study.x)), table)
        missing = columns_present(case)
        if missing is not None:
            found[_lead_or_not(missing, number, name)] = None
            continue
        for where in groups(table, study):
            for notice in _of_group(study, table, where, name, number == 0):
                if notice not in found:  # the first law has said so
                    found[_lead_or_not(notice, number, name)] = None
    order = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda notice: order[notice.severity]))


def _with_placeholders(study: StudySpec, cells: pl.DataFrame) -> pl.DataFrame:
    success, names = study.success, set(cells.columns)
    shares = [success.credit, success.rate, study.loss.column if study.loss else None]
    filled = [pl.lit(PLACEHOLDER).alias(name) for name in shares if name in names]
    if {success.successes, success.trials} <= names:
        filled.append((pl.col(success.trials) * PLACEHOLDER).alias(success.successes))
    return cells.with_columns(filled)


def _no_video(study: StudySpec) -> Notice:
    return error(
        "E_SIZES",
        f"No cell has {study.size.column} above 0: there is no video to draw a law along.",
        "Give the grid three sizes or more, over a factor of 10 or more.",
    )


def _lead_or_not(notice: Notice, number: int, law: str) -> Notice:
    """What forbids a law that is not the study's first is a warning: the study has others."""
    if number == 0 or notice.severity != "error":
        return notice
    return replace(notice, severity="warning", message=f"{law} will not be fitted: {notice.message}")


def _of_group(
    study: StudySpec, table: pl.DataFrame, where: Mapping[str, object], name: str, lead: bool
) -> list[Notice]:
    rows = above_zero(in_group(table, where), study)
    law = make_law(name, len(study.x))
    if law.outcome == "success" and study.second and rows[study.second.column].n_unique() == 1:
        law = make_law(name, 1)  # one number of demonstrations has no slope
    case = Case(study, law, rows, where, baseline=from_scratch(table, study))
    forbidden = refusal(case)
    if forbidden is not None:
        return [forbidden]
    case = replace(case, cells=gather(rows, study, law))
    forbidden = refusal_after(case)
    if forbidden is not None:
        return [forbidden]
    return [notice for rule in RULES if (notice := rule(case)) is not None] if lead else []


def decade(case: Case) -> Finding:
    """Sizes within one decade."""
    found = few_decades(case)
    return replace(found, severity="error") if found is not None else None


def seeds(case: Case) -> Finding:
    """One pretraining run at every size: nothing would tell how much a repeat differs."""
    found, cells = one_seed(case), case.cells
    alone = found is not None and cells is not None and bool((cells.runs_per_size == 1).all())
    return replace(found, severity="error") if alone and found is not None else found


def episodes(case: Case) -> Finding:
    """Trials of the thinnest size."""
    found, cells = few_episodes(case), case.cells
    if found is None or cells is None:
        return None
    least = int(np.bincount(cells.size_G[cells.run_N], cells.n_N).min())
    return replace(found, severity="error") if least < FEWEST_EPISODES else found


def holdout(case: Case) -> Finding:
    """Whether the law could be tested on the sizes that are held out."""
    cells, study = case.cells, case.study
    assert cells is not None
    ahead = cells.ahead_N if cells.ahead_N is not None else cells.x[0] >= cells.sizes_S[-study.holdout.num_sizes :][0]
    if not ahead.any() or ahead.all() or not too_few(case.law, cells.where(~ahead), study):
        return None
    return warning(
        "W_NO_HOLDOUT",
        f"Without the held-out {listed(np.unique(cells.x[0][ahead]))} {case.unit}, fewer sizes remain than "
        f"{case.law.name} needs: its extrapolation will not be tested.",
        "Add one more size.",
    )


RULES: tuple[Callable[[Case], Finding], ...] = (decade, seeds, episodes, holdout)

__all__ = ["FEWEST_EPISODES", "findings"]
