"""The world stage: latents + latent actions (or tracked hands) -> a world model with agent tokens."""

from __future__ import annotations

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
from egoscale.stages.latent_actions import latents_of
from egoscale.stages.models import described, device, inference, load
from egoscale.stages.work import Work
from egoscale.train.order import draws, normal_rows
from egoscale.video.clips import WindowTable, frames_of
from egoscale.video.latents import LatentShards
from egoscale.video.seen import Pieces, count_seen

Floats = NDArray[np.float32]
VALIDATION_SAMPLES = 64
CODE_FLOOR = 0.3  # smallest standard deviation by which a code is scaled: the prior's is 1, a dead dimension's near 0
PAIRS_ON_GPU = 2048  # pairs of one call of the latent action model on a GPU: a long take would not fit whole
SUMMED_FRAMES = 2**18  # frames summed in fp32, whose sums of more would stop growing; these sums are added in fp64


@dataclass(frozen=True)
class Labels:
    """What each frame of a clip leads to: codes [T, 1 + K, A]; index 0 is the next frame, then one per stride."""

    of_clip: list[Floats]  # by the clip's number

    @property
    def dim(self) -> int:
        return int(self.of_clip[0].shape[-1])


def _ends(num_frames: int, strides: tuple[int, ...], step: float) -> NDArray[np.int64]:
    """The frame that each frame leads to, [T, 1 + K]: the next one, then one per stride, cut at the end of the take.

    step: frames of the clip that a stride of 1 passes over.
    """
    ahead = np.floor(np.array([1, *strides]) * step + 0.5).astype(np.int64)
    ends: NDArray[np.int64] = np.minimum(np.arange(num_frames)[:, None] + ahead, num_frames - 1)
    return ends


def latent_labels(folder: Path, shards: LatentShards, strides: tuple[int, ...], steps: NDArray[np.float64]) -> Labels:
    """Codes of the frozen latent action model; a stride is cut at the end of its take. steps: see `_ends`, by clip."""
    model, config = load(folder, "LatentActionModel")
    if max(strides) > config["arguments"]["max_stride_frames"]:
        raise ValueError(
            f"strides_frames {list(strides)} go beyond the max_stride_frames "
            f"{config['arguments']['max_stride_frames']} of {folder}: the codes would be guesses; shorten the strides"
        )
    lengths = shards.clips.rows(np.arange(len(shards.clips)))["num_frames"]
    found: list[Floats] = []
    place = device()
    model.to(place)
    with inference():
        for some in _groups(lengths, 512):
            firsts, seconds, sizes = [], [], []
            for clip in some:
                frames = shards.windows([clip], [0], int(lengths[clip]))[0]
                ends = _ends(len(frames), strides, steps[clip])
                firsts.append(np.repeat(frames, ends.shape[1], axis=0))
                seconds.append(frames[ends.ravel()])
                sizes.append(len(frames))
            first, second = torch.from_numpy(np.concatenate(firsts)), torch.from_numpy(np.concatenate(seconds))
            size = PAIRS_ON_GPU if place.type == "cuda" else len(first)
            means = [
                model.encode(one.to(place), other.to(place))[0].cpu()
                for one, other in zip(torch.split(first, size), torch.split(second, size), strict=True)
            ]
            codes = torch.cat(means).numpy().reshape(-1, 1 + len(strides), model.action_dim)
            found += np.split(codes, np.cumsum(sizes)[:-1])
    return Labels(found)


def _groups(lengths: NDArray[np.int64], frames: int) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    held = 0
    for clip, length in enumerate(lengths.tolist()):
        if held >= frames:
            groups.append([])
            held = 0
        groups[-1].append(clip)
        held += length
    return groups


def mean_and_std(of_clip: list[Floats]) -> tuple[Floats, Floats]:
    """Mean and standard deviation over all frames of all clips, [1 + K, A] each, without a copy of the codes.

    Up to SUMMED_FRAMES frames, those that numpy gives for one array of them all, to the bit.
    """
    num_frames = np.intp(sum(len(codes) for codes in of_clip))

    def averaged(terms: Iterator[Floats]) -> Floats:
        shape = of_clip[0].shape[1:]
        whole, part, held = np.zeros(shape, np.float64), np.zeros((1, *shape), np.float32), 0
        for term in terms:
            # Row after row upon the sum so far, as numpy adds the rows of one array.
            part = np.add.reduce(np.concatenate([part, term]), axis=0, keepdims=True)
            held += len(term)
            if held >= SUMMED_FRAMES:
                whole, part, held = whole + part[0], np.zeros_like(part), 0
        average: Floats = ((whole + part[0]) / num_frames).astype(np.float32)
        return average

    mean = averaged(iter(of_clip))
    return mean, np.sqrt(averaged(np.square(codes - mean) for codes in of_clip))


def hand_labels(folder: Path, clips: list[str], strides: tuple[int, ...], steps: NDArray[np.float64]) -> Labels:
    """Where the tracked hand will be (metres x 10: about unit variance on a table), cut at the end of the take."""
    file = folder / "hands.parquet"
    if not file.is_file():
        raise FileNotFoundError(f'{file}: actions = "hand" needs tracked hands beside the video')
    table = pl.read_parquet(file).sort("take_id", "frame")
    tracked = {
        str(take): rows.select("x_m", "y_m", "z_m", "opening").to_numpy().astype(np.float32)
        for (take,), rows in table.group_by(["take_id"], maintain_order=True)
    }
    found = []
    for clip, step in zip(clips, steps.tolist(), strict=True):
        take = clip.rsplit("/", 1)[-1]
        if take not in tracked:
            raise ValueError(f'{file}: no tracked hand for clip {clip!r}; use actions = "latent" for this video')
        hand = tracked[take] * 10
        found.append(hand[_ends(len(hand), strides, step)])
    return Labels(found)


@dataclass(frozen=True)
class Samples:
    """Training samples by arithmetic: a window for the dynamics and some frames for the agent tokens."""

    shards: LatentShards
    labels: Labels
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
        actions = np.stack(
            [
                self.standard(self.labels.of_clip[one][np.maximum(frames, 0)])[:, 0]
                for one, frames in zip(clip.tolist(), led, strict=True)
            ]
        )
        seen = self.shards.windows(agent_clip.reshape(-1), agent_frame.reshape(-1), 1)
        seen = seen.reshape(len(u), self.agent_frames, *seen.shape[2:])
        if latent_noise:
            shape = (size, *seen.shape[1:])
            seen = seen + latent_noise * normal_rows(seed, f"{stream}/agent", step, shape, rows)
        codes = np.stack(
            [
                [self.standard(self.labels.of_clip[n][int(f)])[1:] for n, f in zip(row, at, strict=True)]
                for row, at in zip(agent_clip.tolist(), agent_frame, strict=True)
            ]
        )
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
    window = spec.context_frames
    shards, held_shards = latents_of(work, "manifest"), latents_of(work, "heldout")

    def labels(of: LatentShards) -> Labels:
        steps = WindowTable.on_disk(of.clips, 2, recipe.rate_hz).stride(np.arange(len(of.clips)))
        if recipe.actions == "hand":
            return hand_labels(work.input("video"), of.clip_ids, recipe.strides_frames, steps)
        return latent_labels(work.input("latent-action"), of, recipe.strides_frames, steps)

    known, held_known = labels(shards), labels(held_shards)
    mean, std = mean_and_std(known.of_clip)
    std = np.maximum(std, CODE_FLOOR)
    given = {
        **spec.model_dump(),
        "num_latents": shards.num_tokens,
        "latent_dim": shards.dim,
        "action_dim": known.dim,
        "num_strides": len(recipe.strides_frames),
    }

    def samples(which: str, latents: LatentShards, of: Labels) -> Samples:
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
    return {**result, "hours": recipe.hours, "frames_seen": frames_seen, **seen.to_dict()}
