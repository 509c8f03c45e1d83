"""What the tests of robots share: tiny data sets, the real ones where they are, and worlds where GL is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from egoscale.robot.demos import Episode, write_lerobot_v30

SHARED = Path(__file__).parents[3] / "shared" / "data" / "robot"


@pytest.fixture
def real_robot_data() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        path = SHARED / name
        if not path.is_dir():
            pytest.skip(f"real data set {name} is not beside the repository")
        return path

    return find


def make_episodes(count: int = 3, size_px: int = 32, seed: int = 0) -> list[Episode]:
    """Episodes of different lengths; every frame is one grey level that tells episode and step."""
    rng = np.random.default_rng(seed)
    episodes = []
    for number in range(count):
        length = 5 + 2 * number
        grey = (40 + 50 * number + 3 * np.arange(length)).astype(np.uint8)
        frames = np.broadcast_to(grey[:, None, None, None], (length, size_px, size_px, 3)).copy()
        state = rng.normal(size=(length, 4)).astype(np.float32)
        action = rng.normal(size=(length, 4)).astype(np.float32)
        episodes.append(Episode(frames, state, action, ["touch the red cube", "lift the blue ball"][number % 2]))
    return episodes


@pytest.fixture
def demo_set(tmp_path: Path) -> tuple[Path, list[Episode]]:
    """A small data set on disk and the episodes it was written from."""
    episodes = make_episodes()
    path = tmp_path / "demos"
    write_lerobot_v30(path, episodes, 5, ("x", "y", "z", "opening"), ("x", "y", "z", "grip"), "gantry")
    return path, episodes
