"""Slots, relative chunks and normalisation."""

from __future__ import annotations

import json

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egoscale.robot.embodiment import MIN_STD, TABLETOP_GANTRY, Embodiment, Normaliser, check_slots

METRES = st.floats(-2, 2, width=32)


@given(
    actions=hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.just(4)), elements=METRES),
    chunk_steps=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_absolute_undoes_relative(actions: np.ndarray, chunk_steps: int, seed: int) -> None:
    state = np.random.default_rng(seed).uniform(-1, 1, (len(actions), 4)).astype(np.float32)
    chunks, mask = TABLETOP_GANTRY.relative_chunks(actions, state, chunk_steps)
    back = TABLETOP_GANTRY.absolute_chunk(chunks, state)
    assert back.shape == (len(actions), chunk_steps, 4) and mask.shape == (len(actions), chunk_steps)
    for t in range(len(actions)):
        for k in range(chunk_steps):
            np.testing.assert_allclose(back[t, k], actions[min(t + k, len(actions) - 1)], atol=1e-6)
            assert mask[t, k] == (t + k < len(actions))


def test_positions_are_relative_and_the_grip_is_not() -> None:
    actions = np.array([[1, 2, 3, 0.7]], np.float32)
    state = np.array([[0.5, 0.5, 0.5, 0.08]], np.float32)
    chunks, _ = TABLETOP_GANTRY.relative_chunks(actions, state, 1)
    np.testing.assert_allclose(chunks[0, 0], [0.5, 1.5, 2.5, 0.7], atol=1e-6)


def test_names_need_not_be_in_the_same_order() -> None:
    robot = Embodiment("swapped", ("grip", "z"), ("speed", "z"))
    chunks, _ = robot.relative_chunks(np.array([[1.0, 5.0]]), np.array([[9.0, 2.0]]), 1)
    np.testing.assert_allclose(chunks[0, 0], [1.0, 3.0])


def test_slots_are_kept_apart() -> None:
    other = Embodiment("arm", ("j0", "j1"), ("j0", "j1"), slot_start=4)
    assert check_slots([TABLETOP_GANTRY, other]) == 6
    shared = other.to_shared(np.array([[7.0, 8.0]]), 6)
    assert shared.tolist() == [[0, 0, 0, 0, 7, 8]]
    assert other.from_shared(shared).tolist() == [[7, 8]]
    with pytest.raises(ValueError, match=r"share slot 3; set slot_start of the second to 4"):
        check_slots([TABLETOP_GANTRY, Embodiment("arm", ("a",), ("a",), slot_start=3)])
    with pytest.raises(ValueError, match="does not fit"):
        other.to_shared(np.zeros((1, 2)), 5)


def test_demos_of_another_robot_are_refused() -> None:
    TABLETOP_GANTRY.check_demos("demos/ours", 4, 4)
    with pytest.raises(ValueError, match=r"demos/g1: action has 26 numbers.*has 4 \(x, y, z, grip\)"):
        TABLETOP_GANTRY.check_demos("demos/g1", 26, 26)
    with pytest.raises(ValueError, match="actions has 26 numbers, expected 4"):
        TABLETOP_GANTRY.relative_chunks(np.zeros((3, 26)), np.zeros((3, 4)), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action_names": ("x", "x"), "proprioception_names": ("x",)}, "each once"),
        ({"action_names": ("wrist",), "proprioception_names": ("x",)}, "'wrist' is a position"),
        ({"action_names": ("x",), "proprioception_names": ("x",), "slot_start": -1}, "negative"),
    ],
)
def test_embodiments_that_cannot_be(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Embodiment("odd", **arguments)  # type: ignore[arg-type]


def test_chunks_refuse_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="same number of steps"):
        TABLETOP_GANTRY.relative_chunks(np.zeros((3, 4)), np.zeros((2, 4)), 2)
    with pytest.raises(ValueError, match="at least one command"):
        TABLETOP_GANTRY.relative_chunks(np.zeros((3, 4)), np.zeros((3, 4)), 0)


def test_an_embodiment_survives_json() -> None:
    assert Embodiment.from_dict(json.loads(json.dumps(TABLETOP_GANTRY.to_dict()))) == TABLETOP_GANTRY


def test_normaliser_centres_scales_and_comes_back() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal([1.0, -3.0], [2.0, 0.1], (500, 2)).astype(np.float32)
    norm = Normaliser.fit(values)
    scaled = norm.normalise(values)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-4)
    np.testing.assert_allclose(norm.restore(scaled), values, atol=1e-5)
    assert Normaliser.from_dict(json.loads(json.dumps(norm.to_dict()))) == norm


def test_normaliser_has_a_floor_and_heeds_the_mask() -> None:
    chunks = np.zeros((2, 2, 1), np.float32)
    chunks[1, 1] = 1000.0
    norm = Normaliser.fit(chunks, np.array([[True, True], [True, False]]))
    assert norm.mean == (0.0,) and norm.std == (MIN_STD,)


def test_normaliser_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(ValueError, match="no values"):
        Normaliser.fit(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="not finite"):
        Normaliser.fit(np.array([[np.nan]]))
