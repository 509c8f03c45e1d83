"""Subsets by hours: held-out people and places first, then whole units in an order that no size changes.

The order is made of hashes, not of random numbers, so that every machine and every later version of a library
draws the same clips; a smaller subset is a prefix of a larger one. Held in memory are a few numbers for each clip and
for each group of clips that a draw cannot tell apart (a recording, mostly); the clips themselves stay on the disk.

What is guaranteed when data are added and the recipe stays: units of one stratum keep their order among each other,
always. Across strata it may shift, for a unit's place is the share of its stratum before it, and a stratum that grows
moves its units towards the front; without `stratify` nothing moves at all. Whoever is held out by falling below the
fraction stays held out; the one held out because nobody fell below it may be relieved by a newcomer, unless
`heldout_participants` and `heldout_scenes` of the recipe name whom an earlier draw held out: then nobody who was held
out is ever trained on. (All this as long as old recordings gain no clip of a held-out person or place, and old clips
are no near-duplicates of new held-out ones.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from egoscale.recipe import SubsetRecipe
from egoscale.video.designs import schedule
from egoscale.video.holdout import DUPLICATE, HOUR_US, KEYS, Holdout, hold_out
from egoscale.video.pool import RESERVED, Pool, clips_without
from egoscale.video.unit_order import Ints, places, prefix

SLICE = 250_000  # clip ids hashed at a time


@dataclass(frozen=True)
class Subset:
    """`manifest` (training) and `heldout` have the catalogue's columns; `summary` is for subset.json."""

    manifest: pl.DataFrame
    heldout: pl.DataFrame
    summary: dict[str, Any]


def draw_subset(selection: pl.DataFrame | pl.LazyFrame | Path, recipe: SubsetRecipe) -> Subset:
    """Draws `recipe.hours` of the selected clips: `draw_subsets` for one size and one seed, in memory."""
    draws = draw_subsets(selection, recipe)
    manifest = draws.manifest(0).collect(engine="streaming")
    heldout = draws.heldout().collect(engine="streaming")
    return Subset(manifest, heldout, draws.summary(0, manifest.lazy(), clip_hash(heldout)))


def draw_subsets(
    selection: pl.DataFrame | pl.LazyFrame | Path,
    recipe: SubsetRecipe,
    hours: Sequence[float] = (),
    seeds: Sequence[int] = (),
    groups: Sequence[int] = (),
) -> Draws:
    """Decides which clips each size and seed holds; nothing but the deciding columns is read.

    Held out first (see `hold_out`), with what is like it: neither `hours` nor `seed` moves them.

    Axis `hours`: the units of a stratum (recordings, or participants; a clip without one counts by its recording)
    are ordered by the hash of (seed, unit), and the strata are merged by the share of their hours that lies before
    a unit, so that every prefix keeps the mixture. Units are taken whole until the hours are reached. Where several
    columns stratify, `mixture = "nested"` keeps that of the first one exactly, and draws small strata early as often
    as their hours say; "joint" draws a stratum of a single unit only when half of all hours are.

    The other axes draw `num_groups` scenes (or participants), each seed in an order of its own that keeps the mixture
    of sources, and fill them evenly until the hours are reached. `scenes` is for many numbers of scenes at fixed
    hours: scenes of a smaller number are among those of a larger, and a scene gives the larger number some of the
    clips that it gives the smaller. `hours_per_scene` is for many hours at a fixed number of scenes: nested.

    Args:
        selection: what `select_clips` returns or writes; a table without `selected` is taken whole. Hours are
            `unique_s`, or where there is no such column, `duration_s`.
        hours, seeds, groups: in place of the recipe's; every combination is drawn.

    Raises ValueError where the selection is empty, a stratum names no column, a clip stands twice, no clip has a name
    that is to be held out, or fewer hours (or scenes) are there than asked.
    """
    sizes = tuple(
        recipe.model_copy(update={"hours": float(h), "seed": s, "num_groups": n})
        for n in (groups or (recipe.num_groups,))
        for h in (hours or (recipe.hours,))
        for s in (seeds or (recipe.seed,))
    )
    for size in sizes:
        _check(size)
    clips, rows = _clips(selection, recipe)
    held = hold_out(rows, recipe)
    pool = Pool.of(held.groups, recipe)
    return Draws(clips, held, pool, sizes, _drawn(held, pool, sizes))


@dataclass(frozen=True)
class Draws:
    """Which clips each of `sizes` holds. Manifests are lazy: they read the selection when they are collected.

    clips: the selected ones, sorted by clip_id; drawn: indices of the units of each size, in the order in which they
    were drawn.
    """

    clips: pl.LazyFrame
    held: Holdout
    pool: Pool
    sizes: tuple[SubsetRecipe, ...]
    drawn: list[Ints]

    def manifest(self, index: int) -> pl.LazyFrame:
        """Training clips of one size, sorted by clip_id."""
        return self.marked([index]).filter("drawn:0").drop("drawn:0", "held")

    def heldout(self) -> pl.LazyFrame:
        """Held-out clips, the same for every size and seed, sorted by clip_id."""
        return self.marked([]).filter("held").drop("held")

    def marked(self, indices: Sequence[int]) -> pl.LazyFrame:
        """Clips that are held out (`held`) or that the k-th of these sizes has (`drawn:<k>`)."""
        marks = {f"drawn:{k}": self.mask(index)[self.held.group] & ~self.held.leaked for k, index in enumerate(indices)}
        held = self.held.groups["held"].to_numpy()[self.held.group]
        return pl.concat([self.clips, pl.DataFrame({**marks, "held": held}).lazy()], how="horizontal")

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Of each group of clips, whether a size has it."""
        return self.pool.mask(self.drawn[index])[self.pool.unit]

    def summary(self, index: int, manifest: pl.LazyFrame, heldout_hash: str) -> dict[str, Any]:
        """What subset.json holds. `manifest`: the clips of this size, wherever they now are."""
        size, pool = self.sizes[index], self.pool
        groups = pool.groups.filter(self.mask(index))
        hours = int(groups["us"].sum()) / HOUR_US
        trained = schedule(size.design, size.hours, hours) if size.design and hours else None
        strata, worst = pool.shares(groups)
        tasks = manifest.select(pl.col("task").drop_nulls().n_unique()).collect(engine="streaming").item()
        return {
            "axis": size.axis,
            "hours_asked": size.hours,
            "hours": hours,
            "unique_hours": hours,
            "hours_seen": trained.hours_seen if trained else None,
            "epochs": trained.epochs if trained else None,
            "num_steps": trained.num_steps if trained else None,
            "design": size.design.model_dump(exclude_none=True) if size.design else None,
            "hours_available": int(pool.us.sum()) / HOUR_US,
            "num_clips": int(groups["clips"].sum()),
            "num_recordings": groups.select("source", "recording_id").n_unique(),
            "num_participants": groups["participant_id"].drop_nulls().n_unique(),
            "num_scenes": groups["scene_id"].drop_nulls().n_unique(),
            "num_tasks": int(tasks),
            "num_units": len(self.drawn[index]),
            **pool.evenness(groups, size),
            "unit": size.unit,
            "seed": size.seed,
            "hash": clip_hash(manifest),
            "stratify": list(size.stratify),
            "mixture": size.mixture,
            "strata": strata,
            **worst,
            "holdout_seed": size.holdout_seed,
            **self._heldout(heldout_hash),
            "clips_without_participant": clips_without(groups, "participant_id"),
            "clips_without_scene": clips_without(groups, "scene_id"),
            "notes": self._notes(),
        }

    def _heldout(self, heldout_hash: str) -> dict[str, Any]:
        held, recipe = self.held.groups.filter("held"), self.sizes[0]
        named = set(self.held.groups["participant_id"].drop_nulls().unique())
        nameless = [one for one in self.held.people if one not in named]
        at = places(recipe.holdout_seed, "participant_id", nameless)
        return {
            "heldout_hours": int(held["us"].sum()) / HOUR_US,
            "heldout_clips": int(held["clips"].sum()),
            "heldout_participants": sorted(set(self.held.people) & named),
            # Recordings without a participant that no fraction holds, as `heldout_participants` of a recipe takes them.
            "heldout_unnamed": [
                one for one, place in zip(nameless, at, strict=True) if place >= recipe.holdout_participants
            ],
            "heldout_recordings": held.select("source", "recording_id").n_unique(),
            "heldout_scenes": self.held.scenes,
            "heldout_hash": heldout_hash,
            "leakage": self.held.leakage,
        }

    def _notes(self) -> list[str]:
        recipe, groups, notes = self.sizes[0], self.held.groups, []
        clips = int(groups["clips"].sum())
        nameless, placeless = clips_without(groups, "participant_id"), clips_without(groups, "scene_id")
        if nameless and recipe.holdout_participants:
            notes.append(
                f"{nameless} of {clips} clips name no participant and are held out by recording: the same people"
                " may be on both sides"
            )
        if placeless and recipe.holdout_scenes:
            notes.append(f"{placeless} of {clips} clips name no scene: whether theirs is held out is unknown")
        if nameless and recipe.unit == "participant":
            notes.append(f"{nameless} clips without a participant are drawn by recording")
        if self.pool.outside:
            notes.append(
                f"{self.pool.outside} clips to train on name no {self.pool.group}, and axis {recipe.axis!r} draws none"
            )
        return notes


def clip_hash(clips: pl.DataFrame | pl.LazyFrame) -> str:
    """SHA-256 over the sorted clip ids, one a line: the name of a set of clips."""
    ids = clips.lazy().select("clip_id").collect(engine="streaming")["clip_id"]
    ids = ids if ids.is_sorted() else ids.sort()
    digest = hashlib.sha256()
    for first in range(0, len(ids), SLICE):
        lines = ids.slice(first, SLICE).str.join("\n").item()
        digest.update(f"\n{lines}".encode() if first else lines.encode())
    return digest.hexdigest()


def _check(recipe: SubsetRecipe) -> None:
    if not 0 < recipe.hours < float("inf"):
        raise ValueError(f"hours = {recipe.hours:g}: must be above 0")
    if recipe.axis == "hours" and recipe.num_groups is not None:
        raise ValueError(f"num_groups = {recipe.num_groups} says nothing to axis = 'hours': name another axis")
    if recipe.axis != "hours" and recipe.num_groups is None:
        raise ValueError(f"axis = {recipe.axis!r} needs `num_groups`: how many of them to draw from")
    for column in recipe.stratify:
        if column in RESERVED:
            raise ValueError(f"stratify names {column!r}, a word that drawing uses itself: rename the column")


def _clips(selection: pl.DataFrame | pl.LazyFrame | Path, recipe: SubsetRecipe) -> tuple[pl.LazyFrame, pl.DataFrame]:
    """The selected clips, sorted by clip_id, and what a draw looks at, in the same order."""
    table = pl.scan_parquet(selection) if isinstance(selection, Path) else selection.lazy()
    columns = table.collect_schema()
    for column in recipe.stratify:
        if column not in columns:
            raise ValueError(f"stratify names {column!r}, which is no column of the catalogue")
    table = table.filter("selected") if "selected" in columns else table
    rows = _looked_at(table, columns, recipe)
    if rows.is_empty():
        raise ValueError("the selection holds no selected clip: look into its ledger for the rule that lost them")
    if not rows["clip_id"].is_sorted():
        table = table.sort("clip_id")
        rows = _looked_at(table, columns, recipe)
    ids = rows["clip_id"]
    if (ids == ids.shift()).any():
        raise ValueError(f"clip {ids.filter(ids == ids.shift())[0]!r} stands twice: clip ids must be unique")
    return table, rows.drop("clip_id")


def _looked_at(table: pl.LazyFrame, columns: pl.Schema, recipe: SubsetRecipe) -> pl.DataFrame:
    """Texts become numbers while they are read: few are different."""
    keys = dict.fromkeys([*KEYS, *recipe.stratify, *(column for column in (DUPLICATE,) if column in columns)])
    texts = [pl.col(key).cast(pl.Categorical) if columns[key] == pl.String else pl.col(key) for key in keys]
    seconds = pl.coalesce("unique_s", "duration_s") if "unique_s" in columns else pl.col("duration_s")
    hashed = pl.col("clip_hash").is_not_null() if "clip_hash" in columns else pl.lit(None, pl.Boolean)
    us = (seconds * 1e6).round().cast(pl.Int64).fill_null(0)
    return table.select("clip_id", *texts, us=us, hashed=hashed).collect(engine="streaming")


def _drawn(held: Holdout, pool: Pool, sizes: Sequence[SubsetRecipe]) -> list[Ints]:
    """Indices of the units of each size. Raises ValueError where there are too few hours or scenes."""
    available, largest = int(pool.us.sum()), max(size.hours for size in sizes)
    if available < round(largest * HOUR_US):
        raise ValueError(_too_few(held, largest, available))
    hashes = {seed: pool.hashes(seed) for seed in {size.seed for size in sizes}}
    orders: dict[tuple[int, int | None], Ints] = {}
    drawn = []
    for size in sizes:
        key = (size.seed, size.num_groups)
        if key not in orders:
            orders[key] = pool.order(size, hashes[size.seed])
        drawn.append(orders[key][: prefix(pool.us[orders[key]], round(size.hours * HOUR_US))])
        pool.check(size, orders[key], drawn[-1])
    return drawn


def _too_few(held: Holdout, hours: float, available: int) -> str:
    out = int(held.groups.filter("held")["us"].sum())
    leaked = held.leakage["near_duplicates_removed"]["hours"]
    selected = int(held.groups["us"].sum()) / HOUR_US + leaked
    alike = f", {leaked:.6g} like what is held out" if leaked else ""
    return (
        f"hours = {hours:g} asked for, and {available / HOUR_US:.6g} are there to train on"
        f" ({selected:.6g} selected, {out / HOUR_US:.6g} held out{alike}):"
        " ask for fewer, add video, or hold out less"
    )
