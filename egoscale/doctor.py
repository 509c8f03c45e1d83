"""A look at this machine before hours are spent on it; each fault comes with its remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TRAIN = ("torch", "deepspeed", "decord", "av", "datasets", "mlflow", "safetensors")
LOW_DISK_GB = 5.0  # the embedded study writes 1-2 GB; the environment with torch about 3
RENDER = "import mujoco; context = mujoco.GLContext(64, 64); context.make_current(); context.free()"


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `bad` stops work; `note` is only worth knowing."""

    name: str
    level: Literal["ok", "note", "bad"]
    what: str
    remedy: str = ""


def examine(root: Path) -> list[Finding]:
    """Look at everything (a few seconds); nothing is changed. `root` is where the runs will be written."""
    found: list[Finding] = []
    for look in (_python, _packages, _rendering, _decoders, _gpu, lambda: _disk(root), _tracking, _threads):
        found.extend(look())
    return found


def show(findings: Iterable[Finding]) -> bool:
    """Print the findings; whether nothing is bad."""
    sound = True
    for finding in findings:
        print(f"{finding.level:4}  {finding.name:11} {finding.what}")
        if finding.remedy:
            print(f"{'':18}-> {finding.remedy}")
        sound &= finding.level != "bad"
    return sound


def _python() -> Iterator[Finding]:
    from egoscale import __version__

    yield Finding("egoscale", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")


def _version(package: str) -> str | None:
    # Distribution metadata, not find_spec: a bare folder of that name would be found as an empty package.
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    versions = {package: _version(package) for package in (*TRAIN, "mujoco")}
    here = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    absent = [package for package, version in versions.items() if version is None]
    if here:
        yield Finding("packages", "ok", here)
    if absent:
        remedy = "pip install 'egoscale[train,sim]' to train; fit, plan and report work without"
        yield Finding("packages", "bad", f"not installed: {', '.join(absent)}", remedy)
    if shutil.which("c++") is None and shutil.which("g++") is None:
        remedy = "install g++ (and ninja) where a recipe sets ZeRO off-loading"
        yield Finding("compiler", "note", "no C++ compiler: DeepSpeed cannot build its CPU optimizers", remedy)


def _tried(code: str, **environment: str) -> str | None:
    """Run a line of Python in a process of its own (a missing library may abort it); its last word."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return "no answer within 60 s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]


def _rendering() -> Iterator[Finding]:
    if _version("mujoco") is None:
        return
    asked = os.environ.get("MUJOCO_GL")
    errors = {}
    for library in [asked] if asked else ["egl", "osmesa"]:
        error = _tried(RENDER, MUJOCO_GL=library)
        if error is None:
            yield Finding("rendering", "ok", f"MuJoCo draws through {library}")
            return
        errors[library] = error
    remedy = "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (or libosmesa6), then try again"
    yield Finding("rendering", "bad", "; ".join(f"{name}: {error}" for name, error in errors.items()), remedy)


def _decoders() -> Iterator[Finding]:
    for package in ("decord", "av"):
        if _version(package) is not None:
            error = _tried(f"import {package}")
            if error is None:
                yield Finding("decoder", "ok", f"{package} {_version(package)} loads")
            else:
                yield Finding("decoder", "bad", f"{package}: {error}", f"pip install --force-reinstall {package}")


def _gpu() -> Iterator[Finding]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield Finding("GPU", "note", "none: models train on the CPU, which suits the embedded study alone")
        return
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, timeout=60)
    names = "; ".join(listed.stdout.strip().splitlines()) or "nvidia-smi lists none"
    if _version("torch") is not None and _tried("import torch; assert torch.cuda.is_available()") is not None:
        remedy = "install the torch build for this driver's CUDA version in place of the CPU build"
        yield Finding("GPU", "bad", f"{names}; but torch {_version('torch')} cannot use it", remedy)
    else:
        yield Finding("GPU", "ok", names)


def _disk(root: Path) -> Iterator[Finding]:
    folder = next(path for path in (root.resolve(), *root.resolve().parents) if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    what = f"{free:.0f} GB free for {root.resolve()}"
    if not os.access(folder, os.W_OK):
        yield Finding("disk", "bad", f"{folder} cannot be written to", "give --root a folder of yours")
    elif free < LOW_DISK_GB:
        yield Finding("disk", "bad", what, f"free at least {LOW_DISK_GB:g} GB, or give --root another disk")
    else:
        yield Finding("disk", "ok", what)


def _tracking() -> Iterator[Finding]:
    store = os.environ.get("MLFLOW_TRACKING_URI")
    where = "the server that MLFLOW_TRACKING_URI names" if store else "a local SQLite file"
    what = f"`egoscale sweep run` mirrors its runs to {where}"
    yield Finding("MLflow", "ok" if _version("mlflow") else "note", f"{_version('mlflow') or 'not installed'}; {what}")


def _threads() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS")
    what = f"{cores} cores; OMP_NUM_THREADS {asked or 'is not set'} (a sweep sets it: cores / --jobs)"
    if asked and asked.isdigit() and int(asked) > cores:
        yield Finding("threads", "bad", what, f"export OMP_NUM_THREADS={cores} or less")
    else:
        yield Finding("threads", "ok", what)
