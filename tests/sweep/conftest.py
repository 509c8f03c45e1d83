"""Makes `toy_stages` and `trial_sheets` importable by name, here and in the workers of a sweep; a key of trials."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from trial_sheets import made

from egoscale.sweep.trials import Key


@pytest.fixture
def key() -> Key:
    return made()


@pytest.fixture
def sealed(key: Key, tmp_path: Path) -> Path:
    (tmp_path / "key.json").write_text(key.text())
    return tmp_path / "key.json"
