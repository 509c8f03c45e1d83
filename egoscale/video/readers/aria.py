"""Recordings of Project Aria glasses: VRS files, with the outputs of Meta's machine perception services (MPS) beside.

Aria Everyday Activities and the Aria Digital Twin describe a recording in `metadata.json`. The colour camera is
stream 214-1; how many frames it took, how large and how often is read with the package `projectaria-tools` or `vrs`,
where one is installed. Its frames are decoded with projectaria-tools. An mp4 of the same name beside a VRS file was
made of it, and is the clip.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from egoscale.video.readers.clip import ClipMetadata, clip_table
from egoscale.video.readers.files import first, media, walk
from egoscale.video.readers.times import fraction

RGB = "214-1"
DEVICES = {"Aria": "Aria Gen 1", "Oatmeal": "Aria Gen 2"}  # what a VRS file calls the glasses
DECODER = "projectaria_tools"
INSTALL = (
    "Aria recordings (VRS) are read by projectaria-tools, which is not installed: pip install 'egoscale[readers]',"
    " or make an mp4 beside it: vrs_to_mp4 --vrs {name} --output_video {stem}.mp4"
)
MPS_ONLY = "outputs of machine perception, and no recording (.vrs) beside them"
MPS = ("closed_loop_trajectory", "eyegaze", "general_eye_gaze", "hand_tracking_results", "wrist_and_palm_poses")


def finds(root: Path) -> str | None:
    """A VRS file, or outputs of MPS."""
    return first(root, "*.vrs", "*/*.vrs", "*/*/*.vrs", "trajectory/closed_loop_trajectory*.csv")


def read(root: Path, source: str) -> pl.LazyFrame:
    """A clip a VRS file; a folder with outputs of MPS alone is a row too."""
    return clip_table(_clips(root, source))


def vrs_clip(clip: ClipMetadata) -> ClipMetadata:
    """A clip whose path is a VRS file, with what can be known of its colour stream, or the mp4 that was made of it.

    A reason that the clip has stays.
    """
    film = clip.path.with_suffix(".mp4")
    if clip.reason is not None or not clip.path.is_file():
        return clip if not film.is_file() else replace(clip, path=film, reason=None)
    facts = _colour_stream(clip.path)
    if facts is not None and facts.num_frames == 0:
        return replace(clip, reason=facts.fault or f"no frames of a colour camera (stream {RGB})")
    reason = None
    if not film.is_file() and importlib.util.find_spec(DECODER) is None:
        reason = INSTALL.format(name=clip.path.name, stem=clip.path.stem)
    clip = replace(clip, path=film if film.is_file() else clip.path, reason=reason)
    if facts is None:
        return clip
    num, den = fraction(facts.rate_hz)
    return replace(
        clip,
        device=DEVICES.get(facts.device, facts.device) or clip.device,
        duration_s=facts.num_frames / facts.rate_hz if facts.rate_hz else clip.duration_s,
        fps_num=num,
        fps_den=den,
        num_frames=facts.num_frames,
        width_px=facts.width_px,
        height_px=facts.height_px,
    )


def _clips(root: Path, source: str) -> Iterator[ClipMetadata]:
    names = walk(root)
    recordings = [name for name in names if name.lower().endswith(".vrs")]
    films = {str(PurePosixPath(name).with_suffix(".mp4")) for name in recordings}
    for name in recordings:
        yield vrs_clip(_recording(root, name, source))
    for one in media(root, names):
        if one.name not in films and one.name not in recordings:
            about = f"folder: {one.name}"
            yield ClipMetadata(one.name, one.path, recording_id=one.name, provenance=about, reason=one.reason)
    for folder in _mps_only(names, recordings):
        path = root / folder
        name = folder or path.resolve().name
        yield ClipMetadata(name=f"{name}/mps", path=path, recording_id=name, provenance="Aria MPS", reason=MPS_ONLY)


def _recording(root: Path, name: str, source: str) -> ClipMetadata:
    said = _metadata((root / name).parent)
    below = PurePosixPath(name)
    where = f"location-{said['location']}" if said.get("location") is not None else said.get("scene")
    dataset = str(said.get("dataset_name") or source).lower().replace("_", "-")
    script = said.get("script")
    return ClipMetadata(
        name=name,
        path=root / name,
        recording_id=str(below.with_suffix("")),
        scene_id=f"{dataset}-{where}" if where else None,
        task=f"script {script}" if script is not None else None,
        device="Aria",
        provenance=f"{said.get('dataset_name') or 'Aria'} {name}",
    )


def _metadata(folder: Path) -> dict[str, Any]:
    file = folder / "metadata.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _mps_only(names: list[str], recordings: list[str]) -> list[str]:
    """Folders that hold outputs of MPS (in folders of their own), and no recording."""
    above = {str(PurePosixPath(name).parent.parent) for name in names if PurePosixPath(name).name.startswith(MPS)}
    tops = sorted(folder.removesuffix("/mps").removesuffix("mps") for folder in above)
    tops = ["" if folder == "." else folder for folder in tops]
    outermost = [folder for folder in tops if not any(folder != top and _below(folder, top) for top in tops)]
    return [folder for folder in dict.fromkeys(outermost) if not any(_below(name, folder) for name in recordings)]


def _below(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


@dataclass(frozen=True)
class _Stream:
    num_frames: int = 0
    rate_hz: float = 0.0
    width_px: int | None = None
    height_px: int | None = None
    device: str = ""
    fault: str | None = None


def _colour_stream(recording: Path) -> _Stream | None:
    """Facts of the colour camera; None where no package reads VRS."""
    for package, look in (("pyvrs", _by_vrs), ("projectaria_tools", _by_projectaria)):
        if importlib.util.find_spec(package) is not None:
            try:
                return look(recording)
            except Exception as error:  # foreign code over a file that may be damaged
                return _Stream(fault=f"cannot be read as VRS: {str(error).strip().splitlines()[0][:200]}")
    return None


def _by_vrs(recording: Path) -> _Stream:
    reader: Any = importlib.import_module("pyvrs.reader").SyncVRSReader(str(recording))
    if RGB not in reader.stream_ids:
        return _Stream()
    said = reader.filtered_by_fields(stream_ids=RGB, record_types="configuration")[0].metadata_blocks[0]
    return _Stream(
        num_frames=int(reader.get_stream_info(RGB)["data_records_count"]),
        rate_hz=float(said["nominal_rate"]),
        width_px=int(said["image_width"]),
        height_px=int(said["image_height"]),
        device=str(said.get("device_type") or ""),
    )


def _by_projectaria(recording: Path) -> _Stream:
    provider: Any = importlib.import_module("projectaria_tools.core.data_provider")
    stream_id: Any = importlib.import_module("projectaria_tools.core.stream_id").StreamId(RGB)
    reader = provider.create_vrs_data_provider(str(recording))
    if reader is None:
        return _Stream(fault="cannot be read as VRS")
    if not reader.check_stream_is_active(stream_id):
        return _Stream()
    said = reader.get_image_configuration(stream_id)
    return _Stream(
        num_frames=int(reader.get_num_data(stream_id)),
        rate_hz=float(said.nominal_rate_hz),
        width_px=int(said.image_width),
        height_px=int(said.image_height),
        device=str(said.device_type),
    )
