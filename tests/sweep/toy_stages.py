"""Stages that take no time, to sweep with: real run folders, locks, events, results; meaningless numbers.

`toy.json` in the root of the runs says how a stage behaves: {"world": "fail"}, {"seconds": 0.5}. `main` is a
sweep in a process of its own, to be killed.
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
    (root / "toy.json").write_text(json.dumps(behaviour))


def execute(run_path: str, report: Callable[[Mapping[str, Any]], None]) -> None:
    folder = RunFolder.open(run_path)
    toy = folder.root / "toy.json"
    behaviour = json.loads(toy.read_text()) if toy.is_file() else {}
    for source in folder.inputs().values():
        assert source.state() == "done", f"{source} is {source.state()}"
    with folder.lock():
        folder.event("start")
        what = behaviour.get(folder.stage)
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
        for step in range(1, 5):
            time.sleep(behaviour.get("seconds", 0.0) / 4)
            report({"done": step, "total": 4, "unit": "steps"})
        if what == "threads":
            folder.finish({"threads": os.environ["OMP_NUM_THREADS"]})
        else:
            folder.finish(RESULTS.get(folder.stage, {"stage": folder.stage}))


def compute(root: Path, planned: Plan, jobs: int = 2, **options: Any) -> Summary:
    return run(planned, root, execute, jobs, **options)


def main() -> None:
    """Sweep in this process; exits as the command line would."""
    done = run(plan(sweep()), Path(sys.argv[1]), "toy_stages:execute", 2)
    print(f"{done.done} done", *done.failed.values(), flush=True)
    sys.exit(130 if done.interrupted else 0 if done.complete else 1)
