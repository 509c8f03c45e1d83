"""The tabletop as a MuJoCo model: MJCF of primitives, and what of it a world may change.

A world keeps every shape of every object and hides all but one, so that many worlds share one compiled model
and one OpenGL context: what differs between them (colours, sizes, lights, camera) is written into a
copy of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egoscale.robot.worlds.scene import (
    HEAD_LOOKS_AT_M,
    HEAD_POSITION_M,
    SHAPES,
    TABLE_HALF_M,
    TABLE_MATERIALS,
    Look,
    Thing,
)

Array = NDArray[np.float64]

FOVY_DEG = 34.0
TIMESTEP_S = 0.008  # grasps hold at this step with the soft contacts below; 25 steps per robot command
_GEOM_TYPES = {"cube": "box", "cylinder": "cylinder", "ball": "sphere", "box": "box"}


def scene_mjcf(num_things: int, body: str, actuators: str) -> str:
    """MJCF of the table with `num_things` objects and a moving body (a hand or a gripper)."""
    things = "".join(_thing_mjcf(i) for i in range(num_things))
    return f"""
<mujoco model="tabletop">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP_S}" integrator="implicitfast" cone="elliptic" impratio="4" iterations="12"
   ls_iterations="10">
    <flag multiccd="disable"/>
  </option>
  <size memory="2M"/>
  <visual>
    <quality offsamples="0" shadowsize="0" numslices="10" numstacks="6" numquads="1"/>
    <headlight ambient=".4 .4 .4" diffuse=".1 .1 .1" specular="0 0 0"/>
    <map znear=".02" zfar="20"/>
  </visual>
  <statistic extent="1" center="0 0 0"/>
  <asset>
    <texture name="fine" type="2d" builtin="checker" rgb1="1 1 1" rgb2=".82 .82 .82" width="64" height="64"/>
    <texture name="gradient" type="2d" builtin="gradient" rgb1="1 1 1" rgb2=".7 .7 .7" width="64"
     height="64"/>
    <texture name="speckle" type="2d" builtin="flat" rgb1="1 1 1" mark="random" markrgb=".6 .6 .6"
     random=".12" width="64" height="64"/>
    <material name="plain" specular="0"/>
    <material name="fine_checks" texture="fine" texrepeat="9 7" specular="0"/>
    <material name="coarse_checks" texture="fine" texrepeat="3 2" specular="0"/>
    <material name="gradient" texture="gradient" specular="0"/>
    <material name="speckle" texture="speckle" texrepeat="1 1" specular="0"/>
  </asset>
  <default>
    <default class="thing">
      <geom condim="6" friction="1.2 .01 .0015" contype="1" conaffinity="3" rgba="0 0 0 0" solref=".016 1"/>
    </default>
    <default class="body">
      <geom condim="4" friction="1.6 .02 .001" contype="2" conaffinity="0" solref=".016 1" mass=".05"/>
    </default>
    <default class="shown">
      <geom contype="0" conaffinity="0" mass=".05"/>
    </default>
  </default>
  <worldbody>
    <light name="lamp" directional="true" pos="0 0 1.5" dir="0 0 -1" castshadow="false" specular="0 0 0"/>
    <camera name="head" pos="0 -.38 .54" fovy="{FOVY_DEG}"/>
    <geom name="floor" type="plane" pos="0 0 -.7" size="4 4 1" contype="0" conaffinity="0"/>
    <geom name="table" type="box" pos="0 0 -.02" size="{TABLE_HALF_M[0]} {TABLE_HALF_M[1]} .02"
     material="plain" condim="6" friction="1.0 .01 .0015"/>
    {things}
    {body}
  </worldbody>
  <actuator>{actuators}</actuator>
</mujoco>"""


def _thing_mjcf(i: int) -> str:
    # Compiled larger than any object and able to touch: the collision tree of a body and its contact bits are
    # made once, by the compiler, and must cover whatever a world chooses later.
    geoms = "".join(
        f'<geom class="thing" name="thing{i}_{shape}" type="{_GEOM_TYPES[shape]}" size=".036 .036 .036" mass=".001"/>'
        for shape in SHAPES
    )
    # One inertia for all shapes (80 g): a 5.5 cm block of foam-filled wood.
    return (
        f'<body name="thing{i}" pos="{0.1 * i} 0 .03"><freejoint name="thing{i}"/>'
        f'<inertial pos="0 0 0" mass=".08" diaginertia="4e-5 4e-5 4e-5"/>{geoms}</body>'
    )


class SceneIndex:
    """Where a compiled model keeps what is changed per world."""

    def __init__(self, model: Any, num_things: int) -> None:
        self.thing_geoms = np.array([[model.geom(f"thing{i}_{s}").id for s in SHAPES] for i in range(num_things)])
        self.thing_qpos = np.array([int(model.joint(f"thing{i}").qposadr[0]) for i in range(num_things)])
        self.thing_dof = np.array([int(model.joint(f"thing{i}").dofadr[0]) for i in range(num_things)])
        self.thing_bodies = np.array([model.body(f"thing{i}").id for i in range(num_things)])
        self.table = int(model.geom("table").id)
        self.floor = int(model.geom("floor").id)
        self.lamp = int(model.light("lamp").id)
        self.camera = int(model.camera("head").id)
        self.materials = np.array([model.material(name).id for name in TABLE_MATERIALS])

    def dress(self, model: Any, look: Look) -> None:
        """Write table, floor and light into the model."""
        model.geom_matid[self.table] = self.materials[look.table_material]
        model.mat_rgba[self.materials, :3] = look.table_rgb
        model.geom_rgba[self.floor, :3] = look.floor_rgb
        position = np.asarray(look.light_position_m)
        model.light_pos[self.lamp] = position
        model.light_dir[self.lamp] = -position / np.linalg.norm(position)
        model.light_diffuse[self.lamp] = look.light_strength
        model.vis.headlight.ambient[:] = look.ambient

    def place(self, model: Any, data: Any, things: Sequence[Thing]) -> None:
        """Show one shape per object and put the objects on the table, at rest."""
        for i, thing in enumerate(things):
            for geom, shape in zip(self.thing_geoms[i], SHAPES, strict=True):
                chosen = shape == thing.shape
                model.geom_contype[geom] = 1 if chosen else 0
                model.geom_conaffinity[geom] = 3 if chosen else 0
                model.geom_rgba[geom] = (*thing.rgb, 1.0) if chosen else (0.0, 0.0, 0.0, 0.0)
                sizes = np.asarray(thing.half_sizes_m if chosen else (0.01, 0.01, 0.01))
                model.geom_size[geom] = sizes
                # The collision broad phase reads these two, which the compiler derived from the old size.
                model.geom_rbound[geom] = _bounding_radius(shape, sizes)
                model.geom_aabb[geom, 3:] = _half_extent(shape, sizes)
            at = self.thing_qpos[i]
            half = thing.yaw_rad / 2
            data.qpos[at : at + 7] = (
                thing.x_m,
                thing.y_m,
                thing.half_height_m,
                np.cos(half),
                0,
                0,
                np.sin(half),
            )
            data.qvel[self.thing_dof[i] : self.thing_dof[i] + 6] = 0

    def positions(self, data: Any) -> Array:
        """Object centres [num_things, 3], metres."""
        return np.stack([data.qpos[a : a + 3] for a in self.thing_qpos])

    def aim(self, model: Any, offset_m: Sequence[float], tilt_rad: Sequence[float]) -> None:
        """Put the head camera at its place + `offset_m`, turned by `tilt_rad` (yaw, pitch, roll)."""
        model.cam_pos[self.camera] = np.asarray(HEAD_POSITION_M) + np.asarray(offset_m)
        model.cam_quat[self.camera] = _camera_quaternion(tilt_rad)


def _half_extent(shape: str, sizes: Array) -> Array:
    if shape == "ball":
        return np.full(3, sizes[0])
    if shape == "cylinder":
        return np.array([sizes[0], sizes[0], sizes[1]])
    return sizes


def _bounding_radius(shape: str, sizes: Array) -> float:
    if shape == "ball":
        return float(sizes[0])
    if shape == "cylinder":
        return float(np.hypot(sizes[0], sizes[1]))
    return float(np.linalg.norm(sizes))


def _camera_quaternion(tilt_rad: Sequence[float]) -> Array:
    """(w, x, y, z) of a camera that looks from its place at the table, then turned by yaw, pitch, roll."""
    forward = np.asarray(HEAD_LOOKS_AT_M) - np.asarray(HEAD_POSITION_M)
    pitch_down = np.arctan2(-forward[2], forward[1])
    yaw, pitch, roll = tilt_rad
    # A MuJoCo camera looks along -z with y up: turning it by 90 degrees about x makes it look along +y.
    angle = np.pi / 2 - pitch_down + pitch
    q = _about(2, yaw)
    q = _product(q, _about(0, angle))
    return _product(q, _about(2, roll))


def _about(axis: int, angle: float) -> Array:
    q = np.zeros(4)
    q[0], q[1 + axis] = np.cos(angle / 2), np.sin(angle / 2)
    return q


def _product(a: Array, b: Array) -> Array:
    w, v = a[0] * b[0] - a[1:] @ b[1:], a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])
    return np.array([w, *v])
