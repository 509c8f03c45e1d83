"""The scripted expert: from what is on the table to the next waypoint, without memory.

Because it has no memory it can label any state, also one that a noisy execution or a learner led to (DART).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TOUCH_STEPS = 2  # control steps in a row with contact: a fly-by does not count
PUSH_M = 0.055  # away from the person's side
LIFT_M = 0.045
DISTURBED_M = 0.04  # another object that moved further fails the run
PUSH_GOAL_M = 0.08


@dataclass(frozen=True)
class Reach:
    """Geometry of a body that does the tasks; heights are those of its fingertips above the table, metres."""

    hover_m: float  # travels above every object
    grasp_m: float
    push_m: float
    behind_m: float  # distance from an object's centre at which it comes down to push
    near_m: float  # horizontal error at which it comes down
    open_m: float  # opening of the open grip
    held_m: float  # an opening below this, with an object between the fingers, is a grasp
    empty_m: float  # an opening below this holds nothing


def next_waypoint(
    verb: str, reach: Reach, tip: Array, opening_m: float, thing: Array, half_height_m: float, start: Array
) -> Array:
    """Absolute waypoint (x, y, z, grip) for one step.

    Args:
        verb: touch, push or lift.
        reach: the body.
        tip: fingertips, (x, y, z) m.
        opening_m: distance between the fingers, m.
        thing: centre of the target now, (x, y, z) m.
        half_height_m: of the target.
        start: centre of the target at the start of the run.
    """
    if verb == "touch":
        return _touch(reach, tip, thing, half_height_m)
    if verb == "push":
        return _push(reach, tip, thing, start)
    return _lift(reach, tip, opening_m, thing, start)


def _go(reach: Reach, tip: Array, x: float, y: float, grip: float) -> Array:
    """Towards a place above the table; from low down, up first, so that nothing is swept away."""
    far = np.hypot(tip[0] - x, tip[1] - y)
    if tip[2] < reach.hover_m - 0.04 and far > 2 * reach.near_m:
        return np.array([tip[0], tip[1], reach.hover_m + 0.02, grip])
    return np.array([x, y, reach.hover_m, grip])


def _touch(reach: Reach, tip: Array, thing: Array, half_height_m: float) -> Array:
    x, y = float(thing[0]), float(thing[1])
    if np.hypot(tip[0] - x, tip[1] - y) > 1.4 * reach.near_m:  # a touch may be off the middle
        return _go(reach, tip, x, y, 1.0)
    # Aimed below the top, so that an arm that is off by a centimetre still rests on the object.
    return np.array([x, y, thing[2] + half_height_m - 0.016, 1.0])


def _push(reach: Reach, tip: Array, thing: Array, start: Array) -> Array:
    x, y = float(thing[0]), float(thing[1])
    behind = y - reach.behind_m
    low = tip[2] < reach.push_m + 0.02
    if low and abs(tip[0] - x) < 0.025 and y - reach.behind_m - 0.03 < tip[1] < y - 0.01:
        # The goal is for the fingertips: the object runs ahead of them by about half its size.
        return np.array([x, start[1] + PUSH_GOAL_M - 0.03, reach.push_m, 1.0])
    if np.hypot(tip[0] - x, tip[1] - behind) > reach.near_m:
        return _go(reach, tip, x, behind, 1.0)
    return np.array([x, behind, reach.push_m, 1.0])


def _lift(reach: Reach, tip: Array, opening_m: float, thing: Array, start: Array) -> Array:
    x, y = float(thing[0]), float(thing[1])
    near = np.hypot(tip[0] - x, tip[1] - y)
    around = near < 0.02 and tip[2] < thing[2]
    if around and reach.empty_m < opening_m < reach.held_m:
        return np.array([start[0], start[1], reach.grasp_m + LIFT_M + 0.05, 1.0])
    if around and (tip[2] < reach.grasp_m + 0.012 or opening_m < reach.open_m - 0.01):
        return np.array([x, y, reach.grasp_m, 1.0])
    if near > reach.near_m:
        return _go(reach, tip, x, y, 0.0)
    return np.array([x, y, reach.grasp_m, 0.0])
