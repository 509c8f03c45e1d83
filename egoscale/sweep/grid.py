"""The cells of a grid: what each world model saw, how large it is, and with how many demonstrations it is tried."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from egoscale.recipe import SweepRecipe, WorldSpec


@dataclass(frozen=True)
class Seen:
    """What a cell's world model saw, and how large it is; `scenes` and `model` are None where the grid names none."""

    arm: str
    model: str | None
    hours: float
    scenes: int | None
    seed: int

    def labels(self) -> dict[str, Any]:
        return {"arm": self.arm, **named(model=self.model), "hours": self.hours, **named(scenes=self.scenes)}


def pretrainings(sweep: SweepRecipe) -> Iterator[Seen]:
    """Every world model of the grid."""
    for seen, seed in itertools.product(_videos(sweep), sweep.grid.seeds):
        yield Seen(*seen, seed)


def cells(sweep: SweepRecipe) -> Iterator[tuple[Seen, int]]:
    """(what was seen, demonstrations) of every row."""
    grid = sweep.grid
    for seen, num_demos, seed in itertools.product(_videos(sweep), sorted(set(grid.demos)), grid.seeds):
        yield Seen(*seen, seed), num_demos
    scratch = itertools.product(grid.models or (None,), sorted(set(grid.scratch_demos)), grid.seeds)
    for model, num_demos, seed in scratch:
        yield Seen("scratch", model, 0.0, None, seed), num_demos


def _videos(sweep: SweepRecipe) -> Iterator[tuple[str, str | None, float, int | None]]:
    """(arm, model, hours, scenes). Without video all arms and numbers of scenes are the same: 0 hours comes once."""
    grid = sweep.grid
    for arm, model, hours in itertools.product(grid.arms, grid.models or (None,), sorted(set(grid.hours))):
        if hours == 0 and arm != ("latent" if "latent" in grid.arms else grid.arms[0]):
            continue
        for scenes in sorted(set(grid.scenes)) if grid.scenes and hours else (None,):
            yield arm, model, hours, scenes


def named(**labels: Any) -> dict[str, Any]:
    """Labels that the grid names."""
    return {name: value for name, value in labels.items() if value is not None}


def drawn_from(sweep: SweepRecipe, scenes: int | None) -> dict[str, Any]:
    """What a number of scenes changes in the recipe of a subset."""
    if scenes is None:
        return {}
    return {"axis": "scenes" if sweep.subset.axis == "hours" else sweep.subset.axis, "num_groups": scenes}


def sized(sweep: SweepRecipe, model: WorldSpec) -> dict[str | None, WorldSpec]:
    """A world model with the blocks of each size that the grid names; as it is for None."""
    sizes: dict[str | None, WorldSpec] = {None: model}
    for name, blocks in sweep.grid.models.items():
        sizes[name] = model.model_copy(update={"blocks": blocks})
    return sizes
