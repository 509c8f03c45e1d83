"""Filmed people and recorded demonstrations, on disk."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from egoscale.recipe import FilmRecipe, TeleopRecipe
from egoscale.robot.demos import LeRobotDataset
from egoscale.video.decode import open_video

pytest.importorskip("mujoco")
pytestmark = pytest.mark.sim

from egoscale.robot.worlds import Tabletop, film, teleoperate  # noqa: E402

SMALL = FilmRecipe(hours=0.012, num_participants=3, num_scenes=2, takes_per_recording=6)


def digest(folder: Path) -> dict[str, str]:
    """Digest of every file by name."""
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def small_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("film")
    calls: list[tuple[int, int, str]] = []
    result = film(out, SMALL, lambda done, total, unit: calls.append((done, total, unit)))
    takes = pl.read_csv(out / "takes.csv")
    assert result["num_takes"] == takes.height and result["num_frames"] == takes["num_frames"].sum()
    assert 0.012 <= result["hours"] < 0.012 + 6 * 16 / 5 / 3600
    assert calls[-1] == (216, 216, "frames")
    return out


def test_tables_and_files_agree(small_film: Path) -> None:
    takes = pl.read_csv(small_film / "takes.csv")
    assert takes.columns == [
        "take_id", "file", "recording_id", "participant_id", "scene_id", "task", "narration", "fps",
        "num_frames", "license", "hand_file",
    ]  # fmt: skip
    assert takes["take_id"].is_unique().all() and takes["num_frames"].is_between(10, 16).all()
    assert set(takes["task"]) == {"touch", "push", "lift"}
    for recording in takes.partition_by("recording_id"):
        assert recording["participant_id"].n_unique() == recording["scene_id"].n_unique() == 1
    keys = takes.select(pl.col("take_id").repeat_by("num_frames").explode())["take_id"]
    for name in ("hands.parquet", "truth.parquet"):
        table = pl.read_parquet(small_film / name)
        assert table["take_id"].equals(keys) and not table.null_count().sum_horizontal().item()
    for row in takes.iter_rows(named=True):
        with open_video(small_film / row["file"]) as video:
            info = video.probe()
            assert info.num_frames == row["num_frames"]
            frames = video.frames([0, info.num_frames - 1])
            assert frames.shape == (2, 64, 64, 3) and frames.std() > 5
            assert np.abs(frames[0].astype(int) - frames[1]).mean() > 1  # somebody did something


def test_the_hand_ends_at_the_target(small_film: Path) -> None:
    both = pl.read_parquet(small_film / "hands.parquet").join(
        pl.read_parquet(small_film / "truth.parquet"), on=["take_id", "frame"]
    )
    last = both.group_by("take_id").last()
    far = np.hypot(last["x_m"] - last["target_x_m"], last["y_m"] - last["target_y_m"])
    assert far.median() < 0.04 and far.max() < 0.12


def test_tracking_noise_is_that_of_the_recipe(small_film: Path, tmp_path: Path) -> None:
    film(tmp_path, SMALL.model_copy(update={"hand_noise_m": 0.0}))
    clean, noisy = pl.read_parquet(tmp_path / "hands.parquet"), pl.read_parquet(small_film / "hands.parquet")
    spread = np.std(clean.select("x_m", "y_m", "z_m").to_numpy() - noisy.select("x_m", "y_m", "z_m").to_numpy())
    assert 0.009 < spread < 0.011


def test_more_hours_keep_the_first_takes(small_film: Path, tmp_path: Path) -> None:
    film(tmp_path, SMALL.model_copy(update={"hours": 0.02}))
    less, more = digest(small_film), digest(tmp_path)
    videos = [name for name in less if name.endswith(".mp4")]
    assert len([name for name in more if name.endswith(".mp4")]) > len(videos)
    assert all(more[name] == less[name] for name in videos)
    takes, all_takes = pl.read_csv(small_film / "takes.csv"), pl.read_csv(tmp_path / "takes.csv")
    assert takes.equals(all_takes.head(takes.height))


def test_a_killed_film_goes_on(small_film: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from egoscale.recipe import FilmRecipe\n"
        "from egoscale.robot.worlds import film\n"
        f"film(Path({str(tmp_path)!r}), FilmRecipe.model_validate({SMALL.model_dump()!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    note = tmp_path / "recordings" / "rec00001.json"
    deadline = time.monotonic() + 60
    while not note.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert note.exists() and not (tmp_path / "takes.csv").exists()
    first = tmp_path / "videos" / "rec00000" / "rec00000-t00.mp4"
    before = first.stat().st_mtime_ns
    film(tmp_path, SMALL)
    assert first.stat().st_mtime_ns == before  # a whole recording is not made again
    left = {name: value for name, value in digest(tmp_path).items() if not name.endswith(".part")}
    assert left == digest(small_film)


def test_another_film_does_not_go_into_the_folder(small_film: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a film with seed = 0, the recipe says 5"):
        film(small_film, SMALL.model_copy(update={"seed": 5}))


def test_a_tripod_does_not_sway(tmp_path: Path) -> None:
    still = SMALL.model_copy(update={"hours": 0.001, "camera_sway": 0.0, "takes_per_recording": 1})
    swaying = still.model_copy(update={"camera_sway": 1.0})
    changes = []
    for name, recipe in (("still", still), ("sway", swaying)):
        film(tmp_path / name, recipe)
        with open_video(tmp_path / name / "videos" / "rec00000" / "rec00000-t00.mp4") as video:
            frames = video.frames(range(4))[:, :10].astype(int)  # the far rows: no hand there yet
        changes.append(np.abs(np.diff(frames, axis=0)).mean())
    assert changes[0] < 1 < changes[1]


def test_demonstrations_are_successful_and_nested(tmp_path: Path) -> None:
    few = teleoperate(tmp_path / "few", TeleopRecipe(num_demos=4))
    teleoperate(tmp_path / "more", TeleopRecipe(num_demos=9))
    small, large = LeRobotDataset.open(tmp_path / "few"), LeRobotDataset.open(tmp_path / "more")
    assert few["num_demos"] == small.num_episodes == 4 and large.num_episodes == 9
    assert large.fps_hz == 5 and large.action_names == ("x", "y", "z", "grip")
    for index in range(4):
        a, b = small.episode(index), large.episode(index)
        np.testing.assert_array_equal(a.action, b.action)
        np.testing.assert_array_equal(a.state, b.state)
        assert a.task == b.task and 4 <= len(a.state) <= 24
        assert np.abs(a.frames_THWC.astype(int) - b.frames_THWC).mean() < 4
    teleoperate(tmp_path / "few", TeleopRecipe(num_demos=4))  # again, over what is there


def test_labels_are_clean_while_the_arm_is_not(tmp_path: Path) -> None:
    teleoperate(tmp_path, TeleopRecipe(num_demos=1, seed=1_000_002))
    demo = LeRobotDataset.open(tmp_path).episode(0)
    table = Tabletop(1)
    table.reset([1_000_002])
    np.testing.assert_array_equal(table.expert_action()[0], demo.action[0])
    np.testing.assert_array_equal(table.observe()[1][0], demo.state[0])
    table.step(demo.action[:1])
    assert not np.array_equal(table.proprioception()[0], demo.state[1])  # it was executed with noise
    table.close()


def test_only_the_robots_own_rate_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fps_hz = 10: the tabletop robot is driven at 5 Hz"):
        teleoperate(tmp_path, TeleopRecipe(num_demos=1, fps_hz=10))
