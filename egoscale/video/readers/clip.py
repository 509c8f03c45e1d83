"""What a reader says about one file: the columns of the catalogue that a data set's metadata decides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Tables and texts lie beside videos in every data set. FFmpeg would play some of them (.txt is "ANSI art").
SIDE_SUFFIXES = frozenset({
    ".csv", ".tsv", ".json", ".jsonl", ".md", ".txt", ".rst", ".html", ".toml", ".yaml", ".yml", ".xml",
    ".parquet", ".arrow", ".npy", ".npz", ".h5", ".hdf5", ".pkl", ".pdf", ".sha256", ".py", ".log", ".srt",
    ".vtt",
})  # fmt: skip


@dataclass(frozen=True)
class ClipMetadata:
    """One file. `name` is unique within its source and does not change when the folder moves."""

    name: str
    path: Path
    recording_id: str
    participant_id: str | None = None
    scene_id: str | None = None
    task: str | None = None
    narration: str | None = None
    license: str | None = None
    provenance: str | None = None
    reason: str | None = None  # why it is not usable, before any decoding


def video_files(root: Path) -> list[Path]:
    """Every file under a folder, sorted by name, but for hidden ones and tables and texts."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file()
        and path.suffix.lower() not in SIDE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
