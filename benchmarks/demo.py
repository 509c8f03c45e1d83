"""Where the minutes of a sweep went, and how fast each model trained against a matrix product on the same machine.

    python benchmarks/demo.py runs > benchmarks/demo.md

Reads run folders only: durations from events.jsonl, rates and the GEMM bound (measured by each training run right after
its last step, in its own process and precision) from result.json.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from statistics import median

from egoscale.sweep.ledger import RunFolder

ORDER = (
    "teleop",
    "film",
    "catalog",
    "select",
    "subset",
    "tokenizer",
    "encode",
    "latent-action",
    "world",
    "finetune",
    "evaluate",
)


def main(root: Path) -> None:
    runs = [RunFolder.open(path.parent) for path in sorted(root.glob("*/*/result.json"))]
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed", "mujoco", "decord")
    )
    print("# Where the minutes of `make demo` go\n")
    machine = f"{os.cpu_count()} cores ({platform.machine()})"
    print(f"{datetime.date.today()}, {machine}, Python {platform.python_version()}, {versions}.")
    print("Two jobs at a time, one thread each. Command: `make demo && .venv/bin/python benchmarks/demo.py runs`.\n")
    print("| stage | runs | median s | total s |\n|---|---|---|---|")
    total = 0.0
    for stage in ORDER:
        seconds = [run.seconds() or 0.0 for run in runs if run.stage == stage]
        if seconds:
            total += sum(seconds)
            print(f"| {stage} | {len(seconds)} | {median(seconds):.1f} | {sum(seconds):.0f} |")
    print(f"| all | {len(runs)} | | {total:.0f} |\n")
    print("Training against a 1024 x 1024 matrix product in the same precision, process and minute (one thread):\n")
    print("| model | parameters | frames/s | samples/s | share of GEMM | GEMM GFLOP/s | loader wait | precision |")
    print("|---|---|---|---|---|---|---|---|")
    for stage in ("tokenizer", "latent-action", "world"):
        results = [result for run in runs if run.stage == stage and (result := run.result())]
        if not results:
            continue

        def middle(key: str, results: list[dict] = results) -> float:
            return median(result[key] for result in results)

        rates = f"{middle('frames_per_s'):,.0f} | {middle('samples_per_s'):,.1f} | {middle('mfu'):.1%}"
        bound = f"{middle('gemm_flops_per_s') / 1e9:,.0f} | {middle('wait_fraction'):.1%} | {results[0]['precision']}"
        print(f"| {stage} | {results[0]['num_parameters']:,} | {rates} | {bound} |")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
