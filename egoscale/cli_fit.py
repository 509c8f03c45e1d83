"""The verbs of the law: `fit` finds it, `ask` turns it into decisions. Neither loads torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from egoscale.cli_sweep import Root, Sets, planned, unfinished
from egoscale.console import BAD_INPUT, read_table, shown

if TYPE_CHECKING:
    import polars as pl

    from egoscale.scaling import Fit, StudySpec
    from egoscale.scaling.ranking_table import Ranking

Study = Annotated[str, typer.Argument(help="A study: a path to study.toml or its folder, or a name such as tabletop.")]
Table = Annotated[
    Path | None,
    typer.Option("--table", help="The table (.csv, .parquet), or a sweep's recipe; default: the one the study names."),
]

ask_app = typer.Typer(
    no_args_is_help=True,
    help="What a law means for a budget: hours, the next run, the mix; and which policy is better.",
)


def fit(
    study: Study,
    table: Table = None,
    json: Annotated[Path | None, typer.Option("--json", help="Where the JSON goes; default: in --out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of outputs; default: fit/ beside the study.")] = None,
    overrides: Sets = None,
    root: Root = Path("runs"),
    figures: Annotated[bool, typer.Option(help="Also write figures and the page.")] = True,
) -> None:
    """Fit the laws of a study to a table: estimates, intervals, held-out size, forecasts, warnings, a page.

    Exit code 2 where the leading law is refused; the JSON says why all the same.
    """
    from egoscale.scaling import fit_study
    from egoscale.scaling.outputs import fit_document, write_figures, write_json

    asked, rows, path = _opened(study, table, overrides, root)
    _tell_partial(rows)
    fits = fit_study(rows, asked)
    print("\n\n".join(one.summary() for one in fits))
    folder = out or _beside(path, asked.name)
    document = fit_document(fits, rows, asked)
    for chained in document["chained"]:
        print(f"\nthrough the loss: {chained['sentence']}")
    target = json or folder / "fit.json"
    write_json(target, document)
    written = [target]
    if figures:
        from egoscale.scaling.page.interactive import write_page

        written += [p for p in write_figures(folder, rows, fits, asked) if p.suffix == ".svg"]
        written.append(write_page(folder / "fit.html", rows, fits, asked))
    print("\nwritten: " + ", ".join(map(str, written)))
    if fits[0].refused_ is not None:
        raise typer.Exit(BAD_INPUT)


def _beside(path: Path, name: str) -> Path:
    """`fit/` beside a study or table; below the working directory for one that lies in the installed package."""
    from egoscale.resources import share

    installed = share().name == "_share" and path.resolve().is_relative_to(share().resolve())
    return Path("fit") / name if installed else path.parent / "fit"


def _opened(
    study: str, table: Path | None, overrides: list[str] | None, root: Path
) -> tuple[StudySpec, pl.DataFrame, Path]:
    """The study, its table, and where the study lies."""
    from egoscale.resources import find
    from egoscale.scaling import load_study

    path = find("analysis", study)
    asked = load_study(path, overrides or ())
    if table is None:
        if asked.table is None:
            raise ValueError(
                f"{path}: the study names no table; give one with --table, or a sweep's recipe to read its runs"
            )
        table = path.parent / asked.table
    if table.suffix == ".toml":
        from egoscale.sweep.ledger import collect

        return asked, collect(root, planned(str(table), None).jobs.values()), path
    return asked, read_table(table), path


def _tell_partial(rows: pl.DataFrame) -> None:
    """Say how many rows of a sweep's table, or of one of trials, are not done."""
    if "state" in rows.columns and (partial := unfinished(rows["state"].to_list())):
        print(f"{partial}\n")


def _leading(study: str, table: Path | None, overrides: list[str] | None, root: Path, law: str | None) -> Fit:
    """The law that a question is put to.

    Raises:
        ValueError: it was refused.
    """
    from egoscale.scaling import fit as fit_one

    asked, rows, path = _opened(study, table, overrides, root)
    _tell_partial(rows)
    found = fit_one(rows, asked, law)
    if found.refused_ is not None:
        raise ValueError(f"{path}: {found.refused_.code} {found.refused_.message} {found.refused_.remedy}")
    return found


Law = Annotated[str | None, typer.Option("--law", help="One of the study's laws; default: its first.")]


@ask_app.command()
def hours(
    study: Study,
    target: Annotated[float | None, typer.Option(help="A success rate (0.8) or a loss.")] = None,
    gain: Annotated[
        float | None, typer.Option(help="Instead: so much above the largest size (0.1 is +10 points).")
    ] = None,
    second: Annotated[float | None, typer.Option(help="Value of the second x, as demonstrations.")] = None,
    table: Table = None,
    law: Law = None,
    overrides: Sets = None,
    root: Root = Path("runs"),
) -> None:
    """How many hours for a target, with the sizes that the data do not rule out."""
    from egoscale.scaling.sentence import limits

    found = _leading(study, table, overrides, root, law)
    answer = found.invert(target, gain, second=second)
    unit = found.study.size.symbol
    level = f"{100 * found.study.intervals.level:g} %"
    for notice in found.warnings_:
        print(f"{notice.code}: {notice.message}")
    if answer.estimate is None:
        print(f"The law never reaches {answer.target:.3g}.")
    else:
        beyond = (
            "inside the data"
            if (answer.times_largest or 0) <= 1
            else f"{answer.times_largest:.3g} times the largest size"
        )
        print(f"{answer.estimate:.3g} {unit} for {answer.target:.3g}, {beyond}.")
    print(f"Not ruled out at {level}: {limits([answer.low, answer.high])} {unit}.")
    if answer.cost is not None:
        print(f"Cost: {answer.cost:.4g} {found.study.prices.currency}.")


@ask_app.command(name="next")
def next_run(
    study: Study,
    forecast: Annotated[float, typer.Option(help="The size whose forecast should become sharper.")],
    sizes: Annotated[list[float] | None, typer.Option("--size", help="A candidate size; may be repeated.")] = None,
    episodes: Annotated[list[int] | None, typer.Option(help="Candidate numbers of episodes a cell.")] = None,
    table: Table = None,
    law: Law = None,
    overrides: Sets = None,
    root: Root = Path("runs"),
) -> None:
    """Which run to do next: what each would take off the forecast's variance, per cost."""
    import polars as pl

    found = _leading(study, table, overrides, root, law)
    unit, prices = found.study.size.symbol, found.study.prices
    rows = [
        {
            f"size ({unit})": c.size, "episodes": c.episodes, "variance removed": f"{100 * c.shrinkage:.1f} %",
            f"cost ({prices.currency})": c.cost or None, "removed per cost": f"{c.per_cost:.3g}",
        }
        for c in found.next_runs(forecast, sizes=sizes, episodes=tuple(episodes or ()))
    ]  # fmt: skip
    print(shown(pl.DataFrame(rows)))
    if not (prices.run or prices.size or prices.episode):
        print("Every run counts as equally dear: [prices] in the study says what hours, runs and episodes cost.")


@ask_app.command()
def mix(
    study: Study,
    target: Annotated[float, typer.Option(help="A success rate or a loss.")],
    table: Table = None,
    law: Law = None,
    overrides: Sets = None,
    root: Root = Path("runs"),
) -> None:
    """Video or demonstrations: the cheapest pair that meets a target, and how sure the data are of it."""
    found = _leading(study, table, overrides, root, law)
    best, prices = found.cheapest_mix(target), found.study.prices
    second = found.study.second
    assert second is not None  # cheapest_mix refuses one input
    if best.size is None or best.second is None:
        print(f"The law reaches {target:g} nowhere within 100 times the data.")
    else:
        print(
            f"{best.size:.3g} {found.study.size.symbol} and {best.second:.3g} {second.symbol} for {best.cost:.4g} "
            f"{prices.currency}."
        )
    if best.share:
        low, q1, middle, q3, high = (f"{100 * share:.0f} %" for share in best.share)
        print(
            f"Share of the money for {found.study.size.words}: median {middle}, half of the draws {q1} to {q3}, "
            f"nine in ten {low} to {high}."
        )
    print(f"{100 * best.reached:.0f} % of the draws reach {target:g} within 100 times the data.")


@ask_app.command()
def better(
    a: Annotated[str, typer.Argument(help="Policy A: successes/trials, as 40/50.")],
    b: Annotated[str, typer.Argument(help="Policy B.")],
    level: Annotated[float, typer.Option(help="Confidence level.")] = 0.95,
) -> None:
    """Is B better than A? The exact test for two policies, and the episodes still needed."""
    from egoscale.scaling.trials import compare_policies

    (a_won, a_trials), (b_won, b_trials) = _counts(a), _counts(b)
    print(compare_policies(a_won, a_trials, b_won, b_trials, level).verdict)


@ask_app.command()
def pairs(
    table: Annotated[Path, typer.Argument(help="A row for each pair of trials, in the order in which they were run.")],
    a: Annotated[str, typer.Option("--a", help="Column of policy A: 1 or true where it succeeded.")],
    b: Annotated[str, typer.Option("--b", help="Column of policy B, from the same initial state.")],
    level: Annotated[float, typer.Option(help="Confidence level.")] = 0.95,
) -> None:
    """Is B better than A, tried side by side? The paired test, and whether one might have stopped earlier."""
    from egoscale.scaling.trials import compare_paired, sequential_comparison

    rows = read_table(table)
    won_a, won_b = (_outcomes(rows, table, column) for column in (a, b))
    both, only_a, only_b, neither = (sum(pair == cell for pair in zip(won_a, won_b, strict=True)) for cell in _CELLS)
    print(compare_paired(both, only_a, only_b, neither, level).verdict)
    print(sequential_comparison(won_a, won_b, level).verdict)


@ask_app.command()
def ranking(
    table: Annotated[Path, typer.Argument(help="A row for each policy (of each task): .csv or .parquet.")],
    model: Annotated[str, typer.Option(help="Column of scores in the simulator or world model, 0 to 1.")],
    real: Annotated[str, typer.Option(help="Column of scores on the robot, 0 to 1.")],
    policy: Annotated[str | None, typer.Option(help="Column of the policies' names.")] = None,
    group: Annotated[str | None, typer.Option(help="Column of tasks: policies are ranked within each.")] = None,
    model_trials: Annotated[str | None, typer.Option(help="Column of trials behind each score in the model.")] = None,
    real_trials: Annotated[str | None, typer.Option(help="Column of trials behind each score on the robot.")] = None,
    level: Annotated[float, typer.Option(help="Confidence level.")] = 0.95,
    json: Annotated[Path | None, typer.Option("--json", help="Where the JSON goes; default: in --out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of outputs; default: fit/ beside the table.")] = None,
    figures: Annotated[bool, typer.Option(help="Also draw reality against the model.")] = True,
) -> None:
    """Does a simulator or world model rank policies as the robot does? Correlations, calibration, cost of its order.

    Exit code 2 where the table cannot say; the JSON says why all the same.
    """
    from egoscale.scaling.outputs import write_json, write_ranking
    from egoscale.scaling.ranking_table import RankingColumns, rank_table

    columns = RankingColumns(model, real, policy, group, model_trials, real_trials)
    found = rank_table(read_table(table), columns, level)
    folder = out or _beside(table, table.parent.name)
    target = json or folder / "ranking.json"
    write_json(target, found.to_json())
    written = [target]
    for notice in found.warnings_:
        print(f"{notice.code}: {notice.message}\n    {notice.remedy}")
    if found.refused_ is None:
        print(_agreements(found))
        written += [p for p in write_ranking(folder, found) if p.suffix == ".svg"] if figures else []
    else:
        print(f"refused {found.refused_.code}: {found.refused_.message}\n    {found.refused_.remedy}")
    print("\nwritten: " + ", ".join(map(str, written)))
    if found.refused_ is not None:
        raise typer.Exit(BAD_INPUT)


def _agreements(found: Ranking) -> str:
    """A line for each group, refused ones with their code, and what the table says in words where it is one group."""
    import polars as pl

    rows = []
    for one in found.shown:
        row = ({"group": one.name} if found.columns.group else {}) | {"policies": one.rows.height}
        if one.agreement is None:
            rows.append(row | {"r": one.refused.code if one.refused else "-"})
            continue
        a = one.agreement
        interval = {"r": a.pearson, "rank r": a.spearman, "slope": a.slope}
        row |= {name: f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for name, e in interval.items()}
        rows.append(row | {"model - real": f"{100 * a.bias:+.0f} points", "MMRV": f"{a.mmrv:.3f}"})
    refused = [f"{one.refused.code}: {one.refused.message}" for one in found.shown if one.refused]
    only = found.groups[0].agreement if len(found.groups) == 1 else None
    level = f"[...]: {100 * found.level:g} %. slope: points in reality for a point in the model."
    table = pl.DataFrame(rows, infer_schema_length=None).fill_null("-")
    return "\n".join([shown(table), level, *refused, *([only.verdict] if only else [])])


_CELLS = ((True, True), (True, False), (False, True), (False, False))


def _outcomes(rows: pl.DataFrame, table: Path, column: str) -> list[bool]:
    if column not in rows.columns:
        raise ValueError(f"{table}: no column {column!r}; it has {', '.join(rows.columns)}")
    values = rows[column].to_list()
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    bad = [value for value in values if str(value).lower() not in words]
    if bad:
        raise ValueError(f"{table}: column {column!r} holds {bad[0]!r}; write 1 or 0")
    return [words[str(value).lower()] for value in values]


def _counts(text: str) -> tuple[int, int]:
    won, slash, trials = text.partition("/")
    if not slash or not won.strip().isdigit() or not trials.strip().isdigit():
        raise ValueError(f"{text}: write successes/trials, as 40/50")
    return int(won), int(trials)
