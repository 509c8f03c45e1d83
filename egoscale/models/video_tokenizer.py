"""Frames to latent tokens and back: a causal masked autoencoder with a tanh bottleneck (after Dreamer 4).

Shapes: B batch, T frames, C channels, H height, W width, P patches of a frame, N latent tokens of a frame, D numbers
of a latent. Frames are floats in [0, 1]; latents lie in (-1, 1).
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoscale.models.blocks import SpaceTimeStack, places


def patches(frames_BTCHW: Tensor, size_px: int) -> Tensor:
    """Cut frames into square patches: [B, T, P, C * size * size], row by row."""
    B, T, C, H, W = frames_BTCHW.shape
    grid = frames_BTCHW.view(B, T, C, H // size_px, size_px, W // size_px, size_px)
    return grid.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, T, (H // size_px) * (W // size_px), -1)


def frames_of(patches_BTPX: Tensor, size_px: int) -> Tensor:
    """The inverse of `patches` for square RGB frames."""
    B, T, P, _ = patches_BTPX.shape
    side = isqrt(P)
    grid = patches_BTPX.view(B, T, side, side, 3, size_px, size_px)
    return grid.permute(0, 1, 4, 2, 5, 3, 6).reshape(B, T, 3, side * size_px, side * size_px)


class VideoTokenizer(nn.Module):
    """Patches -> `num_latents` tokens of `latent_dim` numbers per frame -> patches.

    A latent token stands for a cell of the frame: `num_latents` cells in a square grid, each read from the patches it
    covers. Latents that keep their place let the latent action model and the agent say *where* (research showed the
    place of the hand to be what small models learn last). While training, a random share of the patches is hidden
    from the encoder, up to `max_mask_fraction`; the decoder rebuilds all of them (MAE, arXiv 2111.06377).
    """

    def __init__(
        self,
        image_size_px: int,
        patch_size_px: int,
        num_latents: int,
        latent_dim: int,
        max_mask_fraction: float,
        encoder: dict[str, Any],
        decoder: dict[str, Any],
    ) -> None:
        super().__init__()
        side, cells = image_size_px // patch_size_px, isqrt(num_latents)
        if side * patch_size_px != image_size_px:
            raise ValueError(f"image_size_px {image_size_px} is no multiple of patch_size_px {patch_size_px}")
        if cells * cells != num_latents or side % cells:
            raise ValueError(
                f"num_latents {num_latents} must be a square whose side divides the {side} patches of a row"
            )
        self.image_size_px, self.patch_size_px = image_size_px, patch_size_px
        self.num_latents, self.latent_dim = num_latents, latent_dim
        self.max_mask_fraction = max_mask_fraction
        self.side, self.cells = side, cells
        pixels = 3 * patch_size_px * patch_size_px
        share = (side // cells) ** 2  # patches of a cell
        self.patch_in = nn.Linear(pixels, encoder["width"])
        self.place_in = nn.Parameter(places(side * side, encoder["width"]))
        self.hidden = nn.Parameter(torch.randn(encoder["width"]) * 0.02)
        self.encoder = SpaceTimeStack(**encoder)
        self.to_latent = nn.Linear(share * encoder["width"], latent_dim)
        self.from_latent = nn.Linear(latent_dim, share * decoder["width"])
        self.place_out = nn.Parameter(places(side * side, decoder["width"]))
        self.decoder = SpaceTimeStack(**decoder)
        self.patch_out = nn.Linear(decoder["width"], pixels)

    def _gather(self, x_BTPX: Tensor) -> Tensor:
        """Patches of each cell side by side: [B, T, P, X] -> [B, T, N, share * X]."""
        B, T, _, X = x_BTPX.shape
        k = self.side // self.cells
        grid = x_BTPX.view(B, T, self.cells, k, self.cells, k, X).transpose(3, 4)
        return grid.reshape(B, T, self.num_latents, k * k * X)

    def _scatter(self, x_BTNX: Tensor) -> Tensor:
        B, T, _, X = x_BTNX.shape
        k = self.side // self.cells
        grid = x_BTNX.view(B, T, self.cells, self.cells, k, k, X // (k * k)).transpose(3, 4)
        return grid.reshape(B, T, self.side * self.side, X // (k * k))

    def encode(self, frames_BTCHW: Tensor, mask_BTP: Tensor | None = None) -> Tensor:
        """Frames [B, T, 3, H, W] in [0, 1] -> latents [B, T, N, D] in (-1, 1). `mask_BTP` is True where hidden."""
        x = self.patch_in(patches(frames_BTCHW, self.patch_size_px) * 2 - 1)
        if mask_BTP is not None:
            x = torch.where(mask_BTP[..., None], self.hidden.to(x.dtype), x)
        return torch.tanh(self.to_latent(self._gather(self.encoder(x + self.place_in))))

    def decode(self, latents_BTND: Tensor) -> Tensor:
        """Latents [B, T, N, D] -> frames [B, T, 3, H, W], in [0, 1] up to the model's error."""
        x = self._scatter(self.from_latent(latents_BTND)) + self.place_out
        return frames_of((self.patch_out(self.decoder(x)).float() + 1) / 2, self.patch_size_px)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss of `frames` (uint8 [B, T, 3, H, W]); `mask_draw` [B] and `mask_noise` [B, T, P] say what is hidden."""
        frames = batch["frames"].float() / 255
        mask = batch["mask_noise"] < batch["mask_draw"][:, None, None] * self.max_mask_fraction
        rebuilt = self.decode(self.encode(frames, mask))
        error = F.mse_loss(rebuilt, frames)
        # Absolute error beside the square keeps small bright objects from being averaged away.
        loss = error + 0.2 * F.l1_loss(rebuilt, frames)
        return {"loss": loss, "psnr_db": -10 * torch.log10(error.detach())}
