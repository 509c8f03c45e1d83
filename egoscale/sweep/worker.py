"""The process of one job: warm imports, its own log, no life after its parent."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from egoscale.sweep.ledger import RunFolder, RunLockedError, reason_of

Report = Callable[[Mapping[str, Any]], None]
Execute = Callable[[str, Report], None]
REQUEUE = 85  # exit code of a stage that saved after a signal and wants to go on later
MAX_REQUEUES = 3  # of one job in one sweep: a stage that always asks to go on later would never end
REPORT_EVERY_S = 0.2
ORPHAN_GRACE_S = 5.0  # for a stage to save when the sweep has died, before its group is killed


def threads_environment(threads: int) -> dict[str, str]:
    """The variables by which numerical libraries learn how many threads one process may use."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
    return dict.fromkeys(names, str(threads))


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables, for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """What this process and those it starts print goes to a file for a while: libraries greet on import."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)


def resolve(name: str) -> Execute:
    """The function that "package.module:function" names."""
    module, _, function = name.partition(":")
    found: Execute = getattr(importlib.import_module(module), function)
    return found


def work(run_path: str, execute: str, connection: Connection, threads: int) -> None:
    """Body of a worker process: run one run folder to its end and send the outcome as the last message.

    Messages are {"report": ...} and at the end {"outcome": ..., "reason": str}; an outcome is done, failed,
    locked, requeue or interrupted.
    """
    os.setpgid(0, 0)  # a terminal's Ctrl-C goes to the sweep alone, which tells its workers; children of ours come too
    threading.Thread(target=_follow_parent, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    run = RunFolder.open(run_path)
    log = os.open(run.path / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(threads_environment(threads))
    if "torch" in sys.modules:  # imported before the fork, when the number of threads may have been another
        sys.modules["torch"].set_num_threads(threads)

    outcome, reason = "done", ""
    try:
        resolve(execute)(run_path, _Reporter(connection))
        if run.result() is None:
            outcome, reason = "failed", "the stage returned and left no result.json"
    except RunLockedError as error:
        outcome, reason = "locked", str(error)
    except KeyboardInterrupt:
        outcome = "interrupted"
        with contextlib.suppress(OSError):
            run.event("signal")
    except SystemExit as stop:
        outcome = "requeue" if stop.code == REQUEUE else "failed"
        reason = "" if stop.code == REQUEUE else f"the stage exited with code {stop.code}"
    except BaseException as error:
        outcome, reason = "failed", reason_of(error)
        with contextlib.suppress(OSError):
            traceback.print_exc()
    if outcome == "failed":
        run.fail(reason)
    with contextlib.suppress(OSError):  # the sweep may be gone; the folder says it all
        connection.send({"outcome": outcome, "reason": reason})


def ending(exitcode: int | None, outcome: str) -> str:
    """Why a process is gone that said nothing."""
    if outcome == "requeue":
        return f"asked to be started again more than {MAX_REQUEUES} times"
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"the process was killed by {name}" + (": out of memory?" if name == "SIGKILL" else "")
    return f"the process ended with code {exitcode} and no result"


class _Reporter:
    """Sends a stage's reports to the sweep, a few a second."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._sent = connection, 0.0

    def __call__(self, report: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self._sent >= REPORT_EVERY_S or report.get("done") == report.get("total"):
            self._sent = now
            with contextlib.suppress(OSError):
                self._connection.send({"report": dict(report)})


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """The first signal unwinds the stage; more of them must not disturb its cleaning up."""
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)
    raise KeyboardInterrupt


def _follow_parent() -> None:
    """Wait for the sweep's death, of whatever kind, then end this process and the processes it started."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.killpg(0, signal.SIGTERM)
    time.sleep(ORPHAN_GRACE_S)
    os.killpg(0, signal.SIGKILL)
