"""What an element of an array says of a step that ended, from the run folder alone."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
import toy_stages

from egoscale.sweep import element
from egoscale.sweep.element import AGAIN, DONE, FAILED, HANG, LIMIT, ended, run
from egoscale.sweep.ledger import RunFolder
from egoscale.sweep.plan import plan
from egoscale.sweep.worker import REQUEUE

RETRIES = 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run of which an earlier attempt, of an earlier job, failed; this attempt begins now."""
    film = next(job for job in plan(toy_stages.sweep()).jobs.values() if job.stage == "film").create(tmp_path)
    film.event("start")
    film.event("retry", reason="killed", attempt=1, job="16_0")
    film.fail("killed; attempt 2 of 2")
    for name, value in {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    time.sleep(0.002)  # events are noted to the millisecond
    monkeypatch.setenv("EGOSCALE_BEGAN", str(time.time()))
    time.sleep(0.002)
    return film


def reasons(folder: RunFolder, event: str) -> list[str]:
    return [told["reason"] for told in folder.events() if told["event"] == event]


@pytest.mark.parametrize("code", [1, 3, 137, HANG, LIMIT, REQUEUE])
def test_what_ended_without_a_word_is_tried_again_so_often(folder: RunFolder, code: int) -> None:
    for attempt in (1, 2):
        folder.event("start")
        assert ended(folder, code, RETRIES) == AGAIN
        assert folder.events()[-1]["attempt"] == attempt and folder.events()[-1]["job"] == "17_0"
    folder.event("start")
    assert ended(folder, code, RETRIES) == FAILED
    assert reasons(folder, "fail")[-1].endswith("attempt 3 of 3")
    assert folder.state() == "failed"


def test_progress_begins_the_count_anew(folder: RunFolder) -> None:
    for step in (10, 20, 30):
        for _ in range(2):
            folder.event("start")
            assert ended(folder, 137, RETRIES) == AGAIN
        folder.event("save", step=step)
    for _ in range(2):
        folder.event("save", step=30)  # the same step again is no progress
        assert ended(folder, 137, RETRIES) == AGAIN
    assert ended(folder, 137, RETRIES) == FAILED


def test_a_part_that_is_kept_is_progress_too(folder: RunFolder) -> None:
    """Latents are written for days by jobs of one day: no part is made twice."""
    for _ in range(4):
        folder.event("start")
        folder.event("part", of="video", clips=30, frames=900)
        assert [ended(folder, code, RETRIES) for code in (137, REQUEUE, 137)] == [AGAIN, REQUEUE, AGAIN]
    assert [ended(folder, 137, RETRIES)] == [FAILED]


def test_its_own_word_is_final_whatever_the_code(folder: RunFolder) -> None:
    """Of several ranks the others may save and ask to go on, in the moment before they are killed."""
    folder.event("start")
    folder.fail("clip 3 is damaged")
    folder.event("save", step=5)
    assert [ended(folder, code, RETRIES) for code in (1, 137, REQUEUE)] == [FAILED] * 3
    assert not [event for event in folder.events() if event["event"] == "retry" and event["job"] == "17_0"]


def test_the_word_of_another_job_is_not_its_own(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.event("start")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "18")
    folder.fail("No module named 'torch'")  # sent a second time, to a node where nothing is installed
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    folder.event("save", step=5)
    assert ended(folder, REQUEUE, RETRIES) == REQUEUE
    folder.fail("clip 3 is damaged")
    assert ended(folder, REQUEUE, RETRIES) == FAILED


def test_a_failure_that_names_no_job_counts(folder: RunFolder) -> None:
    folder.event("start")
    folder.event("fail", reason="clip 3 is damaged")  # as folders have it that were written before
    folder.event("save", step=5)
    assert ended(folder, REQUEUE, RETRIES) == FAILED


def test_a_run_that_saved_goes_on_as_often_as_it_likes(folder: RunFolder) -> None:
    for step in range(1, 8):
        folder.event("start")
        folder.event("save", step=step)
        assert ended(folder, REQUEUE, RETRIES) == REQUEUE
    folder.finish({})
    assert ended(folder, 1, RETRIES) == DONE


def test_no_word_and_no_result_is_not_tried_again(folder: RunFolder) -> None:
    folder.event("start")
    assert ended(folder, 0, RETRIES) == FAILED
    assert "code 0 and no result" in reasons(folder, "fail")[-1]


def test_an_environment_that_does_not_start_says_where_to_look(folder: RunFolder) -> None:
    assert ended(folder, 127, 0) == FAILED
    assert "code 127 before the run began: its log says why" in reasons(folder, "fail")[-1]


def test_a_run_is_not_begun_on_an_input_that_failed(folder: RunFolder) -> None:
    catalog = next(job for job in plan(toy_stages.sweep()).jobs.values() if job.stage == "catalog").create(folder.root)
    assert run(catalog, "toy_stages:execute") == FAILED
    assert [event["event"] for event in catalog.events()] == ["blocked"]
    assert f"{folder} is failed, not done" in reasons(catalog, "blocked")[0]
    assert ended(catalog, FAILED, RETRIES) == FAILED
    assert catalog.state() == "new"
    folder.finish({})
    assert run(catalog, "toy_stages:execute") == DONE


@pytest.mark.parametrize("first", ["0", "1"])
def test_the_first_rank_to_fail_is_heard(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    toy_stages.behave(folder.root, film="fail")
    monkeypatch.setattr(element, "_await_rank_0", lambda folder: None)  # one after the other here
    for rank in (first, "1"):
        monkeypatch.setenv("SLURM_PROCID", rank)
        assert run(folder, "toy_stages:execute") == FAILED
    told = "clip kitchen/17: duration_s = -1: delete the file"
    assert reasons(folder, "fail")[1:] == [told if first == "0" else f"rank 1: {told}"]


def held_elsewhere(folder: RunFolder, silent_min: float) -> Path:
    """The lock of a process on a login node that touched it so long ago."""
    lock = folder.path / "lock"
    lock.write_text(json.dumps({"pid": 4711, "started": "x:1", "host": "login01"}))
    then = time.time() - 60 * silent_min
    os.utime(lock, (then, then))
    return lock


def test_a_holder_that_shows_life_is_waited_for_as_long_as_it_takes(folder: RunFolder) -> None:
    held_elsewhere(folder, silent_min=3)
    assert [ended(folder, REQUEUE, RETRIES) for _ in range(12)] == [REQUEUE] * 12
    assert [event["event"] for event in folder.events()] == ["start", "retry", "fail"]


def test_a_holder_that_shows_no_life_is_waited_for_so_often_and_is_named(folder: RunFolder) -> None:
    lock = held_elsewhere(folder, silent_min=14)
    began = time.monotonic()
    codes = [run(folder, "toy_stages:execute") for _ in range(3)]
    assert codes == [AGAIN] * 3 and time.monotonic() - began < 4  # it keeps no GPU waiting
    assert [ended(folder, code, RETRIES) for code in (AGAIN, REQUEUE, AGAIN)] == [AGAIN, AGAIN, FAILED]
    told = f"process 4711 on login01 holds the run, and has shown no life for 14 min; if it is gone, delete {lock}"
    assert reasons(folder, "retry")[1:] == [told] * 2
    assert reasons(folder, "fail")[-1] == f"{told}; attempt 3 of 3"
    assert lock.exists()  # it may work on behind a broken network
    lock.unlink()
    assert run(folder, "toy_stages:execute") == DONE


def test_a_rank_waits_until_rank_0_of_its_own_attempt_holds_the_run(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process is at work on it, then comes rank 0: of an earlier attempt first, then of this one."""
    toy_stages.behave(folder.root, film="apart")
    monkeypatch.setattr(element, "RANK_POLL_S", 0.01)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    lock, code = held_elsewhere(folder, silent_min=0), list[int]()
    rank = threading.Thread(target=lambda: code.append(run(folder, "toy_stages:execute")))
    rank.start()
    for attempt in ("none", "0", "1"):
        time.sleep(0.2)
        assert not code and not (folder.path / "rank1").exists(), (attempt, code, reasons(folder, "fail"))
        if attempt != "none":
            owner = {"pid": 71, "started": "x:1", "host": "gpu017", "job": "17_0", "attempt": attempt}
            lock.write_text(json.dumps(owner))
    end = time.monotonic() + 10
    while not (folder.path / "rank1").exists() and time.monotonic() < end:
        time.sleep(0.01)
    folder.finish({})
    rank.join(10)
    assert code == [DONE] and (folder.path / "rank1").exists()


def test_a_rank_whose_run_another_process_finishes_has_nothing_to_do(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    lock = held_elsewhere(folder, silent_min=0)
    threading.Timer(0.3, lambda: (folder.finish({}), lock.unlink())).start()
    assert run(folder, "toy_stages:execute") == DONE
    assert len(reasons(folder, "fail")) == 1
