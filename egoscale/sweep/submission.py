"""Sends what is missing of a sweep to Slurm: one `sbatch` an array, every step journalled, safe to do again."""

from __future__ import annotations

import contextlib
import csv
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
from egoscale.sweep.ledger import RunFolder, key_column
from egoscale.sweep.lock import alone, take_away, write_whole
from egoscale.sweep.plan import Job, Plan
from egoscale.sweep.profile import Profile
from egoscale.sweep.script import render
from egoscale.sweep.study import Sent, Study, user_name

CONCLUSION_MIN = 60  # its time limit: reading ten thousand folders and some bootstraps are minutes


@dataclass
class Submitted:
    """What a submission did."""

    arrays: list[Sent] = field(default_factory=list)
    done: int = 0  # runs with a result
    queued: int = 0  # runs that were in Slurm's queue already
    sent: int = 0
    held_back: int = 0  # runs not sent because of the profile's max_submitted
    waiting: int = 0  # runs not sent because an input is neither done, nor in the queue, nor sent
    conclusion: Sent | None = None  # the job that fits the law, sent now or waiting in the queue already
    log: Path | None = None  # of the conclusion
    cancelled: bool = False  # nothing was sent: the grid was cancelled since


@dataclass(frozen=True)
class Cancelled:
    """What was taken out of the queue, and how many elements of other grids of the sweep stay in it."""

    runs: int = 0
    conclusions: int = 0
    others: int = 0


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
    return _in_turn(Study(plan, root), profile, set(only) if only is not None else None, execute)


def _in_turn(
    study: Study, profile: Profile, only: set[str] | None, execute: str, cancellations: int | None = None
) -> Submitted:
    """Send, with no other submission of the sweep at it; nothing where the grid was cancelled more often than that."""
    study.slurm.mkdir(parents=True, exist_ok=True)
    with alone(study.slurm / "turn"):
        if cancellations is not None and study.cancellations() > cancellations:
            return Submitted(cancelled=True)
        write_whole(study.recipe, resolved_toml(study.plan.sweep))
        write_whole(study.slurm / "profile.json", profile.model_dump_json(indent=1))
        return _send(study, profile, only, execute)


def submit_all(
    plan: Plan, root: Path, profile: Profile, execute: str = EXECUTE, every_s: float = 30.0
) -> Iterator[Submitted]:
    """Submit, and again whenever the queue has room for what was held back, until nothing is; what each call did.

    A run is sent once: what fails meanwhile is left for another submission, and so is what waits for it. `cancel`,
    typed elsewhere, ends it.
    """
    study = Study(plan, root)
    left, cancellations = {str(job) for job in plan.jobs.values()}, study.cancellations()
    while True:
        answer = _in_turn(study, profile, left, execute, cancellations)
        left -= {run for sent in answer.arrays for run in sent.runs.values()}
        yield answer
        if not answer.held_back:
            return
        time.sleep(every_s)


def cancel(plan: Plan, root: Path) -> Cancelled:
    """Take the runs of a plan out of Slurm's queue, and its conclusion; a submission that waits sends no more of it.

    What another grid of the same sweep has in the queue stays, and so do runs of both that it waits for.
    """
    study = Study(plan, root)
    if not study.slurm.is_dir():
        return Cancelled()
    with alone(study.slurm / "turn"):
        study.note(cancelled=study.grid)
        alive = [element for element in study.elements() if element.state in slurm.ALIVE]
        wanted = {str(job) for job in plan.jobs.values()}
        at_work = list(study.by_run(alive))
        wanted -= _inputs_of((run for run, _ in at_work if run not in wanted), study.root)
        runs = [element for run, element in at_work if run in wanted]
        last = [element for element in alive if element.name.endswith(study.conclusion)]
        slurm.cancel(element.array_id for element in last)  # first: it would start when the others are gone
        kept = set(alive) - set(runs) - set(last)
        shared = {element.array_id for element in kept}
        slurm.cancel(
            f"{element.array_id}_{element.index}" if element.array_id in shared else element.array_id
            for element in runs
        )
    return Cancelled(len(runs), len(last), len(kept))


def _inputs_of(runs: Iterable[str], root: Path) -> set[str]:
    """All that these runs ("world/ab12…") are made from, directly or not, as their folders say."""
    found: set[str] = set()
    unseen = list(runs)
    while unseen:
        with contextlib.suppress(OSError, ValueError):  # somebody took the folder away
            new = {str(source) for source in RunFolder(root / unseen.pop()).inputs().values()} - found
            found |= new
            unseen += new
    return found


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
    _conclude(study, profile, elements, sorted(set(ids.values()), key=int), number, answer)
    return answer


def _conclude(
    study: Study,
    profile: Profile,
    elements: Sequence[slurm.QueuedElement],
    ids: Sequence[str],
    number: int,
    answer: Submitted,
) -> None:
    """See to it that one conclusion of this grid is to come: after all that is in the queue or was sent (`ids`), in the
    place of one that does not wait for all of it; where all has ended, at once, unless one has told of it."""
    own = [element for element in elements if element.name.endswith(study.conclusion)]
    own = [element for element in own if element.state in slurm.ALIVE]
    waits = [element for element in own if element.state == "PENDING" and not element.never]
    replaced = [element for element in own if element.state == "PENDING"]
    if ids:
        missing = bool(answer.arrays) or not waits
    else:
        missing = answer.done > 0 and all(element.never for element in own) and not _reported(study)
    if missing and not answer.held_back:
        _submit_conclusion(study, profile, ids, number)
        answer.conclusion, answer.log = study.conclusions()[-1]
    elif waits:
        replaced.remove(waits[-1])
        known = [found for found in study.conclusions() if study.prefix + found[0].name == waits[-1].name]
        answer.conclusion, answer.log = known[-1] if known else (None, None)
    slurm.patiently(lambda: slurm.cancel(element.array_id for element in replaced))


def _reported(study: Study) -> bool:
    """Whether the report is about this grid, and no older than its newest result."""
    plan, folder = study.plan, study.root / "report" / study.plan.sweep.name
    if plan.cells:
        column, asked = key_column("evaluate"), {job.key for job in plan.cells}
    else:
        column, asked = "run", {str(job) for job in plan.jobs.values() if job.stage == "world"}
    try:
        with (folder / "table.csv").open(newline="") as file:
            rows = {row.get(column) for row in csv.DictReader(file)}
        written = (folder / ("report.html" if plan.cells else "table.csv")).stat().st_mtime_ns
    except OSError:
        return False
    results = [job.run(study.root).path / "result.json" for job in plan.jobs.values()]
    newest = max((result.stat().st_mtime_ns for result in results if result.is_file()), default=0)
    return rows == asked and written >= newest


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
        folder = job.create(study.root)
        take_away(folder.path / "lock", slurm.ended)  # of a process that died here: the nodes cannot know that
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
    name = f"{number:03d}{study.conclusion}"
    elements = study.slurm / f"{name}.json"
    write_whole(elements, json.dumps({"root": str(study.root), "conclude": str(study.recipe)}))
    of = profile.resources[profile.conclusion_class]
    small = {"num_nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "max_running": 0}
    resources = of.model_copy(update=small | {"time_limit_min": min(CONCLUSION_MIN, of.time_limit_min)})
    unsignalled = profile.model_copy(update={"signal_before_end_s": 0})  # it has nothing to save
    after = "afterany:" + ":".join(ids) if ids else ""
    script = render(unsignalled, resources, study.prefix + name, elements, study.slurm, {0: "conclusion"}, after)
    write_whole(study.slurm / f"{name}.sbatch", script)
    _sbatch(study, name, script, {})


def lines(answer: Submitted) -> Iterator[str]:
    """What was sent, for a person."""
    if answer.cancelled:
        yield "cancelled meanwhile: nothing more is sent; `egoscale sweep submit`, typed again, sends what is missing"
        return
    for sent in answer.arrays:
        yield f"{sent.job}  {sent.name}: {len(sent.runs)} runs"
    if answer.conclusion:
        yield f"{answer.conclusion.job}  {answer.conclusion.name}: the law, when all have ended; log: {answer.log}"
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
