"""From a grid to jobs: one job for each different question, shared ones once, inputs before users.

    film -> catalog -> select -> subset(h, s) -> latent-action(h, s) -> world(h, s) -> finetune(h, d, s)
                          |                           |                                        |
    teleop ---------------+-> tokenizer -> encode ----+                                    evaluate

A cell with 0 hours is fine-tuned from scratch. Labelled hands (arm "hand") need no latent actions; their
world model reads the film. Somebody's own video (`catalog.sources` with paths) needs no film. The grid may also
name numbers of scenes, which are other subsets, and sizes of world models.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from egoscale.recipe import BlockSpec, RecipeError, StageRecipe, SweepRecipe, TrainSpec
from egoscale.sweep.grid import Seen, drawn_from, named, pretrainings, sized
from egoscale.sweep.grid import cells as grid_cells
from egoscale.sweep.ledger import RunFolder, run_key


@dataclass(frozen=True, eq=False)
class Job:
    """One run that must exist: what to do (`recipe`), from what (`inputs`), and for which cell (`labels`)."""

    recipe: StageRecipe
    inputs: dict[str, Job] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)  # arm, model, hours, scenes, demos, seed, as they apply

    @property
    def stage(self) -> str:
        return self.recipe.stage

    @cached_property
    def key(self) -> str:
        return run_key(self.recipe, {name: job.key for name, job in self.inputs.items()})

    @cached_property
    def weight(self) -> float:
        """Rough seconds on one core, to order jobs and to begin the estimate of the time left."""
        return weight(self.recipe, self.inputs)

    def __str__(self) -> str:
        return f"{self.stage}/{self.key}"

    def title(self) -> str:
        """The job for a person: "world latent, 0.25 h, seed 1"."""
        units = {"hours": "{:g} h", "scenes": "{} scenes", "demos": "{} demos", "seed": "seed {}"}
        parts = [units.get(name, "{}").format(value) for name, value in self.labels.items()]
        return f"{self.stage} {', '.join(parts)}".rstrip()

    def run(self, root: Path) -> RunFolder:
        """Where the run is, whether it exists or not."""
        return RunFolder(root / self.stage / self.key)

    def create(self, root: Path) -> RunFolder:
        """The run folder, made if need be."""
        return RunFolder.create(root, self.recipe, {name: job.run(root) for name, job in self.inputs.items()})

    def ancestry(self) -> dict[str, Job]:
        """This job and all before it by stage; of two subsets, the one that the world model saw."""
        found: dict[str, Job] = {}

        def visit(job: Job) -> None:
            found.setdefault(job.stage, job)
            for name in sorted(job.inputs, key=lambda name: name == "tokenizer"):
                visit(job.inputs[name])

        visit(self)
        if "world" in found:
            found["subset"] = found["world"].inputs["subset"]
        else:
            found.pop("subset", None)  # from scratch: the tokenizer's subset is not this row's video
        return found


@dataclass(frozen=True)
class Plan:
    """All jobs of a sweep by key, inputs before users; the cells are its evaluate jobs, a row each."""

    sweep: SweepRecipe
    jobs: dict[str, Job]
    cells: tuple[Job, ...]

    def users(self) -> dict[str, list[str]]:
        """Keys of the jobs that read each job."""
        users: dict[str, list[str]] = {key: [] for key in self.jobs}
        for key, job in self.jobs.items():
            for source in {source.key for source in job.inputs.values()}:
                users[source].append(key)
        return users


def plan(sweep: SweepRecipe) -> Plan:
    """The jobs of a sweep. RecipeError where the grid asks for what cannot be."""
    _check(sweep)
    jobs: dict[str, Job] = {}

    def job(recipe: StageRecipe, labels: dict[str, Any] | None = None, **inputs: Job | None) -> Job:
        named = {name.replace("_", "-"): source for name, source in inputs.items() if source is not None}
        made = Job(recipe, named, labels or {})
        return jobs.setdefault(made.key, made)

    video = job(sweep.film) if sweep.film and _filmed(sweep) else None
    demos = job(sweep.teleop) if sweep.teleop else None
    catalog = job(sweep.catalog, video=video)
    select = job(sweep.select, catalog=catalog)

    @cache  # a key is a hash of a whole recipe, and every number of demonstrations asks for the same world model
    def subset(hours: float, seed: int, scenes: int | None = None) -> Job:
        recipe = sweep.subset.model_copy(update={"hours": hours, "seed": seed, **drawn_from(sweep, scenes)})
        return job(recipe, {"hours": hours, **named(scenes=scenes), "seed": seed}, select=select)

    tokenizer = job(sweep.tokenizer, subset=subset(sweep.tokenizer_hours, 0), select=select, demos=demos)
    encode = job(sweep.encode, tokenizer=tokenizer, select=select, demos=demos)

    worlds = sized(sweep, sweep.world.model)

    @cache
    def pretrained(video_of: Seen) -> tuple[Job, Job | None]:
        """The world model of a cell and the latent actions it was trained on (none for labelled hands)."""
        hours, seed = video_of.hours, video_of.seed
        clips = subset(hours, seed, video_of.scenes)
        seen = {"hours": hours, "seed": seed}
        labels = {"hours": hours, **named(scenes=video_of.scenes), "seed": seed}
        latent = None
        if video_of.arm == "latent":
            latent = job(sweep.latent_action.model_copy(update=seen), labels, encode=encode, subset=clips)
        return (
            job(
                sweep.world.model_copy(update={"actions": video_of.arm, "model": worlds[video_of.model], **seen}),
                {"arm": video_of.arm, **named(model=video_of.model), **labels},
                encode=encode,
                subset=clips,
                latent_action=latent,
                video=video if video_of.arm == "hand" else None,
            ),
            latent,
        )

    for seen in pretrainings(sweep) if not sweep.grid.demos else ():
        pretrained(seen)
    from_scratch = sized(sweep, sweep.finetune.world) if sweep.finetune is not None else {}
    cells = []
    for seen, num_demos in grid_cells(sweep):
        labels = seen.labels() | {"demos": num_demos, "seed": seen.seed}
        world, latent = pretrained(seen) if seen.hours > 0 else (None, None)
        assert sweep.finetune is not None and sweep.evaluate is not None  # _check
        changes = {"num_demos": num_demos, "seed": seen.seed, "arm": seen.arm}
        if seen.model is not None:
            changes["world"] = from_scratch[seen.model]
        recipe = sweep.finetune.model_copy(update=changes)
        policy = job(recipe, labels, encode=encode, demos=demos, tokenizer=tokenizer, world=world, latent_action=latent)
        cells.append(job(sweep.evaluate, labels, finetune=policy, tokenizer=tokenizer))
    return Plan(sweep, jobs, tuple(dict.fromkeys(cells)))


def _filmed(sweep: SweepRecipe) -> bool:
    return any(not source.path for source in sweep.catalog.sources)


def _check(sweep: SweepRecipe) -> None:
    """What no single key can be checked for: numbers of the grid against each other and against the data."""
    grid, name = sweep.grid, f"sweep {sweep.name!r}"
    for key in ("hours", "seeds", "arms", *(key for key in ("demos", "scenes") if getattr(grid, key))):
        values = getattr(grid, key)
        if not values or len(set(values)) != len(values):
            raise RecipeError(f"{name}: key `grid.{key}` = {list(values)}: must list one value or more, each once")
    if not all(0 <= hours < float("inf") for hours in grid.hours):
        raise RecipeError(f"{name}: key `grid.hours` = {list(grid.hours)}: hours are 0 (from scratch) or more")
    if grid.scenes and (min(grid.scenes) < 1 or "participant" in sweep.subset.axis):
        raise RecipeError(
            f"{name}: key `grid.scenes` = {list(grid.scenes)} with `subset.axis` = {sweep.subset.axis!r}: numbers of "
            'scenes are 1 or more, and the axis is "hours", "scenes" or "hours_per_scene"'
        )
    _check_cells(sweep, name)
    if not sweep.catalog.sources:
        raise RecipeError(f'{name}: key `catalog.sources` is empty: name a folder, or path = "" for the film')
    if "hand" in grid.arms and not _filmed(sweep):
        raise RecipeError(
            f'{name}: key `grid.arms` has "hand", which needs the tracked hands of the film; '
            'take "hand" out, or give `catalog.sources` an entry with path = ""'
        )
    if _filmed(sweep) and sweep.film is None:
        raise RecipeError(f'{name}: `catalog.sources` has path = "", the film, but there is no table [film]')
    if sweep.film is not None and all(
        not source.path for source in sweep.catalog.sources
    ):  # of somebody's own video the hours are not known yet
        # Held-out people and held-out scenes are drawn apart, so both shares are lost.
        left = (1 - sweep.subset.holdout_participants) * (1 - sweep.subset.holdout_scenes)
        largest = max((*grid.hours, sweep.tokenizer_hours))
        if largest > sweep.film.hours * left:
            raise RecipeError(
                f"{name}: key `film.hours` = {sweep.film.hours:g}: after holding out people and scenes about "
                f"{sweep.film.hours * left:.3g} h are left to train on, but `grid.hours` and "
                f"`tokenizer_hours` ask for {largest:g} h; film at least {largest / left * 1.02:.3g} h"
            )


def _check_cells(sweep: SweepRecipe, name: str) -> None:
    """Demonstrations: all that a policy needs, or nothing of it (pretraining only)."""
    grid = sweep.grid
    asked = (*grid.demos, *grid.scratch_demos)
    if not asked:
        if min(grid.hours) == 0:
            raise RecipeError(
                f"{name}: key `grid.hours` = {list(grid.hours)}: without `grid.demos` only pretraining is "
                "run, and 0 hours pretrain nothing; take 0 out, or list numbers of demonstrations"
            )
        return
    for key in ("teleop", "finetune", "evaluate", "study"):
        if not getattr(sweep, key):
            raise RecipeError(
                f"{name}: `grid.demos` = {list(grid.demos)} asks for policies, but `{key}` is missing; "
                "add it, or leave `grid.demos` out to pretrain only"
            )
    assert sweep.teleop is not None
    remedies = [f"take {number} out" for number in sorted(set(asked)) if number < 1]
    if max(asked) > sweep.teleop.num_demos:
        remedies.append(f"raise `teleop.num_demos` to {max(asked)}")
    if remedies:
        raise RecipeError(
            f"{name}: keys `grid.demos` = {list(grid.demos)} and `grid.scratch_demos` = "
            f"{list(grid.scratch_demos)}: must lie in 1..{sweep.teleop.num_demos}, the number recorded; "
            f"{' and '.join(remedies)}"
        )


# Seconds of stages whose recipes do not say how much there is to do: that is in the video, an hour of it or a thousand.
UNSIZED_S = {"catalog": 3.0, "select": 3.0, "subset": 3.0, "encode": 10.0}


def weight(recipe: Any, inputs: Collection[str]) -> float:
    """Seconds on one core, to an order of magnitude, of a run with inputs of these names. The rates are those of
    `make demo` on a laptop (benchmarks/demo.md); real durations soon replace them."""

    def training(spec: TrainSpec, frames: int, seconds_per_frame: float = 1e-3) -> float:
        return spec.num_steps * spec.batch_size * frames * seconds_per_frame

    def size(blocks: BlockSpec) -> float:
        """Weights of the blocks, in those of the rates' model: 3 layers of width 96."""
        return blocks.num_layers * blocks.width**2 / (3 * 96**2)

    match recipe.stage:
        case "film":
            return float(recipe.hours * 3600 * recipe.fps_hz / 750)
        case "teleop":
            return float(recipe.num_demos * 0.02 + 2)
        case "tokenizer":
            return training(recipe.train, recipe.window_frames)
        case "latent-action":
            return training(recipe.train, 2)
        case "world":
            frames = recipe.model.context_frames + recipe.agent_frames
            return training(recipe.train, frames, 1.6e-3) * size(recipe.model.blocks)
        case "finetune":
            frozen = "world" in inputs and not recipe.trunk_learning_rate_scale  # then only a head is trained
            policy = training(recipe.train, 1, 1e-4 if frozen else 1.6e-3)
            spec = recipe.world_train if "world" in inputs else None
            slot = training(spec, recipe.world.context_frames, 1.6e-3) if spec else 0.0
            return (policy + slot) * size(recipe.world.blocks)
        case "evaluate":
            return float(recipe.num_episodes * 0.03 + 1)
    return UNSIZED_S[recipe.stage]
