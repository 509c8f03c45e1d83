"""Files that are whole or absent, and locks that die with their process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BEAT_S = 60.0  # between two touches of a lock by the process that holds it
SILENT_S = 600.0  # without a touch: a file server may be away for minutes, and machines' clocks differ


class RunLockedError(RuntimeError):
    """Another process works on this run."""


def holder(lock: Path) -> str | None:
    """Who holds a lock file now ("process 71 on host"), or None; a dead process holds nothing.

    Of a process on another machine nothing is known: its lock counts as held, but for an earlier attempt of this very
    Slurm job: Slurm starts a job again when the attempt before has ended, or its node is lost. A process of that
    attempt that is seen alive here still holds it: a lost node may be a lost daemon, whose steps go on.
    """
    owner = _owner(lock)
    if owner is None:
        return None
    pid, host, mine = owner["pid"], owner["host"], slurm_job()
    if host == socket.gethostname():
        return f"process {pid} on {host}" if process_start(pid) == owner.get("started") else None
    if mine and owner.get("job") == mine and owner.get("attempt") != _attempt():
        return None
    return f"process {pid} on {host}"


def _owner(lock: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(lock.read_text())
        return {**owner, "pid": int(owner["pid"]), "host": str(owner["host"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def silent(lock: Path) -> str | None:
    """What to say of a lock whose holder, which may be on another machine, has not touched it for SILENT_S; None where
    nobody holds it, or the holder shows life."""
    who = holder(lock)
    try:
        seconds = time.time() - lock.stat().st_mtime
    except OSError:
        return None
    if who is None or seconds < SILENT_S:
        return None
    return f"{who} holds the run, and has shown no life for {seconds / 60:.0f} min; if it is gone, delete {lock}"


def of_this_attempt(lock: Path) -> bool:
    """Is this the lock of a process of this attempt of this Slurm job: of rank 0, where another rank asks?"""
    owner, mine = _owner(lock), slurm_job()
    return bool(owner and mine and owner.get("job") == mine and owner.get("attempt") == _attempt())


def orphaned(lock: Path, ended: Callable[[str], bool]) -> bool:
    """Is its owner gone without unlocking: a process of this machine, or a Slurm job on another (a lost node, a kill)?

    ended: whether a job ("17", "17_3") is known to have ended.
    """
    owner = _owner(lock)
    if owner is None:
        return False
    if owner["host"] == socket.gethostname():
        return holder(lock) is None
    return bool(owner.get("job") and ended(owner["job"]))


def take_away(lock: Path, ended: Callable[[str], bool]) -> bool:
    """Remove an orphaned lock (see `orphaned`); was it one?"""
    if not lock.exists():
        return False
    with alone(lock.parent):
        if not orphaned(lock, ended):
            return False
        lock.unlink(missing_ok=True)
    return True


def slurm_job() -> str:
    """The Slurm job that this process is part of ("17", "17_3"); empty outside of one."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID", "")


def _attempt() -> str:
    """Which attempt of its Slurm job this process is part of, from "0"."""
    return os.environ.get("SLURM_RESTART_COUNT", "0")


@contextlib.contextmanager
def held(lock: Path) -> Iterator[None]:
    """Hold `lock`. RunLockedError where a live process has it; a dead one's lock is taken over.

    It is touched every minute while it is held, which is all that other machines can see of this process.
    """
    owner = {"pid": os.getpid(), "started": process_start(os.getpid()), "host": socket.gethostname()}
    if slurm_job():
        owner |= {"job": slurm_job(), "attempt": _attempt()}
    mine = json.dumps(owner)
    with alone(lock.parent):
        other = holder(lock)
        if other is not None:
            raise RunLockedError(
                f"{lock.parent}: {other} works on this run; wait for it, "
                f"or delete the file {lock.name} there if that machine is gone"
            )
        _create(lock, mine)
    let_go = threading.Event()
    threading.Thread(target=_beat, args=(lock, mine, let_go), name="lock", daemon=True).start()
    try:
        yield
    finally:
        let_go.set()
        with contextlib.suppress(OSError), alone(lock.parent):
            if lock.read_text() == mine:
                lock.unlink()


def _beat(lock: Path, mine: str, let_go: threading.Event) -> None:
    """Touch a lock, as long as it is this process's own, until it is let go."""
    while not let_go.wait(BEAT_S):
        with contextlib.suppress(OSError):
            if lock.read_text() == mine:
                os.utime(lock)


def _create(lock: Path, text: str) -> None:
    """Make a lock where none, or a dead one's, lies: by a link, of which one succeeds on any file system."""
    lock.unlink(missing_ok=True)
    beside = lock.with_name(f".{lock.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")
    write_whole(beside, text)
    try:
        os.link(beside, lock)
    except FileExistsError:
        raise RunLockedError(f"{lock.parent}: another process has just begun to work on this run") from None
    except OSError:  # a file system without links
        beside.replace(lock)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str, durable: bool = True) -> None:
    """Write a file beside its place, flush it to the disk, and rename it into its place.

    durable=False leaves the flush to the system: for what is written again where a power cut took it.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def process_start(pid: int) -> str | None:
    """When a process began, by the kernel's clock (pids come round again, this not); None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:  # no /proc: the pid alone must do
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "alive"
    if fields[0] in "ZX":  # dead, and not yet reaped
        return None
    return f"{_boot()}:{fields[19]}"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def alone(place: Path) -> Iterator[None]:
    """A critical section among processes that name the same folder, or the same file, which is made.

    A folder serves processes of this machine. A file, open for writing, serves those of other machines too, where their
    file system passes locks on (NFS does for files, not for folders). File systems without locks go without.
    """
    handle = os.open(place, os.O_RDONLY) if place.is_dir() else os.open(place, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
