"""What a sweep would cost, in numbers, and as a person reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import polars as pl

from egoscale.sweep.ledger import State
from egoscale.sweep.plan import Job
from egoscale.sweep.progress import duration

Source = Literal["finished runs", "dry run", "rough", "recipe", "no GPU", "unknown"]
STATES: tuple[State, ...] = ("done", "running", "failed", "interrupted", "new")


@dataclass(frozen=True)
class Forecast:
    """What a recipe says of one run of a training stage. checkpoint_bytes: of all checkpoints it keeps at a time."""

    gpu_hours: float
    weights_bytes: float
    checkpoint_bytes: float


Forecaster = Callable[[Job, str], Forecast | None]  # (job, device) -> None where the recipe does not say


@dataclass
class StageCost:
    """One stage of a sweep. `shared`: runs that several cells need. Costs are those of the runs that are not done;
    None: not known. device: the GPU of its GPU-hours, empty where it uses none. hours: of one run after the other, on
    what it runs on."""

    stage: str
    runs: int = 0
    shared: int = 0
    states: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    device: str = ""
    gpu_hours: float | None = 0.0
    gpu_hours_from: Source = "unknown"
    hours: float | None = 0.0
    hours_from: Source = "unknown"
    disk_bytes: float | None = 0.0
    disk_from: Source = "unknown"

    @property
    def unfinished(self) -> int:
        return self.runs - self.states["done"]


@dataclass(frozen=True)
class Step:
    """One run of the longest chain. hours: None where not known."""

    run: str
    title: str
    hours: float | None


@dataclass(frozen=True)
class Cost:
    """A sweep's cost. Sums leave out what is unknown; `unknown` names the stages (of gpu_hours, hours, disk_bytes).

    device: the GPU of the GPU-hours; several with commas between, none where no stage uses one.
    disk_bytes: to come, by kind: weights, latents, video, other; checkpoints: at most at any time, deleted at the end
    of each run but for multiples of keep_every_steps. critical: the longest chain of unfinished runs; wall_hours: until
    the last run ends.
    """

    name: str
    cells: int
    stages: tuple[StageCost, ...]
    device: str
    gpu_hours: float
    disk_bytes: dict[str, float]
    critical: tuple[Step, ...]
    wall_hours: float
    jobs: int | None  # at a time on this machine; None: on the cluster of `profile`
    profile: str | None
    unknown: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    @property
    def critical_hours(self) -> float:
        return sum(step.hours or 0.0 for step in self.critical)

    @property
    def runs(self) -> int:
        return sum(stage.runs for stage in self.stages)

    @property
    def done(self) -> int:
        return sum(stage.states["done"] for stage in self.stages)

    def document(self) -> dict[str, Any]:
        """For JSON: all fields, with `runs`, `done` and `critical_hours`."""
        return {**asdict(self), "runs": self.runs, "done": self.done, "critical_hours": self.critical_hours}


def lines(cost: Cost, table: Callable[[pl.DataFrame], str] = str) -> list[str]:
    """For a terminal: the stages, then what is to come. table: how a table is written."""
    out = [f"{cost.name}: {cost.cells} cells from {cost.runs} runs", table(_stages(cost))]
    if cost.done == cost.runs:
        return [*out, "nothing left to run"]
    out.append(f"GPU-hours      {_at_least(cost, 'gpu_hours')}{_by_device(cost)}")
    kept = {kind: size for kind, size in cost.disk_bytes.items() if kind != "checkpoints"}
    parts = ", ".join(f"{kind} {_size(size)}" for kind, size in kept.items())
    out.append(
        f"disk           {_at_least(cost, 'disk_bytes')}{_size(sum(kept.values()))}" + (f": {parts}" * bool(parts))
    )
    if "checkpoints" in cost.disk_bytes:
        out.append(f"               checkpoints up to {_size(cost.disk_bytes['checkpoints'])} while runs train")
    chain = " > ".join(f"{step.run.split('/')[0]} {_time(step.hours)}" for step in cost.critical)
    out.append(f"longest chain  {_at_least(cost, 'hours')}{_time(cost.critical_hours)}: {chain}")
    where = f"{cost.jobs} jobs at a time" if cost.jobs else f"profile {cost.profile}, on an empty cluster"
    out.append(f"wall time      {_at_least(cost, 'hours')}{_time(cost.wall_hours)} with {where}")
    for what, stages in cost.unknown.items():
        if stages:
            words = {"gpu_hours": "GPU-hours", "hours": "hours", "disk_bytes": "disk"}[what]
            out.append(f"unknown        {words} of {', '.join(stages)}, until one has run")
    rough = [stage.stage for stage in cost.stages if stage.unfinished and stage.hours_from == "rough"]
    if rough:
        out.append(f"rough          hours of {', '.join(rough)}: none has finished here, so an order of magnitude")
    if by_arithmetic := _by_arithmetic(cost):
        out.append(
            f"dry run        hours of {', '.join(by_arithmetic)}: arithmetic alone, starting and saving come on top"
        )
    return [*out, *cost.notes]


def _stages(cost: Cost) -> pl.DataFrame:
    """A row a stage; columns of states that no run is in are left out, but for what a reader looks for."""
    shown = [state for state in STATES if state in ("failed", "new") or any(s.states[state] for s in cost.stages)]
    rows = []
    for stage in cost.stages:
        states: dict[str, int] = {state: stage.states[state] for state in shown if state != "done"}
        left = stage.unfinished > 0
        row: dict[str, Any] = {"stage": stage.stage, "runs": stage.runs, "done": stage.states["done"]}
        row |= {"shared": stage.shared, **states}
        row |= {"GPU-hours": _number(stage.gpu_hours) if left else "", "by": stage.gpu_hours_from if left else ""}
        row |= {"hours": _number(stage.hours) if left else "", "by ": stage.hours_from if left else ""}
        rows.append(row | {"disk": _size(stage.disk_bytes) if left else ""})
    return pl.DataFrame(rows)


def gpu_name(gpu_type: str) -> str:
    """A GPU as a person calls it, from what `sinfo` calls it: "nvidia_h100_pcie" is an "NVIDIA H100 PCIE"."""
    return gpu_type.replace("_", " ").upper()


def an(device: str) -> str:
    """A GPU with its article, by how its first letter is said: "an H100", "a B200"."""
    return f"{'an' if device[:1].upper() in 'AEFHILMNORSX' else 'a'} {device}"


def _by_device(cost: Cost) -> str:
    """GPU-hours of each kind of GPU: those of one are not those of another."""
    hours: dict[str, float] = {}
    for stage in cost.stages:
        if stage.unfinished and stage.device:
            hours[stage.device] = hours.get(stage.device, 0.0) + (stage.gpu_hours or 0.0)
    return ", ".join(f"{_number(spent)} of {an(device)}" for device, spent in hours.items()) or _number(cost.gpu_hours)


def _at_least(cost: Cost, what: str) -> str:
    return "at least " if cost.unknown[what] or (what == "hours" and _by_arithmetic(cost)) else ""


def _by_arithmetic(cost: Cost) -> list[str]:
    """Stages whose hours are their FLOPs alone."""
    return [stage.stage for stage in cost.stages if stage.unfinished and stage.hours_from == "dry run"]


def _time(hours: float | None) -> str:
    return "?" if hours is None else duration(3600 * hours)


def _number(number: float | None) -> str:
    if number is None:
        return "?"
    if 0 < number < 0.01:
        return "<0.01"
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def _size(number: float | None) -> str:
    if number is None:
        return "?"
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size / 10:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1e3:,.0f} kB"
