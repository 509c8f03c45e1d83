"""A plain folder of videos: each file is a recording of its own, by an unknown person in an unknown place.

A folder of pictures in it is a clip too; its frame rate is known to whoever made it, and not to the folder.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from egoscale.video.readers import table
from egoscale.video.readers.clip import ClipMetadata, clip_table
from egoscale.video.readers.files import NO_RATE, media


def notes(root: Path) -> list[str]:
    """Tables in the folder that might have listed its clips, and do not."""
    return table.no_lists(root) if root.is_dir() else []


def read(root: Path, source: str) -> pl.LazyFrame:
    """Every file under `root`, whether it turns out to be a video or not."""
    return clip_table(
        ClipMetadata(
            name=one.name,
            path=one.path,
            recording_id=one.name,
            num_frames=one.num_pictures or None,
            provenance=f"folder: {one.name}",
            reason=NO_RATE if one.num_pictures else one.reason,
        )
        for one in media(root)
    )
