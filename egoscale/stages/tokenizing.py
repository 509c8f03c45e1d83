"""The tokenizer stage: frames of human video and unlabelled robot video -> weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from egoscale.models.flops import tokenizer_flops
from egoscale.models.video_tokenizer import VideoTokenizer
from egoscale.recipe import TokenizerRecipe, TrainSpec, VideoTokenizerSpec
from egoscale.robot.demos import LeRobotDataset
from egoscale.stages.models import described
from egoscale.stages.work import Work
from egoscale.train.order import draws, rank_rows
from egoscale.train.ranks import Ranks, address
from egoscale.video.batches import WindowBatches
from egoscale.video.clip_index import index_clips
from egoscale.video.clips import WindowTable
from egoscale.video.quarantine import Quarantine
from egoscale.video.windows import FrameWindows

HELDOUT_FRAMES = 256
# Patches of held-out frames that are rebuilt in one call. Temporal attention has a row per window and patch, and CUDA
# takes 65,535 of them: 256 windows of 256 patches and 4 registers are too many.
REBUILT_PATCHES = 2**15


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
    robot = (
        _robot_windows(work, spec.image_size_px, length) if recipe.demo_fraction and "demos" in work.inputs else None
    )

    def human(step: int) -> NDArray[np.bool_]:
        return draws(recipe.seed, "tokenizer", step, batch_size, 4)[:, 1] >= recipe.demo_fraction

    def place(step: int, attempt: int) -> NDArray[np.float64]:
        if attempt:
            return draws(recipe.seed, f"tokenizer/redraw-{attempt}", step, batch_size, 1)[:, 0]
        return draws(recipe.seed, "tokenizer", step, batch_size, 4)[:, 0]

    batches = _batches(
        work,
        "manifest",
        batch_size,
        place,
        used=human if robot is not None else None,
        rows=_own_rows(recipe.train),
        num_steps=recipe.train.num_steps,
        num_readers=recipe.num_readers,
        steps_together=recipe.num_steps_together,
    )

    def batch_at(step: int) -> dict[str, Tensor]:
        windows = batches.at(step)
        u = draws(recipe.seed, "tokenizer", step, batch_size, 4)
        if robot is not None:
            from_robot = ~human(step)
            windows[from_robot] = robot[(u[from_robot, 0] * len(robot)).astype(np.int64)]
        patches = (spec.image_size_px // spec.patch_size_px) ** 2
        hidden = draws(recipe.seed, "tokenizer/hidden", step, batch_size, length * patches)
        return {
            "frames": to_frames(windows),
            # Half of the windows are whole, so that encoding whole frames, which is all its users do, is practised.
            "mask_draw": torch.from_numpy(np.maximum(0, 2 * u[:, 2] - 1)).float(),
            "mask_noise": torch.from_numpy(hidden.reshape(batch_size, length, patches)).float(),
        }

    with _batches(work, "heldout", HELDOUT_FRAMES, _evenly) as held:
        seen = to_frames(held.at(0))

    def validate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, VideoTokenizer)
        return {"heldout_psnr_db": psnr_db(model, seen, windows_at_once(recipe))}

    given = arguments(spec)
    torch.manual_seed(recipe.seed)
    with batches:
        result = work.train(
            VideoTokenizer(**given),
            recipe.train,
            batch_at,
            recipe.seed,
            described(VideoTokenizer, given),
            validate=validate,
            batch_ids=batches.ids,
            forward_flops_per_sample=tokenizer_flops(given, length),
            frames_per_sample=length,
            tokens_per_frame=(spec.image_size_px // spec.patch_size_px) ** 2,
        )
    assert batches.quarantine is not None
    return {**result, **batches.seen(recipe.train.num_steps).to_dict(), "quarantined": len(batches.quarantine)}


def windows_at_once(recipe: TokenizerRecipe) -> int:
    """Held-out windows rebuilt in one call: all of them where that is little, else no more than a backward pass has."""
    patches = recipe.window_frames * (recipe.tokenizer.image_size_px // recipe.tokenizer.patch_size_px) ** 2
    if HELDOUT_FRAMES * patches <= REBUILT_PATCHES:
        return HELDOUT_FRAMES
    return max(1, min(REBUILT_PATCHES // patches, recipe.train.micro_batch_size or HELDOUT_FRAMES))


def psnr_db(model: VideoTokenizer, windows_BTCHW: Tensor, at_once: int) -> float:
    """Signal to noise of the rebuilt frames, uint8 [B, T, 3, H, W], `at_once` windows in one call."""
    device = next(model.parameters()).device
    error = torch.zeros((), device=device)
    for some in torch.split(windows_BTCHW, at_once):
        frames = some.to(device).float() / 255
        squares = (model.decode(model.encode(frames)) - frames).square()
        error += squares.mean() * (len(some) / len(windows_BTCHW))
    return float(-10 * torch.log10(error))


def _batches(
    work: Work, which: str, batch_size: int, draw: Callable[[int, int], NDArray[np.float64]], **reading: Any
) -> WindowBatches:
    """Windows of the subset's "manifest" or "heldout" clips; what cannot be read is noted in the run folder."""
    recipe = work.recipe(TokenizerRecipe)
    clips = index_clips(work.input("subset") / f"{which}.parquet", work.out / "clips")
    quarantine = Quarantine(
        work.out / f"quarantine-{which}.jsonl",
        len(clips),
        recipe.max_quarantined_fraction,
        work.run.event,
        f"{which}.parquet of {work.input('subset')}",
        work.quarantined,
    )
    table = WindowTable.on_disk(clips, recipe.window_frames, recipe.rate_hz)
    source = FrameWindows(clips, recipe.tokenizer.image_size_px)
    return WindowBatches(source, table, recipe.window_frames, batch_size, draw, quarantine, **reading)


def _evenly(step: int, attempt: int) -> NDArray[np.float64]:
    """Held-out windows at equal distances; in the place of one that cannot be read, drawn ones."""
    if attempt:
        return draws(0, f"tokenizer/heldout/redraw-{attempt}", step, HELDOUT_FRAMES, 1)[:, 0]
    return (np.arange(HELDOUT_FRAMES) + 0.5) / HELDOUT_FRAMES


def _own_rows(spec: TrainSpec) -> NDArray[np.bool_]:
    """Samples of the global batch that this rank computes: [B]. It need not read the others."""
    found = address(os.environ)
    mine = np.zeros(spec.batch_size, np.bool_)
    for rows in rank_rows(spec.batch_size, found[0] if found else Ranks(0, 1, 0), spec.micro_batch_size):
        mine[rows] = True
    return mine


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
