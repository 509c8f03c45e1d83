"""What finished runs of a stage tell about those to come: seconds, GPUs, bytes by kind; read from their folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from egoscale.sweep.ledger import RunFolder
from egoscale.sweep.plan import Job, weight

EARLIER_RUNS = 50  # of one stage that are read for their durations: enough for a mean
WEIGHED_RUNS = 3  # of one stage whose files are counted: runs of a stage are much alike
KINDS = {".safetensors": "weights", ".arrow": "latents", ".mp4": "video"}  # else "other": logs, tables, pictures


@dataclass(frozen=True)
class Finished:
    """One finished run: wall seconds it took, its weight (`plan.weight`), on how many GPUs (None: not noted)."""

    run: RunFolder
    weight: float
    seconds: float
    gpus: int | None


def finished(root: Path, stage: str, jobs: Mapping[str, Job], most: int = EARLIER_RUNS) -> list[Finished]:
    """The latest finished runs of a stage below `root`, oldest first, those of other studies too.

    jobs: by key, those whose recipes are known already. Runs of another version tell nothing and are left out.
    """
    folder, dated = root / stage, []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    dated.append((Path(entry.path, "result.json").stat().st_mtime, entry.name))
                except OSError:
                    continue
    except OSError:
        return []
    found = []
    for _, key in sorted(dated)[-most:]:
        run = RunFolder(folder / key)
        seconds = run.seconds()
        try:
            size = jobs[key].weight if key in jobs else weight(run.recipe(), run.inputs())
        except (ValueError, OSError):
            continue
        if seconds is not None:
            starts = [event for event in run.events() if event["event"] == "start"]
            gpus = starts[-1].get("gpus") if starts else None
            found.append(Finished(run, size, seconds, gpus if isinstance(gpus, int) else None))
    return found


def bytes_by_kind(runs: list[Finished]) -> dict[str, float]:
    """Bytes of a run on disk by kind (weights, latents, video, other), the mean of the last few."""
    some = runs[-WEIGHED_RUNS:]
    total: dict[str, float] = {}
    for one in some:
        for folder, _, files in os.walk(one.run.path):
            for name in files:
                try:
                    size = (Path(folder) / name).stat().st_size
                except OSError:
                    continue
                kind = KINDS.get(Path(name).suffix, "other")
                total[kind] = total.get(kind, 0.0) + size / len(some)
    return total
