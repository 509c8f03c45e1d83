"""The tabletop: seeds, tasks, the expert, pictures, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from egoscale.robot.worlds.scene import MIN_DISTANCE_M, check_words, sample_task

mujoco = pytest.importorskip("mujoco")
pytestmark = pytest.mark.sim

from egoscale.robot.worlds import Tabletop  # noqa: E402


@pytest.fixture(scope="module")
def table() -> Tabletop:
    return Tabletop(30)


def run_expert(table: Tabletop, steps: int = 24) -> None:
    for _ in range(steps):
        table.step(table.expert_action())


def test_the_expert_does_every_task(table: Tabletop) -> None:
    done: dict[str, list[bool]] = {}
    for first in (5000, 5030, 5060):
        table.reset(range(first, first + 30))
        run_expert(table)
        for verb, success in zip(table.verbs_of_world, table.success(), strict=True):
            done.setdefault(verb, []).append(bool(success))
    for verb in ("touch", "push", "lift"):
        assert len(done[verb]) == 30 and np.mean(done[verb]) >= 0.95, verb


def test_a_world_depends_on_its_seed_alone(table: Tabletop) -> None:
    seeds = [7, 8, 9, *range(100, 127)]
    table.reset(seeds)
    run_expert(table, 6)
    images, body = table.observe()
    # The same seeds elsewhere: other neighbours, another size, after other episodes.
    few = Tabletop(3)
    few.reset([50, 51, 52])
    run_expert(few, 3)
    few.reset([9, 7, 8])
    run_expert(few, 6)
    images_few, body_few = few.observe()
    for here, there in ((0, 1), (1, 2), (2, 0)):
        np.testing.assert_array_equal(images[here], images_few[there])
        np.testing.assert_array_equal(body[here], body_few[there])
        assert table.instructions[here] == few.instructions[there]
    # Two renderers live in this process: the first still draws its own worlds.
    np.testing.assert_array_equal(table.observe()[0], images)
    few.close()


def test_what_is_observed(table: Tabletop) -> None:
    table.reset(range(30))
    images, body = table.observe()
    assert images.shape == (30, 64, 64, 3) and images.dtype == np.uint8
    assert body.shape == (30, 4) and body.dtype == np.float32
    assert len({image.tobytes() for image in images}) == 30
    assert table.verbs_of_world[:3] == ["touch", "push", "lift"]
    for text, verb in zip(table.instructions, table.verbs_of_world, strict=True):
        assert text.split()[0] == verb and text.split()[1] == "the" and len(text.split()) == 4
    assert np.abs(table.targets_xy).max() < 0.2


def test_the_named_colour_is_visible(table: Tabletop) -> None:
    table.reset(range(30))
    images, _ = table.observe()
    channel = {"red": 0, "green": 1, "blue": 2}
    for image, things in zip(images.astype(int), table.things_of_world, strict=True):
        seen = 0
        for thing in things:
            own = image[..., channel[thing.colour]]
            others = np.delete(image, channel[thing.colour], axis=-1).max(-1)
            seen += int(((own - others) > 35).sum() >= 6)
        assert seen >= 2  # the arm may hide one


def test_waiting_is_no_success_and_no_failure(table: Tabletop) -> None:
    table.reset(range(30))
    hold = np.concatenate([table.proprioception()[:, :3], np.zeros((30, 1))], 1)
    for _ in range(5):
        table.step(hold)
    assert not table.success().any() and not table.failed().any()
    np.testing.assert_allclose(table.proprioception()[:, :3], hold[:, :3], atol=0.004)
    np.testing.assert_allclose(table.proprioception()[:, 3], 0.085, atol=0.004)


def test_the_gantry_has_a_limited_speed_and_workspace(table: Tabletop) -> None:
    table.reset(range(30))
    before = table.proprioception()
    table.step(np.tile([5.0, 5.0, -5.0, 0.0], (30, 1)))
    assert np.linalg.norm(table.proprioception()[:, :3] - before[:, :3], axis=1).max() < 0.075  # .3 m/s for .2 s
    for _ in range(8):
        table.step(np.tile([5.0, 5.0, 5.0, 0.0], (30, 1)))
    assert table.proprioception()[:, :3].max() < 0.28


def test_sweeping_the_table_fails(table: Tabletop) -> None:
    table.reset(range(30))
    for target in ((-0.25, -0.1), (0.25, -0.1), (0.25, 0.0), (-0.25, 0.0), (-0.25, 0.1), (0.25, 0.1)):
        for _ in range(9):
            table.step(np.tile([*target, 0.01, 1.0], (30, 1)))
    failed, success = table.failed(), table.success()
    assert failed.sum() >= 15
    assert not (failed & success).any()


def test_objects_lie_apart_and_pushes_have_room() -> None:
    for seed in range(200):
        task, things = sample_task(np.random.default_rng(seed), ("red", "green", "blue"), "push")
        xy = np.array([(thing.x_m, thing.y_m) for thing in things])
        gaps = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + np.eye(3)
        assert gaps.min() >= MIN_DISTANCE_M
        target = xy[task.target]
        for other in np.delete(xy, task.target, axis=0):
            behind = abs(other[0] - target[0]) < 0.07 and 0 < other[1] - target[1] < 0.18
            assert not behind


def test_other_words_make_other_worlds() -> None:
    table = Tabletop(2, image_size_px=96, colours=("yellow", "purple"), verbs=("lift",))
    table.reset([1, 2])
    assert table.observe()[0].shape == (2, 96, 96, 3)
    assert all(text.startswith("lift the ") for text in table.instructions)
    assert {thing.colour for thing in table.things_of_world[0]} == {"yellow", "purple"}
    table.close()


def test_what_is_refused(table: Tabletop) -> None:
    with pytest.raises(ValueError, match="'mauve' is not known"):
        Tabletop(1, colours=("red", "mauve"))
    with pytest.raises(ValueError, match="'throw' is not known"):
        check_words(("red", "blue"), ("throw",))
    with pytest.raises(ValueError, match="each may be named once"):
        check_words(("red", "red"), ("lift",))
    with pytest.raises(ValueError, match="room for 2 to 4"):
        check_words(("red",), ("lift",))
    with pytest.raises(ValueError, match="at least one world"):
        Tabletop(0)
    table.reset(range(30))
    with pytest.raises(ValueError, match="29 seeds for 30 worlds"):
        table.reset(range(29))
    with pytest.raises(ValueError, match="negative"):
        table.reset([-1, *range(29)])
    with pytest.raises(ValueError, match=r"expected \(30, 4\)"):
        table.step(np.zeros((30, 3)))
    bad = np.zeros((30, 4))
    bad[4, 2] = np.nan
    with pytest.raises(ValueError, match="action of world 4 is not finite"):
        table.step(bad)


def test_worlds_must_be_started_first() -> None:
    table = Tabletop(1)
    with pytest.raises(ValueError, match="call reset"):
        table.observe()
    table.close()


def test_a_display_is_not_asked_for() -> None:
    code = "from egoscale.robot.worlds import Tabletop; Tabletop(1)"
    wrong = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MUJOCO_GL": "wgl"}, capture_output=True, text=True
    )
    assert wrong.returncode != 0 and "set it to egl or osmesa" in wrong.stderr and "libegl1" in wrong.stderr
