"""Sends what is missing of a sweep to Slurm: one `sbatch` an array, every step journalled, safe to do again."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from egoscale.recipe import resolved_toml
from egoscale.sweep import slurm
from egoscale.sweep.arrays import Array, arrays
from egoscale.sweep.element import EXECUTE
from egoscale.sweep.lock import alone, write_whole
from egoscale.sweep.plan import Job, Plan
from egoscale.sweep.profile import Profile
from egoscale.sweep.script import render
from egoscale.sweep.study import CONCLUSION, Sent, Study, user_name


@dataclass
class Submitted:
    """What a submission did."""

    arrays: list[Sent] = field(default_factory=list)
    done: int = 0  # runs with a result
    queued: int = 0  # runs that were in Slurm's queue already
    sent: int = 0
    held_back: int = 0  # runs not sent because of the profile's max_submitted
    waiting: int = 0  # runs not sent because an input is neither done, nor in the queue, nor sent


def submit(
    plan: Plan, root: Path, profile: Profile, only: Iterable[str] | None = None, execute: str = EXECUTE
) -> Submitted:
    """Send every job of `plan` that has no result and is not in Slurm's queue; then the conclusion, which waits for
    all of them.

    only: runs ("world/ab12…") to send, instead of all that are missing. execute: "package.module:function" that runs
    a folder to its end on a compute node.

    Two submissions of one sweep take turns: the second finds the first one's jobs in the queue. Elements that wait for
    what will never come are cancelled and sent again, aimed at the new attempt of their input. Where the profile limits
    the elements in the queue, what fits is sent, inputs before users; `submit_all` sends the rest.

    Raises SlurmError where Slurm refuses, or does not answer for some minutes; what was sent before is noted, and the
    same command goes on.
    """
    study = Study(plan, root)
    study.slurm.mkdir(parents=True, exist_ok=True)
    with alone(study.slurm / "turn"):
        write_whole(study.folder / "recipe.toml", resolved_toml(plan.sweep))
        write_whole(study.slurm / "profile.json", profile.model_dump_json(indent=1))
        return _send(study, profile, set(only) if only is not None else None, execute)


def submit_all(
    plan: Plan, root: Path, profile: Profile, execute: str = EXECUTE, every_s: float = 30.0
) -> Iterator[Submitted]:
    """Submit, and again whenever the queue has room for what was held back, until nothing is; what each call did.

    A run is sent once: what fails meanwhile is left for another submission, and so is what waits for it.
    """
    left = {str(job) for job in plan.jobs.values()}
    while True:
        answer = submit(plan, root, profile, left, execute)
        left -= {run for sent in answer.arrays for run in sent.runs.values()}
        yield answer
        if not answer.held_back:
            return
        time.sleep(every_s)


def _send(study: Study, profile: Profile, only: set[str] | None, execute: str) -> Submitted:
    plan, answer = study.plan, Submitted()
    elements = slurm.patiently(study.elements)
    queued = _startable(study, study.newest(elements))
    missing: dict[str, Job] = {}
    waiting: dict[str, tuple[str, int]] = {}
    ids: dict[str, str] = {}  # array's name -> Slurm's id
    to_come: set[str] = set()  # keys of what is done, or will be
    for key, job in plan.jobs.items():  # inputs come before users
        if job.run(study.root).result() is not None:
            answer.done += 1
        elif str(job) in queued:
            element = queued[str(job)]
            waiting[key] = (f"#{element.array_id}", element.index)
            ids[f"#{element.array_id}"] = element.array_id
            answer.queued += 1
        elif only is not None and str(job) not in only:
            continue
        elif all(source.key in to_come for source in job.inputs.values()):
            missing[key] = job
        else:
            answer.waiting += 1
            continue
        to_come.add(key)
    chosen = dict(itertools.islice(missing.items(), _room(profile, len(missing))))
    answer.held_back = len(missing) - len(chosen)
    resources = {stage: profile.resource_class(stage) for stage in {job.stage for job in plan.jobs.values()}}
    number = 1 + max((int(sent.name.split("-")[0]) for sent in study.journal()), default=0)
    for array in arrays(plan, chosen, resources, profile.max_array_size, waiting):
        sent = _submit_array(study, profile, array, ids, number, execute)
        assert sent.job is not None
        ids[array.name] = sent.job
        answer.arrays.append(sent)
        answer.sent += len(array.elements)
        number += 1
    pending = [element for element in elements if element.name.endswith(CONCLUSION) and element.state == "PENDING"]
    if ids and not answer.held_back and (answer.arrays or not pending):
        _submit_conclusion(study, profile, sorted(set(ids.values()), key=int), number)
    else:
        pending = pending[:-1]
    slurm.patiently(lambda: slurm.cancel(element.array_id for element in pending))
    return answer


def _room(profile: Profile, wanted: int) -> int:
    """How many elements the queue takes; one place is kept for the conclusion."""
    if not profile.max_submitted:
        return wanted
    queued = slurm.patiently(slurm.num_queued)
    return max(profile.max_submitted - queued - 1, 0 if queued else 1)


def _startable(study: Study, newest: Mapping[str, slurm.QueuedElement]) -> dict[str, slurm.QueuedElement]:
    """Elements in the queue that may yet start; the others, which wait for what failed or is gone, are cancelled.

    Slurm itself says so late (DependencyNeverSatisfied), or not at all: a job it has forgotten counts as satisfied.
    What another grid of the same sweep has in the queue is left alone.
    """
    kept: dict[str, slurm.QueuedElement] = {}
    gone: list[str] = []
    for job in study.plan.jobs.values():  # inputs come before users
        element = newest.get(str(job))
        if element is None or element.state not in slurm.ALIVE:
            continue
        ready = all(
            str(source) in kept or source.run(study.root).result() is not None for source in job.inputs.values()
        )
        if element.state == "COMPLETING" and job.run(study.root).state() == "failed":
            continue  # by its own word: it is as good as ended
        if element.state == "PENDING" and (element.never or not ready):
            gone.append(f"{element.array_id}_{element.index}")
        else:
            kept[str(job)] = element
    slurm.patiently(lambda: slurm.cancel(gone))
    return kept


def _submit_array(
    study: Study, profile: Profile, array: Array, ids: Mapping[str, str], number: int, execute: str
) -> Sent:
    name = f"{number:03d}-{array.name}"
    for job in array.elements.values():
        job.create(study.root)
    runs = {index: str(job) for index, job in sorted(array.elements.items())}
    elements = study.slurm / f"{name}.json"
    listed = {"root": str(study.root), "execute": execute, "retries": profile.max_retries, "runs": runs}
    write_whole(elements, json.dumps(listed, indent=0))
    resources = profile.resources[array.resources]
    script = render(profile, resources, study.prefix + name, elements, study.slurm, runs, dependencies(array, ids))
    write_whole(study.slurm / f"{name}.sbatch", script)
    return Sent(name, _sbatch(study, name, script, runs), runs)


def _sbatch(study: Study, name: str, script: str, runs: Mapping[int, str]) -> str:
    """Send a script, with a line in the journal before and after; the job's id.

    Through a restart of the controller, too: it may have taken a script without living to say so, and is asked by name
    before the script is sent again.
    """
    study.note(name=name, job=None, runs=runs, user=user_name())
    tried = False

    def send() -> str:
        nonlocal tried
        if tried:
            taken = [element.array_id for element in slurm.queue(study.prefix + name)]
            if taken:
                return taken[-1]
        tried = True
        try:
            return slurm.sbatch(script)
        except slurm.SlurmError as error:
            if "limit" in str(error).lower():  # "Job violates accounting/QOS policy (job submit limit, …)"
                raise slurm.SlurmError(f"{error}: set max_submitted of the profile to what you may queue") from None
            raise

    job = slurm.patiently(send)
    study.note(name=name, job=job)
    return job


def dependencies(array: Array, ids: Mapping[str, str]) -> str:
    """What an array waits for, as Slurm writes it; empty for nothing."""
    parts = [f"aftercorr:{ids[array.along]}"] if array.along else []
    parts += [f"afterok:{ids[name]}_{index}" for name, index in array.after]
    parts += [f"afterany:{ids[name]}" for name in array.beside]
    return ",".join(parts)


def _submit_conclusion(study: Study, profile: Profile, ids: Sequence[str], number: int) -> None:
    """The fit, when everything has ended, whichever way: it says what is missing."""
    name = f"{number:03d}{CONCLUSION}"
    elements = study.slurm / f"{name}.json"
    write_whole(elements, json.dumps({"root": str(study.root), "conclude": str(study.folder / "recipe.toml")}))
    resources = profile.resources[profile.resource_class("evaluate")].model_copy(
        update={"num_nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "max_running": 0}
    )
    after = "afterany:" + ":".join(ids)
    script = render(profile, resources, study.prefix + name, elements, study.slurm, {0: "conclusion"}, after)
    write_whole(study.slurm / f"{name}.sbatch", script)
    _sbatch(study, name, script, {})


def lines(answer: Submitted) -> Iterator[str]:
    """What was sent, for a person."""
    for sent in answer.arrays:
        yield f"{sent.job}  {sent.name}: {len(sent.runs)} runs"
    yield (
        f"{answer.sent} runs sent in {len(answer.arrays)} arrays; {answer.done} are done, "
        f"{answer.queued} were in the queue"
    )
    if answer.held_back:
        yield (
            f"{answer.held_back} held back (max_submitted of the profile), and the conclusion with them: submit again "
            "when the queue is shorter, or stay with --wait"
        )
    if answer.waiting:
        yield f"{answer.waiting} wait for runs that failed or were taken out of the queue: submit again to send both"
