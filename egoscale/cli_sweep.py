"""The verbs of a sweep, and the door to `egoscale.stages`."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

import typer
from typer.core import TyperGroup

from egoscale.console import FAILED, INTERRUPTED, bar, complain

if TYPE_CHECKING:
    from egoscale.recipe import StageRecipe, SweepRecipe
    from egoscale.sweep.bill import Forecast
    from egoscale.sweep.ledger import RunFolder
    from egoscale.sweep.plan import Job, Plan

DEFAULT_JOBS = 2
MOST_LISTED = 20

VERBS = ("plan", "run", "submit", "status", "cancel", "retry", "logs", "collect")


class Verbs(TyperGroup):
    """The help lists the verbs in the order in which a study needs them."""

    def list_commands(self, ctx: object) -> list[str]:
        return [verb for verb in VERBS if verb in self.commands]


sweep_app = typer.Typer(
    cls=Verbs, no_args_is_help=True, help="The grid of a study: plan it, run it, see and collect it."
)

Root = Annotated[Path, typer.Option("--root", help="Where the run folders are.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in train.num_steps=3."),
]
Anyway = Annotated[
    bool, typer.Option("--anyway", help="Go on although the study's law could not be fitted from this grid.")
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
    def dry_run(self, recipe: StageRecipe, **options: Any) -> Sequence[str]: ...
    def deepspeed_changes(self, recipe: StageRecipe | SweepRecipe) -> Sequence[str]: ...
    def forecast(self, job: Job, device: str) -> Forecast | None: ...
    def conclude(self, sweep: SweepRecipe, plan: Plan, root: Path) -> Conclusion: ...


def stages() -> Stages:
    """`egoscale.stages`, imported when a verb needs it."""
    return cast(Stages, importlib.import_module("egoscale.stages"))


def execute(run: RunFolder) -> None:
    """Run one folder in this process; a failure is noted in the folder and ends with exit code 1.

    Where another process holds the run, nothing is noted: the folder tells that process's story.
    """
    from egoscale.sweep.ledger import RunLockedError, reason_of

    if run.state() == "done":
        return
    try:
        with bar(str(run)) as report:
            stages().execute(str(run.path), report)
    except RunLockedError as error:
        complain(f"{run} was not begun: {reason_of(error)}")
        raise typer.Exit(FAILED) from None
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        if run.holder() is None:  # what failed before the lock (no torch on this machine) is not the holder's failure
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


# What the column `state` of a table holds: of `sweep collect`, and of `trials record`.
STATES = ("new", "running", "partial", "failed", "interrupted", "done")


def unfinished(states: Sequence[str | None]) -> str:
    """A line that says how many rows of a table are not done: a law of what happened to finish is not the study's.

    Empty where all are done, or the column means something else.
    """
    if not set(states) & set(STATES):
        return ""
    left = Counter(state or "unknown" for state in states if state != "done")
    order = [*STATES, *sorted(left.keys() - set(STATES))]
    counts = ", ".join(f"{left[state]} {state}" for state in order if left[state])
    return f"The table is partial: {left.total()} of {len(states)} rows are not done ({counts})." if left else ""


def conclude(plan: Plan, root: Path) -> None:
    """Print the law, the table and the path of the report; first, how much of the table is missing."""
    rows = plan.cells or [job for job in plan.jobs.values() if job.stage == "world"]
    if partial := unfinished([job.run(root).state() for job in rows]):
        print(f"{partial}\n")
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


@sweep_app.command("run")
def sweep_run(
    recipe: Sweep,
    overrides: Sets = None,
    root: Root = Path("runs"),
    jobs: Annotated[int, typer.Option(min=1, help="Jobs at a time on this machine.")] = DEFAULT_JOBS,
) -> None:
    """Compute what is missing, then the law. Stopped at any moment and started again, it goes on."""
    from egoscale.cli_sweep_plan import objections
    from egoscale.sweep.local import run as run_plan

    plan = planned(recipe, overrides)
    for notice in objections(plan):  # a person at their own machine may want the runs all the same
        if notice.severity == "error":
            complain(f"{notice.code}  {notice.message} {notice.remedy}")
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


@sweep_app.command("submit")
def sweep_submit(
    recipe: Sweep,
    profile: Annotated[str, typer.Option(help="A profile of the cluster: a path, or a name such as profiles/h100.")],
    overrides: Sets = None,
    root: Root = Path("runs"),
    anyway: Anyway = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay, and send what max_submitted held back as the queue gets shorter.")
    ] = False,
) -> None:
    """Send what is missing to Slurm: an array for each stage, each run waiting for its own inputs alone."""
    from egoscale.cli_sweep_plan import objections
    from egoscale.resources import find
    from egoscale.sweep.profile import load_profile
    from egoscale.sweep.submission import lines, submit, submit_all

    plan = planned(recipe, overrides)
    refused = [notice for notice in objections(plan) if notice.severity == "error"]
    if refused and not anyway:
        told = "\n".join(f"{notice.code}  {notice.message} {notice.remedy}" for notice in refused)
        raise ValueError(f"{told}\nnothing was sent: change the grid, or add --anyway")
    cluster = load_profile(find("slurm", profile))
    told = ""
    for answer in submit_all(plan, root, cluster) if wait else [submit(plan, root, cluster)]:
        text = "\n".join(lines(answer))
        if text != told:
            print(text, flush=True)
        told = text
        if answer.cancelled:
            raise typer.Exit(INTERRUPTED)


@sweep_app.command("cancel")
def sweep_cancel(recipe: Sweep, overrides: Sets = None, root: Root = Path("runs")) -> None:
    """Take the runs of a sweep out of Slurm's queue; those at work save and end. What is done stays."""
    from egoscale.sweep.submission import cancel

    found = cancel(planned(recipe, overrides), root)
    law = ", and the conclusion" if found.conclusions else ""
    print(f"{found.runs} runs cancelled{law}; `egoscale sweep submit` sends what is missing again")
    if found.others:
        print(f"{found.others} jobs stay in the queue: other grids of this sweep, and what they wait for")


@sweep_app.command("retry")
def sweep_retry(
    recipe: Sweep,
    overrides: Sets = None,
    root: Root = Path("runs"),
    failed: Annotated[bool, typer.Option("--failed", help="Those that failed, and what waits for them.")] = False,
) -> None:
    """Send failed runs again, with what they held up, by the profile of the last submission."""
    from egoscale.recipe import validate
    from egoscale.sweep.profile import Profile
    from egoscale.sweep.status import standing
    from egoscale.sweep.study import Study
    from egoscale.sweep.submission import lines, submit

    if not failed:
        raise ValueError("say which: `egoscale sweep retry RECIPE --failed`")
    plan = planned(recipe, overrides)
    saved = Study(plan, root).slurm / "profile.json"
    if not saved.is_file():
        raise FileNotFoundError(f"{saved}: never submitted from this root; `egoscale sweep submit` comes first")
    profile = validate(Profile, json.loads(saved.read_text()), saved)
    found = standing(plan, root)
    again = {str(plan.jobs[key]) for key, state in found.states.items() if state in ("failed", "blocked")}
    for line in lines(submit(plan, root, profile, only=again)):
        print(line)


@sweep_app.command("logs")
def sweep_logs(
    recipe: Sweep,
    run: Annotated[
        str,
        typer.Argument(help="A run (world/ab12cd34ef56), or the start of its name: several are listed; or conclusion."),
    ],
    overrides: Sets = None,
    root: Root = Path("runs"),
    lines: Annotated[int, typer.Option(min=1, help="Last lines of each log.")] = 40,
) -> None:
    """The events of a run and the end of its logs; or those of the job that fits the law."""
    from egoscale.sweep.study import Study

    plan = planned(recipe, overrides)
    if run == "conclusion":
        sent = Study(plan, root).conclusions()
        if not sent:
            raise ValueError(f"{recipe}: no conclusion was sent from {root}; `egoscale sweep submit` sends one")
        print(f"conclusion: {len(sent)} sent, the last as job {sent[-1][0].job}")
        if not sent[-1][1].is_file():
            print(f"it has not begun, or was cancelled; its log will be {sent[-1][1]}")
        _print_ends([log for _, log in sent], lines)
        return
    stage, _, key = run.rpartition("/")
    found = [job for job in plan.jobs.values() if job.key.startswith(key) and job.stage.startswith(stage)]
    if len(found) != 1:
        raise ValueError(_listed(run, found, plan, root))
    folder = found[0].run(root)
    print(f"{found[0].title()} ({found[0]}): {folder.state()}")
    for event in folder.events():
        rest = ", ".join(f"{name} {value}" for name, value in event.items() if name not in ("time", "event", "ranks"))
        print(f"{event.get('time', '')}  {event['event']}  {rest}".rstrip())
    _print_ends([folder.path / "log.txt", *Study(plan, root).logs(str(found[0]))], lines)


def _print_ends(logs: Sequence[Path], lines: int) -> None:
    """The last lines of each log that holds any."""
    for log in logs:
        if log.is_file() and log.stat().st_size:
            print(f"--- {log}")
            print("\n".join(log.read_text(errors="replace").splitlines()[-lines:]))


def _listed(name: str, found: Sequence[Job], plan: Plan, root: Path) -> str:
    """An error that lists the runs whose names begin so, or says how names begin."""
    from egoscale.sweep.status import standing

    if not found:
        beginnings = ", ".join(dict.fromkeys(f"{job.stage}/" for job in plan.jobs.values()))
        return f"{name}: no run of this sweep is called so; the beginning of a name lists runs: {beginnings}"
    states = standing(plan, root).states
    rows = [f"  {job}  {states[job.key]:<12}{job.title()}" for job in found[:MOST_LISTED]]
    more = [f"  … and {len(found) - MOST_LISTED} more"] if len(found) > MOST_LISTED else []
    return "\n".join([f"{name!r}: {len(found)} runs of this sweep are called so; give more of a name:", *rows, *more])


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
    file = out or root / f"{plan.sweep.name}.parquet"
    if file.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--out {file}: must end in .csv or .parquet")
    table = collect(root, plan.jobs.values())
    file.parent.mkdir(parents=True, exist_ok=True)
    table.write_csv(file) if file.suffix == ".csv" else table.write_parquet(file)
    partial = table.filter(table["state"] != "done").height
    print(f"{file}: {table.height} cells" + (f", {partial} of them partial" if partial else ""))
    if partial:
        raise typer.Exit(FAILED)
