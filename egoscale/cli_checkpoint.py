"""The verbs of trained weights: reshape a checkpoint, export a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

checkpoint_app = typer.Typer(no_args_is_help=True, help="Checkpoints of a run: what is there, and in which pieces.")


@checkpoint_app.command("reshape")
def checkpoint_reshape(
    path: Annotated[Path, typer.Argument(help="A run folder, or one checkpoint in it (…/checkpoints/step-00000200).")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Go on in a run of its own with this: train.zero_stage=3."),
    ] = None,
) -> None:
    """Join the pieces that the ranks wrote into whole tensors by name, which any number of ranks and any ZeRO
    stage resume from. A resumed run does it by itself; by hand it needs no GPU and no ranks.

    With --set, carry the newest checkpoint of a run to another run, whose recipe says otherwise how it is run."""
    from egoscale.train.checkpoint import newest
    from egoscale.train.reshape import reshape, shards_of

    if overrides:
        from egoscale.stages.carrying import carry
        from egoscale.sweep.ledger import RunFolder

        new, step = carry(RunFolder.open(path), overrides)
        print(f"{new.path}: goes on from step {step} of {path}; `egoscale run {new.path}`")
        return
    checkpoint = newest(path) if (path / "checkpoints").is_dir() else path
    stage, ranks = shards_of(checkpoint)
    full = reshape(checkpoint)
    size = sum(file.stat().st_size for file in full.iterdir())
    print(f"{full}: {size / 1e6:,.1f} MB, joined from ZeRO stage {stage}, {ranks} ranks")


def export(
    run: Annotated[Path, typer.Argument(help="A finished run that trained a model: runs/<stage>/<key>.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    dtype: Annotated[str, typer.Option(help="fp32 or bf16: how the weights are stored.")] = "fp32",
    step: Annotated[
        int | None, typer.Option(min=1, help="As it was then: a checkpoint that train.keep_every_steps kept.")
    ] = None,
) -> None:
    """Write a trained model for others: safetensors, its configuration, and a card that says where it comes from."""
    from egoscale.stages.exporting import export as write
    from egoscale.sweep.ledger import RunFolder

    size = write(RunFolder.open(run), out, dtype, step)
    print(f'{out}: {size / 1e6:,.1f} MB, {dtype}; egoscale.load_model("{out}") makes a model of it')
