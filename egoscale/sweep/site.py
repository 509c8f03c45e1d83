"""What a cluster offers, as Slurm tells it: partitions, nodes, and what an account may do."""

from __future__ import annotations

import getpass
import re
from dataclasses import dataclass

from egoscale.sweep import slurm

# Beginnings of node states in which no job will start soon; a `*` at the end says that the node does not answer.
GONE = ("down", "drain", "fail", "unk", "err", "inval", "futu")


@dataclass(frozen=True)
class Partition:
    """One partition; `max_time_min` None = no limit, `accounts` and `denied` empty = everybody."""

    name: str
    state: str
    default: bool
    max_time_min: float | None
    max_nodes: int | None
    accounts: frozenset[str]
    denied: frozenset[str]
    preempt_mode: str
    grace_time_s: int

    @property
    def up(self) -> bool:
        return self.state == "UP"


@dataclass(frozen=True)
class Node:
    """One node of a partition. `gpus`: type ("" where the cluster names none) -> count."""

    name: str
    state: str
    cpus: int
    memory_mb: int
    gpus: dict[str, int]
    features: frozenset[str]

    @property
    def usable(self) -> bool:
        return not self.state.startswith(GONE) and not self.state.endswith("*")

    def num_gpus(self, kind: str) -> int:
        """GPUs of a type; of any where none is asked for."""
        return self.gpus.get(kind, 0) if kind else sum(self.gpus.values())


@dataclass(frozen=True)
class Association:
    """An account that this user may charge; `max_submit` None = no limit of its own."""

    account: str
    partition: str
    qos: frozenset[str]
    max_submit: int | None


def partitions() -> dict[str, Partition]:
    """Every partition by name. SlurmError where Slurm does not answer."""
    found = {}
    for line in slurm.run(["scontrol", "show", "partition", "--oneliner"]).splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split())
        if "PartitionName" in fields:
            name = fields["PartitionName"]
            found[name] = Partition(
                name,
                fields.get("State", ""),
                fields.get("Default") == "YES",
                minutes(fields.get("MaxTime", "")),
                _number(fields.get("MaxNodes", "")),
                _names(fields.get("AllowAccounts", "ALL")),
                _names(fields.get("DenyAccounts", "")),
                fields.get("PreemptMode", "OFF"),
                _number(fields.get("GraceTime", "")) or 0,
            )
    return found


def nodes(partition: str) -> list[Node]:
    """The nodes of a partition."""
    rows = slurm.run(["sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N|%T|%c|%m|%G|%f"])
    found = []
    for row in rows.splitlines():
        parts = row.strip().split("|")
        if len(parts) == 6:
            name, state, cpus, memory, gres, features = parts
            found.append(
                Node(name, state.lower(), _number(cpus) or 0, _number(memory) or 0, gpus(gres), _names(features))
            )
    return found


def associations() -> list[Association] | None:
    """This user's accounts; None where the cluster keeps none."""
    fields = "Account,Partition,QOS,MaxSubmitJobs"
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={getpass.getuser()}"]
    try:
        answer = slurm.run([*command, f"format={fields}"])
    except slurm.SlurmError:
        return None
    rows = [row.split("|") for row in answer.splitlines()]
    return [Association(row[0], row[1], _names(row[2]), _number(row[3])) for row in rows if len(row) == 4]


def gpus(gres: str) -> dict[str, int]:
    """GPUs in a node's generic resources: "gpu:h100:8(S:0-1),shard:16" -> {"h100": 8}."""
    found: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)gpu(?::([^:,(]+))?:(\d+)", gres):
        found[kind] = found.get(kind, 0) + int(count)
    return found


def minutes(duration: str) -> float | None:
    """Slurm's durations ("1-12:00:00", "02:30:00", "30:00", "30") in minutes; None = no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", duration)
    if not match:
        return None
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:  # days-hours[:minutes[:seconds]]
        hours, minute, second = (*parts, 0, 0)[:3]
        return int(days) * 1440 + hours * 60 + minute + second / 60
    if len(parts) == 1:
        return float(parts[0])
    hours, minute, second = parts if len(parts) == 3 else (0, *parts)
    return hours * 60 + minute + second / 60


def _number(text: str) -> int | None:
    match = re.match(r"\d+", text.strip())
    return int(match.group()) if match else None


def _names(text: str) -> frozenset[str]:
    return frozenset(name for name in text.split(",") if name and name not in ("ALL", "(null)"))
