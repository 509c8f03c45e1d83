"""What may go wrong in a run, and what then: numbers that are not finite, and signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from egoscale.train.ranks import Ranks

REQUEUE_EXIT_CODE = 85  # of a run that saved and wants to go on; Slurm profiles and the sweep know it


class Requeue(SystemExit):
    """The run was asked to stop, has saved, and wants to be started again. Uncaught, it exits with code
    85."""

    def __init__(self, reason: str) -> None:
        super().__init__(REQUEUE_EXIT_CODE)
        self.reason = reason


class BadSteps:
    """Counts steps that were skipped because a loss or gradient was not finite, and stops the run past a
    limit.

    `found` is what a checkpoint carries: one entry a bad step, {"step", "clips"}.
    """

    def __init__(
        self, limit: int, event: Callable[..., None], ranks: Ranks, found: list[dict[str, Any]] | None = None
    ) -> None:
        self.limit, self.event, self.ranks = limit, event, ranks
        self.found: list[dict[str, Any]] = list(found or [])

    def record(self, step: int, suspects: list[str], batch: list[str]) -> None:
        """Note a bad step. `suspects`: clips of this rank's micro-batches with a bad loss; `batch`: all clips
        of it.

        Every rank calls this. Raises FloatingPointError past the limit, naming the clips.
        """
        clips = sorted({clip for held in self.ranks.gathered(suspects) for clip in held}) or batch
        self.found.append({"step": step, "clips": clips})
        self.event("skip", step=step, reason="loss or gradient not finite", clips=clips)
        if len(self.found) <= self.limit:
            return
        counts: dict[str, int] = {}
        for bad in self.found:
            for clip in bad["clips"]:
                counts[clip] = counts.get(clip, 0) + 1
        worst = sorted(counts, key=lambda clip: (-counts[clip], clip))[:10]
        named = ", ".join(f"{clip} ({counts[clip]}x)" for clip in worst) or "unknown"
        raise FloatingPointError(
            f"{len(self.found)} steps had a loss or gradient that is not finite, the last at step {step}; "
            f"train.max_bad_steps = {self.limit}. Clips seen most often: {named}. Look at these "
            "clips, exclude them by a rule of the selection, or lower train.learning_rate"
        )


class Signals:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C while a run trains; a second Ctrl-C interrupts at once.

    Slurm sends TERM on preemption and on the time limit, USR1 when asked to (`--signal`): both mean save and
    requeue. Outside the main thread no handler can be installed, and signals keep their usual meaning.
    """

    KINDS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.number = 0
        self._held: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._held = {kind: signal.signal(kind, self._note) for kind in self.KINDS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._held.items():
            signal.signal(number, handler)

    def agreed(self, ranks: Ranks) -> str:
        """Name of a signal that any rank has received, the same on every rank; empty if none."""
        number = ranks.largest(self.number)
        return signal.Signals(number).name if number else ""


def leave(name: str) -> None:
    """End a run that has saved after the signal `name`."""
    if name == "SIGINT":
        raise KeyboardInterrupt
    raise Requeue(name)
