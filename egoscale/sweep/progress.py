"""What a person sees while a sweep runs: bars on a terminal, quiet lines elsewhere, and the time left."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from egoscale.sweep.measured import finished
from egoscale.sweep.plan import UNSIZED_S, Job, Plan

HEARTBEAT_S = 30.0  # between two lines about the jobs at work, where there is no terminal


class Estimate:
    """Seconds that jobs will take: their weights, scaled by what finished jobs of the stage really took.

    A stage that has finished none is scaled by all those together that have, as a slow machine is slow in all of them,
    but for the unsized ones: what they took tells how much video there is, and nothing of the machine.
    """

    def __init__(self, plan: Plan, root: Path, workers: int) -> None:
        self.plan, self.workers = plan, workers
        self._seconds: dict[str, float] = defaultdict(float)
        self._weights: dict[str, float] = defaultdict(float)
        self.finished = {stage: finished(root, stage, plan.jobs) for stage in {job.stage for job in plan.jobs.values()}}
        for stage, runs in self.finished.items():
            for run in runs:
                self._learn(stage, run.weight, run.seconds)

    def learn(self, job: Job, seconds: float) -> None:
        """Take in how long a job took."""
        self._learn(job.stage, job.weight, seconds)

    def _learn(self, stage: str, weight: float, seconds: float) -> None:
        self._seconds[stage] += seconds
        self._weights[stage] += weight

    def seconds(self, job: Job) -> float:
        """Expected seconds of a whole job."""
        if self._weights[job.stage]:
            return job.weight * self._seconds[job.stage] / self._weights[job.stage]
        sized = [stage for stage in self._weights if stage not in UNSIZED_S]
        known = sum(self._weights[stage] for stage in sized)
        return job.weight * (sum(self._seconds[stage] for stage in sized) / known if known else 1.0)

    def measured(self, stage: str) -> bool:
        """Whether runs of this stage have finished; else its seconds are an order of magnitude."""
        return bool(self._weights[stage])

    def chains(self) -> dict[str, float]:
        """Expected seconds of the longest chain of users that each job begins, itself included."""
        users = self.plan.users()
        chains: dict[str, float] = {}
        for key in reversed(self.plan.jobs):  # users come after what they use
            longest = max((chains[user] for user in users[key]), default=0.0)
            chains[key] = self.seconds(self.plan.jobs[key]) + longest
        return chains

    def left(self, waiting: Iterable[Job], working: Mapping[str, tuple[float, float]]) -> float:
        """Expected seconds to the end; `working`: (seconds so far, fraction done) of the jobs at work."""
        chains = self.chains()
        rest, longest = 0.0, 0.0
        for job in waiting:
            rest += self.seconds(job)
            longest = max(longest, chains[job.key])
        for key, (elapsed, fraction) in working.items():
            whole = self.seconds(self.plan.jobs[key])
            remains = max(whole - elapsed, 0.1 * whole)
            if fraction > 0.05:  # before that, the pace of a job is the pace of its start
                remains = elapsed * (1 - fraction) / fraction
            rest += remains
            longest = max(longest, chains[key] - self.seconds(self.plan.jobs[key]) + remains)
        return max(rest / self.workers, longest)


class Display(Protocol):
    """What the executor tells as it goes. `held`: a line for each run that another process holds."""

    def started(self, job: Job) -> None: ...
    def reported(self, job: Job, report: Mapping[str, Any]) -> None: ...
    def ended(self, job: Job, state: str, seconds: float, reason: str) -> None: ...
    def standing(self, done: int, total: int, left_s: float, held: Sequence[str] = ()) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


def display(name: str, console: Console | None = None) -> Display:
    """Bars where the output is a terminal, lines where it is not."""
    console = console or Console()
    return Bars(name, console) if console.is_terminal else Lines(name, console)


def duration(seconds: float) -> str:
    """Seconds for a person: "40 s", "6 min", "1 h 20 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Bars:
    """One bar for the sweep, one line for each job at work."""

    def __init__(self, name: str, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counts]}"),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            refresh_per_second=4,
            transient=False,
        )
        self._whole = self._progress.add_task(f"[bold]sweep {name}", total=None, counts="", note="")
        self._tasks: dict[str, TaskID] = {}
        self._starts: dict[str, float] = {}
        self._progress.start()

    def started(self, job: Job) -> None:
        self._starts[job.key] = time.monotonic()
        self._tasks[job.key] = self._progress.add_task(f"  {job.title()}", total=None, counts="", note="starting")

    def reported(self, job: Job, report: Mapping[str, Any]) -> None:
        done, total, unit, rate = _pace(report, time.monotonic() - self._starts[job.key])
        self._progress.update(
            self._tasks[job.key], completed=done, total=total, counts=f"{done}/{total} {unit}", note=rate
        )

    def ended(self, job: Job, state: str, seconds: float, reason: str) -> None:
        if job.key in self._tasks:
            self._progress.remove_task(self._tasks.pop(job.key))
        if reason:
            self.say(f"{job.title()} ({job}) {state} after {duration(seconds)}: {reason}")

    def standing(self, done: int, total: int, left_s: float, held: Sequence[str] = ()) -> None:
        note = f"about {duration(left_s)} left" if done < total else ""
        note += f"; {len(held)} held by other processes" if held else ""
        self._progress.update(self._whole, completed=done, total=total, counts=f"{done}/{total} jobs", note=note)

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


class Lines:
    """A line when a job ends, and a line about the jobs at work now and then."""

    def __init__(self, name: str, console: Console) -> None:
        self._name, self._console = name, console
        self._standing = ""
        self._spoke = time.monotonic()
        self._starts: dict[str, float] = {}
        self._paces: dict[str, str] = {}

    def started(self, job: Job) -> None:
        self._starts[job.key] = time.monotonic()
        self._paces[job.key] = job.title()

    def reported(self, job: Job, report: Mapping[str, Any]) -> None:
        done, total, unit, rate = _pace(report, time.monotonic() - self._starts[job.key])
        self._paces[job.key] = f"{job.title()}: {done}/{total} {unit} {rate}".rstrip()

    def ended(self, job: Job, state: str, seconds: float, reason: str) -> None:
        self._paces.pop(job.key, None)
        self.say(f"{job.title()} ({job}) {state} after {duration(seconds)}" + (f": {reason}" if reason else ""))

    def standing(self, done: int, total: int, left_s: float, held: Sequence[str] = ()) -> None:
        standing = f"{done}/{total} jobs done" + (f", about {duration(left_s)} left" if done < total else "")
        changed = standing.partition(",")[0] != self._standing
        if changed or time.monotonic() - self._spoke > HEARTBEAT_S:
            self._standing = standing.partition(",")[0]
            at_work = [] if changed else [*self._paces.values(), *held]
            self.say("; ".join([f"sweep {self._name}: {standing}", *at_work]))

    def say(self, text: str) -> None:
        self._spoke = time.monotonic()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        pass


def _pace(report: Mapping[str, Any], elapsed_s: float) -> tuple[int, int, str, str]:
    """(done, total, unit, rate) of a report {"done", "total", "unit"}."""
    done, total, unit = int(report.get("done", 0)), int(report.get("total", 0)), str(report.get("unit", ""))
    rate = f"{done / elapsed_s:.3g} {unit}/s" if elapsed_s > 1 and done else ""
    return done, total, unit, rate
