"""LeRobot folders: written, read back, real ones, broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from egoscale.robot.demos import Episode, LeRobotDataset, write_lerobot_v30

DemoSet = tuple[Path, list[Episode]]
NAMES = ("x", "y", "z", "opening")


def test_what_is_written_is_read_back(demo_set: DemoSet) -> None:
    path, episodes = demo_set
    dataset = LeRobotDataset.open(path)
    assert (dataset.num_episodes, dataset.fps_hz, dataset.state_dim, dataset.action_dim) == (3, 5.0, 4, 4)
    assert dataset.tasks == ["touch the red cube", "lift the blue ball"]
    assert dataset.action_names == ("x", "y", "z", "grip")
    assert dataset.remarks == ()
    for read, written in zip(dataset, episodes, strict=True):
        np.testing.assert_array_equal(read.state, written.state)
        np.testing.assert_array_equal(read.action, written.action)
        assert read.task == written.task
        # Each frame is one grey level, steps of 3: a frame of a neighbour would be seen.
        difference = read.frames_THWC.astype(int) - written.frames_THWC
        assert read.frames_THWC.shape == written.frames_THWC.shape and np.abs(difference).max() <= 2


def test_any_order_and_another_size(demo_set: DemoSet) -> None:
    path, episodes = demo_set
    dataset = LeRobotDataset.open(path)
    for index in (2, 0, 1, 2):
        small = dataset.episode(index, size_px=16)
        assert small.frames_THWC.shape == (len(episodes[index].state), 16, 16, 3)
        assert abs(float(small.frames_THWC[0].mean()) - episodes[index].frames_THWC[0].mean()) < 3
    dataset.close()
    with pytest.raises(IndexError, match="episode 3; there are 3"):
        dataset.episode(3)


def test_v21_and_v30_hold_the_same_frames(real_robot_data: Callable[[str], Path]) -> None:
    old = LeRobotDataset.open(real_robot_data("g1_pick_bottle_v21"))
    new = LeRobotDataset.open(real_robot_data("g1_pick_bottle_v30"))
    assert (old.version, new.version) == ("v2.1", "v3.0")
    assert old.num_episodes == new.num_episodes == 10 and old.tasks == new.tasks
    assert old.action_dim == new.action_dim == 26 and old.action_names == new.action_names
    for index in (0, 5):  # 5 lies in the middle of the second file
        a, b = old.episode(index, size_px=48), new.episode(index, size_px=48)
        np.testing.assert_array_equal(a.frames_THWC, b.frames_THWC)
        np.testing.assert_array_equal(a.state, b.state)
        np.testing.assert_array_equal(a.action, b.action)
        assert a.task == b.task == "Pick up the yellow bottle on the table."


def test_our_layout_is_that_of_the_official_converter(
    demo_set: DemoSet, real_robot_data: Callable[[str], Path]
) -> None:
    ours, theirs = demo_set[0], real_robot_data("g1_pick_bottle_v30")
    camera = {ours: "observation.images.front", theirs: "observation.images.cam_high"}

    def shape(root: Path) -> dict[str, Any]:
        info = json.loads((root / "meta/info.json").read_text())
        episodes = pl.read_parquet(root / "meta/episodes/chunk-000/file-000.parquet")
        stats = json.loads((root / "meta/stats.json").read_text())
        return {
            "info": sorted(info),
            "features": {k.replace(camera[root], "CAMERA"): sorted(v) for k, v in info["features"].items()},
            "video": sorted(info["features"][camera[root]]["info"]),
            "paths": (info["data_path"], info["video_path"], info["codebase_version"]),
            "episodes": {k.replace(camera[root], "CAMERA"): v for k, v in episodes.schema.items()},
            "data": pl.read_parquet_schema(root / "data/chunk-000/file-000.parquet"),
            "tasks": pl.read_parquet_schema(root / "meta/tasks.parquet"),
            "stats": {k.replace(camera[root], "CAMERA"): sorted(v) for k, v in stats.items()},
            "picture": np.shape(stats[camera[root]]["mean"]),
            "files": sorted(
                {str(f.relative_to(root)).replace(camera[root], "CAMERA") for f in root.rglob("*.*")}
                - {f"videos/CAMERA/chunk-000/file-00{i}.mp4" for i in (1, 2)}
                - {f"videos/{camera[root]}/chunk-000/file-00{i}.mp4" for i in (1, 2)}
            ),
        }

    a, b = shape(ours), shape(theirs)
    a["files"] = [f for f in a["files"] if f.endswith((".json", ".parquet", ".mp4"))]
    b["files"] = [f for f in b["files"] if f.endswith((".json", ".parquet", ".mp4"))]
    assert a == b


def test_stats_are_those_of_all_frames(demo_set: DemoSet) -> None:
    path, episodes = demo_set
    stats = json.loads((path / "meta/stats.json").read_text())
    action = np.concatenate([episode.action for episode in episodes])
    np.testing.assert_allclose(stats["action"]["mean"], action.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], action.std(0), atol=1e-6)
    assert stats["action"]["count"] == [len(action)]
    pixels = np.concatenate([episode.frames_THWC.reshape(-1, 3) for episode in episodes]) / 255
    np.testing.assert_allclose(np.ravel(stats["observation.images.front"]["std"]), pixels.std(0), atol=1e-6)


def test_a_missing_video_is_named(real_robot_data: Callable[[str], Path]) -> None:
    path = real_robot_data("lerobot_v30_apple_storage_novideo")
    with pytest.raises(FileNotFoundError, match=r"file-000\.mp4: missing; observation\.image of episode 0.*with_video"):
        LeRobotDataset.open(path)
    tables = LeRobotDataset.open(path, with_video=False)
    # Its info.json counts frames that are not in the folder.
    assert any("total_frames = 14983, the files hold 899" in remark for remark in tables.remarks)
    assert tables.episode(1).state.shape == (300, 19) and tables.episode(1).frames_THWC.shape[1:] == (0, 0, 3)


def edit_info(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = path / "meta" / "info.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda info: info.update(codebase_version="v1.6"),
            r"codebase_version = 'v1\.6'; read are v2\.1, v3\.0",
        ),
        (lambda info: info["features"]["action"].update(shape=[7]), r"action has 4 numbers.*says 7"),
        (lambda info: info["features"].pop("action"), r"feature 'action' has shape None"),
        (lambda info: info["features"].pop("observation.images.front"), "no video feature.*with_video=False"),
        (lambda info: info.pop("fps"), "key 'fps' is missing"),
        (lambda info: info.pop("video_path"), "video_path is missing"),
    ],
)
def test_an_info_that_lies_is_refused(
    demo_set: DemoSet, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_info(demo_set[0], change)
    with pytest.raises(ValueError, match=message):
        LeRobotDataset.open(demo_set[0])


def test_wrong_counts_are_remarked(demo_set: DemoSet) -> None:
    edit_info(demo_set[0], lambda info: info.update(total_episodes=50))
    assert "total_episodes = 50, the files hold 3" in LeRobotDataset.open(demo_set[0]).remarks[0]


def test_files_that_are_not_what_they_seem(demo_set: DemoSet, tmp_path: Path) -> None:
    path, _ = demo_set
    with pytest.raises(FileNotFoundError, match=r"info\.json: missing"):
        LeRobotDataset.open(tmp_path)
    with pytest.raises(ValueError, match=r"no video feature 'observation\.images\.wrist'"):
        LeRobotDataset.open(path, camera="observation.images.wrist")
    video = path / "videos/observation.images.front/chunk-000/file-000.mp4"
    whole = video.read_bytes()
    video.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with pytest.raises(ValueError, match="are no video"):
        LeRobotDataset.open(path)
    video.write_bytes(whole)
    table = path / "data/chunk-000/file-000.parquet"
    pl.read_parquet(table).head(8).write_parquet(table)
    with pytest.raises(ValueError, match="episode 1 has 3 rows, the metadata says 7"):
        LeRobotDataset.open(path).episode(1)
    table.write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        LeRobotDataset.open(path)
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"file-000\.parquet: missing"):
        LeRobotDataset.open(path)
    shutil.rmtree(path / "meta" / "episodes")
    with pytest.raises(FileNotFoundError, match="lists its episodes there"):
        LeRobotDataset.open(path)


def test_a_video_shorter_than_its_episodes_is_refused(demo_set: DemoSet, tmp_path: Path) -> None:
    path, episodes = demo_set
    write_lerobot_v30(tmp_path / "short", episodes[:1], 5, NAMES, NAMES, "gantry")
    name = "videos/observation.images.front/chunk-000/file-000.mp4"
    shutil.copy(tmp_path / "short" / name, path / name)
    with pytest.raises(ValueError, match="episode 2 ends at frame 20, the video has 5 frames"):
        LeRobotDataset.open(path).episode(2)


def test_what_cannot_be_written(demo_set: DemoSet, tmp_path: Path) -> None:
    path, episodes = demo_set
    good = episodes[0]
    with pytest.raises(ValueError, match="already holds"):
        write_lerobot_v30(path, episodes, 5, NAMES, NAMES, "gantry")
    with pytest.raises(ValueError, match="no episodes"):
        write_lerobot_v30(tmp_path / "a", [], 5, NAMES, NAMES, "gantry")
    bad = Episode(good.frames_THWC, good.state, good.action[:-1], good.task)
    with pytest.raises(ValueError, match=r"episode 1: action has shape \(4, 4\); expected \(5, 4\)"):
        write_lerobot_v30(tmp_path / "b", [good, bad], 5, NAMES, NAMES, "gantry")
    assert not (tmp_path / "b" / "meta" / "info.json").exists()  # half a set does not open
    nan = Episode(good.frames_THWC, good.state, good.action * np.nan, good.task)
    with pytest.raises(ValueError, match="not finite"):
        write_lerobot_v30(tmp_path / "c", [nan], 5, NAMES, NAMES, "gantry")
