"""The training loop: global batches in, weights in the model, everything that can go wrong accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from egoscale.recipe import TrainSpec
from egoscale.train.batches import Batches
from egoscale.train.checkpoint import Checkpoints, write_text
from egoscale.train.deepspeed_json import shown
from egoscale.train.engine import Engine
from egoscale.train.goodput import Clock
from egoscale.train.guards import BadSteps, Signals, Spikes, leave
from egoscale.train.order import rank_rows, torch_seed
from egoscale.train.ranks import Ranks
from egoscale.train.schedule import learning_rate
from egoscale.train.throughput import Meter, gemm, utilisation
from egoscale.train.trace import Trace
from egoscale.train.watch import Stragglers, Watchdog, preflight


def train(
    model: nn.Module,
    spec: TrainSpec,
    batch_at: Callable[..., dict[str, Tensor]],
    out: Path,
    identity: dict[str, Any],
    ranks: Ranks,
    event: Callable[..., None],
    progress: Callable[[int, int, str], None] | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    validate_every_steps: int = 0,
    batch_ids: Callable[[int], Sequence[str | Sequence[str]]] | None = None,
    learning_rate_scale: Callable[[str], float] | None = None,
    forward_flops_per_sample: float = 0.0,
    frames_per_sample: int = 0,
    tokens_per_frame: int = 0,
    own_rows: bool = False,
    weights: Callable[[dict[str, Tensor]], None] | None = None,
) -> dict[str, Any]:
    """Train `model` in the folder `out`, from where it stopped, and leave the trained weights in it on every
    rank.

    `batch_at(step)` is the global batch of a step (dimension 0 = sample), the same on every rank; each rank
    computes its own rows. With `own_rows`, `batch_at(step, rows)` makes the rank's rows alone (a slice), equal to those
    of the whole; it is then asked from a thread, a step ahead, where the ranks have GPUs. `batch_ids(step)` names the
    clip (or the clips) of each row, for reports of bad numbers.
    `identity` says whose checkpoints these are; its "seed", if any, seeds torch's generator anew for every
    step. `validate(model)` runs on every rank after each `validate_every_steps` and at the end, there after the last
    save: an error in it repeats no step. `weights` gets the full fp32 state dict on rank 0. Every rank calls this; only
    rank 0 writes and calls `event` and `progress`.

    A step that takes longer than `hang_timeout_s` ends the process, every stack beside the run (`watch.py`); a rank
    whose own work takes half as long again as the others' is named by an event.

    Returns the last metrics with steps, bad_steps, samples_per_s, wait_fraction, precision, num_parameters
    and, given the FLOPs of a forward pass, its utilisation (see there; the bound is measured once, at the start).

    Raises Requeue or KeyboardInterrupt after saving on a signal, FloatingPointError past `max_bad_steps`,
    FileNotFoundError or ValueError when there is something to resume that cannot be resumed, OSError where a checkpoint
    cannot be written.
    """
    tell = event if ranks.main else lambda *_, **__: None
    rows = rank_rows(spec.batch_size, ranks, spec.micro_batch_size)
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock(out if ranks.main else None)
    with (
        Signals(spec.stop_before_limit_s) as signals,
        Watchdog(out, ranks, spec.hang_timeout_s, event) as watchdog,
        Engine(model, spec, ranks, learning_rate_scale) as engine,
        ExitStack() as stack,
    ):
        if ranks.world_size > 1:
            preflight(ranks, out, tell)
        bound = gemm(engine.precision) if forward_flops_per_sample else 0.0
        clock.started()

        def used(samples_per_s: float) -> dict[str, Any]:
            each = samples_per_s / ranks.world_size
            return utilisation(forward_flops_per_sample, each, engine.precision, bound) if bound else {}

        def names(step: int, part: slice = slice(None)) -> list[str]:
            held = batch_ids(step)[part] if batch_ids else ()
            return [clip for row in held for clip in ([row] if isinstance(row, str) else row)]

        if ranks.main:
            write_text(out / "deepspeed.json", json.dumps(engine.config, indent=1))
            if engine.overrides:
                write_text(out / "deepspeed.diff", shown(engine.overrides))
                tell("deepspeed", overrides=engine.overrides)
        checkpoints = Checkpoints(out, identity, ranks, spec.keep_last, tell, spec.keep_every_steps)
        with clock.phase("loading"):
            state = checkpoints.load(engine.load) or {}
        clock.note(engine.steps)
        if state and state["precision"] != engine.precision:
            tell("precision", before=state["precision"], now=engine.precision, requested=spec.precision)
        bad = BadSteps(spec.max_bad_steps, tell, ranks, state.get("bad"), spec.on_bad_step == "stop")
        spikes = Spikes(spec.spike_deviations, tell, state.get("recent"))
        stragglers = Stragglers(ranks, tell)
        trace = Trace(out / "metrics.jsonl" if ranks.main else None, state.get("trace"))
        meter, since = Meter(**state.get("meter", {})), Meter(**state.get("since", {}))

        def save(done: int, signal: str) -> None:
            trace.flush()
            held = {"trace": trace.state(), "bad": bad.found, "meter": vars(meter), "recent": spikes.recent}
            held |= {"precision": engine.precision, "since": vars(since)}
            with clock.phase("saving"):
                wait = done == spec.num_steps or bool(signal)
                checkpoints.save(done, lambda folder: engine.save(folder, held), engine.checkpoint_bytes, wait)
            clock.note(done)

        def look(done: int) -> None:
            """Validate where it is time to, and write a line where there is something to say."""
            nonlocal since
            last, validated = done == spec.num_steps, {}
            if validate and (last or (validate_every_steps and done % validate_every_steps == 0)):
                model.eval()
                with torch.no_grad(), clock.phase("validating"):
                    validated = validate(model)
                model.train()
            if last or validated or done == 1 or done % spec.log_every_steps == 0:
                rates = since.rates(spec.batch_size, frames_per_sample, tokens_per_frame)
                share = used(rates["samples_per_s"])
                rates |= {name: share[name] for name in ("mfu", "mfu_of_peak") if share.get(name) is not None}
                now = {"learning_rate": learning_rate(spec, done - 1), "bad_steps": len(bad.found)}
                now |= stragglers.compare(done, *since.own_seconds())
                trace.write(**now, **validated, **rates)
                meter.add(since)
                since = Meter()

        first = engine.steps
        if first and trace.last.get("step") != first:  # the last step was saved, and its line not written
            look(first)
        batches = stack.enter_context(Batches(batch_at, rows, spec.num_steps, own_rows, ranks.device.type == "cuda"))
        for step in range(first, spec.num_steps):
            watchdog.beat(f"reading the batch of step {step + 1}", started=step > first)
            with since.waiting(), clock.phase("data"):
                parts = batches.at(step)
            watchdog.beat(f"computing step {step + 1}", started=step > first)
            with since.stepping(), clock.phase("compute"):
                # The model's own random numbers follow the step too, so there is no generator to save.
                torch.manual_seed(torch_seed(int(identity.get("seed", 0)), f"torch/{ranks.rank}", step))
                metrics = engine.step(parts)
            since.forward_s += engine.forward_s
            done = step + 1
            watchdog.beat(f"logging, validating or saving after step {done}")
            last = done == spec.num_steps
            if engine.last_step_skipped:
                suspects = [clip for i in engine.bad_passes for clip in names(step, rows[i])]
                bad.record(done, suspects, names(step))
            else:
                trace.add(done, metrics)
                spikes.add(done, metrics["loss"], partial(names, step))
            trace.step = done

            if last:  # before it is validated: what fails there, and is mended, costs no step
                save(done, "")
            look(done)
            if step == first:  # torch and DeepSpeed load half of themselves in the first step
                meter, since = Meter(**state.get("meter", {})), Meter()
            if progress and ranks.main:
                progress(done, spec.num_steps, "steps")

            clock.note(done, now=False)
            with clock.phase("saving"):
                checkpoints.poll()
            signal = signals.agreed(ranks)
            if signal:
                tell("signal", signal=signal, step=done)
                if signal != "SIGINT":
                    tell("requeue", step=done)
            if not last and (signal or done % spec.save_every_steps == 0):
                save(done, signal)
            if signal:
                leave(signal)

        with clock.phase("saving"):
            full = engine.full_state_dict()
        if weights and ranks.main:
            with clock.phase("saving"):
                weights(full)
        engine.close(whole=True)
    clock.note(spec.num_steps)
    result: dict[str, Any] = {**trace.last, **meter.rates(spec.batch_size, frames_per_sample, tokens_per_frame)}
    result |= {"steps": spec.num_steps, "bad_steps": len(bad.found)}
    result |= {"precision": engine.precision, "num_parameters": engine.num_parameters}
    return result | used(result["samples_per_s"])
