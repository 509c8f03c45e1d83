"""Robot demonstrations in the LeRobot layout: read v2.1 and v3.0 folders, write v3.0.

Layout of v3.0 (lerobot 0.4): many episodes share a table and a video; `meta/episodes` says where each lies.
v2.1: a table and a video per episode. Files are read with polars, pictures through `egoscale.video.decode`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from egoscale.robot.lerobot_meta import (
    choose_camera,
    feature_names,
    feature_width,
    places_v21,
    places_v30,
    read_info,
    read_tasks,
)
from egoscale.robot.lerobot_write import Episode, write_lerobot_v30

Float = NDArray[np.float32]
_OPEN_FILES = 4  # tables and videos kept open at once

__all__ = ["Episode", "LeRobotDataset", "write_lerobot_v30"]


class LeRobotDataset:
    """Demonstrations of one robot, opened with `LeRobotDataset.open(path)`.

    Attributes:
        path: the folder.
        version: "v2.1" or "v3.0".
        num_episodes, fps_hz, state_dim, action_dim: of the tables.
        state_names, action_names: one per number, or None where the folder does not name them.
        tasks: the task texts, by task index.
        camera: feature of the pictures that are read, or None when opened without video.
        remarks: what `meta/info.json` says and the files deny, in words (counts that differ).
    """

    def __init__(self, path: Path, info: dict[str, Any], camera: str | None) -> None:
        self.path = path
        self.version: str = info["codebase_version"]
        self.fps_hz = float(info["fps"])
        self.camera = camera
        self._info = info
        self.state_dim = feature_width(path, info, "observation.state")
        self.action_dim = feature_width(path, info, "action")
        self.state_names = feature_names(info, "observation.state", self.state_dim)
        self.action_names = feature_names(info, "action", self.action_dim)
        texts = read_tasks(path, self.version)
        self.tasks: list[str] = [texts[i] for i in sorted(texts)]
        self._texts = texts
        self._places = places_v30(path, info, camera) if self.version == "v3.0" else places_v21(path, info, camera)
        self.num_episodes = len(self._places)
        self.remarks = tuple(self._count_remarks())
        self._tables: OrderedDict[Path, pl.DataFrame] = OrderedDict()
        self._videos: OrderedDict[Path, Any] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path, camera: str | None = None, with_video: bool = True) -> LeRobotDataset:
        """Open a folder and check it: version, features, tables, and that every video file is there.

        Args:
            path: folder that holds `meta/info.json`.
            camera: feature of the pictures; the first video feature unless given.
            with_video: False reads states and actions only (episodes then have no pictures).

        Raises:
            FileNotFoundError: no `meta/info.json`, or a table or video it names is missing.
            ValueError: unknown version, missing feature, or tables of another width than info.json says.
        """
        path = Path(path)
        info = read_info(path)
        dataset = cls(path, info, choose_camera(path, info, camera) if with_video else None)
        dataset._check_files()
        return dataset

    def episode(self, index: int, size_px: int | None = None) -> Episode:
        """Episode `index`: frames [T, H, W, 3] uint8, state [T, S], action [T, A] float32, task.

        Args:
            index: 0 .. num_episodes - 1.
            size_px: pictures are cropped to a square and resized to this; as stored unless given.

        Raises:
            IndexError: no such episode.
            ValueError: the table or the video holds fewer frames than the metadata says, or other sizes.
        """
        if not 0 <= index < self.num_episodes:
            raise IndexError(
                f"{self.path}: episode {index}; there are {self.num_episodes} (0 .. {self.num_episodes - 1})"
            )
        place = self._places[index]
        rows = self._table(place.table).filter(pl.col("episode_index") == place.index).sort("frame_index")
        if rows.height != place.length:
            raise ValueError(
                f"{place.table}: episode {place.index} has {rows.height} rows, the metadata says "
                f"{place.length}; copy the folder again"
            )
        task = place.task if place.task is not None else self._texts.get(int(rows["task_index"][0]), "")
        state = _matrix(place.table, rows, "observation.state", self.state_dim)
        action = _matrix(place.table, rows, "action", self.action_dim)
        if place.video is None:
            return Episode(np.zeros((place.length, 0, 0, 3), np.uint8), state, action, task)
        # Timestamps, not row numbers: episodes share a video, and a cut one need not start at frame 0.
        times_s = rows["timestamp"].to_numpy().astype(np.float64) + place.video_from_s
        wanted = np.rint(times_s * self.fps_hz).astype(np.int64)
        video = self._video(place.video)
        count = video.probe().num_frames
        if wanted[-1] >= count:
            raise ValueError(
                f"{place.video}: episode {place.index} ends at frame {wanted[-1]}, the video has {count} "
                "frames; copy the file again or drop the episode from meta/episodes"
            )
        return Episode(video.frames(wanted, size_px=size_px), state, action, task)

    def __iter__(self) -> Iterator[Episode]:
        for index in range(self.num_episodes):
            yield self.episode(index)

    def __len__(self) -> int:
        return self.num_episodes

    def close(self) -> None:
        """Close the videos and forget the tables."""
        for video in self._videos.values():
            video.close()
        self._videos.clear()
        self._tables.clear()

    # --- files --------------------------------------------------------------------------------

    def _check_files(self) -> None:
        for place in self._places:
            if not place.table.is_file():
                raise FileNotFoundError(f"{place.table}: missing; meta says episode {place.index} lies there")
            if place.video is not None and not place.video.is_file():
                raise FileNotFoundError(
                    f"{place.video}: missing; {self.camera} of episode {place.index} lies there. "
                    "Fetch the videos, or open the set with with_video=False to read states and actions only"
                )
            if place.video is not None and place.video.stat().st_size < 400:
                raise ValueError(
                    f"{place.video}: {place.video.stat().st_size} bytes are no video (a Git LFS pointer?); "
                    "fetch the file itself"
                )
        if self._places:
            first = self._table(self._places[0].table)
            _matrix(self._places[0].table, first, "action", self.action_dim)
            _matrix(self._places[0].table, first, "observation.state", self.state_dim)

    def _count_remarks(self) -> Iterator[str]:
        for key, found in (
            ("total_episodes", self.num_episodes),
            ("total_frames", sum(place.length for place in self._places)),
            ("total_tasks", len(self._texts)),
        ):
            said = self._info.get(key)
            if said is not None and said != found:
                yield f"{self.path / 'meta' / 'info.json'}: {key} = {said}, the files hold {found}"

    def _table(self, path: Path) -> pl.DataFrame:
        table = self._tables.get(path)
        if table is None:
            try:
                table = pl.read_parquet(path)
            except Exception as error:  # polars raises several kinds for a torn file
                raise ValueError(f"{path}: cannot be read as parquet ({error}); copy the file again") from error
            if "frame_index" not in table.columns or "timestamp" not in table.columns:
                raise ValueError(f"{path}: columns frame_index and timestamp are needed; it has {table.columns}")
            self._tables[path] = table
            while len(self._tables) > _OPEN_FILES:
                self._tables.popitem(last=False)
        return table

    def _video(self, path: Path) -> Any:
        video = self._videos.get(path)
        if video is None:
            from egoscale.video.decode import open_video

            video = self._videos[path] = open_video(path)
            while len(self._videos) > _OPEN_FILES:
                self._videos.popitem(last=False)[1].close()
        return video


def _matrix(file: Path, rows: pl.DataFrame, column: str, width: int) -> Float:
    """A column of number lists as [T, width] float32."""
    if column not in rows.columns:
        raise ValueError(f"{file}: column {column!r} is missing; it has {rows.columns}")
    widths = rows[column].cast(pl.List(pl.Float64)).list.len().unique().to_list() if rows.height else [width]
    if widths != [width]:
        raise ValueError(
            f"{file}: {column} has {' and '.join(map(str, widths))} numbers, meta/info.json says {width}; "
            "correct its features, or use the set this file belongs to"
        )
    return np.asarray(rows[column].to_list(), dtype=np.float32).reshape(rows.height, width)
