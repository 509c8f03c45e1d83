"""Sends what is missing of a sweep to Slurm: one `sbatch` an array, every step journalled, safe to do again.

    <root>/sweeps/<name>/recipe.toml                the sweep, resolved
    <root>/sweeps/<name>/slurm/journal.jsonl        what was sent: a line before each `sbatch`, a line after it
    <root>/sweeps/<name>/slurm/003-world-00.sbatch  the script of an array, and .json: its run folders by index

A shell that dies between the two lines leaves an array that Slurm knows by its name: the next submission finds it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import pwd
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egoscale.recipe import resolved_toml
from egoscale.resources import find
from egoscale.sweep import slurm
from egoscale.sweep.arrays import Array, arrays
from egoscale.sweep.element import EXECUTE
from egoscale.sweep.lock import alone, write_whole
from egoscale.sweep.plan import Job, Plan
from egoscale.sweep.profile import Profile, ResourceSpec
from egoscale.sweep.worker import threads_environment

CONCLUSION = "-conclusion"  # at the end of the name of the job that fits the law


@dataclass(frozen=True)
class Sent:
    """An array in the journal: `runs` by index; `job` is Slurm's id, None where the shell died before it was noted."""

    name: str
    job: str | None
    runs: Mapping[int, str]
    user: str = ""


@dataclass
class Submitted:
    """What a submission did."""

    arrays: list[Sent] = field(default_factory=list)
    done: int = 0  # runs with a result
    queued: int = 0  # runs that were in Slurm's queue already
    sent: int = 0
    held_back: int = 0  # runs not sent because of the profile's max_submitted
    waiting: int = 0  # runs not sent because an input is neither done, nor in the queue, nor sent


class Study:
    """The folder of one sweep below a root, and what it knows of Slurm."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan, self.root = plan, root.resolve()
        self.folder = self.root / "sweeps" / _file_name(plan.sweep.name)
        self.slurm = self.folder / "slurm"
        digest = hashlib.sha256(f"{self.root}\n{plan.sweep.name}".encode()).hexdigest()[:8]
        self.prefix = f"egoscale-{digest}-"  # of the names of its jobs: how the queue is asked for them

    def journal(self) -> list[Sent]:
        """Arrays that were sent, oldest first; a torn last line is left out."""
        intents: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError):
            for text in (self.slurm / "journal.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    line = json.loads(text)
                    intents.setdefault(line["name"], {"runs": {}, "job": None}).update(line)
        return [
            Sent(name, line["job"], {int(index): run for index, run in line["runs"].items()}, line.get("user", ""))
            for name, line in intents.items()
        ]

    def note(self, **line: Any) -> None:
        """Append to the journal, durably."""
        self.slurm.mkdir(parents=True, exist_ok=True)
        path = self.slurm / "journal.jsonl"
        torn = path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        with path.open("a") as file:
            file.write("\n" * bool(torn) + json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def logs(self, run: str) -> list[Path]:
        """Logs of the elements that worked on a run, oldest first."""
        return [
            self.slurm / f"{self.prefix}{sent.name}-{index}.log"
            for sent in self.journal()
            for index, one in sent.runs.items()
            if one == run
        ]

    def elements(self) -> list[slurm.QueuedElement]:
        """What Slurm remembers of this sweep's jobs, whoever sent them, oldest first."""
        users = {sent.user for sent in self.journal() if sent.user} | {_user()}
        return sorted(slurm.queue(self.prefix, ",".join(sorted(users))), key=lambda element: int(element.array_id))

    def newest(self, elements: Iterable[slurm.QueuedElement] | None = None) -> dict[str, slurm.QueuedElement]:
        """Run ("world/ab12…") -> its element, one that is alive before one that ended, the newest of several.

        Arrays that a dying shell did not note are found by their names, and noted.
        """
        remembered = self.elements() if elements is None else list(elements)
        by_name = {element.name: element.array_id for element in remembered}
        runs: dict[tuple[str, str, int], str] = {}
        for sent in self.journal():
            name = self.prefix + sent.name
            job = sent.job or by_name.get(name)
            if job is None:
                continue
            if sent.job is None:
                self.note(name=sent.name, job=job)
            runs |= {(name, job, index): run for index, run in sent.runs.items()}
        found: dict[str, slurm.QueuedElement] = {}
        for element in sorted(remembered, key=lambda element: element.state in slurm.ALIVE):
            run = runs.get((element.name, element.array_id, element.index))
            if run is not None:
                found[run] = element
        return found

    def in_queue(self) -> dict[str, slurm.QueuedElement]:
        """Run ("world/ab12…") -> its element in Slurm's queue, the newest of several; finished ones are left out."""
        return {run: element for run, element in self.newest().items() if element.state in slurm.ALIVE}


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
    study.note(name=name, job=None, runs=runs, user=_user())
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


def render(
    profile: Profile,
    resources: ResourceSpec,
    name: str,
    elements: Path,
    logs: Path,
    runs: Mapping[int, str],
    dependency: str,
) -> str:
    """The script of an array. What is not a checked option is quoted for the shell."""
    limit = f"%{resources.max_running}" if resources.max_running else ""
    options = {
        "job-name": name,
        "array": slurm.indices(runs) + limit,
        "output": f"{str(logs).replace('%', '%%')}/%x-%a.log",
        "open-mode": "append",
        "nodes": str(resources.num_nodes),
        "ntasks-per-node": str(resources.tasks_per_node),
        "cpus-per-task": str(resources.cpus_per_task),
        "time": str(resources.time_limit_min),
        "partition": resources.partition or profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "reservation": profile.reservation,
        "constraint": resources.constraint or profile.constraint,
        "mem": f"{resources.memory_gb_per_node * 1024:.0f}M" if resources.memory_gb_per_node else "",
        "dependency": dependency,
        "kill-on-invalid-dep": "yes" if dependency else "",
        # To the batch shell alone (B:), whose trap hands it to every rank.
        "signal": f"B:USR1@{profile.signal_before_end_s}" if profile.signal_before_end_s else "",
    }
    if resources.gpus_per_node:
        kind = f"{resources.gpu_type}:" if resources.gpu_type else ""
        gres = profile.gpu_count_option == "gres"
        options["gres" if gres else "gpus-per-node"] = f"{'gpu:' if gres else ''}{kind}{resources.gpus_per_node}"
    for key, value in options.items():
        if not set(value).isdisjoint("\"'\\`$#") or not value.isprintable() or " " in value:
            raise ValueError(
                f"--{key}={value!r}: a job script cannot hold this; choose a --root without spaces, quotes, "
                "`#`, `$`, backslashes or control characters"
            )
    directives = [f"#SBATCH --{key}={value}" for key, value in options.items() if value]
    directives.append("#SBATCH --requeue")
    setup = [f"module load {shlex.quote(module)}" for module in profile.modules] + list(profile.setup)
    setup += [f"export {key}={shlex.quote(value)}" for key, value in sorted(profile.environment.items())]
    # As on one machine: a library that starts a thread a core of the node is slow, and sums in another order.
    threads = threads_environment(resources.cpus_per_task)
    setup += [f"export {key}=${{{key}:-{value}}}" for key, value in threads.items()]
    step, within, beside = _container(profile)
    values = {
        "DIRECTIVES": "\n".join(directives),
        "ELEMENTS": shlex.quote(str(elements)),
        "PYTHON": shlex.quote(profile.python or sys.executable),
        "TIME_LIMIT_S": str(resources.time_limit_min * 60),
        "SETUP": "\n".join(setup),
        "NODES": str(resources.num_nodes),
        "TASKS": str(resources.num_tasks),
        "SRUN": step,
        "WITHIN": within,
        "BESIDE": beside,
    }
    template = find("slurm", "templates/array.sbatch").read_text()
    # In one pass: what is filled in may itself look like a mark, and stays as it is.
    return re.sub(r"@([A-Z_]+)@", lambda mark: values[mark[1]], template)


def _container(profile: Profile) -> tuple[str, str, str]:
    """(options of srun, words before the command of a step, words before a command beside it) that put a job into its
    image: Pyxis does it to steps alone, so what runs beside the step is a small step too."""
    box = profile.container
    if box is None:
        return "", "", ""
    if box.kind == "pyxis":
        mounts = f" --container-mounts={shlex.quote(','.join(box.mounts))}" if box.mounts else ""
        image = f" --container-image={shlex.quote(box.image)}{mounts}"
        return image, "", f"srun --nodes=1 --ntasks=1{image} "
    binds = "".join(f"--bind {shlex.quote(mount)} " for mount in box.mounts)
    within = f"apptainer exec --nv {binds}{shlex.quote(box.image)} "
    return "", within, within


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without a name for this user
        return str(os.getuid())


def _file_name(name: str) -> str:
    """A sweep's name as the name of a folder: what a path cannot hold becomes `_`."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name) or "_"


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
