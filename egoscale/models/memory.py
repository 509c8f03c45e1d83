"""Bytes that a forward pass keeps for the backward pass, counted from sizes.

Kept are the inputs of matrix products, norms and gates, and what attention needs again. Which of them, depends on the
kernels: a GPU's fused norm and attention keep their inputs and results; a CPU's keep every step between, and the
whole matrix of attention weights (as `blocks.py` chooses). Not counted: the batch itself, masks, numbers of single
tokens, and the working memory of a kernel. Compiled blocks keep less, since gates are computed again: these are then
upper limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

FP32 = 4


def checkpoint_bytes(num_weights: int, num_trained: int, num_one_moment: int, zero_stage: int) -> int:
    """What a checkpoint takes on disk, over all files and any number of ranks: every weight, two moments of each
    that is trained (one of Muon's matrices), and at stages 1 and 2 what is trained once more, as the ranks update it.

    Measured on DeepSpeed 0.19.8 (AdamW and Muon, 1 and 2 ranks): 12 bytes a weight at stages 0 and 3 and 16 at 1 and 2
    with AdamW, 8 and 12 where all is Muon's; 40 kB of scripts and names beside.
    """
    return FP32 * (num_weights + 2 * num_trained - num_one_moment + (num_trained if zero_stage in (1, 2) else 0))


@dataclass(frozen=True)
class Kernels:
    """`number_bytes` of an activation: 4 in fp32, 2 under bf16 autocast. `fused` are those of a GPU."""

    number_bytes: int
    fused: bool

    def norm(self, width: float) -> float:
        """Of a token: the input, in fp32 (autocast widens it), and without fusion its normalised copy."""
        return (1 if self.fused else 2) * FP32 * width

    def attention(self, width: int, num_heads: int, num_kv_heads: int, num_keys: int) -> float:
        """Of a token that attends to `num_keys`."""
        share, number = num_kv_heads / num_heads, self.number_bytes
        read = self.norm(width) + number * width
        # Queries and keys for their norms: in fp32 a part of one tensor with the values, in bf16 widened on their own.
        read += FP32 * width * (1 + 2 * share if number == FP32 else 1 + share)
        if self.fused:  # queries; keys and values, repeated for their groups; what they mix to, and its sums
            return read + number * width * 4 + FP32 * num_heads
        normed = FP32 * width * (1 + share)
        return read + normed + number * (width * (2 + 2 * share) + num_heads * num_keys)

    def value(self, width: int) -> float:
        """Of a token in attention to a single frame, which is its value."""
        return self.norm(width) + 2 * self.number_bytes * width

    def gate(self, width: int) -> float:
        """Of a token in a SwiGLU: its input, and gate, up, activated gate and product."""
        inner = -(-width * 8 // 3 // 16) * 16
        return self.norm(width) + self.number_bytes * (width + 4 * inner)


@dataclass(frozen=True)
class Kept:
    """Bytes of one sample: `held` until the backward pass, and `again` for the block that is computed again in it."""

    held: float
    again: float = 0.0

    def __add__(self, other: Kept) -> Kept:
        return Kept(self.held + other.held, max(self.again, other.again))

    def times(self, samples: float) -> Kept:
        return Kept(self.held * samples, self.again * samples)


def recomputed(num_layers: int, layers: Literal["none", "alternate", "all"]) -> range:
    """The layers that `SpaceTimeStack.recompute` means."""
    return range(0, {"none": 0}.get(layers, num_layers), 2 if layers == "alternate" else 1)


def stack_bytes(
    blocks: dict[str, Any],
    num_tokens: int,
    kernels: Kernels,
    layers: Literal["none", "alternate", "all"] = "none",
    num_frames: int = 1,
) -> Kept:
    """Of a `SpaceTimeStack` over `num_frames` frames of `num_tokens` tokens (registers added), and its output."""
    width, heads, groups = blocks["width"], blocks["num_heads"], blocks["num_kv_heads"]
    tokens = num_tokens + blocks["num_registers"]
    again = recomputed(blocks["num_layers"], layers)
    held, largest = kernels.number_bytes * float(width), 0.0  # the output
    for layer in range(blocks["num_layers"]):
        block = kernels.attention(width, heads, groups, tokens) + kernels.gate(width)
        if blocks["temporal_every"] and (layer + 1) % blocks["temporal_every"] == 0:
            through_time = kernels.attention(width, heads, groups, num_frames)
            block += through_time if num_frames > 1 else kernels.value(width)
        held += kernels.number_bytes * width if layer in again else block
        largest = max(largest, block if layer in again else 0.0)
    return Kept(held, largest).times(tokens * num_frames)


def tokenizer_bytes(arguments: dict[str, Any], kernels: Kernels, layers: Any = "none", num_frames: int = 1) -> Kept:
    """Of a window of `num_frames` frames, encoded, decoded and compared."""
    patches = (arguments["image_size_px"] // arguments["patch_size_px"]) ** 2
    pixels = 3 * arguments["patch_size_px"] ** 2
    ends = kernels.number_bytes * (pixels + arguments["encoder"]["width"]) + 3 * FP32 * pixels
    parts = [stack_bytes(arguments[part], patches, kernels, layers, num_frames) for part in ("encoder", "decoder")]
    return parts[0] + parts[1] + Kept(num_frames * patches * ends)


def latent_action_bytes(arguments: dict[str, Any], kernels: Kernels, layers: Any = "none") -> Kept:
    """Of one pair of frames, encoder and decoder."""
    tokens, latent = arguments["num_latents"], arguments["latent_dim"]
    # What the code names (8 places, as offsets, squares and nearness, in fp32), and latents read in and out.
    # The encoder's tokens are read twice, by "where" and "what".
    ends = kernels.number_bytes * (4 * latent + 8 + 24 + arguments["encoder"]["width"]) + FP32 * (48 + 2 * latent)
    parts = [stack_bytes(arguments[part], tokens, kernels, layers) for part in ("encoder", "decoder")]
    return parts[0] + parts[1] + Kept(tokens * ends)


def world_bytes(arguments: dict[str, Any], agent_frames: int, kernels: Kernels, layers: Any = "none") -> Kept:
    """Of one training sample: a window and the agent's frames. The half steps of shortcut forcing keep nothing."""
    latents, blocks = arguments["num_latents"], arguments["blocks"]
    body, group = latents + 2, arguments["max_words"] + arguments["num_agent_tokens"]
    numbers = latents * arguments["latent_dim"]
    window = stack_bytes(blocks, body, kernels, layers, arguments["context_frames"])
    agent = stack_bytes(blocks, body + group, kernels, layers).times(agent_frames)
    latents_in_and_out = (kernels.number_bytes + 2 * FP32) * numbers * arguments["context_frames"]
    agent_norm = kernels.norm(blocks["width"] * arguments["num_agent_tokens"])
    return window + agent + Kept(latents_in_and_out + agent_frames * (kernels.number_bytes * numbers + agent_norm))
