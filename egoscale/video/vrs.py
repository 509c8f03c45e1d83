"""The colour camera of a Project Aria recording (VRS), through the optional package projectaria-tools.

Formats: github.com/facebookresearch/vrs and projectaria_tools. Where the package is missing, the error says so: VRS is
its own container, which FFmpeg does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from egoscale.video.archive import Stored
from egoscale.video.picture import Frames
from egoscale.video.stream import DecodeError, StreamInfo, first_line, irregular_fraction

REMEDY = "pip install 'egoscale[readers]', or convert it (`vrs extract-images`) and name the folder of pictures"
CAMERA = "camera-rgb"


class VrsReader:
    """Frames of the stream `camera-rgb`, upright: the first generation's sensor lies on its side."""

    name: Literal["vrs"] = "vrs"

    def __init__(self, stored: Stored) -> None:
        self._path = stored.path
        if stored.path != stored.file:
            self._fail(0, f"VRS within an archive cannot be read in place: unpack {stored.file.name}")
        try:
            from projectaria_tools.core import data_provider, sensor_data
        except ImportError as error:
            self._fail(0, f"Aria recordings are read by projectaria-tools, which is not installed: {REMEDY}", error)
        try:
            provider = data_provider.create_vrs_data_provider(str(stored.file))
            if provider is None:
                raise ValueError("no VRS recording")
            stream = provider.get_stream_id_from_label(CAMERA)
            if stream is None or not provider.check_stream_is_active(stream):
                raise ValueError(f"no stream {CAMERA!r}: it holds no video of the wearer's view")
            self._provider, self._stream = provider, stream
            self.num_frames = int(provider.get_num_data(stream))
            times_ns = provider.get_timestamps_ns(stream, sensor_data.TimeDomain.DEVICE_TIME)
            setup = provider.get_image_configuration(stream)
            self._turns = -1 if "gen1" in str(provider.get_device_version()).lower() else 0
        except Exception as error:  # pybind passes on what the library throws
            self._fail(0, first_line(error), error)
        if not self.num_frames:
            self._fail(0, f"no frame in the stream {CAMERA!r}")
        self._times_s: NDArray[np.float64] = (np.asarray(times_ns, np.int64) - times_ns[0]) / 1e9
        self.size_px = self._picture(0).shape[:2]
        fps = Fraction(setup.nominal_rate_hz).limit_denominator(1001)
        self.info = StreamInfo(
            num_frames=self.num_frames,
            fps_num=fps.numerator,
            fps_den=fps.denominator,
            width_px=self.size_px[1],
            height_px=self.size_px[0],
            rotation_deg=90 if self._turns else 0,
            codec="vrs",
            pix_fmt="rgb24",
            bit_depth=8,
            duration_s=float(self.num_frames / fps) if fps else 0.0,
            start_s=times_ns[0] / 1e9,
            has_edit_list=False,
            num_video_streams=1,
            gop_frames=None,
            irregular_fraction=irregular_fraction(self._times_s, 0),
        )

    def times_s(self) -> NDArray[np.float64]:
        """When each frame was captured, from 0 on."""
        return self._times_s

    def pictures(self, indices: NDArray[np.int64]) -> Iterator[Frames]:
        """The frames at the indices, upright, [H, W, 3]."""
        for index in indices.tolist():
            picture = self._picture(index)
            if picture.shape[:2] != self.size_px:
                self._fail(index, f"the picture is {picture.shape[:2]}, the first {self.size_px} (rows, columns)")
            yield picture

    def close(self) -> None:
        self._provider = self._stream = None

    def _picture(self, index: int) -> Frames:
        try:
            data, _ = self._provider.get_image_data_by_index(self._stream, index)
            if not data.is_valid():
                raise ValueError("the record holds no picture")
            picture: NDArray[Any] = data.to_numpy_array()
        except Exception as error:
            self._fail(index, first_line(error), error)
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            self._fail(index, f"pixels of kind {picture.dtype}, and 8 bits a colour are read")
        if picture.ndim == 2:
            picture = np.repeat(picture[:, :, None], 3, 2)
        return np.rot90(picture[:, :, :3], self._turns)

    def _fail(self, index: int, cause: str, error: BaseException | None = None) -> NoReturn:
        raise DecodeError(self._path, index, self.name, cause) from error
