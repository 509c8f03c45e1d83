"""Windows of clips by arithmetic: a number in [0, 1) is a clip and a first frame, and needs no state."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from egoscale.video.clip_index import ClipIndex, frame_seconds
from egoscale.video.on_disk import Numbers, NumbersWriter, apart, write_json

# A clip may be this much slower than the training rate: 29.97 stands for 30, 24 does not.
SLOWEST = 0.99
BLOCK_CLIPS = 2048  # clips of one read while searching on disk (16 kB); 8 bytes of memory for each such block
SWEEP_NUMBERS = 4096  # so many numbers at once are located by one sweep over the whole table
NO_RATE = "own"


class WindowTable:
    """All windows of `length` frames in a list of clips, as parts of [0, 1) in proportion to their seconds.

    A clip of n frames holds n - span + 1 windows (none where that is below 1); the span is `length` frames of the
    clip, or, at a training rate, from the first to the last frame of the window by time. A window weighs as much as
    one frame of its clip lasts, so each second of video, not each clip or frame, is equally likely to begin a
    window. With one frame rate in all clips these are equal parts.

    Attributes:
        num_windows: of all clips.
        num_empty: clips that hold no window: too short, or slower than the training rate.
    """

    def __init__(
        self,
        num_frames: ArrayLike,
        length: int,
        fps_hz: ArrayLike | None = None,
        rate_hz: float | None = None,
    ) -> None:
        """
        Args:
            num_frames: of each clip.
            length: frames of a window.
            fps_hz: frame rate of each clip; None where all share one.
            rate_hz: training rate: frames a second of a window. None = every frame of the clip.

        Raises ValueError where lengths differ, length < 1, or no clip holds a window.
        """
        frames = np.asarray(num_frames, dtype=np.int64).reshape(-1)
        rates = None if fps_hz is None else np.asarray(fps_hz, dtype=np.float64).reshape(-1)
        if rates is not None and len(rates) != len(frames):
            raise ValueError(f"{len(frames)} frame counts and {len(rates)} frame rates")
        if rate_hz is not None and rates is None:
            raise ValueError(f"rate_hz = {rate_hz:g} needs the clips' own frame rates")
        windows = count_windows(frames, length, rates, rate_hz)
        if rates is None or len(np.unique(rates)) < 2:
            known = None if rates is None or not len(rates) or rates[0] <= 0 else float(rates[0])
            self._seconds: _Seconds = _Equal(_one_over(known))
            weights = windows.astype(np.float64)
        else:
            self._seconds = _Each(_inverse(rates))
            weights = windows * self._seconds.weight(np.arange(len(frames)))
        self._rate_hz = rate_hz
        self._ends: _Ends = _InMemory(np.cumsum(weights))
        self.num_windows, self.num_empty = int(windows.sum()), int((windows == 0).sum())
        _check_any(self.num_windows, length, len(frames), int(frames.max(initial=0)), rate_hz)

    @classmethod
    def on_disk(cls, clips: ClipIndex, length: int, rate_hz: float | None = None) -> WindowTable:
        """The same for clips on disk: a file of cumulative weights beside their index, made once.

        It is opened in no time and in no memory that grows with the clips (8 bytes for 2,048 of them).
        """
        rate = NO_RATE if rate_hz is None else f"{rate_hz:g}hz"
        file = clips.folder / f"windows-{length}-{rate}.npy"
        note = file.with_suffix(".json")
        if not note.is_file():
            _write_ends(clips, length, rate_hz, file)
        facts = json.loads(note.read_text(encoding="utf-8"))
        table = cls.__new__(cls)
        table._rate_hz = rate_hz
        table._seconds = _OfIndex(clips, facts["longest_s"]) if clips.mixed else _Equal(_one_over(clips.fps_hz))
        table._ends = _OnDisk(Numbers(file), np.array(facts["blocks"]))
        table.num_windows, table.num_empty = facts["num_windows"], facts["num_empty"]
        _check_any(table.num_windows, length, len(clips), clips.longest_frames, rate_hz)
        return table

    def locate(self, u: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """u: numbers in [0, 1), any shape. Returns index of the clip and first frame, both of that shape."""
        numbers = np.asarray(u, dtype=np.float64)
        # Of a batch, a few numbers: reductions of numpy would take longer, three microseconds of a sample drawn alone.
        if not all(0 <= number < 1 for number in numbers.ravel().tolist()):
            raise ValueError("u must lie in [0, 1)")
        # The product of a number just below 1 may round up to the whole.
        places = np.minimum(numbers.reshape(-1) * self._ends.whole, math.nextafter(self._ends.whole, 0))
        clip, before, after = self._ends.find(places)
        weight = self._seconds.weight(clip)
        last = np.rint((after - before) / weight) - 1
        start = np.minimum(np.floor((places - before) / weight), last).astype(np.int64)
        return clip.reshape(numbers.shape), start.reshape(numbers.shape)

    def stride(self, clips: NDArray[np.int64]) -> NDArray[np.float64]:
        """Frames of these clips from one frame of a window to the next."""
        if self._rate_hz is None:
            return np.ones(len(clips))
        return np.maximum(1.0, 1 / (self._seconds.each(clips) * self._rate_hz))

    def frame_s(self, clips: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds that one frame of these clips lasts; 0 where no clip has a frame rate."""
        return self._seconds.each(clips)


def count_windows(
    num_frames: NDArray[np.int64], length: int, fps_hz: NDArray[np.float64] | None, rate_hz: float | None
) -> NDArray[np.int64]:
    """Windows that clips hold: int64, as many as clips. Clips of unknown rate beside others hold none."""
    if length < 1:
        raise ValueError(f"length = {length}: a window holds at least 1 frame")
    if rate_hz is not None and rate_hz <= 0:
        raise ValueError(f"rate_hz = {rate_hz:g}: a training rate is above 0")
    if rate_hz is None or fps_hz is None:
        windows = np.maximum(num_frames - length + 1, 0)
    else:
        stride = np.maximum(fps_hz / rate_hz, 1.0)
        span = np.floor((length - 1) * stride + 0.5).astype(np.int64) + 1
        windows = np.where(fps_hz >= SLOWEST * rate_hz, np.maximum(num_frames - span + 1, 0), 0)
    return windows if fps_hz is None else np.where(fps_hz > 0, windows, 0)


def frames_of(starts: ArrayLike, length: int, stride: ArrayLike = 1.0) -> NDArray[np.int64]:
    """Numbers of the frames of windows: int64 [B, length]; the k-th is the nearest to start + k * stride."""
    first = np.asarray(starts, np.int64).reshape(-1, 1)
    steps = np.asarray(stride, np.float64).reshape(-1, 1)
    return first + np.floor(np.arange(length) * steps + 0.5).astype(np.int64)


def _check_any(num_windows: int, length: int, clips: int, longest: int, rate_hz: float | None) -> None:
    if not num_windows:
        rate = "" if rate_hz is None else f" at {rate_hz:g} frames a second"
        raise ValueError(
            f"no window of {length} frames{rate} in {clips} clips, the longest of {longest} frames:"
            " ask for shorter windows or longer clips" + ("" if rate_hz is None else ", or for a lower rate")
        )


def _inverse(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    inverse: NDArray[np.float64] = np.divide(1.0, rates, out=np.full(len(rates), np.inf), where=rates > 0)
    return inverse


def _one_over(number: float | None) -> float | None:
    return None if number is None else 1 / number


# --- what a window weighs ---------------------------------------------------------------------------------------


class _Seconds(Protocol):
    def each(self, clips: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds that a frame lasts."""

    def weight(self, clips: NDArray[np.int64]) -> NDArray[np.float64]:
        """The same over the longest of all clips: at most 1, and exactly 1 where all are equal."""


class _Equal:
    def __init__(self, frame_s: float | None) -> None:
        self._frame_s = frame_s or 0.0

    def each(self, clips: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.full(len(clips), self._frame_s)

    def weight(self, clips: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.ones(len(clips))


class _Each:
    def __init__(self, frame_s: NDArray[np.float64]) -> None:
        self._frame_s = frame_s
        self._longest = frame_s[np.isfinite(frame_s)].max(initial=0.0)

    def each(self, clips: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._frame_s[clips]

    def weight(self, clips: NDArray[np.int64]) -> NDArray[np.float64]:
        return _weight(self._frame_s[clips], self._longest)


class _OfIndex:
    def __init__(self, clips: ClipIndex, longest_s: float) -> None:
        self._clips, self._longest = clips, longest_s

    def each(self, clips: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._clips.seconds(clips)

    def weight(self, clips: NDArray[np.int64]) -> NDArray[np.float64]:
        rows = self._clips.rows(clips)
        weight: NDArray[np.float64] = rows["fps_den"] / rows["fps_num"] / self._longest
        return weight  # of clips that hold a window, so their rate is known


def _weight(frame_s: NDArray[np.float64], longest_s: float) -> NDArray[np.float64]:
    return np.where(np.isfinite(frame_s), frame_s, longest_s) / longest_s


# --- cumulative weights, in memory and on disk ------------------------------------------------------------------

Found = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


class _Ends(Protocol):
    whole: float

    def find(self, places: NDArray[np.float64]) -> Found:
        """For each place, the first entry above it, the end of the one before, and its own end."""


class _InMemory:
    def __init__(self, ends: NDArray[np.float64]) -> None:
        self._ends = ends
        self.whole = float(ends[-1]) if len(ends) else 0.0

    def find(self, places: NDArray[np.float64]) -> Found:
        return _find(self._ends, places)


def _find(ends: NDArray[np.float64], places: NDArray[np.float64]) -> Found:
    clip = np.searchsorted(ends, places, side="right").astype(np.int64)
    before = np.where(clip > 0, ends[np.maximum(clip - 1, 0)], 0.0)
    return clip, before, ends[clip]


class _OnDisk:
    """A search in two steps: the block among the ends of blocks, which are held, then its entries, which are read."""

    def __init__(self, ends: Numbers, blocks: NDArray[np.float64]) -> None:
        self._ends, self._blocks = ends, blocks
        self.whole = float(blocks[-1]) if len(blocks) else 0.0

    def find(self, places: NDArray[np.float64]) -> Found:
        clip, before, after = np.empty(len(places), np.int64), np.empty(len(places)), np.empty(len(places))
        if len(places) >= SWEEP_NUMBERS:
            order = np.argsort(places)
            clip[order], before[order], after[order] = _find(self._ends.mapped(), places[order])
            return clip, before, after
        blocks = self._blocks.searchsorted(places, side="right")
        for at, (block, place) in enumerate(zip(blocks.tolist(), places.tolist(), strict=True)):
            ends = self._ends.span(block * BLOCK_CLIPS, BLOCK_CLIPS)
            inside = int(ends.searchsorted(place, side="right"))
            clip[at], after[at] = block * BLOCK_CLIPS + inside, ends[inside]
            before[at] = ends[inside - 1] if inside else self._blocks[block - 1] if block else 0.0
        return clip, before, after


def _write_ends(clips: ClipIndex, length: int, rate_hz: float | None, file: Path) -> None:
    """Cumulative weights, a piece of the clips at a time; written whole under another name and renamed."""
    longest_s = 0.0
    if clips.mixed:
        known = (frame_seconds(rows) for rows in clips.chunks())
        longest_s = max(float(seconds[np.isfinite(seconds)].max(initial=0.0)) for seconds in known)
    elif rate_hz is not None and clips.fps_hz is None:
        raise ValueError(f"{clips.folder}: rate_hz = {rate_hz:g} needs clips whose frame rate is known")
    part = apart(file)
    blocks: list[float] = []
    num_windows = num_empty = 0
    end = 0.0
    with NumbersWriter(part, np.dtype("<f8")) as ends:
        for rows in clips.chunks(BLOCK_CLIPS * 512):
            windows, weights = _weighed(rows, clips, length, rate_hz, longest_s)
            # In one sequence from first to last, so that the sums do not depend on the pieces.
            sums = np.cumsum(np.concatenate([[end], weights]))[1:]
            end = float(sums[-1])
            ends.add(sums)
            blocks += sums[BLOCK_CLIPS - 1 :: BLOCK_CLIPS].tolist()
            num_windows, num_empty = num_windows + int(windows.sum()), num_empty + int((windows == 0).sum())
    if len(clips) % BLOCK_CLIPS:
        blocks.append(end)
    part.rename(file)
    facts = {"num_windows": num_windows, "num_empty": num_empty, "longest_s": longest_s, "blocks": blocks}
    write_json(file.with_suffix(".json"), facts)


def _weighed(
    rows: NDArray[Any], clips: ClipIndex, length: int, rate_hz: float | None, longest_s: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    frames = rows["num_frames"].astype(np.int64)
    if not clips.mixed:
        rates = None if clips.fps_hz is None else np.full(len(frames), clips.fps_hz)
        windows = count_windows(frames, length, rates, rate_hz)
        return windows, windows.astype(np.float64)
    seconds = frame_seconds(rows)
    windows = count_windows(frames, length, 1 / seconds, rate_hz)
    return windows, windows * _weight(seconds, longest_s)
