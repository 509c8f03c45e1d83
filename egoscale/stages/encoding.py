"""The encode stage: latents of every selected clip and every demonstration, once, shared by all sizes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from egoscale.models.video_tokenizer import VideoTokenizer
from egoscale.recipe import EncodeRecipe
from egoscale.robot.demos import LeRobotDataset
from egoscale.stages.models import device, inference, kept_precision, load
from egoscale.stages.tokenizing import to_frames
from egoscale.stages.work import Work
from egoscale.train.ranks import Ranks, ranks
from egoscale.video.batches import FAILURES
from egoscale.video.clip_index import BATCH_CLIPS
from egoscale.video.decode import open_video
from egoscale.video.latent_writer import finished_clips, write_latents
from egoscale.video.latents import LatentShards
from egoscale.video.quarantine import Quarantine
from egoscale.video.read_ahead import read_ahead

# Frames of a clip that wait to be encoded, in pieces: enough to bridge the opening of the next file.
PIECES_AHEAD = 4
BITS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def encoded(
    tokenizer: VideoTokenizer, frames_THWC: NDArray[np.uint8], batch_frames: int, dtype: str = "float16"
) -> NDArray[Any]:
    """Latents [T, N, D] of the frames of one clip, uint8 [T, H, W, 3]: float16, or bfloat16 as the uint16 of its bits.

    A causal tokenizer sees up to `batch_frames` frames at a time; a tokenizer without temporal attention gives the
    same latents for any `batch_frames`.
    """
    place = next(tokenizer.parameters()).device
    parts = []
    for first in range(0, len(frames_THWC), batch_frames):
        frames = to_frames(frames_THWC[first : first + batch_frames][None]).to(place).float() / 255
        latents = tokenizer.encode(frames)[0].float().cpu().to(BITS[dtype])
        parts.append(latents.view(torch.uint16).numpy() if dtype == "bfloat16" else latents.numpy())
    return np.concatenate(parts)


def demo_id(index: int) -> str:
    """Clip id of a demonstration."""
    return f"demo-{index:06d}"


def encode(work: Work) -> dict[str, Any]:
    """Write `video/` and `demos/`; a killed run goes on at the next shard, on any number of ranks, each of which
    encodes clips of its own."""
    with ranks() as group:
        return _encoded_by(group, work)


def _encoded_by(group: Ranks, work: Work) -> dict[str, Any]:
    recipe = work.recipe(EncodeRecipe)
    tokenizer, _ = load(work.input("tokenizer"), "VideoTokenizer")
    tokenizer.to(device())
    selection = _selected(work.input("select") / "selection.parquet")
    total = int(selection.select(pl.len()).collect().item())
    quarantine = Quarantine(
        work.out / "quarantine.jsonl",
        total,
        recipe.max_quarantined_fraction,
        work.run.event,
        "the selection",
        work.quarantined if group.main else None,
    )
    finished = finished_clips(work.out / "video", group)
    counted = {"frames": 0}

    def video() -> Iterator[tuple[str, NDArray[Any]]]:
        waiting = _rows(selection, lambda clip: clip not in finished and clip not in quarantine, group)
        done = len(finished) + len(quarantine)
        for clip, pieces in _decoded(waiting, tokenizer.image_size_px, recipe.batch_frames, recipe.num_readers):
            work.progress(min(done, total), total, "clips")
            done += group.world_size  # the others are about as far
            try:
                parts = [encoded(tokenizer, frames, recipe.batch_frames, recipe.dtype) for frames in pieces]
                latents = np.concatenate(parts)
            except FAILURES as error:  # it was whole when catalogued: name it, count it, go on
                quarantine.add(clip, str(error))
                continue
            counted["frames"] += len(latents)
            yield clip, latents

    bf16 = kept_precision(work.out / "precision.json", group)
    with inference(bf16):
        kept = work.kept("video")
        write_latents(work.out / "video", video(), recipe.shard_frames, finished, group, kept)
        if "demos" in work.inputs and group.main:
            demos = LeRobotDataset.open(work.input("demos") / "demos")
            write_latents(
                work.out / "demos",
                (
                    (demo_id(i), encoded(tokenizer, episode.frames_THWC, recipe.batch_frames, recipe.dtype))
                    for i, episode in enumerate(demos)
                ),
                recipe.shard_frames,
            )
    shards = LatentShards.open(work.out / "video")
    quarantine.refresh()
    return {
        "clips": len(shards.clips),
        "frames": shards.clips.total_frames,
        "encoded_now": sum(group.gathered(counted["frames"])),
        "quarantined": len(quarantine),
        "dtype": shards.dtype,
        "precision": "bf16" if bf16 else "fp32",
        "torch_threads": torch.get_num_threads(),
    }


def _selected(file: Path) -> pl.LazyFrame:
    """Where the selected clips lie, in the selection's order."""
    clips = pl.scan_parquet(file).filter("selected")
    first = pl.col("first_frame").fill_null(0) if "first_frame" in clips.collect_schema() else pl.lit(0)
    return clips.select("clip_id", "path", "decoder", "num_frames", first.alias("first_frame"))


def _rows(clips: pl.LazyFrame, wanted: Callable[[str], bool], group: Ranks) -> Iterator[dict[str, Any]]:
    """Those of this rank: every so many-th, whichever are done."""
    batches = clips.with_row_index("number").collect_batches(chunk_size=BATCH_CLIPS, maintain_order=True)
    for batch in batches:
        mine = batch.filter(pl.col("number") % group.world_size == group.rank)
        yield from (row for row in mine.iter_rows(named=True) if wanted(row["clip_id"]))


def _decoded(
    rows: Iterator[dict[str, Any]], size_px: int, piece_frames: int, num_readers: int
) -> Iterator[tuple[str, Iterator[NDArray[np.uint8]]]]:
    """Clips in order, each with its frames in pieces; the next clips are being read meanwhile, by a thread each."""
    begun: deque[tuple[str, Iterator[NDArray[np.uint8]]]] = deque()
    for row in rows:
        begun.append((row["clip_id"], read_ahead(_pieces(row, size_px, piece_frames), PIECES_AHEAD)))
        if len(begun) > num_readers:
            yield begun.popleft()
    yield from begun


def _pieces(row: dict[str, Any], size_px: int, piece_frames: int) -> Iterator[NDArray[np.uint8]]:
    first, last = int(row["first_frame"]), int(row["first_frame"]) + int(row["num_frames"])
    with open_video(row["path"], row["decoder"] or "auto") as reader:
        for begin in range(first, last, piece_frames):
            yield reader.frames(range(begin, min(begin + piece_frames, last)), size_px)
