"""The same study on one machine and on a Slurm of four nodes, its world models trained on two of them: one table, one
law, equal to the last digit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import polars as pl
import pytest

from egoscale.sweep.ledger import RunFolder

pytestmark = [pytest.mark.slurm, pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(1200)]
TIMING = re.compile(r".*(_per_s|_s_median|_s_max|_slowest_rank|wait_fraction|mfu|mfu_of_peak|goodput)")


def untimed(found):
    """What a stage found, but for how long it took."""
    if not isinstance(found, dict):
        return found
    return {key: untimed(value) for key, value in found.items() if not TIMING.fullmatch(key)}


@pytest.fixture(scope="module")
def roots(page):
    """Where the study was computed on the cluster, and where on this machine."""
    # Two cores for two jobs, a thread each, as on the cluster: sums are the same where they are made in the same order.
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    command = ["taskset", "--cpu-list", cores, sys.executable, "-m", "egoscale.cli", "sweep", "run", "sweeps/tabletop"]
    options = ["--root", "local", "--jobs", "2"]
    done = subprocess.run([*command, *options], cwd=page.folder, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    return page.folder / "runs", page.folder / "local"


def tables(roots):
    return [pl.read_parquet(root / "report" / "tabletop" / "table.parquet") for root in roots]


def test_world_models_were_trained_on_two_nodes(roots):
    cluster, local = roots
    for path in (cluster / "world").iterdir():
        (preflight,) = (event for event in RunFolder(path).events() if event["event"] == "preflight")
        assert len({rank["host"] for rank in preflight["ranks"]}) == 2, preflight
    for path in (local / "world").iterdir():  # one process has nobody to look at beforehand
        assert not [event for event in RunFolder(path).events() if event["event"] == "preflight"]


def test_the_tables_are_equal_to_the_digit(roots):
    cluster, local = tables(roots)
    assert cluster.height == 3 and cluster["world_loss"].null_count() == 0 and cluster["successes"].sum() > 0
    for column in cluster.columns:
        assert cluster[column].to_list() == local[column].to_list(), column
    assert cluster.columns == local.columns


def test_the_laws_are_equal_to_the_digit(roots):
    cluster, local = (json.loads((root / "report" / "tabletop" / "fit.json").read_text()) for root in roots)
    assert cluster["sentence"] and cluster["n_rows"] == 3
    for name in cluster:  # parameters, intervals, warnings, the other laws
        assert cluster[name] == local[name], name


def test_every_result_is_equal_to_the_digit(roots):
    cluster, local = roots
    compared = 0
    for path in cluster.glob("*/*/result.json"):
        here, there = (json.loads((root / path.relative_to(cluster)).read_text()) for root in (cluster, local))
        assert untimed(here) == untimed(there), path
        compared += 1
    assert compared == 21
