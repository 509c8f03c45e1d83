"""Decode a whole file once: what can be trained on, and the scores that rules look at."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from egoscale.video.decode import DecodeError, StreamInfo, Video, open_video
from egoscale.video.picture import grid_means

CELLS = 32  # the scores look at the mean luma on a grid of 32 x 32
# Defaults of FFmpeg's blackdetect: a pixel is black under 10 % of full luma, a frame when 98 % of it is.
BLACK_LUMA, BLACK_SHARE = 0.10 * 255, 0.98
# Default of FFmpeg's freezedetect (-60 dB): mean absolute difference to the frame before, of full luma.
FROZEN_DIFFERENCE = 0.001 * 255
CHUNK_FRAMES = 16


@dataclass(frozen=True)
class FileProbe:
    """The columns of the catalogue that the file itself decides."""

    duration_s: float  # decodable: decoded frames / frame rate
    fps_num: int
    fps_den: int
    num_frames: int  # decoded
    width_px: int
    height_px: int
    rotation_deg: int
    codec: str | None
    bytes: int
    sha256: str | None
    decoder: str | None
    decoder_reason: str | None
    black_fraction: float | None  # of the frames
    frozen_fraction: float | None  # of the steps from frame to frame; None with a single frame
    mean_luma: float | None  # 0 to 255
    usable: bool
    reason: str | None  # why it is not usable


def probe_file(path: Path) -> FileProbe:
    """Decodes a file from end to end. Whatever is wrong with it is in the answer; nothing is raised."""
    try:
        size, digest = path.stat().st_size, _sha256(path)
    except OSError as error:
        return _unreadable(0, None, f"cannot be read: {error.strerror or error}")
    if size == 0:
        return _unreadable(0, digest, "the file is empty (0 bytes)")
    try:
        with open_video(path) as video:
            return _decode_whole(video, size, digest)
    except (DecodeError, OSError) as error:
        cause = error.cause if isinstance(error, DecodeError) else str(error)
        return _unreadable(size, digest, f"no frame can be decoded: {cause}")


def _decode_whole(video: Video, size: int, digest: str) -> FileProbe:
    grids: list[NDArray[np.float32]] = []
    decoded, reason = 0, None
    num_frames = video.probe().num_frames
    while decoded < num_frames:
        wanted = min(CHUNK_FRAMES, num_frames - decoded)
        try:
            grids.append(grid_means(video.frames(range(decoded, decoded + wanted)), CELLS))
        except DecodeError as error:
            reason = f"{error.decoder} fails at frame {error.frame_index} of {num_frames}: {error.cause}"
            if error.frame_index > decoded:
                grids.append(grid_means(video.frames(range(decoded, error.frame_index)), CELLS))
                decoded = error.frame_index
            break
        decoded += wanted
        num_frames = video.probe().num_frames  # another decoder may have stepped in, and counts differently
    info = video.probe()
    if reason is None and not info.fps_num:
        reason = "the file gives no frame rate, so its seconds are unknown"
    return _scored(info, video, size, digest, decoded, grids, reason)


def _scored(
    info: StreamInfo,
    video: Video,
    size: int,
    digest: str,
    decoded: int,
    grids: list[NDArray[np.float32]],
    reason: str | None,
) -> FileProbe:
    luma = np.concatenate(grids) if grids else np.zeros((0, CELLS, CELLS), np.float32)
    steps = np.abs(np.diff(luma, axis=0)).mean((1, 2))
    black = (luma < BLACK_LUMA).mean((1, 2)) >= BLACK_SHARE
    return FileProbe(
        duration_s=decoded * info.fps_den / info.fps_num if info.fps_num else 0.0,
        fps_num=info.fps_num,
        fps_den=info.fps_den,
        num_frames=decoded,
        width_px=info.width_px,
        height_px=info.height_px,
        rotation_deg=info.rotation_deg,
        codec=info.codec,
        bytes=size,
        sha256=digest,
        decoder=video.decoder,
        decoder_reason=video.decoder_reason,
        black_fraction=float(black.mean()) if decoded else None,
        frozen_fraction=float((steps < FROZEN_DIFFERENCE).mean()) if len(steps) else None,
        mean_luma=float(luma.mean()) if decoded else None,
        usable=reason is None,
        reason=reason,
    )


def _unreadable(size: int, digest: str | None, reason: str) -> FileProbe:
    return FileProbe(
        0.0, 0, 1, 0, 0, 0, 0, None, size, digest, None, None, None, None, None, usable=False, reason=reason
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
