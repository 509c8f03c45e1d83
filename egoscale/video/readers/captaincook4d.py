"""CaptainCook4D: head-mounted GoPro video of people cooking, with and without errors.

Two kinds of names are known. A full recording is `<activity>_<number>[_360p|_4K].mp4`: person, kitchen and
recipe are joined from the data set's own tables. A clip of the project page is
`<kind>_error[_<part>]_<panel>.mp4`, cut from one panel of a five-panel video: the page names the kind of
error, and nobody says who cooks where. Video: Apache-2.0; tables: MIT.

The tables (`metadata/video_information.csv`, `annotation_json/complete_step_annotations.json`) are looked for
in `annotations/` and `annotations/captaincook4d/`, inside the folder and up to two folders above it.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from egoscale.video.readers.clip import ClipMetadata, video_files

LICENSE = "Apache-2.0"
RECORDING = re.compile(r"(?P<recording>\d+_\d+)(_(360p|4K))?", re.IGNORECASE)
PANEL = re.compile(r"(?P<video>(?P<kind>[a-z]+)_error(_\d+)?)_(?P<panel>\d)")


def read(root: Path, source: str) -> Iterator[ClipMetadata]:
    """Every file under `root`; a name of neither kind is a row without person, place or task."""
    people, recipes = _tables(root)
    for path in video_files(root):
        name = path.relative_to(root).as_posix()
        if match := PANEL.fullmatch(path.stem):
            yield ClipMetadata(
                name=name,
                path=path,
                recording_id=path.stem,
                task=f"{match['kind'].capitalize()} Error",
                license=LICENSE,
                provenance=f"CaptainCook4D page: {match['video']}, panel {match['panel']}",
            )
        elif match := RECORDING.fullmatch(path.stem):
            recording = match["recording"]
            person = people.get(recording, {})
            yield ClipMetadata(
                name=name,
                path=path,
                recording_id=recording,
                participant_id=_named("person", person.get("person_id")),
                scene_id=_named("kitchen", person.get("environment_id")),
                task=recipes.get(recording, {}).get("activity_name"),
                license=LICENSE,
                provenance=f"CaptainCook4D recording {recording}",
            )
        else:
            yield ClipMetadata(
                name=name, path=path, recording_id=path.stem, license=LICENSE, provenance="CaptainCook4D"
            )


def _named(kind: str, number: str | None) -> str | None:
    # The numbers are CaptainCook4D's own: bare, they would meet person 3 of another source.
    return f"captaincook4d-{kind}-{number}" if number else None


def _tables(root: Path) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, Any]]]:
    """Rows of video_information.csv, and step annotations, by recording; empty where they are not found."""
    for above in (root, *root.resolve().parents[:2]):
        for folder in (above / "annotations", above / "annotations" / "captaincook4d"):
            table = folder / "metadata" / "video_information.csv"
            if not table.is_file():
                continue
            with table.open(newline="", encoding="utf-8-sig") as file:
                people = {row["recording_id"]: row for row in csv.DictReader(file)}
            steps = folder / "annotation_json" / "complete_step_annotations.json"
            recipes = json.loads(steps.read_text(encoding="utf-8")) if steps.is_file() else {}
            return people, recipes
    return {}, {}
