"""Scripted demonstrations of the tabletop robot, as a LeRobot v3.0 data set."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from egoscale.recipe import TeleopRecipe
from egoscale.robot.lerobot_write import Episode, write_lerobot_v30
from egoscale.robot.worlds.tabletop import CONTROL_HZ, Tabletop

Progress = Callable[[int, int, str], None]

MAX_STEPS = 24
_WORLDS = 30  # run at a time; a demonstration depends on its own seed alone
_KNOCK_PROBABILITY, _KNOCK = (
    0.12,
    4.0,
)  # now and then the arm is thrown off by four times the noise, and recovers


def teleoperate(out: Path, recipe: TeleopRecipe, progress: Progress | None = None) -> dict[str, Any]:
    """Record `recipe.num_demos` successful demonstrations into the folder `out`.

    The expert's waypoints are executed with noise and stored clean, so that the states a learner errs into
    are shown with what to do there (DART, Laskey et al. 2017). World i has seed `recipe.seed + i`; failures
    are dropped, so the first demonstrations of a larger set are those of a smaller one.

    Args:
        out: folder; gets `meta/`, `data/`, `videos/` (LeRobot v3.0, 5 Hz).
        recipe: number, noise, colours, verbs.
        progress: called with (demos done, demos wanted, "demos").

    Returns:
        {"num_demos", "num_frames", "num_tried"}.

    Raises:
        ValueError: another rate than 5 Hz, unknown colours or verbs.
        RuntimeError: MuJoCo or headless OpenGL is missing, or the expert fails nearly always.
    """
    if recipe.fps_hz != CONTROL_HZ:
        raise ValueError(f"fps_hz = {recipe.fps_hz}: the tabletop robot is driven at {CONTROL_HZ} Hz")
    for folder in ("meta", "data", "videos"):  # a killed recording starts anew: it takes seconds
        shutil.rmtree(out / folder, ignore_errors=True)
    table = Tabletop(_WORLDS, recipe.image_size_px, recipe.colours, recipe.verbs)
    tried = [0]
    counts = write_lerobot_v30(
        out,
        _demos(table, recipe, progress, tried),
        recipe.fps_hz,
        Tabletop.proprioception_names,
        Tabletop.action_names,
        robot_type="tabletop_gantry",
    )
    table.close()
    return {"num_demos": counts["num_episodes"], "num_frames": counts["num_frames"], "num_tried": tried[0]}


def _demos(table: Tabletop, recipe: TeleopRecipe, progress: Progress | None, tried: list[int]) -> Iterator[Episode]:
    kept = 0
    while kept < recipe.num_demos:
        if tried[0] > 4 * recipe.num_demos + 10 * _WORLDS:
            raise RuntimeError(
                f"the expert succeeded in {kept} of {tried[0]} runs; lower action_noise_m = {recipe.action_noise_m}"
            )
        for episode in _run(table, recipe, recipe.seed + tried[0]):
            tried[0] += 1
            if episode is None:
                continue
            kept += 1
            yield episode
            if progress is not None:
                progress(kept, recipe.num_demos, "demos")
            if kept == recipe.num_demos:
                return


def _run(table: Tabletop, recipe: TeleopRecipe, first_seed: int) -> list[Episode | None]:
    """One demonstration per world; None where it failed."""
    seeds = range(first_seed, first_seed + table.num_worlds)
    table.reset(seeds)
    noise = [np.random.default_rng([seed, 11]) for seed in seeds]
    ends = np.full(table.num_worlds, -1)
    images, states, actions = [], [], []
    for step in range(MAX_STEPS):
        pictures, state = table.observe()
        clean = table.expert_action()
        images.append(pictures)
        states.append(state)
        actions.append(clean)
        # The frame in which the task is done is the last one kept.
        ends[(ends < 0) & table.success()] = step
        if (table.success() | table.failed()).all():
            break
        executed = clean.astype(np.float64)
        for i, rng in enumerate(noise):
            scale = recipe.action_noise_m * (_KNOCK if rng.uniform() < _KNOCK_PROBABILITY else 1.0)
            executed[i, :3] += rng.normal(0, scale, 3)
        table.step(executed)
    frames, state_all, action_all = np.stack(images, 1), np.stack(states, 1), np.stack(actions, 1)
    texts = table.instructions
    return [
        Episode(frames[i, : end + 1], state_all[i, : end + 1], action_all[i, : end + 1], texts[i]) if end >= 0 else None
        for i, end in enumerate(ends)
    ]
