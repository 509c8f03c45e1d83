"""What the tests of stages share: processes that work on a run together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def begin() -> Iterator[Callable[..., list[subprocess.Popen[bytes]]]]:
    """begin([code, *arguments], world_size=1): `python -c` as so many ranks, each a process group of its own; none
    outlives the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(command: list[str], world_size: int = 1) -> list[subprocess.Popen[bytes]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(world_size):
            environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
            if world_size > 1:
                environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
                environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            process = subprocess.Popen([sys.executable, "-c", *command], env=environ, start_new_session=True)
            processes.append(process)
        return processes[-world_size:]

    yield begin
    for process in processes:
        process.kill()
        process.wait()
