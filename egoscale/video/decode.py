"""Frames of a video by index. Behind this door stand all decoders; nothing else imports one to read.

PyAV reads by default. Measured (`benchmarks/decoding.md`, one thread, equal frames), its decoder with what
`container` adds (a scaler that is kept, frames left undecoded that no wanted frame is made from, time stamps from the
header of an mp4) is 1.1 to 1.6 times the best of torchcodec and decord in random windows with B frames, at 256p and
1080p, with a key frame every 12, 60 or 250, and within an eighth of torchcodec where nothing can be left undecoded. It
also reads what they do not: decord 0.6.0 gives a neighbouring frame after a seek into open groups of pictures (x265's
default; every fifth frame was wrong), opens no AV1, ignores edit lists (a cut of 901 frames is given as 1,051), takes
another video stream than the first and fails in the midst of some VP9. Both stay, by name. On 8-bit files all give
equal frames where they give the right ones; 10-bit colour is converted by another chroma filter in each version of
FFmpeg (3 levels away on average, up to 168 at coloured edges).

Pictures are averaged down from the full frame in RGB by `picture.square`, whoever decodes. The decoders could scale as
they convert, each by another filter (PyAV and torchcodec through swscale on the luma and chroma planes, decord
bilinearly), and training would see other pictures with each: so they are not asked to.

Legend of shapes: N windows, T frames, H rows, W columns, C colours (red, green, blue).
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from egoscale.video.archive import Stored
from egoscale.video.container import ContainerReader
from egoscale.video.decord_reader import DecordReader
from egoscale.video.images import PictureReader
from egoscale.video.picture import Frames, square
from egoscale.video.place import locate
from egoscale.video.stream import DecodeError, StreamInfo
from egoscale.video.torchcodec_reader import TorchcodecReader
from egoscale.video.vrs import VrsReader

__all__ = ["DecodeError", "Decoder", "Frames", "StreamInfo", "Video", "open_video"]

Decoder = Literal["pyav", "decord", "torchcodec", "pillow", "vrs"]
FOR_FILES = ("pyav", "decord", "torchcodec")
# Frames in full size are held in pieces of at most so many bytes, so that a resized hour is never whole in memory.
CHUNK_BYTES = 64 * 2**20


class Reader(Protocol):
    """What a decoder must do."""

    @property
    def name(self) -> Decoder: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def size_px(self) -> tuple[int, int]:
        """Rows and columns of a frame, upright."""

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Frames]:
        """Frames at rising indices, each valid until the next. Raises DecodeError."""

    def close(self) -> None: ...


def open_video(path: str | Path, decoder: Literal["auto"] | Decoder = "auto") -> Video:
    """A video, opened when first read.

    path: a file of video; a member of a tar archive, named as if the archive were a folder
        (`/data/shard-000.tar/000017.mp4`); a folder or a tar of pictures, with `?glob=PATTERN&fps=NUMBER` at the end
        where the folder holds others too and for its frame rate; a recording of Project Aria (`.vrs`).
    decoder: "auto" takes PyAV for files of video and members, Pillow ("pillow") for pictures, projectaria-tools
        ("vrs") for recordings. A name is taken at its word and never falls back: for a file whose catalogue row names
        its decoder.

    Raises FileNotFoundError where there is no file, ValueError for a decoder that cannot read what is there; whatever
    else is wrong shows when the file is read.
    """
    path = Path(path).absolute()
    if decoder != "auto" and decoder not in get_args(Decoder):
        raise ValueError(f"decoder={decoder!r}: say 'auto', {', '.join(map(repr, get_args(Decoder)))}")
    place = locate(path)
    kind = "pillow" if not isinstance(place, Stored) else "vrs" if _is_vrs(place) else None
    if decoder != "auto" and (decoder != kind if kind else decoder not in FOR_FILES):
        raise ValueError(f"{path}: decoder={decoder!r} cannot read it: {kind or ', '.join(FOR_FILES)} can")
    return Video(path, decoder)


class Video:
    """One clip's frames: `probe()`, `frames(indices)`, `close()`. Use as a context manager.

    What costs what: opening reads the header (mp4, mov) or every packet (others; VP8 and VP9: decodes all) and decodes
    a frame or two, so a video that is read again is worth keeping open. Reading goes forward from where it stands and
    seeks only where a key frame between makes that cheaper, so windows read together (`windows`, or `frames` with
    all their indices) cost one pass, and windows read one by one in random order cost the way from a key frame each,
    half a GOP on average. One thread decodes, without Python's lock. Not made for two threads at a time.

    May be pickled, and used after a fork: every process opens the file for itself (a decord reader opened by
    the parent hangs in its child).
    """

    def __init__(self, path: Path, decoder: Literal["auto"] | Decoder) -> None:
        self.path = path
        self._choice = decoder
        self._reader: Reader | None = None
        self._container: ContainerReader | None = None
        _VIDEOS.add(self)

    @property
    def decoder(self) -> Decoder:
        """Who reads the clip."""
        return self._open().name

    @property
    def decoder_reason(self) -> str | None:
        """What in a file read by PyAV decord would read otherwise or not at all; None where any decoder would do, and
        where one was asked for by name."""
        reader = self._open()
        return _only_pyav(reader) if isinstance(reader, ContainerReader) and self._choice == "auto" else None

    def probe(self) -> StreamInfo:
        """What the clip says of itself. Raises DecodeError where it holds no video that opens."""
        reader = self._open()
        if isinstance(reader, (ContainerReader, PictureReader, VrsReader)):
            return reader.info
        info = self._look().info
        seconds = reader.num_frames * info.fps_den / info.fps_num if info.fps_num else 0.0
        return replace(info, num_frames=reader.num_frames, duration_s=seconds)

    def times_s(self) -> NDArray[np.float64] | None:
        """When each frame is shown, in seconds from the first: float64 [num_frames].

        None where the file does not tell; where a frame rate is known, frames may be taken to follow it evenly.
        """
        reader = self._open()
        if isinstance(reader, (PictureReader, VrsReader)):
            return reader.times_s()
        container = self._look()
        return container.times_s() if container.num_frames == reader.num_frames else None

    def frames(self, indices: Sequence[int] | NDArray[np.integer[Any]], size_px: int | None = None) -> Frames:
        """Frames at the given indices, in the given order, repeats allowed. Each is decoded once, in rising order.

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
        reader = self._open()
        outside = wanted[(wanted < 0) | (wanted >= reader.num_frames)]
        if len(outside):
            last = reader.num_frames - 1
            raise ValueError(f"{self.path}: frame {outside[0]} asked for; the file has 0 to {last}")
        if not len(wanted):
            return np.zeros((0, *((size_px, size_px) if size_px else reader.size_px), 3), np.uint8)
        rising, place = np.unique(wanted, return_inverse=True)
        order, ends = np.argsort(place, kind="stable"), iter(np.cumsum(np.bincount(place)).tolist())
        frames_THWC: Frames | None = None
        begin = 0
        for picture_HWC in reader.pictures(rising):
            shown_HWC = picture_HWC if size_px is None else square(picture_HWC[None], size_px)[0]
            if frames_THWC is None:
                frames_THWC = np.empty((len(wanted), *shown_HWC.shape), np.uint8)
            end = next(ends)
            frames_THWC[order[begin:end]] = shown_HWC
            begin = end
            # Let go before the next is made, which then takes its memory: two at a time are given back to the system
            # and asked for again at each frame, a third of the time that 1080p takes (so no `zip`, which holds on).
            del picture_HWC, shown_HWC
        assert frames_THWC is not None
        return frames_THWC

    def windows(
        self,
        starts: ArrayLike,
        length: int,
        stride: int = 1,
        size_px: int | None = None,
    ) -> Frames:
        """Windows of `length` frames, `stride` apart, from each of `starts` on, read in one pass through the clip.

        Returns uint8 [N, length, H, W, 3]; see `frames` for `size_px` and errors. Frames that windows share are
        decoded once.
        """
        if length < 1 or stride < 1:
            raise ValueError(f"length={length}, stride={stride}: at least 1")
        first = np.asarray(starts, np.int64).reshape(-1, 1)
        frames_THWC = self.frames((first + stride * np.arange(length)).reshape(-1), size_px)
        return frames_THWC.reshape(len(first), length, *frames_THWC.shape[1:])

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

    def _open(self) -> Reader:
        if self._reader is None:
            place = locate(self.path)
            if not isinstance(place, Stored):
                self._reader = PictureReader(place)
            elif _is_vrs(place):
                self._reader = VrsReader(place)
            elif self._choice == "decord":
                self._reader = DecordReader(place, CHUNK_BYTES)
            elif self._choice == "torchcodec":
                self._reader = TorchcodecReader(place, self._look().stream_index, CHUNK_BYTES)
            else:
                self._reader = self._look()
        return self._reader

    def _look(self) -> ContainerReader:
        if self._container is None:
            place = locate(self.path)
            assert isinstance(place, Stored), f"{self.path} holds pictures"
            self._container = ContainerReader(place)
        return self._container


def _is_vrs(place: Stored) -> bool:
    return place.path.suffix.lower() == ".vrs"


def _only_pyav(reader: ContainerReader) -> str | None:
    info = reader.info
    if info.num_video_streams > 1:
        return f"{info.num_video_streams} video streams: decord may not take the first"
    if info.rotation_deg:
        return f"rotation of {info.rotation_deg} degrees in the metadata"
    if info.has_edit_list:
        return "an edit list hides frames, which decord ignores"
    if info.bit_depth > 8:
        return f"{info.bit_depth} bits a colour, which decord converts differently"
    if info.codec in ("av1", "vp8", "vp9", "gif"):
        return f"{info.codec}, which decord cannot read, or not to the end"
    if reader.has_open_gop:
        return "open groups of pictures, of which decord gives a neighbouring frame after a seek"
    return None


_VIDEOS: weakref.WeakSet[Video] = weakref.WeakSet()


def _leave_parent() -> None:
    """In the child of a fork: forget the parent's readers undestroyed, for a destructor waits for threads."""
    for video in _VIDEOS:
        for reader in (video._reader, video._container):
            if reader is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(reader))
        video._reader = video._container = None


os.register_at_fork(after_in_child=_leave_parent)
