"""`egoscale doctor --profile` on a real Slurm, sound and with every fault that it knows."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from egoscale.cli import main
from egoscale.recipe import STAGES, validate
from egoscale.sweep import site, slurm
from egoscale.sweep.preflight import examine
from egoscale.sweep.profile import Profile

SHIFT = """
import sys, time
real = time.time
time.time = lambda: real() + 3600
"""
PACKAGE = Path(__file__).parents[2] / "egoscale"


def profile(**keys):
    resources = {"default": {"time_limit_min": 20} | keys.pop("resources", {}), **keys.pop("more", {})}
    return validate(Profile, {"name": "p", "resources": resources, **keys}, Path("p.toml"))


def bad(findings):
    """Names of what is bad, with what is said and the remedy."""
    found = list(findings)
    assert all(finding.remedy for finding in found if finding.level == "bad")
    assert all("\n" not in finding.what + finding.remedy for finding in found)
    return {finding.name: f"{finding.what} -> {finding.remedy}" for finding in found if finding.level == "bad"}


def until(there, seconds=90.0):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.2)


def nothing_left(root):
    assert not list((root / "sweeps").glob(".doctor*")) and not slurm_jobs()


def slurm_jobs():
    names = slurm.run(["squeue", "--noheader", "--me", "--states=PD,R", "--format=%j"]).split()
    return [name for name in names if name == "egoscale-doctor"]


@pytest.mark.slurm
def test_a_sound_cluster(cluster, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--profile", "profiles/cpu-test", "--root", str(tmp_path)])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "bad" not in said, said
    assert re.search(r"\[resources.two-nodes\]: node\d, node\d and this machine see the same", said), said
    assert all(part in said for part in ("torch", "deepspeed", "clock within")), said
    nothing_left(tmp_path)


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("keys", "name", "said"),
    [
        ({"partition": "gpu"}, "partition", "no partition 'gpu' -> partition = one of main, high, low"),
        ({"max_array_size": 5000}, "arrays", "MaxArraySize of the cluster is 1001 -> max_array_size = 1001"),
        ({"max_submitted": 10**6}, "arrays", "MaxJobCount"),
        ({"resources": {"gpus_per_node": 9}}, "GPUs", "0 of main's 4 nodes fit gpus_per_node = 9"),
        ({"resources": {"gpus_per_node": 1, "gpu_type": "h100"}}, "GPUs", "the largest node has 8 x gpu"),
        ({"resources": {"memory_gb_per_node": 100}}, "memory", "the largest node has 7.8"),
        ({"resources": {"cpus_per_task": 4}}, "cores", "the largest node has 2"),
        ({"resources": {"num_nodes": 5}}, "GPUs", "4 of main's 4 nodes fit gpus_per_node = 0; 5 are asked for"),
        # Taken by the conclusion alone.
        (
            {
                "resources": {"cpus_per_task": 4},
                "more": {"small": {"time_limit_min": 20}},
                "stages": {stage: "small" for stage in STAGES if stage != "sweep"},
            },
            "cores",
            "[resources.default]: 0 of main's 4 nodes fit cpus_per_task",
        ),
        ({"constraint": "infiniband"}, "constraint", "features of nodes are none"),
        ({"constraint": "a&b"}, "partition", "Slurm would refuse such a job"),
        ({"reservation": "tuesday"}, "partition", "Slurm would refuse such a job"),
        ({"signal_before_end_s": 1200}, "time limit", "all of its 20 min"),
    ],
)
def test_what_a_profile_asks_for_and_is_not_there(cluster, tmp_path, keys, name, said):
    found = bad(examine(profile(**keys), tmp_path, wait_s=0))
    assert said in found.get(name, ""), found


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("change", "back", "name", "said"),
    [
        ("partitionname=high state=down", "partitionname=high state=up", "partition", "partition high is DOWN"),
        ("partitionname=high maxtime=10", "partitionname=high maxtime=infinite", "time limit", "time_limit_min = 10"),
        ("partitionname=high allowaccounts=vision", "partitionname=high allowaccounts=all", "account", "takes vision"),
        ("nodename=node[1-4] state=drain reason=test", "nodename=node[1-4] state=resume", "nodes", "0 of 4"),
    ],
)
def test_what_is_there_and_may_not_be_used(cluster, tmp_path, change, back, name, said):
    cluster.command("scontrol", "update", *change.split())
    try:
        found = bad(examine(profile(partition="high", account="robotics"), tmp_path, wait_s=0))
    finally:
        cluster.command("scontrol", "update", *back.split())
        until(lambda: all(node.usable for node in site.nodes("high")))  # a node that resumes answers after a while
    assert said in found.get(name, ""), found


@pytest.mark.slurm
def test_preemption_is_told_beforehand(cluster, tmp_path):
    seconds = int(slurm.limits()["KillWait"].split()[0]) + site.partitions()["grace"].grace_time_s
    found = list(examine(profile(partition="grace", resources={"gpus_per_node": 9}), tmp_path))
    assert any(f"are requeued; a step has {seconds} s" in finding.what for finding in found) and seconds > 60


def wrapper(tmp_path, line):
    """An interpreter for the compute nodes."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{line}\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.slurm
def test_no_python_on_the_nodes(cluster, tmp_path):
    found = bad(examine(profile(python="/nowhere/python"), tmp_path / "runs"))
    assert "/nowhere/python" in found["compute"] and "make /nowhere/python work on the nodes" in found["compute"]
    nothing_left(tmp_path / "runs")


@pytest.mark.slurm
def test_a_root_that_the_nodes_do_not_see(cluster, tmp_path):
    root = tmp_path / "runs"
    root.mkdir()
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(root)], capture_output=True).returncode:
        pytest.skip("unshare and mount are refused here: needs CAP_SYS_ADMIN, root outside a container")
    hide = f'unshare -m sh -c \'mount -t tmpfs none {root} && exec {sys.executable} "$@"\' python "$@"'
    found = bad(examine(profile(python=wrapper(tmp_path, f"exec {hide}")), root))
    assert "take a --root on a file system that all nodes share" in found["compute"], found
    nothing_left(root)


@pytest.mark.slurm
def test_another_version_a_broken_torch_and_a_wrong_clock(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # `python -m` would find the package of the working directory first
    elsewhere = tmp_path / "site"
    elsewhere.mkdir()
    for path in PACKAGE.rglob("*.py"):
        copy = elsewhere / "egoscale" / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    init = elsewhere / "egoscale" / "__init__.py"
    init.write_text(init.read_text() + '\n__version__ = "0.0.1"\n')
    for folder in ("slurm", "recipes"):
        (elsewhere / folder).symlink_to(PACKAGE.parent / folder)
    (elsewhere / "torch.py").write_text('raise ImportError("libcudart.so.12: cannot open shared object file")\n')
    (elsewhere / "sitecustomize.py").write_text(SHIFT)
    found = list(examine(profile(environment={"PYTHONPATH": str(elsewhere)}), tmp_path / "runs"))
    said = "\n".join(finding.what for finding in found if finding.level == "bad")
    assert "egoscale 0.0.1 there" in said
    assert "torch does not import: ImportError: libcudart.so.12" in said
    assert "s ahead of this machine's" in said
    nothing_left(tmp_path / "runs")


@pytest.mark.slurm
def test_a_gpu_that_torch_does_not_see(cluster, tmp_path):
    found = bad(examine(profile(resources={"gpus_per_node": 1}), tmp_path))
    assert "torch sees none" in found["GPUs"]


@pytest.mark.slurm
def test_a_step_is_bound_to_all_the_cores_that_it_asks_for(binding, tmp_path):
    found = list(examine(profile(resources={"cpus_per_task": 2}), tmp_path))
    assert not bad(found) and any("see the same" in finding.what for finding in found), found


@pytest.mark.slurm
def test_a_step_that_gets_fewer_cores_than_it_asks_for(cluster, tmp_path):
    python = wrapper(tmp_path, f'exec taskset -c 0 {sys.executable} "$@"')
    found = bad(examine(profile(python=python, resources={"cpus_per_task": 2}), tmp_path / "runs"))
    assert "may run on 1 of the 2 cores that cpus_per_task asks for" in found["cores"], found
    nothing_left(tmp_path / "runs")


@pytest.mark.slurm
def test_a_full_cluster_is_not_a_fault(cluster, tmp_path):
    filler = slurm.sbatch("#!/bin/bash\nsleep 300\n", ["--nodes=4", "--exclusive", "--time=10", "--output=/dev/null"])
    until(lambda: "R" in slurm.run(["squeue", "-h", "-j", filler, "-o", "%t"]))
    try:
        found = list(examine(profile(), tmp_path, wait_s=3))
    finally:
        slurm.cancel([filler])
    assert not bad(found)
    (told,) = (finding for finding in found if finding.name == "compute")
    assert told.level == "note" and "did not start in time" in told.what
    nothing_left(tmp_path)


def test_without_slurm_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--profile", "profiles/cpu-test", "--root", str(tmp_path)])
    assert ended.value.code == 1
    assert "submit from a login node" in capsys.readouterr().out


def test_accounts_and_their_limits(monkeypatch, tmp_path):
    """Accounting needs a database, so what `sacctmgr` prints is given here."""
    (tmp_path / "sacctmgr").write_text("#!/bin/sh\nprintf 'robotics||normal|200\\nvision|gpu|normal,high|\\n'\n")
    (tmp_path / "sacctmgr").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = site.associations()
    assert [(one.account, one.max_submit) for one in found] == [("robotics", 200), ("vision", None)]
    assert found[1].qos == {"normal", "high"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("gpu:8", {"": 8}), ("gpu:h100:8(S:0-1)", {"h100": 8}), ("gpu:a100:4,gpu:h100:2,shard:16", {"a100": 4, "h100": 2}),
     ("(null)", {}), ("craynetwork:4", {})],
)  # fmt: skip
def test_gpus_of_a_node(text, expected):
    assert site.gpus(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("UNLIMITED", None), ("1-00:00:00", 1440), ("2-12", 3600), ("02:30:00", 150), ("30:00", 30), ("45", 45)],
)
def test_durations(text, expected):
    assert site.minutes(text) == expected
