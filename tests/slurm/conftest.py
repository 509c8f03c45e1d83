"""A cluster for the tests of this folder; skipped, with the packages that are needed, where there is none."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "sweep"), str(HERE)]  # toy_stages, here and on the nodes; sent_sweeps


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slurm_cluster", HERE / "cluster.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cluster_module() -> ModuleType:
    """`cluster.py`, for a test that needs a cluster of its own."""
    return _module()


def boot(**options: str) -> Iterator[object]:
    """A cluster of four nodes, for a fixture."""
    module = _module()
    if module.missing():
        pytest.skip(f"no Slurm here: apt-get install -y --no-install-recommends {module.missing()}")
    folder = Path(tempfile.mkdtemp(prefix="ego-", dir="/tmp"))  # Unix sockets need a short path
    try:
        with module.Cluster(folder, **options) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lend(cluster, monkeypatch) -> Iterator[object]:
    """A cluster in this process's environment for one test, with no job left behind."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.command("scancel", "--me", "--full", "-s", "KILL", check=False)
    cluster.command("scancel", "--me", check=False)


@pytest.fixture(scope="session")
def booted() -> Iterator[object]:
    """One cluster for all tests."""
    yield from boot()


@pytest.fixture
def cluster(booted, monkeypatch) -> Iterator[object]:
    """The cluster, in this process's environment."""
    yield from lend(booted, monkeypatch)


@pytest.fixture(scope="session")
def booted_forgetful() -> Iterator[object]:
    """A cluster that forgets a job two seconds after its end."""
    yield from boot(extra="MinJobAge=2")


@pytest.fixture
def forgetful(booted_forgetful, monkeypatch) -> Iterator[object]:
    """The cluster that forgets, in this process's environment."""
    yield from lend(booted_forgetful, monkeypatch)


@pytest.fixture
def binding(monkeypatch) -> Iterator[object]:
    """A cluster that binds each step to its cores."""
    for booted in boot(extra="TaskPlugin=task/affinity\nTaskPluginParam=autobind=cores"):
        yield from lend(booted, monkeypatch)


@pytest.fixture(scope="session")
def page(booted, drawing, tmp_path_factory) -> object:
    """docs/slurm.md, gone through once on the cluster from its first command to its last."""
    import slurm_page

    return slurm_page.go_through(tmp_path_factory.mktemp("page") / "egoscale", booted.environment)
