"""Who is held out: people and places by the hash of their names, all their recordings, and what is like them.

Nobody is held out by the number of hours or by the seed of a draw, so one held-out set serves every size.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from egoscale.recipe import SubsetRecipe
from egoscale.video.unit_order import Ints, places

HOUR_US = 3_600_000_000  # hours are summed in whole microseconds, so that the order of rows cannot change a sum
DUPLICATE = "duplicate_group"
KEYS = ("source", "recording_id", "participant_id", "scene_id")


@dataclass(frozen=True)
class Holdout:
    """`people` and `scenes` are the names that were drawn, or that the recipe gives.

    groups: clips that no draw tells apart, with `us` (microseconds) and `clips` in each, and `held`. What is like a
        held-out clip is no longer counted in groups that may be trained on.
    group: of each clip; leaked: clips on neither side, for they are like a held-out one.
    leakage: what was taken out, and what the two sides share.
    """

    groups: pl.DataFrame
    group: Ints
    leaked: NDArray[np.bool_]
    people: list[str]
    scenes: list[str]
    leakage: dict[str, Any]


def hold_out(clips: pl.DataFrame, recipe: SubsetRecipe) -> Holdout:
    """Held out: a participant (and likewise a scene) whose place in [0, 1) falls below the fraction.

    The one with the smallest place is held out in any case, so that a fraction above zero never holds out nobody.
    Whom the recipe names is held out beside them, whatever the fraction; then there is somebody, and the smallest is
    held out no more. A recording that names nobody goes by the name `source/recording_id`.
    With a participant or a scene go all their clips, and the other clips of the same recordings. A clip that names
    nobody is held out or not with its recording: there must be something to validate on.

    clips: KEYS, the columns of strata and `duplicate_group` (texts as categories), with `us`, and `hashed` (whether its
        likes were looked for; null where nobody did).

    Raises ValueError for a name in the recipe that no clip has.
    """
    keys = list(dict.fromkeys([*KEYS, *recipe.stratify]))
    group, firsts = grouped([clips[key] for key in keys])
    groups = clips.select(keys)[firsts].with_columns(us=_sums(group, clips["us"]), clips=pl.Series(np.bincount(group)))
    unnamed = pl.col("participant_id").is_null()
    person = pl.concat_str(pl.col("source", "recording_id").cast(pl.String), separator="/")
    alone = groups.filter(unnamed).select("source", "recording_id", person=person).unique()
    people = _drawn([groups["participant_id"], alone["person"]], "participant_id", recipe.holdout_participants, recipe)
    scenes = _drawn([groups["scene_id"]], "scene_id", recipe.holdout_scenes, recipe)
    alone = alone.select("source", "recording_id", alone=pl.col("person").is_in(people).fill_null(False))
    groups = groups.join(alone, on=["source", "recording_id"], how="left", nulls_equal=True, maintain_order="left")
    named = (
        pl.col("participant_id").is_in(_categories(people)).fill_null(False)
        | pl.col("scene_id").is_in(_categories(scenes)).fill_null(False)
        | (unnamed & pl.col("alone"))
    )  # fmt: skip
    groups = groups.with_columns(held=named.any().over("source", "recording_id")).drop("alone")
    leaked = np.zeros(clips.height, np.bool_)
    if recipe.drop_heldout_duplicates and DUPLICATE in clips.columns:
        leaked = _leaked(clips[DUPLICATE], groups["held"].to_numpy()[group])
    lost = clips.filter(leaked)
    if lost.height:
        us, count = _sums(group[leaked], lost["us"], groups.height), np.bincount(group[leaked], minlength=groups.height)
        groups = groups.with_columns(us=groups["us"] - us, clips=groups["clips"] - count)
    return Holdout(groups, group, leaked, people, scenes, _leakage(groups, lost, clips["hashed"]))


def grouped(columns: Sequence[pl.Series]) -> tuple[Ints, Ints]:
    """A number for each row, equal where all columns are, and a row of each number.

    Rows of a recording follow one another, mostly, so that only the ends of runs are sorted.
    """
    codes = np.zeros(len(columns[0]), np.int64)
    firsts = np.zeros(1, np.int64)
    for column in columns:
        known = column.to_physical() if column.dtype in (pl.Categorical, pl.Boolean) else column.rank("dense")
        second = known.cast(pl.Int64).fill_null(-1).to_numpy() + 1
        both = codes * (int(second.max(initial=0)) + 1) + second
        starts = np.flatnonzero(np.diff(both, prepend=-1))
        _, first, inverse = np.unique(both[starts], return_index=True, return_inverse=True)
        codes = np.repeat(inverse, np.diff(np.append(starts, len(both))))
        firsts = starts[first]
    return codes, firsts


def _drawn(columns: Sequence[pl.Series], kind: str, fraction: float, recipe: SubsetRecipe) -> list[str]:
    key = f"heldout_{kind.removesuffix('_id')}s"
    given = set(getattr(recipe, key) or ())
    if fraction <= 0 and not given:
        return []
    names = sorted({name for column in columns for name in column.drop_nulls().unique().cast(pl.String)})
    for unknown in sorted(given.difference(names)):
        near = difflib.get_close_matches(unknown, names, n=1)
        raise ValueError(
            f"{key} names {unknown!r}, and no selected clip does"
            + (f" (did you mean {near[0]!r}?)" if near else "")
            + ": correct the name, or take it out"
        )
    place = dict(zip(names, places(recipe.holdout_seed, kind, names), strict=True))
    smallest = None if given else min(names, key=place.__getitem__, default=None)
    return [one for one in names if place[one] < fraction or one == smallest or one in given]


def _categories(names: list[str]) -> pl.Series:
    return pl.Series(names, dtype=pl.Categorical).implode()


def _leaked(alike: pl.Series, held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Clips of a duplicate group with a held-out clip in it, that are not held out themselves."""
    groups = alike.filter(held).drop_nulls().unique()
    return alike.is_in(groups.implode()).fill_null(False).to_numpy() & ~held


def _leakage(groups: pl.DataFrame, lost: pl.DataFrame, hashed: pl.Series) -> dict[str, Any]:
    by_source = lost.group_by("source").agg(pl.col("us").sum()).cast({"source": pl.String}).sort("source")
    held, pool = groups.filter("held"), groups.filter(~pl.col("held") & (pl.col("clips") > 0))
    return {
        "near_duplicates_removed": {
            "clips": lost.height,
            "hours": int(lost["us"].sum()) / HOUR_US,
            "sources": {source: us / HOUR_US for source, us in by_source.iter_rows()},
        },
        # Clips whose likeness to others was never looked at; unknown where no clip was scored.
        "clips_without_hash": None if hashed.null_count() else int((~hashed).sum()),
        # People met only in a held-out place train elsewhere, and places likewise: by design, and worth a number.
        "participants_on_both_sides": _shared(held, pool, "participant_id"),
        "scenes_on_both_sides": _shared(held, pool, "scene_id"),
        "recordings_on_both_sides": _shared(held, pool, "source", "recording_id"),
    }


def _shared(held: pl.DataFrame, pool: pl.DataFrame, *columns: str) -> int:
    ours = held.select(columns).drop_nulls().unique()
    return ours.join(pool.select(columns), on=list(columns), how="semi").height


def _sums(group: Ints, us: pl.Series, groups: int = 0) -> pl.Series:
    """Microseconds by group: sums of doubles, exact as long as they stay below 2^53 (2.5 million hours)."""
    return pl.Series(np.bincount(group, weights=us.to_numpy(), minlength=groups).astype(np.int64))
