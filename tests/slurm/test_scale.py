"""Ten thousand runs on a real controller: few submissions, nothing twice, and answers while a person waits.

What the elements run is a script that sleeps. Times are printed (pytest -s), not judged: `benchmarks/submission.md`
has them beside those of other launchers.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import toy_stages

from egoscale.sweep import slurm
from egoscale.sweep.cost import cost
from egoscale.sweep.plan import Plan, plan
from egoscale.sweep.profile import Profile, ResourceSpec
from egoscale.sweep.status import lines, standing
from egoscale.sweep.submission import submit

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
MAX_SBATCH = 50
GRID = (
    f"grid.hours={[0.0, *(round(0.02 * 1.5**i, 4) for i in range(10))]}",
    f"grid.seeds={list(range(50))}",
    "grid.demos=[5, 10, 20, 30, 40, 50, 60, 80]",
    "teleop.num_demos=80",
    "film.hours=10",
)


@pytest.fixture
def roomy(cluster_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A cluster that holds more jobs than Slurm's default of 10,000, as a site with such studies would; arrays keep
    their default size."""
    if cluster_module.missing():
        pytest.skip(f"no Slurm here: apt-get install -y --no-install-recommends {cluster_module.missing()}")
    folder = Path(tempfile.mkdtemp(prefix="ego-", dir="/tmp"))
    try:
        with cluster_module.Cluster(folder, extra="MaxJobCount=40000") as cluster:
            for name, value in cluster.environment.items():
                monkeypatch.setenv(name, value)
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ten_thousand() -> Plan:
    return plan(toy_stages.sweep(*GRID))


def test_ten_thousand_runs(roomy: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 3600\n")
    sleeper.chmod(0o755)
    profile = Profile(name="sleep", python=str(sleeper), resources={"default": ResourceSpec(time_limit_min=60)})
    calls, real = list[str](), slurm.run

    def counted(command: Sequence[str], *more: Any, **named: Any) -> str:
        calls.append(command[0])
        return real(command, *more, **named)

    monkeypatch.setattr(slurm, "run", counted)
    times: dict[str, float] = {}

    def timed(what: str, begun: float) -> None:
        times[what] = time.perf_counter() - begun

    root = tmp_path / "runs"
    begun = time.perf_counter()
    planned = ten_thousand()
    cost(planned, root, 2, profile)
    timed("plan", begun)
    assert len(planned.jobs) > 10_000
    begun = time.perf_counter()
    sent = submit(planned, root, profile)
    timed("submit", begun)
    assert sent.sent == len(planned.jobs) and not sent.held_back
    assert calls.count("sbatch") < MAX_SBATCH and max(len(array.runs) for array in sent.arrays) <= 1000
    begun = time.perf_counter()
    found = standing(planned, root)
    told = lines(found)
    timed("status", begun)
    assert found.counts["queued"] + found.counts["running"] == len(planned.jobs), "\n".join(told)
    assert max(map(len, told)) < 120 and len(told) < 40
    begun = time.perf_counter()
    again = submit(planned, root, profile)
    timed("submit again", begun)
    assert (again.sent, again.queued) == (0, len(planned.jobs))
    sbatches = calls.count("sbatch")
    begun = time.perf_counter()
    slurm.cancel({array.job for array in sent.arrays if array.job})
    timed("cancel", begun)
    print(f"{len(planned.jobs):,} runs in {sbatches} sbatch calls;", *(f"{k} {v:.1f} s" for k, v in times.items()))
