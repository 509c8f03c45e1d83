"""A small job that says what a compute node sees: the shared folder, its clock, its Python, its GPUs.

It is sent by the very script that runs will be sent by, so its modules, container and interpreter are tried too. Each
node answers with a file in the folder of the probe.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from egoscale import __version__
from egoscale.doctor import Finding
from egoscale.sweep import slurm
from egoscale.sweep.lock import write_whole
from egoscale.sweep.profile import Profile, ResourceSpec
from egoscale.sweep.script import render

PROBE_WAIT_S = 300.0  # for a probe to start; a full cluster may need longer than a person waits
ANSWER_WAIT_S = 120.0  # for its answers, once it runs: torch is read from a shared disk, once
CACHE_S = 15.0  # for a file of another machine to show itself: NFS caches the contents of folders
POLL_S = 0.5
CLOCK_S = 2.0  # clocks of a cluster differ by milliseconds; beyond this, times of events mislead
# Slurm's keys (munge) are good for 5 minutes; a node whose clock is off by as much cannot start jobs.
CLOCK_BAD_S = 60.0
NEEDS: Mapping[str, tuple[str, ...]] = {
    "tokenizer": ("torch", "deepspeed"),
    "encode": ("torch",),
    "latent-action": ("torch", "deepspeed"),
    "world": ("torch", "deepspeed"),
    "finetune": ("torch", "deepspeed"),
    "evaluate": ("torch",),
}


@dataclass
class _Probe:
    """One job: what it stands for, where its nodes answer, and what became of it."""

    place: str
    resources: ResourceSpec
    packages: tuple[str, ...]
    folder: Path
    job: str = ""
    sent: float = 0.0
    state: str = ""
    error: str = ""
    answers: list[dict[str, Any]] = field(default_factory=list)
    seen: dict[str, float] = field(default_factory=dict)  # answer's file -> when it showed itself here

    def look(self) -> None:
        """Take in answers that are new."""
        for path in sorted(self.folder.glob("node-*.json")):
            if path.name not in self.seen:
                with contextlib.suppress(OSError, ValueError):
                    self.answers.append(json.loads(path.read_text()) | {"seen": time.time()})
                    self.seen[path.name] = time.time()

    @property
    def complete(self) -> bool:
        return len(self.answers) == self.resources.num_nodes


def probes(profile: Profile, classes: Mapping[str, Sequence[str]], root: Path, wait_s: float) -> Iterator[Finding]:
    """Send a probe to each kind of place that the classes (name -> stages) go to, and say what came back."""
    try:
        (root / "sweeps").mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=(root / "sweeps").resolve()))
        folder.chmod(0o755)
    except OSError as error:
        yield Finding("files", "bad", f"{root.resolve()} cannot be written to: {error.strerror}", "give --root another")
        return
    sent: list[_Probe] = []
    try:
        for probe in _places(profile, classes, folder):
            with _refused(probe):
                _send(profile, probe, root)
            sent.append(probe)
        for probe in sent:
            if probe.job:
                _wait(probe, wait_s)
            yield from _verdict(profile, probe, root)
    finally:
        with contextlib.suppress(slurm.SlurmError):
            slurm.cancel(probe.job for probe in sent if probe.job)
        shutil.rmtree(folder, ignore_errors=True)


def _places(profile: Profile, classes: Mapping[str, Sequence[str]], folder: Path) -> Iterator[_Probe]:
    """A probe for each kind of place; it asks for little: a node or two, a task each, a GPU where there are any."""
    kinds: dict[tuple[str, str, bool, bool], list[str]] = {}
    for name in classes:
        resources = profile.resources[name]
        several, gpus = resources.num_nodes > 1, resources.gpus_per_node > 0
        where = resources.partition or profile.partition, resources.constraint or profile.constraint
        kinds.setdefault((*where, gpus, several), []).append(name)
    for number, names in enumerate(kinds.values()):
        first = profile.resources[names[0]]
        small = {
            "num_nodes": min(2, first.num_nodes),
            "tasks_per_node": 1,
            "gpus_per_node": min(1, first.gpus_per_node),
            "memory_gb_per_node": min(8.0, first.memory_gb_per_node),
            "time_limit_min": min(10, first.time_limit_min),
            "max_running": 0,
        }
        needed = {package for name in names for stage in classes[name] for package in NEEDS.get(stage, ())}
        packages = tuple(sorted(needed, reverse=True))  # torch before deepspeed, which imports it
        own = folder / str(number)
        own.mkdir()
        yield _Probe(
            " and ".join(f"[resources.{name}]" for name in names), first.model_copy(update=small), packages, own
        )


def _send(profile: Profile, probe: _Probe, root: Path) -> None:
    elements = probe.folder / "probe.json"
    asked = {"folder": str(probe.folder), "packages": probe.packages}
    write_whole(elements, json.dumps({"root": str(root.resolve()), "probe": asked}))
    short = profile.model_copy(update={"signal_before_end_s": 0})
    script = render(short, probe.resources, "egoscale-doctor", elements, probe.folder, {0: "probe"}, "")
    probe.sent = time.time()
    probe.job = slurm.sbatch(script)


@contextlib.contextmanager
def _refused(probe: _Probe) -> Iterator[None]:
    try:
        yield
    except (slurm.SlurmError, ValueError) as error:
        probe.error = str(error)


def _wait(probe: _Probe, wait_s: float) -> None:
    """Until all nodes have answered, the job has ended, or the time is over."""
    end, ended = time.monotonic() + wait_s, False
    while time.monotonic() < end:
        probe.look()
        if probe.complete or ended:
            return
        now = _asked(probe.job, "%T")
        if now != probe.state and now == "RUNNING":
            end = time.monotonic() + ANSWER_WAIT_S
        probe.state = now
        if now and now not in slurm.ALIVE and not ended:
            ended, end = True, time.monotonic() + CACHE_S  # a last look, when caches have let go
            while not probe.complete and time.monotonic() < end and not _log(probe):
                time.sleep(POLL_S)
                probe.look()
        time.sleep(POLL_S)


def _asked(job: str, what: str) -> str:
    """One field of squeue's ("%T" state, "%r" reason) for a job; GONE where Slurm does not know it."""
    with contextlib.suppress(slurm.SlurmError):
        answer = slurm.run(["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", f"--format={what}"])
        return answer.split("\n")[0].strip() or "GONE"
    return "GONE"


def _log(probe: _Probe) -> str:
    """The last words of the job's log that are its own."""
    said = ""
    for path in probe.folder.glob("*.log"):
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        own = [line for line in lines if not line.startswith(("srun: error", "slurmstepd:"))]
        said = (own or lines or [""])[-1]
    return said


def _verdict(profile: Profile, probe: _Probe, root: Path) -> Iterator[Finding]:
    place = probe.place
    if probe.error:
        yield Finding("compute", "bad", f"{place}: {probe.error}", "change what it names in the profile")
        return
    if probe.state == "PENDING" and not probe.answers:
        what = f"{place}: the probe did not start in time ({_asked(probe.job, '%r')}), so its nodes are not known"
        yield Finding("compute", "note", what, "try again when the queue is shorter, or with a longer --wait-s")
        return
    if not probe.answers:
        yield _silence(profile, probe, root)
        return
    names = ", ".join(str(answer["node"]) for answer in probe.answers)
    if not probe.complete:
        what = f"{place}: only {names} answered, of {probe.resources.num_nodes} nodes; {_log(probe)}"
        yield Finding("files", "bad", what, "every compute node must see the folder of --root and the interpreter")
    else:
        yield Finding("files", "ok", f"{place}: {names} and this machine see the same {root.resolve()}")
    for answer in probe.answers:
        yield from _node(probe, answer)


def _silence(profile: Profile, probe: _Probe, root: Path) -> Finding:
    """The job ran and no node answered: its log, if there is one, says why."""
    said = _log(probe)
    if not said:
        what = f"{probe.place}: the probe was sent ({probe.state}), and nothing that it wrote is seen here"
        remedy = f"take a --root on a file system that all nodes share ({root.resolve()} seems not to be)"
        return Finding("files", "bad", what, remedy)
    python = profile.python or sys.executable
    remedy = f"make {python} work on the nodes, or set `python`, `modules` and `setup` of the profile"
    if "FileNotFoundError" in said and str(probe.folder) in said:
        remedy = "take a --root on a file system that all nodes share"
    elif "not responding" in said or "TIMEOUT" in probe.state:
        remedy = "look at the node (`scontrol show node`), and at the shared file system"
    return Finding("compute", "bad", f"{probe.place}: {said}", remedy)


def _node(probe: _Probe, answer: Mapping[str, Any]) -> Iterator[Finding]:
    """What one node said of itself."""
    node = answer["node"]
    if answer["egoscale"] != __version__:
        what = f"{node}: egoscale {answer['egoscale']} there, {__version__} here"
        yield Finding("compute", "bad", what, "let both use one installation (`python` of the profile)")
    absent = {name: said for name, said in answer["packages"].items() if said.startswith("!")}
    for name, said in absent.items():
        remedy = "pip install 'egoscale[train]' in the environment of the compute nodes"
        yield Finding("compute", "bad", f"{node}: {name} does not import: {said[1:]}", remedy)
    if probe.resources.gpus_per_node and not absent and answer["gpus"] == 0:
        remedy = "install the torch build for the nodes' CUDA driver (`nvidia-smi` in a job says which)"
        yield Finding("GPUs", "bad", f"{node}: the job was given a GPU, and torch sees none", remedy)
    asked = probe.resources.cpus_per_task
    if answer.get("cpus", asked) < asked:
        what = f"{node}: the step may run on {answer['cpus']} of the {asked} cores that cpus_per_task asks for"
        remedy = "ask your administrators how steps are bound (TaskPlugin, TaskPluginParam of `scontrol show config`)"
        yield Finding("cores", "bad", what, remedy)
    if not answer["resolves"]:
        what = f"{node}: the name of the first node, {answer['first']}, leads nowhere; ranks would wait for ever"
        yield Finding("network", "bad", what, "add the nodes to DNS or /etc/hosts, or set MASTER_ADDR in `environment`")
    # It began after we had sent the job, and wrote its answer before we saw that.
    most, least = answer["began"] - probe.sent, answer["wrote"] - answer["seen"]
    off, clock = max(-most, least), f", clock within {max(most, -least):.0f} s"
    if off > CLOCK_S:
        what = f"{node}: its clock is at least {off:.0f} s {'behind' if most < 0 else 'ahead of'} this machine's"
        clock = ""
        yield Finding("clock", "bad" if off > CLOCK_BAD_S else "note", what, "let the nodes keep time by NTP (chrony)")
    if not answer["requeue"]:
        what = f"{node}: the job may not be requeued; a preempted or timed-out run could not go on by itself"
        yield Finding("requeue", "bad", what, "ask for requeueing to be allowed (a job_submit plugin forbids it)")
    said = "".join(f", {name} {version}" for name, version in answer["packages"].items() if name not in absent)
    gpus = f", {answer['gpus']} GPU" if probe.resources.gpus_per_node else ""
    python = f"Python {answer['python']}, egoscale {answer['egoscale']}"
    yield Finding("compute", "ok", f"{node}: {python}{said}{gpus}{clock}")
