"""HOT3D: hands and objects in front of Aria and Quest 3 glasses.

HOT3D-Clips: a tar a clip, `train_aria/clip-001849.tar`, of 150 frames (5 s) as pictures; `clip_splits.json` and
`clip_definitions.json` (sequence, device) beside the folders. Aria clips are read in colour (stream 214-1), Quest 3
clips, which have no colour camera, by their left one (1201-1).

Full sequences: a folder a sequence, `P0003_c701bd11`, with `metadata.json`, `recording.vrs` and masks, whose rows
tell how many frames of a stream there are.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from egoscale.video.readers.aria import vrs_clip
from egoscale.video.readers.clip import ClipMetadata, clip_table
from egoscale.video.readers.files import media, read_json, walk
from egoscale.video.readers.match import MISSING, UNNAMED

RATE_HZ, CLIP_FRAMES = 30, 150  # of all clips, and of most sequences (README of HOT3D-Clips)
STREAMS = {"Aria": "214-1", "Quest3": "1201-1"}
DEVICES = {"Aria": "Aria Gen 1", "Quest3": "Quest 3"}
CLIP = re.compile(r"clip-0*(\d+)\.tar")
SEQUENCE = re.compile(r"(P\d{4})_[0-9a-f]{8}")
MASK = "masks/mask_good_exposure.csv"


def finds(root: Path) -> str | None:
    """The tables of HOT3D-Clips, or a folder named like a sequence."""
    for name in ("clip_definitions.json", "clip_splits.json"):
        if (root / name).is_file():
            return name
    for pattern in ("*/metadata.json", "*/*/metadata.json"):
        for file in sorted(root.glob(pattern)) if root.is_dir() else ():
            if SEQUENCE.fullmatch(file.parent.name):
                return file.relative_to(root).as_posix()
    return None


def read(root: Path, source: str) -> pl.LazyFrame:
    """A clip a tar or a sequence; sequences with a low rate of frames are declared at that of their masks."""
    names = walk(root)
    return clip_table([*_clips(root, names), *_sequences(root, names)])


def _clips(root: Path, names: list[str]) -> Iterator[ClipMetadata]:
    said = _json(root / "clip_definitions.json")
    # test_bop is the union of the other test splits: a clip keeps the first name that it has.
    splits: dict[str, str] = {}
    for split, clips in _json(root / "clip_splits.json").items():
        for clip in clips:
            splits.setdefault(str(clip), split)
    tars = {match[1]: name for name in names if (match := CLIP.fullmatch(PurePosixPath(name).name))}
    for number in sorted({*tars, *said, *splits}, key=int):
        facts: dict[str, Any] = said.get(number) or {}
        name = tars.get(number)
        folder = PurePosixPath(name).parent.name if name else ""
        device = facts.get("device") or ("Quest3" if "quest3" in folder else "Aria")
        split = splits.get(number, folder.split("_")[0])
        expected = f"{'train' if split == 'train' else 'test'}_{device.lower()}/clip-{int(number):06d}.tar"
        sequence = facts.get("sequence_id")
        where = str(root.absolute() / (name or expected))
        yield ClipMetadata(
            name=f"clip-{int(number):06d}",
            path=Path(f"{where}?glob=*.image_{STREAMS[device]}.jpg&fps={RATE_HZ}"),
            recording_id=sequence or f"clip-{int(number):06d}",
            participant_id=_person(sequence),
            device=DEVICES[device],
            split=split or None,
            duration_s=CLIP_FRAMES / RATE_HZ,
            fps_num=RATE_HZ,
            fps_den=1,
            num_frames=CLIP_FRAMES,
            codec="mjpeg",
            provenance=f"HOT3D-Clips {number}",
            reason=None if name else MISSING.format(table="clip_definitions.json"),
        )


def _sequences(root: Path, names: list[str]) -> Iterator[ClipMetadata]:
    told = set()
    for name in names:
        folder = PurePosixPath(name).parent
        if PurePosixPath(name).name != "metadata.json" or not SEQUENCE.fullmatch(folder.name):
            continue
        told.add(f"{folder}/")
        said = _json(root / name)
        recording = f"{folder}/recording.vrs"
        device = str(said.get("headset") or "Aria")
        frames = _frames(root / folder / MASK, STREAMS.get(device, "214-1"))
        yield vrs_clip(
            ClipMetadata(
                name=str(folder),
                path=root / recording,
                recording_id=str(said.get("recording_name") or folder.name),
                participant_id=_person(said.get("participant_id") or folder.name),
                device=DEVICES.get(device, device),
                duration_s=frames / RATE_HZ if frames else None,
                fps_num=RATE_HZ,
                fps_den=1,
                num_frames=frames,
                provenance=f"HOT3D {folder.name}",
                reason=None if recording in names else MISSING.format(table="metadata.json"),
            )
        )
    for one in media(root, names):
        clip = CLIP.fullmatch(PurePosixPath(one.name).name)
        if not clip and not one.name.startswith(tuple(told)):
            yield ClipMetadata(
                name=one.name,
                path=one.path,
                recording_id=one.name,
                provenance="folder",
                reason=one.reason or UNNAMED.format(table="the layout of HOT3D"),
            )


def _person(sequence: str | None) -> str | None:
    return f"hot3d-{sequence.split('_')[0]}" if sequence else None


def _frames(mask: Path, stream: str) -> int | None:
    if not mask.is_file():
        return None
    with mask.open(newline="", encoding="utf-8-sig") as file:
        return sum(row["stream_id"] == stream for row in csv.DictReader(file)) or None


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
