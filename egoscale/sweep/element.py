"""What an element of a Slurm array runs: `python -m egoscale.sweep.element LIST INDEX` on every rank, and afterwards
`--ended CODE LIST INDEX` once, which says from the run folder what became of it.

Exit codes: 0 done, 85 saved and wants to go on, 75 worth another attempt, 1 failed.

The job script says when the attempt began, in EGOSCALE_BEGAN (seconds since 1970): what the run folder tells from then
on is the word of this attempt.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from egoscale.sweep import slurm
from egoscale.sweep.ledger import RunFolder, RunLockedError, reason_of
from egoscale.sweep.lock import of_this_attempt, silent, slurm_job, take_away
from egoscale.sweep.worker import REQUEUE, resolve

DONE, FAILED, AGAIN = 0, 1, 75
LOCKED_POLL_S = 5.0
RANK_POLL_S = 1.0
INPUT_PATIENCE_S = 30.0  # a network file system may show a file of another node so late (acdirmin of NFS)
# A step that ends so was not ended by the run itself: a hang (egoscale.train.watch), the time limit (the job script);
# above 128, a kill (128 + signal).
HANG = 86
LIMIT = 124
KEPT = {"save", "part"}  # events of a run that need not begin again
EXECUTE = "egoscale.stages:execute"


def run(folder: RunFolder, execute: str) -> int:
    """Run one folder to its end on this rank; the exit code. Another process at work on it is waited for, as long as it
    shows life.

    A run whose inputs are not finished is not begun: a dependency on a job that Slurm has forgotten, or that somebody
    took out of the queue, counts as satisfied.
    """
    main = os.environ.get("SLURM_PROCID", "0") == "0"
    try:
        unfinished = _unfinished(folder)
        if unfinished is not None and folder.result() is None:
            reason = f"its input {unfinished} is {unfinished.state()}, not done"
            print(f"{folder}: {reason}", flush=True)
            if main:
                folder.event("blocked", reason=reason, job=slurm_job())
            return FAILED
        if not main:
            _await_rank_0(folder)
        while folder.result() is None:
            try:
                resolve(execute)(str(folder.path), _unheard)
            except RunLockedError as error:
                if take_away(folder.path / "lock", slurm.ended):
                    print(f"{error}: that job has ended; its lock is taken away", flush=True)
                    continue
                gone = silent(folder.path / "lock")
                if gone is not None:  # the GPUs are better off elsewhere meanwhile
                    print(gone, flush=True)
                    return AGAIN
                print(f"{error}; waiting", flush=True)
                time.sleep(LOCKED_POLL_S)
                continue
            break
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else FAILED
    except KeyboardInterrupt:  # a signal before the loop could note it: nothing is lost, nothing is saved
        return REQUEUE
    except BaseException as error:
        traceback.print_exc()
        if main:
            folder.fail(reason_of(error))
        elif not _told(folder):  # the first to fail is the one to hear: the others fail for want of it
            folder.fail(f"rank {os.environ['SLURM_PROCID']}: {reason_of(error)}")
        return FAILED
    return DONE


def _await_rank_0(folder: RunFolder) -> None:
    """Until rank 0 of this attempt holds the run, or it is done. Another process may be at work on it for hours before:
    ranks that went ahead would wait for rank 0 in the rendezvous, and fail there."""
    while folder.result() is None and not of_this_attempt(folder.path / "lock"):
        time.sleep(RANK_POLL_S)
        _look_anew(folder)


def _look_anew(folder: RunFolder) -> None:
    """Makes a network file system ask its server what is there."""
    with contextlib.suppress(OSError):
        list(folder.path.iterdir())


def _unfinished(folder: RunFolder) -> RunFolder | None:
    """An input that has no result, after a while of looking; at once where it failed."""
    end = time.monotonic() + INPUT_PATIENCE_S
    while True:
        waiting = None
        for source in folder.inputs().values():
            _look_anew(source)
            if source.result() is None:
                waiting = source
                break
        if waiting is None or waiting.state() == "failed" or time.monotonic() > end:
            return waiting
        time.sleep(1.0)


def ended(folder: RunFolder, code: int, retries: int) -> int:
    """The verdict on a step that ended with `code`; the reason of what went wrong is noted in the folder.

    A run that saved and asks to go on goes on; one that failed by its own word is not tried again; whatever else ended
    it, without a word (a kill, a hang, a lost node, the time limit, a lock whose holder shows no life), is tried again
    `retries` times. A checkpoint further on than any before begins the count anew, as does a part that is kept. One
    that waited for a holder that shows life waits on.
    """
    if folder.result() is not None:
        return DONE
    mine = _of_this_attempt(folder.events())
    names = {event["event"] for event in mine}
    # Another job with the same run may have failed meanwhile, before it came to the lock. What names no job counts.
    own = {event["event"] for event in mine if event.get("job", slurm_job()) == slurm_job()}
    if own & {"fail", "blocked"}:
        return FAILED  # the same would happen again
    gone = silent(folder.path / "lock") if code in (AGAIN, REQUEUE) else None
    if code == REQUEUE and (names & KEPT or (folder.holder() is not None and gone is None)):
        return REQUEUE
    reason = gone or _reason(code, "start" in names)
    attempts = 1 + _retries(folder.events(), slurm_job())
    if code != 0 and attempts <= retries:
        folder.event("retry", reason=reason, attempt=attempts, job=slurm_job())
        return AGAIN
    folder.fail(f"{reason}; attempt {attempts} of {retries + 1}")
    return FAILED


def _of_this_attempt(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    began = float(os.environ.get("EGOSCALE_BEGAN") or 0)
    return [event for event in events if _at(event) >= began]


def _at(event: Mapping[str, Any]) -> float:
    try:
        return datetime.datetime.fromisoformat(event["time"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return 0.0


def _told(folder: RunFolder) -> bool:
    """Whether this attempt has said why it failed."""
    return any(event["event"] == "fail" for event in _of_this_attempt(folder.events()))


def _retries(events: Sequence[Mapping[str, Any]], job: str) -> int:
    """Attempts of this job that were tried again, since the run last saved something new."""
    count, furthest = 0, -1.0
    for event in events:
        if event["event"] == "retry" and event.get("job") == job:
            count += 1
        step = event.get("step")
        if event["event"] == "part":  # of latents or codes: no part is made twice
            count = 0
        elif event["event"] == "save" and isinstance(step, int | float) and step > furthest:
            count, furthest = 0, step
    return count


def _reason(code: int, started: bool) -> str:
    if code == LIMIT:
        return (
            "the time limit came before the run had saved: raise time_limit_min of its resource class, or "
            "signal_before_end_s"
        )
    if code == REQUEUE:
        return "it was asked to stop, and had nothing to save: a stage that cannot save needs a longer time_limit_min"
    if not started and code != HANG:
        return f"the step ended with code {code} before the run began: its log says why"
    if code == HANG:
        return "a rank stood still and the run was ended: see stacks-rank*.txt in its folder"
    if code > 128:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
        return f"the step was killed by {name}" + (": out of memory?" if name == "SIGKILL" else "")
    return f"the step ended with code {code} and no result"


def _unheard(report: Any) -> None:
    """Reports go nowhere: the folder is read."""


def _conclude(recipe: Path, root: Path) -> int:
    """Fit what is finished, and say what is missing."""
    from egoscale.cli_sweep import conclude
    from egoscale.recipe import load_recipe
    from egoscale.sweep.plan import plan

    read = load_recipe(recipe)
    assert read.stage == "sweep"
    planned = plan(read)
    states = {str(job): job.run(root).state() for job in planned.jobs.values()}
    missing = {job: state for job, state in states.items() if state != "done"}
    for job, state in missing.items():
        print(f"missing: {job} is {state}")
    if missing:
        print(
            f"the table is partial: {len(missing)} of {len(states)} runs are not done; what follows is about the rest"
        )
    conclude(planned, root)
    return DONE


def main(arguments: Sequence[str]) -> int:
    """See the module."""
    words = list(arguments)
    code = None
    if words[:1] == ["--ended"]:
        code, words = int(words[1]), words[2:]
    listed = json.loads(Path(words[0]).read_text())
    root = Path(listed["root"])
    if "probe" in listed:
        from egoscale.sweep.compute_node import answer

        return code if code is not None else answer(listed["probe"])
    if "conclude" in listed:
        return code if code is not None else _conclude(Path(listed["conclude"]), root)
    folder = RunFolder.open(root / listed["runs"][words[1]])
    if code is not None:
        return ended(folder, code, int(listed["retries"]))
    for number in (signal.SIGTERM, signal.SIGUSR1):  # until the training loop takes them over
        with contextlib.suppress(ValueError):
            signal.signal(number, _interrupted)
    return run(folder, listed["execute"])


def _interrupted(number: int, frame: Any) -> None:
    """The first signal unwinds what is going on; more of them must not disturb that."""
    for again in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(again, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
