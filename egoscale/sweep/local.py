"""Runs a plan on this machine: a few worker processes, longest chains first, from wherever it was stopped."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from egoscale.sweep import slurm
from egoscale.sweep.lock import silent, take_away
from egoscale.sweep.plan import Job, Plan
from egoscale.sweep.progress import Display, Estimate, display, duration
from egoscale.sweep.worker import (
    MAX_REQUEUES,
    Execute,
    ending,
    environment,
    num_cores,
    output_to,
    threads_environment,
    work,
)

POLL_S = 0.25
LOCKED_POLL_S = 1.0
ASK_SLURM_S = 30.0  # between two questions whether the job that holds a run has ended
ANSWER_S = 5.0  # for the answer: the workers wait to be heard meanwhile


@dataclass
class Summary:
    """What a call of `run` did. `complete` is what an exit code of 0 needs."""

    done: int = 0  # jobs with a result, now or before
    computed: int = 0  # of them, by this call
    failed: dict[str, str] = field(default_factory=dict)  # "<stage>/<key>" -> reason
    blocked: list[str] = field(default_factory=list)  # wait for a failed job
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return not (self.failed or self.blocked or self.interrupted)


@dataclass
class _Worker:
    job: Job
    process: ForkServerProcess
    connection: Connection
    started: float
    fraction: float = 0.0
    outcome: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Locked:
    """A run that another process holds: when it was looked at, when Slurm was asked about it, and what to say of it."""

    looked: float
    asked: float = float("-inf")
    waits: str = "waits for another process"


def run(
    plan: Plan,
    root: Path,
    execute: Execute | str,
    jobs: int = 1,
    *,
    preload: Sequence[str] = (),
    console: Console | None = None,
    grace_s: float = 30.0,
) -> Summary:
    """Compute every job of `plan` that has no result yet, `jobs` at a time.

    `execute(run_path, report)` runs one folder to its end: a function, or "package.module:function".
    `preload` names modules to import once, before the workers are forked. A job that fails blocks only those
    that need it. SIGINT and SIGTERM stop the workers (they have `grace_s` to save); the summary then says
    `interrupted`. A second signal kills them. What another process works on is waited for; where that was a Slurm job,
    and Slurm says that it has ended, its lock is taken away.
    """
    if jobs < 1:
        raise ValueError(f"jobs = {jobs}: at least one job at a time")
    name = execute if isinstance(execute, str) else f"{execute.__module__}:{execute.__qualname__}"
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    executor = _Executor(plan, root, name, jobs, grace_s)
    if executor.unfinished:
        threads = max(1, num_cores() // jobs)
        console = console or Console()
        standing = f"{executor.summary.done} of {len(plan.jobs)} jobs are done; loading the workers"
        console.print(f"sweep {plan.sweep.name}: {standing}", markup=False, highlight=False)
        with environment(threads_environment(threads)), output_to(root / "workers.log"):
            multiprocessing.set_forkserver_preload([*preload, "egoscale.sweep.worker"])
            forkserver.ensure_running()
        executor.loop(threads, display(plan.sweep.name, console))
    return executor.summary


class _Executor:
    """State of one call of `run`: which jobs are unfinished, and of those at work, locked or failed."""

    def __init__(self, plan: Plan, root: Path, execute: str, workers: int, grace_s: float) -> None:
        self.plan, self.root, self.execute = plan, root, execute
        self.workers, self.grace_s = workers, grace_s
        self.summary = Summary()
        self.estimate = Estimate(plan, root, workers)
        self.working: dict[str, _Worker] = {}
        self.locked: dict[str, _Locked] = {}
        self.requeues: dict[str, int] = {}
        self.signals = 0
        self.stop_at: float | None = None
        self.unfinished = self._needed()
        self.summary.done = len(plan.jobs) - len(self.unfinished)

    def _needed(self) -> dict[str, Job]:
        """Jobs without a result that an end of the plan needs, inputs first; not inputs of what is done."""
        done = {key for key, job in self.plan.jobs.items() if job.run(self.root).state() == "done"}
        needed: set[str] = set()
        stack = [key for key, users in self.plan.users().items() if not users]
        while stack:
            key = stack.pop()
            if key not in done and key not in needed:
                needed.add(key)
                stack.extend(source.key for source in self.plan.jobs[key].inputs.values())
        return {key: job for key, job in self.plan.jobs.items() if key in needed}

    def loop(self, threads: int, shown: Display) -> None:
        """Launch, listen, reap, until nothing can go on."""
        began = time.monotonic()
        with _signals(self._signalled):
            try:
                for job in self.unfinished.values():
                    job.create(self.root)
                while True:
                    if not self.signals:
                        self._look_at_locked(shown)
                        self._launch(threads, shown)
                    else:
                        self._stop(shown)
                    if not self.working and (self.signals or not self.locked):
                        break
                    self._listen(shown)
                    self._reap(shown)
                    waiting = [
                        job
                        for key, job in self.unfinished.items()
                        if key not in self.working and str(job) not in self.summary.failed
                    ]
                    now = time.monotonic()
                    working = {key: (now - w.started, w.fraction) for key, w in self.working.items()}
                    left = self.estimate.left(waiting, working)
                    held = [f"{self.plan.jobs[key].title()}: {locked.waits}" for key, locked in self.locked.items()]
                    shown.standing(self.summary.done, len(self.plan.jobs), left, held)
            finally:
                for worker in self.working.values():  # only after an error of ours
                    _signal_group(worker, signal.SIGKILL)
                shown.close()
        self.summary.interrupted = bool(self.signals)
        self.summary.seconds = time.monotonic() - began
        failed = self.summary.failed
        self.summary.blocked = [str(job) for job in self.unfinished.values() if str(job) not in failed]
        if self.signals:  # those were stopped, not blocked
            self.summary.blocked = []

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1

    def _ready(self) -> list[Job]:
        """Jobs whose inputs are all done, those that begin the longest chain first."""
        chains = self.estimate.chains()
        ready = [
            job
            for key, job in self.unfinished.items()
            if key not in self.working
            and key not in self.locked
            and str(job) not in self.summary.failed
            and not any(source.key in self.unfinished for source in job.inputs.values())
        ]
        return sorted(ready, key=lambda job: -chains[job.key])

    def _launch(self, threads: int, shown: Display) -> None:
        free = self.workers - len(self.working)
        if free <= 0:
            return
        context = multiprocessing.get_context("forkserver")
        for job in self._ready()[:free]:
            here, there = context.Pipe(duplex=False)
            arguments = (str(job.run(self.root).path), self.execute, there, threads)
            process = context.Process(target=work, args=arguments, name=str(job))
            process.start()
            there.close()
            self.working[job.key] = _Worker(job, process, here, time.monotonic())
            shown.started(job)

    def _listen(self, shown: Display) -> None:
        """Take what the workers say until something ends or a moment has passed."""
        ends: list[Any] = [worker.process.sentinel for worker in self.working.values()]
        connections = {worker.connection: worker for worker in self.working.values()}
        if not self.working:
            time.sleep(POLL_S)
        for item in wait([*ends, *connections], timeout=POLL_S) if ends else []:
            if isinstance(item, Connection):
                _receive(connections[item], shown)

    def _reap(self, shown: Display) -> None:
        for key, worker in list(self.working.items()):
            if worker.process.is_alive():
                continue
            _receive(worker, shown)
            worker.process.join()
            worker.connection.close()
            del self.working[key]
            self._settle(worker, shown)

    def _settle(self, worker: _Worker, shown: Display) -> None:
        """Decide from the folder first, then from what the worker said, what became of a job."""
        job, folder = worker.job, worker.job.run(self.root)
        seconds = time.monotonic() - worker.started
        outcome, reason = worker.outcome.get("outcome", ""), worker.outcome.get("reason", "")
        if folder.result() is not None:
            self._finished(job.key)
            self.summary.computed += 1
            self.estimate.learn(job, seconds)
            outcome, reason = "done", ""
        elif outcome == "locked":
            self.locked[job.key] = _Locked(time.monotonic())
        elif self.signals:
            outcome = "saved" if outcome == "requeue" else "interrupted"
        elif outcome == "requeue" and self.requeues.get(job.key, 0) < MAX_REQUEUES:
            self.requeues[job.key] = self.requeues.get(job.key, 0) + 1
            reason = "saved after a signal, goes on"
        else:
            _signal_group(worker, signal.SIGKILL)  # processes it may have left
            if not reason:
                reason = ending(worker.process.exitcode, outcome)
                folder.fail(reason)
            outcome = "failed"
            log = folder.path / "log.txt"
            reason += f" (log: {log})" if log.is_file() and log.stat().st_size else ""
            self.summary.failed[str(job)] = reason
        shown.ended(job, outcome, seconds, reason)

    def _finished(self, key: str) -> None:
        del self.unfinished[key]
        self.summary.done += 1

    def _look_at_locked(self, shown: Display) -> None:
        """Runs that another process holds: done, or ours again when it has let go, or was a Slurm job that ended."""
        for key, locked in list(self.locked.items()):
            if time.monotonic() - locked.looked < LOCKED_POLL_S:
                continue
            job = self.plan.jobs[key]
            folder = job.run(self.root)
            lock = folder.path / "lock"
            if time.monotonic() - locked.asked > ASK_SLURM_S:
                if take_away(lock, lambda held: slurm.ended(held, ANSWER_S)):
                    shown.say(f"{job.title()} ({job}): what held it has ended; its lock is taken away")
                locked.asked = time.monotonic()
            state = folder.state()
            locked.looked, locked.waits = time.monotonic(), silent(lock) or f"waits for {folder.holder()}"
            if state != "running":
                del self.locked[key]
            if state == "done":
                self._finished(key)

    def _stop(self, shown: Display) -> None:
        if self.stop_at is None:
            self.stop_at = time.monotonic()
            if self.working:
                shown.say(
                    f"stopping: {len(self.working)} running job(s) have {duration(self.grace_s)} to save; "
                    "once more to kill them"
                )
            for worker in self.working.values():
                _signal_group(worker, signal.SIGTERM)
        if self.signals > 1 or time.monotonic() - self.stop_at > self.grace_s:
            for worker in self.working.values():
                _signal_group(worker, signal.SIGKILL)


def _receive(worker: _Worker, shown: Display) -> None:
    """Take in all messages that lie ready; a killed worker may have torn the last one."""
    with contextlib.suppress(EOFError, OSError):
        while worker.connection.poll():
            message = worker.connection.recv()
            if "report" in message:
                report = message["report"]
                worker.fraction = min(1.0, report.get("done", 0) / max(1, report.get("total", 0)))
                shown.reported(worker.job, report)
            else:
                worker.outcome = message


def _signal_group(worker: _Worker, number: signal.Signals) -> None:
    """To a worker and the processes it started; to it alone where it has not made its group yet."""
    pid = worker.process.pid
    if pid is None:
        return
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            if worker.process.is_alive():
                os.kill(pid, number)


@contextlib.contextmanager
def _signals(handler: Any) -> Iterator[None]:
    """SIGINT and SIGTERM to `handler` (only a main thread may say so)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
