"""EgoDex: 829 hours of tabletop tasks filmed with an Apple Vision Pro, 1080p at 30 frames a second.

`<part>/<task>/<n>.mp4` beside `<n>.hdf5`, which holds poses of hands and camera and, in its attributes, what was
done. The attributes are read where `h5py` is installed; the video needs it not. Nobody says who was filmed where.
Licence: CC-BY-NC-ND-4.0.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from egoscale.video.readers.clip import ClipMetadata, clip_table
from egoscale.video.readers.files import base, first, media, walk
from egoscale.video.readers.match import MISSING

LICENSE = "CC-BY-NC-ND-4.0"
RATE_HZ = 30


def finds(root: Path) -> str | None:
    """A numbered video with its poses."""
    for pattern in ("[0-9]*.hdf5", "*/[0-9]*.hdf5", "*/*/[0-9]*.hdf5"):
        if (found := first(root, pattern)) and PurePosixPath(found).stem.isdigit():
            return found
    return None


def read(root: Path, source: str) -> pl.LazyFrame:
    """A clip a video; poses without a video, and videos without poses that are no episode, are rows."""
    return clip_table(_clips(root))


def _clips(root: Path) -> Iterator[ClipMetadata]:
    names = walk(root)
    poses = {name.removesuffix(".hdf5") for name in names if name.endswith(".hdf5")}
    seen = set()
    for one in media(root, names):
        if one.reason:
            yield ClipMetadata(one.name, one.path, recording_id=one.name, provenance="folder", reason=one.reason)
            continue
        episode = one.name.removesuffix(".mp4")
        known = episode in poses or PurePosixPath(episode).name.isdigit()
        seen.add(episode)
        yield _clip(root, episode, one.name, one.path, None if known else "not named <n>.mp4, as an episode is")
    for episode in sorted(poses - seen):
        path = base(root) / f"{episode}.mp4"
        table = f"{PurePosixPath(episode).name}.hdf5"
        yield _clip(root, episode, f"{episode}.mp4", path, MISSING.format(table=table))


def _clip(root: Path, episode: str, name: str, path: Path, reason: str | None) -> ClipMetadata:
    poses = base(root) / f"{episode}.hdf5"
    said = _attributes(poses) if poses.is_file() else {}
    folders = PurePosixPath(episode).parts
    task = folders[-2] if len(folders) > 1 else root.resolve().name
    frames = said.get("frames")
    return ClipMetadata(
        name=name,
        path=path,
        recording_id=said.get("session_name") or name,
        scene_id=f"egodex-{said['environment']}" if said.get("environment") else None,
        task=task.replace("_", " "),
        narration=_description(said),
        device="Apple Vision Pro",
        split="test" if "test" in folders[:-2] else None,
        duration_s=frames / RATE_HZ if frames else None,
        fps_num=RATE_HZ,
        fps_den=1,
        num_frames=frames,
        license=LICENSE,
        provenance=f"EgoDex {episode}",
        reason=reason,
    )


def _description(said: dict[str, Any]) -> str | None:
    """What was done: of a task that can be undone, the direction of this episode. Old files say `description`."""
    which = "llm_description2" if str(said.get("which_llm_description", "1")) == "2" else "llm_description"
    return said.get(which) or said.get("llm_description") or said.get("description")


def _attributes(poses: Path) -> dict[str, Any]:
    """Attributes of an episode, and its frames; nothing without h5py, or of a file that it cannot read."""
    if importlib.util.find_spec("h5py") is None:
        return {}
    h5py: Any = importlib.import_module("h5py")
    try:
        with h5py.File(poses, "r") as file:
            said: dict[str, Any] = {key: _text(value) for key, value in file.attrs.items()}
            camera = file.get("transforms/camera")
            return {**said, "frames": int(camera.shape[0]) if camera is not None else None}
    except OSError:
        return {}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
