"""A study of ten thousand runs sent to a real Slurm controller: ours beside submitit and Snakemake's Slurm plugin.

    python benchmarks/submission.py --submitit DIR --snakemake DIR > benchmarks/submission.md

DIR are folders of `pip install --target DIR submitit`, and of `snakemake snakemake-executor-plugin-slurm`; a peer that
is not there is left out, and the table says so. The controller is the tests' own (`tests/slurm/cluster.py`), anew for
each measurement; what the jobs run is a script that sleeps. Seconds on the clock, in brackets those of the processor
in the launcher and its children (sbatch, squeue): other work on the machine moves the first and hardly the second.
Starting Python and imports are counted. Each number is the median of the repeats.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from egoscale.recipe import load_recipe
from egoscale.sweep.arrays import arrays
from egoscale.sweep.plan import Plan, plan
from egoscale.sweep.status import standing

ROOT = Path(__file__).resolve().parents[1]
GRID = [
    f"grid.hours={[0.0, *(round(0.02 * 1.5**i, 4) for i in range(10))]}",
    "grid.demos=[5, 10, 20, 30, 40, 50, 60, 80]",
    "teleop.num_demos=80",
    "film.hours=10",
]
STARTS = ("sbatch", "squeue", "sacct", "scontrol")  # programs whose calls are counted
SNAKEFILE = """
import json
graph = json.load(open("graph.json"))
rule all:
    input: [f"done/{key}" for key in graph]
rule one:
    output: "done/{key}"
    input: lambda wildcards: [f"done/{key}" for key in graph[wildcards.key]]
    resources: runtime=60, mem_mb=100
    shell: "sleep 3600"
"""
PHASES = ("plan", "submit", "status")


def grid(num_seeds: int) -> list[str]:
    return [*GRID, f"grid.seeds={list(range(num_seeds))}"]


def study(num_seeds: int) -> Plan:
    return plan(load_recipe(ROOT / "recipes/sweeps/tabletop.toml", grid(num_seeds)))  # type: ignore[arg-type]


class Clock:
    """Seconds by phase, on the clock and of the processor."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before, begun = os.times(), time.perf_counter()
        yield
        after = os.times()
        self.wall[name] = time.perf_counter() - begun
        self.cpu[name] = sum(after[:4]) - sum(before[:4])


# --- contenders: each in a process of its own; each returns what it found beside the seconds ---


def ours(clock: Clock, given: argparse.Namespace) -> dict[str, Any]:
    profile = given.folder / "sleep.toml"
    profile.write_text(f'name = "sleep"\npython = "{given.folder}/sleeper"\n[resources.default]\ntime_limit_min = 60\n')
    words = [str(ROOT / "recipes/sweeps/tabletop.toml"), "--root", str(given.folder / "runs")]
    for change in grid(given.seeds):
        words += ["--set", change]
    said = {}
    for phase, more in (("plan", []), ("submit", ["--profile", str(profile)]), ("status", [])):
        command = [sys.executable, "-m", "egoscale.cli", "sweep", phase, *words, *more]
        with clock.phase(phase):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        said[phase] = done.stdout
        if done.returncode > (phase == "status"):  # which ends with 1 while runs are missing
            raise RuntimeError(done.stderr)
    planned = study(given.seeds)
    found = standing(planned, given.folder / "runs")
    return {"runs": len(planned.jobs), "seen": found.counts["queued"] + found.counts["running"]}


def submitit(clock: Clock, given: argparse.Namespace) -> dict[str, Any]:
    """One `map_array` an array of ours, with dependencies by hand: it has no graph of its own, so nothing to plan."""
    planned = study(given.seeds)
    resources = {job.stage: "default" for job in planned.jobs.values()}
    layers = arrays(planned, planned.jobs, resources, 1000)
    jobs, ids = [], {}
    with clock.phase("submit"):
        from submitit import SlurmExecutor

        for layer in layers:
            executor = SlurmExecutor(given.folder / "submitit", python=str(given.folder / "sleeper"))
            before = [f"aftercorr:{ids[layer.along]}"] if layer.along else []
            before += [f"afterok:{ids[name]}_{index}" for name, index in layer.after]
            before += [f"afterany:{ids[name]}" for name in layer.beside]
            more = {"dependency": ",".join(before), "kill-on-invalid-dep": "yes"} if before else {}
            executor.update_parameters(
                time=60, job_name=layer.name, array_parallelism=len(layer.elements), additional_parameters=more
            )
            new = executor.map_array(print, [str(job) for job in layer.elements.values()])
            ids[layer.name] = new[0].job_id.partition("_")[0]
            jobs += new
    with clock.phase("status"):
        states = [job.state for job in jobs]
    return {"runs": len(jobs), "seen": sum(state != "UNKNOWN" for state in states)}


def snakemake(clock: Clock, given: argparse.Namespace) -> dict[str, Any]:
    """Its dry run of the whole graph, which is how it plans and how it says what is missing; then some jobs that need
    nothing, which it sends one by one, the only way it has."""
    planned = study(given.snakemake_seeds)
    whole, some = given.folder / "whole", given.folder / "some"
    few: dict[str, list[str]] = {f"job{i}": [] for i in range(given.snakemake_jobs)}
    graph = {key: [source.key for source in job.inputs.values()] for key, job in planned.jobs.items()}
    for folder, edges in ((whole, graph), (some, few)):
        folder.mkdir()
        (folder / "Snakefile").write_text(SNAKEFILE)
        (folder / "graph.json").write_text(json.dumps(edges))
    command = [sys.executable, "-m", "snakemake", "--quiet", "all"]
    for name in ("plan", "status"):
        with clock.phase(name):
            subprocess.run([*command, "--dry-run"], cwd=whole, check=True, stdout=subprocess.DEVNULL)
    log = given.folder / "calls"
    sending = [*command, "--executor", "slurm", "--jobs", "100000", "--default-resources", "slurm_partition=main"]
    begun, said = time.perf_counter(), (given.folder / "snakemake.out").open("w")
    process = subprocess.Popen(sending, cwd=some, stdout=said, stderr=said, start_new_session=True)
    try:
        while len(sent := _calls(log, "sbatch")) < given.snakemake_jobs:
            if process.poll() is not None or time.perf_counter() - begun > 300:
                raise RuntimeError(
                    f"snakemake sent {len(sent)} jobs:\n{(given.folder / 'snakemake.out').read_text()[-800:]}"
                )
            time.sleep(0.1)
        clock.wall["submit"] = sent[-1] - sent[0]
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # a gentle end would cancel each job by itself
        process.wait()
    return {"runs": len(planned.jobs), "sent": given.snakemake_jobs}


def _calls(log: Path, program: str) -> list[float]:
    """When a program was called."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [float(line.split()[1]) for line in lines if line.startswith(f"{program} ")]


CONTENDERS = {"ours": ours, "submitit": submitit, "snakemake": snakemake}


# --- a controller for each measurement ---


def cluster(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("slurm_cluster", ROOT / "tests/slurm/cluster.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.missing():
        raise SystemExit(f"no Slurm here: apt-get install -y --no-install-recommends {module.missing()}")
    return module.Cluster(folder, extra="MaxJobCount=40000")


def counting(folder: Path, path: str) -> None:
    """Programs before the real ones on PATH that note each call."""
    (folder / "bin").mkdir()
    for name in STARTS:
        real = shutil.which(name, path=path)
        script = folder / "bin" / name
        script.write_text(f'#!/bin/bash\necho {name} $EPOCHREALTIME >> {folder}/calls\nexec {real} "$@"\n')
        script.chmod(0o755)


def measured(name: str, given: argparse.Namespace, packages: str) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="ego-", dir="/tmp"))
    folder.chmod(0o755)  # munge wants its socket within everybody's reach
    try:
        (folder / "sleeper").write_text("#!/bin/sh\nexec sleep 3600\n")
        (folder / "sleeper").chmod(0o755)
        (folder / "slurm").mkdir()
        with cluster(folder / "slurm") as running:
            counting(folder, running.environment["PATH"])
            environment = {**os.environ, **running.environment, "PYTHONPATH": packages}
            environment["PATH"] = f"{folder}/bin:{running.environment['PATH']}"
            words = [sys.executable, __file__, "--role", name, "--folder", str(folder)]
            words += ["--seeds", str(given.seeds), "--snakemake-jobs", str(given.snakemake_jobs)]
            words += ["--snakemake-seeds", str(given.snakemake_seeds)]
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                return {"failed": (done.stderr.strip() or done.stdout.strip())[-900:]}
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return found | {"calls": {program: len(_calls(folder / "calls", program)) for program in STARTS}}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def role(given: argparse.Namespace) -> None:
    clock = Clock()
    told = CONTENDERS[given.role](clock, given)
    print(json.dumps({**told, "wall": clock.wall, "cpu": clock.cpu}))


# --- the page ---


def row(name: str, found: list[dict[str, Any]]) -> str:
    cells = [name, f"{found[0]['runs']:,}", *(f"{found[0]['calls'][program]:,}" for program in STARTS[:3])]
    for phase in PHASES:
        if phase not in found[0]["wall"]:
            cells.append("-")
            continue
        wall = statistics.median(one["wall"][phase] for one in found)
        cpu = statistics.median(one["cpu"].get(phase, float("nan")) for one in found)
        cells.append(f"{wall:.1f}" + (f" ({cpu:.1f})" if phase in found[0]["cpu"] else ""))
    return "| " + " | ".join(cells) + " |"


def versions(names: tuple[str, ...], packages: str) -> str:
    path = [packages] if packages else sys.path
    found = {one.metadata["Name"].lower(): one.version for one in importlib.metadata.distributions(path=path)}
    return ", ".join(f"{name} {found.get(name, 'not installed')}" for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submitit", default="")
    parser.add_argument("--snakemake", default="")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=50, help="of the grid: 50 make 10,307 runs")
    parser.add_argument("--snakemake-jobs", type=int, default=200)
    parser.add_argument("--snakemake-seeds", type=int, default=5, help="its graph is smaller: 5 make 1,037 runs")
    parser.add_argument("--role", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        role(given)
        return
    peers = {"submitit": ("submitit",), "snakemake": ("snakemake", "snakemake-executor-plugin-slurm")}
    told = subprocess.run(["/usr/sbin/slurmctld", "-V"], capture_output=True, text=True, check=False).stdout.split()
    slurm = " ".join(told[:2]) or "Slurm"
    load = os.getloadavg()[0]
    print("# Sending ten thousand runs\n")
    print(f"`python benchmarks/submission.py --submitit DIR --snakemake DIR`, {datetime.date.today()}, {slurm},")
    print(f"{versions(peers['submitit'], given.submitit)}, {versions(peers['snakemake'], given.snakemake)},")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load:.1f} at the start.")
    print(f"Medians of {given.repeats}; seconds on the clock (of the processor, in the launcher and its children).\n")
    print("| launcher | runs | sbatch | squeue | sacct | plan s | submit s | status s |")
    print("|---" * 8 + "|")
    remarks = []
    for name in CONTENDERS:
        packages = "" if name == "ours" else getattr(given, name)
        if name != "ours" and not (packages and Path(packages).is_dir()):
            remarks.append(f"{name}: not installed, so not measured.")
            continue
        found = []
        for _ in range(given.repeats):
            one = measured(name, given, packages)
            if "failed" in one:
                remarks.append(f"{name}: did not run: {one['failed']}")
                break
            found.append(one)
        if not found:
            continue
        print(row(name, found), flush=True)
        if "sent" in found[0]:
            each = statistics.median(one["wall"]["submit"] for one in found) / (found[0]["sent"] - 1)
            all_runs = len(study(given.seeds).jobs)
            remarks.append(
                f"{name}: plan and status are its dry run, of a smaller graph. It sends a job when its inputs are "
                f"there, one by one: calls and submission are those of {found[0]['sent']} jobs that need nothing, "
                f"{each:.2f} s each between the first and the last. Extrapolated: {all_runs:,} calls and "
                f"{each * all_runs / 60:.0f} min of sending, by a driver that must live as long as the study."
            )
        elif found[0]["seen"] < found[0]["runs"]:
            remarks.append(f"{name}: its status knew {found[0]['seen']:,} of {found[0]['runs']:,} runs.")
    print("\n" + "\n".join(remarks))


if __name__ == "__main__":
    main()
