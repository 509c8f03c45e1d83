"""Windows of clips by arithmetic: a number in [0, 1) is a clip and a first frame, and needs no state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


class WindowTable:
    """All windows of `min_frames` frames in a list of clips, as equal parts of [0, 1).

    A clip of n frames holds n - min_frames + 1 windows (none where that is below 1), so each window, not each
    clip, is equally likely: long clips weigh by their length.
    """

    def __init__(self, clip_ids: Sequence[str], num_frames: Sequence[int], min_frames: int) -> None:
        """Raises ValueError where lengths differ, min_frames < 1, or no clip is long enough."""
        if len(clip_ids) != len(num_frames):
            raise ValueError(f"{len(clip_ids)} clip ids and {len(num_frames)} frame counts")
        if min_frames < 1:
            raise ValueError(f"min_frames = {min_frames}: a window holds at least 1 frame")
        self.clip_ids = list(clip_ids)
        self.min_frames = min_frames
        frames = np.asarray(num_frames, dtype=np.int64)
        windows = np.maximum(frames - min_frames + 1, 0)
        self._ends = np.cumsum(windows)
        self.num_windows = int(self._ends[-1]) if len(windows) else 0
        self.too_short = [clip for clip, count in zip(self.clip_ids, windows, strict=True) if not count]
        if not self.num_windows:
            longest = int(frames.max()) if len(frames) else 0
            raise ValueError(
                f"no window of {min_frames} frames in {len(self.clip_ids)} clips, the longest of {longest}:"
                " ask for shorter windows or longer clips"
            )
        self._starts = self._ends - windows

    def locate(self, u: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """u: numbers in [0, 1), any shape. Returns index of the clip and first frame, both of that shape."""
        numbers = np.asarray(u, dtype=np.float64)
        if numbers.size and not ((numbers >= 0) & (numbers < 1)).all():
            raise ValueError("u must lie in [0, 1)")
        # The product of a number just below 1 may round up to num_windows.
        window = np.minimum((numbers * self.num_windows).astype(np.int64), self.num_windows - 1)
        clip = np.searchsorted(self._ends, window, side="right")
        return clip.astype(np.int64), window - self._starts[clip]
