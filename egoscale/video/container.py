"""Frames by index through PyAV: exact by time stamps, for every file that FFmpeg can read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from egoscale.video.picture import Frames
from egoscale.video.stream import DecodeError, FrameTable, StreamInfo, first_line

# One packet is one shown frame in these codecs. VP8 and VP9 may hide frames in packets of their own, and
# animated images have no table: those are counted by decoding.
ONE_PACKET_ONE_FRAME = {"h264", "hevc", "av1", "mpeg4", "mjpeg", "prores", "mpeg2video"}


class ContainerReader:
    """Header, time stamps and frames of one file by PyAV. `av` is the module, which `decode` imports."""

    name: Literal["pyav"] = "pyav"

    def __init__(self, path: Path, av: Any) -> None:
        self.path = path
        self._av_open = av.open
        self._errors = (av.FFmpegError, ValueError, EOFError)
        self._container: Any = None
        self._table: FrameTable | None = None
        self._restart()
        try:
            first = next(self._frames)
        except StopIteration:
            self._fail(0, "no frame in the video stream")
        except self._errors as error:
            self._fail(0, first_line(error), error)
        stream = self._stream
        rate, codec, time_base = stream.average_rate or 0, stream.codec_context.codec, stream.time_base
        num_streams = len(stream.container.streams.video)
        entries = getattr(stream, "index_entries", None)
        # The index of an mp4 is whole and knows what its edit list hides; that of a webm is partial.
        self._whole_index = bool(stream.frames and entries is not None and len(entries) == stream.frames)
        stored: list[Any] = list(entries or ()) if self._whole_index else self._packets()
        self.promised_frames = sum(not one.is_discard for one in stored)
        turn = -first.rotation % 360  # PyAV counts counter-clockwise
        upright = turn % 180 == 0
        self.size_px = (first.height, first.width) if upright else (first.width, first.height)
        self.info = StreamInfo(
            num_frames=self.promised_frames,
            fps_num=rate.numerator if rate else 0,
            fps_den=rate.denominator if rate else 1,
            width_px=self.size_px[1],
            height_px=self.size_px[0],
            rotation_deg=turn,
            codec=codec.canonical_name,
            pix_fmt=first.format.name,
            bit_depth=max(component.bits for component in first.format.components),
            duration_s=float(self.promised_frames / rate) if rate else 0.0,
            start_s=float(first.pts * time_base) if first.pts is not None else 0.0,
            has_edit_list=len(stored) > self.promised_frames,
            num_video_streams=num_streams,
        )
        self._restart()

    @property
    def num_frames(self) -> int:
        return len(self._frame_table().pts)

    def read(self, wanted: NDArray[np.int64]) -> Frames:
        found = {index: self._frame(index) for index in sorted(set(wanted.tolist()))}
        return np.stack([found[index] for index in wanted.tolist()])

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = None

    def _fail(self, index: int, cause: str, error: BaseException | None = None) -> NoReturn:
        raise DecodeError(self.path, index, self.name, cause) from error

    def _restart(self) -> None:
        self.close()
        try:
            container = self._container = self._av_open(str(self.path))
        except self._errors as error:
            self._fail(0, first_line(error), error)
        if not container.streams.video:
            kinds = sorted({stream.type for stream in container.streams})
            self._fail(0, f"no video stream, only {', '.join(kinds) or 'nothing'}")
        self._stream = container.streams.video[0]
        self._stream.codec_context.thread_count = 1
        self._frames: Iterator[Any] = container.decode(self._stream)
        self._next = 0  # index of the frame that comes next

    def _packets(self) -> list[Any]:
        """Every packet of the stream that holds data; a broken file ends early, as decoding will find."""
        self._restart()
        packets = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    packets.append(packet)
        except self._errors:
            pass
        return packets

    def _frame_table(self) -> FrameTable:
        if self._table is None:
            self._table = self._table_of_packets() or self._table_of_frames()
            self._restart()
        return self._table

    def _table_of_packets(self) -> FrameTable | None:
        if self.info.codec not in ONE_PACKET_ONE_FRAME:
            return None
        shown = [packet for packet in self._packets() if not packet.is_discard]
        times = [packet.pts for packet in shown]
        if not _tell_frames(times) or len(times) < self.promised_frames:
            return None
        return FrameTable.of(times, [packet.pts for packet in shown if packet.is_keyframe])

    def _table_of_frames(self) -> FrameTable:
        self._restart()
        times, keys = [], []
        try:
            for frame in self._frames:
                times.append(frame.pts)
                if frame.key_frame:
                    keys.append(frame.pts)
        except self._errors:
            pass
        # A file that promises more than it holds keeps the promise in its table: to read on is an error.
        missing = max(0, self.promised_frames - len(times)) if self._whole_index else 0
        if not _tell_frames(times) or sorted(times) != times:
            return FrameTable.counted(len(times) + missing)
        return FrameTable.of(times + [times[-1] + 1 + i for i in range(missing)], keys)

    def _frame(self, index: int) -> Frames:
        table = self._frame_table()
        key = table.key_before(index)
        if self._container is None or (index < self._next and not table.index):
            self._restart()
        elif index < self._next or key > self._next:
            self._seek(table.pts[key], key)
        frame = self._until(index)
        if frame is None:
            # The container's seek went too far (key frames closer than the reordering): read from the start.
            self._restart()
            frame = self._until(index)
        if frame is None:
            self._fail(index, f"the frame never comes, though the container promises {len(table.pts)}")
        picture: Frames = frame.to_ndarray(format="rgb24")
        turns = frame.rotation // 90
        return np.rot90(picture, turns) if turns else picture

    def _seek(self, pts: int, index: int) -> None:
        try:
            self._container.seek(pts, stream=self._stream)
        except self._errors:
            self._restart()
            return
        self._frames = self._container.decode(self._stream)
        self._next = index

    def _until(self, index: int) -> Any:
        """Decodes up to the frame of that index; None where the stream is beyond it, or over."""
        table = self._frame_table()
        while (frame := self._decoded()) is not None:
            position = table.index.get(frame.pts, -1) if table.index else self._next
            if position < 0:
                continue
            self._next = position + 1
            if position >= index:
                return frame if position == index else None
        return None

    def _decoded(self) -> Any:
        try:
            return next(self._frames, None)
        except self._errors as error:
            broken = self._next
            self._restart()
            self._fail(broken, first_line(error), error)


def _tell_frames(times: list[int | None]) -> bool:
    """Whether time stamps name frames: none missing, none twice."""
    return bool(times) and None not in times and len(set(times)) == len(times)
