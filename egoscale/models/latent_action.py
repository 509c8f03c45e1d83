"""Latent actions: what changed between two frames, as a few numbers, learned without labels.

Shapes: B pairs of frames, N latent tokens of a frame, D numbers of a latent, A numbers of a latent action.

The encoder sees two frames of one take, a recorded number of frames apart; a bottleneck passes A numbers; the decoder
rebuilds the second frame from the first and those numbers. What the bottleneck must carry is what the first frame
does not tell: where the hand went. Continuous codes with a KL weight as in DreamDojo (arXiv 2602.06949), but with
free bits and a weight large enough to matter; FSQ (arXiv 2309.15505) behind the same interface.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoscale.models.blocks import SpaceTimeStack, places

NUM_POINTS = 8  # places that one latent action can name


class LatentActionModel(nn.Module):
    """(first frame, second frame) -> latent action; (first frame, latent action, stride) -> second frame.

    The stride goes to the decoder alone: the code then need not carry it, and means the same at every stride.
    """

    def __init__(
        self,
        num_latents: int,
        latent_dim: int,
        action_dim: int,
        max_stride_frames: int,
        bottleneck: str,
        beta: float,
        free_bits_nats: float,
        fsq_levels: int,
        changed_weight: float,
        encoder: dict[str, Any],
        decoder: dict[str, Any],
    ) -> None:
        super().__init__()
        self.num_latents, self.latent_dim, self.action_dim = num_latents, latent_dim, action_dim
        self.max_stride_frames, self.bottleneck = max_stride_frames, bottleneck
        self.beta, self.free_bits_nats, self.fsq_levels = beta, free_bits_nats, fsq_levels
        self.changed_weight = changed_weight
        wide, narrow = encoder["width"], decoder["width"]
        self.pair_in = nn.Linear(3 * latent_dim, wide)
        self.encoder_place = nn.Parameter(places(num_latents, wide))
        self.encoder = SpaceTimeStack(**encoder)
        # Read-out by soft-argmax: each of `NUM_POINTS` maps attends to places and reports where (x, y) and what.
        self.attend = nn.Linear(wide, NUM_POINTS)
        self.what = nn.Linear(wide, 16)
        self.to_code = nn.Linear(NUM_POINTS * 18, 2 * action_dim)
        self.frame_in = nn.Linear(latent_dim, narrow)
        self.decoder_place = nn.Parameter(places(num_latents, narrow))
        self.decoder_stride = nn.Embedding(max_stride_frames + 1, narrow)
        # The code names points; each cell of the frame learns how far it lies from them. A code can then say "there"
        # after a few hundred steps; as a plain conditioning vector it could not (docs/journal.md).
        self.to_points = nn.Linear(action_dim, 2 * NUM_POINTS)
        self.to_sizes = nn.Linear(action_dim, NUM_POINTS)
        self.map_in = nn.Linear(3 * NUM_POINTS, narrow)
        self.code_in = nn.Linear(action_dim, narrow)
        self.decoder = SpaceTimeStack(**decoder)
        self.frame_out = nn.Linear(narrow, latent_dim)
        nn.init.zeros_(self.frame_out.weight)
        side = isqrt(num_latents)
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        grid_N2 = torch.stack([x, y], -1).reshape(-1, 2) * (2 / (side - 1)) - 1
        self.register_buffer("grid_N2", grid_N2, persistent=False)  # places of the cells, -1..1
        self.grid_N2: Tensor
        # Mean weighted change between the frames of a pair: set from data before training, so that the loss is about
        # 1 for a code that says nothing and `beta` means the same for every tokenizer.
        self.register_buffer("change_scale", torch.ones(()))
        self.change_scale: Tensor

    def encode(self, first_BND: Tensor, second_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [B, A] of the latent action; with FSQ the quantised code and zeros."""
        pair = torch.cat([first_BND, second_BND, second_BND - first_BND], dim=-1)
        x = self.pair_in(pair) + self.encoder_place
        x = self.encoder(x[:, None])[:, 0]
        weight_BPN = self.attend(x).transpose(1, 2).softmax(-1)
        where_BP2 = weight_BPN @ self.grid_N2.to(weight_BPN.dtype)
        read = torch.cat([where_BP2, weight_BPN @ self.what(x)], dim=-1)
        mean, log_variance = self.to_code(read.flatten(1)).float().chunk(2, dim=-1)
        if self.bottleneck == "fsq":
            half = (self.fsq_levels - 1) / 2
            bounded = torch.tanh(mean) * half
            code = bounded + (bounded.round() - bounded).detach()  # straight through
            return code / half, torch.zeros_like(code)
        return mean, log_variance.clamp(-8, 4)

    def _distances(self, code_BA: Tensor) -> Tensor:
        """Offsets from each cell to each point of the code and its nearness: [B, N, 3 * NUM_POINTS]."""
        point_BP2 = self.to_points(code_BA).float().view(-1, NUM_POINTS, 2)
        offset_BNP2 = point_BP2[:, None] - self.grid_N2[None, :, None]
        sharpness_BP = F.softplus(self.to_sizes(code_BA).float() + 2)
        near_BNP = torch.exp(-offset_BNP2.square().sum(-1) * 4 * sharpness_BP[:, None])
        return torch.cat([offset_BNP2.flatten(2), near_BNP], dim=-1)

    def decode(self, first_BND: Tensor, action_BA: Tensor, stride_B: Tensor) -> Tensor:
        """The second frame's latents [B, N, D], from the first frame's and the latent action."""
        x = self.frame_in(first_BND) + self.decoder_place + self.code_in(action_BA)[:, None]
        x = x + self.map_in(self._distances(action_BA))
        x = x + self.decoder_stride(stride_B)[:, None]
        change: Tensor = self.frame_out(self.decoder(x[:, None])[:, 0])
        return first_BND + change.float()

    def weighted(self, first: Tensor, second: Tensor, rebuilt: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of the rebuilt frame, and of predicting no change, per pair; weighted by what moved.

        Unweighted, light and texture fill the code. A token weighs 1 where nothing changed and `changed_weight` where
        it changed as much as the most changed twentieth of its frame.
        """
        change_BN = (second - first).square().mean(-1)
        scale_B1 = torch.quantile(change_BN, 0.95, dim=1, keepdim=True).clamp_min(1e-4)
        weight_BN = 1 + (self.changed_weight - 1) * (change_BN / scale_B1).clamp(max=1)
        weight_BN = weight_BN / weight_BN.sum(1, keepdim=True)
        error_BN = (rebuilt - second).square().mean(-1)
        return (weight_BN * error_BN).sum(1), (weight_BN * change_BN).sum(1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss of pairs: `first`, `second` [B, N, D], `stride` [B], `noise` [B, A], `beta_scale` [B] in [0, 1]."""
        first, second, stride = batch["first"].float(), batch["second"].float(), batch["stride"]
        mean, log_variance = self.encode(first, second)
        code = mean if self.bottleneck == "fsq" else mean + torch.exp(0.5 * log_variance) * batch["noise"]
        rebuilt = self.decode(first, code, stride)
        error_B, still_B = self.weighted(first, second, rebuilt)
        kl_BA = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        kl_A = kl_BA.mean(0)
        # The floor is each pair's own: of a batch's mean it would make the loss depend on how the batch is cut into
        # ranks and passes.
        kl = F.relu(kl_BA - self.free_bits_nats).sum(1).mean() if self.bottleneck == "gaussian" else kl_A.sum() * 0
        loss = error_B.mean() / self.change_scale + self.beta * batch["beta_scale"].mean() * kl
        return {
            "loss": loss,
            "unexplained": (error_B.mean() / still_B.mean()).detach(),  # 1 = the code says nothing
            "kl_nats": kl_A.sum().detach(),
            "active_dims": (kl_A > 0.1).float().sum().detach(),
        }
