"""Models from recipes, and trained models from the folders of their runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from egoscale.models.dynamics import WorldModel
from egoscale.models.latent_action import LatentActionModel
from egoscale.models.policy import ActionSlot, Policy
from egoscale.models.video_tokenizer import VideoTokenizer
from egoscale.stages.work import WEIGHTS
from egoscale.train.checkpoint import load_weights
from egoscale.train.engine import multiplies_bf16
from egoscale.train.ranks import Ranks, named_ranks
from egoscale.video.on_disk import write_json

KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (VideoTokenizer, LatentActionModel, WorldModel, ActionSlot)
}


def described(kind: type[nn.Module], arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    """config.json of a model: its class, its arguments, and what else its users need."""
    return {"model": kind.__name__, "arguments": arguments, **more}


def load(folder: Path, kind: str, part: str = "") -> tuple[Any, dict[str, Any]]:
    """The trained model of a run, in evaluation mode, and its config.

    Raises:
        FileNotFoundError, ValueError: no weights, or weights of another model.
    """
    state, config = load_weights(folder / part / WEIGHTS)
    if config.get("model") != kind:
        raise ValueError(f"{folder}: holds a {config.get('model')}, expected a {kind}")
    model = KINDS[kind](**config["arguments"])
    model.load_state_dict(state)
    return model.eval(), config


def load_policy(folder: Path) -> tuple[Policy, dict[str, Any]]:
    """The policy of a fine-tuning run, with its world model inside."""
    state, config = load_weights(folder / WEIGHTS)
    policy = Policy(WorldModel(**config["world"]), **config["arguments"])
    policy.load_state_dict(state)
    return policy.eval(), config


def device() -> torch.device:
    """Where this process computes: the GPU of its local rank, else the CPU. No process group is needed."""
    return named_ranks().device


def kept_precision(file: Path, group: Ranks) -> bool:
    """Whether to use bf16: as the device of rank 0 prefers when a run first asks, and so to its end on all ranks, so
    that what one run writes is of one precision."""
    if group.main and not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"bf16": multiplies_bf16(device())})
    bf16 = json.loads(file.read_text(encoding="utf-8"))["bf16"] if group.main else None
    return bool(group.from_main(bf16))


@contextmanager
def inference(bf16: bool | None = None) -> Iterator[None]:
    """No gradients; bf16 where this device has instructions for it, or as told."""
    enabled = multiplies_bf16(device()) if bf16 is None else bf16
    with torch.no_grad(), torch.autocast(device().type, torch.bfloat16, enabled=enabled):
        yield
