"""A plain folder of videos: each file is a recording of its own, by an unknown person in an unknown place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from egoscale.video.readers.clip import ClipMetadata, video_files


def read(root: Path, source: str) -> Iterator[ClipMetadata]:
    """Every file under `root`, whether it turns out to be a video or not."""
    for path in video_files(root):
        name = path.relative_to(root).as_posix()
        yield ClipMetadata(name=name, path=path, recording_id=name, provenance=f"folder: {name}")
