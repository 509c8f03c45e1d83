"""What all tests know: where the repository is."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def drawing() -> None:
    """Skips where MuJoCo cannot draw without a screen."""
    from egoscale.robot.worlds import Tabletop

    try:
        Tabletop(1, 32).close()
    except RuntimeError as error:
        pytest.skip(f"cannot draw here: {error}")
