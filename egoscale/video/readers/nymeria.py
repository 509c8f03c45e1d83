"""Nymeria: daily motion of people in Aria glasses and wristbands.

A folder a sequence, `<date>_<session>_<name>_<act>_<uid>`, with `metadata.json`, `narration/*.csv` and
`recording_head/data/data.vrs`. A narration may begin with a line `#` of its own, before the header. Its times are
those of the device, not of the video: clips are whole recordings, with the narrated activities as their text.
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

SEQUENCE = re.compile(r"(?P<date>\d{8})_(?P<session>s\d+)_(?P<name>.+)_(?P<act>act\d+)_(?P<uid>[a-z0-9]{6})")
HEAD = "recording_head/data/data.vrs"
OTHERS = {
    "recording_observer": "filmed by the observer, not by the person",
    "recording_lwrist": "filmed from the left wrist",
    "recording_rwrist": "filmed from the right wrist",
}
SUMMARY = "narration/activity_summarization.csv"


def finds(root: Path) -> str | None:
    """A folder named like a sequence, with its metadata."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = (path.name for path in folders if SEQUENCE.fullmatch(path.name) and (path / "metadata.json").is_file())
    return next(found, None)


def read(root: Path, source: str) -> pl.LazyFrame:
    """A clip a sequence, filmed from the head; other recordings are rows that say what they are."""
    return clip_table(_clips(root))


def _clips(root: Path) -> Iterator[ClipMetadata]:
    names = walk(root)
    sequences = sorted({name.split("/")[0] for name in names if SEQUENCE.fullmatch(name.split("/")[0])})
    for sequence in sequences:
        yield _clip(root, sequence, f"{sequence}/{HEAD}" in names)
    heads = {f"{sequence}/{HEAD}" for sequence in sequences}
    for one in media(root, names):
        if one.name not in heads:
            yield ClipMetadata(
                name=one.name,
                path=one.path,
                recording_id=one.name.split("/")[0],
                provenance="folder",
                reason=one.reason or _other(one.name),
            )


def _clip(root: Path, sequence: str, there: bool) -> ClipMetadata:
    said = _json(root / sequence / "metadata.json")
    match = SEQUENCE.fullmatch(sequence)
    assert match is not None
    where = said.get("location")
    return vrs_clip(
        ClipMetadata(
            name=sequence,
            path=root / sequence / HEAD,
            recording_id=f"{match['date']}_{match['session']}_{match['name']}",  # acts of one session share it
            participant_id=f"nymeria-{said.get('fake_name') or match['name']}",
            scene_id=f"nymeria-location-{where}" if where is not None else None,
            task=said.get("script"),
            narration=_text(root / sequence / SUMMARY),
            device="Aria Gen 1",
            duration_s=said.get("head_duration_sec") or said.get("action_duration_sec"),
            license="Nymeria dataset licence",
            provenance=f"Nymeria {sequence}",
            reason=None if there else MISSING.format(table="metadata.json"),
        )
    )


def _other(name: str) -> str:
    parts = PurePosixPath(name).parts
    for folder, reason in OTHERS.items():
        if folder in parts:
            return reason
    if parts[-1] in ("et.vrs", "motion.vrs", "audio.vrs"):
        return f"{parts[-1]} holds no pictures of what the person sees"
    return UNNAMED.format(table="the layout of Nymeria")


def _text(narration: Path) -> str | None:
    """What was done, activity after activity; the text stands in the column that begins with "Describe"."""
    if not narration.is_file():
        return None
    lines = narration.read_text(encoding="utf-8-sig").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    column = next((name for name in rows.fieldnames or () if name and name.startswith("Describe")), None)
    said = [(row[column] or "").strip() for row in rows] if column else []
    return " ".join(text for text in said if text) or None


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
