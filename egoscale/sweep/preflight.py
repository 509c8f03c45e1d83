"""A look at a cluster before the first job: what a profile asks for against what Slurm offers, then a small job on the
compute nodes themselves. Every fault comes with its remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from egoscale.doctor import Finding
from egoscale.recipe import STAGES
from egoscale.sweep import slurm
from egoscale.sweep.probe import PROBE_WAIT_S, probes
from egoscale.sweep.profile import Profile, ResourceSpec
from egoscale.sweep.script import render
from egoscale.sweep.site import Node, Partition, associations, nodes, partitions


def examine(profile: Profile, root: Path, wait_s: float = PROBE_WAIT_S) -> Iterator[Finding]:
    """Look at everything that a study's jobs will need; `root` is where the runs will be. Sends one small job for each
    kind of place (partition, with GPUs or without, one node or several), and waits `wait_s` for it to start.

    Nothing is left behind but what stood there before; jobs that did not start in time are cancelled.
    """
    try:
        offered = partitions()
        settings = slurm.limits()
    except slurm.SlurmError as error:
        yield Finding("Slurm", "bad", str(error), "run this on a login node; `scontrol ping` says whether it is up")
        return
    yield Finding("Slurm", "ok", settings.get("SLURM_VERSION", "answers"))
    classes = _classes(profile)
    yield from _account(profile, offered, classes)
    yield from _limits(profile, settings)
    sound: dict[str, Sequence[str]] = {}
    for name, stages in classes.items():
        found = list(_class(profile, name, stages, offered, settings))
        yield from found
        if all(finding.level != "bad" for finding in found):
            sound[name] = stages
    yield from probes(profile, sound, root, wait_s)


def _classes(profile: Profile) -> dict[str, list[str]]:
    """Classes of resources that stages and the conclusion take, each with their names."""
    found: dict[str, list[str]] = {}
    for stage in STAGES:
        if stage != "sweep":
            found.setdefault(profile.resource_class(stage), []).append(stage)
    found.setdefault(profile.conclusion_class, []).append("conclusion")
    return found


def _partition(profile: Profile, resources: ResourceSpec, offered: Mapping[str, Partition]) -> Partition | None:
    """Where jobs of a class go: of several ("gpu,spare") the first that is up; None where one of them is unknown."""
    asked = resources.partition or profile.partition
    if not asked:
        return next((partition for partition in offered.values() if partition.default), None)
    if not set(asked.split(",")) <= offered.keys():
        return None
    named = [offered[name] for name in asked.split(",")]
    return next((partition for partition in named if partition.up), named[0])


def _account(
    profile: Profile, offered: Mapping[str, Partition], classes: Mapping[str, Sequence[str]]
) -> Iterator[Finding]:
    mine = associations()
    if mine is None:
        yield Finding("account", "note", "the cluster keeps no accounts, so whether yours is allowed is not known")
    elif not mine:
        yield Finding("account", "note", "accounting knows no account of this user", "ask your administrators for one")
    else:
        names = sorted({one.account for one in mine})
        if profile.account and profile.account not in names:
            remedy = f"account = one of {', '.join(names)}"
            yield Finding("account", "bad", f"account = {profile.account!r} is not one of yours", remedy)
        else:
            yield Finding("account", "ok", profile.account or f"your default, of {', '.join(names)}")
        allowed = [one for one in mine if one.account == (profile.account or one.account)]
        limits = [one.max_submit for one in allowed if one.max_submit is not None]
        if limits and not 0 < profile.max_submitted <= min(limits):
            what = f"max_submitted = {profile.max_submitted}, but the account may have {min(limits)} jobs in the queue"
            yield Finding("account", "bad", what, f"max_submitted = {min(limits)}")
    for name in classes:
        partition = _partition(profile, profile.resources[name], offered)
        if partition is None or not profile.account:
            continue
        if profile.account in partition.denied or (partition.accounts and profile.account not in partition.accounts):
            allows = ", ".join(sorted(partition.accounts)) or f"all but {', '.join(sorted(partition.denied))}"
            what = f"partition {partition.name} does not take account {profile.account!r}; it takes {allows}"
            yield Finding("account", "bad", what, "take one of these accounts, or another partition")


def _limits(profile: Profile, settings: Mapping[str, str]) -> Iterator[Finding]:
    largest = settings.get("MaxArraySize", "")
    if largest.isdigit() and profile.max_array_size > int(largest):
        what = f"max_array_size = {profile.max_array_size}, but MaxArraySize of the cluster is {largest}"
        yield Finding("arrays", "bad", what, f"max_array_size = {largest}")
    else:
        yield Finding("arrays", "ok", f"of {profile.max_array_size} elements; the cluster takes {largest or '?'}")
    queue = settings.get("MaxJobCount", "")
    if queue.isdigit() and profile.max_submitted > int(queue):
        what = (
            f"max_submitted = {profile.max_submitted}, but the controller holds {queue} jobs (MaxJobCount) of all users"
        )
        yield Finding("arrays", "bad", what, f"max_submitted = {int(queue) // 2} or less")
    if settings.get("JobRequeue") == "0":
        yield Finding("requeue", "note", "JobRequeue = 0: jobs ask for it themselves (--requeue)")


def _class(
    profile: Profile,
    name: str,
    stages: Sequence[str],
    offered: Mapping[str, Partition],
    settings: Mapping[str, str],
) -> Iterator[Finding]:
    """One class of resources: its partition, its time, its nodes, and what Slurm says to such a job."""
    resources = profile.resources[name]
    where = f"[resources.{name}]"
    partition = _partition(profile, resources, offered)
    if partition is None:
        asked = resources.partition or profile.partition
        what = (
            f"{where}: there is no partition {asked!r}" if asked else f"{where}: the cluster has no default partition"
        )
        yield Finding("partition", "bad", what, f"partition = one of {', '.join(offered)}")
        return
    if not partition.up:
        what = f"{where}: partition {partition.name} is {partition.state}"
        yield Finding("partition", "bad", what, "wait for it, or take another (`sinfo`)")
        return
    yield Finding("partition", "ok", f"{where}: {partition.name}, for {', '.join(stages)}")
    if partition.max_time_min is not None and resources.time_limit_min > partition.max_time_min:
        most = f"{partition.max_time_min:g}"
        what = f"{where}: time_limit_min = {resources.time_limit_min}, but {partition.name} allows {most}"
        remedy = f"time_limit_min = {most}; a run that needs longer saves and goes on in the next job"
        yield Finding("time limit", "bad", what, remedy)
    if profile.signal_before_end_s >= resources.time_limit_min * 60:
        what = (
            f"{where}: signal_before_end_s = {profile.signal_before_end_s} is all of its {resources.time_limit_min} min"
        )
        yield Finding("time limit", "bad", what, "make it shorter, or the time limit longer")
    fits = list(_nodes(profile, name, resources, partition))
    yield from fits
    yield from _preemption(where, partition, settings)
    if not fits:
        try:
            script = render(profile, resources, "egoscale-doctor", Path("/dev/null"), Path("/tmp"), {0: "probe"}, "")
            slurm.run(["sbatch", "--test-only"], given=script)
        except slurm.SlurmError as error:
            what = f"{where}: Slurm would refuse such a job: {error}"
            yield Finding("partition", "bad", what, "change the key that it names, or ask your administrators")


def _nodes(profile: Profile, name: str, resources: ResourceSpec, partition: Partition) -> Iterator[Finding]:
    """What keeps a job of this class from ever finding its nodes."""
    there = nodes(partition.name)
    constraint = resources.constraint or profile.constraint
    kind = f", gpu_type = {resources.gpu_type!r}" if resources.gpu_type else ""
    cores = resources.cpus_per_task * resources.tasks_per_node
    features = ", ".join(sorted({feature for node in there for feature in node.features}))
    simple = constraint.replace("_", "").isalnum()  # an expression of several is left to Slurm
    asks: dict[str, tuple[Callable[[Node], bool], str, str]] = {
        "GPUs": (
            lambda node: node.num_gpus(resources.gpu_type) >= resources.gpus_per_node,
            f"gpus_per_node = {resources.gpus_per_node}{kind}",
            f"the largest node has {_gpus(there)}",
        ),
        "cores": (
            lambda node: node.cpus >= cores,
            f"cpus_per_task x tasks_per_node = {cores}",
            f"the largest node has {max((node.cpus for node in there), default=0)}",
        ),
        "memory": (
            lambda node: node.memory_mb >= resources.memory_gb_per_node * 1024,
            f"memory_gb_per_node = {resources.memory_gb_per_node:g}",
            f"the largest node has {max((node.memory_mb for node in there), default=0) / 1024:.1f}",
        ),
        "constraint": (
            lambda node: not simple or constraint in node.features,
            f"constraint = {constraint!r}",
            f"features of nodes are {features or 'none'}",
        ),
    }
    fitting = there
    for what, (fits, asked, has) in asks.items():
        fitting = [node for node in fitting if fits(node)]
        if len(fitting) < resources.num_nodes:
            said = f"[resources.{name}]: {len(fitting)} of {partition.name}'s {len(there)} nodes fit {asked}"
            need = f"; {resources.num_nodes} are asked for" if resources.num_nodes > 1 else ""
            yield Finding(what, "bad", f"{said}{need}", f"ask for what is there: {has}")
            return
    usable = sum(node.usable for node in fitting)
    if usable < resources.num_nodes:
        states = ", ".join(sorted({node.state for node in fitting}))
        what = (
            f"[resources.{name}]: {usable} of {len(fitting)} fitting nodes are up, {resources.num_nodes} are asked for"
        )
        yield Finding("nodes", "bad", f"{what} (they are {states})", "wait for them (`sinfo -R` says why)")


def _gpus(there: Sequence[Node]) -> str:
    most = max(there, key=lambda node: sum(node.gpus.values()), default=None)
    if most is None or not most.gpus:
        return "none"
    return ", ".join(f"{count} x {kind or 'gpu'}" for kind, count in most.gpus.items())


def _preemption(where: str, partition: Partition, settings: Mapping[str, str]) -> Iterator[Finding]:
    if partition.preempt_mode.startswith("CANCEL"):
        what = f"{where}: preempted jobs of {partition.name} are cancelled, not requeued"
        yield Finding("requeue", "note", what, "`egoscale sweep submit` again sends them, from their last checkpoint")
    elif partition.preempt_mode not in ("OFF", "GANG", "SUSPEND"):
        wait = settings.get("KillWait", "30 sec").split()[0]
        seconds = partition.grace_time_s + (int(wait) if wait.isdigit() else 0)
        what = f"{where}: preempted jobs of {partition.name} are requeued; a step has {seconds} s to finish and save"
        yield Finding("requeue", "note", what)
