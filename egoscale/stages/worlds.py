"""The world stage: latents + latent actions (or tracked hands) -> a world model with agent tokens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from egoscale.evaluate.world_metrics import target_r2
from egoscale.models.dynamics import WorldModel, word_ids
from egoscale.models.flops import world_flops
from egoscale.recipe import WorldRecipe, WorldSpec
from egoscale.stages.codes import CODES, codes_of, scale_of
from egoscale.stages.latent_actions import latents_of
from egoscale.stages.models import described, device, inference
from egoscale.stages.work import Work
from egoscale.train.order import draws, normal_rows
from egoscale.train.ranks import Ranks, ranks
from egoscale.video.clips import WindowTable, frames_of
from egoscale.video.latents import LatentShards
from egoscale.video.seen import Pieces, count_seen

Floats = NDArray[np.float32]
VALIDATION_SAMPLES = 64


@dataclass(frozen=True)
class Samples:
    """Training samples by arithmetic: a window for the dynamics and some frames for the agent tokens."""

    shards: LatentShards
    codes: LatentShards  # of the same clips, by the same numbers
    words: dict[str, list[int]]  # by clip id
    mean: Floats  # of the codes, [1 + K, A]
    std: Floats
    window_frames: int
    agent_frames: int
    first_fraction: float = 0.0
    rate_hz: float | None = None

    @cached_property
    def tables(self) -> tuple[WindowTable, WindowTable]:
        """Windows for the dynamics, and frames (that have a next one) for the agent tokens."""
        window, frame = (WindowTable.on_disk(self.shards.clips, n, self.rate_hz) for n in (self.window_frames, 2))
        return window, frame

    @cached_property
    def words_of(self) -> list[list[int]]:
        return [self.words[clip] for clip in self.shards.clip_ids]

    def standard(self, codes: Floats) -> Floats:
        return (codes - self.mean) / self.std

    def places(self, seed: int, stream: str, step: int, size: int) -> tuple[NDArray[Any], ...]:
        """Draws, then clip and first frame of the windows [B] and of the agent's frames [B, M]."""
        T, M = self.window_frames, self.agent_frames
        table, frames = self.tables
        u = draws(seed, stream, step, size, 4 + 2 * T + 2 * M)
        clip, start = table.locate(u[:, 0])
        agent_clip, agent_frame = frames.locate(u[:, 4 + 2 * T : 4 + 2 * T + M])
        return u, clip, start, agent_clip, np.where(u[:, 4 + 2 * T + M :] < self.first_fraction, 0, agent_frame)

    def names(self, seed: int, stream: str, step: int, size: int) -> list[list[str]]:
        """Clips behind each sample: of the window, and of the agent's frames."""
        _, clip, _, agent_clip, _ = self.places(seed, stream, step, size)
        rows = np.concatenate([clip[:, None], agent_clip], axis=1).tolist()
        return [[self.shards.clip_ids[one] for one in dict.fromkeys(row)] for row in rows]

    def batch(
        self,
        seed: int,
        stream: str,
        step: int,
        size: int,
        spec: WorldSpec,
        latent_noise: float,
        rows: slice = slice(None),
    ) -> dict[str, Tensor]:
        """A global batch of `size`, or these rows of it."""
        T = self.window_frames
        u, clip, start, agent_clip, agent_frame = (held[rows] for held in self.places(seed, stream, step, size))
        stride = self.tables[0].stride(clip)
        latents = self.shards.windows(clip, start, T, stride)
        # The code of a frame leads to the next one: that of the frame before the window to its first.
        before = start - np.floor(stride + 0.5).astype(np.int64)
        led = np.concatenate([before[:, None], frames_of(start, T, stride)[:, :-1]], axis=1)
        known = led >= 0
        actions = self.standard(self.codes.frames(clip, np.maximum(led, 0)))[:, :, 0]
        seen = self.shards.windows(agent_clip.reshape(-1), agent_frame.reshape(-1), 1)
        seen = seen.reshape(len(u), self.agent_frames, *seen.shape[2:])
        if latent_noise:
            shape = (size, *seen.shape[1:])
            seen = seen + latent_noise * normal_rows(seed, f"{stream}/agent", step, shape, rows)
        codes = self.standard(self.codes.frames(agent_clip.reshape(-1), agent_frame.reshape(-1, 1)))[:, 0, 1:]
        return {
            "latents": torch.from_numpy(latents),
            "noise": torch.from_numpy(normal_rows(seed, stream, step, (size, *latents.shape[1:]), rows)),
            "actions": torch.from_numpy(actions),
            # A tenth of the actions is hidden, so that the model can also run without any.
            "has_action": torch.from_numpy(known & (u[:, 4 + T : 4 + 2 * T] > 0.1)),
            "tau_draw": torch.from_numpy(u[:, 4 : 4 + T]).float(),
            "step_draw": torch.from_numpy(u[:, 1]).float(),
            "shortcut": torch.from_numpy(u[:, 2] < spec.shortcut_fraction),
            # Half of the windows have a clean beginning, as a rollout has; the rest has noise everywhere.
            "num_clean": torch.from_numpy(np.maximum(0, 2 * T * u[:, 3] - T).astype(np.int64)),
            "agent_latents": torch.from_numpy(seen).float(),
            "agent_words": torch.tensor([[self.words_of[n] for n in row] for row in agent_clip.tolist()]),
            "agent_codes": torch.from_numpy(codes.reshape(*agent_clip.shape, *codes.shape[1:])),
        }


def narrations(folder: Path, which: str, spec: WorldSpec) -> dict[str, list[int]]:
    """Word ids of each clip's narration (its task where it has none)."""
    table = pl.read_parquet(folder / f"{which}.parquet").select(
        "clip_id", pl.coalesce("narration", "task").fill_null("")
    )
    return {clip: word_ids(text, spec.vocabulary_size, spec.max_words) for clip, text in table.rows()}


def world(work: Work) -> dict[str, Any]:
    """Train the world model and its agent tokens against frozen, standardised codes."""
    with ranks() as group:
        return _trained_by(group, work)


def _trained_by(group: Ranks, work: Work) -> dict[str, Any]:
    recipe = work.recipe(WorldRecipe)
    spec, seed, subset = recipe.model, recipe.seed, work.input("subset")
    window = spec.context_frames
    shards, held_shards = latents_of(work, "manifest"), latents_of(work, "heldout")
    known, held_known = codes_of(work, group, "manifest", shards), codes_of(work, group, "heldout", held_shards)
    mean, std = scale_of(work, group, known)
    given = {
        **spec.model_dump(),
        "num_latents": shards.num_tokens,
        "latent_dim": shards.dim,
        "action_dim": known.dim,
        "num_strides": len(recipe.strides_frames),
    }

    def samples(which: str, latents: LatentShards, of: LatentShards) -> Samples:
        return Samples(
            latents,
            of,
            narrations(subset, which, spec),
            mean,
            std,
            window,
            recipe.agent_frames,
            recipe.first_frame_fraction,
            recipe.rate_hz,
        )

    training, heldout = samples("manifest", shards, known), samples("heldout", held_shards, held_known)
    # The same draws for every size and seed: differences between runs are then differences between models.
    checked = heldout.batch(0, "world/heldout", 0, VALIDATION_SAMPLES, spec, 0.0)

    def validate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, WorldModel)
        device = next(model.parameters()).device
        on_device = {name: tensor.to(device) for name, tensor in checked.items()}
        loss = model.dynamics_loss({**on_device, "shortcut": torch.zeros_like(on_device["shortcut"])})
        codes, _ = model.agent(
            on_device["agent_latents"].flatten(0, 1)[:, None], on_device["agent_words"].flatten(0, 1)
        )
        wanted = on_device["agent_codes"].flatten(0, 1)
        unexplained = (codes[:, 0] - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean()
        return {"world_loss": float(loss), "prior_loss": float(unexplained)}

    def batch_at(step: int, rows: slice = slice(None)) -> dict[str, Tensor]:
        return training.batch(seed, "world", step, recipe.train.batch_size, spec, recipe.latent_noise, rows)

    torch.manual_seed(seed)
    model = WorldModel(**given)
    result = work.train(
        model,
        recipe.train,
        batch_at,
        seed,
        described(
            WorldModel,
            given,
            strides_frames=list(recipe.strides_frames),
            actions=recipe.actions,
            code_mean=mean.tolist(),
            code_std=std.tolist(),
        ),
        validate=validate,
        validate_every_steps=max(1, recipe.train.num_steps // 5),
        forward_flops_per_sample=world_flops(given, recipe.agent_frames),
        frames_per_sample=window + recipe.agent_frames,
        tokens_per_frame=shards.num_tokens,
        own_rows=True,
        batch_ids=lambda step: training.names(seed, "world", step, recipe.train.batch_size),
    )
    model.eval().to(device())
    with inference():
        everything = LatentShards.open(work.input("encode") / "video")
        result["target_r2"] = target_r2(model, everything, subset, training.words, heldout.words)
    size, num_steps = recipe.train.batch_size, recipe.train.num_steps

    def pieces() -> Iterator[Pieces]:
        for step in range(num_steps):
            _, clip, start, agent_clip, agent_frame = training.places(seed, "world", step, size)
            yield clip, start, start + window * training.tables[0].stride(clip)
            alone, frame = agent_clip.reshape(-1), agent_frame.reshape(-1)
            yield alone, frame, frame + training.tables[1].stride(alone)

    frames_seen = num_steps * size * (window + recipe.agent_frames)
    seen = count_seen(shards.clips, num_steps * size * (1 + recipe.agent_frames), pieces)
    if group.main:  # as checkpoints go when their run is done
        shutil.rmtree(work.out / CODES, ignore_errors=True)
    return {**result, "hours": recipe.hours, "frames_seen": frames_seen, **seen.to_dict()}
