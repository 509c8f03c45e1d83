"""A tiny run of a model with space-time blocks, for tests of the engine's options: imported by them, and started by
them as one of two processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from egoscale.models.blocks import SpaceTimeStack
from egoscale.recipe import TrainSpec
from egoscale.train.engine import Engine
from egoscale.train.loop import train
from egoscale.train.order import draws, normal, rank_rows, rows_of
from egoscale.train.ranks import Ranks, ranks

BATCH = 4


class Net(nn.Module):
    """A linear layer in, three blocks (one of them temporal), a linear layer out; nothing starts at zero."""

    def __init__(self, width: int = 32, num_layers: int = 3, bias: bool = True, twice: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twice = twice  # two passes through the blocks in one step, as in a world model
        self.inner = nn.Linear(5, width, bias)
        self.trunk = SpaceTimeStack(width, num_layers, 4, 2)
        self.outer = nn.Linear(width, 5, bias)
        for parameter in self.parameters():
            if parameter.ndim == 2 and not parameter.any():
                nn.init.normal_(parameter, std=0.05)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x, y = batch["x"], batch["y"]
        loss = (self.outer(self.trunk(self.inner(x))) - y).square().mean()
        if self.twice:  # single frames, as an agent sees them
            loss = loss + (self.outer(self.trunk(self.inner(x[:, :1]))) - y[:, :1]).square().mean()
        return {"loss": loss}


def batch_at(step: int) -> dict[str, Tensor]:
    x = torch.from_numpy(normal(0, "x", step, (BATCH, 3, 6, 5)))
    y = torch.from_numpy(draws(0, "y", step, BATCH, 3 * 6 * 5)).float().view(BATCH, 3, 6, 5)
    return {"x": x, "y": y}


def spec(**changes: object) -> TrainSpec:
    given = {"num_steps": 6, "batch_size": BATCH, "warmup_steps": 2, "learning_rate": 0.01, "log_every_steps": 1}
    return TrainSpec.model_validate({**given, **changes})


def losses(group: Ranks, model: nn.Module | None = None, **changes: object) -> list[float]:
    """The loss of each step."""
    settings = spec(**changes)
    rows = rank_rows(settings.batch_size, group, settings.micro_batch_size)
    with Engine(model or Net(), settings, group) as engine:
        return [
            engine.step([rows_of(batch_at(step), part) for part in rows])["loss"] for step in range(settings.num_steps)
        ]


def run(out: Path, group: Ranks, stop_at: int | None = None, **changes: object) -> list[float]:
    """Train in a folder through the loop, or until the batch of step `stop_at` is asked for; the losses so far."""

    def event(name: str, **fields: object) -> None:
        with (out / "events.jsonl").open("a") as file:
            file.write(json.dumps({"event": name, **fields}, default=str) + "\n")

    def at(step: int) -> dict[str, Tensor]:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_at(step)

    with contextlib.suppress(SystemExit):
        train(Net(), spec(**changes), at, out, {"seed": 0}, group, event)
    lines = (out / "metrics.jsonl").read_text().splitlines() if group.main else []
    return [json.loads(line)["loss"] for line in lines]


def checkpoint_sizes(out: Path, group: Ranks) -> dict[str, list[int]]:
    """Of a checkpoint of AdamW and of Muon at each stage: bytes on disk, as predicted, and the weights trained."""
    found: dict[str, list[int]] = {}
    for optimizer in ("adamw", "muon"):
        for stage in (0, 1, 2, 3):
            settings, folder = spec(zero_stage=stage, optimizer=optimizer), out / f"size-{optimizer}-{stage}"
            model = Net(width=96)
            with Engine(model, settings, group, lambda name: 0.0 if name.startswith("outer") else 1.0) as engine:
                engine.step([rows_of(batch_at(0), part) for part in rank_rows(BATCH, group)])
                engine.save(folder, {})
                group.barrier()
                held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                found[f"{optimizer}-{stage}"] = [held, engine.checkpoint_bytes, engine.num_parameters]
    return found


def together(out: Path) -> None:
    """What two ranks do for the tests of this folder; rank 0 writes what it saw."""
    seen: dict[str, list[float]] = {}
    with ranks() as group:
        for stage in (0, 1, 2, 3):
            # No bias and no clipping: stage 3 adds biases, and all stages add up norms, in orders of their own.
            exact = {"zero_stage": stage, "optimizer": "muon", "clip_norm": 1e9, "precision": "bf16"}
            seen[f"muon-exact-{stage}"] = losses(group, Net(bias=False), **exact)
            seen[f"muon-{stage}"] = losses(group, zero_stage=stage, optimizer="muon", micro_batch_size=1)
            seen[f"plain-{stage}"] = losses(group, zero_stage=stage)
            again = {"zero_stage": stage, "checkpoint_activations": "all"}
            seen[f"again-{stage}"] = losses(group, **again, offload="optimizer" if stage else "none")
            seen[f"whole-{stage}"] = run(out / f"whole-{stage}", group, zero_stage=stage, optimizer="muon")
            run(out / f"half-{stage}", group, stop_at=3, zero_stage=stage, optimizer="muon")
        sizes = checkpoint_sizes(out, group)
        if group.main:
            (out / "seen.json").write_text(json.dumps(seen))
            (out / "sizes.json").write_text(json.dumps(sizes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    together(Path(sys.argv[1]))
