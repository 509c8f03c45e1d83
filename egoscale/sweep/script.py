"""The script of a job array: the profile's options, and the template that they are put into.

Nothing of a user runs in it but the lines that a profile names `setup`: all else is checked, or quoted for the shell.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from egoscale.resources import find
from egoscale.sweep import slurm
from egoscale.sweep.profile import Profile, ResourceSpec
from egoscale.sweep.worker import threads_environment


def render(
    profile: Profile,
    resources: ResourceSpec,
    name: str,
    elements: Path,
    logs: Path,
    runs: Mapping[int, str],
    dependency: str,
) -> str:
    """The script of an array. What is not a checked option is quoted for the shell."""
    limit = f"%{resources.max_running}" if resources.max_running else ""
    options = {
        "job-name": name,
        "array": slurm.indices(runs) + limit,
        "output": f"{str(logs).replace('%', '%%')}/%x-%a.log",
        "open-mode": "append",
        "nodes": str(resources.num_nodes),
        "ntasks-per-node": str(resources.tasks_per_node),
        "cpus-per-task": str(resources.cpus_per_task),
        "time": str(resources.time_limit_min),
        "partition": resources.partition or profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "reservation": profile.reservation,
        "constraint": resources.constraint or profile.constraint,
        "mem": f"{resources.memory_gb_per_node * 1024:.0f}M" if resources.memory_gb_per_node else "",
        "dependency": dependency,
        "kill-on-invalid-dep": "yes" if dependency else "",
        # To the batch shell alone (B:), whose trap hands it to every rank.
        "signal": f"B:USR1@{profile.signal_before_end_s}" if profile.signal_before_end_s else "",
    }
    if resources.gpus_per_node:
        kind = f"{resources.gpu_type}:" if resources.gpu_type else ""
        gres = profile.gpu_count_option == "gres"
        options["gres" if gres else "gpus-per-node"] = f"{'gpu:' if gres else ''}{kind}{resources.gpus_per_node}"
    for key, value in options.items():
        if not set(value).isdisjoint("\"'\\`$#") or not value.isprintable() or " " in value:
            raise ValueError(
                f"--{key}={value!r}: a job script cannot hold this; choose a --root without spaces, quotes, "
                "`#`, `$`, backslashes or control characters"
            )
    directives = [f"#SBATCH --{key}={value}" for key, value in options.items() if value]
    directives.append("#SBATCH --requeue")
    setup = [f"module load {shlex.quote(module)}" for module in profile.modules] + list(profile.setup)
    setup += [f"export {key}={shlex.quote(value)}" for key, value in sorted(profile.environment.items())]
    # As on one machine: a library that starts a thread a core of the node is slow, and sums in another order.
    threads = threads_environment(resources.cpus_per_task)
    setup += [f"export {key}=${{{key}:-{value}}}" for key, value in threads.items()]
    step, within, beside = _container(profile, resources)
    values = {
        "DIRECTIVES": "\n".join(directives),
        "ELEMENTS": shlex.quote(str(elements)),
        "PYTHON": shlex.quote(profile.python or sys.executable),
        "TIME_LIMIT_S": str(resources.time_limit_min * 60),
        "SETUP": "\n".join(setup),
        "NODES": str(resources.num_nodes),
        "TASKS": str(resources.num_tasks),
        "CPUS": str(resources.cpus_per_task),
        "SRUN": step,
        "WITHIN": within,
        "BESIDE": beside,
    }
    template = find("slurm", "templates/array.sbatch").read_text()
    # In one pass: what is filled in may itself look like a mark, and stays as it is.
    return re.sub(r"@([A-Z_]+)@", lambda mark: values[mark[1]], template)


def _container(profile: Profile, resources: ResourceSpec) -> tuple[str, str, str]:
    """(options of srun, words before the command of a step, words before a command beside it) that put a job into its
    image: Pyxis does it to steps alone, so what runs beside the step is a small step too."""
    box = profile.container
    if box is None:
        return "", "", ""
    if box.kind == "pyxis":
        mounts = f" --container-mounts={shlex.quote(','.join(box.mounts))}" if box.mounts else ""
        image = f" --container-image={shlex.quote(box.image)}{mounts}"
        return image, "", f"srun --nodes=1 --ntasks=1 --cpus-per-task={resources.cpus_per_task}{image} "
    binds = "".join(f"--bind {shlex.quote(mount)} " for mount in box.mounts)
    within = f"apptainer exec --nv {binds}{shlex.quote(box.image)} "
    return "", within, within
