"""The latent-action stage: unlabelled pairs of frames -> weights and a quality gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from egoscale.models.flops import latent_action_flops
from egoscale.models.latent_action import LatentActionModel
from egoscale.recipe import LatentActionRecipe
from egoscale.stages.models import described
from egoscale.stages.work import Work
from egoscale.train.order import draws, normal_rows
from egoscale.video.clips import WindowTable
from egoscale.video.latents import LatentShards
from egoscale.video.seen import Pieces, count_seen

GATE_PAIRS = 512
SCALE_PAIRS = 1024


def latents_of(work: Work, which: str) -> LatentShards:
    """Latents of a subset's clips ("manifest" or "heldout") in its order; clips without latents are left out."""
    shards = LatentShards.open(work.input("encode") / "video")
    return shards.of_manifest(work.input("subset") / f"{which}.parquet", work.out / "clips")


class Pairs:
    """Two frames of one take, a random and recorded number of frames apart, drawn by arithmetic.

    `rate_hz`: the stride counts frames of this rate; None = frames of the clip.
    """

    def __init__(self, shards: LatentShards, max_stride_frames: int, rate_hz: float | None = None) -> None:
        self.shards, self.max_stride_frames = shards, max_stride_frames
        self.table = WindowTable.on_disk(shards.clips, 2, rate_hz)

    def places(self, u: NDArray[np.float64]) -> tuple[NDArray[np.int64], ...]:
        """Clip, first frame, second frame and stride for numbers [B, 2] in [0, 1), each [B].

        Pairs never leave a take, so never cross a cut.
        """
        clip, first = self.table.locate(u[:, 0])
        step = self.table.stride(clip)
        left = self.shards.clips.rows(clip)["num_frames"] - 1 - first
        # The furthest whole stride whose nearest frame is still in the take.
        furthest = np.minimum(np.ceil((left + 0.5) / step).astype(np.int64) - 1, self.max_stride_frames)
        stride = 1 + (u[:, 1] * furthest).astype(np.int64)
        return clip, first, first + np.floor(stride * step + 0.5).astype(np.int64), stride

    def names(self, u: NDArray[np.float64]) -> list[str]:
        """Clip ids for the same numbers."""
        return [self.shards.clips.clip_id(clip) for clip in self.places(u)[0].tolist()]

    def at(self, u: NDArray[np.float64]) -> dict[str, Tensor]:
        clip, first, second, stride = self.places(u)
        pair_B2ND = torch.from_numpy(
            np.concatenate([self.shards.windows(clip, frame, 1) for frame in (first, second)], axis=1)
        )
        return {"first": pair_B2ND[:, 0], "second": pair_B2ND[:, 1], "stride": torch.from_numpy(stride)}


def latent_action(work: Work) -> dict[str, Any]:
    """Train on the subset's takes; gate on the held-out ones."""
    recipe = work.recipe(LatentActionRecipe)
    shards = latents_of(work, "manifest")
    pairs = Pairs(shards, recipe.max_stride_frames, recipe.rate_hz)
    held = Pairs(latents_of(work, "heldout"), recipe.max_stride_frames, recipe.rate_hz)
    spec, batch_size, seed = recipe.model, recipe.train.batch_size, recipe.seed
    given = {
        **spec.model_dump(exclude={"beta_warmup_fraction"}),
        "num_latents": shards.num_tokens,
        "latent_dim": shards.dim,
        "max_stride_frames": recipe.max_stride_frames,
    }
    torch.manual_seed(seed)
    model = LatentActionModel(**given)
    sample = pairs.at(draws(seed, "latent-action/scale", 0, SCALE_PAIRS, 2))
    model.change_scale.copy_(model.weighted(sample["first"], sample["second"], sample["first"])[1].mean())
    anneal = max(1, round(spec.beta_warmup_fraction * recipe.train.num_steps))

    def batch_at(step: int, rows: slice = slice(None)) -> dict[str, Tensor]:
        """A global batch, or these rows of it."""
        shape = (batch_size, spec.action_dim)
        return {
            **pairs.at(draws(seed, "latent-action", step, batch_size, 2)[rows]),
            "noise": torch.from_numpy(normal_rows(seed, "latent-action", step, shape, rows)),
            "beta_scale": torch.full((batch_size,), min(1.0, (step + 1) / anneal))[rows],
        }

    seen = held.at(draws(0, "latent-action/gate", 0, GATE_PAIRS, 2))

    def gate(trained: nn.Module) -> dict[str, float]:
        assert isinstance(trained, LatentActionModel)
        return quality(trained, {name: tensor.to(trained.change_scale.device) for name, tensor in seen.items()})

    result = work.train(
        model,
        recipe.train,
        batch_at,
        seed,
        described(LatentActionModel, given),
        validate=gate,
        batch_ids=lambda step: pairs.names(draws(seed, "latent-action", step, batch_size, 2)),
        forward_flops_per_sample=latent_action_flops(given),
        frames_per_sample=2,
        tokens_per_frame=shards.num_tokens,
        own_rows=True,
    )

    def pieces() -> Iterator[Pieces]:
        for step in range(recipe.train.num_steps):
            clip, first, second, _ = pairs.places(draws(seed, "latent-action", step, batch_size, 2))
            for frame in (first, second):
                yield clip, frame, frame + pairs.table.stride(clip)

    num_frames = recipe.train.num_steps * batch_size * 2
    return {**result, **count_seen(shards.clips, num_frames, pieces).to_dict()}


def quality(model: LatentActionModel, pairs: dict[str, Tensor]) -> dict[str, float]:
    """The gate, on held-out pairs.

    heldout_unexplained: error of the rebuilt frame over the error of "nothing changed" (1 = the code says nothing).
    heldout_shuffled: the same with the codes of other pairs; near heldout_unexplained, the decoder ignores the code.
    heldout_kl_nats, heldout_active_dims: size of the code (KL above .1 nat = active).
    heldout_still: the code's length for a frame paired with itself over its length for real pairs; near 1, the code
    describes the scene instead of the change (appearance leak).
    """
    first, second, stride = pairs["first"].float(), pairs["second"].float(), pairs["stride"]
    mean, log_variance = model.encode(first, second)
    kl_A = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(0)
    error, still = model.weighted(first, second, model.decode(first, mean, stride))
    shuffled, _ = model.weighted(first, second, model.decode(first, mean.roll(1, 0), stride))
    itself, _ = model.encode(first, first)
    return {
        "heldout_unexplained": float(error.mean() / still.mean()),
        "heldout_shuffled": float(shuffled.mean() / still.mean()),
        "heldout_kl_nats": float(kl_A.sum()),
        "heldout_active_dims": float((kl_A > 0.1).sum()),
        "heldout_still": float((itself - itself.mean(0)).norm(dim=1).mean() / (mean - mean.mean(0)).norm(dim=1).mean()),
    }
