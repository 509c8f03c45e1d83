"""The table of contents: the name of a stage -> the function that does it. The one place where the rooms meet.

A stage reads the folders of its inputs and writes into its own; what it returns becomes `result.json`. Stages are
imported when they run: drawing conclusions from finished runs needs no torch.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from egoscale.stages.conclusion import Conclusion, conclude
from egoscale.sweep.bill import Forecast
from egoscale.sweep.ledger import RunFolder
from egoscale.sweep.plan import Job

STAGES: Mapping[str, str] = {
    "film": "recording:film",
    "teleop": "recording:teleop",
    "catalog": "collecting:catalog",
    "select": "collecting:select",
    "subset": "collecting:subset",
    "tokenizer": "tokenizing:tokenizer",
    "encode": "encoding:encode",
    "latent-action": "latent_actions:latent_action",
    "world": "worlds:world",
    "finetune": "finetuning:finetune",
    "evaluate": "evaluating:evaluate",
}
TOGETHER = ("tokenizer", "encode", "latent-action", "world", "finetune")  # stages that several ranks share the work of
MODULES = tuple(sorted({f"{__name__}.{place.split(':')[0]}" for place in STAGES.values()}))


def stage(name: str) -> Callable[[Any], dict[str, Any]]:
    """The function of a stage."""
    module, function = STAGES[name].split(":")
    found: Callable[[Any], dict[str, Any]] = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return found


def execute(run_path: str, report: Callable[[Mapping[str, Any]], None] | None = None) -> None:
    """Run one run folder to its end, whatever state it is in; a finished one is left alone.

    Started by several ranks together (`srun`, `torchrun`), all work and rank 0 writes; a stage that cannot be shared is
    rank 0's alone.

    Raises:
        ValueError: an input is not finished, bad input of the stage itself, or requeued again and again for nothing.
        RunLockedError: another process works on this run.
    """
    from egoscale.stages.work import Work
    from egoscale.train.guards import stalled
    from egoscale.train.ranks import address

    run = RunFolder.open(run_path)
    if run.result() is not None:
        return
    for name, source in run.inputs().items():
        if source.result() is None:
            raise ValueError(
                f"{run}: its input {name!r} ({source}) is {source.state()}, not done: finish that run first"
            )
    found = address(os.environ)
    if found is not None and found[0].rank:  # rank 0 holds the lock and writes
        if run.stage in TOGETHER:
            stage(run.stage)(Work.of(run, None))
        return
    with run.lock():
        if run.result() is not None:  # another process finished it between our look and our lock
            return
        reason = stalled(run.events(), os.environ) if hasattr(run.recipe(), "train") else ""
        if reason:
            raise ValueError(f"{run}: {reason}")
        run.event("start", gpus=_num_gpus(found[0].world_size if found else 1))
        result = stage(run.stage)(Work.of(run, report))
        run.finish(result)


def _num_gpus(num_ranks: int) -> int:
    """GPUs that a run works on, one a rank; what it costs is told from it. Counted without waking them."""
    import torch

    return num_ranks if torch.cuda.device_count() else 0


def dry_run(recipe: Any, **options: Any) -> list[str]:
    """What a training stage would cost, a line a number; needs no GPU and no data. Options: `dry_page.told`."""
    from egoscale.stages.dry_page import told

    return told(recipe, **options)


def forecast(job: Job, device: str) -> Forecast | None:
    """What one job of a sweep costs by its recipe; None where that does not say."""
    from egoscale.stages.forecasting import forecast

    return forecast(job, device)


def deepspeed_changes(recipe: Any) -> list[str]:
    """What the recipe changes in DeepSpeed's derived JSON, a line a key; ValueError where the two contradict."""
    from egoscale.stages.dry import deepspeed_changes

    return deepspeed_changes(recipe)


__all__ = [
    "MODULES",
    "STAGES",
    "Conclusion",
    "conclude",
    "deepspeed_changes",
    "dry_run",
    "execute",
    "forecast",
    "stage",
]
