"""Sheets of trials on real robots, made and filled in, for the tests of both."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterable
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st

from egoscale.sweep.trials import Key, schedule, sheet_text

NAMES = [f"policy-{number:02d}" for number in range(30)]
quick = settings(max_examples=40, deadline=None)


def named(policies: Iterable[str]) -> dict[str, dict[str, object]]:
    """Policies of which nothing is known but the name."""
    return {name: {} for name in policies}


@st.composite
def keys(draw: st.DrawFn) -> Key:
    policies = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=9, unique=True))
    tasks = draw(st.lists(st.sampled_from(["push", "lift", "fold-towel", "pour water"]), min_size=1, unique=True))
    conditions, blocks = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    return schedule(named(policies), tasks, conditions * blocks, conditions, draw(st.integers(0, 2**62)))


def made(num_policies: int = 3, tasks: tuple[str, ...] = ("push", "lift"), trials: int = 4, conditions: int = 2) -> Key:
    return schedule(named(NAMES[:num_policies]), tasks, trials, conditions, seed=7)


def filled(key: Key, seed: int = 0, **columns: str) -> list[dict[str, str]]:
    """The sheet as rows, run to its end."""
    rng = random.Random(seed)
    rows = list(csv.DictReader(io.StringIO(sheet_text(key))))
    return [row | {"success": rng.choice("01"), "operator": "Ada"} | columns for row in rows]


def saved(rows: list[dict[str, str]], path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
