"""DeepSpeed's JSON, derived from a recipe; and what a recipe's `[train.deepspeed]` changes in it, said aloud.

A recipe names the global batch, the precision and the ZeRO stage. What follows from them is derived here, what
contradicts them is refused here. Knows nothing of the package itself, which has one door (`engine.py`).
"""

from __future__ import annotations

import json
from typing import Any

import torch

from egoscale.definition import merged
from egoscale.recipe import TrainSpec
from egoscale.train.order import split
from egoscale.train.ranks import Ranks

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
# Keys that would say a second time, and otherwise, what the recipe says; and where it says it.
RECIPE_KEYS = {
    "zero_optimization.stage": "train.zero_stage",
    "zero_optimization.offload_optimizer.device": "train.offload",
    "zero_optimization.offload_param.device": "train.offload",
    "gradient_clipping": "train.clip_norm",
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
}


def derived(spec: TrainSpec, ranks: Ranks, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's JSON for this recipe and number of ranks.

    No precision is named in it: weights, gradients and their sums are fp32 for DeepSpeed (see `engine.py`).

    Raises ValueError where the batch cannot be dealt out.
    """
    micro, passes = split(spec.batch_size, ranks.world_size, spec.micro_batch_size)
    # DeepSpeed's default is the larger number: 2 GB for the smallest model. It must be even.
    bucket = min(num_parameters + num_parameters % 2, 500_000_000)
    return {
        "train_batch_size": spec.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": spec.clip_norm if spec.zero_stage else 0.0,  # stage 0: our optimizer clips
        "zero_optimization": {
            "stage": spec.zero_stage,
            "overlap_comm": torch.cuda.is_available(),
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            # Its own linear of stage 3 adds the bias in a rounding of its own: in bf16 the losses then leave those of
            # stages 1 and 2 (by 3 % after 20 steps of a small world model; without it by .1 %, from the norm alone).
            "memory_efficient_linear": False,
            **_offload(spec),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
    }


def _offload(spec: TrainSpec) -> dict[str, Any]:
    """Pinned memory lets copies to and from a GPU overlap with work; without a GPU there is nothing to pin for. (That
    the stage has something to offload, the recipe has checked.)"""
    place = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    names = ["offload_optimizer"] * (spec.offload != "none") + ["offload_param"] * (spec.offload == "parameters")
    return {name: dict(place) for name in names}


def deepspeed_config(spec: TrainSpec, ranks: Ranks, num_parameters: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(JSON, changes): what is derived with `spec.deepspeed` merged over it, and a row {"key", "derived", "given"} for
    each key that this changes; `derived` is None where DeepSpeed's own default was left alone.

    Raises ValueError for a change that contradicts the recipe.
    """
    config = derived(spec, ranks, num_parameters)
    given = json.loads(json.dumps(spec.deepspeed))
    before, wanted = _flat(config), _flat(given)
    changes = [
        {"key": key, "derived": before.get(key), "given": value}
        for key, value in wanted.items()
        if key not in before or before[key] != value
    ]
    result: dict[str, Any] = merged(config, given)
    _check_batch(result, config, ranks, spec)
    for change in changes:
        place = next((k for k in RECIPE_KEYS if change["key"] == k or change["key"].startswith(f"{k}.")), "")
        if place and change["key"] not in BATCH_KEYS:
            raise ValueError(
                f"train.deepspeed: {change['key']} = {change['given']!r} contradicts the recipe, where "
                f"{RECIPE_KEYS[place]} decides it: set that, and leave this out"
            )
    return result, changes


def changes_anywhere(spec: TrainSpec, num_parameters: int) -> list[dict[str, Any]]:
    """The changes of `deepspeed_config` as far as they hold for any number of ranks: all but those of the batch.

    Raises ValueError for a change that contradicts the recipe.
    """
    rest = {key: value for key, value in spec.deepspeed.items() if key not in BATCH_KEYS}
    return deepspeed_config(spec.model_copy(update={"deepspeed": rest}), Ranks(0, 1, 0), num_parameters)[1]


def _check_batch(config: dict[str, Any], derived: dict[str, Any], ranks: Ranks, spec: TrainSpec) -> None:
    batch, micro, passes = (config[key] for key in BATCH_KEYS)
    world = ranks.world_size
    if batch == micro * passes * world and (batch, micro, passes) == tuple(derived[key] for key in BATCH_KEYS):
        return
    product = f"{micro} samples x {passes} passes x {world} ranks = {micro * passes * world}"
    right = product + (f", and train_batch_size = {batch}" if batch != micro * passes * world else "")
    wanted = f"{derived[BATCH_KEYS[1]]} x {derived[BATCH_KEYS[2]]} x {world} = {derived[BATCH_KEYS[0]]}"
    raise ValueError(
        f"train.deepspeed: {right}; the recipe's train.batch_size = {spec.batch_size} is dealt out as {wanted}: "
        "set train.batch_size and train.micro_batch_size, and leave these keys out"
    )


def _flat(table: dict[str, Any], place: str = "") -> dict[str, Any]:
    """Dotted keys of nested tables."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{place}{key}.") if isinstance(value, dict) and value else {f"{place}{key}": value}
    return found


def shown(changes: list[dict[str, Any]]) -> str:
    """A line a change: `key: derived -> given`."""
    lines = [
        f"{change['key']}: {'(not set)' if change['derived'] is None else json.dumps(change['derived'])}"
        f" -> {json.dumps(change['given'])}"
        for change in changes
    ]
    return "\n".join(lines) + "\n"
