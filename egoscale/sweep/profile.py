"""A cluster, described once: where jobs run, with what, and for how long. Recipes know nothing of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from egoscale.definition import RecipeError, load_toml
from egoscale.recipe import STAGES, Spec, validate

# What a Slurm option may hold. Anything else (spaces, quotes, `$`, newlines) is refused: a shell reads job scripts.
PLAIN = re.compile(r"[A-Za-z0-9_.,:=+@/\[\]&|!*()%-]*")


def _plain(value: str) -> str:
    if not PLAIN.fullmatch(value):
        raise ValueError(f"may hold letters, digits and _.,:=+@/[]&|!*()%- only, not {value!r}")
    return value


def _line(value: str) -> str:
    if any(character in value for character in "\n\r\0"):
        raise ValueError("must be a single line")
    return value


def _word(value: str) -> str:
    if value.startswith("-"):
        raise ValueError(f"{value!r} begins with `-` and would be read as an option")
    return _line(value)


Plain = Annotated[str, AfterValidator(_plain)]
Line = Annotated[str, AfterValidator(_line)]  # quoted where a shell reads it
Word = Annotated[str, AfterValidator(_word)]  # the same, where it stands alone on a command line


class ResourceSpec(Spec):
    """What one job of a resource class gets. A stage on several nodes or tasks trains on as many ranks."""

    num_nodes: int = Field(1, gt=0)
    tasks_per_node: int = Field(1, gt=0, description="ranks a node: one a GPU")
    gpus_per_node: int = Field(0, ge=0)
    gpu_type: Plain = ""
    cpus_per_task: int = Field(1, gt=0)
    memory_gb_per_node: float = Field(0, ge=0, description="0 = the cluster's default")
    time_limit_min: int = Field(60, gt=0)
    partition: Plain = ""
    constraint: Plain = ""
    max_running: int = Field(0, ge=0, description="elements of one array at a time; 0 = no limit")

    @property
    def num_tasks(self) -> int:
        return self.num_nodes * self.tasks_per_node


class ContainerSpec(Spec):
    """The image that jobs run in."""

    kind: Literal["pyxis", "apptainer"]
    image: Word
    mounts: tuple[Word, ...] = ()  # "/data:/data"


class Profile(Spec):
    """One cluster. `resources` are named classes; `stages` says which class a stage takes (else "default")."""

    name: Plain
    account: Plain = ""
    partition: Plain = ""
    qos: Plain = ""
    reservation: Plain = ""
    constraint: Plain = ""
    python: Word = ""  # the interpreter on compute nodes; empty = the one that submits
    modules: tuple[Word, ...] = ()
    setup: tuple[Line, ...] = ()  # lines of the administrator's, run as they stand before each job
    environment: dict[str, Line] = Field(default_factory=dict)
    container: ContainerSpec | None = None
    max_array_size: int = Field(1000, gt=0, description="elements of an array (Slurm's own default allows 1001)")
    max_submitted: int = Field(0, ge=0, description="elements you may have in the queue; 0 = no limit")
    signal_before_end_s: int = Field(180, ge=0, description="USR1 so long before the time limit: save, and go on later")
    max_retries: int = Field(2, ge=0, description="after a hang, a lost node, a kill, a time limit")
    gpu_count_option: Literal["gres", "gpus-per-node"] = "gres"
    resources: dict[Plain, ResourceSpec] = Field(default_factory=lambda: {"default": ResourceSpec()})
    stages: dict[str, Plain] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> Profile:
        for stage, name in self.stages.items():
            if stage not in STAGES:
                raise ValueError(f"stages.{stage} is no stage; they are {', '.join(STAGES)}")
            if name not in self.resources:
                raise ValueError(f"stages.{stage} = {name!r} is not under [resources]: {', '.join(self.resources)}")
        if "default" not in self.resources and set(STAGES) - set(self.stages):
            raise ValueError("[resources.default] is missing, and not every stage is named under [stages]")
        for key in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
                raise ValueError(f"environment: {key!r} is no name of a variable")
        return self

    def resource_class(self, stage: str) -> str:
        """Name of the class that a stage takes."""
        return self.stages.get(stage, "default")

    @property
    def conclusion_class(self) -> str:
        """Name of the class of the job that fits the law. It needs no GPU, and partitions of GPUs may refuse such jobs:
        "default", which stages that need one do not take, where there is one."""
        return "default" if "default" in self.resources else self.resource_class("evaluate")


def load_profile(path: Path) -> Profile:
    """Read and check a profile. Raises FileNotFoundError, RecipeError (file, key, value, what is allowed)."""
    data: dict[str, Any] = load_toml(path)
    if not data:
        raise RecipeError(f"{path}: empty: copy it, and fill in what `sinfo` and your administrators say")
    return validate(Profile, data, path)
