"""A rank that hangs, a rank that sleeps, and what a run stands on: real ranks, read from the run folder."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from egoscale.train.ranks import Ranks
from egoscale.train.watch import HANG_EXIT_CODE, Stragglers, Watchdog, preflight


@pytest.mark.ranks
def test_a_hang_ends_with_the_stacks_of_every_rank_and_goes_on(worker, start, tmp_path):
    begun = time.monotonic()
    processes = start("hang", tmp_path, world_size=2)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [HANG_EXIT_CODE] * 2, "\n".join(outputs)
    assert time.monotonic() - begun < 60
    sleeper, waiter = (tmp_path / f"stacks-rank{rank}.txt" for rank in (1, 0))
    assert "while reading the batch of step 6" in sleeper.read_text() and "in at\n" in sleeper.read_text()
    assert "while computing step 6" in waiter.read_text() and "in step\n" in waiter.read_text()
    hangs = [event for event in worker.events(tmp_path) if event["event"] == "hang"]
    assert {event["rank"]: event["doing"] for event in hangs} == {
        0: "computing step 6",
        1: "reading the batch of step 6",
    }
    # What was saved before is whole.
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000004"


@pytest.mark.ranks
def test_only_the_watchdog_ends_a_wait(worker, start, tmp_path):
    """Ranks wait for longer than torch would, in its own group and in those that DeepSpeed makes."""
    processes = start("late", tmp_path, world_size=2)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert worker.trace(tmp_path)[-1]["step"] == 12


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("well", [True, False])
def test_stacks_stay_where_a_run_did_not_end_well(tmp_path, well):
    """The event of the hang cannot be written, so that the run is left by an exception, and not by its watchdog."""
    asked = threading.Event()

    def full(*_, **__):
        asked.set()
        raise OSError("no space left on device")

    with contextlib.suppress(RuntimeError), Watchdog(tmp_path, Ranks(0, 1, 0), 0.2, full) as watchdog:
        watchdog.beat("computing step 6")
        assert asked.wait(30)
        if not well:
            raise RuntimeError("the other rank has gone")
    stacks = tmp_path / "stacks-rank0.txt"
    assert stacks.exists() is not well
    assert well or "while computing step 6" in stacks.read_text()
    with contextlib.suppress(RuntimeError), Watchdog(tmp_path, Ranks(0, 1, 0), 600.0, full):
        raise RuntimeError("an error without a hang")
    assert not stacks.exists()


@pytest.mark.ranks
def test_a_slow_rank_is_named_once(worker, start, tmp_path):
    processes = start("sleep", tmp_path, world_size=2)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    told = [event for event in worker.events(tmp_path) if event["event"] == "straggler"]
    [slow] = [event for event in told if event["rank"] == 1]
    assert slow["what"] == "data" and slow["seconds"] > 0.03 and slow["ratio"] > 1.5
    [flight] = [event for event in worker.events(tmp_path) if event["event"] == "preflight"]
    assert [row["rank"] for row in flight["ranks"]] == [0, 1]
    for row in flight["ranks"]:
        assert row["device"] == "cpu" and row["matmul_tflops"] > 0 and row["allreduce_gb_per_s"] > 0
        assert row["free_memory_gb"] > 0 and row["free_disk_gb"] > 0


def test_a_lone_rank_has_nobody_to_be_compared_with(tmp_path, alone):
    told: list[str] = []
    assert Stragglers(Ranks(0, 1, 0), lambda name, **_: told.append(name)).compare(1, 9.0, 9.0) == {}
    assert told == []
    [row] = preflight(Ranks(0, 1, 0), tmp_path, lambda *_, **__: None)
    assert row["allreduce_gb_per_s"] == 0
