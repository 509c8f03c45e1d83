"""CaptainCook4D: head-mounted GoPro video of people cooking, with and without errors.

Two kinds of names are known. A full recording is `<activity>_<number>[_360p|_4K].mp4`: person, kitchen, recipe,
split and length are joined from the data set's own tables. A clip of the project page is
`<kind>_error[_<part>]_<panel>.mp4`, cut from one panel of a five-panel video: the page names the kind of
error, and nobody says who cooks where. Video: Apache-2.0; tables: MIT.

The tables (`metadata/video_information.csv`, `annotation_json/complete_step_annotations.json`,
`data_splits/recordings_data_split_combined.json`) are looked for in the folder, in its `annotations/` and
`annotations/captaincook4d/`, and there in the two folders above it. Inside the folder they declare recordings, and
one that is not there is a row; above it they only explain those that are.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from egoscale.video.readers.clip import ClipMetadata, clip_table
from egoscale.video.readers.files import Media, media, read_json
from egoscale.video.readers.match import MISSING, keyed, matched

LICENSE = "Apache-2.0"
RECORDING = re.compile(r"(?P<recording>\d+_\d+)(_(360p|4K))?", re.IGNORECASE)
PANEL = re.compile(r"(?P<video>(?P<kind>[a-z]+)_error(_\d+)?)_(?P<panel>\d)")
PLACES = ("", "annotations", "annotations/captaincook4d")
VIDEOS = "metadata/video_information.csv"


def finds(root: Path) -> str | None:
    """The table of recordings, or names of the project page; bare numbers are anybody's."""
    for place in PLACES:
        if (root / place / VIDEOS).is_file() and (root / place / "annotation_json").is_dir():
            return f"{place}/{VIDEOS}".lstrip("/")
    stems = [path.stem for path in root.glob("*.mp4")] if root.is_dir() else []
    fit = [stem for stem in stems if PANEL.fullmatch(stem) or re.fullmatch(r"\d+_\d+_(360p|4K)", stem)]
    return f"{fit[0]}.mp4" if fit and len(fit) == len(stems) else None


def read(root: Path, source: str) -> pl.LazyFrame:
    """A clip a file; a name of neither kind is a row without person, place or task."""
    tables = _tables(root)
    files = media(root)
    named = [_clip(one, tables) for one in files]
    here = {clip.recording_id for clip in named}
    declared = sorted(tables.people) if tables.declare else ()
    missing = (
        _recording(recording, tables, f"{recording}_360p.mp4", root / f"{recording}_360p.mp4", missing=True)
        for recording in declared
        if recording not in here
    )
    return clip_table([*named, *missing])


def segments(root: Path, source: str) -> pl.LazyFrame:
    """A clip a recipe step, with its description; steps that the cook left out have no time, and are rows."""
    tables = _tables(root)
    files = [
        (match["recording"] if match else one.name, one)
        for one in media(root)
        if (match := RECORDING.fullmatch(one.stem)) or one.reason
    ]
    here = {recording for recording, one in files if not one.reason}
    steps = (step for step in _steps(tables) if tables.declare or step.recording_id in here)
    declared = clip_table(steps).with_columns(key=pl.col("recording_id"))
    return matched(declared, keyed(files), "complete_step_annotations.json")


@dataclass(frozen=True)
class _Tables:
    people: dict[str, dict[str, str]] = field(default_factory=dict)  # rows of video_information.csv
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)  # complete_step_annotations.json
    splits: dict[str, str] = field(default_factory=dict)
    declare: bool = False  # they lie in the folder itself


def _clip(one: Media, tables: _Tables) -> ClipMetadata:
    if one.reason is None and (match := PANEL.fullmatch(one.stem)):
        return ClipMetadata(
            name=one.name,
            path=one.path,
            recording_id=one.stem,
            task=f"{match['kind'].capitalize()} Error",
            license=LICENSE,
            provenance=f"CaptainCook4D page: {match['video']}, panel {match['panel']}",
        )
    if one.reason is None and (match := RECORDING.fullmatch(one.stem)):
        return _recording(match["recording"], tables, one.name, one.path)
    return ClipMetadata(
        name=one.name,
        path=one.path,
        recording_id=one.stem,
        license=LICENSE,
        provenance="CaptainCook4D",
        reason=one.reason,
    )


def _recording(recording: str, tables: _Tables, name: str, path: Path, missing: bool = False) -> ClipMetadata:
    person = tables.people.get(recording, {})
    return ClipMetadata(
        name=name,
        path=path,
        recording_id=recording,
        participant_id=_named("person", person.get("person_id")),
        scene_id=_named("kitchen", person.get("environment_id")),
        task=tables.recipes.get(recording, {}).get("activity_name"),
        split=tables.splits.get(recording),
        duration_s=float(person["duration(sec)"]) if person.get("duration(sec)") else None,
        license=LICENSE,
        provenance=f"CaptainCook4D recording {recording}",
        reason=MISSING.format(table=Path(VIDEOS).name) if missing else None,
    )


def _steps(tables: _Tables) -> Iterator[ClipMetadata]:
    for recording, recipe in sorted(tables.recipes.items()):
        for number, step in enumerate(recipe["steps"]):
            begin, end = float(step["start_time"]), float(step["end_time"])
            left_out = begin < 0 or end <= begin  # -1 stands for no time
            yield ClipMetadata(
                name=f"{recording}/{number:03d}",
                path=Path(f"{recording}_360p.mp4"),
                recording_id=recording,
                participant_id=_named("person", recipe.get("person_id")),
                scene_id=_named("kitchen", recipe.get("environment")),
                task=recipe.get("activity_name"),
                narration=step["description"],
                split=tables.splits.get(recording),
                start_s=0.0 if left_out else begin,
                duration_s=0.0 if left_out else end - begin,
                license=LICENSE,
                provenance=f"CaptainCook4D recording {recording}, step {number}",
                reason="the cook left this step out" if left_out else None,
            )


def _named(kind: str, number: object) -> str | None:
    # The numbers are CaptainCook4D's own: bare, they would meet person 3 of another source.
    return f"captaincook4d-{kind}-{number}" if number not in (None, "") else None


def _tables(root: Path) -> _Tables:
    """Empty where no table is found."""
    for above in (root, *root.resolve().parents[:2]):
        for place in PLACES if above == root else PLACES[1:]:
            folder = above / place
            if not (folder / VIDEOS).is_file():
                continue
            with (folder / VIDEOS).open(newline="", encoding="utf-8-sig") as file:
                people = {row["recording_id"]: row for row in csv.DictReader(file)}
            splits = _json(folder / "data_splits" / "recordings_data_split_combined.json")
            return _Tables(
                people,
                _json(folder / "annotation_json" / "complete_step_annotations.json"),
                {recording: split for split, recordings in splits.items() for recording in recordings},
                declare=above == root,
            )
    return _Tables()


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
