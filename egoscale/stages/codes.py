"""What each frame of a clip leads to: the latent actions (or places of a tracked hand) that a world model learns from.

They are made once, before training, by all ranks, each of clips of its own, and lie in the run's folder as latents do
(`video/latents.py`) until the run is done: a killed run goes on with the clips that have none, on any number of ranks.
What is a token of a frame there is here where the frame leads to: 0 the next frame, then one for each stride.

Shapes: T frames of a clip, K strides, A numbers of a code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from egoscale.recipe import WorldRecipe
from egoscale.stages.models import device, inference, kept_precision, load
from egoscale.stages.work import Work
from egoscale.train.ranks import Ranks
from egoscale.train.watch import Watchdog
from egoscale.video.clips import WindowTable
from egoscale.video.latent_writer import finished_clips, write_latents
from egoscale.video.latents import LatentShards
from egoscale.video.on_disk import write_json

Floats = NDArray[np.float32]
# Numbers of clips -> codes [T, 1 + K, A] in their order; those of a long clip in several pieces. Each with its clip.
Coder = Callable[[list[int]], Iterator[tuple[int, Floats]]]

Steps = Callable[[NDArray[np.int64]], NDArray[np.float64]]  # clips -> frames that a stride of 1 passes over

CODES = "codes"  # folder of a run that is not done
CODE_FLOOR = 0.3  # smallest standard deviation by which a code is scaled: the prior's is 1, a dead dimension's near 0
GROUP_FRAMES = 512  # of short clips that are coded together, at least
CALL_FRAMES = 2048  # coded at once, at most: a long take would not fit in memory
PAIRS_ON_GPU = 2048  # of one call of the latent action model on a GPU
SHARD_FRAMES = 65_536  # 34 MB of four codes of 32 numbers; about what a kill can cost a rank
SUMMED_FRAMES = 2**18  # frames summed in fp32, whose sums of more would stop growing; these sums are added in fp64


def codes_of(work: Work, group: Ranks, which: str, latents: LatentShards) -> LatentShards:
    """Codes float32 [T, 1 + K, A] of every frame of these clips ("manifest" or "heldout"), numbered as their latents.

    Of every frame, also where windows take fewer a second, for any may begin one.

    Raises ValueError for strides that the latent action model was not trained on, or a clip without a tracked hand;
    FileNotFoundError where nothing was tracked.
    """
    recipe = work.recipe(WorldRecipe)
    out = work.out / CODES / which
    if not group.from_main((out / "index.json").is_file() if group.main else None):
        steps = WindowTable.on_disk(latents.clips, 2, recipe.rate_hz).stride
        finished = finished_clips(out, group)
        bf16 = kept_precision(work.out / CODES / "precision.json", group)
        coder = (
            hand_coder(work.input("video"), latents, recipe.strides_frames, steps)
            if recipe.actions == "hand"
            else latent_action_coder(work.input("latent-action"), latents, recipe.strides_frames, steps, bf16)
        )
        with closing(_coded(work, group, recipe.train.hang_timeout_s, latents, coder, finished)) as coded:
            write_latents(out, coded, SHARD_FRAMES, finished, group, work.kept(f"{CODES}/{which}"))
    manifest = work.input("subset") / f"{which}.parquet"
    return LatentShards.open(out).of_manifest(manifest, work.out / CODES / "clips")


def _coded(
    work: Work, group: Ranks, hang_timeout_s: float, latents: LatentShards, coder: Coder, finished: dict[str, int]
) -> Generator[tuple[str, Floats], None, None]:
    """This rank's clips that have no codes yet, with their codes."""
    with Watchdog(work.out, group, hang_timeout_s, work.run.event) as watchdog:
        for number, clips in enumerate(groups(latents)):
            if number % group.world_size != group.rank:
                continue
            names = [latents.clips.clip_id(clip) for clip in clips]
            if all(name in finished for name in names):
                continue
            pieces = _watched(coder(clips), watchdog, names[0])
            for name, (_, parts) in zip(names, groupby(pieces, key=itemgetter(0)), strict=True):
                codes = [part for _, part in parts]
                yield name, codes[0] if len(codes) == 1 else np.concatenate(codes)
            work.progress(clips[-1] + 1, len(latents.clips), "clips")


def _watched(pieces: Iterator[tuple[int, Floats]], watchdog: Watchdog, name: str) -> Iterator[tuple[int, Floats]]:
    doing = f"making codes of clip {name} and those after it"
    watchdog.beat(doing)
    for piece in pieces:
        watchdog.beat(doing)
        yield piece


def groups(latents: LatentShards) -> Iterator[list[int]]:
    """All clips, those next to each other together until they have GROUP_FRAMES."""
    clips: list[int] = []
    held, number = 0, 0
    for rows in latents.clips.chunks():
        for length in rows["num_frames"].tolist():
            clips.append(number)
            held, number = held + length, number + 1
            if held >= GROUP_FRAMES:
                yield clips
                clips, held = [], 0
    if clips:
        yield clips


def ahead(strides: tuple[int, ...], step: float) -> NDArray[np.int64]:
    """How many frames of the clip on a frame leads, [1 + K]: to the next one, then by each stride.

    step: frames of the clip that a stride of 1 passes over.
    """
    return np.floor(np.array([1, *strides]) * step + 0.5).astype(np.int64)


def ends(first: int, last: int, num_frames: int, on: NDArray[np.int64]) -> NDArray[np.int64]:
    """The frames that those from `first` to before `last` lead to, [T, 1 + K], cut at the end of the take."""
    found: NDArray[np.int64] = np.minimum(np.arange(first, last)[:, None] + on, num_frames - 1)
    return found


def latent_action_coder(
    folder: Path,
    latents: LatentShards,
    strides: tuple[int, ...],
    steps: Steps,
    bf16: bool,
) -> Coder:
    """By the frozen latent action model of a run, on this rank's device. steps: of clips, see `ahead`.

    Strides that lead to the same frame, as a first one of 1 does, are coded once.
    """
    model, config = load(folder, "LatentActionModel")
    if max(strides) > config["arguments"]["max_stride_frames"]:
        raise ValueError(
            f"strides_frames {list(strides)} go beyond the max_stride_frames "
            f"{config['arguments']['max_stride_frames']} of {folder}: the codes would be guesses; shorten the strides"
        )
    place = device()
    model.to(place)

    def pieces(clips: list[int]) -> Iterator[list[tuple[int, int, int, int, float]]]:
        """Clip, its frames, the first and the one after the last to be coded, its step; together CALL_FRAMES at most
        where clips are cut, and whole groups where they are not."""
        which = np.array(clips)
        lengths, step = latents.clips.rows(which)["num_frames"].tolist(), steps(which).tolist()
        if sum(lengths) <= CALL_FRAMES:
            yield [(clip, n, 0, n, by) for clip, n, by in zip(clips, lengths, step, strict=True)]
            return
        for clip, n, by in zip(clips, lengths, step, strict=True):
            for first in range(0, n, CALL_FRAMES):
                yield [(clip, n, first, min(first + CALL_FRAMES, n), by)]

    def coded(piece: list[tuple[int, int, int, int, float]]) -> Iterator[tuple[int, Floats]]:
        frames, begins, ended, columns, held = [], [], [], [], 0
        for clip, num_frames, first, last, step in piece:
            on, column = np.unique(ahead(strides, step), return_inverse=True)
            to = ends(first, last, num_frames, on) - first
            frames.append(latents.windows([clip], [first], max(last - first, int(to.max()) + 1))[0])
            begins.append(held + np.repeat(np.arange(last - first), len(on)))
            ended.append(held + to.ravel())
            columns.append(column)
            held += len(frames[-1])
        on_device = torch.from_numpy(np.concatenate(frames)).to(place)
        first_of = torch.from_numpy(np.concatenate(begins)).to(place)
        second_of = torch.from_numpy(np.concatenate(ended)).to(place)
        size = PAIRS_ON_GPU if place.type == "cuda" else len(first_of)
        with inference(bf16):
            means = [
                model.encode(on_device[one], on_device[other])[0].cpu()
                for one, other in zip(torch.split(first_of, size), torch.split(second_of, size), strict=True)
            ]
        found = np.split(torch.cat(means).numpy(), np.cumsum([len(one) for one in begins])[:-1])
        for (clip, _, first, last, _), column, codes in zip(piece, columns, found, strict=True):
            yield clip, codes.reshape(last - first, -1, codes.shape[-1])[:, column]

    def coder(clips: list[int]) -> Iterator[tuple[int, Floats]]:
        for piece in pieces(clips):
            yield from coded(piece)

    return coder


def hand_coder(
    folder: Path,
    latents: LatentShards,
    strides: tuple[int, ...],
    steps: Steps,
) -> Coder:
    """Where the tracked hand will be (metres x 10: about unit variance on a table), cut at the end of the take."""
    file = folder / "hands.parquet"
    if not file.is_file():
        raise FileNotFoundError(f'{file}: actions = "hand" needs tracked hands beside the video')
    table = pl.read_parquet(file).sort("take_id", "frame")
    tracked = {
        str(take): rows.select("x_m", "y_m", "z_m", "opening").to_numpy().astype(np.float32)
        for (take,), rows in table.group_by(["take_id"], maintain_order=True)
    }

    def coder(clips: list[int]) -> Iterator[tuple[int, Floats]]:
        for clip, step in zip(clips, steps(np.array(clips)).tolist(), strict=True):
            name = latents.clips.clip_id(clip)
            take = name.rsplit("/", 1)[-1]
            if take not in tracked:
                raise ValueError(f'{file}: no tracked hand for clip {name!r}; use actions = "latent" for this video')
            hand = tracked[take] * 10
            yield clip, hand[ends(0, len(hand), len(hand), ahead(strides, step))]

    return coder


def scale_of(work: Work, group: Ranks, codes: LatentShards) -> tuple[Floats, Floats]:
    """Mean and standard deviation (CODE_FLOOR at least) of a run's codes, [1 + K, A] each: read once, then kept."""
    file = work.out / CODES / "scale.json"
    if group.main and not file.is_file():
        mean, std = mean_and_std(codes)
        write_json(file, {"mean": mean.tolist(), "std": std.tolist()})
    held: dict[str, Any] = group.from_main(json.loads(file.read_text(encoding="utf-8")) if group.main else None)
    return np.array(held["mean"], np.float32), np.maximum(np.array(held["std"], np.float32), CODE_FLOOR)


def mean_and_std(codes: LatentShards) -> tuple[Floats, Floats]:
    """Over all frames of all clips, [1 + K, A] each, a clip at a time in memory.

    Up to SUMMED_FRAMES frames, those that numpy gives for one array of them all, to the bit.
    """
    num_frames = np.intp(codes.clips.total_frames)

    def clips() -> Iterator[Floats]:
        number = 0
        for rows in codes.clips.chunks():
            for length in rows["num_frames"].tolist():
                yield codes.windows([number], [0], length)[0]
                number += 1

    def averaged(terms: Iterator[Floats]) -> Floats:
        shape = (codes.num_tokens, codes.dim)
        whole, part, held = np.zeros(shape, np.float64), np.zeros((1, *shape), np.float32), 0
        for term in terms:
            # Row after row upon the sum so far, as numpy adds the rows of one array.
            part = np.add.reduce(np.concatenate([part, term]), axis=0, keepdims=True)
            held += len(term)
            if held >= SUMMED_FRAMES:
                whole, part, held = whole + part[0], np.zeros_like(part), 0
        average: Floats = ((whole + part[0]) / num_frames).astype(np.float32)
        return average

    mean = averaged(clips())
    return mean, np.sqrt(averaged(np.square(term - mean) for term in clips()))
