"""Kill -9 in the middle of every stage that trains: started again, its run folder holds what an unbroken run's does.

As a program, `test_kill_stages.py ROOT` goes through a tiny sweep up to fine-tuning, a process for each attempt at each
run. Of a stage that trains it keeps the run that was never broken under ROOT/unbroken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STEPS, SLOT_STEPS, SAVE_EVERY = 8, 5, 2
# Where a stage is killed: after a step, of a training of so many steps. Fine-tuning trains twice.
KILLS = {
    "tokenizer": [(5, STEPS)],
    "latent-action": [(5, STEPS)],
    "world": [(5, STEPS)],
    "finetune": [(5, STEPS), (3, SLOT_STEPS)],
}
SMALL = [
    "grid.hours=[0.03]",
    "grid.demos=[4]",
    "grid.seeds=[0]",
    "tokenizer_hours=0.02",
    "film.hours=0.06",
    "film.num_participants=8",
    "film.num_scenes=10",
    "teleop.num_demos=5",
    "world.train.batch_size=4",
    "world.agent_frames=2",
    "world.model.blocks.width=32",
    *(
        f"{table}.{key}"
        for table in ("tokenizer.train", "latent_action.train", "world.train", "finetune.train", "finetune.world_train")
        for key in (
            f"num_steps={SLOT_STEPS if 'world_train' in table else STEPS}",
            f"save_every_steps={SAVE_EVERY}",
            "log_every_steps=1",
        )
    ),
]
CLOCKS = ("samples_per_s", "frames_per_s", "tokens_per_s", "wait_fraction", "data_", "forward_", "mfu", "gemm_")
CLOCKS += ("goodput",)


def attempt(run: Path, kill: tuple[int, int] | None = None) -> int:
    """Work on a run in a fork of this process; its exit code, negative for a signal."""
    pid = os.fork()
    if not pid:
        from egoscale.stages import execute

        def report(now: Any) -> None:
            if (now["done"], now["total"], now["unit"]) == (*(kill or (0, 0)), "steps"):
                os.kill(os.getpid(), SIGKILL)

        code = 1
        try:
            execute(str(run), report)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(root: Path) -> None:
    import importlib

    import torch

    from egoscale.recipe import load_recipe
    from egoscale.stages import MODULES
    from egoscale.sweep.plan import plan
    from egoscale.train.engine import _deepspeed

    _deepspeed()
    # Once for all attempts; the last two are what a first engine takes 2 s for.
    for module in (*MODULES, "torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer"):
        importlib.import_module(module)
    torch.set_num_threads(1)
    codes: dict[str, list[int]] = {}
    for job in plan(load_recipe(ROOT / "recipes" / "sweeps" / "tabletop.toml", SMALL)).jobs.values():
        run = job.create(root).path
        if job.stage == "evaluate":
            continue
        codes[job.stage] = [attempt(run)]
        if job.stage in KILLS:
            aside = root / "unbroken" / job.stage
            aside.parent.mkdir(exist_ok=True)
            run.rename(aside)
            job.create(root)
            codes[job.stage] += [attempt(run, kill) for kill in KILLS[job.stage]] + [attempt(run)]
            (root / "unbroken" / f"{job.stage}.txt").write_text(str(run))
    (root / "codes.json").write_text(json.dumps(codes))


@pytest.fixture(scope="module")
def done(tmp_path_factory, drawing) -> tuple[Path, dict[str, list[int]]]:
    root = tmp_path_factory.mktemp("kills")
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(root)]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    codes = json.loads((root / "codes.json").read_text())
    assert all(codes[stage][0] == 0 for stage in codes), ended.stdout + ended.stderr
    return root, codes


def unclocked(table: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on the clock."""
    return {
        key: unclocked(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if not key.startswith(CLOCKS)
    }


def lines(path: Path) -> list[dict[str, Any]]:
    return [unclocked(json.loads(line)) for line in path.read_text().splitlines()]


@pytest.mark.sim
@pytest.mark.parametrize("stage", KILLS)
def test_a_killed_stage_ends_as_if_never_killed(done, stage):
    import torch
    from safetensors.torch import load_file

    root, codes = done
    whole, broken = root / "unbroken" / stage, Path((root / "unbroken" / f"{stage}.txt").read_text())
    assert codes[stage] == [0, *[-SIGKILL] * len(KILLS[stage]), 0]
    events = lines(broken / "events.jsonl")
    assert [event["event"] for event in events].count("start") == 1 + len(KILLS[stage])
    resumes = [event["step"] for event in events if event["event"] == "resume"]
    # Fine-tuning was killed in its first training, then in its second: the first one is not done again.
    assert resumes == ([4] if stage != "finetune" else [4, 2])

    parts = [Path(), Path("slot")] if stage == "finetune" else [Path()]
    for part, steps in zip(parts, (STEPS, SLOT_STEPS), strict=False):
        trace = lines(broken / part / "metrics.jsonl")
        assert trace == lines(whole / part / "metrics.jsonl")
        assert [line["step"] for line in trace] == list(range(1, steps + 1))
        one, other = (load_file(run / part / "weights" / "weights.safetensors") for run in (whole, broken))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        assert not (broken / part / "checkpoints").exists()
    one, other = (unclocked(json.loads((run / "result.json").read_text())) for run in (whole, broken))
    assert one == other  # and with it the hours of video that it saw


if __name__ == "__main__":
    main(Path(sys.argv[1]))
