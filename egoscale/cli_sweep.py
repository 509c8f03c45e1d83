"""The verbs of a sweep and of a catalogue, and the door to `egoscale.stages`."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

import typer

from egoscale.console import FAILED, INTERRUPTED, bar, complain, read_table, shown

if TYPE_CHECKING:
    import polars as pl

    from egoscale.recipe import StageRecipe, SweepRecipe
    from egoscale.sweep.ledger import RunFolder
    from egoscale.sweep.plan import Plan

DEFAULT_JOBS = 2

catalog_app = typer.Typer(no_args_is_help=True, help="List video: every clip, its hours, what cannot be decoded.")
sweep_app = typer.Typer(no_args_is_help=True, help="The grid of a study: plan it, run it, see and collect it.")

Root = Annotated[Path, typer.Option("--root", help="Where the run folders are.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in train.num_steps=3."),
]
Sweep = Annotated[str, typer.Argument(help="A sweep recipe: a path, or a name such as sweeps/tabletop.")]


class Conclusion(Protocol):
    """What a finished sweep says: the law in a line, a table, and where the report is."""

    lines: Sequence[str]
    report_path: Path


class Stages(Protocol):
    """What the verbs need of `egoscale.stages`, the one room that imports torch."""

    MODULES: Sequence[str]

    def execute(self, run_path: str, report: Callable[[Mapping[str, Any]], None] | None) -> None: ...
    def dry_run(self, recipe: StageRecipe) -> Sequence[str]: ...
    def conclude(self, sweep: SweepRecipe, plan: Plan, root: Path) -> Conclusion: ...


def stages() -> Stages:
    """`egoscale.stages`, imported when a verb needs it."""
    return cast(Stages, importlib.import_module("egoscale.stages"))


def execute(run: RunFolder) -> None:
    """Run one folder in this process; a failure is noted in the folder and ends with exit code 1."""
    from egoscale.sweep.ledger import reason_of

    if run.state() == "done":
        return
    try:
        with bar(str(run)) as report:
            stages().execute(str(run.path), report)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        run.fail(reason_of(error))
        complain(f"{run} failed: {reason_of(error)}")
        raise typer.Exit(FAILED) from None


def planned(recipe: str, overrides: Sequence[str] | None) -> Plan:
    """The plan of a sweep recipe."""
    from egoscale.recipe import SweepRecipe, load_recipe
    from egoscale.resources import find
    from egoscale.sweep.plan import plan

    read = load_recipe(find("recipes", recipe), overrides or [])
    if not isinstance(read, SweepRecipe):
        raise ValueError(
            f"{recipe}: key `stage` = {read.stage!r}: this verb needs a sweep; try `egoscale train {recipe}`"
        )
    return plan(read)


def conclude(plan: Plan, root: Path) -> None:
    """Print the law, the table and the path of the report."""
    found = stages().conclude(plan.sweep, plan, root)
    for line in found.lines:
        print(line)
    print(f"report: {found.report_path}")


def mirrored(plan: Plan, root: Path) -> contextlib.AbstractContextManager[None]:
    """Mirror the runs of a sweep into MLflow while it goes on: experiment = study, tags = stage, key and labels."""
    from egoscale.train.tracking import following

    runs = {
        job.run(root).path.resolve(): {"stage": job.stage, "key": job.key}
        | {name: str(value) for name, value in job.labels.items()}
        for job in plan.jobs.values()
    }
    return following(runs, plan.sweep.name)


def standing(plan: Plan, root: Path) -> pl.DataFrame:
    """Jobs by stage and state."""
    import polars as pl

    from egoscale.recipe import STAGES

    rows: dict[str, dict[str, int]] = {}
    for job in plan.jobs.values():
        row = rows.setdefault(job.stage, dict.fromkeys(("jobs", "done", "running", "failed", "interrupted", "new"), 0))
        row["jobs"] += 1
        row[job.run(root).state()] += 1
    return pl.DataFrame([{"stage": stage, **rows[stage]} for stage in STAGES if stage in rows])


@catalog_app.command("build")
def catalog_build(
    folders: Annotated[list[Path], typer.Argument(help="Folders of video.")],
    reader: Annotated[str, typer.Option(help="folder, takes or captaincook4d: how metadata are read.")] = "folder",
    license: Annotated[str, typer.Option(help="Licence of the video, kept with each clip.")] = "",
    root: Root = Path("runs"),
) -> None:
    """Decode every file once and write the catalogue, a row a clip."""
    from egoscale.recipe import CatalogRecipe, validate
    from egoscale.sweep.ledger import RunFolder

    sources = [{"reader": reader, "path": str(path.resolve()), "license": license} for path in folders]
    recipe = validate(CatalogRecipe, {"stage": "catalog", "sources": sources}, "egoscale catalog build")
    run = RunFolder.create(root, recipe, {})
    execute(run)
    catalog_info(run.path)


@catalog_app.command("info")
def catalog_info(
    path: Annotated[Path, typer.Argument(help="A run folder of stage catalog, or its catalog.parquet.")],
) -> None:
    """Hours, clips and people by source, and why clips are unusable."""
    import polars as pl

    file = path / "catalog.parquet" if path.is_dir() else path
    catalog = read_table(file)
    hours = (pl.col("duration_s").filter("usable").sum() / 3600).round(3).alias("hours")
    people = pl.col("participant_id").n_unique().alias("participants")
    scenes = pl.col("scene_id").n_unique().alias("scenes")
    usable = pl.col("usable").sum().alias("usable_clips")
    by_source = catalog.group_by("source", maintain_order=True).agg(
        hours, pl.len().alias("clips"), usable, people, scenes
    )
    print(file)
    print(shown(by_source))
    bad = catalog.filter(~pl.col("usable")).group_by("source", "reason").agg(pl.len().alias("clips"))
    if bad.height:
        print("unusable:")
        print(shown(bad.sort("clips", descending=True)))


@sweep_app.command("plan")
def sweep_plan(recipe: Sweep, overrides: Sets = None, root: Root = Path("runs"), jobs: int = DEFAULT_JOBS) -> None:
    """List the jobs of a sweep: how many of each stage, how many are done, how long the rest may take."""
    from egoscale.sweep.progress import Estimate, duration

    plan = planned(recipe, overrides)
    print(f"{plan.sweep.name}: {len(plan.cells)} cells from {len(plan.jobs)} jobs")
    print(shown(standing(plan, root)))
    waiting = [job for job in plan.jobs.values() if job.run(root).state() != "done"]
    left = Estimate(plan, root, jobs).left(waiting, {})
    print(f"about {duration(left)} left with {jobs} jobs at a time" if waiting else "nothing left to run")


@sweep_app.command("run")
def sweep_run(
    recipe: Sweep,
    overrides: Sets = None,
    root: Root = Path("runs"),
    jobs: Annotated[int, typer.Option(min=1, help="Jobs at a time on this machine.")] = DEFAULT_JOBS,
) -> None:
    """Compute what is missing, then the law. Stopped at any moment and started again, it goes on."""
    from egoscale.sweep.local import run as run_plan

    plan = planned(recipe, overrides)
    # Imported once for all jobs, which saves each of them about 2.5 s. (Some of these start idle threads
    # before the fork; 400 forks of such a process, each computing with polars and torch, went well.)
    preload = ("torch", "deepspeed", *stages().MODULES)
    with mirrored(plan, root):
        done = run_plan(plan, root, "egoscale.stages:execute", jobs, preload=preload)
    for name, reason in done.failed.items():
        complain(f"{name} failed: {reason}")
    if done.interrupted:
        complain(f"stopped: {done.done} of {len(plan.jobs)} jobs are done and kept; the same command goes on")
        raise typer.Exit(INTERRUPTED)
    if not done.complete:
        complain(
            f"{done.done} of {len(plan.jobs)} jobs are done; {len(done.failed)} failed, "
            f"{len(done.blocked)} wait for them"
        )
        raise typer.Exit(FAILED)
    conclude(plan, root)


@sweep_app.command("status")
def sweep_status(recipe: Sweep, overrides: Sets = None, root: Root = Path("runs")) -> None:
    """How far a sweep is, by stage, read from the run folders; and why runs failed."""
    plan = planned(recipe, overrides)
    print(shown(standing(plan, root)))
    states = {job: job.run(root).state() for job in plan.jobs.values()}
    for job, state in states.items():
        if state == "failed":
            reasons = [event.get("reason", "") for event in job.run(root).events() if event["event"] == "fail"]
            print(f"{job.title()} ({job}) failed: {reasons[-1] if reasons else 'no reason noted'}")
        elif state == "running":
            print(f"{job.title()} ({job}) running: {job.run(root).holder()}")
    if set(states.values()) != {"done"}:
        raise typer.Exit(FAILED)


@sweep_app.command("collect")
def sweep_collect(
    recipe: Sweep,
    overrides: Sets = None,
    root: Root = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="A .csv or .parquet file; default: <root>/<name>.parquet.")] = None,
) -> None:
    """Write the table, one row a cell, with what there is; a missing number stays missing."""
    from egoscale.sweep.ledger import collect

    plan = planned(recipe, overrides)
    table = collect(root, plan.jobs.values())
    file = out or root / f"{plan.sweep.name}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--out {file}: must end in .csv or .parquet")
    table.write_csv(file) if file.suffix == ".csv" else table.write_parquet(file)
    partial = table.filter(table["state"] != "done").height
    print(f"{file}: {table.height} cells" + (f", {partial} of them partial" if partial else ""))
    if partial:
        raise typer.Exit(FAILED)
