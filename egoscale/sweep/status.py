"""Where a sweep stands: one line a stage, one glyph a run, from the run folders and from Slurm's queue."""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from egoscale.recipe import STAGES
from egoscale.sweep import slurm
from egoscale.sweep.ledger import RunFolder
from egoscale.sweep.lock import orphaned, silent
from egoscale.sweep.plan import Job, Plan
from egoscale.sweep.progress import Estimate, duration
from egoscale.sweep.study import Study

State = Literal["done", "running", "queued", "blocked", "failed", "interrupted", "new"]
GLYPHS: dict[State, str] = {
    "done": "●", "running": "◐", "queued": "○", "blocked": "▪", "failed": "✗", "interrupted": "◌", "new": "·",
}  # fmt: skip
WIDTH = 50  # glyphs a line of a terminal of 80; a stage of more runs is shown by the number of each glyph
REASON_LINES = 3
LOOKED_INTO = 100  # runs at work whose metrics are read for the time left: their mean says the rest
TAIL_BYTES = 4096  # of a metrics file: its last line is in there


@dataclass
class Standing:
    """Every run of a sweep by state; `reasons` of what failed, `notes` of what Slurm says."""

    states: dict[str, State]  # job key -> state
    jobs: Mapping[str, Job]
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_s: float = 0.0  # 0: nothing is at work, so nothing can be said
    fractions: dict[str, float] = field(default_factory=dict)  # of runs at work that say how far they are

    asked: Mapping[str, slurm.QueuedElement] | None = None  # run -> what Slurm remembers of it; None: not asked
    by_folder: dict[str, State] = field(default_factory=dict)  # what the run folders alone say
    silent_since: datetime.datetime | None = None  # the first look of those in which Slurm did not answer

    @property
    def counts(self) -> Counter[State]:
        return Counter(self.states.values())

    @property
    def complete(self) -> bool:
        return set(self.states.values()) <= {"done"}


def standing(plan: Plan, root: Path, workers: int = 1, before: Standing | None = None) -> Standing:
    """Read the run folders; ask Slurm's queue only where the sweep was ever sent there and something is unfinished.

    A run that its folder calls interrupted or new and that Slurm will start is queued; one whose input failed, or
    that Slurm says can never start, is blocked. Where Slurm does not answer, a note says so and the folders remain.
    before: an earlier look; what was done then is not looked at again, and where Slurm does not answer now, a run whose
    folder says what it said then is what it was then.
    """
    states: dict[str, State] = {}
    reasons: dict[str, str] = {}
    for key, job in plan.jobs.items():
        if before is not None and before.states[key] == "done":
            states[key] = "done"
            continue
        folder = job.run(root)
        state: State = folder.state()
        gone = state == "running" and silent(folder.path / "lock") is not None
        if gone and [event["event"] for event in folder.events()][-1:] == ["fail"]:  # it was waited for in vain
            state = "failed"
        states[key] = state
        if state == "failed":
            told = [event.get("reason", "") for event in folder.events() if event["event"] == "fail"]
            reasons[key] = told[-1] if told else "no reason noted"
    found = Standing(states, plan.jobs, reasons, by_folder=dict(states))
    study = Study(plan, root)
    unfinished = [key for key, state in states.items() if state != "done"]
    if unfinished and study.slurm.is_dir():
        _ask_slurm(found, study, unfinished, before)
    for key, job in plan.jobs.items():  # inputs come before users
        if states[key] in ("new", "interrupted", "queued") and any(
            states[source.key] in ("failed", "blocked") for source in job.inputs.values()
        ):
            states[key] = "blocked"
    if found.asked is not None:
        _tell_fallen(found, study)
    _tell_time(found, plan, root, workers, unfinished)
    return found


def _tell_time(found: Standing, plan: Plan, root: Path, workers: int, unfinished: Sequence[str]) -> None:
    """How far the runs at work are, and the time left at the number of them that are at work now."""
    running = [key for key in unfinished if found.states[key] == "running"]
    if not running:
        return  # nobody works, or all depends on when Slurm begins
    working: dict[str, tuple[float, float]] = dict.fromkeys(running, (0.0, 0.0))
    for key in running[:LOOKED_INTO]:
        elapsed, fraction = _progress(plan.jobs[key], plan.jobs[key].run(root))
        working[key] = (elapsed, fraction or 0.0)
        if fraction is not None:
            found.fractions[key] = fraction
    waiting = [plan.jobs[key] for key in unfinished if found.states[key] not in ("failed", "blocked", "running")]
    found.left_s = Estimate(plan, root, max(workers, len(running))).left(waiting, working)


def _progress(job: Job, folder: RunFolder) -> tuple[float, float | None]:
    """(seconds since a run at work was started, share of its steps that are done: None where it does not say)."""
    starts = [event["time"] for event in folder.events() if event["event"] == "start" and "time" in event]
    elapsed = 0.0
    if starts:
        began = datetime.datetime.fromisoformat(starts[-1])
        elapsed = max(0.0, (datetime.datetime.now(datetime.UTC) - began).total_seconds())
    spec = getattr(job.recipe, "train", None)
    if spec is None:
        return elapsed, None
    try:
        with (folder.path / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            last = file.read().splitlines()[-1:]
        return elapsed, min(1.0, float(json.loads(last[0])["step"]) / spec.num_steps)
    except (OSError, IndexError, ValueError, KeyError, TypeError):  # none yet, or a torn line
        return elapsed, None


def _ask_slurm(found: Standing, study: Study, unfinished: list[str], before: Standing | None) -> None:
    try:
        found.asked = study.newest()
    except slurm.NoSlurmError as error:
        found.notes.append(f"Slurm was not asked: {error}")
        return
    except slurm.SlurmError as error:
        found.silent_since = datetime.datetime.now().astimezone()
        if before is None:
            found.notes.append(f"Slurm was not asked: {error}")
        else:
            found.silent_since = before.silent_since or found.silent_since
            _keep(found, unfinished, before)
            since = f"{found.silent_since:%H:%M:%S}"
            found.notes.append(f"Slurm cannot be asked since {since}, and what waits is shown as it was then: {error}")
        return
    pending: Counter[str] = Counter()
    for key in unfinished:
        element = found.asked.get(str(found.jobs[key]))
        if element is None or element.state not in slurm.ALIVE:
            if found.states[key] == "running" and orphaned(found.jobs[key].run(study.root).path / "lock", slurm.ended):
                found.states[key] = "interrupted"
            continue
        if element.state == "COMPLETING" and found.states[key] == "failed":
            continue
        found.reasons.pop(key, None)  # of an earlier attempt
        if element.never:
            found.states[key] = "blocked"
        elif element.state == "PENDING":
            pending[element.reason] += 1
            if found.states[key] != "running":
                found.states[key] = "queued"
        else:
            found.states[key] = "running"
    named = ", ".join(f"{count} {reason}" for reason, count in pending.most_common(4))
    if named:
        found.notes.append(f"waiting in the queue: {named}")


def _keep(found: Standing, unfinished: list[str], before: Standing) -> None:
    """What Slurm said, when it answered, of the runs whose folders say now what they said then."""
    for key in unfinished:
        if found.by_folder[key] == before.by_folder[key]:
            found.states[key] = before.states[key]
            if found.states[key] != "failed":
                found.reasons.pop(key, None)


def _tell_fallen(found: Standing, study: Study) -> None:
    """Runs that were sent, did not end by their own word, and are in the queue no more: mostly cancelled."""
    fallen = {str(found.jobs[key]) for key, state in found.states.items() if state in ("new", "interrupted")}
    last: dict[str, tuple[str, int]] = {}
    for sent in study.journal() if fallen else ():
        last |= {run: (sent.job, index) for index, run in sent.runs.items() if sent.job and run in fallen}
    said = {run: element.state for run, element in (found.asked or {}).items() if run in last}
    forgotten = {place[0] for run, place in last.items() if run not in said}
    if forgotten:  # Slurm's accounts, where it keeps any, go further back
        ended = slurm.accounting(sorted(forgotten)) or []
        states = {(end.array_id, end.index): end.state for end in ended}
        said = {run: states.get(place, "forgotten by Slurm") for run, place in last.items()} | said
    if not said:
        return
    counts = ", ".join(f"{count} {state}" for state, count in Counter(said.values()).most_common())
    found.notes.append(f"in Slurm's queue no more, and not done: {counts}; `egoscale sweep submit` sends them again")


def lines(found: Standing) -> list[str]:
    """For a terminal: stages with their glyphs, the legend, why runs failed, what is left."""
    out = []
    for stage in STAGES:
        keys = [key for key, job in found.jobs.items() if job.stage == stage]
        if not keys:
            continue
        counts = Counter(found.states[key] for key in keys)
        glyphs = "".join(GLYPHS[found.states[key]] for key in keys)
        if len(keys) > WIDTH:
            glyphs = "  ".join(f"{GLYPHS[state]} {counts[state]:,}" for state in GLYPHS if counts[state])
        steps = [found.fractions[key] for key in keys if key in found.fractions]
        share = f"  ({sum(steps) / len(steps):.0%} of their steps)" if steps else ""
        out.append(f"{stage:<14}{counts['done']:>6}/{len(keys):<6} {glyphs}{share}")
    counts = found.counts
    out.append("  ".join(f"{GLYPHS[state]} {state} {counts[state]:,}" for state in GLYPHS if counts[state]))
    for key, reason in list(found.reasons.items())[:20]:
        told = reason.splitlines()[:REASON_LINES]
        out.append(f"✗ {found.jobs[key].title()} ({found.jobs[key]}): {told[0] if told else ''}")
        out += [f"    {line}" for line in told[1:]]
    if len(found.reasons) > 20:
        out.append(f"… and {len(found.reasons) - 20} more failed")
    out += found.notes
    if counts and not found.complete:
        left = f", about {duration(found.left_s)} left" if found.left_s else ""
        out.append(
            f"{counts['done']:,} of {len(found.states):,} runs done ({counts['done'] / len(found.states):.0%}){left}"
        )
    return out
