"""The order of data and the learning rate are arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egoscale.recipe import TrainSpec
from egoscale.train.order import draws, normal, rank_rows, split, torch_seed
from egoscale.train.ranks import Ranks
from egoscale.train.schedule import learning_rate


@given(
    seed=st.integers(0, 2**40),
    step=st.integers(0, 2**40),
    micros=st.lists(st.sampled_from([1, 2, 4]), min_size=3),
)
def test_every_number_of_ranks_sees_the_same_batches(seed, step, micros):
    whole = draws(seed, "clips", step, 32, 3)
    for world_size, micro in zip([1, 2, 8], micros, strict=False):
        parts = [
            draws(seed, "clips", step, 32, 3)[rows]
            for rank in range(world_size)
            for rows in rank_rows(32, Ranks(rank, world_size, 0), micro)
        ]
        assert np.array_equal(np.concatenate(parts), whole)
        assert {len(part) for part in parts} == {micro}


@given(seed=st.integers(0, 2**31), step=st.integers(0, 10**6), small=st.integers(1, 8))
def test_a_row_depends_on_its_place_alone(seed, step, small):
    assert np.array_equal(draws(seed, "clips", step, small), draws(seed, "clips", step, 16)[:small])


def test_streams_steps_and_seeds_are_independent():
    kinds = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    columns = [draws(*kind, 4000, 1)[:, 0] for kind in kinds]
    assert np.abs(np.corrcoef(columns) - np.eye(4)).max() < 0.06  # 4 standard errors
    assert all(abs(column.mean() - 0.5) < 0.02 and column.min() >= 0 and column.max() < 1 for column in columns)
    assert len({torch_seed(*kind) for kind in kinds}) == 4


def test_a_draw_is_the_same_on_every_machine():
    assert draws(0, "clips", 3, 1, 2)[0] == pytest.approx([0.058217122642353236, 0.1179787710595459], abs=1e-15)


def test_normal():
    noise = normal(0, "noise", 5, (100, 50))
    assert noise.shape == (100, 50) and noise.dtype == np.float32
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert np.array_equal(noise, normal(0, "noise", 5, (100, 50)))
    assert not np.array_equal(noise, normal(0, "noise", 6, (100, 50)))


@pytest.mark.parametrize(
    ("batch", "world", "micro", "words"),
    [
        (10, 4, None, "batch_size = 10 does not divide among 4"),
        (16, 2, 3, "micro_batch_size = 3 does not divide"),
    ],
)
def test_batches_that_do_not_divide(batch, world, micro, words):
    with pytest.raises(ValueError, match=words):
        split(batch, world, micro)


def spec(**changes):
    return TrainSpec.model_validate(
        {"num_steps": 100, "batch_size": 1, "learning_rate": 2.0, "warmup_steps": 10, **changes}
    )


def test_warm_up_then_constant():
    rates = [learning_rate(spec(schedule="constant"), step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10:] == [2.0] * 90


def test_cosine():
    rates = [learning_rate(spec(schedule="cosine"), step) for step in range(101)]
    assert rates[10] == 2.0 and rates[55] == pytest.approx(1.0) and rates[100] == pytest.approx(0.0)
    assert rates[99] > 0
    assert np.all(np.diff(rates[10:]) < 0)


def test_wsd():
    rates = [learning_rate(spec(schedule="wsd", decay_fraction=0.2), step) for step in range(101)]
    assert rates[10:81] == [2.0] * 71
    assert rates[85] == pytest.approx(1.0) and rates[100] == pytest.approx(0.0)  # 1 - sqrt(5 / 20)
    assert learning_rate(spec(schedule="wsd", decay_fraction=0.0), 99) == 2.0


def test_a_warm_up_longer_than_the_run():
    rates = [learning_rate(spec(num_steps=5, warmup_steps=20), step) for step in range(5)]
    assert rates == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
