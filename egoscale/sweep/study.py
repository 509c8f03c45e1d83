"""What a study keeps below a root of what it sent to Slurm, and what Slurm still knows of it.

    <root>/sweeps/<name>/recipe-0f3a91c2.toml       a grid of the sweep, resolved; the digest is of its runs
    <root>/sweeps/<name>/slurm/journal.jsonl        what was sent: a line before each `sbatch`, a line after it
    <root>/sweeps/<name>/slurm/003-world-00.sbatch  the script of an array, and .json: its run folders by index
    <root>/sweeps/<name>/slurm/017-0f3a91c2-conclusion.sbatch  the script of the job that fits the law of that grid

Several grids of one sweep (`--set grid.seeds=[1]`) share all this, and the runs that they have in common; each has a
recipe and a conclusion of its own.
A shell that dies between the two lines leaves an array that Slurm knows by its name: the next submission finds it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egoscale.sweep import slurm
from egoscale.sweep.plan import Plan


@dataclass(frozen=True)
class Sent:
    """An array in the journal: `runs` by index; `job` is Slurm's id, None where the shell died before it was noted."""

    name: str
    job: str | None
    runs: Mapping[int, str]
    user: str = ""


class Study:
    """The folder of one sweep below a root, and what it knows of Slurm."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan, self.root = plan, root.resolve()
        self.folder = self.root / "sweeps" / _file_name(plan.sweep.name)
        self.slurm = self.folder / "slurm"
        digest = hashlib.sha256(f"{self.root}\n{plan.sweep.name}".encode()).hexdigest()[:8]
        self.prefix = f"egoscale-{digest}-"  # of the names of its jobs: how the queue is asked for them
        grid = hashlib.sha256("\n".join(sorted(plan.jobs)).encode()).hexdigest()[:8]
        self.recipe = self.folder / f"recipe-{grid}.toml"
        self.conclusion = f"-{grid}-conclusion"  # at the end of the name of the job that fits the law of this grid
        self.grid = grid

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

    def cancellations(self) -> int:
        """How often this grid was cancelled (a line {"cancelled": grid} of the journal)."""
        try:
            return (self.slurm / "journal.jsonl").read_text().splitlines().count(json.dumps({"cancelled": self.grid}))
        except FileNotFoundError:
            return 0

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

    def conclusions(self) -> list[tuple[Sent, Path]]:
        """Jobs that were to fit the law of this grid, oldest first, each with its log."""
        return [
            (sent, self.slurm / f"{self.prefix}{sent.name}-0.log")
            for sent in self.journal()
            if sent.name.endswith(self.conclusion)
        ]

    def elements(self) -> list[slurm.QueuedElement]:
        """What Slurm remembers of this sweep's jobs, whoever sent them, oldest first."""
        users = {sent.user for sent in self.journal() if sent.user} | {user_name()}
        return sorted(slurm.queue(self.prefix, ",".join(sorted(users))), key=lambda element: int(element.array_id))

    def newest(self, elements: Iterable[slurm.QueuedElement] | None = None) -> dict[str, slurm.QueuedElement]:
        """Run ("world/ab12…") -> its element, one that is alive before one that ended, the newest of several."""
        remembered = self.elements() if elements is None else list(elements)
        return dict(self.by_run(sorted(remembered, key=lambda element: element.state in slurm.ALIVE)))

    def by_run(self, remembered: Sequence[slurm.QueuedElement]) -> Iterator[tuple[str, slurm.QueuedElement]]:
        """(run, element) in turn, of those elements that work on runs, of whatever grid of this sweep.

        Arrays that a dying shell did not note are found by their names, and noted.
        """
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
        for element in remembered:
            run = runs.get((element.name, element.array_id, element.index))
            if run is not None:
                yield run, element

    def in_queue(self) -> dict[str, slurm.QueuedElement]:
        """Run ("world/ab12…") -> its element in Slurm's queue, the newest of several; finished ones are left out."""
        return {run: element for run, element in self.newest().items() if element.state in slurm.ALIVE}


def user_name() -> str:
    """Of whoever runs this process."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without a name for this user
        return str(os.getuid())


def _file_name(name: str) -> str:
    """A sweep's name as the name of a folder: what a path cannot hold becomes `_`."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name) or "_"
