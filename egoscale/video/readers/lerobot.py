"""LeRobot data sets (v2.0, v2.1, v3.0) as a source of video: an episode of a camera is a clip.

v2: a file an episode and camera. v3: many episodes share a file, and `meta/episodes` says where each lies. What
`meta/info.json` says of cameras, totals and splits is often wrong; the files count, and a camera that it names and
that has no file is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from egoscale.video.readers.clip import ClipMetadata, clip_table
from egoscale.video.readers.files import read_json, videos
from egoscale.video.readers.match import UNNAMED
from egoscale.video.readers.times import fraction

MISSING = "No such file: info.json names the camera {camera!r}, and the folder has no such video of it"


def finds(root: Path) -> str | None:
    """meta/info.json with the version of the format."""
    info = root / "meta" / "info.json"
    try:
        version = read_json(info).get("codebase_version") if info.is_file() else None
    except (ValueError, AttributeError):
        return None
    return f"meta/info.json, {version}" if version else None


def read(root: Path, source: str) -> pl.LazyFrame:
    """A clip an episode and camera.

    Raises FileNotFoundError without meta/info.json, ValueError for another version of the format.
    """
    info = _info(root)
    version = str(info.get("codebase_version"))
    if version not in ("v2.0", "v2.1", "v3.0"):
        raise ValueError(f"{root / 'meta' / 'info.json'}: codebase_version {version!r}: v2.0, v2.1 and v3.0 are read")
    cameras = sorted(name for name, feature in info["features"].items() if feature.get("dtype") == "video")
    episodes = _episodes(root, version)
    clips = [clip for camera in cameras for clip in _clips(root, info, episodes, camera, source)]
    named = {str(clip.path) for clip in clips}
    others = (
        ClipMetadata(
            name=one.name,
            path=one.path,
            recording_id=one.name,
            provenance="folder",
            reason=one.reason or UNNAMED.format(table="meta/info.json"),
        )
        for one in videos(root)
        if str(one.path) not in named
    )
    return clip_table([*clips, *others])


def _clips(
    root: Path, info: dict[str, Any], episodes: pl.DataFrame, camera: str, source: str
) -> Iterator[ClipMetadata]:
    num, den = fraction(info.get("fps"))
    feature = info["features"][camera]
    shape = dict(zip(feature.get("names") or (), feature.get("shape") or (), strict=False))
    told = feature.get("info") or feature.get("video_info") or {}
    for episode in episodes.iter_rows(named=True):
        path, start_s, duration_s = _place(root, info, episode, camera)
        yield ClipMetadata(
            name=f"episode_{episode['episode_index']:06d}/{camera}",
            path=path,
            recording_id=f"episode_{episode['episode_index']:06d}",
            task="; ".join(episode.get("tasks") or ()) or None,
            device=f"{info.get('robot_type') or 'robot'}: {camera}",
            start_s=start_s,
            duration_s=duration_s or _seconds(episode["length"], num, den),
            fps_num=num,
            fps_den=den,
            num_frames=episode["length"],
            width_px=shape.get("width"),
            height_px=shape.get("height"),
            codec=told.get("video.codec"),
            provenance=f"LeRobot {info['codebase_version']}: {source}",
            reason=None if path.is_file() else MISSING.format(camera=camera),
        )


def _place(
    root: Path, info: dict[str, Any], episode: dict[str, Any], camera: str
) -> tuple[Path, float | None, float | None]:
    """File of an episode, and where in it the episode begins and how long it is, where it is a piece."""
    index = episode["episode_index"]
    if info["codebase_version"] != "v3.0":
        chunk = index // int(info.get("chunks_size") or 1000)
        names = {"episode_chunk": chunk, "episode_index": index, "video_key": camera}
        return root / info["video_path"].format(**names), None, None
    at = f"videos/{camera}/"
    names = {"video_key": camera, "chunk_index": episode.get(f"{at}chunk_index") or 0}
    names["file_index"] = episode.get(f"{at}file_index") or 0
    begin, end = episode.get(f"{at}from_timestamp"), episode.get(f"{at}to_timestamp")
    duration_s = end - begin if begin is not None and end is not None else None
    return root / info["video_path"].format(**names), begin, duration_s


def _seconds(length: int, num: int | None, den: int | None) -> float | None:
    return length * den / num if num and den else None


def _episodes(root: Path, version: str) -> pl.DataFrame:
    meta = root / "meta"
    if version == "v3.0":
        files = sorted((meta / "episodes").glob("*/*.parquet"))
        frames = [pl.scan_parquet(file) for file in files]
        if not frames:
            raise FileNotFoundError(f"{meta / 'episodes'}: no table of episodes (*/*.parquet)")
        wanted = [
            name for name in frames[0].collect_schema().names() if not name.startswith(("stats/", "data/", "meta/"))
        ]
        return (
            pl.concat([frame.select(wanted) for frame in frames], how="diagonal_relaxed")
            .collect()
            .sort("episode_index")
        )
    file = meta / "episodes.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not there; it lists the episodes")
    schema = pl.Schema({"episode_index": pl.Int64(), "tasks": pl.List(pl.String()), "length": pl.Int64()})
    return pl.read_ndjson(file, schema=schema).sort("episode_index")


def _info(root: Path) -> dict[str, Any]:
    file = root / "meta" / "info.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not there; a LeRobot data set begins with it")
    found: dict[str, Any] = read_json(file)
    return found
