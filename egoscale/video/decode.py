"""Frames of a video file, by index. The one place where a decoder is imported.

decord reads most files and is quick. It cannot read all: measured on decord 0.6.0, it does not open AV1,
ignores edit lists (a cut of 901 frames is given as 1,051), takes another video stream than the first,
converts 10-bit 4:2:0 up to 168 levels away from today's FFmpeg, and fails in the midst of some VP9. For these
PyAV stands behind it; which one reads a file, and why, is on `Video.decoder` and `Video.decoder_reason`. On
8-bit files both give equal frames.

Legend of shapes: T frames, H rows, W columns, C colours (red, green, blue).
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from egoscale.video.container import ContainerReader
from egoscale.video.picture import Frames, square
from egoscale.video.stream import DecodeError, StreamInfo, first_line

__all__ = ["DecodeError", "Frames", "StreamInfo", "Video", "open_video"]

# Frames are decoded in pieces of at most so many bytes, so that a resized hour is never whole in memory.
CHUNK_BYTES = 64 * 2**20


def open_video(path: str | Path, decoder: Literal["auto", "decord", "pyav"] = "auto") -> Video:
    """A video, opened when first read.

    `decoder="auto"` looks at the file with PyAV (header and first frame) and reads it with decord unless a
    reason speaks against it. A name skips the choice and never falls back: for a file whose catalogue row
    names its decoder.

    Raises FileNotFoundError where there is no file; whatever else is wrong shows when the file is read.
    """
    path = Path(path).absolute()  # also keeps a colon in a name from being read as a protocol
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    if decoder not in ("auto", "decord", "pyav"):
        raise ValueError(f"decoder={decoder!r}: say 'auto', 'decord' or 'pyav'")
    return Video(path, decoder)


class Video:
    """One file: `probe()`, `frames(indices)`, `close()`. Use as a context manager.

    May be pickled, and used after a fork: every process opens the file for itself (a decord reader opened by
    the parent hangs in its child).
    """

    def __init__(self, path: Path, decoder: Literal["auto", "decord", "pyav"]) -> None:
        self.path = path
        self._choice = decoder
        self._reader: ContainerReader | _DecordReader | None = None
        self._container: ContainerReader | None = None
        self._reason: str | None = None
        _VIDEOS.add(self)

    @property
    def decoder(self) -> Literal["decord", "pyav"]:
        """Who reads the file."""
        return self._open().name

    @property
    def decoder_reason(self) -> str | None:
        """Why it is not decord; None where it is, or where PyAV was asked for by name."""
        self._open()
        return self._reason

    def probe(self) -> StreamInfo:
        """What the file says of itself. Raises DecodeError where it holds no video that opens."""
        reader = self._open()
        info = self._look().info
        seconds = reader.num_frames * info.fps_den / info.fps_num if info.fps_num else 0.0
        return replace(info, num_frames=reader.num_frames, duration_s=seconds)

    def frames(self, indices: Sequence[int] | NDArray[np.integer[Any]], size_px: int | None = None) -> Frames:
        """Frames at the given indices, in the given order, repeats allowed.

        indices: display order, from 0 to num_frames - 1.
        size_px: None = as stored, turned upright; else the centre square of the picture, averaged by area to
            size_px x size_px.

        Returns uint8 [T, H, W, 3] in red, green, blue.
        Raises ValueError for an index outside the file, DecodeError (file, frame, decoder) where decoding
        fails.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if size_px is not None and size_px < 1:
            raise ValueError(f"size_px={size_px}: at least 1")
        try:
            return self._read(wanted, size_px)
        except DecodeError as error:
            if self._choice != "auto" or error.decoder == "pyav":
                raise
            # The frames decord gave before are equal to PyAV's, so nothing that was read earlier is invalid.
            self._reader = self._look()
            self._reason = f"decord fails at frame {error.frame_index}: {error.cause}"
            return self._read(wanted, size_px)

    def close(self) -> None:
        """Gives the file back. The video opens again when read again."""
        for reader in (self._reader, self._container):
            if reader is not None:
                reader.close()
        self._reader = self._container = None

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Video, (self.path, self._choice))

    def _look(self) -> ContainerReader:
        if self._container is None:
            import av

            self._container = ContainerReader(self.path, av)
        return self._container

    def _open(self) -> ContainerReader | _DecordReader:
        if self._reader is None:
            if self._choice == "auto":
                self._reader = self._choose()
            else:
                self._reader = _DecordReader(self.path) if self._choice == "decord" else self._look()
        return self._reader

    def _choose(self) -> ContainerReader | _DecordReader:
        container = self._look()
        info = container.info
        self._reason = None
        if info.num_video_streams > 1:
            self._reason = f"{info.num_video_streams} video streams: decord may not take the first"
        elif info.rotation_deg:
            self._reason = f"rotation of {info.rotation_deg} degrees in the metadata"
        elif info.has_edit_list:
            self._reason = "an edit list hides frames, which decord ignores"
        elif info.bit_depth > 8:
            self._reason = f"{info.bit_depth} bits a colour, which decord converts differently"
        else:
            try:
                reader = _DecordReader(self.path)
            except DecodeError as error:
                self._reason = f"decord cannot open it: {error.cause}"
            else:
                promised = container.promised_frames
                if reader.num_frames == promised:
                    return reader
                self._reason = f"decord reports {reader.num_frames} frames, the container {promised}"
        return container

    def _read(self, wanted: NDArray[np.int64], size_px: int | None) -> Frames:
        reader = self._open()
        outside = wanted[(wanted < 0) | (wanted >= reader.num_frames)]
        if len(outside):
            last = reader.num_frames - 1
            raise ValueError(f"{self.path}: frame {outside[0]} asked for; the file has 0 to {last}")
        height, width = reader.size_px
        chunk = max(1, CHUNK_BYTES // max(1, height * width * 3))
        pieces = []
        for begin in range(0, len(wanted), chunk):
            frames_THWC = reader.read(wanted[begin : begin + chunk])
            pieces.append(frames_THWC if size_px is None else square(frames_THWC, size_px))
        if not pieces:
            return np.zeros((0, size_px or height, size_px or width, 3), np.uint8)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


_VIDEOS: weakref.WeakSet[Video] = weakref.WeakSet()


def _leave_parent() -> None:
    """In the child of a fork: forget the parent's readers undestroyed, for a destructor waits for threads."""
    for video in _VIDEOS:
        for reader in (video._reader, video._container):
            if reader is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(reader))
        video._reader = video._container = None


os.register_at_fork(after_in_child=_leave_parent)


class _DecordReader:
    name: Literal["decord"] = "decord"

    def __init__(self, path: Path) -> None:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        self.path = path
        try:
            # One thread: the loader's processes are the parallelism, and threads beneath them only contend.
            self._reader = decord.VideoReader(str(path), num_threads=1)
            self.num_frames = len(self._reader)
            height, width = self._reader[0].asnumpy().shape[:2]
        except Exception as error:  # RuntimeError, or DECORDError, which is no subclass of it
            raise DecodeError(path, 0, self.name, first_line(error)) from error
        self.size_px = (height, width)

    def read(self, wanted: NDArray[np.int64]) -> Frames:
        try:
            frames: Frames = self._reader.get_batch(wanted.tolist()).asnumpy()
        except Exception as error:
            raise DecodeError(self.path, self._first_bad(wanted), self.name, first_line(error)) from error
        return frames

    def _first_bad(self, wanted: NDArray[np.int64]) -> int:
        for index in sorted(set(wanted.tolist())):
            try:
                self._reader[index]
            except Exception:
                return int(index)
        return int(wanted.min())

    def close(self) -> None:
        self._reader = None
