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
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. Collectives cost nothing when it is alone."""

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


def init_ranks() -> Ranks:
    """Join the process group that the environment names, or make a group of one (no port, no network).

    gloo carries CPU tensors, nccl GPU tensors. Raises ValueError when the environment contradicts itself.
    """
    found = address(os.environ)
    ranks = found[0] if found else Ranks(0, 1, 0)
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
        dist.init_process_group(
            backend, init_method=f"tcp://{host}:{port}", rank=ranks.rank, world_size=ranks.world_size
        )
    return ranks


def destroy_ranks() -> None:
    """Leave the process group. Without it some exits abort (3 of 40 measured with DeepSpeed 0.19.8 on
    gloo)."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The process group of this process, left whatever happens."""
    try:
        yield init_ranks()
    finally:
        destroy_ranks()
