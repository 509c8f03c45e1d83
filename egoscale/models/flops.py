"""Floating-point operations of a forward pass, counted from sizes; multiply and add are two.

A matrix of P parameters costs 2 P per token; attention over L tokens costs 4 L D per token and layer (scores and
mixing). Norms, activations and softmax are left out: together under 5 % at width 64 and less above. Training costs
three forward passes (the usual count: backward twice the forward; no recomputation).
"""

from __future__ import annotations

from typing import Any


def stack_flops(blocks: dict[str, Any], num_tokens: int, num_frames: int = 1) -> float:
    """Forward FLOPs of a `SpaceTimeStack` over `num_frames` frames of `num_tokens` tokens (registers added)."""
    width, layers = blocks["width"], blocks["num_layers"]
    tokens = num_tokens + blocks["num_registers"]
    head = width // blocks["num_heads"]
    projections = width * (width + 2 * blocks["num_kv_heads"] * head) + width * width
    inner = -(-width * 8 // 3 // 16) * 16
    every = blocks["temporal_every"]
    temporal = layers // every if every else 0
    per_token = layers * (2 * projections + 6 * width * inner + 4 * tokens * width)
    if num_frames == 1:  # attention to a single frame is its value: no queries, keys or scores
        per_token += temporal * 2 * (width * blocks["num_kv_heads"] * head + width * width)
    else:
        per_token += temporal * (2 * projections + 2 * (num_frames + 1) * width)  # causal: half of them on average
    return float(per_token * tokens * num_frames)


def tokenizer_flops(arguments: dict[str, Any], num_frames: int = 1) -> float:
    """Forward FLOPs of encoding and decoding a window of `num_frames` frames."""
    patches = (arguments["image_size_px"] // arguments["patch_size_px"]) ** 2
    pixels = 3 * arguments["patch_size_px"] ** 2
    ends = (
        2
        * patches
        * (pixels + arguments["latent_dim"])
        * (arguments["encoder"]["width"] + arguments["decoder"]["width"])
    )
    stacks = sum(stack_flops(arguments[part], patches, num_frames) for part in ("encoder", "decoder"))
    return float(stacks + num_frames * ends)


def latent_action_flops(arguments: dict[str, Any]) -> float:
    """Forward FLOPs of one pair of frames, encoder and decoder."""
    tokens = arguments["num_latents"]
    ends = (
        2 * tokens * arguments["latent_dim"] * (3 * arguments["encoder"]["width"] + 2 * arguments["decoder"]["width"])
    )
    return float(stack_flops(arguments["encoder"], tokens) + stack_flops(arguments["decoder"], tokens) + ends)


def code_flops(arguments: dict[str, Any]) -> float:
    """Forward FLOPs of the latent action of one pair of frames: the encoder alone."""
    tokens = arguments["num_latents"]
    ends = 6 * tokens * arguments["latent_dim"] * arguments["encoder"]["width"]
    return float(stack_flops(arguments["encoder"], tokens) + ends)


def world_flops(arguments: dict[str, Any], agent_frames: int) -> float:
    """Forward FLOPs of one training sample: a window, its share of shortcut targets, and the agent's frames."""
    body, frames = arguments["num_latents"] + 2, arguments["context_frames"]
    group = arguments["max_words"] + arguments["num_agent_tokens"]
    ends: float = 4 * arguments["num_latents"] * arguments["latent_dim"] * arguments["blocks"]["width"]
    window = stack_flops(arguments["blocks"], body, frames) + frames * ends
    # The two half steps of shortcut forcing run forward only: a third of a training pass each.
    window *= 1 + arguments["shortcut_fraction"] * 2 / 3
    return float(window + agent_frames * (stack_flops(arguments["blocks"], body + group) + ends / 2))
