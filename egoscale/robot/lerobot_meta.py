"""The metadata of LeRobot v2.1 and v3.0 folders: what they hold and where each episode lies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

VERSIONS = ("v2.1", "v3.0")


@dataclass(frozen=True)
class Place:
    """Where an episode lies."""

    index: int
    length: int
    task: str | None
    table: Path
    video: Path | None
    video_from_s: float


def read_info(path: Path) -> dict[str, Any]:
    file = path / "meta" / "info.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing; a LeRobot data set is a folder with meta/info.json")
    try:
        info: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise ValueError(
            f"{file}: codebase_version = {version!r}; read are {', '.join(VERSIONS)}. "
            "lerobot's own converters bring older sets forward"
        )
    for key in ("fps", "features", "data_path"):
        if not info.get(key):
            raise ValueError(f"{file}: key {key!r} is missing or empty")
    return info


def choose_camera(path: Path, info: dict[str, Any], camera: str | None) -> str:
    videos = [name for name, feature in info["features"].items() if feature.get("dtype") == "video"]
    if videos and not info.get("video_path"):
        raise ValueError(f"{path / 'meta' / 'info.json'}: video_path is missing, but {videos[0]!r} is a video")
    chosen = camera or (videos[0] if videos else "")
    if chosen in videos:
        return str(chosen)
    raise ValueError(
        f"{path / 'meta' / 'info.json'}: no video feature {camera or ''!r}; there are {videos or 'none'}. "
        "Open the set with with_video=False to read states and actions only"
    )


def feature_width(path: Path, info: dict[str, Any], feature: str) -> int:
    shape = info["features"].get(feature, {}).get("shape")
    if not shape or len(shape) != 1:
        raise ValueError(
            f"{path / 'meta' / 'info.json'}: feature {feature!r} has shape {shape}; needed is one list of numbers"
        )
    return int(shape[0])


def feature_names(info: dict[str, Any], feature: str, width: int) -> tuple[str, ...] | None:
    names = info["features"][feature].get("names")
    if isinstance(names, dict):
        names = next(iter(names.values()), None)  # {"motors": [...]}
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    if isinstance(names, list) and len(names) == width:
        return tuple(str(name) for name in names)
    return None


def read_tasks(path: Path, version: str) -> dict[int, str]:
    if version == "v2.1":
        return {int(line["task_index"]): str(line["task"]) for line in _json_lines(path / "meta" / "tasks.jsonl")}
    file = path / "meta" / "tasks.parquet"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing; a v3.0 set keeps its task texts there")
    table = pl.read_parquet(file)
    # lerobot writes the text as a pandas index, which parquet knows under this name.
    text = next((name for name in ("task", "__index_level_0__") if name in table.columns), None)
    if text is None or "task_index" not in table.columns:
        raise ValueError(f"{file}: columns task_index and task are needed; it has {table.columns}")
    return dict(zip(table["task_index"].to_list(), table[text].to_list(), strict=True))


def _json_lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing; a v2.1 set needs it")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def places_v21(path: Path, info: dict[str, Any], camera: str | None) -> list[Place]:
    places = []
    for line in _json_lines(path / "meta" / "episodes.jsonl"):
        index = int(line["episode_index"])
        words = {"episode_chunk": index // int(info.get("chunks_size", 1000)), "episode_index": index}
        video = path / info["video_path"].format(**words, video_key=camera) if camera else None
        task = line["tasks"][0] if line.get("tasks") else None
        places.append(Place(index, int(line["length"]), task, path / info["data_path"].format(**words), video, 0.0))
    return places


def places_v30(path: Path, info: dict[str, Any], camera: str | None) -> list[Place]:
    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{path / 'meta' / 'episodes'}: no parquet files; a v3.0 set lists its episodes there")
    columns = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
    if camera:
        columns += [f"videos/{camera}/{key}" for key in ("chunk_index", "file_index", "from_timestamp")]
    places = []
    for file in files:
        table = pl.read_parquet(file)
        missing = [name for name in columns if name not in table.columns]
        if missing:
            raise ValueError(f"{file}: column {missing[0]!r} is missing; write the set again with lerobot 0.4 or later")
        for row in table.select(columns).iter_rows(named=True):
            where = {key: int(row[f"data/{key}"]) for key in ("chunk_index", "file_index")}
            video, start = None, 0.0
            if camera:
                at = {key: int(row[f"videos/{camera}/{key}"]) for key in ("chunk_index", "file_index")}
                video = path / info["video_path"].format(**at, video_key=camera)
                start = float(row[f"videos/{camera}/from_timestamp"])
            task = row["tasks"][0] if row["tasks"] else None
            table_path = path / info["data_path"].format(**where)
            places.append(Place(int(row["episode_index"]), int(row["length"]), task, table_path, video, start))
    return sorted(places, key=lambda place: place.index)
