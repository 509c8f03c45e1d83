"""The built wheel stands alone: in an empty folder it runs `egoscale init` and `egoscale check`."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns("__pycache__", "out", "*.tmp")
    for name in ("egoscale", "tokenizers", "recipes", "slurm", "analysis"):
        shutil.copytree(repository / name, source / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(repository / name, source)
    try:
        importlib.metadata.version("hatchling")
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    except importlib.metadata.PackageNotFoundError:
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(out), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    if done.returncode and "No module named pip" in done.stderr:
        pytest.skip("neither hatchling nor pip is in this environment, so no wheel can be built")
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_runs_init_and_check_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(installed)
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def python(code: str, *words: str) -> str:
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert Path(python("import egoscale; print(egoscale.__file__)").strip()).is_relative_to(installed)
    main = "from egoscale.cli import main; main()"
    python(main, "init")
    assert (empty / "analysis/tabletop/study.toml").is_file()
    assert "0 with faults" in python(main, "check")


def test_the_wheel_has_one_package_the_four_folders_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"egoscale"}
    assert any(name.startswith("egoscale/_share/recipes/") for name in names)
    assert not [name for name in names if name.startswith("egoscale/_share/") and name.endswith(".py")]
    assert any(name.endswith("LICENSE") for name in names)
    assert "egoscale/py.typed" in names
