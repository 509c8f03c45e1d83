"""Subsets by hours: held-out people and places first, then whole units in an order that no size changes.

The order is made of hashes, not of random numbers, so that every machine and every later version of a library
draws the same clips; a smaller subset is a prefix of a larger one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import polars as pl

from egoscale.recipe import SubsetRecipe

HOUR_US = 3_600_000_000  # hours are summed in whole microseconds, so that the order of rows cannot change a sum


@dataclass(frozen=True)
class Subset:
    """`manifest` (training) and `heldout` have the catalogue's columns; `summary` is for subset.json."""

    manifest: pl.DataFrame
    heldout: pl.DataFrame
    summary: dict[str, Any]


def draw_subset(selection: pl.DataFrame, recipe: SubsetRecipe) -> Subset:
    """Draws `recipe.hours` of the selected clips.

    Held out: a participant (and likewise a scene) whose hash of (holdout_seed, id) falls below the fraction,
    and the one with the smallest hash in any case, so that a fraction above zero never holds out nobody. With
    a participant or a scene go all their clips, and the other clips of the same recordings. Neither `hours`
    nor `seed` moves them.

    Drawn: the units of a stratum (recordings, or participants; a clip without one counts by its recording)
    are ordered by the hash of (seed, unit), and the strata are merged by the share of their hours that lies
    before a unit, so that every prefix keeps the mixture. Units are taken whole until the hours are reached.
    More data leaves the order within a stratum as it was.

    Raises ValueError where the selection is empty, a stratum names no column, or fewer hours are there than
    asked.
    """
    clips = selection.filter("selected").sort("clip_id") if "selected" in selection.columns else selection
    clips = clips.sort("clip_id").with_columns(
        us=(pl.col("duration_s") * 1e6).round().cast(pl.Int64),
        recording=pl.struct("source", "recording_id"),
        # A clip that names nobody is held out or not with its recording: there must be something to validate on.
        person=pl.coalesce("participant_id", pl.concat_str("source", "recording_id", separator="/")),
    )
    _check(clips, recipe)
    people = _held(clips, "person", recipe.holdout_participants, recipe.holdout_seed)
    scenes = _held(clips, "scene_id", recipe.holdout_scenes, recipe.holdout_seed)
    named = (
        pl.col("person").is_in(people).fill_null(False)
        | pl.col("scene_id").is_in(scenes).fill_null(False)
    )  # fmt: skip
    clips = clips.with_columns(held=named.any().over("source", "recording_id"))
    heldout, pool = clips.filter("held"), clips.filter(~pl.col("held"))
    available = int(pool["us"].sum())
    if available < round(recipe.hours * HOUR_US):
        raise ValueError(
            f"hours = {recipe.hours:g} asked for, and {available / HOUR_US:.6g} are there to train on"
            f" ({clips['us'].sum() / HOUR_US:.6g} selected, {heldout['us'].sum() / HOUR_US:.6g} held out):"
            " ask for fewer, add video, or hold out less"
        )
    drawn = _draw(_units(pool, recipe), round(recipe.hours * HOUR_US))
    kept = {clip for unit in drawn for clip in unit.clips}
    manifest = pool.filter(pl.col("clip_id").is_in(list(kept)))
    shares, worst = _shares(pool, manifest, recipe.stratify)
    summary = {
        "hours_asked": recipe.hours,
        "hours": _hours(manifest),
        "hours_available": available / HOUR_US,
        **_counts(manifest),
        "num_units": len(drawn),
        "unit": recipe.unit,
        "seed": recipe.seed,
        "hash": clip_hash(manifest),
        "stratify": list(recipe.stratify),
        "strata": shares,
        "worst_share_error": worst,
        "holdout_seed": recipe.holdout_seed,
        "heldout_hours": _hours(heldout),
        "heldout_clips": heldout.height,
        "heldout_participants": sorted(set(people) & set(clips["participant_id"].drop_nulls())),
        "heldout_recordings": heldout["recording"].n_unique(),
        "heldout_scenes": scenes,
        "heldout_hash": clip_hash(heldout),
        "clips_without_participant": int(manifest["participant_id"].null_count()),
        "clips_without_scene": int(manifest["scene_id"].null_count()),
        "notes": _notes(clips, recipe),
    }
    made = ["us", "recording", "person", "held"]
    return Subset(manifest.drop(made), heldout.drop(made), summary)


def clip_hash(clips: pl.DataFrame) -> str:
    """SHA-256 over the sorted clip ids, one a line: the name of a set of clips."""
    return hashlib.sha256("\n".join(sorted(clips["clip_id"])).encode()).hexdigest()


@dataclass(frozen=True)
class _Unit:
    """Clips that are drawn together."""

    stratum: str
    order: str  # hash of (seed, unit)
    us: int
    clips: list[str]


def _check(clips: pl.DataFrame, recipe: SubsetRecipe) -> None:
    if clips.is_empty():
        raise ValueError("the selection holds no selected clip: look into its ledger for the rule that lost them")
    for column in recipe.stratify:
        if column not in clips.columns:
            raise ValueError(f"stratify names {column!r}, which is no column of the catalogue")
    if clips["clip_id"].is_duplicated().any():
        doubled = clips.filter(pl.col("clip_id").is_duplicated())["clip_id"][0]
        raise ValueError(f"clip {doubled!r} stands twice in the selection: clip ids must be unique")


def _held(clips: pl.DataFrame, column: str, fraction: float, seed: int) -> list[str]:
    ids = clips[column].drop_nulls().unique().to_list()
    if not ids or fraction <= 0:
        return []
    place = {one: int(_hash(seed, "participant_id" if column == "person" else column, one), 16) / 16**64 for one in ids}
    smallest = min(ids, key=lambda one: place[one])
    return sorted(one for one in ids if place[one] < fraction or one == smallest)


def _units(pool: pl.DataFrame, recipe: SubsetRecipe) -> list[_Unit]:
    members: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for row in pool.iter_rows(named=True):
        stratum = json.dumps([row[column] for column in recipe.stratify])
        unit = ["recording", row["source"], row["recording_id"]]
        if recipe.unit == "participant" and row["participant_id"] is not None:
            unit = ["participant", row["source"], row["participant_id"]]
        members.setdefault((stratum, json.dumps(unit)), []).append((row["clip_id"], row["us"]))
    return [
        _Unit(stratum, _hash(recipe.seed, unit), sum(us for _, us in clips), [clip for clip, _ in clips])
        for (stratum, unit), clips in members.items()
    ]


def _draw(units: Sequence[_Unit], wanted_us: int) -> list[_Unit]:
    """The shortest prefix of the merged order that holds the hours."""
    strata: dict[str, list[_Unit]] = {}
    for unit in sorted(units, key=lambda unit: unit.order):
        strata.setdefault(unit.stratum, []).append(unit)
    merged = []
    for stratum, ordered in strata.items():
        ends = list(accumulate(unit.us for unit in ordered))
        # The middle of the unit on the scale of its stratum: a prefix of the merge takes of each stratum
        # alike.
        middles = [(2 * end - unit.us) / (2 * ends[-1] or 1) for unit, end in zip(ordered, ends, strict=True)]
        merged += [(middle, stratum, i, unit) for i, (middle, unit) in enumerate(zip(middles, ordered, strict=True))]
    merged.sort(key=lambda place: place[:3])
    drawn, held_us = [], 0
    for *_, unit in merged:
        if held_us >= wanted_us:
            break
        drawn.append(unit)
        held_us += unit.us
    return drawn


def _shares(pool: pl.DataFrame, manifest: pl.DataFrame, stratify: Sequence[str]) -> tuple[list[dict[str, Any]], float]:
    """Hours and share of each stratum in the pool and in the subset, and the largest difference of shares."""
    if not stratify:
        return [], 0.0
    us = pl.col("us").sum()
    drawn = manifest.group_by(stratify).agg(us.alias("drawn_us"))
    table = pool.group_by(stratify).agg(us).join(drawn, on=list(stratify), how="left", nulls_equal=True)
    table = table.sort(*stratify).with_columns(pl.col("drawn_us").fill_null(0))
    rows = [
        {
            **{column: row[column] for column in stratify},
            "hours": row["drawn_us"] / HOUR_US,
            "share": row["drawn_us"] / (int(manifest["us"].sum()) or 1),
            "share_available": row["us"] / int(pool["us"].sum()),
        }
        for row in table.iter_rows(named=True)
    ]
    return rows, max(abs(row["share"] - row["share_available"]) for row in rows)


def _counts(clips: pl.DataFrame) -> dict[str, int]:
    return {
        "num_clips": clips.height,
        "num_recordings": clips["recording"].n_unique(),
        "num_participants": clips["participant_id"].drop_nulls().n_unique(),
        "num_scenes": clips["scene_id"].drop_nulls().n_unique(),
        "num_tasks": clips["task"].drop_nulls().n_unique(),
    }


def _hours(clips: pl.DataFrame) -> float:
    return int(clips["us"].sum()) / HOUR_US


def _notes(clips: pl.DataFrame, recipe: SubsetRecipe) -> list[str]:
    notes = []
    nameless = int(clips["participant_id"].null_count())
    placeless = int(clips["scene_id"].null_count())
    if nameless and recipe.holdout_participants:
        notes.append(
            f"{nameless} of {clips.height} clips name no participant and are held out by recording: the same people"
            " may be on both sides"
        )
    if placeless and recipe.holdout_scenes:
        notes.append(f"{placeless} of {clips.height} clips name no scene: whether theirs is held out is unknown")
    if nameless and recipe.unit == "participant":
        notes.append(f"{nameless} clips without a participant are drawn by recording")
    return notes


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
