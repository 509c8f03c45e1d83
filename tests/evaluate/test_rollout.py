import numpy as np
import pytest

from egoscale.evaluate.clips import write_gif
from egoscale.evaluate.rollout import roll_out
from egoscale.evaluate.success import counted


@pytest.fixture(scope="module")
def worlds():
    tabletop = pytest.importorskip("egoscale.robot.worlds").Tabletop
    try:
        made = tabletop(6, 32)
    except RuntimeError as error:
        pytest.skip(f"cannot draw here: {error}")
    yield made
    made.close()


def expert(worlds):
    """Looks at the true state: only for tests of the rollout itself."""
    return lambda images, state, words: np.repeat(worlds.expert_action()[:, None], 3, 1)


@pytest.mark.sim
def test_a_good_policy_succeeds_and_everything_is_recorded(worlds):
    rollouts = roll_out(worlds, expert(worlds), range(6), max_steps=24, execute_steps=1, record=2)
    assert rollouts.success.all()
    assert len(rollouts.images) == len(rollouts.actions) == len(rollouts.states) <= 24
    assert rollouts.images[0].shape == (2, 32, 32, 3) and rollouts.actions[0].shape == (2, 4)
    result = counted(rollouts)
    assert (result["successes"], result["trials"], result["episode_seeds"]) == (6, 6, [0, 5])
    assert {verb: n for verb, (_, n) in result["per_verb"].items()} == {"lift": 2, "push": 2, "touch": 2}


@pytest.mark.sim
def test_a_policy_that_stays_fails_every_task(worlds):
    def stay(images, state, words):
        return np.repeat(np.concatenate([state[:, :3], np.zeros((len(state), 1))], 1)[:, None], 2, 1)

    assert counted(roll_out(worlds, stay, range(6), 10, 2))["successes"] == 0


@pytest.mark.sim
def test_the_same_seeds_give_the_same_outcome(worlds):
    def shaky(images, state, words):
        noise = images.reshape(len(images), -1)[:, :4] / 2550.0
        return (worlds.expert_action() + noise)[:, None].repeat(2, 1)

    first, again = (roll_out(worlds, shaky, range(100, 106), 20, 2, record=1) for _ in range(2))
    assert first.success.tolist() == again.success.tolist()
    assert all(np.array_equal(a, b) for a, b in zip(first.images, again.images, strict=True))


@pytest.mark.sim
def test_a_chunk_shorter_than_what_is_executed_is_refused(worlds):
    with pytest.raises(ValueError, match="execute_steps is 5"):
        roll_out(worlds, expert(worlds), range(6), 10, 5)


def test_a_gif_is_written_whole(tmp_path):
    from PIL import Image

    frames = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    write_gif(tmp_path / "clip.gif", frames, 5)
    with Image.open(tmp_path / "clip.gif") as picture:
        assert (picture.n_frames, picture.size, picture.info["duration"]) == (4, (24, 24), 200)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.gif"]
