"""A person at the table: a free hand that does what a narration says, filmed from the head."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from egoscale.robot.worlds.expert import DISTURBED_M, LIFT_M, PUSH_M, Reach, next_waypoint
from egoscale.robot.worlds.mjcf import TIMESTEP_S, SceneIndex, scene_mjcf
from egoscale.robot.worlds.render import Renderer, load_mujoco
from egoscale.robot.worlds.scene import Look, Thing, sample_task

Array = NDArray[np.float64]

HAND_SPEED_M_S = 0.55  # of a person with speed 1; a reach over a table peaks at .5-1 m/s in unhurried people
GRIP_S = 0.25
OPEN_M = 0.085
CLOSED_RAD = 0.62
MIN_FRAMES, MAX_FRAMES = 10, 16  # 2-3.2 s at 5 fps
_BLOCKS = 5
ATTEMPTS = 8  # an attempt in which the hand misses is not filmed

SKIN_TONES = (
    (0.96, 0.80, 0.69),
    (0.88, 0.67, 0.53),
    (0.74, 0.53, 0.38),
    (0.55, 0.37, 0.25),
    (0.36, 0.23, 0.16),
)

HAND_REACH = Reach(
    hover_m=0.10,
    grasp_m=0.012,
    push_m=0.018,
    behind_m=0.075,
    near_m=0.014,
    open_m=OPEN_M,
    held_m=0.073,
    empty_m=0.02,
)

# a long forearm fills the pixels that change, and a latent action is then one of the arm.
# a long forearm fills the pixels that change, and a latent action is then of the arm.
HAND_MJCF = """
<body name="hand" gravcomp="1">
  <inertial pos="0 -.03 .07" mass=".6" diaginertia="2e-3 2e-3 2e-3"/>
  <joint name="x" type="slide" axis="1 0 0" damping="3"/>
  <joint name="y" type="slide" axis="0 1 0" damping="3"/>
  <joint name="z" type="slide" axis="0 0 1" damping="3"/>
  <joint name="yaw" type="hinge" axis="0 0 1" damping=".2"/>
  <geom class="shown" name="skin_palm" type="ellipsoid" pos="0 -.045 .082" size=".042 .046 .018"/>
  <geom class="shown" name="skin_wrist" type="capsule" fromto="0 -.08 .086 0 -.115 .096" size=".022"/>
  <geom class="shown" name="sleeve" type="capsule" fromto="0 -.135 .1 0 -.165 .112" size=".03"/>
  <body name="thumb" pos="-.036 -.03 .076" gravcomp="1">
    <inertial pos="0 .015 -.03" mass=".06" diaginertia="1e-4 1e-4 1e-4"/>
    <joint name="thumb" type="hinge" axis="0 -1 0" range="0 .9" damping=".01"/>
    <geom class="body" name="skin_thumb" type="capsule" fromto="0 0 0 -.012 .03 -.062" size=".0105"/>
  </body>
  <body name="fingers" pos=".036 -.015 .076" gravcomp="1">
    <inertial pos="0 .015 -.03" mass=".06" diaginertia="1e-4 1e-4 1e-4"/>
    <joint name="fingers" type="hinge" axis="0 1 0" range="0 .9" damping=".01"/>
    <geom class="body" name="skin_index" type="capsule" fromto="-.012 .022 0 .012 .03 -.06" size=".009"/>
    <geom class="body" name="skin_middle" type="capsule" fromto="-.003 .008 0 .012 .013 -.062" size=".009"/>
    <geom class="body" name="skin_ring" type="capsule" fromto="0 -.008 0 .012 -.005 -.058" size=".0085"/>
  </body>
</body>"""
HAND_ACTUATORS = """
<position joint="x" kp="500" kv="32"/><position joint="y" kp="500" kv="32"/>
<position joint="z" kp="500" kv="32"/>
<position joint="yaw" kp="6" kv=".3"/>
<position joint="thumb" kp="1.2" kv=".03"/><position joint="fingers" kp="1.2" kv=".03"/>"""
_SKIN = ("skin_palm", "skin_wrist", "skin_thumb", "skin_index", "skin_middle", "skin_ring")


@dataclass(frozen=True)
class Participant:
    """A person: how the hand looks and how fast it moves."""

    skin_rgb: tuple[float, float, float]
    sleeve_rgb: tuple[float, float, float]
    speed: float


def sample_participant(rng: np.random.Generator) -> Participant:
    skin = np.clip(np.asarray(SKIN_TONES[rng.integers(len(SKIN_TONES))]) * rng.uniform(0.92, 1.06), 0, 1)
    sleeve = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.7), rng.uniform(0.15, 0.9))
    return Participant((float(skin[0]), float(skin[1]), float(skin[2])), sleeve, float(rng.uniform(0.5, 1.1)))


@dataclass(frozen=True)
class HeadCamera:
    """How a recording's camera sits on the head (metres; yaw, pitch, roll in radians), how much it drifts."""

    offset_m: tuple[float, float, float]
    tilt_rad: tuple[float, float, float]
    sway: float

    def drift(self, rng: np.random.Generator, num_frames: int) -> tuple[Array, Array]:
        """Offsets [T, 3] m and tilts [T, 3] rad per frame: a slow random walk pulled back to its middle."""
        steps = rng.normal(size=(num_frames, 6))
        path = np.zeros((num_frames, 6))
        state = rng.normal(size=6)
        for t in range(num_frames):
            state = 0.85 * state + 0.53 * steps[t]  # stationary variance 1, memory of about 1.2 s at 5 fps
            path[t] = state
        # Free viewing while seated: a few centimetres and degrees (1 = that much).
        return path[:, :3] * 0.015 * self.sway, path[:, 3:] * 0.05 * self.sway


def sample_camera(rng: np.random.Generator, sway: float) -> HeadCamera:
    offset, tilt = rng.normal(0, 0.012, 3), rng.normal(0, 0.015, 3)
    return HeadCamera(
        (float(offset[0]), float(offset[1]), float(offset[2])),
        (float(tilt[0]), float(tilt[1]), float(tilt[2])),
        sway,
    )


@dataclass(frozen=True)
class Take:
    """One filmed action."""

    frames_THWC: NDArray[np.uint8]
    hand: Array  # fingertips x, y, z (m) and opening (m) per frame [T, 4], true
    target_xy: Array  # [T, 2] m
    instruction: str
    verb: str
    num_attempts: int


class HumanWorld:
    """A table with a hand, its physics and its camera.

    Args:
        num_things: objects on the table.
        image_size_px: height and width of a picture.
        fps_hz: of the film; the hand is driven five times per frame.
    """

    def __init__(self, num_things: int, image_size_px: int = 64, fps_hz: int = 5) -> None:
        self._mujoco = load_mujoco()
        self.model = self._mujoco.MjModel.from_xml_string(scene_mjcf(num_things, HAND_MJCF, HAND_ACTUATORS))
        self.data = self._mujoco.MjData(self.model)
        self.index = SceneIndex(self.model, num_things)
        self._renderer = Renderer(self.model, image_size_px, self.index.camera)
        self.image_size_px = image_size_px
        self._substeps = max(1, round(1 / fps_hz / TIMESTEP_S / _BLOCKS))
        self._tick_s = self._substeps * TIMESTEP_S
        self._hand_geoms = np.array(
            [self.model.geom(name).id for name in ("skin_thumb", "skin_index", "skin_middle", "skin_ring")]
        )

    def dress(self, look: Look, person: Participant) -> None:
        self.index.dress(self.model, look)
        for name in _SKIN:
            self.model.geom_rgba[self.model.geom(name).id] = (*person.skin_rgb, 1)
        self.model.geom_rgba[self.model.geom("sleeve").id] = (*person.sleeve_rgb, 1)

    def film_take(
        self, seed: Sequence[int], verb: str, colours: Sequence[str], person: Participant, camera: HeadCamera
    ) -> Take:
        """Film one take; a pure function of its arguments (after `dress`).

        Raises:
            RuntimeError: the hand missed in every attempt.
        """
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng([*seed, attempt])
            task, things = sample_task(rng, colours, verb)
            poses = self._act(rng, verb, things, task.target, person.speed)
            if poses is not None:
                frames = self._render(rng, poses, camera)
                at = self.index.thing_qpos[task.target]
                hand = np.stack([self._hand(q) for q in poses])
                return Take(frames, hand, poses[:, at : at + 2].copy(), task.instruction, verb, attempt + 1)
        raise RuntimeError(f"take {list(seed)}: the hand missed {ATTEMPTS} times at {verb!r}; choose another seed")

    def _act(
        self, rng: np.random.Generator, verb: str, things: Sequence[Thing], target: int, speed: float
    ) -> Array | None:
        """Positions of everything per frame [T, nq], or None if the take went wrong."""
        data, mujoco = self.data, self._mujoco
        mujoco.mj_resetData(self.model, data)
        self.index.place(self.model, data, things)
        point = np.array(
            [rng.uniform(-0.13, 0.13), rng.uniform(-0.24, -0.16), rng.uniform(0.09, 0.14), rng.integers(2)]
        )
        yaw = rng.uniform(-0.2, 0.2)
        data.qpos[-6:-3], data.qpos[-3] = point[:3], yaw
        data.qpos[-2:] = point[3] * CLOSED_RAD
        self._command(point, yaw)
        mujoco.mj_forward(self.model, data)
        start = self.index.positions(data)
        half = things[target].half_height_m
        pace = HAND_SPEED_M_S * speed * rng.uniform(0.9, 1.1) * self._tick_s
        bias, idle = rng.normal(0, 0.004, 3), int(rng.integers(1, 5))
        waits = int(rng.integers(0, 3))  # frames before the hand sets off
        poses, done_at, touched = [data.qpos.copy()], -1, 0
        for frame in range(1, MAX_FRAMES):
            goal = point
            for _ in range(_BLOCKS):
                if frame > waits and done_at < 0:
                    tip = self._hand(data.qpos)
                    thing = self.index.positions(data)[target]
                    goal = next_waypoint(verb, HAND_REACH, tip[:3], tip[3], thing, half, start[target])
                    goal[:3] += bias + rng.normal(0, 0.004, 3)
                way = goal[:3] - point[:3]
                far = float(np.linalg.norm(way))
                point[:3] += way * min(1.0, pace / max(far, 1e-9))
                point[3] += float(np.clip(goal[3] - point[3], -self._tick_s / GRIP_S, self._tick_s / GRIP_S))
                self._command(point, yaw)
                mujoco.mj_step(self.model, data, nstep=self._substeps)
            poses.append(data.qpos.copy())
            now = self.index.positions(data)
            if (np.delete(np.linalg.norm(now - start, axis=1), target) > DISTURBED_M).any():
                return None
            if done_at < 0:
                touched += verb == "touch" and self._touches(target)
                done = {
                    "touch": touched >= 2,
                    "push": now[target, 1] - start[target, 1] >= PUSH_M,
                    "lift": now[target, 2] - start[target, 2] >= LIFT_M,
                }[verb]
                if done:
                    done_at, point = frame, point.copy()
            if done_at >= 0 and frame >= max(done_at + idle, MIN_FRAMES - 1):
                return np.stack(poses)
        return np.stack(poses) if done_at >= 0 else None

    def _command(self, point: Array, yaw: float) -> None:
        self.data.ctrl[:3], self.data.ctrl[3] = point[:3], yaw
        self.data.ctrl[4:] = point[3] * CLOSED_RAD

    def _touches(self, thing: int) -> bool:
        pairs = self.data.contact.geom
        hand, of_thing = np.isin(pairs, self._hand_geoms), np.isin(pairs, self.index.thing_geoms[thing])
        return bool((hand.any(1) & of_thing.any(1)).any())

    def _hand(self, qpos: Array) -> Array:
        # The opening shrinks from OPEN_M to nothing as both sides close.
        return np.array([*qpos[-6:-3], OPEN_M * (1 - (qpos[-2] + qpos[-1]) / 2 / CLOSED_RAD)])

    def _render(self, rng: np.random.Generator, poses: Array, camera: HeadCamera) -> NDArray[np.uint8]:
        size = self.image_size_px
        frames = np.empty((len(poses), size, size, 3), np.uint8)
        offsets, tilts = camera.drift(rng, len(poses))
        for pose, offset, tilt, out in zip(poses, offsets, tilts, frames, strict=True):
            self.data.qpos[:] = pose
            self.index.aim(self.model, camera.offset_m + offset, camera.tilt_rad + tilt)
            self._mujoco.mj_kinematics(self.model, self.data)
            self._mujoco.mj_camlight(self.model, self.data)
            self._renderer.draw(self.model, self.data, out)
        return frames

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()
