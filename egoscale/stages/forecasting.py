"""What a sweep's jobs would cost by their recipes alone, for `egoscale sweep plan`: arithmetic and bytes, no data.

Arithmetic at the dry run's share of the device's peak: starting, reading and saving come on top, and outweigh it for
models as small as the demonstration's.
"""

from __future__ import annotations

from typing import Any

from egoscale.models.flops import world_flops
from egoscale.models.memory import FP32, checkpoint_bytes
from egoscale.recipe import (
    FilmRecipe,
    FinetuneRecipe,
    LatentActionRecipe,
    TokenizerRecipe,
    TrainSpec,
    VideoTokenizerSpec,
    WorldRecipe,
)
from egoscale.stages.dry import UTILISATION, VIDEO_HZ, Place, cost, flops_of_codes, model_of
from egoscale.sweep.bill import Forecast
from egoscale.sweep.plan import Job
from egoscale.train.throughput import peak_flops_per_s

CHECKPOINTS_WHILE_SAVING = 1  # the new one is whole before the oldest goes


def forecast(job: Job, device: str) -> Forecast | None:
    """What one run costs on GPUs of a kind ("H100"); None where its recipe, or the kind of GPU, does not say."""
    peak = peak_flops_per_s(device)
    if peak is None:
        return None
    if isinstance(job.recipe, FinetuneRecipe):
        return _finetuning(job, job.recipe, peak)
    try:
        found = cost(job.recipe, (Place(1, device),), latents=_latents(job))
    except ValueError:  # a stage that trains nothing whose size the recipe knows, or an unknown device
        return None
    spec: TrainSpec = job.recipe.train  # type: ignore[union-attr]  # what `cost` knows is trained
    codes = _flops_of_codes(job) / peak / UTILISATION / 3600
    return Forecast(found.gpu_hours + codes, FP32 * found.parameters, _kept(spec) * found.checkpoint_bytes)


def _latents(job: Job) -> VideoTokenizerSpec | None:
    """What a frame is for this job: its tokenizer's latents."""
    before = job.ancestry().get("tokenizer")
    return before.recipe.tokenizer if before is not None and isinstance(before.recipe, TokenizerRecipe) else None


def _flops_of_codes(job: Job) -> float:
    """Of the latent actions that a world model learns from. Video of which no recipe says so has 30 frames a second."""
    source = job.inputs.get("latent-action")
    if source is None or not isinstance(source.recipe, LatentActionRecipe) or not isinstance(job.recipe, WorldRecipe):
        return 0.0
    film = next((one.recipe for one in job.ancestry().values() if isinstance(one.recipe, FilmRecipe)), None)
    return flops_of_codes(job.recipe, source.recipe, _latents(job), film.fps_hz if film else max(VIDEO_HZ))


def _kept(spec: TrainSpec) -> int:
    for_good = spec.num_steps // spec.keep_every_steps if spec.keep_every_steps else 0
    return spec.keep_last + for_good + CHECKPOINTS_WHILE_SAVING


def _finetuning(job: Job, recipe: FinetuneRecipe, peak: float) -> Forecast:
    """A policy on its world model, then the world model behind the robot's slot. The heads are left out: they are under
    a hundredth of the trunk. A frozen trunk reads every step once, and that is left out too."""
    before = job.inputs.get("world")
    pretrained = before.recipe if before is not None and isinstance(before.recipe, WorldRecipe) else None
    world = pretrained or WorldRecipe(model=recipe.world, train=recipe.train, strides_frames=(1, 1))
    latents = _latents(job) or VideoTokenizerSpec()
    sizes: dict[str, Any] = {**world.model.model_dump(), **latents.model_dump(include={"num_latents", "latent_dim"})}
    parameters = model_of(world, latents).parameters
    frozen = pretrained is not None and recipe.trunk_learning_rate_scale == 0
    frame = world_flops(sizes, 1) - world_flops(sizes, 0)
    flops = 0.0 if frozen else 3 * frame * recipe.train.batch_size * recipe.train.num_steps
    trained = 0 if frozen else parameters
    kept = _kept(recipe.train) * checkpoint_bytes(parameters, trained, 0, recipe.train.zero_stage)
    copies = 1
    if pretrained is not None and recipe.world_train is not None:
        spec, window = recipe.world_train, world_flops({**sizes, "shortcut_fraction": 0.0}, 0)
        flops += 3 * window * spec.batch_size * spec.num_steps
        kept = max(kept, _kept(spec) * checkpoint_bytes(parameters, parameters, 0, spec.zero_stage))
        copies = 2
    return Forecast(flops / peak / UTILISATION / 3600, copies * FP32 * parameters, kept)
