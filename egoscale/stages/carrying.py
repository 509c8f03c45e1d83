"""A run that goes on under a recipe that says otherwise *how* it is run: another ZeRO stage, offload, compilation.

The recipe is part of a run's key, so that is another run folder; what was trained so far is carried there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egoscale.definition import assigned, merged
from egoscale.recipe import validate
from egoscale.stages.codes import CODES
from egoscale.sweep.ledger import RunFolder
from egoscale.train.checkpoint import FOLDER, MARK, Checkpoints, identity_hash, newest, write_text
from egoscale.train.ranks import Ranks

# Keys of [train] that change neither the batches nor the arithmetic, but for the last digits of a sum.
HOW = (
    "zero_stage", "offload", "micro_batch_size", "checkpoint_activations", "compile", "deepspeed",
    "save_every_steps", "keep_last", "keep_every_steps", "log_every_steps",
    "on_bad_step", "max_bad_steps", "spike_deviations", "hang_timeout_s", "stop_before_limit_s",
)  # fmt: skip


def carry(old: RunFolder, overrides: Sequence[str]) -> tuple[RunFolder, int]:
    """The run of `old`'s recipe with `overrides` ("train.zero_stage=3"), with `old`'s newest whole checkpoint in it;
    and the step of that. Working on it goes on from there, at its own stage and on any number of ranks.

    Raises ValueError where the overrides change what is trained, or the new run has begun already, FileNotFoundError
    where `old` has no checkpoint.
    """
    recipe = old.recipe()
    data = recipe.model_dump(mode="json", exclude_none=True)
    for one in overrides:
        data = merged(data, assigned(one))
    wanted = validate(type(recipe), data, "--set")
    changed = [key for key in _changed(recipe.model_dump(), wanted.model_dump()) if not _how(key)]
    if changed:
        raise ValueError(
            f"{old}: {', '.join(changed)} would make it another training (`egoscale train` starts one); only how it is "
            f"run can be changed on the way: train.{', train.'.join(HOW)}"
        )
    newest(old.path)
    new = RunFolder.create(old.root, wanted, old.inputs())
    if new == old:
        raise ValueError(f"{old}: nothing is changed by {list(overrides)}")
    if (new.path / FOLDER).exists() or (new.path / MARK).exists() or new.result() is not None:
        raise ValueError(f"{new.path} has begun already: `egoscale run {new.path}` goes on with it")
    step = _copied(old, new)
    new.event("carried", source=str(old), step=step)
    return new, step


def _how(key: str) -> bool:
    table, _, name = key.partition(".")
    return table == "train" and name.split(".")[0] in HOW


def _changed(one: Any, other: Any, place: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [k for key in keys for k in _changed(one.get(key), other.get(key), f"{place}.{key}" if place else key)]
    return [] if one == other else [place]


def _copied(old: RunFolder, new: RunFolder) -> int:
    """Copy the newest whole checkpoint under the new run's name, and what a resumed run reads; its step."""
    identity = json.loads((newest(old.path) / "manifest.json").read_text())["identity"]
    found: list[Path] = []
    alone = Ranks(0, 1, 0)
    Checkpoints(old.path, identity, alone, 1, lambda *_, **__: None).load(found.append)
    (source,) = found
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["identity"] = {**identity, "run": str(new)}
    manifest["identity_hash"] = identity_hash(manifest["identity"])
    for file in (*old.path.glob("metrics.jsonl"), *old.path.glob("quarantine-*.jsonl")):
        shutil.copyfile(file, new.path / file.name)
    if (old.path / CODES).exists():
        shutil.copytree(old.path / CODES, new.path / CODES, copy_function=os.link, dirs_exist_ok=True)
    temporary = new.path / f".{FOLDER}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    # Links take no room; nobody writes into a checkpoint that is whole.
    shutil.copytree(source, temporary / source.name, copy_function=os.link)
    (temporary / source.name / "manifest.json").unlink()
    write_text(temporary / source.name / "manifest.json", json.dumps(manifest, indent=1))
    write_text(temporary / "latest", source.name)
    temporary.rename(new.path / FOLDER)
    write_text(new.path / MARK, str(manifest["step"]))
    return int(manifest["step"])
