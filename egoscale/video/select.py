"""Selection: thresholds applied to the scores of a catalogue, with a ledger of the hours they cost."""

from __future__ import annotations

from typing import Any

import polars as pl

from egoscale.recipe import SelectRecipe

DUPLICATE = "drop_exact_duplicates"


def select_clips(catalog: pl.DataFrame, recipe: SelectRecipe) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The catalogue with `selected` (bool) and `rule` (the first that lost the clip, or null), and a ledger.

    Rules go in the order: usable, min_duration_s, min_fps_hz, min_size_px, max_black_fraction,
    max_frozen_fraction, drop_exact_duplicates. Of files with the same bytes the one with the smallest clip_id
    stays. A score that is null (a single frame has no frozen fraction) loses nothing.

    The ledger: `kept` and `all` {source: {clips, hours}}, `lost` {rule: {source: {clips, hours}}} by the
    first rule, and `alone` {rule: {clips, hours}}: what a rule would lose if it were the only one beside
    `usable`.
    """
    broken = {
        "usable": ~pl.col("usable"),
        "min_duration_s": pl.col("duration_s") < recipe.min_duration_s,
        "min_fps_hz": pl.col("fps_num") < recipe.min_fps_hz * pl.col("fps_den"),
        "min_size_px": pl.min_horizontal("width_px", "height_px") < recipe.min_size_px,
        "max_black_fraction": pl.col("black_fraction") > recipe.max_black_fraction,
        "max_frozen_fraction": pl.col("frozen_fraction") > recipe.max_frozen_fraction,
    }
    first = pl.coalesce([pl.when(lost).then(pl.lit(rule)) for rule, lost in broken.items()])
    judged = catalog.sort("clip_id").with_columns(rule=first)
    kept_before = pl.col("rule").is_null() & pl.col("sha256").is_not_null()
    if recipe.drop_exact_duplicates:
        first_copy = judged.filter(kept_before).group_by("sha256").agg(pl.col("clip_id").min().alias("first_copy"))
        judged = judged.join(first_copy, on="sha256", how="left", maintain_order="left")
        copy = kept_before & (pl.col("clip_id") != pl.col("first_copy"))
        judged = judged.with_columns(rule=pl.when(copy).then(pl.lit(DUPLICATE)).otherwise(pl.col("rule"))).drop(
            "first_copy"
        )
    selection = judged.with_columns(selected=pl.col("rule").is_null()).select(*catalog.columns, "selected", "rule")
    rules = [*broken, DUPLICATE]
    ledger = {
        "recipe": recipe.model_dump(),
        "all": _by_source(selection),
        "kept": _by_source(selection.filter("selected")),
        "lost": {rule: _by_source(selection.filter(pl.col("rule") == rule)) for rule in rules},
        "alone": {rule: _total(catalog.filter(pl.col("usable") & lost)) for rule, lost in broken.items()},
    }
    ledger["alone"]["usable"] = _total(catalog.filter(~pl.col("usable")))
    return selection, ledger


def _by_source(clips: pl.DataFrame) -> dict[str, dict[str, float]]:
    tables = clips.sort("source", "clip_id").partition_by("source", as_dict=True, maintain_order=True)
    return {str(source): _total(table) for (source,), table in tables.items()}


def _total(clips: pl.DataFrame) -> dict[str, float]:
    return {"clips": clips.height, "hours": float(clips["duration_s"].sum()) / 3600}
