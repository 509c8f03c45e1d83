"""Write demonstrations as a LeRobot v3.0 data set, file by file as lerobot 0.4 lays them out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egoscale.robot.recorder import PIXEL_FORMAT, write_mp4, write_text

_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_KEY_EVERY_FRAMES = 10  # an episode is entered at its first frame: at most 9 frames are decoded in vain


@dataclass(frozen=True)
class Episode:
    """One demonstration: frames [T, H, W, 3] uint8, state [T, S] and action [T, A] float32, and the task."""

    frames_THWC: NDArray[np.uint8]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    task: str


def write_lerobot_v30(
    out: Path,
    episodes: Iterable[Episode],
    fps_hz: int,
    state_names: Sequence[str],
    action_names: Sequence[str],
    robot_type: str,
    camera: str = "observation.images.front",
) -> dict[str, int]:
    """Write episodes as they come (pictures are not kept in memory); `meta/info.json` is written last.

    Args:
        out: folder of the data set; made where absent.
        episodes: at least one; all of one picture size.
        fps_hz: frames per second.
        state_names, action_names: one per number.
        robot_type: for info.json.
        camera: feature name of the pictures.

    Returns:
        {"num_episodes", "num_frames"}.

    Raises:
        ValueError: no episodes, lengths or sizes that do not fit (says which episode), or a folder that
            already holds a data set.
    """
    if (out / "meta" / "info.json").exists():
        raise ValueError(f"{out}: already holds a LeRobot data set; write into an empty folder")
    source = iter(episodes)
    first = next(source, None)
    if first is None:
        raise ValueError(f"{out}: no episodes to write")
    tables = _Tables(camera, fps_hz, len(state_names), len(action_names))
    height, width = first.frames_THWC.shape[1:3]

    def pictures() -> Iterator[NDArray[np.uint8]]:
        episode: Episode | None = first
        while episode is not None:
            tables.add(episode)
            yield from episode.frames_THWC
            episode = next(source, None)

    video = out / _VIDEO.format(video_key=camera, chunk_index=0, file_index=0)
    write_mp4(video, pictures(), fps_hz, (height, width), _KEY_EVERY_FRAMES)
    tables.write(out)
    info = _info(tables, fps_hz, (height, width), state_names, action_names, robot_type)
    write_text(out / "meta" / "stats.json", json.dumps(tables.total_stats(), indent=4))
    write_text(out / "meta" / "info.json", json.dumps(info, indent=4))
    return {"num_episodes": tables.num_episodes, "num_frames": tables.num_frames}


class _Tables:
    """The rows of data/ and meta/episodes, grown episode by episode."""

    def __init__(self, camera: str, fps_hz: int, state_dim: int, action_dim: int) -> None:
        self.camera, self.fps_hz = camera, fps_hz
        self.dims = {"observation.state": state_dim, "action": action_dim}
        self.tasks: dict[str, int] = {}
        self.num_frames = 0
        self.num_episodes = 0
        self._data: list[dict[str, NDArray[Any]]] = []
        self._rows: list[dict[str, Any]] = []
        self._stats: list[dict[str, dict[str, Any]]] = []

    def add(self, episode: Episode) -> None:
        number, length = self.num_episodes, len(episode.frames_THWC)
        for name, values in (("observation.state", episode.state), ("action", episode.action)):
            if values.shape != (length, self.dims[name]):
                raise ValueError(
                    f"episode {number}: {name} has shape {values.shape}; "
                    f"expected {(length, self.dims[name])} (frames, names)"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"episode {number}: {name} has numbers that are not finite")
        frame = np.arange(length)
        columns: dict[str, NDArray[Any]] = {
            "observation.state": episode.state.astype(np.float32),
            "action": episode.action.astype(np.float32),
            "timestamp": (frame / self.fps_hz).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(length, number),
            "index": self.num_frames + frame,
            "task_index": np.full(length, self.tasks.setdefault(episode.task, len(self.tasks))),
        }
        stats = {name: _stats(values.reshape(length, -1)) for name, values in columns.items()}
        stats[self.camera] = _picture_stats(episode.frames_THWC)
        video = f"videos/{self.camera}"
        self._rows.append(
            {
                "episode_index": number,
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": self.num_frames,
                "dataset_to_index": self.num_frames + length,
                f"{video}/chunk_index": 0,
                f"{video}/file_index": 0,
                f"{video}/from_timestamp": self.num_frames / self.fps_hz,
                f"{video}/to_timestamp": (self.num_frames + length) / self.fps_hz,
                "tasks": [episode.task],
                "length": length,
                **{f"stats/{name}/{key}": value for name, of in stats.items() for key, value in of.items()},
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
        self._data.append(columns)
        self._stats.append(stats)
        self.num_frames += length
        self.num_episodes += 1

    def write(self, out: Path) -> None:
        import pandas as pd  # type: ignore[import-untyped,unused-ignore]
        import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
        import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

        data: dict[str, Any] = {}
        for name in self._data[0]:
            values = np.concatenate([columns[name] for columns in self._data])
            data[name] = pa.array(list(values), pa.list_(pa.float32())) if values.ndim == 2 else pa.array(values)
        path = out / _DATA.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(data), path)
        path = out / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(self._rows), path)
        # lerobot reads the task texts as the index of a pandas frame.
        tasks = pd.DataFrame({"task_index": list(self.tasks.values())}, index=list(self.tasks))
        tasks.to_parquet(out / "meta" / "tasks.parquet")

    def total_stats(self) -> dict[str, dict[str, Any]]:
        return {name: _pool([stats[name] for stats in self._stats]) for name in self._stats[0]}


def _stats(values: NDArray[Any]) -> dict[str, Any]:
    """Per-column statistics of [T, D]."""
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": values.mean(0, dtype=np.float64).tolist(),
        "std": values.std(0, dtype=np.float64).tolist(),
        "count": [len(values)],
    }


def _picture_stats(frames_THWC: NDArray[np.uint8]) -> dict[str, Any]:
    """Per-channel statistics, [3, 1, 1] on a scale of 0..1."""
    stats = _stats(frames_THWC.reshape(-1, 3))
    scaled = {key: [[[v / 255]] for v in stats[key]] for key in ("min", "max", "mean", "std")}
    return {**scaled, "count": [len(frames_THWC)]}


def _pool(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of the whole from those of its parts."""
    count = np.array([part["count"][0] for part in parts], dtype=np.float64)
    means = np.array([part["mean"] for part in parts])
    stds = np.array([part["std"] for part in parts])
    weight = (count / count.sum()).reshape(-1, *[1] * (means.ndim - 1))
    mean = (weight * means).sum(0)
    std = np.sqrt((weight * (stds**2 + (means - mean) ** 2)).sum(0))
    return {
        "min": np.min([part["min"] for part in parts], axis=0).tolist(),
        "max": np.max([part["max"] for part in parts], axis=0).tolist(),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "count": [int(count.sum())],
    }


def _info(
    tables: _Tables,
    fps_hz: int,
    size_px: tuple[int, int],
    state_names: Sequence[str],
    action_names: Sequence[str],
    robot_type: str,
) -> dict[str, Any]:
    height, width = size_px
    features: dict[str, Any] = {}
    for name, names in (("observation.state", state_names), ("action", action_names)):
        features[name] = {"dtype": "float32", "shape": [len(names)], "names": list(names), "fps": fps_hz}
    features[tables.camera] = {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channel"],
        "info": {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": PIXEL_FORMAT,
            "video.is_depth_map": False,
            "video.fps": fps_hz,
            "video.channels": 3,
            "has_audio": False,
        },
    }
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None, "fps": fps_hz}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None, "fps": fps_hz}
    return {
        "codebase_version": "v3.0",
        "robot_type": robot_type,
        "total_episodes": tables.num_episodes,
        "total_frames": tables.num_frames,
        "total_tasks": len(tables.tasks),
        "chunks_size": 1000,
        "fps": fps_hz,
        "splits": {"train": f"0:{tables.num_episodes}"},
        "data_path": _DATA,
        "video_path": _VIDEO,
        "features": features,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
    }
