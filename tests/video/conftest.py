"""Tiny videos, real ones, and catalogues made of numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from egoscale.video.catalog import SCHEMA

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    """The folder of real files beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder `shared` with real videos does not lie beside the repository")
    return SHARED


@pytest.fixture
def numbered() -> Callable[..., np.ndarray]:
    """uint8 [T, H, W, 3] that tell their index: a flat grey that rises by 8 a frame, on a black rim."""

    def frames(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
        frames = np.zeros((num_frames, height, width, 3), np.uint8)
        frames[:, 4:-4, 4:-4] = (16 + 8 * (np.arange(num_frames) % 28))[:, None, None, None]
        return frames

    return frames


@pytest.fixture
def write_video(tmp_path: Path) -> Callable[..., Path]:
    """Writes uint8 [T, H, W, 3] to an mp4 (h264) under tmp_path."""
    import av

    def write(
        name: str,
        frames: np.ndarray,
        fps: int = 10,
        pix_fmt: str = "yuv420p",
        gop: int = 12,
        b_frames: int = 2,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
            stream.options = {"crf": "12", "g": str(gop), "bf": str(b_frames)}
            stream.codec_context.thread_count = 1
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def make_catalog() -> Callable[..., pl.DataFrame]:
    """A catalogue from lists of a few columns; the rest is filled in."""

    def make(**columns: list[object]) -> pl.DataFrame:
        height = len(next(iter(columns.values())))
        clips = [f"clip-{i:04d}" for i in range(height)]
        filled: dict[str, list[object]] = {
            "clip_id": list(clips),
            "path": [f"/videos/{clip}.mp4" for clip in clips],
            "source": ["lab"] * height,
            "recording_id": list(clips),
            "start_s": [0.0] * height,
            "duration_s": [3600.0] * height,
            "fps_num": [30] * height,
            "fps_den": [1] * height,
            "num_frames": [108_000] * height,
            "width_px": [640] * height,
            "height_px": [360] * height,
            "sha256": list(clips),
            "black_fraction": [0.0] * height,
            "frozen_fraction": [0.0] * height,
            "usable": [True] * height,
        }
        filled.update(columns)
        empty = {name: [None] * height for name in SCHEMA if name not in filled}
        return pl.DataFrame({**filled, **empty}, schema_overrides=SCHEMA).select(*SCHEMA)

    return make
