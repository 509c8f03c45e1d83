"""Selection: thresholds applied to the scores of a catalogue, with a ledger of the hours they cost.

Scores are stored, thresholds live in a recipe: a selection is cheap, and another recipe makes another one. Clips are
judged by the columns that rules look at; the rest of the catalogue is streamed past them, so that ten million clips
fit into the memory of a laptop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from egoscale.recipe import SelectRecipe
from egoscale.video.hours_ledger import duplicates_in, ledger_of, microseconds, notes_on, reasons_of, tally, totals
from egoscale.video.likeness import exact_duplicates, near_duplicates
from egoscale.video.overlap import in_original, unique_microseconds
from egoscale.video.rules import EXACT, NEAR, Rule, files_of, measured, rules_of, with_columns_of

SELECTION, LEDGER, DATASHEET = "selection.parquet", "ledger.json", "datasheet.html"
HEAVY = ("frame_hashes",)  # served the search for near-duplicates, and no later stage
ADDED = ("selected", "rule", "unique_s", "duplicate_group")


def select_clips(catalog: pl.DataFrame | pl.LazyFrame, recipe: SelectRecipe) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The catalogue, sorted by clip_id, with what was decided of each clip, and the ledger (see `hours_ledger`).

    Added: `selected` (bool), `rule` (the first that lost the clip, or null), `unique_s` (seconds of a selected clip
    that no earlier selected clip of the same file covers; hours are sums of these) and `duplicate_group` (the smallest
    clip_id of those that look alike, null for a clip that has no like). The columns that the recipe joins come along;
    `frame_hashes` stay behind.

    Rules go in the order of `rules_of`, then exact duplicates (same bytes, same start, same length), then
    near-duplicates, both among clips that every rule before lets pass; of each, the one with the smallest clip_id
    stays. A score that is null (a single frame has no frozen fraction) loses nothing and is counted as not scored.

    Raises ValueError for a clip that stands twice, or a limit on a column that is not there.
    """
    judged = judge(catalog.lazy(), recipe)
    return judged.selection().collect(), judged.ledger


def write_selection(catalog: pl.LazyFrame, recipe: SelectRecipe, out: Path) -> dict[str, Any]:
    """Writes `out/selection.parquet` and `out/ledger.json`; returns the ledger.

    Raises ValueError as `select_clips`, and where no clip passes (the ledger is written then).
    """
    judged = judge(catalog, recipe)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(judged.ledger, indent=1)
    _renamed(out / LEDGER, lambda part: part.write_text(text, encoding="utf-8"))
    if not judged.verdicts["selected"].any():
        lost = {rule: totals(sources) for rule, sources in judged.ledger["lost"].items() if sources}
        told = "; ".join(f"{rule} {total['clips']} clips, {total['hours']:.4g} h" for rule, total in lost.items())
        raise ValueError(f"no clip passes the rules of `select`: lost are {told or 'none, there was no clip'}")
    _renamed(out / SELECTION, lambda part: _sunk(judged.selection(), part))
    return judged.ledger


@dataclass(frozen=True)
class Judged:
    """`catalog`: sorted by clip_id; `verdicts`: the columns that a selection adds, row for row."""

    catalog: pl.LazyFrame
    verdicts: pl.DataFrame
    ledger: dict[str, Any]

    def selection(self) -> pl.LazyFrame:
        """The catalogue with the verdicts."""
        return pl.concat([self.catalog.drop(HEAVY, strict=False), self.verdicts.lazy()], how="horizontal")


def judge(catalog: pl.LazyFrame, recipe: SelectRecipe) -> Judged:
    """Decides about every clip; holds in memory what rules made of the columns, not the columns."""
    columns = catalog.collect_schema().names()
    if both := [column for column in ADDED if column in columns]:
        raise ValueError(f"there is a column {both[0]!r} already: this is a selection; select from its catalogue")
    catalog = with_columns_of(catalog, recipe.columns)
    rules = rules_of(recipe, catalog.collect_schema())
    clips = _looked_at(catalog, rules)
    if not clips["clip_id"].is_sorted():
        catalog = catalog.sort("clip_id")
        clips = _looked_at(catalog, rules)
    ids = clips["clip_id"]
    if (ids == ids.shift()).any():
        raise ValueError(f"clip {ids.filter(ids == ids.shift())[0]!r} stands twice: clip ids must be unique")
    clips = clips.drop("clip_id").with_row_index("row")
    clips = exact_duplicates(clips, catalog, len(rules), recipe.drop_exact_duplicates)
    clips, hashed = near_duplicates(clips, catalog, ids, len(rules) + 1, recipe.drop_near_duplicates)
    kept = clips.lazy().filter(pl.col("rule").is_null() & pl.col("file").is_not_null())
    unique = unique_microseconds(kept.select("row", "file", "start_us", "us").collect())
    clips = clips.drop("start_us").join(unique, on="row", how="left", maintain_order="left")
    clips = clips.with_columns(unique_us=pl.coalesce("unique_us", "us"))
    names = [*(rule.name for rule in rules), EXACT, NEAR]
    ledger = {
        **ledger_of(tally(clips.lazy()), names, recipe.model_dump(mode="json", exclude_none=True)),
        "unusable": reasons_of(catalog),
        "duplicates": duplicates_in(clips, hashed),
        "columns": files_of(recipe.columns),
        "notes": notes_on(catalog, clips),
    }
    return Judged(catalog, _verdicts(clips, names, ids), ledger)


def _looked_at(catalog: pl.LazyFrame, rules: Sequence[Rule]) -> pl.DataFrame:
    """Of each clip: which rules it breaks and which scores are unknown (bits), its seconds, and a number for its file.

    `rule` is the first that it breaks, by its place among them.
    """
    unscored = [pl.lit(False) if rule.score is None else measured(rule.score).is_null() for rule in rules]
    columns = in_original(catalog).select(
        "clip_id",
        pl.col("source").cast(pl.Categorical),
        _bits([rule.broken for rule in rules]).alias("broken"),
        _bits(unscored).alias("unknown"),
        microseconds("duration_s").alias("us"),
        microseconds("start_s").alias("start_us"),
        pl.col("path").cast(pl.Categorical).to_physical().alias("file"),
    )
    first = pl.when(pl.col("broken") != 0).then(pl.col("broken").bitwise_trailing_zeros().cast(pl.Int8))
    return columns.with_columns(rule=first).collect(engine="streaming")


def _verdicts(clips: pl.DataFrame, names: Sequence[str], ids: pl.Series) -> pl.DataFrame:
    rule = pl.col("rule").cast(pl.Int64).replace_strict(range(len(names)), names, default=None, return_dtype=pl.String)
    return clips.select(
        selected=pl.col("rule").is_null(),
        rule=rule,
        unique_s=pl.when(pl.col("rule").is_null()).then(pl.col("unique_us") / 1e6),
        duplicate_group=ids.gather(clips["duplicate_group"]),
    )


def _bits(conditions: Sequence[pl.Expr]) -> pl.Expr:
    """One number whose bits say which conditions hold; a null does not."""
    return pl.sum_horizontal(
        condition.fill_null(False).cast(pl.Int64) * (1 << k) for k, condition in enumerate(conditions)
    )


def _sunk(selection: pl.LazyFrame, part: Path) -> None:
    """Streamed to a file. Verdicts stand beside clips by place, so clips in another order would be judged wrongly."""
    selection.sink_parquet(part, compression="lz4")
    if not pl.scan_parquet(part).select("clip_id").collect(engine="streaming")["clip_id"].is_sorted():
        raise RuntimeError(f"{part}: the catalogue was read in another order than before; nothing is selected")


def _renamed(target: Path, write: Callable[[Path], object]) -> None:
    """Written beside its place and renamed into it: whole or absent."""
    part = target.with_name(f"{target.name}.part")
    write(part)
    part.replace(target)
