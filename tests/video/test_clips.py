"""Every window is reached, each as often as any other, and none leaves its clip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egoscale.video.clips import WindowTable


@given(st.lists(st.integers(0, 20), min_size=1, max_size=20), st.integers(1, 8))
def test_equal_parts_of_the_unit_interval_are_the_windows(num_frames, min_frames):
    wanted = [(c, s) for c, n in enumerate(num_frames) for s in range(n - min_frames + 1)]
    names = [str(i) for i in range(len(num_frames))]
    if not wanted:
        with pytest.raises(ValueError, match="no window"):
            WindowTable(names, num_frames, min_frames)
        return
    table = WindowTable(names, num_frames, min_frames)
    middles = (np.arange(len(wanted)) + 0.5) / len(wanted)
    clip, start = table.locate(middles)
    assert list(zip(clip.tolist(), start.tolist(), strict=True)) == wanted
    assert table.num_windows == len(wanted)
    assert table.too_short == [str(i) for i, n in enumerate(num_frames) if n < min_frames]


def test_ends_of_the_interval_and_shapes():
    table = WindowTable(["a", "b"], [10, 2**40], 4)
    clip, start = table.locate(np.array([[0.0, np.nextafter(1.0, 0.0)]]))
    assert clip.tolist() == [[0, 1]] and start[0, 0] == 0 and start[0, 1] <= 2**40 - 4
    assert table.locate([])[0].shape == (0,)
    for outside in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            table.locate(outside)


def test_wrong_tables():
    with pytest.raises(ValueError, match="2 clip ids and 1 frame counts"):
        WindowTable(["a", "b"], [3], 1)
    with pytest.raises(ValueError, match="at least 1 frame"):
        WindowTable(["a"], [3], 0)
    with pytest.raises(ValueError, match="no window of 4 frames in 0 clips"):
        WindowTable([], [], 4)
