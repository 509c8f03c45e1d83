"""Decode a file once: what of it can be trained on, and the scores that need every frame."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from egoscale.video.decode import DecodeError, StreamInfo, Video, open_video
from egoscale.video.luma import luma_grid
from egoscale.video.picture import Frames
from egoscale.video.place import contents
from egoscale.video.stream import first_line
from egoscale.video.workers import alive

CELLS = 32  # the scores look at the mean luma on a grid of 32 x 32
# Defaults of FFmpeg's blackdetect: a pixel is black under 10 % of full luma, a frame when 98 % of it is.
BLACK_LUMA, BLACK_SHARE = 0.10 * 255, 0.98
# Default of FFmpeg's freezedetect (-60 dB): mean absolute difference to the frame before, of full luma.
FROZEN_DIFFERENCE = 0.001 * 255
CHUNK_FRAMES, CHUNK_BYTES = 16, 64 * 2**20
# Above what any camera gives: a container that puts the ticks of its clock (90,000 Hz) in place of a frame rate.
MAX_FPS_HZ = 1000
NEVER = 2**62  # beyond the last frame of any file
Span = tuple[float, float | None]  # where a clip begins in its file and how long it is, in seconds; None = to the end


@dataclass(frozen=True)
class FileProbe:
    """The columns of the catalogue that the file itself decides, for one clip of it."""

    duration_s: float  # decodable: decoded frames / frame rate
    fps_num: int
    fps_den: int
    num_frames: int  # decoded, of the clip
    first_frame: int  # index of the clip's first frame in its file
    width_px: int
    height_px: int
    rotation_deg: int
    codec: str | None
    gop_frames: float | None  # mean distance of key frames
    bytes: int  # of the file
    sha256: str | None  # of the file
    decoder: str | None
    decoder_reason: str | None
    irregular_fraction: float | None  # of the file's frame intervals: more than 10 % off the median
    black_fraction: float | None  # of the frames
    frozen_fraction: float | None  # of the steps from frame to frame; None with a single frame
    mean_luma: float | None  # 0 to 255
    usable: bool
    reason: str | None  # why it is not usable


def probe_file(path: Path) -> FileProbe:
    """Decodes a file from end to end. Whatever is wrong with it is in the answer; nothing is raised."""
    return probe_clips(path, [(0.0, None)])[0]


def probe_clips(path: Path, spans: Sequence[Span]) -> list[FileProbe]:
    """Decodes the parts of a file that its clips cover, each frame once, and answers for each clip.

    A clip [start, start + duration) holds the frames whose time, give or take half a frame, is in it: clips that
    follow each other share none and lose none. One that reaches beyond the file ends with it.

    Whatever is wrong is in the answers; nothing is raised.
    """
    try:
        size, digest = _contents(path)
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return [unreadable(0, None, f"cannot be read: {cause}")] * len(spans)
    if size == 0:
        return [unreadable(0, digest, "the file is empty (0 bytes)")] * len(spans)
    try:
        with open_video(path) as video:
            return _probe(video, spans, size, digest)
    except (DecodeError, OSError) as error:
        cause = error.cause if isinstance(error, DecodeError) else str(error)
    except Exception as error:  # foreign code over a damaged file may raise anything
        cause = f"{type(error).__name__}: {first_line(error)}"
    return [unreadable(size, digest, f"no frame can be decoded: {cause}")] * len(spans)


def _probe(video: Video, spans: Sequence[Span], size: int, digest: str) -> list[FileProbe]:
    info = video.probe()
    faults = [_fault(span, info) for span in spans]
    parts = [clip_frames(video, span) for span, fault in zip(spans, faults, strict=True) if fault is None]
    runs = [_decode(video, first, end) for first, end in _merged(parts)]
    whole = unreadable(size, digest, "")
    whole = replace(
        whole,
        fps_num=info.fps_num,
        fps_den=info.fps_den,
        width_px=info.width_px,
        height_px=info.height_px,
        rotation_deg=info.rotation_deg,
        codec=info.codec,
        gop_frames=info.gop_frames,
        irregular_fraction=info.irregular_fraction,
        decoder=video.decoder,
        decoder_reason=video.decoder_reason,
    )
    known = iter(parts)  # one for each span without a fault
    return [
        _of_clip(whole, info, next(known), runs) if fault is None else replace(whole, reason=fault) for fault in faults
    ]


def _fault(span: Span, info: StreamInfo) -> str | None:
    """Why a span can be none of this file, whatever its frames are; None where it may be."""
    start_s, duration_s = span
    if not isfinite(start_s):
        return f"the clip begins at {start_s} s, which is no time"
    if round(start_s * info.fps_num / info.fps_den) < 0:
        return f"the clip begins at {start_s:.2f} s, before its file"
    if duration_s is not None and isnan(duration_s):
        return "the clip has no length: nan s"
    return None


Part = tuple[int, int]  # frames [first, end) of a file; an end of NEVER = to the end, wherever that proves to be


def clip_frames(video: Video, span: Span) -> Part:
    """The frames of a clip: by their own times where these are uneven, by the frame rate where they are not."""
    start_s, duration_s = span
    info = video.probe()
    rate = info.fps_num / info.fps_den
    times_s = video.times_s() if info.irregular_fraction else None

    def frame_at(seconds: float) -> int:
        if times_s is None:
            return round(seconds * rate)
        return int(np.searchsorted(times_s, seconds - 0.5 * np.median(np.diff(times_s))))

    first = min(frame_at(start_s), NEVER) if start_s else 0
    if duration_s is None or not rate or start_s + duration_s >= info.duration_s:
        return first, NEVER
    return first, frame_at(start_s + duration_s)


def _merged(parts: Sequence[Part]) -> Iterator[Part]:
    """The frames that any clip covers, as ranges that do not meet, in order."""
    merged: list[Part] = []
    for first, end in sorted(parts):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((first, end))
    yield from merged


@dataclass(frozen=True)
class _Run:
    """What came of decoding frames from `first` on: mean luma, blackness, difference to the frame before, each [T]."""

    first: int
    luma: NDArray[np.float64]
    black: NDArray[np.bool_]
    steps: NDArray[np.float64]  # of the first frame: not a number
    reason: str | None  # why it ended too early

    @property
    def end(self) -> int:
        return self.first + len(self.luma)


def _decode(video: Video, first: int, end: int) -> _Run:
    info = video.probe()
    chunk = max(1, min(CHUNK_FRAMES, CHUNK_BYTES // max(1, info.height_px * info.width_px * 3)))
    pieces: list[tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]] = []
    last: NDArray[np.float32] | None = None
    at, reason = first, None
    while reason is None and at < min(end, info.num_frames):
        frames_THWC, reason = _read(video, at, min(at + chunk, end, info.num_frames))
        if len(frames_THWC):
            grids_THW = luma_grid(frames_THWC, CELLS)
            pieces.append(_measured(grids_THW, last))
            last, at = grids_THW[-1], at + len(frames_THWC)
        alive()
    if not pieces:
        return _Run(first, np.zeros(0), np.zeros(0, bool), np.zeros(0), reason)
    luma, black, steps = (np.concatenate(column) for column in zip(*pieces, strict=True))
    return _Run(first, luma, black, steps, reason)


def _read(video: Video, at: int, stop: int) -> tuple[Frames, str | None]:
    """Frames [at, stop), or those before the first that cannot be decoded and why not."""
    reason = None
    while stop > at:
        try:
            return video.frames(range(at, stop)), reason
        except DecodeError as error:
            cause = f"{error.decoder} fails at frame {error.frame_index} of {video.probe().num_frames}: {error.cause}"
            # What is named is the first frame that failed; were it the first of all, nothing would be left to read.
            reason, stop = reason or cause, min(error.frame_index, stop - 1)
    return np.zeros((0, 1, 1, 3), np.uint8), reason


def _measured(
    grids_THW: NDArray[np.float32], before_HW: NDArray[np.float32] | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    black = (grids_THW < BLACK_LUMA).mean((1, 2)) >= BLACK_SHARE
    begin = np.full_like(grids_THW[:1], np.nan) if before_HW is None else before_HW[None]
    steps = np.abs(np.diff(grids_THW, axis=0, prepend=begin)).mean((1, 2), dtype=np.float64)
    return grids_THW.mean((1, 2), dtype=np.float64), black, steps


def _of_clip(whole: FileProbe, info: StreamInfo, part: Part, runs: Sequence[_Run]) -> FileProbe:
    first, stop = part
    run = max((run for run in runs if run.first <= first), key=lambda run: run.first)
    begin = first - run.first
    end = max(begin, min(run.end, stop) - run.first)
    num_frames, rate = end - begin, info.fps_num / info.fps_den
    reason = run.reason if run.end < stop else None
    if not rate:
        reason = reason or "the file gives no frame rate, so its seconds are unknown"
    elif rate > MAX_FPS_HZ:
        reason = reason or f"{rate:g} frames a second: the time base of the file is broken"
    elif not num_frames and first >= info.num_frames:
        reason = f"the clip begins at {first / rate:.2f} s, the file ends at {info.num_frames / rate:.2f} s"
    elif not num_frames:
        reason = reason or "the clip is shorter than a frame"
    steps = run.steps[begin + 1 : end]
    return replace(
        whole,
        duration_s=num_frames * info.fps_den / info.fps_num if rate else 0.0,
        num_frames=num_frames,
        first_frame=first,
        black_fraction=float(run.black[begin:end].mean()) if num_frames else None,
        frozen_fraction=float((steps < FROZEN_DIFFERENCE).mean()) if len(steps) else None,
        mean_luma=float(run.luma[begin:end].mean()) if num_frames else None,
        usable=reason is None,
        reason=reason,
    )


def unreadable(size: int, digest: str | None, reason: str) -> FileProbe:
    """The answer for a clip of which not one frame is known."""
    return FileProbe(
        duration_s=0.0,
        fps_num=0,
        fps_den=1,
        num_frames=0,
        first_frame=0,
        width_px=0,
        height_px=0,
        rotation_deg=0,
        codec=None,
        gop_frames=None,
        bytes=size,
        sha256=digest,
        decoder=None,
        decoder_reason=None,
        irregular_fraction=None,
        black_fraction=None,
        frozen_fraction=None,
        mean_luma=None,
        usable=False,
        reason=reason,
    )


def _contents(path: Path) -> tuple[int, str]:
    """Bytes of a clip's file, and their SHA-256."""
    digest, size = hashlib.sha256(), 0
    for block in contents(path):
        digest.update(block)
        size += len(block)
        alive()
    return size, digest.hexdigest()
