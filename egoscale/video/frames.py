"""Frames of clips by window, with the decoded clips used last kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from egoscale.video.decode import open_video


class ClipFrames:
    """Decoded clips of a manifest (catalogue columns), square of `size_px`, at most `max_bytes` of them in memory."""

    def __init__(self, manifest: pl.DataFrame, size_px: int, max_bytes: int = 2_000_000_000) -> None:
        if not manifest.height:
            raise ValueError("the manifest is empty: no clip to read")
        self.size_px, self.max_bytes = size_px, max_bytes
        self.rows: Mapping[str, dict[str, Any]] = {row["clip_id"]: row for row in manifest.iter_rows(named=True)}
        self._held: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0

    @property
    def clip_ids(self) -> list[str]:
        return list(self.rows)

    @property
    def num_frames(self) -> list[int]:
        return [int(row["num_frames"]) for row in self.rows.values()]

    def clip(self, clip_id: str) -> NDArray[np.uint8]:
        """All frames of a clip: uint8 [T, size_px, size_px, 3].

        Raises:
            DecodeError: the file no longer decodes to what the catalogue counted.
        """
        if clip_id in self._held:
            self._held.move_to_end(clip_id)
            return self._held[clip_id]
        row = self.rows[clip_id]
        with open_video(row["path"], row["decoder"]) as video:
            frames = video.frames(range(int(row["num_frames"])), self.size_px)
        self._held[clip_id] = frames
        self._bytes += frames.nbytes
        while self._bytes > self.max_bytes and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return frames

    def windows(self, clips: Sequence[str], starts: Sequence[int], length: int) -> NDArray[np.uint8]:
        """Windows of `length` frames: uint8 [B, length, size_px, size_px, 3]."""
        return np.stack([self.clip(c)[s : s + length] for c, s in zip(clips, starts, strict=True)])
