"""Goes through `docs/slurm.md`: every command of it, in its order, in one shell, in a clone of the repository.

The clone's own `recipes/sweeps/tabletop.toml` and its study are small. The commands are the same, but that `plan` and
`submit` get the `--anyway` that the page tells of, without which they refuse so few sizes and seeds.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from egoscale.recipe import load_recipe, resolved_toml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "slurm.md"
SMALL = [
    "grid.hours=[0.01,0.02,0.03]",
    "grid.demos=[80]",
    "grid.seeds=[0]",
    "tokenizer_hours=0.01",
    "film.hours=0.06",
    "film.num_participants=8",
    "film.num_scenes=10",
    "teleop.num_demos=80",
    "tokenizer.train.num_steps=40",
    "tokenizer.train.batch_size=32",
    "latent_action.train.num_steps=10",
    "world.model.blocks.width=64",
    "world.train.num_steps=3",
    "finetune.world.blocks.width=64",
    "finetune.train.num_steps=800",
    "finetune.world_train.num_steps=3",
    "evaluate.num_episodes=24",
    "evaluate.num_rollout_clips=0",
]


@dataclass(frozen=True)
class Page:
    """The clone, and of each command of the page its exit code and what it printed."""

    folder: Path
    said: dict[str, tuple[int, str]]
    seconds: float


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def _anyway(command: str) -> str:
    return f"{command} --anyway" if command.startswith(("egoscale sweep plan", "egoscale sweep submit")) else command


def clone(folder: Path) -> None:
    """What `git clone` and an earlier `make .venv/installed` leave, the study made small."""
    folder.mkdir()
    for name in ("recipes", "slurm", "analysis", "tokenizers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("out", "fit"))
    for name in ("Makefile", "pyproject.toml", "README.md"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.prefix) / "bin")
    (folder / ".venv" / "installed").touch()  # newer than pyproject.toml: `make` finds nothing to do
    recipe = folder / "recipes" / "sweeps" / "tabletop.toml"
    recipe.write_text(resolved_toml(load_recipe(recipe, SMALL)))
    study = folder / "analysis" / "tabletop" / "study.toml"  # laws that three sizes can bear
    study.write_text(re.sub(r"^laws = .*$", 'laws = ["logit-log-hours"]', study.read_text(), flags=re.M))


def go_through(folder: Path, environment: dict[str, str]) -> Page:
    """Make a clone and run every command of the page in it."""
    clone(folder)
    mark, began = f"--{secrets.token_hex(8)}", time.monotonic()
    script = "".join(f"{_anyway(command)}\necho {mark} $?\n" for command in commands())
    done = subprocess.run(
        ["bash"],
        input=script,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1100,
    )
    parts = re.split(rf"{mark} (\d+)\n", done.stdout)
    codes = [int(code) for code in parts[1::2]]
    said = dict(zip(commands(), zip(codes, parts[::2], strict=False), strict=True))
    return Page(folder, said, time.monotonic() - began)
