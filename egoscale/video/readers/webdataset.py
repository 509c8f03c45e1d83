"""WebDataset: tar files of samples, read without unpacking.

Files of one sample share their name up to the first dot: `000017.mp4`, `000017.json`, `000017.txt`. The video is the
clip; its path goes on through the tar, `shard-000.tar/000017.mp4`. The JSON may hold any column of the catalogue, or
the names that follow; a text is the narration. Of several videos in a sample (`000017.left.mp4`, `000017.right.mp4`)
each is a clip, and they are one recording. Pictures in place of a video are one clip a tar.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from egoscale.video.readers.clip import METADATA_SCHEMA, ClipMetadata, clip_table
from egoscale.video.readers.files import (
    NO_RATE,
    PICTURE_SUFFIXES,
    SIDE_SUFFIXES,
    VIDEO_SUFFIXES,
    first,
    media,
    walk,
    wrapped,
)
from egoscale.video.readers.times import fraction

# What JSON beside videos calls things: common words first, then those of Egocentric-10K.
NAMES = {
    "duration": "duration_s",
    "duration_sec": "duration_s",
    "width": "width_px",
    "height": "height_px",
    "size_bytes": "bytes",
    "caption": "narration",
    "text": "narration",
    "participant": "participant_id",
    "scene": "scene_id",
    "recording": "recording_id",
}
NUMBERS = frozenset(name for name, kind in METADATA_SCHEMA.items() if kind.is_integer())
JSON_BYTES = 2**20  # a larger JSON beside a video holds poses or the like, and is not read
GIVEN = ("clip_id", "path", "source")


def finds(root: Path) -> str | None:
    """A tar, or the folder of some."""
    if root.is_file():
        return root.name if root.suffix.lower() == ".tar" else None
    return first(root, "*.tar", "*/*.tar", "*/*/*.tar", "*/*/*/*.tar")


def read(root: Path, source: str) -> pl.LazyFrame:
    """A clip a video of a sample; pictures of samples without, and files beside the tars, are rows too."""
    return clip_table(clips_of(root, lambda clip, sample: clip))


@dataclass
class Sample:
    """Files of one sample: suffix (".mp4", as it is written) to member and bytes; contents of its JSON and text."""

    key: str
    members: dict[str, tuple[str, int]] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None


def clips_of(root: Path, finish: Callable[[ClipMetadata, Sample], ClipMetadata]) -> Iterator[ClipMetadata]:
    """Clips of all tars; `finish` may add to one what a data set knows besides."""
    names = walk(root)
    for name in names:
        if name.lower().endswith(".tar"):
            yield from shard_clips(root.parent / name if root.is_file() else root / name, name, finish)
    for one in media(root, [name for name in names if not name.lower().endswith(".tar")]):
        reason = NO_RATE if one.num_pictures else one.reason
        yield ClipMetadata(
            name=one.name, path=one.path, recording_id=one.name, provenance=f"folder: {one.name}", reason=reason
        )


def shard_clips(tar: Path, name: str, finish: Callable[[ClipMetadata, Sample], ClipMetadata]) -> Iterator[ClipMetadata]:
    """Clips of one tar; `name` is its name within the source."""
    pictures: dict[str, int] = {}
    fault = None
    for sample in _samples(tar):
        if sample.fault is not None:
            fault = sample.fault
            continue
        videos, packed = _videos(sample)
        for video in (*videos, *packed):
            known_as = video if len(videos) > 1 or video in packed else ""
            yield finish(_clip(tar, name, sample, video, known_as), sample)
        if videos:
            continue
        for suffix in sample.members:
            if _kind(suffix) == "picture":
                pictures[suffix] = pictures.get(suffix, 0) + 1
    for suffix, count in sorted(pictures.items()):
        yield ClipMetadata(
            name=f"{name}/*{suffix}",
            path=Path(f"{tar}?glob=*{suffix}"),
            recording_id=name,
            num_frames=count,
            provenance=f"WebDataset {name}",
            reason=NO_RATE,
        )
    if fault is not None:
        yield ClipMetadata(name=f"{name}/", path=tar, recording_id=name, provenance=f"WebDataset {name}", reason=fault)


def _samples(tar: Path) -> Iterator[Sample]:
    """Samples in the order of the tar; the last has a fault where the tar is damaged."""
    current = Sample("")
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
                    continue
                key, suffix = _split(member.name)
                if key != current.key:
                    if current.members:
                        yield current
                    current = Sample(key)
                current.members[suffix] = (member.name, member.size)
                if suffix.lower() in (".json", ".txt") and member.size <= JSON_BYTES:
                    file = archive.extractfile(member)
                    _tell(current, suffix.lower(), file.read() if file else b"")
            if not _ended(tar, archive.offset):
                raise EOFError("it ends without the mark that ends a tar")
    except (tarfile.TarError, EOFError, OSError) as error:
        yield from [current] if current.members else []
        yield Sample("", fault=f"the tar is damaged after {current.key or 'its beginning'}: {error}")
        return
    if current.members:
        yield current


def _ended(tar: Path, offset: int) -> bool:
    """Whether the block after the last member is empty, as a tar ends; one that was cut off goes unnoticed else."""
    with tar.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    return len(block) == tarfile.BLOCKSIZE and not any(block)


def _split(name: str) -> tuple[str, str]:
    """`a/b.c/000017.left.mp4` is the file `.left.mp4` of the sample `a/b.c/000017`."""
    pure = PurePosixPath(name.removeprefix("./"))
    stem, dot, suffix = pure.name.partition(".")
    return str(pure.with_name(stem)) if stem else str(pure), dot + suffix


def _kind(suffix: str) -> str:
    last = PurePosixPath(f"x{suffix}").suffix.lower()
    if last in PICTURE_SUFFIXES:
        return "picture"
    return (
        "side"
        if last in SIDE_SUFFIXES or not last or re.fullmatch(r"\.(cls|id|index|npy|pyd|pth|ten)", last)
        else "video"
    )


def _videos(sample: Sample) -> tuple[list[str], list[str]]:
    """Suffixes of a sample's videos, and of those that are packed. What is of no known kind (sound, poses in a format
    of their own) is taken for a video only where nothing else is one."""
    packed = [suffix for suffix in sample.members if wrapped(f"x{suffix}")]
    plain = [suffix for suffix in sample.members if _kind(suffix) == "video" and suffix not in packed]
    known = [suffix for suffix in plain if PurePosixPath(f"x{suffix}").suffix.lower() in VIDEO_SUFFIXES]
    return (known or ([] if packed else plain)), packed


def _tell(sample: Sample, suffix: str, content: bytes) -> None:
    if suffix == ".txt":
        sample.said.setdefault("narration", content.decode("utf-8", "replace").strip())
        return
    try:
        said = json.loads(content)
    except ValueError:
        said = {"provenance": f"{sample.key}.json beside it is not JSON"}
    if isinstance(said, dict):
        sample.said.update(said)


def _clip(tar: Path, name: str, sample: Sample, video: str, known_as: str) -> ClipMetadata:
    member, size = sample.members[video]
    known: dict[str, Any] = {}
    for key, value in sample.said.items():
        column = NAMES.get(key, key)
        if column in METADATA_SCHEMA and column not in GIVEN and value is not None:
            known.setdefault(column, _value(column, value))
    num, den = fraction(sample.said.get("fps"))
    clip = ClipMetadata(
        name=f"{name}/{sample.key}{known_as}",
        path=Path(f"{tar}/{member.removeprefix('./')}"),
        recording_id=f"{name}/{sample.key}",  # shards often count their samples from 0, each anew
        fps_num=num,
        fps_den=den,
        provenance=f"WebDataset {name}",
        reason=wrapped(member),
    )
    return replace(clip, **{**known, "bytes": size})


def _value(column: str, value: Any) -> Any:
    try:
        if column in NUMBERS:
            return round(float(value))
        if METADATA_SCHEMA[column] != pl.Float64:
            return str(value)
        return float(value) if isfinite(float(value)) else None
    except (TypeError, ValueError, OverflowError):
        return None
