"""The verbs of trials on real robots: a blinded sheet to fill in, and the way back into the table."""

from __future__ import annotations

import math
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from egoscale.cli_sweep import Root, Sets, planned
from egoscale.console import shown

if TYPE_CHECKING:
    import polars as pl

    from egoscale.sweep.trials import Key
    from egoscale.sweep.trials_record import Record

trials_app = typer.Typer(no_args_is_help=True, help="Success on real robots: a blinded sheet, and its results.")


@trials_app.command("schedule")
def trials_schedule(
    tasks: Annotated[str, typer.Option(help="Names of the tasks, with commas between: push,lift.")],
    trials: Annotated[int, typer.Option(help="Trials of each policy in each task.")],
    initial_conditions: Annotated[int, typer.Option(help="Scenes laid out for each task; all policies face each.")],
    out: Annotated[Path, typer.Option(help="Folder for sheet.csv, sheet.html and key.json.")],
    policies: Annotated[
        list[str] | None, typer.Argument(help="Finished runs of stage finetune, or names of policies.")
    ] = None,
    sweep: Annotated[str | None, typer.Option(help="Also all finished policies of this sweep's recipe.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Repeats a sheet; who knows it can work out the key. Default: drawn, sealed.")
    ] = None,
    rate: Annotated[float, typer.Option(help="For the plan: the success rate of one policy ...")] = 0.5,
    difference: Annotated[float, typer.Option(help="... how much better another is, as 0.2 for 20 points ...")] = 0.2,
    power: Annotated[float, typer.Option(help="... and how often that should be shown.")] = 0.8,
    overrides: Sets = None,
    root: Root = Path("runs"),
) -> None:
    """A sheet of trials: letters for policies, complete blocks in random order, a sealed key, and how many suffice."""
    from egoscale.sweep.trials import digest, schedule, write

    known = _policies(policies or [], sweep, overrides, root)
    names = [task.strip() for task in tasks.split(",")]
    key = schedule(known, names, trials, initial_conditions, secrets.randbits(62) if seed is None else seed)
    enough = _enough(key, trials, initial_conditions, rate, difference, power)
    written = write(key, out)
    print(f"{len(key.trials)} trials: {len(known)} policies, {trials} trials each in {', '.join(key.tasks)}")
    print(enough)
    print("written: " + ", ".join(map(str, written)))
    print(f"SHA-256 of the key, on every row: {digest(key.text())}")
    print("give the key to somebody who neither runs nor judges trials")


def _policies(
    named: list[str], sweep: str | None, overrides: list[str] | None, root: Path
) -> dict[str, dict[str, object]]:
    """Policies by name with their columns of the table."""
    from egoscale.sweep.trials import of_run, policy

    if overrides and sweep is None:
        raise ValueError("--set changes the recipe of a sweep: name it with --sweep")
    known: dict[str, dict[str, object]] = {}
    for text in named:
        name, row = policy(text, root)
        if name in known:
            raise ValueError(f"{text}: named twice; a policy comes once, and --trials says how often it is tried")
        known[name] = row
    if sweep is not None:
        jobs = [job for job in planned(sweep, overrides).jobs.values() if job.stage == "finetune"]
        done = [job for job in jobs if job.run(root).state() == "done"]
        if not done:
            raise ValueError(f"--sweep {sweep}: none of its {len(jobs)} policies below {root} is finished")
        if len(done) < len(jobs):
            print(f"{len(jobs) - len(done)} of {len(jobs)} policies of {sweep} are not finished and are left out")
        known |= dict(of_run(job.run(root), job.labels) for job in done)
    return known


def _enough(key: Key, trials: int, num_conditions: int, rate: float, difference: float, power: float) -> str:
    """How many trials tell two policies apart, and what this sheet can do."""
    from egoscale.scaling.trials import episodes_for, power_for

    other = round(rate + difference, 12)
    if not (0 <= rate <= 1 and 0 <= other <= 1):
        raise ValueError(
            f"--rate {rate:g} --difference {difference:g}: compares the rates {rate:g} and {other:g}, and a success "
            "rate lies between 0 and 1; name a smaller difference"
        )
    tasks = len(key.tasks)
    need, have = episodes_for(rate, other, power), trials * tasks
    text = (
        f"to tell {100 * rate:.3g} % from {100 * other:.3g} % with power {power:g} takes {need} trials a policy; "
        f"this sheet has {have}"
    )
    if have >= need:
        return f"{text}, enough"
    more = math.ceil(need / tasks / num_conditions) * num_conditions
    return f"{text} (power {power_for(rate, other, have):.2f}); --trials {more} would do"


@trials_app.command("record")
def trials_record(
    sheet: Annotated[Path, typer.Argument(help="The sheet, filled in (.csv).")],
    key: Annotated[Path, typer.Option(help="The key that was written with it.")],
    out: Annotated[Path, typer.Option(help="The table to write: .csv or .parquet; trials and pairs go beside it.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept an unfinished sheet; what was not run counts nowhere.")
    ] = False,
) -> None:
    """Check a sheet, unblind it, and write the table that `egoscale fit` reads."""
    from egoscale.sweep.trials_record import record

    if out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--out {out}: must end in .csv or .parquet")
    beside = [out.with_name(f"{out.stem}{what}{out.suffix}") for what in ("", "-trials", "-pairs")]
    over = [file for file in beside for given in (sheet, key) if file.resolve() == given.resolve()]
    if over:
        raise ValueError(f"--out {out}: would write over {over[0]}; name another file")
    found = record(sheet, key, partial)
    out.parent.mkdir(parents=True, exist_ok=True)
    for file, table in zip(beside, (found.table(), found.raw(), found.pairs()), strict=True):
        table.write_csv(file) if file.suffix == ".csv" else table.write_parquet(file)
    print(shown(_standing(found)))
    if found.num_missing:
        print(f"partial: {found.num_missing} of {len(found.outcomes)} trials were not run; they count nowhere")
    if found.split_sets:
        print(f"{found.split_sets} sets have more than one operator: there operators and policies mix")
    print("written: " + ", ".join(map(str, beside)))


def _standing(found: Record) -> pl.DataFrame:
    """Each policy's successes with the exact interval."""
    import polars as pl

    from egoscale.scaling.trials import exact

    rows = []
    for row in found.table().iter_rows(named=True):
        known = bool(row["trials"])
        limits = [limit.item() for limit in exact(row["successes"], row["trials"])] if known else []
        rows.append(
            {
                "policy": row["policy"],
                "successes/trials": f"{row['successes']}/{row['trials']}" if known else "-",
                "95 % interval": "{:.0%} to {:.0%}".format(*limits).replace("%", " %") if known else "-",
                "mean credit": "-" if row["mean_partial_credit"] is None else f"{row['mean_partial_credit']:.2f}",
                "state": row["state"],
            }
        )
    return pl.DataFrame(rows)
