"""What a robot's numbers mean, and the commands a policy learns: relative, in chunks, normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating[Any]]

# A number that hardly varies in the demonstrations must not be blown up: one in metres that moves less than a
# tenth of a millimetre, or a grip that never moved, is divided by this instead of by its spread.
MIN_STD = 1e-4


@dataclass(frozen=True)
class Embodiment:
    """A robot as a policy sees it, and its place in an action vector that several robots share.

    Args:
        name: of the robot.
        action_names: one per motor command, in the order of the demonstrations.
        proprioception_names: one per measured number.
        slot_start: first index of this robot in the shared action vector.
        absolute_names: commands that stay as they are (a grip); every other command is a position and becomes
            relative to the measured number of the same name.

    Raises:
        ValueError: a repeated name, a negative slot, or a position command without a measured number.
    """

    name: str
    action_names: tuple[str, ...]
    proprioception_names: tuple[str, ...]
    slot_start: int = 0
    absolute_names: tuple[str, ...] = field(default=("grip",))

    def __post_init__(self) -> None:
        for what, names in (("action", self.action_names), ("proprioception", self.proprioception_names)):
            if not names or len(set(names)) != len(names):
                raise ValueError(f"embodiment {self.name!r}: {what} names {list(names)} must be given, each once")
        if self.slot_start < 0:
            raise ValueError(f"embodiment {self.name!r}: slot_start = {self.slot_start} is negative")
        for name in self.action_names:
            if name not in self.absolute_names and name not in self.proprioception_names:
                raise ValueError(
                    f"embodiment {self.name!r}: command {name!r} is a position, but no measured number has "
                    "that name; put it in absolute_names to learn it as it is"
                )

    # --- sizes and slots ----------------------------------------------------------------------

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    @property
    def proprioception_dim(self) -> int:
        return len(self.proprioception_names)

    @property
    def slot(self) -> slice:
        """This robot's part of the shared action vector."""
        return slice(self.slot_start, self.slot_start + self.action_dim)

    def to_shared(self, actions: Float, shared_dim: int) -> Float:
        """Actions [..., A] in their slot of a zero vector [..., shared_dim].

        Raises:
            ValueError: the slot does not fit, or the last size is not A.
        """
        if self.slot.stop > shared_dim:
            raise ValueError(
                f"embodiment {self.name!r}: slot {self.slot_start}..{self.slot.stop - 1} does not fit "
                f"a shared action vector of {shared_dim}"
            )
        self._check("actions", actions.shape[-1], self.action_dim)
        shared = np.zeros((*actions.shape[:-1], shared_dim), actions.dtype)
        shared[..., self.slot] = actions
        return shared

    def from_shared(self, shared: Float) -> Float:
        """This robot's actions [..., A] of a shared vector [..., D]."""
        if shared.shape[-1] < self.slot.stop:
            raise ValueError(
                f"embodiment {self.name!r}: slot ends at {self.slot.stop}, the shared vector has "
                f"{shared.shape[-1]} numbers"
            )
        return shared[..., self.slot]

    def check_demos(self, where: str, action_dim: int, state_dim: int) -> None:
        """Refuse demonstrations of another robot.

        Args:
            where: what is refused, for the message (a path).
            action_dim, state_dim: of the demonstrations.

        Raises:
            ValueError: another number of commands or measured numbers.
        """
        for what, found, names in (
            ("action", action_dim, self.action_names),
            ("observation.state", state_dim, self.proprioception_names),
        ):
            if found != len(names):
                raise ValueError(
                    f"{where}: {what} has {found} numbers, embodiment {self.name!r} has {len(names)} "
                    f"({', '.join(names)}); use demonstrations of this robot, or describe the "
                    "other as an embodiment of its own"
                )

    # --- relative, chunked commands ------------------------------------------------------------

    def relative_chunks(
        self, actions: Float, proprioception: Float, chunk_steps: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The next `chunk_steps` commands at every step of an episode, positions relative to the robot's.

        Args:
            actions: absolute commands [T, A].
            proprioception: measured numbers [T, P].
            chunk_steps: commands per chunk.

        Returns:
            Chunks [T, chunk_steps, A] float32, and a mask [T, chunk_steps] that is False where the episode
            had ended (there the last command is repeated).

        Raises:
            ValueError: sizes that do not fit this robot or each other.
        """
        self._check("actions", actions.shape[-1], self.action_dim)
        self._check("proprioception", proprioception.shape[-1], self.proprioception_dim)
        if actions.ndim != 2 or len(actions) != len(proprioception) or not len(actions):
            raise ValueError(
                f"actions {actions.shape} and proprioception {proprioception.shape}: expected the same "
                "number of steps, at least one"
            )
        if chunk_steps < 1:
            raise ValueError(f"chunk_steps = {chunk_steps}: a chunk holds at least one command")
        steps = np.arange(len(actions))[:, None] + np.arange(chunk_steps)[None]
        inside = steps < len(actions)
        chunks = actions[np.minimum(steps, len(actions) - 1)].astype(np.float64)
        chunks -= self._origin(np.asarray(proprioception, np.float64))[:, None]
        return chunks.astype(np.float32), inside

    def absolute_chunk(self, chunk: Float, proprioception: Float) -> NDArray[np.float32]:
        """Undo `relative_chunks`: absolute commands [..., chunk_steps, A] from proprioception [..., P]."""
        self._check("chunk", chunk.shape[-1], self.action_dim)
        self._check("proprioception", proprioception.shape[-1], self.proprioception_dim)
        origin = self._origin(np.asarray(proprioception, np.float64))
        return (np.asarray(chunk, np.float64) + origin[..., None, :]).astype(np.float32)

    def _origin(self, proprioception: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a command is relative to [..., A]: the measured number of its name, or zero."""
        origin = np.zeros((*proprioception.shape[:-1], self.action_dim))
        for i, name in enumerate(self.action_names):
            if name not in self.absolute_names:
                origin[..., i] = proprioception[..., self.proprioception_names.index(name)]
        return origin

    def _check(self, what: str, found: int, expected: int) -> None:
        if found != expected:
            raise ValueError(f"embodiment {self.name!r}: {what} has {found} numbers, expected {expected}")

    # --- files --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Embodiment:
        """The inverse of `to_dict`."""
        return cls(
            str(values["name"]),
            tuple(values["action_names"]),
            tuple(values["proprioception_names"]),
            int(values["slot_start"]),
            tuple(values["absolute_names"]),
        )


TABLETOP_GANTRY = Embodiment("tabletop_gantry", ("x", "y", "z", "grip"), ("x", "y", "z", "opening"))


def check_slots(embodiments: Sequence[Embodiment]) -> int:
    """Size of the action vector that `embodiments` share.

    Raises:
        ValueError: two of them overlap, or bear one name.
    """
    taken: dict[int, str] = {}
    for robot in embodiments:
        for index in range(robot.slot.start, robot.slot.stop):
            if index in taken:
                raise ValueError(
                    f"embodiments {taken[index]!r} and {robot.name!r} share slot {index}; "
                    f"set slot_start of the second to {max(taken) + 1}"
                )
            taken[index] = robot.name
    if len({robot.name for robot in embodiments}) != len(embodiments):
        raise ValueError(f"embodiments {[robot.name for robot in embodiments]}: each name may be used once")
    return max(taken, default=-1) + 1


@dataclass(frozen=True)
class Normaliser:
    """Mean and spread of each number, fitted on demonstrations: `(x - mean) / std`.

    Attributes:
        mean, std: one per number; std is at least MIN_STD.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"normaliser: {len(self.mean)} means and {len(self.std)} standard deviations")
        if not all(np.isfinite([*self.mean, *self.std])) or min(self.std) <= 0:
            raise ValueError("normaliser: means must be finite and standard deviations positive")

    @classmethod
    def fit(cls, values: Float, mask: NDArray[np.bool_] | None = None) -> Normaliser:
        """Fit on values [..., D]; where `mask` [...] is False they do not count.

        Raises:
            ValueError: nothing to fit on, or numbers that are not finite.
        """
        rows = np.asarray(values, np.float64)
        rows = rows.reshape(-1, rows.shape[-1]) if mask is None else rows[mask]
        if not len(rows):
            raise ValueError("normaliser: no values to fit on")
        if not np.isfinite(rows).all():
            raise ValueError("normaliser: values to fit on are not finite")
        return cls(tuple(rows.mean(0).tolist()), tuple(np.maximum(rows.std(0), MIN_STD).tolist()))

    def normalise(self, values: Float) -> NDArray[np.float32]:
        return ((np.asarray(values, np.float64) - self.mean) / self.std).astype(np.float32)

    def restore(self, values: Float) -> NDArray[np.float32]:
        return (np.asarray(values, np.float64) * self.std + self.mean).astype(np.float32)

    def to_dict(self) -> dict[str, list[float]]:
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Normaliser:
        return cls(tuple(float(v) for v in values["mean"]), tuple(float(v) for v in values["std"]))
