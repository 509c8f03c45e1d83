"""The picture a model sees: the centre square of a frame, averaged to its size.

Legend of shapes: T frames, H rows, W columns, C colours.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Taps = tuple[NDArray[np.int64], NDArray[np.float32]]


def square(frames_THWC: Frames, size_px: int) -> Frames:
    """The centre square of each frame, each pixel the mean of the area it covers: uint8 [T, size, size, C].

    One arithmetic for every decoder, since the decoders' own scaling differs. A frame that is smaller than
    the size is enlarged by the same rule.
    """
    side = min(frames_THWC.shape[1:3])
    top, left = (frames_THWC.shape[1] - side) // 2, (frames_THWC.shape[2] - side) // 2
    crop = frames_THWC[:, top : top + side, left : left + side]
    if side == size_px:
        return np.ascontiguousarray(crop)
    means = np.empty((len(crop), size_px, size_px, crop.shape[3]), np.uint8)
    for mean, frame in zip(means, crop, strict=True):  # one at a time: its rows stay in the processor's cache
        mean[:] = _shrunk(frame, _weights(side, size_px))
    return means


def _shrunk(frame_HWC: Frames, weights: Any) -> NDArray[np.float32]:
    """Rows, then columns, by a sparse product: one thread, outside Python's lock, summed in the order of the taps.

    No dense product: its threads would contend with the loader's processes (measured 40 times slower on two cores), and
    its order of summation differs from machine to machine.
    """
    size, side = weights.shape
    colours = frame_HWC.shape[2]
    rows = weights @ np.ascontiguousarray(frame_HWC, np.float32).reshape(side, side * colours)
    columns = np.ascontiguousarray(rows.reshape(size, side, colours).swapaxes(0, 1))
    means: NDArray[np.float32] = weights @ columns.reshape(side, size * colours)
    return np.rint(means, out=means).reshape(size, size, colours).swapaxes(0, 1)


@lru_cache(maxsize=64)
def _weights(side: int, size: int) -> Any:
    """The taps as a sparse matrix [size, side]."""
    from scipy.sparse import csr_matrix

    index, weight = area_taps(side, size)
    row = np.broadcast_to(np.arange(size)[:, None], index.shape)
    used = weight != 0
    return csr_matrix((weight[used], (row[used], index[used])), shape=(size, side))


@lru_cache(maxsize=64)
def area_taps(side: int, size: int) -> Taps:
    """For each of `size` output pixels, the input pixels it covers and their shares: two [size, taps]."""
    edges = np.arange(size + 1) * (side / size)
    low, high = edges[:-1, None], edges[1:, None]
    index = np.floor(low).astype(np.int64) + np.arange(int(np.ceil(side / size)) + 1)
    share = np.clip(np.minimum(high, index + 1) - np.maximum(low, index), 0, None) * (index < side)
    weight = (share / share.sum(1, keepdims=True)).astype(np.float32)
    used = weight.any(0)  # a whole ratio needs no tap for a share
    return np.minimum(index, side - 1)[:, used], weight[:, used]
