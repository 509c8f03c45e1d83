"""Which rank am I, and what do the others say. Ranks come from the environment: torchrun, `srun`, or a lone
process.

DeepSpeed's own launcher is never used: it wants a host file and password-less ssh, and sets no ranks under
Slurm.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

MEETING = timedelta(minutes=30)  # processes of one job start minutes apart
WORKING = timedelta(days=365)  # longer than any job


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. Collectives cost nothing when it is alone.

    `local_rank` numbers its GPU among those that it sees.
    """

    rank: int
    world_size: int
    local_rank: int

    @property
    def main(self) -> bool:
        """Is this the rank that writes?"""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def largest(self, value: int) -> int:
        """The largest of every rank's `value`."""
        if self.world_size == 1:
            return value
        number = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return int(number)

    def all_true(self, flag: bool) -> bool:
        return self.largest(int(not flag)) == 0

    def from_main(self, value: Any) -> Any:
        """Rank 0's `value` (anything picklable) on every rank."""
        if self.world_size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        return held[0]

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's `value`, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        held: list[Any] = [None] * self.world_size
        dist.all_gather_object(held, value)
        return held

    def barrier(self) -> None:
        self.largest(0)


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: `gpu[003-007,12],login1` -> `gpu003`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist.strip())
    if not first:
        raise ValueError(f"cannot read a host from the Slurm node list {nodelist!r}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group())


def address(environ: Mapping[str, str]) -> tuple[Ranks, str, int] | None:
    """Ranks, master host and port that `environ` names; None when it names no group of processes.

    A batch script outside `srun` sees SLURM_PROCID=0 and SLURM_NTASKS too, and would wait for partners that
    nobody started; only a step (SLURM_STEP_ID) counts.
    """
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
        rank = int(environ["RANK"])
        ranks = Ranks(rank, int(environ["WORLD_SIZE"]), int(environ.get("LOCAL_RANK", rank)))
        return ranks, environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID"))
    if step is None or "SLURM_PROCID" not in environ:
        return None
    world_size = environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1"))
    ranks = Ranks(int(environ["SLURM_PROCID"]), int(world_size), int(environ.get("SLURM_LOCALID", "0")))
    hosts = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_JOB_NODELIST", ""))
    host = environ.get("MASTER_ADDR") or first_host(hosts)
    # Steps of one job may run side by side on one node; a prime keeps their ports apart.
    port = 20_000 + (int(environ.get("SLURM_JOB_ID", "0")) + 7919 * int(step)) % 10_000
    return ranks, host, int(environ.get("MASTER_PORT", port))


def named_ranks() -> Ranks:
    """This process among those that the environment names, joined or not; alone where it names none.

    Slurm (--gpus-per-task=1) shows each task its own GPU alone, and it is always number 0.
    """
    found = address(os.environ)
    ranks = found[0] if found else Ranks(0, 1, 0)
    return replace(ranks, local_rank=0) if torch.cuda.is_available() and torch.cuda.device_count() == 1 else ranks


def init_ranks() -> Ranks:
    """Join the process group that the environment names, or make a group of one (no port, no network).

    gloo carries CPU tensors, nccl GPU tensors. Raises ValueError when the environment contradicts itself.
    """
    found, ranks = address(os.environ), named_ranks()
    if not 0 <= ranks.rank < ranks.world_size:
        raise ValueError(
            f"rank {ranks.rank} of {ranks.world_size}: check RANK and WORLD_SIZE (or SLURM_PROCID and SLURM_NTASKS)"
        )
    backend = "gloo"
    if torch.cuda.is_available():
        if ranks.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"local rank {ranks.local_rank}, but {torch.cuda.device_count()} GPUs are visible: "
                "start no more processes on a node than it has GPUs"
            )
        torch.cuda.set_device(ranks.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    if ranks.world_size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
        hook = sys.excepthook
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        sys.excepthook = hook  # torch prefixes each line of a traceback with the rank, once more at every start
    elif found:
        _, host, port = found
        where = f"tcp://{host}:{port}"
        store, _, _ = next(rendezvous(where, ranks.rank, ranks.world_size, timeout=MEETING))
        prefixed = dist.PrefixStore("default_pg", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=prefixed, rank=ranks.rank, world_size=ranks.world_size, timeout=MEETING)
        store.set_timeout(WORKING)  # NCCL meets through it once more, at its first collective
        lift_timeouts()
    return ranks


def lift_timeouts() -> None:
    """Let collectives of all of this process's groups wait for as long as it takes: the watchdog is the one clock.

    torch gives up after 10 or 30 minutes by itself, and would end a rank that waits before the watchdog
    (`hang_timeout_s`) has written its stacks.
    """
    if dist.get_world_size() == 1:
        return
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(WORKING, group)


def destroy_ranks() -> None:
    """Leave the process group. Without it some exits abort (3 of 40 measured with DeepSpeed 0.19.8 on
    gloo)."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The process group of this process, left whatever happens by whoever joined it: within it, it is the same."""
    if dist.is_initialized():
        yield named_ranks()
        return
    try:
        yield init_ranks()
    finally:
        destroy_ranks()
