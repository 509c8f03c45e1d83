"""The one door to Slurm: its commands, as text in and text out (its JSON changes from version to version, and that of
22.05 is wrong about exit codes)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
TIMEOUT_S = 60.0
PATIENCE_S = 300.0  # for a controller that is being restarted; a fail-over takes minutes
ASK_AGAIN_S = 3.0
FIELD = "|"
# States of a job that may still run, by squeue's long names.
ALIVE = frozenset(
    {"PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "STOPPED"}
)


# What a submission from within a job would hand on: its shape, and what would bend the commands that are asked.
FROM_SLURM = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "PMI_", "PMIX_")
FROM_A_JOB = ("CUDA_VISIBLE_DEVICES", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class SlurmError(RuntimeError):
    """Slurm refused, or did not answer."""


class NoSlurmError(SlurmError):
    """This machine has no such command."""


class ControllerAwayError(SlurmError):
    """The controller did not answer: it may have taken what was sent to it, or not."""


@dataclass(frozen=True)
class QueuedElement:
    """One element of an array in Slurm's queue. `state` is squeue's long name, `reason` why it waits."""

    array_id: str
    index: int
    state: str
    reason: str
    name: str
    nodes: str = ""

    @property
    def never(self) -> bool:
        """It waits for what will not come: for what failed, or, held after Slurm could not launch it (its controller
        was killed just then), for an administrator."""
        held = "launch" in self.reason and "held" in self.reason
        return self.reason == "DependencyNeverSatisfied" or held


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what a job would hand on to the jobs it submits (SLURM_* but for SLURM_CONF, SBATCH_*): an inner `srun`
    dies of them ("SLURM_MEM_PER_CPU, SLURM_MEM_PER_NODE are mutually exclusive")."""
    inner = FROM_A_JOB if "SLURM_JOB_ID" in environ else ()
    return {
        name: value
        for name, value in environ.items()
        if name == "SLURM_CONF" or not (name.startswith(FROM_SLURM) or name in inner)
    }


def run(command: Sequence[str], given: str | None = None, timeout_s: float = TIMEOUT_S) -> str:
    """Output of a Slurm command. SlurmError with its own words where it fails, NoSlurmError where it is missing,
    ControllerAwayError where nobody answers."""
    if shutil.which(command[0]) is None:
        raise NoSlurmError(f"`{command[0]}` is not on this machine: submit from a login node of the cluster")
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=clean_environment(os.environ),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ControllerAwayError(
            f"`{command[0]}` did not answer in {timeout_s:.0f} s: is the controller up? (`scontrol ping`)"
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        away = any(word in done.stderr for word in ("Unable to contact", "Socket timed out", "Connection refused"))
        raise (ControllerAwayError if away else SlurmError)(
            f"`{' '.join(command[:2])}` failed: {said[-1] if said else f'exit code {done.returncode}'}"
        )
    return done.stdout


def patiently(ask: Callable[[], T], patience_s: float | None = None) -> T:
    """What `ask` answers, asked again while the controller is away, for PATIENCE_S at most; says so on stderr."""
    began = time.monotonic()
    patience_s = PATIENCE_S if patience_s is None else patience_s
    told = False
    while True:
        try:
            return ask()
        except ControllerAwayError as error:
            waited = time.monotonic() - began
            if waited > patience_s:
                raise SlurmError(
                    f"{error}; asked for {waited:.0f} s. What was sent is noted: the same command, typed when "
                    "`scontrol ping` says UP, goes on from there"
                ) from None
            if not told:
                print(f"{error}; asking again for {patience_s:.0f} s", file=sys.stderr, flush=True)
                told = True
            time.sleep(ASK_AGAIN_S)


def sbatch(script: str, options: Sequence[str] = ()) -> str:
    """Submit a script; the job's id."""
    answer = run(["sbatch", "--parsable", *options], given=script)
    found = re.match(r"\d+", answer.strip().splitlines()[-1] if answer.strip() else "")
    if not found:
        raise SlurmError(f"`sbatch` answered {answer.strip()!r}, which names no job")
    return found.group()


def indices(numbers: Iterable[int]) -> str:
    """Indices of an array as Slurm writes them: 0-3,7,9-10."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in ranges)


def queue(name_prefix: str, user: str = "") -> list[QueuedElement]:
    """Elements of a user's jobs whose name begins so, those that Slurm still remembers; an element a row.

    user: a name, or several with commas between; default: who asks.

    Finished ones are in it for a while (MinJobAge), so the folders are asked first.
    """
    fields = ["%F", "%K", "%T", "%r", "%N", "%j"]
    whose = ["--user", user] if user else ["--me"]
    answer = run(["squeue", "--noheader", "--array", "--states=all", "--format", FIELD.join(fields), *whose])
    found = []
    for row in answer.splitlines():
        parts = row.strip().split(FIELD, len(fields) - 1)
        if len(parts) != len(fields) or not parts[5].startswith(name_prefix) or not parts[1].isdigit():
            continue
        found.append(QueuedElement(parts[0], int(parts[1]), parts[2], parts[3], parts[5], parts[4]))
    return found


def ended(job: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Has a job ("17", "17_3") ended, or is it forgotten? False where Slurm cannot be asked."""
    try:
        answer = run(["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}"], timeout_s=timeout_s)
    except SlurmError as error:
        return "Invalid job id" in str(error)
    return not ALIVE & set(answer.split())


def num_queued() -> int:
    """Elements of all jobs of this user that wait or run: what a limit on submissions counts."""
    return len(run(["squeue", "--noheader", "--array", "--me", "--format=%T"]).split())


def cancel(jobs: Iterable[str]) -> None:
    """End jobs (ids, or id_index); those that are gone are none of ours to worry about."""
    names = sorted(set(jobs))
    for first in range(0, len(names), 200):
        run(["scancel", *names[first : first + 200]])


@dataclass(frozen=True)
class Ended:
    """What accounting says about one attempt of an element."""

    array_id: str
    index: int
    state: str
    exit_code: str
    seconds: int
    nodes: str


def accounting(array_ids: Sequence[str]) -> list[Ended] | None:
    """Every attempt of the elements of these arrays, oldest first; None where the cluster keeps no accounts."""
    if not array_ids:
        return []
    fields = "JobID,State,ExitCode,ElapsedRaw,NodeList"
    try:
        answer = run(["sacct", "-P", "-X", "-D", "-n", "-o", fields, "-j", ",".join(array_ids)])
    except SlurmError:
        return None
    found = []
    for row in answer.splitlines():
        parts = row.split("|")
        match = re.fullmatch(r"(\d+)_(\d+)", parts[0]) if len(parts) == 5 else None
        if match:
            state = parts[1].split()[0]  # "CANCELLED by 0"
            seconds = int(parts[3]) if parts[3].isdigit() else 0
            found.append(Ended(match[1], int(match[2]), state, parts[2], seconds, parts[4]))
    return found


def limits() -> dict[str, str]:
    """The controller's configuration, as far as it is `Name = value` lines."""
    lines = (line.partition("=") for line in run(["scontrol", "show", "config"]).splitlines())
    return {name.strip(): value.strip() for name, equals, value in lines if equals}
