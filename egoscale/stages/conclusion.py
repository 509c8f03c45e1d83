"""From finished runs to the law, its figures and the report; read from run folders, without torch."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from egoscale.recipe import SweepRecipe
from egoscale.resources import find
from egoscale.scaling import Fit, fit_study, fit_tasks, load_study
from egoscale.scaling.figures.diagnostics import residual_figure
from egoscale.scaling.figures.plot import loss_figure, save, success_figure, tasks_figure
from egoscale.scaling.outputs import fit_document, write_json
from egoscale.scaling.page.report import Clip, Curve, RunsInfo, cell_links, write_report
from egoscale.sweep.ledger import collect
from egoscale.sweep.plan import Plan

CURVES = {"tokenizer": "psnr_db", "latent-action": "unexplained", "world": "agent", "finetune": "loss"}
PACKAGES = (
    "egoscale",
    "torch",
    "deepspeed",
    "decord",
    "av",
    "datasets",
    "polars",
    "statsmodels",
    "mlflow",
    "mujoco",
)


@dataclass(frozen=True)
class Conclusion:
    """The law in one line, a table of cells, and the path of the report."""

    lines: tuple[str, ...]
    report_path: Path
    fits: tuple[Fit, ...]


def conclude(sweep: SweepRecipe, plan: Plan, root: Path) -> Conclusion:
    """Collect the table of a sweep, fit its study, write table, fits, figures and report below `root`."""
    if not plan.cells:
        return _pretrained(sweep, plan, root)
    study = load_study(find("analysis", sweep.study))
    table = collect(root, plan.jobs.values())
    fits = fit_study(table, study)
    out = root / "report" / sweep.name
    out.mkdir(parents=True, exist_ok=True)
    table.write_parquet(out / "table.parquet")
    table.write_csv(out / "table.csv")
    write_json(out / "fit.json", fit_document(fits, table, study))
    success = [fit for fit in fits if fit.law.outcome == "success"]
    lead = success[0]
    others = [fit for fit in success if fit.law.name == lead.law.name and fit.group != lead.group]
    figures = {"success": success_figure(table, lead, study, others, cell_links(table))}
    if study.success.tasks:
        figures["tasks"] = tasks_figure(table, fit_tasks(table, study, lead.group), study)
    losses = [fit for fit in fits if fit.law.outcome == "loss" and fit.group == lead.group]
    if study.loss is not None and losses:
        figures["loss"] = loss_figure(table, losses, study)
    if lead.refused_ is None:
        figures["residuals"] = residual_figure(lead)
    for name, figure in figures.items():
        save(figure, out / name)
    path = write_report(
        out / "report.html",
        table,
        fits,
        study,
        figures,
        _runs_info(sweep, plan, root),
        list(_curves(plan, root)),
        list(_clips(sweep, plan, root)),
    )
    return Conclusion((lead.sentence(), _text_table(table)), path, tuple(fits))


def _pretrained(sweep: SweepRecipe, plan: Plan, root: Path) -> Conclusion:
    """What a sweep without robots measured: a row a world model, with the gate of its latent actions."""
    rows = []
    for job in plan.jobs.values():
        if job.stage != "world":
            continue
        gate = job.inputs["latent-action"].run(root).result() or {} if "latent-action" in job.inputs else {}
        found = job.run(root).result() or {}
        rows.append(
            {**job.labels, "run": str(job)}
            | {name: found.get(name) for name in ("world_loss", "prior_loss", "epochs")}
            | {name: gate.get(name) for name in ("heldout_unexplained", "heldout_shuffled", "heldout_kl_nats")}
        )
    table = pl.DataFrame(rows)
    out = root / "report" / sweep.name
    out.mkdir(parents=True, exist_ok=True)
    table.write_csv(out / "table.csv")
    with pl.Config(tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_width_chars=140):
        lines = (
            f"{sweep.name}: {len(rows)} world models pretrained; no robot, so no law of success",
            str(table),
        )
    return Conclusion(lines, out / "table.csv", ())


def _text_table(table: pl.DataFrame) -> str:
    """Success per cell, seeds side by side: a row per arm, hours and demonstrations."""
    rows = []
    keys = ["arm", "hours", "demos", *(name for name in ("model", "scenes") if name in table.columns)]
    for (arm, hours, demos, *more), cells in table.group_by(keys, maintain_order=True):
        done = cells.drop_nulls("trials")
        counts = done.select("successes", "trials").rows()
        seeds = "  ".join(f"{successes / trials:4.0%}" for successes, trials in counts)
        total = sum(trials for _, trials in counts)
        shown = f"{sum(s for s, _ in counts) / total:6.1%} of {total}" if total else "missing"
        losses = [float(loss) for loss in done["prior_loss"].drop_nulls()]
        learned = f"{sum(losses) / len(losses):.3f}" if losses else "-"
        cell = f"{arm!s:8} {float(str(hours)):>6g} h {demos!s:>5} demos"
        cell += "".join(f"  {name} {value}" for name, value in zip(keys[3:], more, strict=True) if value is not None)
        rows.append(f"{cell}   {shown:16}  unexplained {learned:6}  by seed {seeds}")
    return "\n".join(rows)


def _curves(plan: Plan, root: Path) -> Iterator[Curve]:
    for job in plan.jobs.values():
        metric = CURVES.get(job.stage)
        file = job.run(root).path / "metrics.jsonl"
        if metric is None or not file.is_file():
            continue
        points = [json.loads(line) for line in file.read_text().splitlines()]
        points = [point for point in points if metric in point]
        labels = job.labels
        words = [f"{labels['hours']:g} h"] if "hours" in labels else []
        words += [f"{labels['demos']} demos"] if "demos" in labels else []
        words += [f"seed {labels['seed']}"] if "seed" in labels else []
        words += [str(labels["arm"])] if labels.get("arm", "latent") != "latent" else []
        yield Curve(
            job.stage,
            job.key,
            ", ".join(words) or job.stage,
            metric,
            [float(point["step"]) for point in points],
            [float(point[metric]) for point in points],
            float(labels.get("hours", 0.0)),
        )


def _clips(sweep: SweepRecipe, plan: Plan, root: Path) -> Iterator[Clip]:
    """Rollouts of the least and the most video, at the largest number of demonstrations and the first seed."""
    seeds, demos = min(sweep.grid.seeds), max(sweep.grid.demos)
    for hours in (min(sweep.grid.hours), max(sweep.grid.hours)):
        for job in plan.cells:
            labels = job.labels
            if (labels["arm"], labels["hours"], labels["demos"], labels["seed"]) != (
                "latent",
                hours,
                demos,
                seeds,
            ):
                continue
            run = job.run(root)
            for shown in (run.result() or {}).get("rollouts", []):
                outcome = "succeeds" if shown["success"] else "fails"
                imagined = shown["imagined"]
                yield Clip(
                    hours,
                    f"{shown['instruction']}: {outcome}",
                    run.path / shown["real"],
                    run.path / imagined if imagined else None,
                )


def _runs_info(sweep: SweepRecipe, plan: Plan, root: Path) -> RunsInfo:
    counts: dict[str, int] = {}
    for job in plan.jobs.values():
        state = job.run(root).state()
        counts[state] = counts.get(state, 0) + 1
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    recipe = {
        "tokenizer": f"{_training(sweep.tokenizer)}, on {sweep.tokenizer_hours:g} h and unlabelled robot video; "
        "trained once and shared by all sizes",
        "latent actions": f"{_training(sweep.latent_action)}, {sweep.latent_action.model.action_dim} numbers",
        "world model": _training(sweep.world),
        "policy": _training(sweep.finetune),
        "trials": f"{sweep.evaluate.num_episodes} episodes a policy, the same for all" if sweep.evaluate else "none",
    }
    facts = {
        "video": f"{_filmed(plan, root)}",
        "finished": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "commit": _commit(),
    }
    return RunsInfo(recipe, versions, sweep.grid.seeds, counts, {k: v for k, v in facts.items() if v})


def _training(recipe: Any) -> str:
    return f"{recipe.train.num_steps} steps of {recipe.train.batch_size} samples"


def _filmed(plan: Plan, root: Path) -> str:
    for job in plan.jobs.values():
        if job.stage == "film":
            result = job.run(root).result() or {}
            return f"simulated: {result.get('num_takes')} takes, {result.get('hours', 0):.2f} h, decoded from mp4"
    return ""


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


__all__ = ["Conclusion", "conclude"]
