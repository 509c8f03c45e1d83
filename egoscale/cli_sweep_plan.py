"""The verbs that look and change nothing: what a sweep would cost, whether its law could be fitted, where it stands."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egoscale.cli_sweep import DEFAULT_JOBS, Anyway, Root, Sets, Sweep, planned, stages, sweep_app
from egoscale.console import BAD_INPUT, FAILED, complain, shown

if TYPE_CHECKING:
    import polars as pl

    from egoscale.scaling.findings import Notice
    from egoscale.sweep.bill import Forecast
    from egoscale.sweep.plan import Job, Plan
    from egoscale.sweep.status import Standing

__all__ = ["forecast", "objections", "sweep_app"]

WATCH_EVERY_S = 3.0
WATCH_SILENT_S = 30.0  # where Slurm does not answer, which it may take a minute to find out
WATCH_SHARE = 0.1  # of the time that may be spent looking: a controller has others to answer


@sweep_app.command("plan")
def sweep_plan(
    recipe: Sweep,
    overrides: Sets = None,
    root: Root = Path("runs"),
    jobs: Annotated[int, typer.Option(min=1, help="Jobs at a time on this machine.")] = DEFAULT_JOBS,
    profile: Annotated[str | None, typer.Option(help="On the cluster of a profile, as profiles/h100.")] = None,
    device: Annotated[
        str | None, typer.Option(help="The GPU of the GPU-hours; default: what the profile names, else H100.")
    ] = None,
    anyway: Anyway = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Say what a sweep holds and would cost: runs by stage, GPU-hours, disk, longest chain, wall time; and whether the
    study's law could be fitted from its grid. Changes nothing."""
    from egoscale.resources import find
    from egoscale.sweep.bill import lines
    from egoscale.sweep.cost import cost
    from egoscale.sweep.profile import load_profile

    plan = planned(recipe, overrides)
    cluster = load_profile(find("slurm", profile)) if profile else None
    found = cost(plan, root, jobs, cluster, forecast, device)
    law = objections(plan)
    refused = any(notice.severity == "error" for notice in law) and not anyway
    if as_json:
        document = found.document() | {"study": plan.sweep.study or None, "law": [asdict(notice) for notice in law]}
        print(json.dumps(document | {"refused": refused}, indent=1))
    else:
        print("\n".join(lines(found, shown)))
        for notice in law:
            print(f"{notice.code}  {notice.message} {notice.remedy}")
    if refused:
        complain("refused: the study's law could not be fitted from this grid; change the grid, or add --anyway")
        raise typer.Exit(BAD_INPUT)


def forecast(job: Job, device: str) -> Forecast | None:
    """What the job's recipe says of its cost; None where torch, which sizes the models, is not installed."""
    try:
        return stages().forecast(job, device)
    except ModuleNotFoundError:
        return None


def objections(plan: Plan) -> tuple[Notice, ...]:
    """What stands against the laws of the sweep's study on its grid; nothing where it has no study or no robot."""
    if not plan.cells or not plan.sweep.study:
        return ()
    from egoscale.resources import find
    from egoscale.scaling.design import findings
    from egoscale.scaling.study import load_study

    return findings(load_study(find("analysis", plan.sweep.study)), _cells(plan))


def _cells(plan: Plan) -> pl.DataFrame:
    """The table to come, without outcomes: a row a cell, with the columns of `egoscale.sweep.ledger.collect`."""
    import polars as pl

    from egoscale.sweep.ledger import columns

    rows: list[dict[str, Any]] = []
    for job in plan.cells:
        episodes = getattr(job.recipe, "num_episodes", 0)
        rows.append({**job.labels, "hours_unique": job.labels["hours"], "trials": episodes})
    return pl.DataFrame(rows, schema=columns(plan.cells), orient="row")


@sweep_app.command("status")
def sweep_status(
    recipe: Sweep,
    overrides: Sets = None,
    root: Root = Path("runs"),
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds, until nothing runs.")] = False,
) -> None:
    """How far a sweep is: one line a stage, one glyph a run, and why runs failed."""
    from egoscale.sweep.status import lines, standing

    plan = planned(recipe, overrides)
    if watch:
        found = _watched(plan, root)
    else:
        found = standing(plan, root)
        print("\n".join(lines(found)))
    if not found.complete:
        raise typer.Exit(FAILED)


def _watched(plan: Plan, root: Path) -> Standing:
    """The standing, shown anew in its place until nothing runs or waits in a queue; without a terminal, as lines when
    it changes. While Slurm does not answer nobody knows what waits, so the watch goes on."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from egoscale.sweep.status import lines, standing

    console = Console()
    shown_in_place = Live(console=console, auto_refresh=False, vertical_overflow="visible")
    found, told, idle = None, "", 0
    with shown_in_place if console.is_terminal else contextlib.nullcontext():
        while True:
            began = time.monotonic()
            found = standing(plan, root, before=found)
            text = "\n".join(lines(found))
            if console.is_terminal:
                shown_in_place.update(Text(text), refresh=True)
            elif text != told:
                print(text, flush=True)
            waited_for = found.counts["running"] + found.counts["queued"] or found.silent_since
            idle = 0 if waited_for else idle + 1
            if found.complete or idle > 1 or (idle and not told):  # between two runs of a machine there may be none
                return found
            told = text
            took = time.monotonic() - began
            time.sleep(WATCH_SILENT_S if found.silent_since else max(WATCH_EVERY_S, took / WATCH_SHARE))
