"""The same study on one machine and on a Slurm of four nodes, its latents made and its world models trained on two of
them: one table, one law, equal to the last digit. At its full size: `benchmarks/parity.py`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import parity
import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(1200)]


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


def test_world_models_were_trained_on_two_nodes(roots):
    cluster, local = roots
    assert [len(of) for of in parity.hosts(cluster).values()] == [2, 2, 2]
    assert [len(of) for of in parity.hosts(local).values()] == [0, 0, 0]  # one process has nobody to look at beforehand


def test_latents_were_written_by_a_rank_on_each_of_two_nodes(roots):
    cluster, local = roots
    ranks = {root: {file.name[:9] for file in (root / "encode").glob("*/video/shard-*.json")} for root in roots}
    assert ranks == {cluster: {"shard-000", "shard-001"}, local: {"shard-000"}}


def test_something_was_found(roots):
    for root in roots:
        table = parity.table(root, "tabletop")
        assert table.height == 3 and table["world_loss"].null_count() == 0 and table["successes"].sum() > 0
        assert parity.law(root, "tabletop")["sentence"] and parity.law(root, "tabletop")["n_rows"] == 3
        assert len(parity.results(root)) == 21


def test_table_law_and_every_result_are_equal_to_the_digit(roots):
    assert list(parity.differences(*roots, "tabletop")) == []


def test_a_digit_that_differs_is_seen(roots, tmp_path):
    cluster, local = roots
    shutil.copytree(local / "report", tmp_path / "report")
    run = next(iter((local / "evaluate").glob("*/result.json")))
    (tmp_path / run.relative_to(local)).parent.mkdir(parents=True)
    found = json.loads(run.read_text())
    (tmp_path / run.relative_to(local)).write_text(json.dumps(found | {"successes": 99}))
    law = tmp_path / "report" / "tabletop" / "fit.json"
    law.write_text(json.dumps(json.loads(law.read_text()) | {"n_rows": 4}))
    said = list(parity.differences(tmp_path, cluster, "tabletop"))
    assert any(line.startswith("law, n_rows: 4 and 3") for line in said)
    assert len(said) == 1 + 21  # and each run, of which one is there with another number
