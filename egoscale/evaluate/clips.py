"""Rollouts as moving pictures, for the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ENLARGE = 3  # a 64 px frame is a stamp on today's screens


def write_gif(path: Path, frames_THWC: NDArray[np.uint8], fps_hz: float) -> None:
    """Write frames [T, H, W, 3] as an endless GIF, enlarged without smoothing; whole or absent."""
    from PIL import Image

    size = (frames_THWC.shape[2] * ENLARGE, frames_THWC.shape[1] * ENLARGE)
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.NEAREST) for frame in frames_THWC]
    part = path.with_name(f".{path.name}.part")
    pictures[0].save(
        part, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps_hz), loop=0
    )
    part.rename(path)
