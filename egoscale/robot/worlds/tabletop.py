"""Robot worlds: a Cartesian gantry with a parallel gripper at a table, many in one process."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egoscale.robot.worlds.expert import DISTURBED_M, LIFT_M, PUSH_M, TOUCH_STEPS, Reach, next_waypoint
from egoscale.robot.worlds.mjcf import TIMESTEP_S, SceneIndex, scene_mjcf
from egoscale.robot.worlds.render import Renderer, load_mujoco
from egoscale.robot.worlds.scene import (
    VERBS,
    Task,
    Thing,
    check_words,
    sample_look,
    sample_task,
)

Array = NDArray[np.float64]

CONTROL_HZ = 5
SPEED_M_S = 0.3  # the gantry follows a waypoint at this speed
GRIP_S = 0.3  # time from open to closed
OPEN_M = 0.085
WORKSPACE_M = ((-0.26, -0.22, 0.008), (0.26, 0.24, 0.26))
_BLOCKS = 5  # set points per control step
_SUBSTEPS = round(1 / CONTROL_HZ / TIMESTEP_S / _BLOCKS)

ROBOT_REACH = Reach(
    hover_m=0.11,
    grasp_m=0.014,
    push_m=0.018,
    behind_m=0.062,
    near_m=0.015,
    open_m=OPEN_M,
    held_m=0.071,
    empty_m=0.02,
)

# The arm comes from the far side, opposite to a person's; it rises away so that it hides little of the table.
ROBOT_MJCF = """
<body name="gantry" gravcomp="1">
  <inertial pos="0 0 .08" mass="1" diaginertia="1e-2 1e-2 1e-2"/>
  <joint name="x" type="slide" axis="1 0 0" damping="4"/>
  <joint name="y" type="slide" axis="0 1 0" damping="4"/>
  <joint name="z" type="slide" axis="0 0 1" damping="4"/>
  <geom class="shown" type="box" pos="0 0 .083" size=".062 .022 .016" rgba=".93 .93 .94 1"/>
  <geom class="shown" type="cylinder" pos="0 0 .118" size=".02 .02" rgba=".55 .56 .58 1"/>
  <geom class="shown" type="capsule" fromto="0 0 .14 0 .16 .22" size=".021" rgba=".9 .9 .92 1"/>
  <geom class="shown" type="capsule" fromto="0 .16 .22 0 .7 .36" size=".026" rgba=".72 .73 .75 1"/>
  <body name="left" gravcomp="1">
    <inertial pos="-.0495 0 .04" mass=".08" diaginertia="1e-4 1e-4 1e-4"/>
    <joint name="left" type="slide" axis="1 0 0" range="0 .0425" damping="2"/>
    <geom class="body" name="left" type="box" pos="-.0495 0 .034" size=".007 .012 .034" rgba=".25 .26 .28 1"/>
  </body>
  <body name="right" gravcomp="1">
    <inertial pos=".0495 0 .04" mass=".08" diaginertia="1e-4 1e-4 1e-4"/>
    <joint name="right" type="slide" axis="-1 0 0" range="0 .0425" damping="2"/>
    <geom class="body" name="right" type="box" pos=".0495 0 .034" size=".007 .012 .034" rgba=".25 .26 .28 1"/>
  </body>
</body>"""
ROBOT_ACTUATORS = """
<position joint="x" kp="1600" kv="80"/><position joint="y" kp="1600" kv="80"/>
<position joint="z" kp="1600" kv="80"/>
<position joint="left" kp="160" kv="8"/><position joint="right" kp="160" kv="8"/>"""


@dataclass
class _World:
    """One robot world and what has happened in it."""

    model: Any
    data: Any
    task: Task
    things: list[Thing]
    start: Array  # object centres at the start [num_things, 3]
    set_point: Array  # x, y, z, grip
    touched_steps: int = 0
    success: bool = False
    failed: bool = False


class Tabletop:
    """`num_worlds` robot worlds that share one compiled scene and one OpenGL context.

    World i is a pure function of its seed: what it shows, asks and does depends on nothing else.

    Args:
        num_worlds: how many.
        image_size_px: height and width of a picture.
        colours: an object of each lies on the table (2 to 4 of scene.COLOURS).
        verbs: of scene.VERBS; world i asks for `verbs[seed % len(verbs)]`.

    Raises:
        ValueError: unknown colours or verbs.
        RuntimeError: MuJoCo or headless OpenGL is missing.
    """

    action_names = ("x", "y", "z", "grip")
    proprioception_names = ("x", "y", "z", "opening")
    control_hz = CONTROL_HZ

    def __init__(
        self,
        num_worlds: int,
        image_size_px: int = 64,
        colours: Sequence[str] = ("red", "green", "blue"),
        verbs: Sequence[str] = VERBS,
    ) -> None:
        check_words(colours, verbs)
        if num_worlds < 1:
            raise ValueError(f"num_worlds = {num_worlds}: a tabletop needs at least one world")
        self.num_worlds = num_worlds
        self.image_size_px = image_size_px
        self.colours, self.verbs = tuple(colours), tuple(verbs)
        self._mujoco = load_mujoco()
        model = self._mujoco.MjModel.from_xml_string(scene_mjcf(len(colours), ROBOT_MJCF, ROBOT_ACTUATORS))
        self._index = SceneIndex(model, len(colours))
        self._index.aim(model, (0, 0, 0), (0, 0, 0))
        self._fingers = np.array([model.geom("left").id, model.geom("right").id])
        self._renderer = Renderer(model, image_size_px, self._index.camera)
        self._models = [copy.copy(model) for _ in range(num_worlds)]
        self._worlds: list[_World] = []

    # --- the world --------------------------------------------------------------------------------

    def reset(self, seeds: Sequence[int]) -> None:
        """Start world i from `seeds[i]`.

        Raises:
            ValueError: the number of seeds is not `num_worlds`, or a seed is negative.
        """
        if len(seeds) != self.num_worlds:
            raise ValueError(f"{len(seeds)} seeds for {self.num_worlds} worlds; give one each")
        if min(seeds) < 0:
            raise ValueError(f"seed {min(seeds)} is negative; seeds start at 0")
        self._worlds = [self._start(model, int(seed)) for model, seed in zip(self._models, seeds, strict=True)]

    def _start(self, model: Any, seed: int) -> _World:
        rng = np.random.default_rng([seed, 7])
        task, things = sample_task(rng, self.colours, self.verbs[seed % len(self.verbs)])
        self._index.dress(model, sample_look(rng))
        data = self._mujoco.MjData(model)
        self._index.place(model, data, things)
        home = np.array([rng.uniform(-0.12, 0.12), rng.uniform(0.04, 0.16), rng.uniform(0.12, 0.17), 0.0])
        grip = float(rng.integers(2))
        data.qpos[-5:-2] = home[:3]
        data.qpos[-2:] = grip * OPEN_M / 2
        data.ctrl[:3], data.ctrl[3:] = home[:3], grip * OPEN_M / 2
        self._mujoco.mj_forward(model, data)
        home[3] = grip
        return _World(model, data, task, things, self._index.positions(data), home)

    def step(self, actions: NDArray[Any]) -> None:
        """Hold `actions` [N, 4] (absolute waypoint x, y, z in m, grip 0 open .. 1 closed) for 1/5 s.

        The waypoint is kept inside the workspace; the gantry moves towards it at SPEED_M_S at most.

        Raises:
            ValueError: another shape, or a number that is not finite (says which world).
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (self.num_worlds, 4):
            raise ValueError(f"actions have shape {actions.shape}; expected {(self.num_worlds, 4)} (x, y, z, grip)")
        bad = np.flatnonzero(~np.isfinite(actions).all(1))
        if len(bad):
            raise ValueError(f"action of world {bad[0]} is not finite: {actions[bad[0]].tolist()}")
        for world, action in zip(self._active(), actions, strict=True):
            self._advance(world, action)

    def _advance(self, world: _World, action: Array) -> None:
        goal = np.clip(action[:3], *WORKSPACE_M)
        grip = float(np.clip(action[3], 0, 1))
        tick_s = 1 / CONTROL_HZ / _BLOCKS
        for _ in range(_BLOCKS):
            way = goal - world.set_point[:3]
            far = float(np.linalg.norm(way))
            world.set_point[:3] += way * min(1.0, SPEED_M_S * tick_s / max(far, 1e-9))
            turn = grip - world.set_point[3]
            world.set_point[3] += float(np.clip(turn, -tick_s / GRIP_S, tick_s / GRIP_S))
            world.data.ctrl[:3] = world.set_point[:3]
            world.data.ctrl[3:] = world.set_point[3] * OPEN_M / 2
            self._mujoco.mj_step(world.model, world.data, nstep=_SUBSTEPS)
        self._judge(world)

    def _judge(self, world: _World) -> None:
        """Decide success or failure; the first of the two stands."""
        if world.success or world.failed:
            return
        now = self._index.positions(world.data)
        moved = np.linalg.norm(now - world.start, axis=1)
        target = world.task.target
        if (np.delete(moved, target) > DISTURBED_M).any() or now[target, 2] < -0.02:
            world.failed = True
            return
        if world.task.verb == "touch":
            touching = self._touches(world, target)
            world.touched_steps = world.touched_steps + 1 if touching else 0
            world.success = world.touched_steps >= TOUCH_STEPS
        elif world.task.verb == "push":
            world.success = bool(now[target, 1] - world.start[target, 1] >= PUSH_M)
        else:
            world.success = bool(now[target, 2] - world.start[target, 2] >= LIFT_M)

    def _touches(self, world: _World, thing: int) -> bool:
        pairs = world.data.contact.geom
        finger = np.isin(pairs, self._fingers)
        of_thing = np.isin(pairs, self._index.thing_geoms[thing])
        return bool((finger.any(1) & of_thing.any(1)).any())

    def _active(self) -> list[_World]:
        if not self._worlds:
            raise ValueError("the worlds have not been started; call reset(seeds) first")
        return self._worlds

    # --- what is seen, asked and achieved ------------------------------------------------------------

    def observe(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Pictures [N, H, W, 3] uint8 and proprioception [N, 4] float32 (see `proprioception`)."""
        size = self.image_size_px
        images = np.empty((self.num_worlds, size, size, 3), np.uint8)
        for world, out in zip(self._active(), images, strict=True):
            self._renderer.draw(world.model, world.data, out)
        return images, self.proprioception()

    def proprioception(self) -> NDArray[np.float32]:
        """[N, 4] float32: x, y, z of the fingertips and the opening between the fingers, metres."""
        return np.stack([self._proprioception(world) for world in self._active()]).astype(np.float32)

    def _proprioception(self, world: _World) -> Array:
        q = world.data.qpos[-5:]
        return np.array([q[0], q[1], q[2], OPEN_M - q[3] - q[4]])

    def expert_action(self) -> NDArray[np.float32]:
        """What the scripted expert would do in the state of each world: actions [N, 4] float32."""
        actions = []
        for world in self._active():
            body = self._proprioception(world)
            target = world.task.target
            thing = self._index.positions(world.data)[target]
            half = world.things[target].half_height_m
            waypoint = next_waypoint(
                world.task.verb, ROBOT_REACH, body[:3], float(body[3]), thing, half, world.start[target]
            )
            actions.append(waypoint)
        return np.stack(actions).astype(np.float32)

    def success(self) -> NDArray[np.bool_]:
        """[N] bool: the task was done before anything went wrong (stays true)."""
        return np.array([world.success for world in self._active()])

    def failed(self) -> NDArray[np.bool_]:
        """[N] bool: before success another object was moved by over 4 cm, or the target fell (stays true)."""
        return np.array([world.failed for world in self._active()])

    @property
    def instructions(self) -> list[str]:
        """What each world asks for: "lift the red cube"."""
        return [world.task.instruction for world in self._active()]

    @property
    def verbs_of_world(self) -> list[str]:
        return [world.task.verb for world in self._active()]

    @property
    def targets_xy(self) -> Array:
        """[N, 2] m: where the target lies now."""
        return np.stack([self._index.positions(w.data)[w.task.target, :2] for w in self._active()])

    @property
    def things_of_world(self) -> list[list[Thing]]:
        """The objects of each world, as they were put down."""
        return [list(world.things) for world in self._active()]

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()
