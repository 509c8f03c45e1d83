"""A tiny training run, for tests: imported by them, and started by them as a process of its own or as one of
two."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from egoscale.recipe import TrainSpec
from egoscale.train import goodput
from egoscale.train.engine import _deepspeed
from egoscale.train.loop import train
from egoscale.train.order import draws, normal
from egoscale.train.ranks import Ranks, ranks

WIDTH = 8


class Tiny(nn.Module):
    """A regression with a gain, dropout (so that torch's generator matters) and an odd number of weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.norm, self.outer = nn.Linear(WIDTH, 13), nn.LayerNorm(13), nn.Linear(13, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = nn.functional.dropout(
            self.norm(self.inner(batch["x"])), 0.1, self.training and bool(batch["noisy"].any())
        )
        error = self.outer(hidden).squeeze(-1) - batch["y"]
        return {"loss": error.square().mean(), "error": error.abs().mean()}


def batch_at(step: int, batch_size: int = 8, noisy: bool = True) -> dict[str, Tensor]:
    x = torch.from_numpy(normal(0, "x", step, (batch_size, WIDTH)))
    y = torch.from_numpy(draws(0, "y", step, batch_size, 1)[:, 0]).float()
    return {"x": x, "y": y, "noisy": torch.full((batch_size,), noisy)}


def spec(**changes: object) -> TrainSpec:
    return TrainSpec.model_validate(
        {
            "num_steps": 12,
            "batch_size": 8,
            "warmup_steps": 3,
            "learning_rate": 0.03,
            "save_every_steps": 5,
            "log_every_steps": 1,
            "clip_norm": 0.5,
            **changes,
        }
    )


def trace(out: Path) -> list[dict]:
    """Lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clocks = ("samples_per_s", "frames_per_s", "tokens_per_s", "wait_fraction", "data_", "forward_", "mfu")
    return [{k: v for k, v in line.items() if not k.startswith(clocks)} for line in lines]


def events(out: Path, starts: bool = False) -> list[dict]:
    path = out / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if starts or event["event"] != "start"]


def run(out: Path, group: Ranks, settings: TrainSpec, at=batch_at, **options) -> dict:  # type: ignore[no-untyped-def]
    def event(name: str, **fields: object) -> None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "events.jsonl").open("a") as file:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            file.write(json.dumps({"event": name, "time": now, **fields}) + "\n")

    if group.main:
        event("start")
    model = options.pop("model", None) or Tiny()
    identity = options.pop("identity", {"recipe": "tiny", "seed": 0})
    ids = options.pop("batch_ids", lambda step: [f"clip-{step}-{i}" for i in range(settings.batch_size)])
    return train(model, settings, at, out, identity, group, event, batch_ids=ids, **options)


def killed_at(step: int, number: int, below=None):  # type: ignore[no-untyped-def]
    """batch_at that sends this process a signal while the batch of `step` is made."""

    def at(now: int) -> dict[str, Tensor]:
        if now == step:
            os.kill(os.getpid(), number)
        return (below or batch_at)(now)

    return at


def nan_at(*steps: int, row: int = 5):  # type: ignore[no-untyped-def]
    """batch_at with a NaN in one sample of these steps."""

    def at(now: int) -> dict[str, Tensor]:
        batch = batch_at(now)
        if now in steps:
            batch["x"][row, 0] = torch.nan
        return batch

    return at


def pair(out: Path) -> None:
    """What two ranks do in the test of ranks; each rank writes what it saw."""
    seen: dict[str, object] = {}
    with ranks() as group:
        for stage in (1, 2, 3):  # without clipping, whose norm stage 3 adds up in another order
            settings = spec(zero_stage=stage, num_steps=20, precision="bf16", clip_norm=1e9)
            run(out / f"bf16-{stage}", group, settings, plain)
        for stage in (0, 1, 2, 3):
            settings = spec(zero_stage=stage, micro_batch_size=2, num_steps=20)
            seen[f"final-{stage}"] = run(out / f"zero-{stage}", group, settings, plain)["loss"]
            if stage == 3:
                model = Tiny()
                full: dict[str, Tensor] = {}
                run(out / "whole", group, settings, plain, model=model, weights=full.update)
                seen["whole"] = float(sum(w.double().sum() for w in model.state_dict().values()))
                if group.main:
                    assert all(torch.equal(full[name], w) for name, w in model.state_dict().items())
        for stage in (0, 3):
            # Row 5 belongs to rank 1 alone.
            settings = spec(zero_stage=stage)
            seen[f"bad-{stage}"] = run(out / f"nan-{stage}", group, settings, nan_at(4))["bad_steps"]
        settings = spec(zero_stage=2, save_every_steps=100)
        run(out / "unbroken", group, settings)
        try:
            at = killed_at(6, signal.SIGUSR1) if group.rank == 1 else batch_at
            run(out / "broken", group, settings, at)
        except SystemExit as stop:
            seen["exit_code"] = stop.code
        seen["resumed"] = run(out / "broken", group, settings)["loss"]
        try:
            run(out / "eight", group, spec(micro_batch_size=8))
        except ValueError as error:
            seen["refused"] = str(error)
        (out / f"rank-{group.rank}.json").write_text(json.dumps(seen))


def halves(out: Path) -> None:
    """Two ranks at every ZeRO stage, to the end and to the middle; then from the middle of each to each stage."""
    with ranks() as group:
        for stage in (0, 1, 2, 3):
            run(out / f"whole-{stage}", group, spec(zero_stage=stage), plain)
            with contextlib.suppress(SystemExit):
                run(out / f"half-{stage}", group, spec(zero_stage=stage), killed_at(5, signal.SIGTERM, plain))
        cross(out, group, "two")


def cross(out: Path, group: Ranks, name: str) -> None:
    """Go on from the middle of each stage at each other, in copies of the folders."""
    for before in (0, 1, 2, 3):
        for after in (0, 1, 2, 3):
            folder = out / f"{name}-{before}-{after}"
            if group.main:
                shutil.copytree(out / f"half-{before}", folder)
            group.barrier()
            run(folder, group, spec(zero_stage=after), plain)


def trouble(out: Path, what: str) -> None:
    """Two ranks of which one sleeps in every batch ("sleep"), or stands still for ever at step 5 ("hang")."""

    def at(step: int) -> dict[str, Tensor]:
        if group.rank == 1 and what == "sleep":
            time.sleep(0.03)
        if group.rank == 1 and what == "hang" and step == 5:
            time.sleep(3600)
        return batch_at(step)

    with ranks() as group:
        timeout_s = 4.0 if what == "hang" else 600.0
        run(out, group, spec(zero_stage=2, hang_timeout_s=timeout_s, save_every_steps=2), at)


def full_disk(out: Path) -> None:
    """Two ranks; the second cannot write its part of the checkpoint of step 10; each notes what it was told."""
    save = torch.save

    def fails(held: object, path: object, **options: object) -> None:
        if group.rank == 1 and "step-00000010" in str(path):
            raise RuntimeError("No space left on device")
        save(held, path, **options)  # type: ignore[arg-type]

    torch.save = fails
    with ranks() as group:
        try:
            run(out, group, spec(zero_stage=2))
        except OSError as error:
            (out / f"rank-{group.rank}").write_text(str(error))


def late(out: Path) -> None:
    """Two ranks of which one comes to step 5 later than torch waits by itself, here 10 s."""
    _deepspeed()  # first, so that both come to the making of groups at once
    distributed_c10d.default_pg_timeout = datetime.timedelta(seconds=10)

    def at(step: int) -> dict[str, Tensor]:
        if group.rank == 1 and step == 5:
            time.sleep(14)
        return batch_at(step)

    with ranks() as group:
        run(out, group, spec(zero_stage=2, hang_timeout_s=600.0), at)


def plain(step: int) -> dict[str, Tensor]:
    """batch_at without dropout: the same loss on any number of ranks."""
    return batch_at(step, noisy=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, folder = sys.argv[1], Path(sys.argv[2])
    if task == "pair":
        pair(folder)
    elif task == "slow":  # every batch takes a while; ENDING is kill:STEP, term:STEP or empty

        def at(step: int) -> dict[str, Tensor]:
            time.sleep(0.05)
            return batch_at(step)

        goodput.NOTE_EVERY_S = 0.0  # steps here take milliseconds
        kind, _, when = os.environ["ENDING"].partition(":")
        if kind:
            at = killed_at(int(when), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[kind], at)
        with ranks() as alone:
            run(folder, alone, spec(num_steps=40, save_every_steps=5), at)
            (folder / "ended").write_text(str(time.time()))  # leaving the interpreter takes a second more
    elif task in ("sleep", "hang"):
        trouble(folder, task)
    elif task == "full-disk":
        full_disk(folder)
    elif task == "late":
        late(folder)
    elif task == "halves":
        halves(folder)
    elif task == "kill":
        with ranks() as alone:
            run(folder, alone, spec(), killed_at(7, signal.SIGKILL))
    elif task == "term":
        with ranks() as alone:
            run(folder, alone, spec(), killed_at(7, signal.SIGTERM))
