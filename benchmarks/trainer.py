"""What our training loop costs beside bare ones, and how well world-model training uses its device.

    OMP_NUM_THREADS=1 python benchmarks/trainer.py > benchmarks/trainer.md

Three parts (`--part loop ranks world`), each measured in fresh processes:

loop    one process: our loop against a bare PyTorch loop of the same world model, batches, optimizer, clipping and
        schedule (target: at most 5 % slower)
ranks   two ranks, ZeRO 1, 2 and 3: our loop against bare DeepSpeed with the same JSON (target: at most 10 % slower)
world   world-model training from latent shards on disk: three sizes, ZeRO 1 and 3, compile off and on: share of a
        matrix product's speed measured in the same process, frames a second, memory, waiting for data. On GPUs 100 M,
        300 M and 1 B parameters in bf16, a rank a GPU (target: 50 % of the product at 1 B); without one, toys in bf16.
        `--models 1B` runs one of them, where a machine is lent for minutes at a time.

Ratios are medians over pairs: what is compared takes turns in one process, ABBA, so that a neighbour on the machine
disturbs both. Of every run the first steps are left out, and checkpoints, which a bare loop does not write. Our loop
writes a line of metrics at every step here, so its cost is the most that it can be.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from egoscale.models.dynamics import WorldModel  # noqa: E402
from egoscale.models.flops import world_flops  # noqa: E402
from egoscale.recipe import TrainSpec, WorldSpec  # noqa: E402
from egoscale.stages.worlds import Samples  # noqa: E402
from egoscale.train import engine as door  # noqa: E402
from egoscale.train.loop import train  # noqa: E402
from egoscale.train.optimizer import parameter_groups  # noqa: E402
from egoscale.train.order import rank_rows, rows_of  # noqa: E402
from egoscale.train.ranks import Ranks, ranks  # noqa: E402
from egoscale.train.schedule import learning_rate  # noqa: E402
from egoscale.train.throughput import utilisation  # noqa: E402
from egoscale.video.latent_writer import write_latents  # noqa: E402
from egoscale.video.latents import LatentShards  # noqa: E402

WARM = 2  # steps at the beginning that are not counted
WARM_COMPILED = 4  # the number of shortcut samples differs from step to step: the second one compiles once more
STRIDES, ACTION_DIM, AGENT_FRAMES, LATENT_DIM = 2, 32, 4, 16
CUDA = torch.cuda.is_available()
LIMIT_S = 900 if CUDA else 600  # of one job; compiling takes most of it
# name -> width, layers, heads, key-value heads, frames of a window, tokens of a frame, samples a rank
MODELS = {
    "100M": (768, 15, 12, 4, 16, 256, 16),
    "300M": (1024, 26, 16, 4, 16, 256, 16),
    "1B": (2048, 22, 16, 4, 16, 256, 8),
    "toy 1": (48, 2, 4, 2, 4, 16, 8),
    "toy 2": (64, 4, 4, 2, 4, 16, 8),
    "toy 3": (96, 4, 4, 2, 4, 16, 8),
    "pair": (128, 4, 4, 2, 4, 64, 2),  # of the comparisons with bare loops: a step takes 50 ms or more
}

# Of the part "world", with a GPU and without.
WORLDS = {True: ["100M", "300M", "1B"], False: ["toy 1", "toy 2", "toy 3"]}


# ---- the world model and its data -------------------------------------------------------------------------------


def arguments(name: str) -> dict[str, Any]:
    """Arguments of `WorldModel`."""
    width, layers, heads, kv_heads, frames, tokens, _ = MODELS[name]
    blocks = {"width": width, "num_layers": layers, "num_heads": heads, "num_kv_heads": kv_heads}
    spec = WorldSpec(blocks={**blocks, "temporal_every": 4}, context_frames=frames)
    shape = {"num_latents": tokens, "latent_dim": LATENT_DIM, "action_dim": ACTION_DIM, "num_strides": STRIDES}
    return {**spec.model_dump(), **shape}


def samples(name: str, folder: Path) -> Samples:
    """Training samples from shards on disk, as the stage `world` reads them; latents and codes are noise."""
    _, _, _, _, frames, tokens, _ = MODELS[name]
    rng = np.random.default_rng(0)
    lengths = {f"clip-{i:03d}": 40 + i for i in range(48)}
    clips = ((clip, rng.standard_normal((T, tokens, LATENT_DIM)).astype(np.float16)) for clip, T in lengths.items())
    write_latents(folder / "latents", clips, shard_frames=1000)
    shape = (1 + STRIDES, ACTION_DIM)
    codes = ((clip, rng.standard_normal((T, *shape)).astype(np.float32)) for clip, T in lengths.items())
    write_latents(folder / "codes", codes, shard_frames=1000)
    latents, known = LatentShards.open(folder / "latents"), LatentShards.open(folder / "codes")
    zero = np.zeros((1 + STRIDES, ACTION_DIM), np.float32)
    words = {clip: rng.integers(1, 512, 8).tolist() for clip in lengths}
    return Samples(latents, known, words, zero, zero + 1, frames, AGENT_FRAMES)


def made(name: str) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(**arguments(name))


def spec_of(name: str, num_steps: int, num_ranks: int, **more: Any) -> TrainSpec:
    held = {"num_steps": num_steps, "batch_size": MODELS[name][-1] * num_ranks, "learning_rate": 3e-4}
    return TrainSpec.model_validate(
        {**held, "warmup_steps": 2, "log_every_steps": 1, "save_every_steps": 10**6, **more}
    )


class EnoughError(Exception):
    """Ends a run before it writes a checkpoint."""


class Beats:
    """Batches made beforehand, the same for both sides, and the clocks at each time one is asked for."""

    def __init__(self, batches: list[dict[str, Tensor]], num_steps: int) -> None:
        self.batches, self.num_steps = batches, num_steps
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def at(self, step: int) -> dict[str, Tensor]:
        if CUDA:
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if step == self.num_steps:
            raise EnoughError
        return self.batches[step % len(self.batches)]

    def seconds(self) -> tuple[float, float]:
        """Median clock and processor seconds of a step."""
        wall, cpu = (np.median(np.diff(beats)[WARM:]) for beats in (self.wall, self.cpu))
        return float(wall), float(cpu)


def ours(name: str, spec: TrainSpec, beats: Beats, group: Ranks, folder: Path) -> float:
    """Our loop; the loss of its last step."""
    with contextlib.suppress(EnoughError), tempfile.TemporaryDirectory(dir=folder) as out:
        out = group.from_main(out)
        try:
            train(made(name), spec, beats.at, Path(out), {"seed": 0}, group, lambda *_, **__: None)
        finally:
            group.barrier()
            lines = Path(out, "metrics.jsonl").read_text().splitlines() if group.main else ["{}"]
    return float(json.loads(lines[-1]).get("loss", 0.0))


# ---- bare loops ---------------------------------------------------------------------------------------------------


def bare_torch(name: str, spec: TrainSpec, beats: Beats) -> float:
    device = torch.device("cuda" if CUDA else "cpu")
    model = made(name).to(device).train()
    optimizer = adamw(model, spec)
    loss = torch.zeros(())
    with contextlib.suppress(EnoughError):
        for step in range(spec.num_steps):
            batch = {key: tensor.to(device, non_blocking=True) for key, tensor in beats.at(step).items()}
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(spec, step)
            optimizer.zero_grad()
            loss = model(batch)["loss"]
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
            optimizer.step()
    return float(loss.detach())


def adamw(model: nn.Module, spec: TrainSpec) -> torch.optim.AdamW:
    groups = parameter_groups(model, spec, None)
    betas = (spec.beta1, spec.beta2)
    return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=betas, eps=spec.epsilon, fused=True)


def bare_deepspeed(name: str, spec: TrainSpec, beats: Beats, group: Ranks, config: dict[str, Any]) -> float:
    deepspeed = door._deepspeed()
    door._forget_groups()
    linear = nn.functional.linear
    model = made(name).to(group.device).train()
    rows = rank_rows(spec.batch_size, group, spec.micro_batch_size)
    engine, optimizer, _, _ = deepspeed.initialize(
        model=model, optimizer=adamw(model, spec), config=config, dist_init_required=False
    )
    loss = torch.zeros(())
    with contextlib.suppress(EnoughError):
        for step in range(spec.num_steps):
            whole = beats.at(step)
            for some in optimizer.param_groups:
                some["lr"] = learning_rate(spec, step)
            for part in rows:
                batch = {
                    key: tensor.to(group.device, non_blocking=True) for key, tensor in rows_of(whole, part).items()
                }
                loss = engine(batch)["loss"]
                engine.backward(loss)
                engine.step()
    engine.destroy()
    nn.functional.linear = linear
    door._forget_groups()
    return sum(group.gathered(float(loss.detach()))) / group.world_size


# ---- jobs: each a process, or a rank of several -------------------------------------------------------------------


def batches_of(name: str, folder: Path, size: int) -> list[dict[str, Tensor]]:
    spec = WorldSpec(context_frames=MODELS[name][4])
    source = samples(name, folder)
    return [source.batch(0, "world", step, size, spec, 0.1) for step in range(4)]


def compared(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Pairs of our loop and a bare one: clock and processor seconds a step of each, as rank 0 sees them."""
    name, stage, num_steps = "pair", job["stage"], job["num_steps"]
    with ranks() as group:
        spec = spec_of(name, num_steps + 1, group.world_size, zero_stage=stage)
        batches = batches_of(name, folder / f"latents-{group.rank}", spec.batch_size)
        with door.Engine(made(name), spec, group) as one:
            config, parameters = one.config, one.num_parameters

        def bare(beats: Beats) -> float:
            if group.world_size == 1:
                return bare_torch(name, spec, beats)
            return bare_deepspeed(name, spec, beats, group, config)

        pairs, losses = [], []
        for number in range(job["pairs"] + 1):
            sides = {"bare": Beats(batches, num_steps), "ours": Beats(batches, num_steps)}
            loss = {}
            for side in sorted(sides, reverse=bool(number % 2)):
                run = bare if side == "bare" else lambda beats: ours(name, spec, beats, group, folder)
                loss[side] = run(sides[side])
            if number:  # the first pair loads what torch and DeepSpeed load late
                pairs.append({side: beats.seconds() for side, beats in sides.items()})
                losses.append(loss)
    return {"pairs": pairs, "losses": losses, "parameters": parameters}


def world(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """World-model training from shards: rates, share of the matrix product, memory."""
    name, num_steps = job["model"], job["num_steps"]
    with ranks() as group:
        given = arguments(name)
        more = {"precision": "bf16", "zero_stage": job["stage"], "compile": job["compile"]}
        spec = spec_of(name, num_steps + 1, group.world_size, **more)
        source = samples(name, folder / f"latents-{group.rank}")
        model = WorldSpec(context_frames=given["context_frames"])

        def batch_at(step: int, rows: slice) -> dict[str, Tensor]:
            if step == num_steps:
                raise EnoughError
            return source.batch(0, "world", step, spec.batch_size, model, 0.1, rows)

        torch.manual_seed(0)
        built = WorldModel(**given)
        parameters = sum(p.numel() for p in built.parameters())
        frames = given["context_frames"] + AGENT_FRAMES
        with contextlib.suppress(EnoughError):
            train(
                built,
                spec,
                batch_at,
                folder / "run",
                {"seed": 0},
                group,
                lambda *_, **__: None,
                frames_per_sample=frames,
                own_rows=True,
            )
        group.barrier()
        memory = (
            torch.cuda.max_memory_allocated() if CUDA else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        lines = lines[WARM_COMPILED if job["compile"] else WARM :]
        rate = median(line["samples_per_s"] for line in lines)
        used = utilisation(world_flops(given, AGENT_FRAMES), rate / group.world_size, more["precision"])
        return {
            "parameters": parameters,
            "frames_per_s": rate * frames,
            "wait": median(line["wait_fraction"] for line in lines),
            "memory": max(group.gathered(memory)),
            "ranks": group.world_size,
            **used,
        }


def run_job(job: dict[str, Any], num_ranks: int = 1) -> dict[str, Any]:
    """The answer of rank 0 of so many processes that do `job` together."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        shared = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "MASTER_ADDR": "127.0.0.1"}
        processes = []
        for rank in range(num_ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), "MASTER_PORT": port}
            command = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps({**job, "folder": folder})]
            environ = {**os.environ, **shared, **(own if num_ranks > 1 else {})}
            environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # the larger sizes fill a card
            processes.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True))
        try:
            said = [process.communicate(timeout=LIMIT_S)[0] for process in processes]
        except subprocess.TimeoutExpired:
            for process in processes:
                process.kill()
                process.communicate()
            return {"failed": f"longer than {LIMIT_S} s"}
        if any(process.returncode for process in processes):
            return {"failed": f"exit codes {[process.returncode for process in processes]}"}
        answer: dict[str, Any] = json.loads(said[0].splitlines()[-1])
        return answer


# ---- the report ---------------------------------------------------------------------------------------------------


def comparison_row(what: str, found: dict[str, Any], target: float) -> str:
    if "failed" in found:
        return f"| {what} | failed: {found['failed']} | | | | | |"
    ratios = [[pair["ours"][clock] / pair["bare"][clock] for pair in found["pairs"]] for clock in (0, 1)]
    times = [median(pair[side][clock] for pair in found["pairs"]) for clock in (0, 1) for side in ("bare", "ours")]
    spread = f"{min(ratios[0]):.2f} to {max(ratios[0]):.2f}"
    apart = max(abs(loss["ours"] / loss["bare"] - 1) for loss in found["losses"]) if found["losses"][0]["ours"] else 0.0
    cells = [what, str(len(found["pairs"])), f"{1e3 * times[0]:.0f} / {1e3 * times[1]:.0f}"]
    cells += [f"{1e3 * times[2]:.0f} / {1e3 * times[3]:.0f}", f"**{median(ratios[0]):.3f}** ({spread})"]
    cells += [f"**{median(ratios[1]):.3f}**", f"{target:.2f}", f"{apart:.0e}"]
    return f"| {' | '.join(cells)} |"


def comparisons(parts: list[str], pairs: int, num_steps: int) -> Iterator[str]:
    yield "## Our loop against bare loops"
    yield ""
    times, ratios = ("clock, ms", "processor, ms"), ("clock: median of ratios", "processor: median of ratios")
    columns = ("ours / bare", "pairs", *(f"{each} a step, bare / ours" for each in times), *ratios, "target")
    yield f"| {' | '.join((*columns, 'losses apart'))} |"
    yield "|---|---|---|---|---|---|---|---|"
    job = {"kind": "compared", "pairs": pairs, "num_steps": num_steps}
    if "loop" in parts:
        yield comparison_row("one process, PyTorch", run_job({**job, "stage": 0}), 1.05)
    for stage in (1, 2, 3) if "ranks" in parts else ():
        if CUDA and torch.cuda.device_count() < 2:
            yield f"| two ranks, DeepSpeed, stage {stage} | not run: one GPU | | | | | | |"
            continue
        yield comparison_row(f"two ranks, DeepSpeed, stage {stage}", run_job({**job, "stage": stage}, 2), 1.10)
    yield ""


def worlds(num_steps: int, names: list[str]) -> Iterator[str]:
    count = torch.cuda.device_count() if CUDA else 1
    yield "## World-model training"
    yield ""
    if not CUDA:
        yield "**This part did not run on a GPU**: none was there. Toy sizes on the CPU, bf16, one rank, show that the"
        yield "script runs; the target (50 % of the product at 1 B) is not measured. `compile` at the first alone."
        yield ""
    shares = ("share of the product", "share of the peak", "product, TFLOP/s")
    columns = ("model", "parameters", "stage", "compile", "frames/s", *shares, "memory a rank, GB", "waiting for data")
    yield f"| {' | '.join(columns)} |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    device = "cpu"
    for number, name in enumerate(names):
        for stage in (1, 3):
            for compiled in (False, True) if CUDA or (number, stage) == (0, 1) else (False,):
                job = {"kind": "world", "model": name, "stage": stage, "compile": compiled, "num_steps": num_steps}
                found = run_job(job, count)
                first = f"| {name} | "
                if "failed" in found:
                    yield f"{first} | {stage} | {compiled} | failed: {found['failed']} | | | | | |"
                    continue
                device = f"{found['ranks']} x {found['device']}"
                peak = found["mfu_of_peak"]
                cells = [
                    f"{found['parameters']:,}",
                    str(stage),
                    "on" if compiled else "off",
                    f"{found['frames_per_s']:,.0f}",
                ]
                cells += [f"{found['mfu']:.1%}", "unknown" if peak is None else f"{peak:.1%}"]
                cells += [
                    f"{found['gemm_flops_per_s'] / 1e12:.3g}",
                    f"{found['memory'] / 1e9:.2f}",
                    f"{found['wait']:.1%}",
                ]
                yield first + " | ".join(cells) + " |"
    yield ""
    yield f"Device: {device}. Memory: {'the most that tensors took' if CUDA else 'resident, libraries included'}."
    yield "FLOPs: those of the model, forward x 3 (`egoscale/models/flops.py`); rates are medians over steps."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=("loop", "ranks", "world"), default=["loop", "ranks", "world"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--models", nargs="+", choices=[*WORLDS[True], *WORLDS[False]], default=WORLDS[CUDA])
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        if not CUDA:
            torch.set_num_threads(1)
        job = json.loads(given.job)
        print(json.dumps({"compared": compared, "world": world}[job["kind"]](job, Path(job["folder"]))))
        return
    begun, load = time.monotonic(), os.getloadavg()[0]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed"))
    words = " ".join(["OMP_NUM_THREADS=1 python benchmarks/trainer.py", *sys.argv[1:]])
    print("# What the trainer costs, and what it gets out of a device\n")
    print(
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ",
        end="",
    )
    print(f"{versions}.\nCommand: `{words} > benchmarks/trainer.md`.\n")
    if {"loop", "ranks"} & set(given.part):
        for line in comparisons(given.part, given.pairs, given.steps):
            print(line, flush=True)
    if "world" in given.part:
        for line in worlds(max(given.steps, 14) if CUDA else given.steps, given.models):
            print(line, flush=True)
    after, minutes = os.getloadavg()[0], (time.monotonic() - begun) / 60
    print(f"\nLoad of the machine: {load:.1f} at the beginning, {after:.1f} at the end; it took {minutes:.1f} min.")
    if max(load, after - 2) > (os.cpu_count() or 1):  # our two ranks are a load of two
        print("**Others were at work on it**: clock ratios are unreliable, processor ratios less so. Run it again")
        print("on a quiet machine.")


if __name__ == "__main__":
    main()
