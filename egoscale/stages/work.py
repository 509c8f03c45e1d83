"""What a stage is given: its recipe, the folders of its inputs, its own folder, and whom to tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from egoscale.recipe import StageRecipe, TrainSpec
from egoscale.sweep.ledger import RunFolder
from egoscale.train.checkpoint import discard_checkpoints, export_weights, load_weights, write_text
from egoscale.train.goodput import ledger
from egoscale.train.guards import Requeue
from egoscale.train.loop import train
from egoscale.train.ranks import ranks

Recipe = TypeVar("Recipe")
WEIGHTS = "weights"  # folder of a run that holds its trained model
TRAINED = "trained.json"  # beside it: the training was finished, with this result; what follows it may be not


@dataclass(frozen=True)
class Work:
    """One run folder being worked on."""

    run: RunFolder
    given: StageRecipe
    inputs: Mapping[str, Path]
    report: Callable[[Mapping[str, Any]], None] | None

    @classmethod
    def of(cls, run: RunFolder, report: Callable[[Mapping[str, Any]], None] | None) -> Work:
        return cls(run, run.recipe(), {name: source.path for name, source in run.inputs().items()}, report)

    @property
    def out(self) -> Path:
        return self.run.path

    def recipe(self, kind: type[Recipe]) -> Recipe:
        """The recipe, known to be of this kind."""
        if not isinstance(self.given, kind):
            raise ValueError(f"{self.run}: its recipe is {type(self.given).__name__}, not {kind.__name__}")
        return self.given

    def input(self, name: str) -> Path:
        """Folder of an input run that this stage cannot do without."""
        if name not in self.inputs:
            raise ValueError(f"{self.run}: stage {self.run.stage!r} needs an input {name!r}: --input {name}=RUN")
        return self.inputs[name]

    def quarantined(self) -> list[str]:
        """Clips that the run's events name as out."""
        return [event["clip"] for event in self.run.events() if event["event"] == "quarantine"]

    def kept(self, what: str) -> Callable[[int, int], None]:
        """Tells the run's events of each part of `what` that is on the disk, and so not made again: a run that has
        kept one goes on later, as after a checkpoint (`sweep/element.py`)."""
        return lambda clips, frames: self.run.event("part", of=what, clips=clips, frames=frames)

    def progress(self, done: int, total: int, unit: str) -> None:
        if self.report is not None:
            self.report({"done": done, "total": total, "unit": unit})

    def train(
        self,
        model: nn.Module,
        spec: TrainSpec,
        batch_at: Callable[..., dict[str, Tensor]],
        seed: int,
        config: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        folder: str = "",
        **options: Any,
    ) -> dict[str, Any]:
        """Train `model`, resuming what is in this folder, and export its weights with `config`.

        `folder` keeps a second training of one stage apart. A training that was finished is not repeated: `model` gets
        the weights that it exported. Returns the loop's result.
        """
        out = self.out / folder
        identity = {"run": str(self.run), "part": folder, "seed": seed}

        def export(state: dict[str, Tensor]) -> None:
            described = config() if callable(config) else config
            export_weights(state, dict(described), out / WEIGHTS)

        with ranks() as group:
            before: dict[str, Any] | None = group.from_main(_trained(out, identity) if group.main else None)
            if before is not None:
                model.load_state_dict(load_weights(out / WEIGHTS)[0])
                return before
            try:
                result = train(
                    model,
                    spec,
                    batch_at,
                    out,
                    identity,
                    group,
                    self.run.event,
                    self.progress,
                    weights=export,
                    **options,
                )
            except Requeue:
                if group.main:
                    self.run.event("goodput", **ledger(out, self.run.events()))
                raise
            if group.main:
                result["goodput"] = ledger(out, self.run.events())
                write_text(out / TRAINED, json.dumps({"identity": identity, "result": result}, indent=1))
                discard_checkpoints(out, spec.keep_every_steps)
        model.to("cpu")  # what a stage does with it after training, it does with tensors of the CPU
        return result


def _trained(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a training in this folder came to, if it was finished and its weights are there."""
    if not (out / TRAINED).is_file() or not (out / WEIGHTS).is_dir():
        return None
    held: dict[str, Any] = json.loads((out / TRAINED).read_text())
    result: dict[str, Any] = held["result"]
    return result if held["identity"] == identity else None
