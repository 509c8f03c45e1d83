"""The world stage: latents + latent actions (or tracked hands) -> a world model with agent tokens."""

from __future__ import annotations

from dataclasses import dataclass
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
from egoscale.stages.latent_actions import clips_of, windows_of
from egoscale.stages.models import described, inference, load
from egoscale.stages.work import Work
from egoscale.train.order import draws, normal
from egoscale.video.latents import LatentShards

Floats = NDArray[np.float32]
VALIDATION_SAMPLES = 64
CODE_FLOOR = 0.3  # smallest standard deviation by which a code is scaled: the prior's is 1, a dead dimension's near 0


@dataclass(frozen=True)
class Labels:
    """What each frame of a clip leads to: codes [T, 1 + K, A]; index 0 is the next frame, then one per stride."""

    of_clip: dict[str, Floats]

    @property
    def dim(self) -> int:
        return int(next(iter(self.of_clip.values())).shape[-1])


def latent_labels(folder: Path, shards: LatentShards, clips: list[str], strides: tuple[int, ...]) -> Labels:
    """Codes of the frozen latent action model; a stride is cut at the end of its take."""
    model, config = load(folder, "LatentActionModel")
    if max(strides) > config["arguments"]["max_stride_frames"]:
        raise ValueError(
            f"strides_frames {list(strides)} go beyond the max_stride_frames "
            f"{config['arguments']['max_stride_frames']} of {folder}: the codes would be guesses; shorten the strides"
        )
    found: dict[str, Floats] = {}
    with inference():
        for some in _groups(clips, shards, 512):
            firsts, seconds, sizes = [], [], []
            for clip in some:
                frames = shards.window(clip, 0, shards.num_frames(clip))
                t = np.arange(len(frames))
                ends = np.stack([np.minimum(t + k, len(t) - 1) for k in (1, *strides)], axis=1)
                firsts.append(np.repeat(frames, ends.shape[1], axis=0))
                seconds.append(frames[ends.ravel()])
                sizes.append(len(t))
            mean, _ = model.encode(torch.from_numpy(np.concatenate(firsts)), torch.from_numpy(np.concatenate(seconds)))
            codes = mean.numpy().reshape(-1, 1 + len(strides), model.action_dim)
            found.update(zip(some, np.split(codes, np.cumsum(sizes)[:-1]), strict=True))
    return Labels(found)


def _groups(clips: list[str], shards: LatentShards, frames: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    held = 0
    for clip in clips:
        if held >= frames:
            groups.append([])
            held = 0
        groups[-1].append(clip)
        held += shards.num_frames(clip)
    return groups


def hand_labels(folder: Path, clips: list[str], strides: tuple[int, ...]) -> Labels:
    """Where the tracked hand will be (metres x 10: about unit variance on a table), cut at the end of the take."""
    file = folder / "hands.parquet"
    if not file.is_file():
        raise FileNotFoundError(f'{file}: actions = "hand" needs tracked hands beside the video')
    table = pl.read_parquet(file).sort("take_id", "frame")
    tracked = {
        str(take): rows.select("x_m", "y_m", "z_m", "opening").to_numpy().astype(np.float32)
        for (take,), rows in table.group_by(["take_id"], maintain_order=True)
    }
    found = {}
    for clip in clips:
        take = clip.rsplit("/", 1)[-1]
        if take not in tracked:
            raise ValueError(f'{file}: no tracked hand for clip {clip!r}; use actions = "latent" for this video')
        hand = tracked[take] * 10
        t = np.arange(len(hand))
        found[clip] = np.stack([hand[np.minimum(t + k, len(t) - 1)] for k in (1, *strides)], axis=1)
    return Labels(found)


@dataclass(frozen=True)
class Samples:
    """Training samples by arithmetic: a window for the dynamics and some frames for the agent tokens."""

    shards: LatentShards
    labels: Labels
    words: dict[str, list[int]]
    mean: Floats  # of the codes, [1 + K, A]
    std: Floats
    clips: list[str]
    window_frames: int
    agent_frames: int
    first_fraction: float = 0.0

    def standard(self, codes: Floats) -> Floats:
        return (codes - self.mean) / self.std

    def batch(
        self, seed: int, stream: str, step: int, size: int, spec: WorldSpec, latent_noise: float
    ) -> dict[str, Tensor]:
        T, M = self.window_frames, self.agent_frames
        table, frames = windows_of(self.shards, self.clips, T), windows_of(self.shards, self.clips, 2)
        u = draws(seed, stream, step, size, 4 + 2 * T + 2 * M)
        clip, start = table.locate(u[:, 0])
        names = [table.clip_ids[i] for i in clip]
        latents = np.stack([self.shards.window(n, int(s), T) for n, s in zip(names, start, strict=True)])
        actions = np.zeros((size, T, self.labels.dim), np.float32)
        known = np.ones((size, T), bool)
        for row, (name, first) in enumerate(zip(names, start, strict=True)):
            led = np.arange(int(first) - 1, int(first) + T - 1)  # the code of frame t - 1 led to frame t
            actions[row] = self.standard(self.labels.of_clip[name][np.maximum(led, 0)])[:, 0]
            known[row] = led >= 0
        agent_clip, agent_frame = frames.locate(u[:, 4 + 2 * T : 4 + 2 * T + M])
        agent_frame = np.where(u[:, 4 + 2 * T + M :] < self.first_fraction, 0, agent_frame)
        chosen = [[frames.clip_ids[i] for i in row] for row in agent_clip]
        seen = np.stack(
            [
                np.concatenate([self.shards.window(n, int(f), 1) for n, f in zip(row, at, strict=True)])
                for row, at in zip(chosen, agent_frame, strict=True)
            ]
        )
        if latent_noise:
            seen = seen + latent_noise * normal(seed, f"{stream}/agent", step, seen.shape)
        codes = np.stack(
            [
                [self.standard(self.labels.of_clip[n][int(f)])[1:] for n, f in zip(row, at, strict=True)]
                for row, at in zip(chosen, agent_frame, strict=True)
            ]
        )
        return {
            "latents": torch.from_numpy(latents),
            "noise": torch.from_numpy(normal(seed, stream, step, latents.shape)),
            "actions": torch.from_numpy(actions),
            # A tenth of the actions is hidden, so that the model can also run without any.
            "has_action": torch.from_numpy(known & (u[:, 4 + T : 4 + 2 * T] > 0.1)),
            "tau_draw": torch.from_numpy(u[:, 4 : 4 + T]).float(),
            "step_draw": torch.from_numpy(u[:, 1]).float(),
            "shortcut": torch.from_numpy(u[:, 2] < spec.shortcut_fraction),
            # Half of the windows have a clean beginning, as a rollout has; the rest has noise everywhere.
            "num_clean": torch.from_numpy(np.maximum(0, 2 * T * u[:, 3] - T).astype(np.int64)),
            "agent_latents": torch.from_numpy(seen).float(),
            "agent_words": torch.tensor([[self.words[n] for n in row] for row in chosen]),
            "agent_codes": torch.from_numpy(codes).float(),
        }


def narrations(folder: Path, which: str, spec: WorldSpec) -> dict[str, list[int]]:
    """Word ids of each clip's narration (its task where it has none)."""
    table = pl.read_parquet(folder / f"{which}.parquet").select(
        "clip_id", pl.coalesce("narration", "task").fill_null("")
    )
    return {clip: word_ids(text, spec.vocabulary_size, spec.max_words) for clip, text in table.rows()}


def world(work: Work) -> dict[str, Any]:
    """Train the world model and its agent tokens against frozen, standardised codes."""
    recipe = work.recipe(WorldRecipe)
    spec, seed, subset = recipe.model, recipe.seed, work.input("subset")
    shards = LatentShards.open(work.input("encode") / "video")
    window = spec.context_frames
    train_clips, held_clips = (clips_of(subset, which, shards) for which in ("manifest", "heldout"))

    def labels(clips: list[str]) -> Labels:
        if recipe.actions == "hand":
            return hand_labels(work.input("video"), clips, recipe.strides_frames)
        return latent_labels(work.input("latent-action"), shards, clips, recipe.strides_frames)

    known, held_known = labels(train_clips), labels(held_clips)
    stacked = np.concatenate(list(known.of_clip.values()))
    mean, std = stacked.mean(0), np.maximum(stacked.std(0), CODE_FLOOR)
    given = {
        **spec.model_dump(),
        "num_latents": shards.num_tokens,
        "latent_dim": shards.dim,
        "action_dim": known.dim,
        "num_strides": len(recipe.strides_frames),
    }

    def samples(which: str, clips: list[str], of: Labels) -> Samples:
        return Samples(
            shards,
            of,
            narrations(subset, which, spec),
            mean,
            std,
            clips,
            window,
            recipe.agent_frames,
            recipe.first_frame_fraction,
        )

    training, heldout = samples("manifest", train_clips, known), samples("heldout", held_clips, held_known)
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

    torch.manual_seed(seed)
    model = WorldModel(**given)
    result = work.train(
        model,
        recipe.train,
        lambda step: training.batch(seed, "world", step, recipe.train.batch_size, spec, recipe.latent_noise),
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
    )
    model.eval()
    with inference():
        result["target_r2"] = target_r2(model, shards, subset, training.words, heldout.words)
    seen = recipe.train.num_steps * recipe.train.batch_size * (window + recipe.agent_frames)
    frames = sum(shards.num_frames(clip) for clip in train_clips)
    return {**result, "hours": recipe.hours, "frames_seen": seen, "epochs": seen / frames}
