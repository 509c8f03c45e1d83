"""Stages that count and choose: catalogue, selection, nested subsets."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from egoscale.recipe import CatalogRecipe, RecipeError, SelectRecipe, SubsetRecipe
from egoscale.stages.work import Work
from egoscale.sweep.ledger import write_whole
from egoscale.sweep.worker import num_cores
from egoscale.video.catalog import build_catalog
from egoscale.video.select import select_clips
from egoscale.video.subset import draw_subset


def catalog(work: Work) -> dict[str, Any]:
    """A row a clip, by decoding every file; a source without a path is the input run `video`."""
    recipe = work.recipe(CatalogRecipe)
    sources = [
        source if source.path else source.model_copy(update={"path": str(work.input("video"))})
        for source in recipe.sources
    ]
    table = build_catalog(sources, work.out, jobs=num_cores(), progress=work.progress)
    usable = table.filter(pl.col("usable"))
    reasons = table.filter(~pl.col("usable"))["reason"].value_counts().rows() if usable.height < table.height else []
    return {
        "clips": table.height,
        "usable_clips": usable.height,
        "hours": float(usable["duration_s"].sum()) / 3600,
        "unusable": {str(reason): count for reason, count in reasons},
        "decoders": dict(usable["decoder"].value_counts().rows()),
    }


def select(work: Work) -> dict[str, Any]:
    """Thresholds of the recipe over the scores of the catalogue; an hours ledger of what was lost to which rule."""
    selection, ledger = select_clips(
        pl.read_parquet(work.input("catalog") / "catalog.parquet"), work.recipe(SelectRecipe)
    )
    if not selection["selected"].any():
        raise ValueError(f"{work.run}: no clip passes the rules of `select`; hours lost: {json.dumps(ledger['lost'])}")
    selection.write_parquet(work.out / "selection.parquet")
    write_whole(work.out / "ledger.json", json.dumps(ledger, indent=1))
    return {"ledger": ledger}


def subset(work: Work) -> dict[str, Any]:
    """Training clips for one number of hours, strictly nested in it, and the held-out clips."""
    recipe = work.recipe(SubsetRecipe)
    try:
        drawn = draw_subset(pl.read_parquet(work.input("select") / "selection.parquet"), recipe)
    except ValueError as error:
        raise RecipeError(f"{work.run}: {error}") from error
    drawn.manifest.write_parquet(work.out / "manifest.parquet")
    drawn.heldout.write_parquet(work.out / "heldout.parquet")
    write_whole(work.out / "subset.json", json.dumps(drawn.summary, indent=1))
    return dict(drawn.summary)
