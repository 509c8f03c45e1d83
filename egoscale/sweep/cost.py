"""What a sweep would cost before it is started: GPU-hours, disk, the longest chain of stages, wall time.

A number comes from finished runs of the stage where there are some, else from what its recipe says (the dry run), else
it is unknown, and every sum that lacks it says so: it is a lower limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from egoscale.recipe import STAGES
from egoscale.sweep.arrays import arrays
from egoscale.sweep.bill import Cost, Forecast, Forecaster, Source, StageCost, Step, gpu_name
from egoscale.sweep.makespan import makespan
from egoscale.sweep.measured import bytes_by_kind
from egoscale.sweep.plan import Job, Plan
from egoscale.sweep.profile import Profile
from egoscale.sweep.progress import Estimate

NO_MODEL = ("film", "teleop", "catalog", "select", "subset")  # stages that run no model, and so need no GPU
FLOAT16_BYTES = 2
DEVICE = "H100"  # where neither a person nor a profile names a GPU


def cost(
    plan: Plan,
    root: Path,
    workers: int,
    profile: Profile | None = None,
    forecast: Forecaster | None = None,
    device: str | None = None,
) -> Cost:
    """What the unfinished runs of `plan` cost, `workers` at a time on this machine, or on the cluster of `profile`.

    forecast: what a recipe says (`egoscale.stages.forecast`); None where torch is absent. device: the GPU of the
    GPU-hours; default: what the profile names for the stage, else DEVICE.
    """
    return _Costing(plan, root, workers, profile, forecast, device).total()


class _Costing:
    def __init__(
        self,
        plan: Plan,
        root: Path,
        workers: int,
        profile: Profile | None,
        forecast: Forecaster | None,
        device: str | None,
    ) -> None:
        self.plan, self.root, self.workers, self.profile, self.device = plan, root, workers, profile, device
        self._forecast, self._forecasts = forecast, dict[tuple[Any, ...], Forecast | None]()
        self.estimate = Estimate(plan, root, workers)
        self.states = {key: job.run(root).state() for key, job in plan.jobs.items()}
        self.unfinished = {key: job for key, job in plan.jobs.items() if self.states[key] != "done"}
        self._gpu_seconds: dict[str, tuple[float, float]] = {}  # stage -> (GPU-seconds, weight) of finished runs
        self._bytes: dict[str, dict[str, float]] = {}
        for stage, runs in self.estimate.finished.items():
            on_gpus = [run for run in runs if run.gpus]
            if on_gpus:
                seconds = sum(run.seconds * (run.gpus or 0) for run in on_gpus)
                self._gpu_seconds[stage] = (seconds, sum(run.weight for run in on_gpus))
            if runs:
                self._bytes[stage] = bytes_by_kind(runs)

    def total(self) -> Cost:
        stages = {stage: StageCost(stage) for stage in STAGES}
        needed_by = _cells_of(self.plan)
        for key, job in self.plan.jobs.items():
            stage = stages[job.stage]
            stage.runs += 1
            stage.shared += needed_by[key] > 1
            stage.states[self.states[key]] += 1
        hours: dict[str, float | None] = {}
        disk: dict[str, float] = {}
        for key, job in self.unfinished.items():
            stage = stages[job.stage]
            gpu, stage.gpu_hours_from = self.gpu_hours(job)
            stage.device = "" if stage.gpu_hours_from == "no GPU" else self.device_of(job.stage)
            hours[key], stage.hours_from = self.hours(job)
            kinds, stage.disk_from = self.disk(job)
            stage.gpu_hours = _plus(stage.gpu_hours, gpu)
            stage.hours = _plus(stage.hours, hours[key])
            stage.disk_bytes = _plus(stage.disk_bytes, None if kinds is None else sum(kinds.values()))
            for kind, size in (kinds or {}).items():
                disk[kind] = disk.get(kind, 0.0) + size
        if checkpoints := self.checkpoints():
            disk["checkpoints"] = checkpoints
        present = tuple(stage for stage in stages.values() if stage.runs)
        open_ = [stage for stage in present if stage.unfinished]
        return Cost(
            name=self.plan.sweep.name,
            cells=len(self.plan.cells),
            stages=present,
            device=", ".join(dict.fromkeys(stage.device for stage in open_ if stage.device)),
            gpu_hours=sum(stage.gpu_hours or 0.0 for stage in open_),
            disk_bytes=disk,
            critical=self.critical(hours),
            wall_hours=self.wall(hours),
            jobs=None if self.profile else self.workers,
            profile=self.profile.name if self.profile else None,
            unknown={
                "gpu_hours": tuple(stage.stage for stage in open_ if stage.gpu_hours is None),
                "hours": tuple(stage.stage for stage in open_ if stage.hours is None),
                "disk_bytes": tuple(stage.stage for stage in open_ if stage.disk_bytes is None),
            },
            notes=tuple(self.notes(hours)),
        )

    # --- one run ---

    def forecast(self, job: Job) -> Forecast | None:
        """By recipe, but for what does not change it (hours, seed, demonstrations): few of many runs differ."""
        if self._forecast is None or job.stage in NO_MODEL:
            return None
        kind = _kind(job)
        if kind not in self._forecasts:
            self._forecasts[kind] = self._forecast(job, self.device_of(job.stage))
        return self._forecasts[kind]

    def device_of(self, stage: str) -> str:
        named = self.profile.resources[self.profile.resource_class(stage)].gpu_type if self.profile else ""
        return self.device or gpu_name(named) or DEVICE

    def gpus(self, stage: str) -> int | None:
        """GPUs of one run on the profile's cluster; None without a profile."""
        if self.profile is None:
            return None
        has = self.profile.resources[self.profile.resource_class(stage)]
        return has.num_nodes * has.gpus_per_node

    def gpu_hours(self, job: Job) -> tuple[float | None, Source]:
        if job.stage in NO_MODEL or self.gpus(job.stage) == 0:
            return 0.0, "no GPU"
        if job.stage in self._gpu_seconds:
            seconds, weight = self._gpu_seconds[job.stage]
            return job.weight * seconds / weight / 3600, "finished runs"
        said = self.forecast(job)
        return (said.gpu_hours, "dry run") if said else (None, "unknown")

    def hours(self, job: Job) -> tuple[float | None, Source]:
        """Wall hours of a run: on the profile's GPUs where its class has some, else at this machine's pace."""
        gpus = self.gpus(job.stage)
        if gpus:
            hours, source = self.gpu_hours(job)
            if source != "no GPU":
                return (None if hours is None else hours / gpus), source
        return self.estimate.seconds(job) / 3600, "finished runs" if self.estimate.measured(job.stage) else "rough"

    def disk(self, job: Job) -> tuple[dict[str, float] | None, Source]:
        """Bytes that stay, by kind."""
        if job.stage in self._bytes:
            return self._bytes[job.stage], "finished runs"
        if job.stage == "encode":
            size = self.latents_bytes()
            return (None, "unknown") if size is None else ({"latents": size}, "recipe")
        said = self.forecast(job)
        return ({"weights": said.weights_bytes}, "dry run") if said else (None, "unknown")

    def latents_bytes(self) -> float | None:
        """Of the film, whose frames the recipe knows; of somebody's own video they are not known before the catalog."""
        sweep = self.plan.sweep
        if sweep.film is None or any(source.path for source in sweep.catalog.sources):
            return None
        spec = sweep.tokenizer.tokenizer
        return sweep.film.hours * 3600 * sweep.film.fps_hz * spec.num_latents * spec.latent_dim * FLOAT16_BYTES

    # --- all of them ---

    def checkpoints(self) -> float:
        """Bytes of checkpoints at most at any time: those of all runs that may be at work together."""
        sizes: dict[str, list[float]] = {}
        for job in self.unfinished.values():
            said = self.forecast(job)
            if said is not None:
                sizes.setdefault(job.stage, []).append(said.checkpoint_bytes)
        if self.profile is None:
            every = sorted((size for some in sizes.values() for size in some), reverse=True)
            return sum(every[: self.workers])
        return sum(sum(sorted(some, reverse=True)[: self.together(stage)]) for stage, some in sizes.items())

    def together(self, stage: str) -> int | None:
        """Runs of a stage that the profile lets be at work at a time, of one array; None: any number."""
        if self.profile is None:
            return self.workers
        return self.profile.resources[self.profile.resource_class(stage)].max_running or None

    def critical(self, hours: Mapping[str, float | None]) -> tuple[Step, ...]:
        """The chain of unfinished runs that takes longest."""
        longest: dict[str, float] = {}
        before: dict[str, str | None] = {}
        for key, job in self.unfinished.items():  # inputs come before users
            sources = [source.key for source in job.inputs.values() if source.key in longest]
            before[key] = max(sources, key=longest.__getitem__, default=None)
            longest[key] = (hours[key] or 0.0) + max((longest[source] for source in sources), default=0.0)
        chain: list[Step] = []
        last = max(longest, key=longest.__getitem__, default=None)
        while last is not None:
            job = self.unfinished[last]
            chain.append(Step(str(job), job.title(), hours[last]))
            last = before[last]
        return tuple(reversed(chain))

    def wall(self, hours: Mapping[str, float | None]) -> float:
        """Hours until the last run ends, the runs that begin the longest chains first. A cluster is taken as empty and
        large: what limits it is `max_running` of each array."""
        place = dict.fromkeys(self.unfinished, "")
        slots: dict[str, int] = {"": self.workers}
        if self.profile is not None:
            resources = {job.stage: self.profile.resource_class(job.stage) for job in self.plan.jobs.values()}
            for array in arrays(self.plan, self.unfinished, resources, self.profile.max_array_size):
                place |= {job.key: array.name for job in array.elements.values()}
                slots[array.name] = self.together(array.stage) or len(array.elements)
        return makespan(self.unfinished, {key: value or 0.0 for key, value in hours.items()}, place, slots)

    def notes(self, hours: Mapping[str, float | None]) -> list[str]:
        """What the profile's time limits mean for runs that take longer."""
        if self.profile is None:
            return []
        slow: dict[str, float] = {}
        for key, job in self.unfinished.items():
            slow[job.stage] = max(slow.get(job.stage, 0.0), hours[key] or 0.0)
        limits = {
            stage: self.profile.resources[self.profile.resource_class(stage)].time_limit_min / 60 for stage in slow
        }
        return [
            f"a run of {stage} takes about {slow[stage]:.3g} h, more than its time limit of {limits[stage]:.3g} h: it "
            "will be requeued, and goes on from its checkpoints"
            for stage in slow
            if slow[stage] > limits[stage]
        ]


def _cells_of(plan: Plan) -> Counter[str]:
    """How many cells need each job; without cells, how many of the jobs that nothing else reads."""
    ends: Sequence[Job] = plan.cells
    if not ends:
        users = plan.users()
        ends = [job for key, job in plan.jobs.items() if not users[key]]
    needed: Counter[str] = Counter()
    for end in ends:
        seen, stack = {end.key}, [end]
        while stack:
            for source in stack.pop().inputs.values():
                if source.key not in seen:
                    seen.add(source.key)
                    stack.append(source)
        needed.update(seen)
    return needed


def _kind(job: Job) -> tuple[Any, ...]:
    """What a forecast depends on. Tables of a recipe are told apart by identity: a plan copies recipes, not tables."""
    coded = job.inputs.get("latent-action") if job.stage == "world" else None  # its codes are made of all its hours
    own = tuple(
        (name, value if isinstance(value, str | int | float | None) else id(value))
        for name, value in job.recipe
        if name not in ("seed", "num_demos") and (name != "hours" or coded is not None)
    )
    return (*own, *(_kind(source) for source in (job.inputs.get("world"), coded) if source is not None))


def _plus(total: float | None, more: float | None) -> float | None:
    """A sum of which a part is unknown is unknown."""
    return None if total is None or more is None else total + more
