"""Closed-loop rollouts: a policy looks, acts for a few steps, looks again, in many worlds at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Worlds(Protocol):
    """A batch of robot worlds, as `robot.worlds.Tabletop` is."""

    def reset(self, seeds: Sequence[int]) -> None: ...
    def observe(self) -> tuple[NDArray[np.uint8], Floats]: ...
    def step(self, actions: Floats) -> None: ...
    def success(self) -> NDArray[np.bool_]: ...
    def failed(self) -> NDArray[np.bool_]: ...
    @property
    def instructions(self) -> list[str]: ...
    @property
    def verbs_of_world(self) -> list[str]: ...


Act = Callable[[NDArray[np.uint8], Floats, list[str]], Floats]
"""Images [N, H, W, 3], proprioception [N, P] and instructions -> absolute commands [N, chunk, A]."""


@dataclass
class Rollouts:
    """What happened in each world: outcomes [N], and for the recorded worlds every frame, state and command."""

    success: NDArray[np.bool_]
    verbs: list[str]
    instructions: list[str]
    seeds: list[int]
    images: list[NDArray[np.uint8]] = field(default_factory=list)  # a step each: [R, H, W, 3]
    states: list[Floats] = field(default_factory=list)  # [R, P]
    actions: list[Floats] = field(default_factory=list)  # [R, A]


def roll_out(
    worlds: Worlds,
    act: Act,
    seeds: Sequence[int],
    max_steps: int,
    execute_steps: int,
    record: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Rollouts:
    """Run every world from its seed for `max_steps` control steps or until all are decided.

    The policy sees the worlds every `execute_steps` steps and its commands are executed open loop in between. Frames
    of the first `record` worlds are kept at every step.

    Raises:
        ValueError: the policy predicts fewer commands than `execute_steps`.
    """
    worlds.reset(seeds)
    kept = Rollouts(np.zeros(len(seeds), bool), worlds.verbs_of_world, worlds.instructions, list(seeds))
    chunk: Floats | None = None
    for step in range(max_steps):
        inside = step % execute_steps
        if inside == 0 or record:
            images, state = worlds.observe()
        if inside == 0:
            if bool((worlds.success() | worlds.failed()).all()):
                break
            chunk = act(images, state, kept.instructions)
            if chunk.shape[1] < execute_steps:
                raise ValueError(
                    f"the policy predicts {chunk.shape[1]} commands at a time and execute_steps is {execute_steps}: "
                    "lower execute_steps or raise policy.chunk_steps"
                )
        assert chunk is not None
        if record:
            kept.images.append(images[:record].copy())
            kept.states.append(state[:record].copy())
            kept.actions.append(chunk[:record, inside].copy())
        worlds.step(chunk[:, inside])
        if progress is not None:
            progress(step + 1, max_steps, "control steps")
    kept.success = worlds.success()
    return kept
