"""A real Slurm of several nodes on this machine: own daemons, ports and keys, all below one folder.

Each node is a `slurmd -N` of its own. What a line of the configuration is for stands beside it; without GPUs the nodes
still claim some, so that jobs of real shapes can be scheduled.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"  # where Debian keeps the daemons


def missing() -> str:
    """Debian packages that are needed and absent."""
    return " ".join(package for program, package in PROGRAMS.items() if not shutil.which(program, path=PATH))


class Cluster:
    """`with Cluster(folder) as cluster`: partitions main, high (over it), low and grace (requeued for the
    others, at once or with a minute to save)."""

    def __init__(self, folder: Path, nodes: int = 4, cpus: int = 2, gpus: int = 8, extra: str = "") -> None:
        self.folder, self.nodes = folder, [f"node{i + 1}" for i in range(nodes)]
        self.conf = folder / "slurm.conf"
        folder.chmod(0o755)  # munge wants its socket within everybody's reach
        for part in ("run", "log", "state", "dev", *(f"spool/{node}" for node in self.nodes)):
            (folder / part).mkdir(parents=True, exist_ok=True)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._hosts = False
        self._configure(cpus, gpus, extra)

    def _configure(self, cpus: int, gpus: int, extra: str) -> None:
        me, host, here = pwd.getpwuid(os.getuid()).pw_name, socket.gethostname().split(".")[0], self.folder
        port = _free_ports(len(self.nodes) + 2)
        for i in range(gpus):
            with contextlib.suppress(OSError):  # a copy of /dev/null: Slurm takes no GPU without a device
                os.mknod(here / f"dev/gpu{i}", 0o20666, os.makedev(1, 3))
        (here / "gres.conf").write_text(f"Name=gpu File={here}/dev/gpu[0-{gpus - 1}]\n")
        self.conf.write_text(
            f"""
ClusterName=egoscale
SlurmctldHost={host}(127.0.0.1)
SlurmUser={me}
SlurmdUser={me}
SlurmctldPort={port}
StateSaveLocation={here}/state
SlurmctldPidFile={here}/run/slurmctld.pid
SlurmctldLogFile={here}/log/slurmctld.log
SlurmdSpoolDir={here}/spool/%n
SlurmdPidFile={here}/run/slurmd.%n.pid
SlurmdLogFile={here}/log/slurmd.%n.log
AuthType=auth/munge
# A key and socket of our own; a requeued job may start again after 5 s, not after 120.
AuthInfo=socket={here}/run/munge.socket,cred_expire=5
# No systemd and no control groups here.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
# Believe what the nodes claim.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=200
GresTypes=gpu
SlurmdTimeout=10
ReturnToService=2
# From TERM to KILL. Slurm's own default is 30; the job script needs a few seconds of it, on a busy machine more.
KillWait=20
JobRequeue=1
# Ranks find each other at a port that is made from the job's id: two clusters on one machine keep apart.
FirstJobId={random.randrange(1, 9000)}
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
PriorityType=priority/multifactor
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{extra}
NodeName=node[1-{len(self.nodes)}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{port + 1}-{port + len(self.nodes)}] \
CPUs={cpus} RealMemory=8000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE DefaultTime=10
PartitionName=high Nodes=ALL PriorityTier=20 PreemptMode=OFF MaxTime=INFINITE DefaultTime=10
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 MaxTime=INFINITE DefaultTime=10
PartitionName=grace Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=INFINITE DefaultTime=10
"""
        )

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to talk to this cluster."""
        return {"SLURM_CONF": str(self.conf), "PATH": PATH}

    def command(self, *words: str, check: bool = True) -> str:
        """Output of a Slurm command."""
        done = subprocess.run(words, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}{done.stdout}")
        return done.stdout

    def start(self, name: str) -> None:
        """Start a daemon: munged, slurmctld, or a node by its name."""
        run, log = self.folder / "run", self.folder / "log"
        if name == "munged":
            key = self.folder / "munge.key"
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(128))
            command = ["munged", "--foreground", f"--key-file={key}", f"--socket={run}/munge.socket"]
            command += [f"--pid-file={run}/munged.pid", f"--seed-file={run}/munged.seed"]
            command += [f"--log-file={log}/munged.log"]
        elif name == "slurmctld":
            command = ["slurmctld", "-D"]
        else:
            command = ["slurmd", "-D", "-N", name]
        with (log / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                command, env={**os.environ, **self.environment}, stdout=out, stderr=out, start_new_session=True
            )

    def lose(self, node: str) -> None:
        """Kill a node: its daemon, and all that runs on it; Slurm hears of it at once, not after half a minute."""
        self.kill(node)
        here = {f"SLURM_CONF={self.conf}", f"SLURMD_NODENAME={node}"}
        dead = _with_environment(*here)
        dead += [parent for parent in map(_parent, dead) if b"slurmstepd" in _command(parent)]
        for process in dict.fromkeys(reversed(dead)):  # those that watch over the others first: they would report
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.command("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def restore(self, node: str) -> None:
        """Bring a lost node back."""
        self.start(node)
        state = ("sinfo", "-h", "-n", node, "-o", "%T")
        _wait(lambda: "idle" in self.command(*state, check=False), f"{node} does not come back")

    def restart_controller(self, away_s: float, number: signal.Signals = signal.SIGTERM) -> None:
        """End the controller, and start it again after a while."""
        self.kill("slurmctld", number)
        time.sleep(away_s)
        self.start("slurmctld")

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill a daemon; a killed node is noticed by Slurm after about 25 s."""
        daemon = self._daemons.pop(name)
        daemon.send_signal(number)
        daemon.wait()

    def __enter__(self) -> Cluster:
        try:
            self.start("munged")
            _wait(lambda: (self.folder / "run/munge.socket").exists(), "munged makes no socket")
            self.start("slurmctld")
            for node in self.nodes:
                self.start(node)
            self._name_hosts()
            _wait(lambda: "idle" in self.command("sinfo", "-h", "-o", "%T", check=False), "no node is idle")
            # sinfo says idle while launching still fails: one real step is the proof.
            _wait(lambda: len(self.step_hosts()) == len(self.nodes), "no step runs on all nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def step_hosts(self) -> list[str]:
        """Names of the nodes on which a step over all of them ran."""
        nodes = str(len(self.nodes))
        step = ("srun", "-t1", f"-N{nodes}", f"-n{nodes}", "printenv", "SLURMD_NODENAME")
        return self.command(*step, check=False).split()

    def _name_hosts(self) -> None:
        """Nodes by name in /etc/hosts: ranks look for the first of them, and would wait for ever."""
        with contextlib.suppress(OSError), Path("/etc/hosts").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(f"127.0.0.1 {' '.join(self.nodes)} # {self.folder}\n")
            self._hosts = True

    def __exit__(self, *_: object) -> None:
        if (self.folder / "run/munge.socket").exists():
            self.command("scancel", "--me", check=False)
        for name in [*self.nodes, "slurmctld", "munged"]:
            if name in self._daemons:
                self.kill(name, signal.SIGKILL if name.startswith("node") else signal.SIGTERM)
        for process in _with_environment(f"SLURM_CONF={self.conf}"):  # steps outlive their slurmd
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        if self._hosts:
            with Path("/etc/hosts").open("r+") as hosts:
                fcntl.flock(hosts, fcntl.LOCK_EX)  # another cluster may come or go just now
                kept = [line for line in hosts.read().splitlines() if not line.endswith(f"# {self.folder}")]
                hosts.seek(0)
                hosts.write("\n".join(kept) + "\n")  # in place: a container's /etc/hosts cannot be replaced
                hosts.truncate()


def _wait(until: object, what: str, seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            if until():  # type: ignore[operator]
                return
        time.sleep(0.1)
    raise RuntimeError(what)


def _free_ports(count: int) -> int:
    """First of `count` unused ports, below the kernel's own range and below those that jobs take (20000 and up)."""
    for _ in range(200):
        first = random.randrange(12_000, 19_900)
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for port in range(first, first + count):
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise RuntimeError("no free ports")


def _with_environment(*entries: str) -> list[int]:
    """Processes that were started with all this in their environment, but for this one."""
    found, wanted = [], {entry.encode() for entry in entries}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")) and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def _parent(process: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _command(process: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""
