"""CERD: sessions filmed with a head-mounted ZED, as key frames (`rgb_left/<name>_<unix time>.png`) with hand poses.

A session is a folder with `info.json`; its `video/*.mp4`, or an mp4 beside the folder that bears its name, shows all
of it. Where there is one, it is the clip and the key frames are a row that says so; else the key frames are the
clip, at the rate that their times tell. (info.json gives the rate of the camera, and in published sessions the text
of its own template.) Licence: CC-BY-4.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any

import polars as pl

from egoscale.video.readers.clip import ClipMetadata, clip_table
from egoscale.video.readers.files import NO_RATE, Media, first, media, read_json, walk
from egoscale.video.readers.match import UNNAMED
from egoscale.video.readers.times import fraction

LICENSE = "CC-BY-4.0"
FRAMES = ("rgb_left", "rgb_right")
TIME = re.compile(r"_(\d+\.\d+)\.\w+$")
TEMPLATE = {"Task Name", "taskname"}  # what stands in the template where a name should


def finds(root: Path) -> str | None:
    """The description of a session, beside its key frames."""
    for pattern in ("info.json", "*/info.json"):
        found = first(root, pattern)
        if found and (root / found).with_name("rgb_left").is_dir():
            return found
    return None


def read(root: Path, source: str) -> pl.LazyFrame:
    """A clip a session."""
    return clip_table(_clips(root))


def _clips(root: Path) -> Iterator[ClipMetadata]:
    names = walk(root)
    sessions = [PurePosixPath(name).parent.as_posix() for name in names if PurePosixPath(name).name == "info.json"]
    found = {one.name: one for one in media(root, names)}
    told: set[str] = set()
    for session in sessions:
        frames = [one for side in FRAMES if (one := _frames(found, f"{session}/{side}".removeprefix("./")))]
        films = [one for one in found.values() if not one.num_pictures and not one.reason and _of(one, session)]
        info = read_json(root / session / "info.json")
        for one in (*films, *frames):
            told.add(one.name)
            times = [
                name
                for name in names
                if one.num_pictures and PurePosixPath(name).parent == PurePosixPath(one.name).parent
            ]
            reason = None
            if one.num_pictures and films:
                reason = f"key frames of {films[0].name}, which is a clip of its own"
            elif one.num_pictures and "rgb_right" in one.name:
                reason = "the right eye's view of what the left eye sees"
            yield _clip(one, session, info, times, reason)
    for one in found.values():
        if one.name not in told:
            reason = NO_RATE if one.num_pictures else one.reason or UNNAMED.format(table="an info.json")
            yield ClipMetadata(name=one.name, path=one.path, recording_id=one.name, provenance="folder", reason=reason)


def _frames(found: dict[str, Media], folder: str) -> Media | None:
    return next((one for name, one in found.items() if one.num_pictures and name.rsplit("/", 1)[0] == folder), None)


def _of(one: Media, session: str) -> bool:
    """Whether a video shows a session: it lies in it, or beside it with its name."""
    name, folder = PurePosixPath(one.name), PurePosixPath(session)
    beside = name.parent == folder.parent and name.stem.startswith(folder.name)
    return beside or name.parent in (folder, folder / "video")


def _clip(one: Media, session: str, info: dict[str, Any], files: list[str], reason: str | None) -> ClipMetadata:
    num, den = _rate(files)
    path = one.path
    if one.num_pictures and num and den:
        path = Path(f"{path}&fps={num}" + (f"/{den}" if den != 1 else ""))
    elif one.num_pictures and reason is None:
        reason = NO_RATE
    subject, task = info.get("subject") or {}, info.get("task_name")
    return ClipMetadata(
        name=one.name,
        path=path,
        recording_id=session,
        participant_id=f"cerd-{subject['subject_id']}" if subject.get("subject_id") else None,
        task=task if task not in TEMPLATE else PurePosixPath(session).name.rstrip("_0123456789").replace("_", " "),
        device=(info.get("camera_setup") or {}).get("device"),
        duration_s=one.num_pictures * den / num if one.num_pictures and num and den else None,
        fps_num=num,
        fps_den=den,
        num_frames=one.num_pictures or None,
        license=LICENSE,
        provenance=f"CERD session {session}",
        reason=reason,
    )


def _rate(files: list[str]) -> tuple[int | None, int | None]:
    """Of pictures that bear their time: one by the median time between two."""
    times = sorted(float(match[1]) for file in files if (match := TIME.search(file)))
    steps = [after - before for before, after in pairwise(times) if after > before]
    return fraction(1 / median(steps)) if steps else (None, None)
