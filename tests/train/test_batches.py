"""Rows of a batch made alone, and a step ahead: the same numbers as the whole batch made when it is wanted."""

from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
import trainer as bench
from hypothesis import given, settings
from hypothesis import strategies as st

from egoscale.recipe import WorldSpec
from egoscale.train import loop
from egoscale.train.batches import Batches
from egoscale.train.order import NORMAL_ROWS, normal, normal_rows, rank_rows
from egoscale.train.ranks import Ranks


@settings(deadline=None)
@given(first=st.integers(0, 299), length=st.integers(0, 200), more=st.integers(0, 100))
def test_rows_of_normal_numbers_do_not_depend_on_the_others(first, length, more):
    whole = normal_rows(3, "noise", 7, (300, 2))
    rows = slice(first, min(300, first + length))
    assert np.array_equal(normal_rows(3, "noise", 7, (300, 2), rows), whole[rows])
    assert np.array_equal(normal_rows(3, "noise", 7, (300 + more, 2))[:300], whole)


def test_a_small_batch_is_that_of_normal_and_no_two_blocks_are_equal():
    for size in (1, 8, NORMAL_ROWS):
        assert np.array_equal(normal_rows(0, "noise", 5, (size, 3, 4)), normal(0, "noise", 5, (size, 3, 4)))
    noise = normal_rows(0, "noise", 5, (4 * NORMAL_ROWS, 50)).reshape(4, -1)
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.1
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_a_rank_of_a_world_model_makes_its_own_rows_of_the_same_global_batch(tmp_path):
    source, size, spec = bench.samples("toy 1", tmp_path / "latents"), 160, WorldSpec(context_frames=4)
    whole = source.batch(0, "world", 3, size, spec, 0.1)
    for rank in range(2):
        rows = rank_rows(size, Ranks(rank, 2, 0), 40)
        made = Batches(partial(_of, source, size, spec), rows, 9, own_rows=True).at(3)
        assert len(made) == 2
        for part, micro in zip(rows, made, strict=True):
            assert micro.keys() == whole.keys()
            assert all(torch.equal(micro[name], tensor[part]) for name, tensor in whole.items())
    names = source.names(0, "world", 3, size)
    assert len(names) == size and all(1 <= len(row) <= 1 + bench.AGENT_FRAMES for row in names)


def _of(source, size, spec, step, rows=slice(None)):
    return source.batch(0, "world", step, size, spec, 0.1, rows)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_run_on_rows_made_ahead_equals_the_plain_one(worker, alone, tmp_path, monkeypatch, ahead):
    threads: dict[int, str] = {}

    def some(step, rows):
        threads[step] = threading.current_thread().name
        return {name: tensor[rows] for name, tensor in worker.batch_at(step).items()}

    spec = worker.spec(micro_batch_size=2)
    worker.run(tmp_path / "plain", alone, spec)
    monkeypatch.setattr(loop, "Batches", lambda *args: Batches(*args[:4], ahead))
    worker.run(tmp_path / "own", alone, spec, some, own_rows=True)
    assert worker.trace(tmp_path / "own") == worker.trace(tmp_path / "plain")
    assert list(threads) == list(range(12))  # each once, in order, none beyond the last
    assert {name.startswith("batches") for step, name in threads.items() if step} == {ahead}


def test_the_next_batch_is_made_meanwhile_and_its_error_comes_out_when_it_is_asked_for():
    begun = threading.Event()

    def make(step, rows):
        if step == 1:
            begun.set()
        if step == 2:
            raise OSError("shard gone")
        return {"x": torch.full((4,), float(step))[rows]}

    with Batches(make, [slice(0, 2), slice(2, 4)], 5, own_rows=True, ahead=True) as batches:
        assert [part["x"].tolist() for part in batches.at(0)] == [[0.0, 0.0], [0.0, 0.0]]
        assert begun.wait(60)  # nobody has asked for it yet
        batches.at(1)
        with pytest.raises(OSError, match="shard gone"):
            batches.at(2)
    left = time.monotonic()
    while [thread for thread in threading.enumerate() if thread.name.startswith("batches")]:
        assert time.monotonic() < left + 60
