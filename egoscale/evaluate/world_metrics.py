"""What a pretrained world model knows, measured without a robot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from egoscale.models.dynamics import WorldModel
from egoscale.video.latents import LatentShards

Floats = NDArray[np.float64]
RIDGE = 1e-3  # of the number of rows; features are standardised
PROBE_TAKES = 600


def ridge_r2(x: Floats, y: Floats, held_x: Floats, held_y: Floats) -> float:
    """R2 on held-out rows of a ridge regression, averaged over the columns of y; at most 1, may be negative."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, held_x = (x - mean) / std, (held_x - mean) / std
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ (y - y.mean(0)))
    error = held_y - y.mean(0) - held_x @ weights
    return float((1 - (error**2).sum(0) / ((held_y - held_y.mean(0)) ** 2).sum(0)).mean())


def true_targets(manifest: pl.DataFrame) -> dict[str, Floats]:
    """Place of the object asked for, per clip: x, y in metres [T, 2]; empty where the data set does not say.

    Only simulated video comes with a `truth.parquet` beside its `takes.csv`; no stage trains on it.
    """
    found: dict[str, Floats] = {}
    for file in {parent / "truth.parquet" for path in manifest["path"] for parent in list(Path(path).parents)[:4]}:
        if not file.is_file():
            continue
        table = pl.read_parquet(file).sort("take_id", "frame")
        by_take = {
            str(take): rows.select("target_x_m", "target_y_m").to_numpy()
            for (take,), rows in table.group_by(["take_id"], maintain_order=True)
        }
        for clip in manifest["clip_id"]:
            take = clip.rsplit("/", 1)[-1]
            if take in by_take:
                found[clip] = by_take[take]
    return found


def target_r2(
    model: WorldModel,
    shards: LatentShards,
    subset: Path,
    words: dict[str, list[int]],
    held_words: dict[str, list[int]],
) -> float | None:
    """Can the place of the object asked for be read linearly from the predicted latent actions, on held-out takes?

    The first frame of each take is used, where the hand does not yet give the answer away. None where the data set
    does not know the place, which is every real one.
    """

    def table(which: str, ids: dict[str, list[int]]) -> tuple[Floats, Floats] | None:
        manifest = pl.read_parquet(subset / f"{which}.parquet").head(PROBE_TAKES)
        places = true_targets(manifest)
        clips = [clip for clip in manifest["clip_id"] if clip in places and clip in ids]
        if len(clips) < 20:
            return None
        codes, place = [], next(model.parameters()).device
        for first in range(0, len(clips), 128):
            some = clips[first : first + 128]
            frames = torch.from_numpy(np.stack([shards.window(clip, 0, 1) for clip in some]))
            said = torch.tensor([ids[clip] for clip in some])
            codes.append(model.agent(frames.to(place), said.to(place))[0].flatten(1).float().cpu())
        return torch.cat(codes).double().numpy(), np.stack([places[clip][0] for clip in clips])

    train, held = table("manifest", words), table("heldout", held_words)
    return None if train is None or held is None else ridge_r2(*train, *held)
