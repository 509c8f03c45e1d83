"""Hostile names in studies, paths and profiles: refused with a clear error, or quoted; never executed.

Rendered scripts are run by bash in a folder of their own, where the commands of Slurm note what they were given. A
string that bash executes leaves a file there.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import toy_stages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egoscale.recipe import RecipeError, SweepRecipe, validate
from egoscale.sweep import slurm
from egoscale.sweep.plan import plan
from egoscale.sweep.profile import Profile, ResourceSpec, load_profile
from egoscale.sweep.script import render
from egoscale.sweep.status import lines, standing
from egoscale.sweep.study import Study
from egoscale.sweep.submission import submit

SANDBOX = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
HOSTILE = (
    "a b", "", " ", "-rf", "--wrap=touch canary", "..", "../../canary", "/canary", "a/b", "~", "*", "a;touch canary",
    "$(touch canary)", "${IFS}", "`touch canary`", "'$(touch canary)'", "\";touch canary;\"", "';touch canary;'",
    "a\ntouch canary\n", "a\rtouch canary", "a\0b", "a\tb", "a\vb", "a\\", "a\\\ntouch canary", "#canary", "a#b", "!!",
    "a&touch${IFS}canary", "a|touch canary", "a>canary", "<(touch canary)", "%j%x%a", "@SETUP@", "@WITHIN@@PYTHON@",
    "é", "küche", "厨房", "\u202ea", "a\u2028touch canary", "🤖", "x" * 300, "EOF\ntouch canary\nEOF",
)  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=30),
    st.text(alphabet="ab'\"`$();&|<>\\ \n\t#!*?[]{}~-%@", max_size=20).map(lambda text: f"{text}touch canary{text}"),
)
NOTE = """#!/bin/bash
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\n\\0'; } >> "$NOTED"
[ "${0##*/}" != srun ] || env -0 > "$NOTED.env"
"""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """Runs a script; what it called (name and arguments) and the environment that its step got."""
    home = tmp_path_factory.mktemp("sandbox")
    commands = home / "bin"
    commands.mkdir()
    for name in ("srun", "scontrol", "module", "apptainer"):
        (commands / name).write_text(NOTE)
        (commands / name).chmod(0o755)
    work, noted = home / "work", home / "noted"
    work.mkdir()
    environment = {"PATH": f"{commands}:/usr/bin:/bin", "NOTED": str(noted), "HOME": str(work)}
    environment |= {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "1", "SLURM_JOB_ID": "1"}

    def run(script: str) -> tuple[list[list[str]], dict[str, str]]:
        for file in (noted, Path(f"{noted}.env")):
            file.unlink(missing_ok=True)
        subprocess.run(["bash"], input=script.encode(), cwd=work, env=environment, capture_output=True, timeout=30)
        assert not list(work.iterdir()) and {file.name for file in commands.iterdir()} == {
            "srun", "scontrol", "module", "apptainer"
        }, script  # fmt: skip
        calls = [call.split("\0")[:-1] for call in noted.read_bytes().decode().split("\n\0")[:-1]]
        pairs = (pair.partition("=") for pair in Path(f"{noted}.env").read_bytes().decode().split("\0"))
        return calls, {name: value for name, _, value in pairs}

    return run


def script_of(profile: Profile, root: Path = Path("/shared/runs"), resources: ResourceSpec | None = None) -> str:
    slurm_folder = root / "sweeps" / "toy" / "slurm"
    resources = resources or profile.resources["default"]
    return render(profile, resources, "egoscale-0-1", slurm_folder / "1.json", slurm_folder, {0: "world/1"}, "")


def header(script: str) -> list[str]:
    """Lines of options; nothing but comments may stand among them."""
    lines = script.partition("\n\n")[0].split("\n")
    assert lines[0] == "#!/bin/bash" and all(line.startswith("#SBATCH --") for line in lines[1:]), script
    return lines[1:]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_study_has_the_name_of_a_folder_or_none(name, tmp_path):
    text = toy_stages.sweep().model_dump(mode="json", exclude_none=True) | {"name": name}
    try:
        read = validate(SweepRecipe, text, tmp_path / "study.toml")
    except RecipeError as error:
        assert "`name`" in str(error) and "letters, digits" in str(error)
        return
    study = Study(plan(read), tmp_path / "runs")
    assert study.folder.parent == tmp_path / "runs" / "sweeps" and study.folder.name == name
    assert name in ("é", "küche", "厨房")


@SANDBOX
@given(value=WORDS, key=st.sampled_from(["account", "partition", "qos", "reservation", "constraint"]))
def test_values_of_options_are_plain_or_refused(value, key):
    try:
        profile = validate(Profile, {"name": "p", key: value}, Path("p.toml"))
    except RecipeError as error:
        assert "p.toml" in str(error) and key in str(error)
        return
    assert [line for line in header(script_of(profile)) if f"--{key}=" in line] == (
        [f"#SBATCH --{key}={value}"] if value else []
    )
    assert not set(value) & set(" \t\n\r\v\f\0'\"`$;<>\\#{}~?")


@SANDBOX
@given(value=WORDS)
def test_values_of_variables_arrive_as_they_are(value, sandbox):
    try:
        profile = validate(Profile, {"name": "p", "environment": {"KITCHEN": value}}, Path("p.toml"))
    except RecipeError as error:
        assert "environment" in str(error) and set(value) & set("\n\r\0")
        return
    _, environment = sandbox(script_of(profile))
    assert environment["KITCHEN"] == value


@SANDBOX
@given(name=WORDS)
def test_names_of_variables_are_names_or_refused(name):
    try:
        validate(Profile, {"name": "p", "environment": {name: "1"}}, Path("p.toml"))
    except RecipeError:
        return
    assert name.isidentifier() and name.isascii()


@SANDBOX
@given(module=WORDS, image=WORDS, mount=WORDS, python=WORDS, kind=st.sampled_from(["pyxis", "apptainer"]))
def test_modules_images_and_interpreters_are_one_word_each(module, image, mount, python, kind, sandbox):
    box = {"kind": kind, "image": image, "mounts": [mount]}
    try:
        data = {"name": "p", "modules": [module], "container": box, "python": python or "python3"}
        profile = validate(Profile, data, Path("p.toml"))
    except RecipeError as error:
        assert "p.toml" in str(error)
        return
    calls, _ = sandbox(script_of(profile))
    assert ["module", "load", module] in calls
    steps = [call for call in calls if call[0] == "srun"]
    assert all(call[0] in ("module", "srun", "apptainer") for call in calls)
    for call in [*steps, *(call for call in calls if call[0] == "apptainer")]:
        if kind == "pyxis":
            assert call[-7 if "--ended" in call else -5] == profile.python
            assert f"--container-image={image}" in call and f"--container-mounts={mount}" in call
        elif call[0] == "apptainer" or "apptainer" in call:
            assert [*call[call.index("apptainer") :][1:6]] == ["exec", "--nv", "--bind", mount, image]


@SANDBOX
@given(part=WORDS)
def test_a_root_is_quoted_or_refused(part, sandbox):
    root = Path("/shared") / part.replace("\0", "")
    try:
        script = script_of(Profile(name="p", environment={"A": "'x"}), root)
    except ValueError as error:
        assert "--output" in str(error) and "choose a --root" in str(error)
        return
    header(script)
    calls, _ = sandbox(script)
    (step,) = (call for call in calls if call[0] == "srun")
    assert step[-2:] == [f"{root}/sweeps/toy/slurm/1.json", "0"]


def test_a_profile_names_file_key_and_value(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\naccount = "robotics; rm -rf /"\n')
    with pytest.raises(RecipeError, match=r"mine\.toml.*`account`.*robotics; rm -rf"):
        load_profile(file)
    file.write_text('name = "mine"\npython = "-c"\n')
    with pytest.raises(RecipeError, match=r"`python`.*option"):
        load_profile(file)


@pytest.mark.slurm
def test_a_hostile_root_on_a_real_cluster(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resources = {"default": ResourceSpec(time_limit_min=5)}
    toys = {"PYTHONPATH": toy_stages.__file__.rsplit("/", 1)[0], "NOTE": "$(touch canary)\t'; touch canary; '"}
    profile = Profile(name="test", environment=toys, resources=resources)
    planned = plan(toy_stages.sweep("grid.hours=[0]"))
    root = tmp_path / "-rf;touch&canary|(x)*!~%j%x%a@SETUP@@PYTHON@[é厨房]" / ("x" * 180)
    submit(planned, root, profile, execute="toy_stages:execute")
    study = Study(planned, root)
    wait(planned, root, lambda found: not found.counts["queued"] and not found.counts["running"])
    assert standing(planned, root).complete, "\n".join(lines(standing(planned, root)))
    for job in planned.jobs.values():
        (log,) = study.logs(str(job))
        assert log.is_file(), log
    assert not list(tmp_path.rglob("canary*")) and not Path("canary").exists()
    before = len(slurm.queue("egoscale-"))
    for part in ("a b", "$(touch canary)", "`touch canary`", "a#b", "a\\b", "'a'", "a\nb", "a\tb"):
        with pytest.raises(ValueError, match="choose a --root"):
            submit(planned, tmp_path / "refused" / part, profile, execute="toy_stages:execute")
    assert len(slurm.queue("egoscale-")) == before
    assert {path.name for path in tmp_path.iterdir()} == {root.parent.name, "refused"}


def wait(planned, root, until, seconds=90.0):
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end and not until(standing(planned, root)):
        time.sleep(0.5)
