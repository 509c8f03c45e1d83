"""What a dry run says: a line a number, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from egoscale.recipe import LatentActionRecipe, TokenizerRecipe, load_recipe
from egoscale.stages.dry import Cost, Place, cost, deepspeed_changes
from egoscale.sweep.bill import an, gpu_name
from egoscale.sweep.profile import load_profile
from egoscale.train.throughput import DEVICES

Recipe = TypeVar("Recipe", TokenizerRecipe, LatentActionRecipe)


def told(
    recipe: Any,
    profile: Path | None = None,
    gpus: Sequence[int] = (),
    tokenizer: Path | None = None,
    latent_action: Path | None = None,
    price: float = 0.0,
    as_json: bool = False,
) -> list[str]:
    """What `egoscale train RECIPE --dry-run` prints: a table, or JSON.

    `profile` (a file of slurm/profiles) says on what and how many GPUs, `gpus` overrides how many; `tokenizer` is the
    recipe whose latents a model of latents would see, `latent_action` the one whose codes a world model would learn.

    Raises ValueError for what cannot be told, FileNotFoundError for a file that is missing.
    """
    latents = None if tokenizer is None else _read(tokenizer, TokenizerRecipe, "--tokenizer").tokenizer
    codes_of = None if latent_action is None else _read(latent_action, LatentActionRecipe, "--latent-action")
    of = cost(recipe, _places(recipe.stage, profile, gpus), price, latents, codes_of)
    if as_json:
        return [json.dumps({**_plain(of), "deepspeed_changes": deepspeed_changes(recipe)}, indent=1)]
    return lines(of) + deepspeed_changes(recipe)


def _read(file: Path, kind: type[Recipe], option: str) -> Recipe:
    read = load_recipe(file)
    if not isinstance(read, kind):
        wanted = kind.model_fields["stage"].default
        raise ValueError(f"{file}: a recipe of stage {read.stage!r}; {option} wants one of stage {wanted!r}")
    return read


def _places(stage: str, profile: Path | None, gpus: Sequence[int]) -> tuple[Place, ...]:
    if profile is None:
        return tuple(Place(number) for number in gpus)
    read = load_profile(profile)
    name = read.resource_class(stage)
    has = read.resources[name]
    if not has.gpus_per_node or not has.gpu_type:
        raise ValueError(
            f"{profile}: [resources.{name}], which stage {stage!r} takes, has no gpus_per_node or no gpu_type: "
            f"leave --profile out, or name a profile with GPUs; known are {', '.join(words for words, *_ in DEVICES)}"
        )
    numbers = gpus or (has.num_nodes * has.gpus_per_node,)
    return tuple(Place(number, gpu_name(has.gpu_type), max(8, has.gpus_per_node)) for number in numbers)


def lines(of: Cost) -> list[str]:
    """The table: a line a number."""
    hours = ", ".join(f"{_count(value)} h at {at}" for at, value in of.hours_seen.items())
    again = f", and {of.flops_recomputed_step:.3g} again" if of.flops_recomputed_step else ""
    written = [
        f"stage            {of.stage}",
        f"parameters       {of.parameters:,}",
        f"FLOPs a step     {of.flops_step:.3g}{again} (forward x 3; {of.flops_forward_sample:.3g} a sample forward)",
        f"steps            {of.num_steps:,} x {of.batch_size:,} samples, ZeRO {of.zero_stage}, {of.precision}",
        f"frames seen      {of.frames_seen:,} = {hours}",
    ]
    if of.epochs:
        epochs = ", ".join(f"{value:.3g} at {at}" for at, value in of.epochs.items())
        written.append(f"epochs           {epochs} over {of.unique_hours:,g} unique hours")
    twice = " twice" if of.zero_stage else ""  # whole, or in pieces at stage 3, and what each rank updates of them
    written += [
        f"training state   {_size(of.state_bytes)}: weights{twice}, gradients, moments in fp32",
        f"checkpoint       {_size(of.checkpoint_bytes)}; kept: {of.checkpoints_kept}",
        f"total FLOPs      {of.flops_total:.3g} = {_count(of.gpu_hours)} GPU-hours of {an(of.device)} at "
        f"{of.utilisation:.0%} of {of.peak_flops_per_s / 1e12:.0f} TFLOP/s",
    ]
    if of.price:
        written.append(f"money            {of.money:,.0f} at {of.price:g} a GPU-hour")
    if of.gpu_hours_codes:
        each = ", ".join(f"{_count(value)} at {at}" for at, value in of.gpu_hours_codes.items())
        written.append(f"codes            {each}: GPU-hours before the first step, by the video's frame rate")
    if of.assumed:
        written.append(f"assumed          {of.assumed}")
    return written + _memory(of)


def _memory(of: Cost) -> list[str]:
    """A column a layout, a row a part."""
    shown = [one for one in of.layouts if not one.fault]
    faults = [f"not on {one.place.num_gpus:,} GPUs".ljust(19) + f"  {one.fault}" for one in of.layouts if one.fault]
    if not shown:
        return faults
    names = list(dict.fromkeys(name for one in shown for name in one.bytes_by_part))
    rows = [
        ("GPUs", [f"{one.place.num_gpus:,}" for one in shown]),
        ("  nodes", [one.place.nodes for one in shown]),
        ("  samples a GPU", [f"{one.micro_batch} x {one.passes}" for one in shown]),
        ("  days", [_count(of.days[str(one.place.num_gpus)]) for one in shown]),
        ("bytes a device", ["" for _ in shown]),
        *((f"  {name}", [_size(one.bytes_by_part.get(name, 0.0)) for one in shown]) for name in names),
        ("  at most", [_size(one.total_bytes) for one in shown]),
        ("  of", [f"{of.device_gb:g} GB{' !' * (one.total_bytes >= of.device_gb * 1e9)}" for one in shown]),
    ]
    if any(one.host_bytes for one in shown):
        rows.append(("host, a device", [_size(one.host_bytes) for one in shown]))
    return [f"{name:<19}" + "".join(f"{text:>16}" for text in texts).rstrip() for name, texts in rows] + faults


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _size(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size / 10:
            return f"{number / size:,.2f} {unit}" if number < 10 * size else f"{number / size:,.1f} {unit}"
    return f"{number / 1e3:,.1f} kB" if number else "0"


def _plain(of: Cost) -> dict[str, Any]:
    data = asdict(of)
    for plain, one in zip(data["layouts"], of.layouts, strict=True):
        plain["total_bytes"] = one.total_bytes
    return data
