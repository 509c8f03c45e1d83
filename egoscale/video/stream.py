"""What a video file says of itself, when its frames are shown, and how it fails."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class DecodeError(ValueError):
    """A file that `decoder` cannot read, or not beyond its first `frame_index` frames."""

    def __init__(self, path: Path, frame_index: int, decoder: str, cause: str) -> None:
        super().__init__(f"{path}: {decoder} fails at frame {frame_index}: {cause}")
        self.path, self.frame_index, self.decoder, self.cause = path, frame_index, decoder, cause

    def __reduce__(self) -> tuple[Any, ...]:
        return (DecodeError, (self.path, self.frame_index, self.decoder, self.cause))


@dataclass(frozen=True)
class StreamInfo:
    """What a file says about its video; only decoding proves it."""

    num_frames: int  # shown frames: those which an edit list cuts away are not counted
    fps_num: int  # frames per second as a fraction; 0/1 where the file gives none
    fps_den: int
    width_px: int  # as shown, after rotation
    height_px: int
    rotation_deg: int  # clockwise turn, 0 to 270, that shows the stored picture upright; `frames` applies it
    codec: str
    pix_fmt: str
    bit_depth: int
    duration_s: float  # num_frames / frame rate; 0 without a frame rate
    start_s: float  # time stamp of the first frame
    has_edit_list: bool  # an edit list hides stored frames
    num_video_streams: int


@dataclass(frozen=True)
class FrameTable:
    """Time stamps of the shown frames in display order, and the indices of the key frames among them.

    Where the time stamps tell nothing (missing, twice, unordered), `index` is empty and frames are counted.
    """

    pts: list[int]
    index: dict[int, int]
    keys: list[int]

    @classmethod
    def of(cls, times: list[int], key_times: list[int]) -> FrameTable:
        pts = sorted(times)
        index = {time: i for i, time in enumerate(pts)}
        return cls(pts, index, sorted(index[time] for time in key_times))

    @classmethod
    def counted(cls, num_frames: int) -> FrameTable:
        return cls(list(range(num_frames)), {}, [])

    def key_before(self, index: int) -> int:
        """The last key frame at or before a frame; 0 where none is known."""
        at = bisect.bisect_right(self.keys, index)
        return self.keys[at - 1] if at else 0


def first_line(error: BaseException) -> str:
    """The message without the source position, stack trace and addresses that decord prints with it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    for mark in ("Check failed: ", "] "):
        if line.startswith("[") and mark in line:
            line = line.rsplit(mark, 1)[1]
    return line.rsplit("/src/", 1)[-1][:200]
