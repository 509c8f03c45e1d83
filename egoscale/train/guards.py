"""What may go wrong in a run, and what then: numbers that are not finite, spikes, signals, the time limit."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
    limit (with `stop`, at the first).

    `found` is what a checkpoint carries: one entry a bad step, {"step", "clips"}.
    """

    def __init__(
        self,
        limit: int,
        event: Callable[..., None],
        ranks: Ranks,
        found: list[dict[str, Any]] | None = None,
        stop: bool = False,
    ) -> None:
        self.limit, self.event, self.ranks, self.stop = limit, event, ranks, stop
        self.found: list[dict[str, Any]] = list(found or [])

    def record(self, step: int, suspects: list[str], batch: list[str]) -> None:
        """Note a bad step. `suspects`: clips of this rank's micro-batches with a bad loss; `batch`: all clips
        of it.

        Every rank calls this. Raises FloatingPointError past the limit, naming the clips.
        """
        clips = sorted({clip for held in self.ranks.gathered(suspects) for clip in held}) or batch
        self.found.append({"step": step, "clips": clips})
        self.event("skip", step=step, reason="loss or gradient not finite", clips=clips)
        if len(self.found) <= self.limit and not self.stop:
            return
        counts: dict[str, int] = {}
        for bad in self.found:
            for clip in bad["clips"]:
                counts[clip] = counts.get(clip, 0) + 1
        worst = sorted(counts, key=lambda clip: (-counts[clip], clip))[:10]
        named = ", ".join(f"{clip} ({counts[clip]}x)" for clip in worst) or "unknown"
        many = f"{len(self.found)} steps" if len(self.found) > 1 else "1 step"
        told = 'train.on_bad_step = "stop"' if self.stop else f"train.max_bad_steps = {self.limit}"
        onward = f"train.max_bad_steps={max(10, 2 * self.limit)}"
        if self.stop:
            onward = "train.on_bad_step=skip" + ("" if self.limit else f" --set {onward}")
        raise FloatingPointError(
            f"{many} had a loss or gradient that is not finite, the last at step {step}; {told}. Clips seen most "
            f"often: {named}. Look at these clips. To go on from the last checkpoint all the same: `egoscale "
            f"checkpoint reshape RUN --set {onward}`. To exclude clips by a rule of the selection, or to lower "
            "train.learning_rate, makes another run, from step 0"
        )


class Spikes:
    """Notes losses that stand far above those before them: the first sign of a run that diverges, or of bad clips.

    `recent` (the last 128 losses) is what a checkpoint carries. Window and threshold are those of OLMo-core's
    skip-step optimizer (6 deviations over 128 steps); here the step is not skipped, only named.
    """

    WINDOW, ENOUGH = 128, 32

    def __init__(self, deviations: float, event: Callable[..., None], recent: list[float] | None = None) -> None:
        self.deviations, self.event = deviations, event
        self.recent: list[float] = list(recent or [])

    def add(self, step: int, loss: float, clips: Callable[[], list[str]]) -> bool:
        """Note the loss of a step; was it a spike? A spike does not raise the level that later ones are held to."""
        if not self.deviations:
            return False
        spiked = False
        if len(self.recent) >= self.ENOUGH:
            mean, deviation = statistics.fmean(self.recent), statistics.pstdev(self.recent)
            spiked = loss > mean + self.deviations * max(deviation, 1e-9 * abs(mean))
            if spiked:
                far = (loss - mean) / deviation if deviation else float("inf")
                self.event("spike", step=step, loss=loss, deviations=round(far, 1), before=mean, clips=clips())
        if not spiked:
            self.recent = [*self.recent[1 - self.WINDOW :], loss]
        return spiked


def stalled(events: Sequence[Mapping[str, Any]], environ: Mapping[str, str], attempts: int = 2) -> str:
    """Why a training run that Slurm requeued should not start once more; empty if it should.

    It should not when its last `attempts` attempts saved nothing: whatever ended them will end the next one too,
    and a requeue has no limit of its own. A run started by hand is never held back.
    """
    restarts = environ.get("SLURM_RESTART_COUNT", "0")
    if not restarts.isdigit() or int(restarts) < attempts:
        return ""
    saved: list[bool] = []
    for event in events:
        if event["event"] == "start":
            saved.append(False)
        elif event["event"] in ("save", "part") and saved:
            saved[-1] = True
    if len(saved) < attempts or any(saved[-attempts:]):
        return ""
    return (
        f"requeued {restarts} times, and the last {attempts} attempts saved nothing: look at log.txt and events.jsonl, "
        "give it more time or save more often (train.save_every_steps), and start it again by hand"
    )


TIME_LIMIT = "time limit"


def seconds_left(environ: Mapping[str, str]) -> float:
    """Seconds until the scheduler ends this job, as the environment tells (infinite where it does not).

    EGOSCALE_END_TIME (set by our job scripts) or SLURM_JOB_END_TIME (Slurm 23 and later): seconds since 1970.
    """
    end = environ.get("EGOSCALE_END_TIME") or environ.get("SLURM_JOB_END_TIME") or ""
    return float(end) - time.time() if end.isdigit() else float("inf")


class Signals:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C while a run trains, and a time limit that is near; a second Ctrl-C
    interrupts at once.

    Slurm sends TERM on preemption and on the time limit, USR1 when asked to (`--signal`): both mean save and
    requeue, as does a limit fewer than `stop_before_limit_s` away. Outside the main thread no handler can be
    installed, and signals keep their usual meaning.
    """

    KINDS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, stop_before_limit_s: float = 0.0) -> None:
        self.number = 0
        self._held: dict[signal.Signals, Any] = {}
        left = seconds_left(os.environ) - stop_before_limit_s
        self._deadline = time.monotonic() + left

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
        near = 1000 if time.monotonic() > self._deadline else 0  # above every signal's number
        number = ranks.largest(max(self.number, near))
        if number == 1000:
            return TIME_LIMIT
        return signal.Signals(number).name if number else ""


def leave(name: str) -> None:
    """End a run that has saved after the signal `name`."""
    if name == "SIGINT":
        raise KeyboardInterrupt
    raise Requeue(name)
