"""What a compute node sees, as it tells the probe that was sent to it (egoscale.sweep.probe)."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egoscale import __version__
from egoscale.sweep import slurm
from egoscale.sweep.lock import write_whole

IMPORT_S = 120.0  # torch from a shared disk, for the first time


def answer(asked: Mapping[str, Any]) -> int:
    """Write what this node sees to its file in the probe's folder; the exit code."""
    began = time.time()
    rank = os.environ.get("SLURM_PROCID", "0")
    first = _first_node()
    found = {
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "began": began,
        "python": ".".join(map(str, sys.version_info[:3])),
        "egoscale": __version__,
        "packages": {name: _import(name) for name in asked["packages"]},
        "gpus": _num_gpus() if "torch" in asked["packages"] else 0,
        "cpus": len(os.sched_getaffinity(0)),  # that this rank may run on
        "first": first,
        "resolves": _resolves(first),
        "requeue": _requeue(),
    }
    write_whole(Path(asked["folder"]) / f"node-{rank}.json", json.dumps(found | {"wrote": time.time()}))
    return 0


def _tried(code: str) -> tuple[int, str]:
    """Exit code and last word of a line of Python in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_S)
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode, said[-1] if said else f"code {done.returncode}"


def _import(name: str) -> str:
    """Version of a package that imports; "!" and the error of one that does not."""
    try:
        code, said = _tried(f"import {name}")
        return importlib.metadata.version(name) if code == 0 else f"!{said}"
    except (importlib.metadata.PackageNotFoundError, subprocess.TimeoutExpired) as error:
        return f"!{error}"


def _num_gpus() -> int:
    with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
        code, said = _tried("import torch; print(torch.cuda.device_count())")
        return int(said) if code == 0 else 0
    return 0


def _first_node() -> str:
    """The node to which all ranks turn (MASTER_ADDR, else the first of the job)."""
    if os.environ.get("MASTER_ADDR"):
        return os.environ["MASTER_ADDR"]
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    with contextlib.suppress(slurm.SlurmError):
        return (slurm.run(["scontrol", "show", "hostnames", nodes]).split() or [""])[0]
    return ""


def _resolves(host: str) -> bool:
    if os.environ.get("SLURM_JOB_NUM_NODES", "1") == "1" or not host:
        return True  # nobody else to talk to, or `scontrol` is not in the container
    with contextlib.suppress(OSError):
        return bool(socket.getaddrinfo(host, None))
    return False


def _requeue() -> bool:
    with contextlib.suppress(slurm.SlurmError):
        job = os.environ.get("SLURM_JOB_ID", "")
        return "Requeue=0" not in slurm.run(["scontrol", "show", "job", "--oneliner", job])
    return True
