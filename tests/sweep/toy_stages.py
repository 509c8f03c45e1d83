"""Stages that take no time, to sweep with: real run folders, locks, events, results; meaningless numbers.

`toy.json` in the root of the runs says how a stage, or a single run, behaves: {"world": "fail"}, {"film/ab12…":
"saves"}, {"seconds": 0.5}. `main` is a sweep in a process of its own, to be killed.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from egoscale.recipe import SweepRecipe, load_recipe
from egoscale.sweep.ledger import RunFolder
from egoscale.sweep.local import Summary, run
from egoscale.sweep.lock import of_this_attempt, write_whole
from egoscale.sweep.plan import Plan, plan

RECIPE = Path(__file__).resolve().parents[2] / "recipes/sweeps/tabletop.toml"
SMALL = (
    "grid.hours=[0.0, 0.25]",
    "grid.demos=[5]",
    "grid.seeds=[0]",
    "grid.arms=['latent']",
    "grid.scratch_demos=[]",
    "tokenizer_hours=0.25",
    "film.hours=1.4",
    "teleop.num_demos=60",
)

RESULTS: dict[str, dict[str, Any]] = {
    "subset": {"hours": 0.24, "hash": "abc"},
    "world": {"world_loss": 0.5, "prior_loss": 0.4, "target_r2": 0.3},
    "evaluate": {"successes": 3, "trials": 12, "per_verb": {"touch": [2, 6], "lift": [1, 6]}},
}


def sweep(*overrides: str) -> SweepRecipe:
    """The shipped study, small."""
    read = load_recipe(RECIPE, [*SMALL, *overrides])
    assert isinstance(read, SweepRecipe)
    return read


def behave(root: Path, **behaviour: Any) -> None:
    root.mkdir(parents=True, exist_ok=True)
    write_whole(root / "toy.json", json.dumps(behaviour))


def _behaviour(root: Path) -> dict[str, Any]:
    toy = root / "toy.json"
    return dict(json.loads(toy.read_text())) if toy.is_file() else {}


def execute(run_path: str, report: Callable[[Mapping[str, Any]], None]) -> None:
    folder = RunFolder.open(run_path)
    behaviour = _behaviour(folder.root)
    for source in folder.inputs().values():
        assert source.state() == "done", f"{source} is {source.state()}"
    if behaviour.get(folder.stage) == "apart" and os.environ.get("SLURM_PROCID", "0") != "0":
        _apart(folder)
        return
    with folder.lock():
        if folder.result() is not None:
            return
        folder.event("start", node=os.environ.get("SLURMD_NODENAME", ""))
        what = behaviour.get(str(folder), behaviour.get(folder.stage))
        if what == "fail":
            raise ValueError("clip kitchen/17: duration_s = -1: delete the file")
        if what == "full":
            raise OSError(errno.ENOSPC, "No space left on device", "weights.bin")
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "requeue" and sum(event["event"] == "start" for event in folder.events()) < 2:
            raise SystemExit(85)
        if what == "exit":
            raise SystemExit(3)
        if what == "nothing":
            return
        if what == "child":  # a stage that starts processes of its own
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            (folder.root / "child.pid").write_text(str(child.pid))
            child.wait()
        if what == "deaf":
            _deaf()
        if what in ("saves", "apart"):
            _in_steps(folder)
        for step in range(1, 5):
            time.sleep(behaviour.get("seconds", 0.0) / 4)
            report({"done": step, "total": 4, "unit": "steps"})
        if what == "threads":
            folder.finish({"threads": os.environ["OMP_NUM_THREADS"]})
        elif what == "environment":
            folder.finish({"environment": dict(os.environ)})
        else:
            folder.finish(RESULTS.get(folder.stage, {"stage": folder.stage}))


def _deaf() -> None:
    """Hears no signal, and never ends."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1)


def _apart(folder: RunFolder) -> None:
    """A rank that works with rank 0 to the end: it says on which node. Without rank 0 it fails, as a rendezvous."""
    if folder.holder() is None or not of_this_attempt(folder.path / "lock"):
        raise ConnectionError("rank 0 is not there")
    (folder.path / "rank1").write_text(os.environ.get("SLURMD_NODENAME", ""))
    while folder.result() is None:
        time.sleep(0.2)


def _in_steps(folder: RunFolder) -> None:
    """A line in `steps.txt` for each step, until there are as many as `toy.json` says, which may change meanwhile; a
    signal ends it after a step, and it goes on from there."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: asked.append(number))
    steps = folder.path / "steps.txt"
    step = len(steps.read_text().splitlines()) if steps.is_file() else 0
    while step < _behaviour(folder.root).get("steps", 4):
        time.sleep(0.25)
        with steps.open("a") as file:
            file.write(f"{step}\n")
        step += 1
        if asked:
            folder.event("save", step=step)
            folder.event("requeue", signal=signal.Signals(asked[0]).name)
            raise SystemExit(85)


def compute(root: Path, planned: Plan, jobs: int = 2, **options: Any) -> Summary:
    return run(planned, root, execute, jobs, **options)


def main() -> None:
    """Sweep in this process; exits as the command line would."""
    done = run(plan(sweep()), Path(sys.argv[1]), "toy_stages:execute", 2)
    print(f"{done.done} done", *done.failed.values(), flush=True)
    sys.exit(130 if done.interrupted else 0 if done.complete else 1)
