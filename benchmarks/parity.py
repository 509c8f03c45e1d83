"""The same study on one machine and on a Slurm of four nodes: what differs, and how long each took.

    python benchmarks/parity.py sweeps/tabletop --local runs --cluster runs-slurm > benchmarks/parity.md

The cluster is the tests' own (`tests/slurm/cluster.py`): a real Slurm whose four nodes share this machine's cores, with
`slurm/profiles/cpu-test.toml`, which makes latents and trains world models on two nodes. What a folder of runs already
holds is not computed again. Exit code 1 where anything differs but time. The local side may be that of `make demo`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from machine import machine

from egoscale.recipe import SweepRecipe, load_recipe
from egoscale.resources import find
from egoscale.sweep.ledger import RunFolder

ROOT = Path(__file__).resolve().parents[1]
TIMING = re.compile(r".*(_per_s|_s_median|_s_max|_slowest_rank|wait_fraction|mfu|mfu_of_peak|goodput)")


def untimed(found: Any) -> Any:
    """What a stage found, but for how long it took."""
    if not isinstance(found, dict):
        return found
    return {key: untimed(value) for key, value in found.items() if not TIMING.fullmatch(key)}


def results(root: Path) -> dict[str, Any]:
    """Of each finished run below a root, by stage and key: what it found."""
    return {
        f"{file.parent.parent.name}/{file.parent.name}": json.loads(file.read_text())
        for file in sorted(root.glob("*/*/result.json"))
    }


def law(root: Path, name: str) -> dict[str, Any]:
    """What the report of a sweep says: parameters, intervals, warnings, other laws, its sentence."""
    return dict(json.loads((root / "report" / name / "fit.json").read_text()))


def table(root: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(root / "report" / name / "table.parquet")


def differences(here: Path, there: Path, name: str) -> Iterator[str]:
    """Each value in which two roots differ, but for times: of the table, of the law, of what every run found."""
    mine, other = table(here, name), table(there, name)
    if (mine.columns, mine.height) != (other.columns, other.height):
        yield f"table: {mine.height} rows of {mine.columns}, and {other.height} of {other.columns}"
    for column in set(mine.columns) & set(other.columns):
        if mine[column].to_list() != other[column].to_list():
            yield f"table, {column}: {mine[column].to_list()} and {other[column].to_list()}"
    for what, one, two in (("law", law(here, name), law(there, name)), ("run", results(here), results(there))):
        for key in sorted(set(one) | set(two)):
            if untimed(one.get(key)) != untimed(two.get(key)):
                yield f"{what}, {key}: {one.get(key)} and {two.get(key)}"


def hosts(root: Path) -> dict[str, set[str]]:
    """Of each world model below a root that was trained by several ranks: the nodes that these ran on."""
    return {
        run.name: {
            rank["host"]
            for event in RunFolder(run).events()
            if event["event"] == "preflight"
            for rank in event["ranks"]
        }
        for run in sorted((root / "world").iterdir())
    }


def minutes(root: Path) -> float:
    """From the first run's start to the last one's end."""
    times = [
        event["time"]
        for path in root.glob("*/*/")
        if path.parent.name != "report"
        for event in RunFolder(path).events()
    ]
    first, last = (datetime.datetime.fromisoformat(pick(times)) for pick in (min, max))
    return (last - first).total_seconds() / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("recipe", nargs="?", default="sweeps/tabletop")
    parser.add_argument("--local", type=Path, default=Path("runs"))
    parser.add_argument("--cluster", type=Path, default=Path("runs-slurm"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    changes = [word for change in options.set for word in ("--set", change)]
    recipe = load_recipe(find("recipes", options.recipe), options.set)
    assert isinstance(recipe, SweepRecipe)

    def sweep(verb: str, root: Path, *more: str, environment: dict[str, str] | None = None) -> None:
        words = [
            sys.executable,
            "-m",
            "egoscale.cli",
            "sweep",
            verb,
            options.recipe,
            "--root",
            str(root),
            *changes,
            *more,
        ]
        done = subprocess.run(words, env={**os.environ, **(environment or {})}, stdout=sys.stderr)
        if done.returncode:
            sys.exit(f"sweep {verb}: exit code {done.returncode}")

    # Two jobs on two cores, a thread each, as on the cluster: sums are the same where they are made in the same order.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    sweep("run", options.local, "--jobs", "2")
    sys.path.insert(0, str(ROOT / "tests" / "slurm"))
    from cluster import Cluster, missing  # type: ignore[import-not-found]

    if missing():
        sys.exit(f"no Slurm here: apt-get install -y --no-install-recommends {missing()}")
    with tempfile.TemporaryDirectory(prefix="ego-", dir="/tmp") as folder, Cluster(Path(folder), cpus=1) as cluster:
        environment = cluster.environment
        sweep(
            "submit", options.cluster, "--profile", str(ROOT / "slurm/profiles/cpu-test.toml"), environment=environment
        )
        sweep("status", options.cluster, "--watch", environment=environment)
        while cluster.command("squeue", "--noheader"):  # the conclusion comes after the last run
            time.sleep(1)
        slurm = cluster.command("sinfo", "--version").strip()

    found = list(differences(options.local, options.cluster, recipe.name))
    local, cluster_side = law(options.local, recipe.name), law(options.cluster, recipe.name)
    on, alone = hosts(options.cluster), hosts(options.local)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed", "mujoco"))
    print(f"# `{options.recipe}` on one machine and on Slurm\n")
    print(
        f"{datetime.date.today()}, {machine()}; {versions}, {slurm}; four nodes of one core each share this machine's."
    )
    print(f"Command: `python benchmarks/parity.py {' '.join(sys.argv[1:])}`.\n")
    print("| | sweep run, 2 jobs | sweep submit, 4 nodes |\n|---|---|---|")
    for name, values in (
        ("runs", [len(results(root)) for root in (options.local, options.cluster)]),
        ("minutes, first start to last end", [f"{minutes(root):.1f}" for root in (options.local, options.cluster)]),
        (
            "nodes that a world model was trained on",
            [", ".join(sorted({str(max(1, len(of))) for of in side.values()})) for side in (alone, on)],
        ),
        ("rows of the table", [table(root, recipe.name).height for root in (options.local, options.cluster)]),
        ("law", [side["sentence"] for side in (local, cluster_side)]),
    ):
        print(f"| {name} | {values[0]} | {values[1]} |")
    print(f"\nDifferences, times left out: {len(found) or 'none'}.\n")
    for line in found[:20]:
        print(f"- {line[:400]}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
