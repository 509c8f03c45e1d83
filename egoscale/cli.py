"""The verbs, in the order of a study. Each imports what it needs when called: `egoscale fit` loads no torch.

Exit codes: 0 all done, 1 work failed or is missing, 2 bad input, 85 saved and wants to be started again,
130 stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from egoscale.cli_catalog import catalog_app
from egoscale.cli_checkpoint import checkpoint_app, export
from egoscale.cli_fit import ask_app, fit
from egoscale.cli_sweep import Root, Sets, Sweep, conclude, execute, planned, stages
from egoscale.cli_sweep_plan import sweep_app
from egoscale.cli_trials import trials_app
from egoscale.cli_video import video_app
from egoscale.console import BAD_INPUT, FAILED, INTERRUPTED, complain, explained

if TYPE_CHECKING:
    from egoscale.doctor import Finding
    from egoscale.recipe import StageRecipe, SweepRecipe
    from egoscale.sweep.ledger import RunFolder

VERBS = (
    "init", "check", "doctor", "catalog", "video", "train", "checkpoint", "export",
    "sweep", "trials", "fit", "ask", "report", "run",
)  # fmt: skip


class Story(TyperGroup):
    """The help lists the verbs in the order in which a study needs them."""

    def list_commands(self, ctx: object) -> list[str]:
        return list(VERBS)


app = typer.Typer(
    cls=Story,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="How much robot success does another thousand hours of first-person video buy?\n\n"
    "[bold]init[/] copies the definitions, [bold]check[/] proves them, [bold]catalog[/] counts the hours, "
    "[bold]train[/] does one stage, [bold]sweep[/] the whole grid, [bold]fit[/] finds the law, "
    "[bold]ask[/] what it means for a budget, [bold]report[/] shows it.",
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass  # `main` reads the option, so that it may stand anywhere on the line


@app.command()
def init(directory: Annotated[Path, typer.Argument(help="Where to put the copies.")] = Path()) -> None:
    """Copy recipes, tokenizers, Slurm profiles and analyses to a folder, to be edited."""
    from egoscale.resources import copy_share

    written = copy_share(directory)
    print(f"{len(written)} files written to {directory.resolve()}; nothing that was there was changed")
    print("next: egoscale doctor; egoscale check; egoscale sweep run sweeps/tabletop")


@app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Definitions; none = all that are found here.")] = None,
    overrides: Sets = None,
) -> None:
    """Check definitions, and print the resolved recipe of those that are named."""
    from egoscale.resources import KINDS, find
    from egoscale.resources import names as known

    if names:
        for name in names:
            print(checked(find_any(name), overrides or []), end="")
        return
    if overrides:
        raise ValueError("--set needs the name of a definition")
    paths = [find(kind, name) for kind in KINDS for name in known(kind)]
    faults = []
    for path in paths:
        try:
            checked(path)
            print(f"ok  {path}")
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
            print(f"BAD {path}")
    print(f"{len(paths)} definitions, {len(faults)} with faults")
    if faults or not paths:
        raise ValueError("\n".join(faults) or "no definitions found: `egoscale init` copies the shipped ones here")


@app.command()
def doctor(
    root: Root = Path("runs"),
    profile: Annotated[str | None, typer.Option(help="Look at this cluster instead, from its login node.")] = None,
    wait_s: Annotated[float, typer.Option(min=0, help="Cluster: wait so long for a compute node.")] = 300.0,
) -> None:
    """Look at this machine: versions, rendering, decoders, GPU, disk, tracking, threads; with remedies.

    With --profile, at a cluster: partitions, limits, GPUs; by a small job also its nodes: files, clock, Python.
    """
    from egoscale.doctor import examine, show

    findings: Iterable[Finding]
    if profile is None:
        findings = examine(root)
    else:
        from egoscale.resources import find
        from egoscale.sweep.preflight import examine as examine_cluster
        from egoscale.sweep.profile import load_profile

        findings = examine_cluster(load_profile(find("slurm", profile)), root, wait_s)
    if not show(findings):
        raise typer.Exit(FAILED)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe of one stage: a path or a name.")],
    overrides: Sets = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=RUN", help="An input run, as encode=runs/encode/ab12."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")] = False,
    profile: Annotated[str | None, typer.Option(help="Dry run: on the GPUs of a profile, as profiles/h100.")] = None,
    gpus: Annotated[list[int] | None, typer.Option(min=1, help="Dry run: on so many GPUs; may be repeated.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Dry run: the tokenizer recipe whose latents it sees.")] = None,
    latent_action: Annotated[
        str | None, typer.Option(help="Dry run: the latent-action recipe whose codes a world model learns.")
    ] = None,
    price: Annotated[float, typer.Option(min=0, help="Dry run: money a GPU-hour.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Dry run: as JSON.")] = False,
    root: Root = Path("runs"),
) -> None:
    """Do one stage in a run folder of its own; `--dry-run` prints parameters, FLOPs, steps, hours, memory."""
    from egoscale.recipe import load_recipe
    from egoscale.resources import find
    from egoscale.sweep.ledger import RunFolder

    read = load_recipe(find("recipes", recipe), overrides or [])
    if read.stage == "sweep":
        raise ValueError(f"{recipe} is a sweep: `egoscale sweep run {recipe}`, or `egoscale sweep plan {recipe}` first")
    if dry_run:
        where = find("slurm", profile) if profile else None
        latents = find("tokenizers", tokenizer) if tokenizer else None
        codes_of = find("recipes", latent_action) if latent_action else None
        options: dict[str, Any] = {"profile": where, "gpus": gpus or (), "price": price, "as_json": as_json}
        options |= {"tokenizer": latents, "latent_action": codes_of}
        print("\n".join(stages().dry_run(read, **options)))
        return
    if profile or gpus or tokenizer or latent_action or price or as_json:
        raise ValueError(
            "--profile, --gpus, --tokenizer, --latent-action, --price and --json say what --dry-run counts: add it"
        )
    named = dict(_named_input(text) for text in inputs or [])
    for source in named.values():
        if source.root != root.resolve():
            raise ValueError(f"{source.path}: inputs must lie below --root {root.resolve()}, as the new run will")
    run = RunFolder.create(root.resolve(), read, named)
    execute(run)
    print(run.path)


@app.command()
def run(folder: Annotated[Path, typer.Argument(help="A run folder: runs/<stage>/<key>.")]) -> None:
    """Run one existing run folder to its end (what a sweep and a cluster job do)."""
    from egoscale.sweep.ledger import RunFolder

    opened = RunFolder.open(folder)
    execute(opened)
    print(f"{opened} is done")


@app.command()
def report(recipe: Sweep, overrides: Sets = None, root: Root = Path("runs")) -> None:
    """Fit the finished part of a sweep again and write its report."""
    conclude(planned(recipe, overrides), root)


app.add_typer(checkpoint_app, name="checkpoint")
app.command()(export)
app.command()(fit)
app.add_typer(ask_app, name="ask")
app.add_typer(catalog_app, name="catalog")
app.add_typer(video_app, name="video")
app.add_typer(sweep_app, name="sweep")
app.add_typer(trials_app, name="trials")


def find_any(name: str) -> Path:
    """A definition of any kind; the error of the likeliest kind where there is none."""
    from egoscale.resources import KINDS, find

    errors = []
    for kind in KINDS:
        try:
            return find(kind, name)
        except FileNotFoundError as error:
            errors.append(error)
    raise errors[0]


def checked(path: Path, overrides: Sequence[str] = ()) -> str:
    """Validate one definition by what it is (a profile also where it lies elsewhere); the resolved text."""
    from egoscale.recipe import load_recipe, load_toml, resolved_toml

    if path.name == "study.toml":
        from egoscale.scaling.study import load_study

        return resolved_toml(load_study(path))
    if "profiles" in path.parts or {"resources", "partition", "account"} & load_toml(path).keys():
        from egoscale.sweep.profile import load_profile

        return resolved_toml(load_profile(path))
    recipe = load_recipe(path, overrides)
    if recipe.stage == "sweep":
        from egoscale.sweep.plan import plan

        plan(recipe)
    changes = _deepspeed_changes(recipe, path) if _merges_deepspeed(recipe.model_dump()) else ()
    return resolved_toml(recipe) + "".join(f"# {line}\n" for line in changes)


def _merges_deepspeed(table: dict[str, object]) -> bool:
    return any(
        bool(value) if key == "deepspeed" else isinstance(value, dict) and _merges_deepspeed(value)
        for key, value in table.items()
    )


def _deepspeed_changes(recipe: StageRecipe | SweepRecipe, path: Path) -> Sequence[str]:
    """Lines that say what the recipe changes in DeepSpeed's JSON; ValueError where the two contradict."""
    try:
        return stages().deepspeed_changes(recipe)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except ModuleNotFoundError:
        return ["what [deepspeed] changes is checked and shown where egoscale[train] is installed"]


def _named_input(text: str) -> tuple[str, RunFolder]:
    from egoscale.sweep.ledger import RunFolder

    name, equals, path = text.partition("=")
    if not equals:
        raise ValueError(f"--input {text}: write NAME=RUN, as in encode=runs/encode/ab12cd34ef56")
    source = RunFolder.open(path)
    if source.state() != "done":
        raise ValueError(f"--input {text}: that run is {source.state()}, not done; `egoscale run {path}` first")
    return name, source


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: one paragraph for an error (a traceback with --debug) and a meaning exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        code = app([word for word in words if word != "--debug"], standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        complain("stopped; what is finished is kept")
        code = INTERRUPTED
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of the command line
            error.show()
            code = BAD_INPUT
        elif debug:
            raise
        else:
            code = explained(error)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
