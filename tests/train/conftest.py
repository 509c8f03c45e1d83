from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
REPOSITORY = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="session")
def worker() -> types.ModuleType:
    """The tiny run of worker.py, as a module."""
    spec = importlib.util.spec_from_file_location("train_worker", WORKER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_worker"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def alone() -> Iterator[object]:
    """A process group of one."""
    import torch

    from egoscale.train.ranks import ranks

    torch.set_num_threads(1)
    with ranks() as group:
        yield group


@pytest.fixture
def start() -> Iterator[object]:
    """Starts worker.py as processes: start(task, folder, world_size=1) -> processes; none outlives the
    test."""
    import socket
    import subprocess

    processes: list[subprocess.Popen[str]] = []

    def start(task: str, folder: Path, world_size: int = 1) -> list[subprocess.Popen[str]]:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(world_size):
            environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
            if world_size > 1:
                environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
                environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            command = [sys.executable, str(WORKER), task, str(folder)]
            pipe = subprocess.PIPE
            processes.append(subprocess.Popen(command, env=environ, stdout=pipe, stderr=subprocess.STDOUT, text=True))
        return processes[-world_size:]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def block_run() -> types.ModuleType:
    """The tiny run of block_run.py, as a module."""
    spec = importlib.util.spec_from_file_location("train_block_run", WORKER.with_name("block_run.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_block_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """What two real ranks did in block_run.py: their folder, and the losses that rank 0 saw."""
    import json
    import socket
    import subprocess

    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for name in [f"{kind}-{stage}" for kind in ("whole", "half") for stage in range(4)]:
        (folder / name).mkdir()
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER.with_name("block_run.py")), str(folder)]
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        said = [process.communicate(timeout=500)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(said)
    return folder, json.loads((folder / "seen.json").read_text())
