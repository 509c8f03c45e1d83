"""Kill -9 of one rank of two, at steps drawn by lot: started again, the run equals one that was never broken.

As a program, `test_kills.py FOLDER KILLS MODEL:STAGE ...` trains the tiny run of worker.py, or a small model of one of
the stages that train, each at a ZeRO stage, twice: without a break and with KILLS of them. It imports torch once and
forks every rank of every attempt: a rank is a process of its own, and what kills it is a real signal.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
import pytest
import torch

STAGES = (1, 2, 3)
# Fine-tuning trains twice: the policy, then a world model behind the robot's slot.
MODELS = ("tiny", "tokenizer", "latent-action", "world", "finetune", "finetune-slot")
ONCE = ["tokenizer:1", "latent-action:2", "world:3", "finetune:1", "finetune-slot:2"]
NUM_STEPS, SAVE_EVERY, NUM_CLIPS = 40, 5, 1000
SURVIVOR_S = 60.0  # a rank whose partner is gone must end by itself


def attempt(rank_does: Callable[[int], None]) -> list[dict[str, Any]]:
    """Two ranks, each a fork of this process; how each ended: exit code (minus the signal) and seconds after the first
    to end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    sys.stdout.flush()
    ranks: dict[int, int] = {}
    for rank in (0, 1):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                rank_does(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        ranks[pid] = rank
    ends: list[dict[str, Any]] = [{}, {}]
    first = float("inf")
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            first = min(first, time.monotonic())
            ended = {"code": os.waitstatus_to_exitcode(status), "after_s": round(time.monotonic() - first, 3)}
            ends[ranks.pop(pid)] |= ended
        elif time.monotonic() > first + SURVIVOR_S:
            for pid, rank in ranks.items():
                ends[rank]["stuck"] = True
                os.kill(pid, SIGKILL)
            first = float("inf")
        time.sleep(0.005)
    return ends


def clips_at(step: int) -> list[int]:
    from egoscale.train.order import draws

    return [int(u * NUM_CLIPS) for u in draws(0, "kills", step, 8, 1)[:, 0]]


def made(model: str) -> tuple[torch.nn.Module, Callable[[str], float] | None]:
    """A small model of a stage, and its learning rate scale."""
    import worker

    from egoscale.models.dynamics import WorldModel
    from egoscale.models.latent_action import LatentActionModel
    from egoscale.models.policy import ActionConditionedWorld, ActionSlot, Policy
    from egoscale.models.video_tokenizer import VideoTokenizer
    from egoscale.recipe import BlockSpec, LatentActionSpec, PolicySpec, WorldSpec
    from egoscale.stages.finetuning import policy_scale, slot_scale

    torch.manual_seed(0)
    blocks = BlockSpec(width=32, num_layers=2)
    sizes = {"num_latents": 9, "latent_dim": 4}
    if model == "tiny":
        return worker.Tiny(), None
    if model == "tokenizer":
        both = {"encoder": blocks.model_dump(), "decoder": blocks.model_dump(), "max_mask_fraction": 0.75}
        return VideoTokenizer(image_size_px=16, patch_size_px=4, num_latents=4, latent_dim=4, **both), None
    if model == "latent-action":
        given = LatentActionSpec(encoder=blocks, decoder=blocks).model_dump(exclude={"beta_warmup_fraction"})
        return LatentActionModel(**given, **sizes, max_stride_frames=5), None
    world = WorldModel(**WorldSpec(blocks=blocks).model_dump(), **sizes, action_dim=8, num_strides=2)
    if model == "world":
        return world, None
    if model == "finetune":
        policy = Policy(world, proprioception_dim=3, motor_dim=4, **PolicySpec().model_dump())
        return policy, lambda name: policy_scale(name, 0.1)
    return ActionConditionedWorld(world, ActionSlot(4, 3, 8, 16)), slot_scale


def batch_of(model: str, clips: list[int], step: int) -> dict[str, torch.Tensor]:
    """A batch of these clips for a model: numbers that follow from the clip alone."""
    from egoscale.train.order import draws, normal

    def noise(name: str, *shape: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([normal(0, name, clip, shape) for clip in clips]))

    def uniform(name: str, *shape: int) -> torch.Tensor:
        rows = [draws(0, name, clip, 1, max(1, math.prod(shape))).reshape(shape) for clip in clips]
        return torch.from_numpy(np.stack(rows)).float()

    B, T = len(clips), 4
    robot = {"motor": noise("motor", T, 4), "proprioception": noise("proprioception", T, 3)}
    if model == "tiny":
        y = torch.from_numpy(draws(0, "y", step, B, 1)[:, 0]).float()
        return {"x": noise("clip", 8), "y": y, "noisy": torch.ones(B, dtype=torch.bool)}
    if model == "tokenizer":
        frames = (255 * uniform("frames", 2, 3, 16, 16)).to(torch.uint8)
        return {"frames": frames, "mask_draw": uniform("mask"), "mask_noise": uniform("noise", 2, 16)}
    if model == "latent-action":
        pair = {"first": noise("first", 9, 4), "second": noise("second", 9, 4), "stride": torch.ones(B).long()}
        return {**pair, "noise": noise("noise", 32), "beta_scale": uniform("beta")}
    if model == "finetune":
        words = (500 * uniform("words", 8)).long()
        frame = {"latents": noise("latents", 9, 4), "words": words, "motor_mask": torch.ones(B, T)}
        return {**frame, "motor": robot["motor"], "proprioception": robot["proprioception"][:, 0]}
    window = {
        "latents": noise("latents", T, 9, 4),
        "noise": noise("noise", T, 9, 4),
        "has_action": uniform("known", T) > 0.1,
        "tau_draw": uniform("tau", T),
        "step_draw": uniform("step"),
        "shortcut": uniform("shortcut") < 0.25,
        "num_clean": torch.ones(B).long(),
    }
    if model == "finetune-slot":
        return {**window, **robot}
    agent = {"agent_latents": noise("agent", 2, 9, 4), "agent_words": (500 * uniform("words", 2, 8)).long()}
    return {**window, **agent, "actions": noise("actions", T, 8), "agent_codes": noise("codes", 2, 2, 8)}


def train_here(out: Path, model: str, stage: int, rank: int, kill: dict[str, Any] | None) -> None:
    """One rank of one attempt in the folder `out`; with `kill`, that rank ends some milliseconds into that step."""
    import worker

    from egoscale.train.ranks import ranks

    torch.set_num_threads(1)
    order = os.open(out / f"order-{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    armed = kill is not None and kill["rank"] == rank

    def at(step: int) -> dict[str, torch.Tensor]:
        nonlocal armed
        clips = clips_at(step)
        os.write(order, json.dumps({"step": step, "clips": clips}).encode() + b"\n")  # one call: never torn
        if armed and kill is not None and step >= kill["step"]:
            armed = False
            threading.Timer(kill["delay_s"], os.kill, (os.getpid(), SIGKILL)).start()
        return batch_of(model, clips, step)

    def keep(full: dict[str, torch.Tensor]) -> None:
        torch.save(full, out / "weights.pt")

    settings = worker.spec(num_steps=NUM_STEPS, save_every_steps=SAVE_EVERY, zero_stage=stage, micro_batch_size=2)
    with ranks() as group:
        module, scale = made(model)
        worker.run(out, group, settings, at, weights=keep, model=module, learning_rate_scale=scale)


def break_often(folder: Path, model: str, stage: int, num_kills: int) -> None:
    """The two run folders of a stage, and what became of every attempt."""
    whole, broken = folder / "unbroken", folder / "broken"
    for out in (whole, broken):
        out.mkdir(parents=True)
    seen: dict[str, Any] = {"unbroken": attempt(lambda rank: train_here(whole, model, stage, rank, None)), "kills": []}
    lots = np.random.default_rng([stage, num_kills, MODELS.index(model)])
    for step in sorted(lots.choice(int(0.8 * NUM_STEPS), num_kills, replace=False).tolist()):
        kill = {"step": step, "rank": int(lots.integers(2)), "delay_s": float(lots.uniform(0, 0.03))}
        ends = attempt(lambda rank, kill=kill: train_here(broken, model, stage, rank, kill))
        seen["kills"].append({**kill, "ends": ends})
    seen["last"] = attempt(lambda rank: train_here(broken, model, stage, rank, None))
    (folder / "seen.json").write_text(json.dumps(seen, indent=1))


def main(folder: Path, num_kills: int, runs: list[str]) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from egoscale.train.engine import _deepspeed

    _deepspeed()
    # A first engine takes 2 s for the first two.
    for late in ("torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer", "egoscale.stages.finetuning"):
        importlib.import_module(late)
    for run in runs:
        model, stage = run.split(":")
        break_often(folder / run, model, int(stage), num_kills)


def order_of(out: Path, rank: int) -> list[tuple[int, list[int]]]:
    lines = (out / f"order-{rank}.jsonl").read_text().splitlines()
    return [(line["step"], line["clips"]) for line in map(json.loads, lines)]


def broken_often(folder: Path, num_kills: int, runs: list[str], limit_s: float = 590) -> Path:
    """Run this file as a program."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(folder), str(num_kills), *runs]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=limit_s, check=False)
    (folder / "said.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def check(worker, folder: Path, run: str, num_kills: int) -> None:
    """Read the outcome from the two run folders."""
    said = (folder / "said.txt").read_text()
    folder = folder / run
    seen = json.loads((folder / "seen.json").read_text())
    whole, broken = folder / "unbroken", folder / "broken"
    for ends in (seen["unbroken"], seen["last"]):
        assert [end["code"] for end in ends] == [0, 0], said
    assert len(seen["kills"]) == num_kills
    for kill in seen["kills"]:
        killed, survivor = kill["ends"][kill["rank"]], kill["ends"][1 - kill["rank"]]
        assert killed["code"] == -SIGKILL, kill
        assert survivor["code"] > 0 and "stuck" not in survivor, kill  # it fails by itself, and soon

    for rank in (0, 1):
        straight, bent = order_of(whole, rank), order_of(broken, rank)
        assert straight == [(step, clips_at(step)) for step in range(NUM_STEPS)]
        assert dict(bent) == dict(straight) and all(pair in straight for pair in bent)
        steps = [step for step, _ in bent]
        backs = [after for before, after in itertools.pairwise(steps) if after != before + 1]
        assert all(step % SAVE_EVERY == 0 for step in backs) and len(backs) <= num_kills
    resumes = [event["step"] for event in worker.events(broken) if event["event"] == "resume"]
    assert resumes == sorted(resumes) and set(resumes) <= set(range(SAVE_EVERY, NUM_STEPS, SAVE_EVERY))
    assert not [event for event in worker.events(broken) if event["event"] == "fallback"]
    assert worker.trace(broken) == worker.trace(whole)
    assert [line["step"] for line in worker.trace(broken)] == list(range(1, NUM_STEPS + 1))
    one, other = (torch.load(out / "weights.pt") for out in (whole, broken))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    return broken_often(tmp_path_factory.mktemp("once"), 1, ONCE)


@pytest.fixture(scope="module", params=MODELS)
def ten(request, tmp_path_factory) -> tuple[str, Path]:
    model = request.param
    if model != "tiny" and "slow" not in request.config.getoption("markexpr"):
        pytest.skip("ten kills of every model take ten minutes: pytest -m slow tests/train/test_kills.py")
    runs = [f"{model}:{stage}" for stage in STAGES]
    return model, broken_often(tmp_path_factory.mktemp("ten"), 10, runs, 3500)


@pytest.mark.ranks
@pytest.mark.parametrize("run", ONCE)
def test_a_killed_rank_of_any_stage_that_trains_changes_nothing(worker, once, run):
    check(worker, once, run, 1)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(3600)  # a busy machine takes long to start 36 pairs of processes
@pytest.mark.parametrize("stage", STAGES)
def test_ten_killed_ranks_change_nothing(worker, ten, stage):
    model, folder = ten
    check(worker, folder, f"{model}:{stage}", 10)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
