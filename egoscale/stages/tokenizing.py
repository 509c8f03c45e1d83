"""The tokenizer stage: frames of human video and unlabelled robot video -> weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from egoscale.models.flops import tokenizer_flops
from egoscale.models.video_tokenizer import VideoTokenizer
from egoscale.recipe import TokenizerRecipe, VideoTokenizerSpec
from egoscale.robot.demos import LeRobotDataset
from egoscale.stages.models import described
from egoscale.stages.work import Work
from egoscale.train.order import draws
from egoscale.video.clips import WindowTable
from egoscale.video.frames import ClipFrames

HELDOUT_FRAMES = 256


def arguments(spec: VideoTokenizerSpec) -> dict[str, Any]:
    """Arguments of `VideoTokenizer` for a recipe."""
    return spec.model_dump(exclude={"kind"})


def to_frames(windows_BTHWC: NDArray[np.uint8]) -> Tensor:
    """Channels first, as the tokenizer takes them: uint8 [B, T, 3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(windows_BTHWC.transpose(0, 1, 4, 2, 3)))


def tokenizer(work: Work) -> dict[str, Any]:
    """Train the tokenizer on the subset's clips; `demo_fraction` of each batch is robot video, its actions unread."""
    recipe = work.recipe(TokenizerRecipe)
    spec = recipe.tokenizer
    length, batch_size = recipe.window_frames, recipe.train.batch_size
    folder = work.input("subset")
    clips = ClipFrames(pl.read_parquet(folder / "manifest.parquet"), spec.image_size_px)
    table = WindowTable(clips.clip_ids, clips.num_frames, length)
    robot = (
        _robot_windows(work, spec.image_size_px, length) if recipe.demo_fraction and "demos" in work.inputs else None
    )

    def chosen(step: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        u = draws(recipe.seed, "tokenizer", step, batch_size, 4)
        return (u, *table.locate(u[:, 0]))

    def batch_at(step: int) -> dict[str, Tensor]:
        u, clip, start = chosen(step)
        windows = clips.windows([table.clip_ids[i] for i in clip], start.tolist(), length)
        if robot is not None:
            from_robot = u[:, 1] < recipe.demo_fraction
            windows[from_robot] = robot[(u[from_robot, 0] * len(robot)).astype(np.int64)]
        patches = (spec.image_size_px // spec.patch_size_px) ** 2
        hidden = draws(recipe.seed, "tokenizer/hidden", step, batch_size, length * patches)
        return {
            "frames": to_frames(windows),
            # Half of the windows are whole, so that encoding whole frames, which is all its users do, is practised.
            "mask_draw": torch.from_numpy(np.maximum(0, 2 * u[:, 2] - 1)).float(),
            "mask_noise": torch.from_numpy(hidden.reshape(batch_size, length, patches)).float(),
        }

    held = ClipFrames(pl.read_parquet(folder / "heldout.parquet"), spec.image_size_px)
    held_table = WindowTable(held.clip_ids, held.num_frames, length)
    place = (np.arange(HELDOUT_FRAMES) + 0.5) / HELDOUT_FRAMES
    clip, start = held_table.locate(place)
    seen = to_frames(held.windows([held_table.clip_ids[i] for i in clip], start.tolist(), length))

    def validate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, VideoTokenizer)
        device = next(model.parameters()).device
        frames = seen.to(device).float() / 255
        rebuilt = model.decode(model.encode(frames))
        return {"heldout_psnr_db": float(-10 * torch.log10((rebuilt - frames).square().mean()))}

    given = arguments(spec)
    return work.train(
        VideoTokenizer(**given),
        recipe.train,
        batch_at,
        recipe.seed,
        described(VideoTokenizer, given),
        validate=validate,
        batch_ids=lambda step: [table.clip_ids[i] for i in chosen(step)[1]],
        forward_flops_per_sample=tokenizer_flops(given) * length,
        frames_per_sample=length,
    )


def _robot_windows(work: Work, size_px: int, length: int) -> NDArray[np.uint8]:
    """Windows of every demonstration's frames, no actions: uint8 [M, length, H, W, 3]."""
    windows: list[NDArray[np.uint8]] = []
    for index, episode in enumerate(LeRobotDataset.open(work.input("demos") / "demos")):
        frames = episode.frames_THWC
        if frames.shape[1:3] != (size_px, size_px):
            raise ValueError(
                f"{work.input('demos')}: episode {index} has frames of {frames.shape[2]}x{frames.shape[1]} px, "
                f"the tokenizer takes {size_px}x{size_px}: record the demonstrations at that size"
            )
        windows += [frames[i : i + length] for i in range(0, len(frames) - length + 1, length)]
    return np.stack(windows)
