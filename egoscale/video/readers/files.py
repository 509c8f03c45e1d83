"""What lies in a folder: every file once, videos apart from tables, pictures gathered into folders of frames."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

# Tables and texts lie beside videos in every data set. FFmpeg would play some of them (.txt is "ANSI art").
SIDE_SUFFIXES = frozenset({
    ".csv", ".tsv", ".json", ".jsonl", ".md", ".txt", ".rst", ".html", ".toml", ".yaml", ".yml", ".xml",
    ".parquet", ".arrow", ".npy", ".npz", ".h5", ".hdf5", ".pkl", ".pdf", ".sha256", ".py", ".log", ".srt",
    ".vtt", ".ndjson", ".safetensors", ".glb", ".obj", ".mtl", ".ply", ".blend", ".gz", ".part",
})  # fmt: skip
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv",
    ".3gp", ".mxf", ".vrs", ".gif", ".h264", ".h265", ".hevc",
})  # fmt: skip
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
# After the suffix of a video or a tar: what lies there cannot be read, and why.
WRAPPED = {
    ".gz": "packed with gzip: what is in it cannot be read in place, unpack it",
    ".part": "by its name the part of a download: fetch the rest, or give it the name of what it is",
}
NO_RATE = "a folder of pictures, and nothing tells their frame rate: list it in a table as `folder?fps=30`"


@dataclass(frozen=True)
class Media:
    """A video file, or a folder of `num_pictures` pictures; `name` is relative to the root, with `/`.

    A folder that cannot be listed is one too, its name ending in `/`, with its `reason`.
    """

    name: str
    path: Path
    num_pictures: int = 0
    reason: str | None = None  # why nothing in it can be read, where that shows before decoding

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem


def walk(root: Path) -> list[str]:
    """Names of all files under a folder, relative to it, sorted; hidden ones are left out.

    Links are followed, each folder once. A file in place of the folder is its own only file. A folder below that cannot
    be listed is among the names, with a `/` at its end. Raises OSError where the first folder cannot be listed.
    """
    if root.is_file():
        return [root.name]
    names: list[str] = []
    seen: set[tuple[int, int]] = set()

    def unlisted(error: OSError) -> None:
        if Path(error.filename) == root:
            raise error
        names.append(os.path.relpath(error.filename, root).replace(os.sep, "/") + "/")

    for folder, inner, files in os.walk(root, onerror=unlisted, followlinks=True):
        stat = Path(folder).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            inner.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        names += [prefix + name for name in files if not name.startswith(".")]
    return sorted(names)


def base(root: Path) -> Path:
    """The folder that the names of `walk` are relative to."""
    return root.parent if root.is_file() else root


def media(root: Path, names: Iterable[str] | None = None) -> list[Media]:
    """Everything under a folder that may be a clip, sorted by name.

    A file of an unknown kind is among it: whether it is a video shows when it is decoded. Pictures count as one
    clip a folder and suffix. A packed or unfinished file, and a folder that cannot be listed, have their reason.
    """
    found: list[Media] = []
    pictures: dict[tuple[str, str], int] = {}
    for name in walk(root) if names is None else names:
        pure = PurePosixPath(name)
        suffix = pure.suffix.lower()
        if name.endswith("/"):
            found.append(Media(name, base(root) / name, reason=_unlisted(base(root) / name)))
        elif suffix in PICTURE_SUFFIXES:
            key = (str(pure.parent), pure.suffix)
            pictures[key] = pictures.get(key, 0) + 1
        elif suffix not in SIDE_SUFFIXES:
            found.append(Media(name, base(root) / name))
        elif why := wrapped(name):
            found.append(Media(name, base(root) / name, reason=why))
    for (folder, suffix), count in pictures.items():
        path = base(root) / folder / f"?glob=*{suffix}"
        inner = "" if folder == "." else f"{folder}/"
        found.append(Media(f"{inner}*{suffix}", Path(str(path).replace("/?", "?")), count))
    return sorted(found, key=lambda one: one.name)


def wrapped(name: str) -> str | None:
    """Why a video or tar that is packed or unfinished (`a.mp4.gz`, `a.mp4.part`) cannot be read; None for others."""
    pure = PurePosixPath(name)
    inner = PurePosixPath(pure.stem).suffix.lower()
    return WRAPPED.get(pure.suffix.lower()) if inner == ".tar" or inner in VIDEO_SUFFIXES else None


def _unlisted(folder: Path) -> str:
    try:
        os.scandir(folder).close()
    except OSError as error:
        return f"this folder cannot be listed, and what is in it is not known: {error.strerror}"
    return "this folder could not be listed at first, and what is in it is not known: build the catalogue again"


def videos(root: Path, names: Iterable[str] | None = None) -> Iterator[Media]:
    """Of `media`, what is no folder of pictures."""
    return (one for one in media(root, names) if not one.num_pictures)


def tables(root: Path, names: Iterable[str], *suffixes: str) -> list[Path]:
    """The files with one of these suffixes (".csv"), in the order of their names."""
    return [base(root) / name for name in names if name.lower().endswith(suffixes)]


def first(root: Path, *patterns: str) -> str | None:
    """The name of the first file that fits one of the patterns (of `Path.glob`), for telling data sets apart."""
    for pattern in patterns:
        found = next(iter(sorted(root.glob(pattern))), None) if root.is_dir() else None
        if found is not None:
            return found.relative_to(root).as_posix()
    return None


def header(table: Path) -> set[str]:
    """The column names of a CSV file."""
    with table.open(encoding="utf-8-sig", errors="replace") as text:
        return {column.strip().strip('"') for column in text.readline().split(",")}


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises ValueError, with its name, where it is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); fetch it again") from None
