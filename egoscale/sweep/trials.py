"""Trials on real robots: a blinded sheet to fill in at the robot (`trials_record.py` is the way back).

A sheet consists of blocks, and every block holds each policy once for each task and initial condition. Trials of one
task from one initial condition stand together, as a *set* in which each policy comes once, so that drift of light,
robot or operator meets all policies alike. The order within sets follows Williams' squares (1949, balanced for position
and, over a whole square, for what went before), so that no policy is always the first after the scene was laid out.

The sheet knows policies by letters. Which letter is which stands in the key, whose SHA-256 is on every row of the
sheet: a key that was changed after the fact does not fit its sheet.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import model_validator

from egoscale.recipe import FinetuneRecipe, RecipeError, Spec, SubsetRecipe, WorldRecipe
from egoscale.sweep.ledger import LINEAGE, RunFolder, key_column, write_whole

DESIGN = ("trial", "block", "code", "task", "initial_condition")  # printed, not to be changed
ENTRIES = ("success", "partial_credit", "operator", "time", "note")  # filled in at the robot
HASH = "key_sha256"
MOST_TRIALS = 100_000  # about a year of trials at five minutes each; more is a slip of the keyboard
SHEET, KEY, PAGE = "sheet.csv", "key.json", "sheet.html"

_NAME = re.compile(r"\w[\w .:@+-]{0,79}")  # of policies: no formula to a spreadsheet, no folder to a shell
_TASK = re.compile(r"\w(?:[\w -]{0,38}\w)?")  # ends up in the names of columns
Item = TypeVar("Item")


@dataclass(frozen=True)
class Trial:
    """One row of the sheet, as printed. Numbers of trials, blocks and initial conditions begin at 1."""

    trial: int
    block: int
    code: str
    task: str
    initial_condition: int

    @property
    def set(self) -> tuple[int, str, int]:
        """Trials that share it are run one after another from the same state, one of each policy."""
        return self.block, self.task, self.initial_condition


class Key(Spec):
    """What `key.json` holds: `codes` (code -> policy), what is known of each policy, and the sheet as it was made."""

    egoscale_trials: Literal[1] = 1
    seed: int
    codes: dict[str, str]
    policies: dict[str, dict[str, Any]]  # policy -> columns of its row in the table; empty for a mere name
    trials: tuple[tuple[int, str, str, int], ...]  # block, code, task, initial condition, in the order of the sheet

    @model_validator(mode="after")
    def _whole(self) -> Key:
        strange = {code for _, code, _, _ in self.trials} - set(self.codes) or set(self.codes.values()) ^ set(
            self.policies
        )
        if strange:
            raise ValueError(f"codes, policies and trials do not fit together: {', '.join(sorted(strange))}")
        return self

    @property
    def plan(self) -> tuple[Trial, ...]:
        """The rows of the sheet."""
        return tuple(Trial(number, *row) for number, row in enumerate(self.trials, start=1))

    @property
    def tasks(self) -> list[str]:
        return sorted({task for _, _, task, _ in self.trials})

    def text(self) -> str:
        """The file: a short head for people, then a line a trial."""
        head = json.dumps(self.model_dump(mode="json", exclude={"trials"}), indent=1)
        rows = ",\n".join(f"  {json.dumps(row)}" for row in self.trials)
        return f'{head[:-2]},\n "trials": [\n{rows}\n ]\n}}\n'


def digest(text: str) -> str:
    """What is printed on the sheet; `sha256sum key.json` says the same."""
    return hashlib.sha256(text.encode()).hexdigest()


# --- which policies ---


def policy(text: str, root: Path) -> tuple[str, dict[str, Any]]:
    """A policy as named on the command line: a run folder (also `finetune/<key>` below `root`), or a name.

    Returns its name and its columns of the table; none for a mere name.

    Raises:
        FileNotFoundError, RecipeError: no run, of another stage, or not finished.
    """
    folders = [path for path in (Path(text), root / text) if "/" in text or (path / "recipe.toml").is_file()]
    found = [path for path in folders if path.is_dir()]
    if found:
        return of_run(RunFolder.open(found[0]))
    if "/" in text:
        raise FileNotFoundError(f"{text}: there is no such run folder; the name of a policy has no slash in it")
    if not _NAME.fullmatch(text) or text in DESIGN:
        raise ValueError(
            f"policy {text!r}: a name begins with a letter or digit, goes on with these, blanks or . : @ + - _, has at "
            f"most 80 characters, and is not {', '.join(DESIGN)}; or name a run folder, as runs/finetune/ab12cd34ef56"
        )
    return text, {}


def of_run(run: RunFolder, labels: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """A finished fine-tuned policy: `finetune/<key>`, and what `collect` would write of it before its trials.

    labels: of its job, where it is a sweep's: the name of a size (`model`) stands in the grid and in no run.
    """
    if run.stage != "finetune":
        raise RecipeError(f"{run.path}: a run of stage {run.stage}; robots run policies: name a run of stage finetune")
    if run.state() != "done":
        raise RecipeError(f"{run.path}: is {run.state()}, not done; `egoscale run {run.path}` first")
    recipe = run.recipe()
    assert isinstance(recipe, FinetuneRecipe)  # RunFolder.recipe
    behind = _ancestry(run)
    world, subset = (behind[stage].result() or {} if stage in behind else {} for stage in ("world", "subset"))
    hours = _hours(behind.get("world"))
    row = {"arm": recipe.arm, "hours": hours, "hours_unique": 0.0 if hours == 0 else subset.get("hours")}
    row |= {"demos": recipe.num_demos, "seed": recipe.seed}
    row |= {name: world.get(name) for name in ("world_loss", "prior_loss", "target_r2")}
    row |= {key_column(stage): behind[stage].key if stage in behind else None for stage in LINEAGE}
    row |= {"scenes": _scenes(behind.get("subset")), "parameters": world.get("num_parameters")}
    return str(run), row | dict(labels or {}) | {"subset_hash": subset.get("hash")}


def _ancestry(run: RunFolder) -> dict[str, RunFolder]:
    """This run and all before it by stage, as far as their folders are here; the subset is the world model's."""
    found: dict[str, RunFolder] = {}

    def visit(run: RunFolder) -> None:
        found.setdefault(run.stage, run)
        inputs = run.inputs() if (run.path / "inputs.json").is_file() else {}
        for name in sorted(inputs, key=lambda name: name == "tokenizer"):
            visit(inputs[name])

    visit(run)
    found.pop("subset", None)  # from scratch: the tokenizer's subset is not this row's video
    world = found.get("world")
    if world and (world.path / "inputs.json").is_file() and "subset" in world.inputs():
        found["subset"] = world.inputs()["subset"]
    return found


def _hours(world: RunFolder | None) -> float | None:
    """Hours of video: 0 without a world model, unknown where its folder is gone."""
    if world is None:
        return 0.0
    if not (world.path / "recipe.toml").is_file():
        return None
    recipe = world.recipe()
    assert isinstance(recipe, WorldRecipe)
    return recipe.hours


def _scenes(subset: RunFolder | None) -> int | None:
    """Scenes that the hours were drawn from; None where they were not counted, or the folder is gone."""
    if subset is None or not (subset.path / "recipe.toml").is_file():
        return None
    recipe = subset.recipe()
    assert isinstance(recipe, SubsetRecipe)
    return recipe.num_groups if recipe.axis in ("scenes", "hours_per_scene") else None


# --- the sheet ---


def schedule(
    policies: Mapping[str, Mapping[str, Any]], tasks: Sequence[str], num_trials: int, num_conditions: int, seed: int
) -> Key:
    """Randomised complete blocks: `num_trials` of each policy in each task, from `num_conditions` initial conditions.

    The same policies, tasks, numbers and seed give the same key, in whatever order policies and tasks are named.

    Raises:
        ValueError: fewer than two policies, tasks that are no names, trials that fill no whole blocks.
    """
    _check(policies, tasks, num_trials, num_conditions)
    rng = random.Random(f"egoscale trials {seed}")  # seeded by text: the same on every machine and version
    names = sorted(policies)
    rng.shuffle(names)
    codes = [_letters(number) for number in range(len(names))]
    orders = {task: _orders(len(codes), rng) for task in sorted(tasks)}
    rows: list[tuple[int, str, str, int]] = []
    for block in range(1, num_trials // num_conditions + 1):
        for task in _shuffled(sorted(tasks), rng):
            for condition in _shuffled(range(1, num_conditions + 1), rng):
                rows += [(block, codes[place], task, condition) for place in next(orders[task])]
    known = {name: dict(policies[name]) for name in sorted(policies)}
    return Key(seed=seed, codes=dict(zip(codes, names, strict=True)), policies=known, trials=tuple(rows))


def _check(policies: Mapping[str, object], tasks: Sequence[str], num_trials: int, num_conditions: int) -> None:
    if len(policies) < 2:
        raise ValueError(f"{len(policies)} policies: a blinded comparison needs two or more; name another one")
    bad = [task for task in tasks if not _TASK.fullmatch(task)]
    if bad or not tasks:
        shown = repr(bad[0]) if bad else "none"
        raise ValueError(f"--tasks {shown}: names of letters, digits, - and _, with commas between, as push,lift")
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"--tasks {','.join(tasks)}: name each task once")
    if num_trials < 1 or num_conditions < 1:
        raise ValueError(f"--trials {num_trials} --initial-conditions {num_conditions}: both must be 1 or more")
    if num_trials % num_conditions:
        down, up = (num_conditions * (num_trials // num_conditions + more) for more in (0, 1))
        raise ValueError(
            f"--trials {num_trials}: each of the {num_conditions} initial conditions is tried equally often by every "
            f"policy; say {f'{down} or ' if down else ''}{up}"
        )
    total = len(policies) * len(tasks) * num_trials
    if total > MOST_TRIALS:
        raise ValueError(f"--trials {num_trials}: {total:,} trials in all; no more than {MOST_TRIALS:,}")


def _orders(num: int, rng: random.Random) -> Iterator[list[int]]:
    """Orders of 0..num-1 without end: every `num` of them have each number once in each place.

    Williams' squares, their rows and numbers shuffled: for an even number each follows each other equally often in a
    square, for an odd one in a square and its mirror image.
    """
    zigzag = [(step + 1) // 2 if step % 2 else -(step // 2) for step in range(num)]
    while True:
        numbers = _shuffled(range(num), rng)
        square = [[numbers[(row + step) % num] for step in zigzag] for row in range(num)]
        yield from _shuffled(square, rng)
        if num % 2:
            yield from _shuffled([row[::-1] for row in square], rng)


def _shuffled(items: Sequence[Item], rng: random.Random) -> list[Item]:
    shuffled = list(items)
    rng.shuffle(shuffled)
    return shuffled


def _letters(number: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    before, last = divmod(number, 26)
    return (_letters(before - 1) if before else "") + chr(ord("A") + last)


def sheet_text(key: Key) -> str:
    """The sheet as CSV, with empty columns to fill in and the key's hash on every row."""
    file, sealed = io.StringIO(), digest(key.text())
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*DESIGN, *ENTRIES, HASH])
    for row in key.plan:
        writer.writerow([*(getattr(row, column) for column in DESIGN), *("" for _ in ENTRIES), sealed])
    return file.getvalue()


def write(key: Key, out: Path) -> list[Path]:
    """Sheet, page and key into a folder; the key may be read by its owner alone.

    Raises:
        ValueError: another sheet is there, perhaps with results in it.
    """
    from egoscale.sweep.trials_page import page_text

    sheet = f"\ufeff{sheet_text(key)}"  # by this mark a spreadsheet knows UTF-8, and keeps to it when it saves
    texts = {KEY: key.text(), SHEET: sheet, PAGE: page_text(key, digest(key.text()))}
    there = [out / name for name, text in texts.items() if (out / name).exists() and _other(out / name, text)]
    if there:
        raise ValueError(
            f"{there[0]}: there is another one, perhaps filled in; give --out another folder, or move it away"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(out / name, text)
    (out / KEY).chmod(0o600)
    return [out / name for name in (SHEET, PAGE, KEY)]


def _other(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_bytes() != text.encode()
