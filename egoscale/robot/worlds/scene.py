"""What stands on the table, where, and how the scene looks: everything drawn by chance.

Axes: x to the right, y away from the person, z up; the origin is the middle of the table's surface. Metres,
radians.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TABLE_HALF_M = (0.34, 0.26)  # half of .68 x .52 m
# Where objects may lie: inside the picture of a camera with 34 degrees of view at HEAD_POSITION_M.
PLACE_X_M = (-0.165, 0.165)
PLACE_Y_M = (-0.115, 0.155)
MIN_DISTANCE_M = 0.12  # between object centres: a gripper of 8.5 cm fits between any two
HEAD_POSITION_M = (0.0, -0.38, 0.54)
HEAD_LOOKS_AT_M = (0.0, 0.045, 0.0)

SHAPES = ("cube", "cylinder", "ball", "box")
# Half sizes: 5-6 cm objects; a ball and a cylinder are told by their radius.
_HALF_SIZES: dict[str, tuple[float, float, float]] = {
    "cube": (0.026, 0.026, 0.026),
    "cylinder": (0.028, 0.028, 0.0),
    "ball": (0.028, 0.0, 0.0),
    "box": (0.027, 0.031, 0.021),
}

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.08, 0.08),
    "green": (0.08, 0.66, 0.14),
    "blue": (0.10, 0.22, 0.90),
    "yellow": (0.93, 0.82, 0.10),
    "purple": (0.55, 0.14, 0.70),
    "orange": (0.96, 0.48, 0.06),
}
VERBS = ("touch", "push", "lift")
TABLE_MATERIALS = ("plain", "fine_checks", "coarse_checks", "gradient", "speckle")
# Wood, beige, grey, white, slate: nearly unsaturated, so that no table is mistaken for an object.
_TABLE_TINTS = (
    (0.74, 0.58, 0.42),
    (0.82, 0.76, 0.66),
    (0.62, 0.62, 0.62),
    (0.90, 0.90, 0.88),
    (0.42, 0.44, 0.48),
    (0.56, 0.42, 0.32),
)


def check_words(colours: Sequence[str], verbs: Sequence[str]) -> None:
    """Refuse colours or verbs that the tabletop does not know.

    Raises:
        ValueError: an unknown word, a colour given twice, or fewer than two colours or no verb.
    """
    for name, given, known in (("colours", colours, tuple(COLOURS)), ("verbs", verbs, VERBS)):
        unknown = [word for word in given if word not in known]
        if unknown:
            raise ValueError(f"{name} = {list(given)}: {unknown[0]!r} is not known; choose from {list(known)}")
        if len(set(given)) != len(given):
            raise ValueError(f"{name} = {list(given)}: each may be named once")
    if not 2 <= len(colours) <= 4:
        raise ValueError(f"colours = {list(colours)}: a scene has an object per colour and room for 2 to 4")
    if not verbs:
        raise ValueError("verbs is empty; choose from " + str(list(VERBS)))


@dataclass(frozen=True)
class Thing:
    """One object on the table."""

    colour: str
    shape: str
    rgb: tuple[float, float, float]
    scale: float
    x_m: float
    y_m: float
    yaw_rad: float

    @property
    def half_sizes_m(self) -> tuple[float, float, float]:
        a, b, c = _HALF_SIZES[self.shape]
        if self.shape == "cylinder":
            return a * self.scale, 0.026 * self.scale, 0.0  # radius, half height
        return a * self.scale, b * self.scale, c * self.scale

    @property
    def half_height_m(self) -> float:
        sizes = self.half_sizes_m
        return sizes[{"cube": 2, "box": 2, "cylinder": 1, "ball": 0}[self.shape]]


@dataclass(frozen=True)
class Task:
    """What is asked for: a verb and the index of an object."""

    verb: str
    target: int
    instruction: str


@dataclass(frozen=True)
class Look:
    """Table, floor and light of a scene (colours 0..1)."""

    table_material: int
    table_rgb: tuple[float, float, float]
    floor_rgb: tuple[float, float, float]
    light_position_m: tuple[float, float, float]
    light_strength: float
    ambient: float


def sample_look(rng: np.random.Generator) -> Look:
    tint = np.asarray(_TABLE_TINTS[rng.integers(len(_TABLE_TINTS))])
    table = np.clip(tint * rng.uniform(0.8, 1.12) + rng.normal(0, 0.02, 3), 0.1, 0.97)
    floor = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.35), rng.uniform(0.12, 0.6))
    light = (rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.5), rng.uniform(1.0, 1.6))
    strength, ambient = float(rng.uniform(0.35, 0.6)), float(rng.uniform(0.38, 0.52))
    material = int(rng.integers(len(TABLE_MATERIALS)))
    return Look(material, _triple(table), _triple(floor), _triple(light), strength, ambient)


def sample_things(rng: np.random.Generator, colours: Sequence[str], verb: str, target: int) -> list[Thing]:
    """Objects that do not touch, with room for the verb (free table behind an object to push)."""
    for _ in range(1000):
        x = rng.uniform(*PLACE_X_M, len(colours))
        y = rng.uniform(*PLACE_Y_M, len(colours))
        # The picture is a trapezium: nearer rows are narrower.
        if (np.abs(x) > 0.165 + 0.12 * np.minimum(y, 0.0)).any():
            continue
        gap = np.hypot(x[:, None] - x[None], y[:, None] - y[None]) + np.eye(len(colours))
        if gap.min() < MIN_DISTANCE_M:
            continue
        if verb == "push":
            # A corridor of 15 cm, from where the hand comes down to where the object ends.
            beside = np.abs(x - x[target]) < 0.075
            along = (y - y[target] > -0.16) & (y - y[target] < 0.19)
            others = np.arange(len(colours)) != target
            if y[target] > 0.11 or (beside & along & others).any():
                continue
        break
    else:
        raise ValueError(f"no place found for {len(colours)} objects {MIN_DISTANCE_M} m apart; use fewer colours")
    things = []
    for i, colour in enumerate(colours):
        shape = SHAPES[rng.integers(len(SHAPES))]
        h, s, v = colorsys.rgb_to_hsv(*COLOURS[colour])
        rgb = colorsys.hsv_to_rgb(
            (h + rng.uniform(-0.012, 0.012)) % 1.0,
            s * rng.uniform(0.9, 1.0),
            min(v * rng.uniform(0.85, 1.1), 1.0),
        )
        scale = float(rng.uniform(0.95, 1.05))
        yaw = float(rng.uniform(-0.25, 0.25))
        things.append(Thing(colour, shape, _triple(rgb), scale, float(x[i]), float(y[i]), yaw))
    return things


def sample_task(rng: np.random.Generator, colours: Sequence[str], verb: str) -> tuple[Task, list[Thing]]:
    target = int(rng.integers(len(colours)))
    things = sample_things(rng, colours, verb, target)
    return Task(verb, target, f"{verb} the {things[target].colour} {things[target].shape}"), things


def _triple(values: Any) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in values)
    return r, g, b
