"""Run folders: `<root>/<stage>/<key>/`. They are the truth; status and the table are read from them alone.

The key is arithmetic over what was asked, so the same question has the same folder and is answered once.
Files are written beside their place and renamed into it: whole or absent.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from egoscale.recipe import SCHEMA_VERSION, STAGES, RecipeError, StageRecipe, load_recipe, resolved_toml
from egoscale.sweep.lock import RunLockedError, held, holder, slurm_job, write_whole

if TYPE_CHECKING:
    import polars as pl

    from egoscale.sweep.plan import Job

__all__ = ["RunFolder", "RunLockedError", "State", "collect", "reason_of", "run_key", "write_whole"]

State = Literal["new", "running", "failed", "interrupted", "done"]


def run_key(recipe: StageRecipe, inputs: Mapping[str, str]) -> str:
    """First 12 hex of SHA-256 over (stage, resolved recipe, keys of the inputs by name, schema version)."""
    content = [
        recipe.stage,
        recipe.model_dump(mode="json", exclude_none=True),
        dict(inputs),
        SCHEMA_VERSION,
    ]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RunFolder:
    """One run: `recipe.toml`, `inputs.json`, `events.jsonl`, artifacts, and `result.json` once it is done."""

    path: Path

    @property
    def key(self) -> str:
        return self.path.name

    @property
    def stage(self) -> str:
        return self.path.parent.name

    @property
    def root(self) -> Path:
        return self.path.parent.parent

    def __str__(self) -> str:
        return f"{self.stage}/{self.key}"

    @classmethod
    def create(cls, root: Path, recipe: StageRecipe, inputs: Mapping[str, RunFolder]) -> RunFolder:
        """The folder of this question; made, or mended where a killed process left it half made."""
        key = run_key(recipe, {name: run.key for name, run in inputs.items()})
        run = cls(root / recipe.stage / key)
        run.path.mkdir(parents=True, exist_ok=True)
        named = {name: str(source) for name, source in sorted(inputs.items())}
        # The recipe comes last: where there is a recipe, the inputs are there too.
        for name, text in (
            ("inputs.json", json.dumps(named, indent=1)),
            ("recipe.toml", resolved_toml(recipe)),
        ):
            if not (run.path / name).is_file() or (run.path / name).read_text() != text:
                write_whole(run.path / name, text, durable=False)  # ten thousand flushes are minutes; this mends it
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run. FileNotFoundError where there is none, RecipeError where it is half written."""
        run = cls(Path(path).resolve())
        if not run.path.is_dir():
            raise FileNotFoundError(f"{path}: there is no such run folder; `egoscale sweep status` lists the runs")
        for name in ("recipe.toml", "inputs.json"):
            if not (run.path / name).is_file():
                raise RecipeError(
                    f"{path}: {name} is missing, so the run folder is half written; "
                    "start the sweep again (it mends the folder) or delete the folder"
                )
        if run.stage not in STAGES:
            raise RecipeError(f"{path}: a run folder lies in <runs>/<stage>/; {run.stage!r} is not a stage")
        return run

    def recipe(self) -> StageRecipe:
        recipe = load_recipe(self.path / "recipe.toml")
        if recipe.stage == "sweep" or recipe.stage != self.stage:
            raise RecipeError(f"{self.path / 'recipe.toml'}: a {recipe.stage} recipe in a {self.stage} folder")
        return recipe

    def inputs(self) -> dict[str, RunFolder]:
        """Input runs by name; they lie below the same root."""
        try:
            named = dict(json.loads((self.path / "inputs.json").read_text()))
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise RecipeError(
                f"{self.path / 'inputs.json'}: not a table of inputs ({error}); delete the folder"
            ) from None
        return {str(name): RunFolder(self.root / str(source)) for name, source in named.items()}

    # --- what happened ---

    def event(self, event: str, **fields: Any) -> None:
        """Append one line to `events.jsonl` (a torn last line of a killed process is closed first)."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **fields}, default=str) + "\n"
        with (self.path / "events.jsonl").open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())
            file.flush()

    def events(self) -> list[dict[str, Any]]:
        """All events in order; a line that a killed process tore is left out."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.path / "events.jsonl").read_text(errors="replace").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    event = json.loads(line)
                    if isinstance(event, dict) and "event" in event:
                        found.append(event)
        return found

    def result(self) -> dict[str, Any] | None:
        """What the run found, or None: it is not done."""
        try:
            result = json.loads((self.path / "result.json").read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return result if isinstance(result, dict) else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Note the end, then write `result.json`, the last thing a run does."""
        text = json.dumps(dict(result), indent=1, default=_plain)
        self.event("end")
        write_whole(self.path / "result.json", text)

    def fail(self, reason: str) -> None:
        """Note why the run stopped (on a full disk even this may fail; the caller prints the reason too), and the Slurm
        job that says so, if it is one."""
        job = slurm_job()
        with contextlib.suppress(OSError):
            self.event("fail", reason=reason, **({"job": job} if job else {}))

    def state(self) -> State:
        """done: has a result; running: a live process holds it; else by the last event."""
        try:
            held = {path.name for path in self.path.iterdir()}  # one look: most of a large sweep's runs have not begun
        except OSError:
            return "new"
        if "result.json" in held and self.result() is not None:
            return "done"
        if "lock" in held and self.holder() is not None:
            return "running"
        names = [event["event"] for event in self.events()] if "events.jsonl" in held else []
        if names[-1:] == ["end"] and self.result() is not None:  # it ended while we looked
            return "done"
        if "start" not in names and "fail" not in names:
            return "new"
        return "failed" if names[-1] == "fail" else "interrupted"

    def seconds(self) -> float | None:
        """Wall seconds worked, over all attempts up to the end; None where the run is not done."""
        if self.result() is None:
            return None
        worked, start, last = 0.0, None, None
        for event in self.events():
            with contextlib.suppress(ValueError, KeyError):
                at = datetime.datetime.fromisoformat(event["time"])
                if event["event"] == "start":
                    worked += (last - start).total_seconds() if start and last else 0.0
                    start = at
                last = at
        return worked + (last - start).total_seconds() if start and last else None

    def holder(self) -> str | None:
        """Who works on this run now ("process 71 on host"), or None; a dead process holds nothing."""
        return holder(self.path / "lock")

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run. RunLockedError where a live process has it; a dead one's lock is taken over."""
        return held(self.path / "lock")


COLUMNS = {
    "arm": str, "hours": float, "hours_unique": float, "demos": int, "seed": int,
    "world_loss": float, "prior_loss": float, "target_r2": float, "successes": int, "trials": int,
}  # fmt: skip
OF_A_GRID: dict[str, dict[str, Any]] = {
    "model": {"model": str, "parameters": int},
    "scenes": {"scenes": int},
}  # where the grid names them
LINEAGE = ("evaluate", "finetune", "world", "latent-action", "subset", "tokenizer")


def columns(cells: Sequence[Job]) -> dict[str, Any]:
    """Columns of the table of these cells by type, but for those of verbs, keys and state."""
    found: dict[str, Any] = dict(COLUMNS)
    for label, more in OF_A_GRID.items():
        if any(label in cell.labels for cell in cells):
            found |= more
    return found


def collect(root: Path, jobs: Iterable[Job]) -> pl.DataFrame:
    """The table: one row a cell (an evaluate job), from `result.json` files alone; a missing number is null.

    Columns: COLUMNS, model and parameters or scenes where the grid names them, then successes_<verb> and
    trials_<verb>, the keys of the runs behind the row (evaluate_key ... tokenizer_key), subset_hash, and `state`, the
    state of the evaluate run: a row that is not "done" is partial.
    """
    import polars as pl

    cells = [job for job in jobs if job.stage == "evaluate"]
    results: dict[str, dict[str, Any]] = {}

    def result(job: Job | None) -> dict[str, Any]:
        if job is None:
            return {}
        if job.key not in results:
            results[job.key] = job.run(root).result() or {}
        return results[job.key]

    rows, verbs = [], set[str]()
    for cell in cells:
        behind = cell.ancestry()
        world, subset, trials = result(behind.get("world")), result(behind.get("subset")), result(cell)
        per_verb = trials.get("per_verb", {})
        verbs |= set(per_verb)
        rows.append(
            {**cell.labels, "hours_unique": 0.0 if cell.labels["hours"] == 0 else subset.get("hours")}
            | ({"parameters": world.get("num_parameters")} if "model" in cell.labels else {})
            | {name: world.get(name) for name in ("world_loss", "prior_loss", "target_r2")}
            | {name: trials.get(name) for name in ("successes", "trials")}
            | {f"successes_{verb}": counts[0] for verb, counts in per_verb.items()}
            | {f"trials_{verb}": counts[1] for verb, counts in per_verb.items()}
            | {key_column(stage): behind[stage].key if stage in behind else None for stage in LINEAGE}
            | {"subset_hash": subset.get("hash"), "state": cell.run(root).state()}
        )
    schema = columns(cells)
    schema |= {f"{what}_{verb}": int for verb in sorted(verbs) for what in ("successes", "trials")}
    schema |= {key_column(stage): str for stage in LINEAGE} | {"subset_hash": str, "state": str}
    return pl.DataFrame(rows, schema=schema, orient="row")


def key_column(stage: str) -> str:
    """Name of the column with the key of a row's run of this stage."""
    return f"{stage.replace('-', '_')}_key"


def reason_of(error: BaseException) -> str:
    """An exception as one paragraph for a person."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{where}: free some space and start again; what is finished is kept"
    if isinstance(error, MemoryError):
        return "out of memory: use a smaller batch, or fewer jobs at a time"
    if isinstance(error, ValueError | FileNotFoundError | RunLockedError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _plain(value: Any) -> Any:
    """Numbers of numpy and the like as plain numbers; paths as text."""
    return value.item() if hasattr(value, "item") else str(value)
