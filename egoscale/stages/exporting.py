"""From the folder of a run to a model for others, with a card that says what it is and where it comes from."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

import egoscale
from egoscale.stages.loading import WEIGHTS
from egoscale.sweep.ledger import RunFolder
from egoscale.train.checkpoint import kept, write_text
from egoscale.train.export import write_export
from egoscale.train.reshape import reshape

SLOT = "slot"
KINDS = {
    "tokenizer": (
        "Video tokenizer",
        "A causal masked autoencoder: frames of video to a few latent tokens each, and back.",
        "Encoding video for latent action models and world models that were trained on its latents.",
    ),
    "latent-action": (
        "Latent action model",
        "What changed between two frames of video, as a few numbers, learned without action labels.",
        "Labelling video with latent actions, to train world models and policies. A latent action is no motor command.",
    ),
    "world": (
        "World model",
        "A block-causal diffusion transformer over latents: the next frames given latent actions; its agent tokens "
        "predict the next latent action given an instruction.",
        "Fine-tuning to a robot on its demonstrations, and imagining short rollouts. It moves no robot by itself.",
    ),
    "finetune": (
        "Robot policy",
        "A world model whose predicted latent action, with proprioception, becomes a chunk of relative motor commands; "
        "under `slot/` the same world model driven by the robot's own commands, where it was trained.",
        "The robot, the tasks and the scenes of its demonstrations, in simulation or under supervision.",
    ),
}
LIMITS = """- The numbers above are all that was measured, on held-out clips or in simulation.
- First-person video shows some people, homes and workplaces more than others; what is rare in it is done badly.
- Not tested for safety: do not run it on hardware near people without limits of its own on force and speed.
- Weights may remember what they were trained on; the terms of the video apply (see above). This card grants nothing."""


def export(run: RunFolder, out: Path, dtype: str = "fp32", step: int | None = None) -> int:
    """Write the trained model of a finished run into the new folder `out` (`train/export.py` says how); its bytes.

    step: the model as it was then (of fine-tuning the policy alone), from a checkpoint that `train.keep_every_steps`
    kept.

    Raises ValueError where the run trained nothing or is not done, FileNotFoundError where no checkpoint of `step` is
    there, and what `write_export` raises.
    """
    if run.stage not in KINDS:
        raise ValueError(f"{run}: stage {run.stage!r} trains no model; export a run of {', '.join(KINDS)}")
    if run.state() != "done":
        raise ValueError(f"{run} is {run.state()}, not done: `egoscale run {run.path}` first")
    parts = {"": run.path / WEIGHTS}
    about: dict[str, Any] = {"run": str(run), "egoscale": egoscale.__version__}
    if step is not None:
        full = reshape(kept(run.path, step))
        write_text(full / "config.json", (run.path / WEIGHTS / "config.json").read_text())
        parts, about = {"": full}, {**about, "step": step}
    elif (run.path / SLOT / WEIGHTS).is_dir():
        parts[SLOT] = run.path / SLOT / WEIGHTS
    return write_export(parts, out, dtype, model_card(run, out.name, dtype, step), about)


def lineage(run: RunFolder) -> list[RunFolder]:
    """The run and all that it was made from, each before its inputs; what was deleted is left out."""
    found: dict[Path, RunFolder] = {}

    def visit(one: RunFolder) -> None:
        if one.path in found or not (one.path / "inputs.json").is_file():
            return
        for source in one.inputs().values():
            visit(source)
        found[one.path] = one

    visit(run)
    return list(found.values())[::-1]


def model_card(run: RunFolder, folder: str, dtype: str, step: int | None = None) -> str:
    """Markdown: what the model is, its numbers, the video behind it with licences, its lineage, recipe and limits."""
    title, what, use = KINDS[run.stage]
    result, behind = run.result() or {}, lineage(run)
    numbers = [(name, f"{value:,.6g}") for name, value in sorted(result.items()) if _plain(value)]
    then = "" if step is None else f", as it was after step {step:,}; the numbers below are those of its end"
    made_from = [(f"`{one}`", ", ".join(f"{n} `{source}`" for n, source in one.inputs().items())) for one in behind]
    return f"""---
library_name: egoscale
license: other
tags: [robotics, world-model, egocentric-video, {run.stage}]
---

# {title} {run.key}

{what}

```python
import egoscale

model = egoscale.load_model("{folder}")  # a torch.nn.Module in evaluation mode, in fp32
```

Weights are stored in {dtype}. Exported on {datetime.date.today().isoformat()} by egoscale {egoscale.__version__} from \
run `{run}`{then}.

## Numbers

{_table(("what", "value"), numbers + _trials(run))}

## Video

{_video(behind)}

## Lineage

Each run is named by the hash of its recipe and its inputs.

{_table(("run", "made from"), made_from)}

## Intended use

{use}

## Limits

{LIMITS}

## Recipe

```toml
{(run.path / "recipe.toml").read_text().strip()}
```
"""


def _plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)  # a yes or no is no number


def _trials(run: RunFolder) -> list[tuple[str, str]]:
    """Closed-loop success in each finished evaluation that this run was given to."""
    rows = []
    for folder in sorted(run.root.glob("evaluate/*/result.json")):
        trials = RunFolder(folder.parent)
        result = trials.result() or {}
        if run in trials.inputs().values() and "trials" in result:
            rows.append((f"success, `{trials}`", f"{result['successes']} of {result['trials']} trials"))
    return rows


def _video(behind: list[RunFolder]) -> str:
    """Hours, clips and licence of each source, for every subset that the model, or what it is built on, has seen."""
    texts = []
    for run in behind:
        if run.stage != "subset":
            continue
        result = run.result() or {}
        hours, selection = result.get("hours"), result.get("hash", "unknown")
        said = f"{hours:.4g} hours" if isinstance(hours, float | int) else "hours unknown"
        texts.append(f"`{run}`: {said}, selection hash `{selection}`\n\n{_sources(run)}")
    demos = [one for one in behind if one.stage == "teleop"]
    texts += [f"Robot demonstrations: `{one}`, of a simulated robot." for one in demos]
    return "\n\n".join(texts) or "The subset that it was trained on is no longer beside the run; see the lineage."


def _sources(run: RunFolder) -> str:
    file = run.path / "manifest.parquet"
    if not file.is_file():
        return "Its manifest is no longer there, so licences are unknown."
    clips = pl.scan_parquet(file)
    names = clips.collect_schema().names()
    seconds = "unique_s" if "unique_s" in names else "duration_s"
    by_source = (
        clips.group_by("source", "license")
        .agg(hours=pl.col(seconds).sum() / 3600, clips=pl.len())
        .sort("source", "license", nulls_last=True)
        .collect(engine="streaming")
    )
    rows = [(s, lic or "**not stated**", f"{hours:.4g}", f"{n:,}") for s, lic, hours, n in by_source.rows()]
    return _table(("source", "licence", "hours", "clips"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
