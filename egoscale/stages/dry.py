"""What a training stage would cost, computed from its recipe alone: no data, no GPU, no weights.

Memory is that of one device, by part, as `train/engine.py` and DeepSpeed 0.19 hold it (each part measured on CPU,
`benchmarks/dry_run.md`): weights, gradients and moments are fp32 at every ZeRO stage, and stages 1-3 keep the weights
that a rank updates a second time. Parts are added up, although the gradients come as the activations go: the sum is an
upper limit. Not counted: the driver and its libraries (about 1 GB), fragmentation, the batch, kernels' working memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from egoscale.models.blocks import SpaceTimeBlock, SpaceTimeStack
from egoscale.models.dynamics import WorldModel
from egoscale.models.flops import code_flops, latent_action_flops, tokenizer_flops, world_flops
from egoscale.models.latent_action import LatentActionModel
from egoscale.models.memory import (
    FP32,
    Kept,
    Kernels,
    checkpoint_bytes,
    latent_action_bytes,
    recomputed,
    tokenizer_bytes,
    world_bytes,
)
from egoscale.models.video_tokenizer import VideoTokenizer
from egoscale.recipe import (
    LatentActionRecipe,
    TokenizerRecipe,
    TrainSpec,
    VideoTokenizerSpec,
    WorldRecipe,
)
from egoscale.train.deepspeed_json import changes_anywhere, deepspeed_config, shown
from egoscale.train.order import split
from egoscale.train.ranks import Ranks
from egoscale.train.throughput import DEVICES, memory_gb, peak_flops_per_s

# The share of the bf16 peak that sharded training of such models is known to reach, recomputation counted: 40-50 %
# (8 x H200, DeepSpeed, ZeRO 2: 47 %; 8 x H100, FSDP2: 33-39 %; ml-engineering's and torchtitan's tables).
UTILISATION = 0.4
CODE_DIM = 32
VIDEO_HZ = (5, 30)
BUCKET = 500_000_000  # numbers that DeepSpeed reduces at a time (train/deepspeed_json.py)
LIVE = 1_000_000_000  # weights that stage 3 keeps gathered at a time: stage3_max_live_parameters' default


@dataclass(frozen=True)
class Place:
    """Where it would run: how many GPUs of which kind, and how many of them in a node."""

    num_gpus: int = 8
    device: str = "H100"
    gpus_per_node: int = 8

    @property
    def nodes(self) -> str:
        if self.num_gpus <= self.gpus_per_node:
            return f"1 node x {self.num_gpus}"
        return f"{-(-self.num_gpus // self.gpus_per_node)} nodes x {self.gpus_per_node}"


@dataclass(frozen=True)
class Model:
    """A recipe's model by its sizes. FLOPs and activations are those of one sample."""

    parameters: int
    in_products: int  # weights of linear layers, of which autocast keeps a bf16 copy
    muon: int  # weights with one moment instead of two
    forward_flops: float
    recomputed_fraction: float  # of the blocks
    frames: int
    kept: Kept
    assumed: str = ""


@dataclass(frozen=True)
class Layout:
    """One way to run it: bytes of one device by part, and of its host; or why it cannot be run so."""

    place: Place
    micro_batch: int = 0
    passes: int = 0
    bytes_by_part: dict[str, float] = field(default_factory=dict)
    host_bytes: float = 0.0
    fault: str = ""

    @property
    def total_bytes(self) -> float:
        return sum(self.bytes_by_part.values())


@dataclass(frozen=True)
class Cost:
    """Everything that `--dry-run` says; `--json` prints it with each layout's sum. device_gb: 1e9 bytes."""

    stage: str
    parameters: int
    flops_forward_sample: float
    flops_step: float
    flops_recomputed_step: float
    flops_total: float
    num_steps: int
    batch_size: int
    frames_seen: int
    hours_seen: dict[str, float]
    epochs: dict[str, float]
    unique_hours: float
    checkpoint_bytes: int
    checkpoints_kept: str
    device: str
    device_gb: float
    peak_flops_per_s: float
    utilisation: float
    gpu_hours: float
    days: dict[str, float]
    price: float
    money: float
    layouts: tuple[Layout, ...]
    zero_stage: int
    precision: str
    state_bytes: float
    assumed: str
    gpu_hours_codes: dict[str, float]  # by the frame rate of the video


def model_of(recipe: Any, latents: VideoTokenizerSpec | None = None, fused: bool = True) -> Model:
    """Sizes of a recipe's model, built of tensors without numbers.

    `latents` says what a frame is for a model of latents (else the default tokenizer's); `fused`: a GPU's kernels.

    Raises ValueError for a stage that trains nothing whose size the recipe knows.
    """
    if not isinstance(recipe, TokenizerRecipe | LatentActionRecipe | WorldRecipe):
        raise ValueError(f"stage {recipe.stage!r}: --dry-run knows tokenizer, latent-action and world recipes")
    spec = recipe.train
    kernels, layers = Kernels(FP32 if spec.precision == "fp32" else 2, fused), spec.checkpoint_activations
    if isinstance(recipe, TokenizerRecipe):
        given = recipe.tokenizer.model_dump(exclude={"kind"})
        frames = recipe.window_frames
        kept = tokenizer_bytes(given, kernels, layers, frames)
        return _sizes(VideoTokenizer, given, spec, tokenizer_flops(given, frames), frames, kept)
    latents = latents or VideoTokenizerSpec()
    sizes = {"num_latents": latents.num_latents, "latent_dim": latents.latent_dim}
    assumed = f"a tokenizer of {latents.num_latents} x {latents.latent_dim} latents a frame"
    if isinstance(recipe, LatentActionRecipe):
        given = {**recipe.model.model_dump(exclude={"beta_warmup_fraction"}), **sizes}
        given["max_stride_frames"] = recipe.max_stride_frames
        kept = latent_action_bytes(given, kernels, layers)
        return _sizes(LatentActionModel, given, spec, latent_action_flops(given), 2, kept, assumed)
    given = {**recipe.model.model_dump(), **sizes, "action_dim": CODE_DIM}
    given["num_strides"] = len(recipe.strides_frames)
    agent = recipe.agent_frames
    kept = world_bytes(given, agent, kernels, layers)
    frames = recipe.model.context_frames + agent
    return _sizes(WorldModel, given, spec, world_flops(given, agent), frames, kept, assumed)


def _sizes(
    kind: type[nn.Module],
    given: dict[str, Any],
    spec: TrainSpec,
    forward_flops: float,
    frames: int,
    kept: Kept,
    assumed: str = "",
) -> Model:
    with torch.device("meta"):
        model = kind(**given)
    modules = list(model.modules())
    inside = [p for block in modules if isinstance(block, SpaceTimeBlock) for p in block.parameters() if p.ndim == 2]
    stacks = [len(stack.blocks) for stack in modules if isinstance(stack, SpaceTimeStack)]
    again = sum(len(recomputed(layers, spec.checkpoint_activations)) for layers in stacks)
    return Model(
        parameters=sum(p.numel() for p in model.parameters()),
        in_products=sum(m.weight.numel() for m in modules if isinstance(m, nn.Linear)),
        muon=sum(p.numel() for p in inside) if spec.optimizer == "muon" else 0,
        forward_flops=forward_flops,
        recomputed_fraction=again / sum(stacks),
        frames=frames,
        kept=kept,
        assumed=assumed,
    )


def flops_of_codes(
    recipe: WorldRecipe, codes_of: LatentActionRecipe, latents: VideoTokenizerSpec | None, video_hz: float
) -> float:
    """Of the latent actions that a world model learns from, made once before its training: of each frame of its hours,
    stored at `video_hz`, as many as its strides differ."""
    latents = latents or VideoTokenizerSpec()
    sizes = {"num_latents": latents.num_latents, "latent_dim": latents.latent_dim}
    a_pair = code_flops({**codes_of.model.model_dump(), **sizes})
    return a_pair * len({1, *recipe.strides_frames}) * recipe.hours * 3600 * video_hz


def layout(model: Model, spec: TrainSpec, place: Place, overlap: bool = True) -> Layout:
    """Memory of one of `place.num_gpus` devices. `overlap`: gradients are sent while others are computed, from a second
    buffer, as on GPUs."""
    ranks, stage = place.num_gpus, spec.zero_stage
    try:
        micro, passes = split(spec.batch_size, ranks, spec.micro_batch_size)
        deepspeed_config(spec, Ranks(0, ranks, 0), model.parameters)
    except ValueError as error:
        return Layout(place, fault=str(error))
    whole = FP32 * float(model.parameters)
    part = whole / ranks if stage else whole
    moments = (2 * whole - FP32 * model.muon) / (ranks if stage else 1)
    zero = spec.deepspeed.get("zero_optimization")
    bucket = zero.get("reduce_bucket_size", BUCKET) if isinstance(zero, dict) else BUCKET
    buffer = min(whole, FP32 * float(bucket))
    buffers = {0: float(ranks > 1), 3: 1.0}.get(stage, 1.0 + overlap)
    kept = model.kept.times(micro)
    summed = stage == 1 and passes > 1  # stage 1 sums whole gradients over passes, and cuts them at the end
    parts = {
        "weights": part if stage == 3 else whole,
        "weights gathered": min(whole, FP32 * LIVE) if stage == 3 and ranks > 1 else 0.0,
        "weights to update": part if stage else 0.0,
        "moments": moments,
        "gradients": whole if summed else part,
        "gradient buffers": buffers * buffer,
        "bf16 copies": 2.0 * model.in_products if spec.precision != "fp32" else 0.0,
        "activations": kept.held,
        "a block again": kept.again,
    }
    host = 0.0
    if spec.offload != "none":
        host = parts["weights to update"] + moments + 2 * part  # and gradients, twice: as they come, and as fp32
        host += part if stage < 3 and passes > 1 else 0.0
        parts |= {"weights to update": 0.0, "moments": 0.0, "gradients": whole if summed else 0.0}
    if spec.offload == "parameters":
        host, parts["weights"] = host + part, 0.0
    return Layout(place, micro, passes, {name: size for name, size in parts.items() if size}, host)


def cost(
    recipe: Any,
    places: Sequence[Place] = (),
    price: float = 0.0,
    latents: VideoTokenizerSpec | None = None,
    codes_of: LatentActionRecipe | None = None,
) -> Cost:
    """What a recipe costs at each of `places` (1 and 8 H100 if none), at `price` a GPU-hour; `latents` as `model_of`.

    codes_of: whose latent actions a world model learns from; making them comes on top of its GPU-hours.

    Raises:
        ValueError: the stage trains nothing whose size the recipe knows, or the device is not known.
    """
    model, spec = model_of(recipe, latents), recipe.train
    places = places or (Place(1), Place(8))
    device = places[0].device
    peak, memory = peak_flops_per_s(device), memory_gb(device)
    if peak is None or memory is None:
        known = ", ".join(words for words, *_ in DEVICES)
        raise ValueError(f"device {device!r}: its speed and memory are not known here; known: {known}")
    step = 3 * model.forward_flops * spec.batch_size
    again = model.forward_flops * model.recomputed_fraction * spec.batch_size
    seen, hours = spec.num_steps * spec.batch_size * model.frames, getattr(recipe, "hours", 0.0)
    gpu_hours = (step + again) * spec.num_steps / peak / UTILISATION / 3600
    rates = (recipe.rate_hz,) if getattr(recipe, "rate_hz", None) else VIDEO_HZ
    hours_seen = {f"{hz:g} Hz": seen / hz / 3600 for hz in rates}
    codes = (
        {}
        if codes_of is None or not isinstance(recipe, WorldRecipe)
        else {
            f"{hz:g} Hz": flops_of_codes(recipe, codes_of, latents, hz) / peak / UTILISATION / 3600 for hz in VIDEO_HZ
        }
    )
    weights = FP32 * model.parameters
    kept = f"the last {spec.keep_last}"
    if spec.keep_every_steps:
        kept += f" and {spec.num_steps // spec.keep_every_steps} for good"
    return Cost(
        stage=recipe.stage,
        parameters=model.parameters,
        flops_forward_sample=model.forward_flops,
        flops_step=step,
        flops_recomputed_step=again,
        flops_total=(step + again) * spec.num_steps,
        num_steps=spec.num_steps,
        batch_size=spec.batch_size,
        frames_seen=seen,
        hours_seen=hours_seen,
        epochs={at: value / hours for at, value in hours_seen.items()} if hours else {},
        unique_hours=hours,
        checkpoint_bytes=checkpoint_bytes(model.parameters, model.parameters, model.muon, spec.zero_stage),
        checkpoints_kept=kept,
        device=device,
        device_gb=memory,
        peak_flops_per_s=peak,
        utilisation=UTILISATION,
        gpu_hours=gpu_hours,
        days={str(place.num_gpus): gpu_hours / place.num_gpus / 24 for place in places},
        price=price,
        money=price * gpu_hours,
        layouts=tuple(layout(model, spec, place) for place in places),
        zero_stage=spec.zero_stage,
        precision=spec.precision,
        state_bytes=(5.0 if spec.zero_stage else 4.0) * weights - FP32 * model.muon,
        assumed=model.assumed,
        gpu_hours_codes=codes,
    )


def deepspeed_changes(recipe: BaseModel, place: str = "") -> list[str]:
    """What each `[train.deepspeed]` of a recipe, or of a sweep's recipes, changes in the derived JSON, a line a key.

    Raises ValueError where one contradicts its recipe.
    """
    found = []
    for name in type(recipe).model_fields:
        value, here = getattr(recipe, name), f"{place}{name}"
        if isinstance(value, TrainSpec):
            if value.deepspeed:
                known = isinstance(recipe, TokenizerRecipe | LatentActionRecipe | WorldRecipe)
                changes = changes_anywhere(value, model_of(recipe).parameters if known else BUCKET)
                found += [f"{here}.deepspeed: {line}" for line in shown(changes).splitlines() if line]
        elif isinstance(value, BaseModel):
            found += deepspeed_changes(value, f"{here}.")
    return found
