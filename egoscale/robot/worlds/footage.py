"""Film people at the table: an ordinary data set of mp4 files with tables beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from egoscale.recipe import FilmRecipe
from egoscale.robot.recorder import write_mp4, write_text
from egoscale.robot.worlds.human import (
    HeadCamera,
    HumanWorld,
    Participant,
    Take,
    sample_camera,
    sample_participant,
)
from egoscale.robot.worlds.scene import Look, check_words, sample_look

Progress = Callable[[int, int, str], None]
LICENSE = "CC0-1.0"

# Streams of random numbers of one seed, so that more participants do not change the scenes.
_PEOPLE, _SCENES, _CAMERAS, _TAKES, _ORDER, _TRACKER = range(6)


def film(out: Path, recipe: FilmRecipe, progress: Progress | None = None) -> dict[str, Any]:
    """Film `recipe.hours` of people at the table into the folder `out`.

    Take i is a pure function of (seed, i): more hours are the same first takes and new ones. A recording is
    written take by take and noted in `recordings/` when it is whole; called again after a kill, whole
    recordings are kept.

    Args:
        out: folder; gets `videos/`, `takes.csv`, `hands.parquet`, `truth.parquet`.
        recipe: hours, people, scenes, camera.
        progress: called with (frames done, frames wanted, "frames").

    Returns:
        {"hours", "num_takes", "num_recordings", "num_frames"}.

    Raises:
        ValueError: unknown colours or verbs, or `out` holds a film of another recipe.
        RuntimeError: MuJoCo or headless OpenGL is missing.
    """
    check_words(recipe.colours, recipe.verbs)
    _claim(out, recipe)
    wanted = round(recipe.hours * 3600 * recipe.fps_hz)
    crew: _Crew | None = None
    done, index = 0, 0
    records: list[dict[str, Any]] = []
    while done < wanted:
        note = out / "recordings" / f"{recording_id(index)}.json"
        if note.exists():
            record = json.loads(note.read_text(encoding="utf-8"))
        else:
            crew = crew or _Crew(recipe)
            record = crew.record(out, index)
            write_text(note, json.dumps(record))
        records.append(record)
        done += sum(take["num_frames"] for take in record["takes"])
        index += 1
        if progress is not None:
            progress(min(done, wanted), wanted, "frames")
    if crew is not None:
        crew.close()
    takes = [take for record in records for take in record["takes"]]
    _write_tables(out, records)
    return {
        "hours": done / recipe.fps_hz / 3600,
        "num_takes": len(takes),
        "num_recordings": len(records),
        "num_frames": done,
    }


def recording_id(index: int) -> str:
    return f"rec{index:05d}"


def _claim(out: Path, recipe: FilmRecipe) -> None:
    """Refuse a folder that holds another film; hours may grow."""
    ours = recipe.model_dump(mode="json", exclude={"hours"})
    path = out / "film.json"
    if not path.exists():
        write_text(path, json.dumps(ours, indent=1))
        return
    theirs = json.loads(path.read_text(encoding="utf-8"))
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise ValueError(
                f"{out}: holds a film with {key} = {theirs.get(key)!r}, the recipe says {value!r}; "
                "film into an empty folder"
            )


class _Crew:
    """People, scenes and one simulated table, ready to record."""

    def __init__(self, recipe: FilmRecipe) -> None:
        self.recipe = recipe
        seed = recipe.seed
        self.people: list[Participant] = [
            sample_participant(np.random.default_rng([seed, _PEOPLE, i])) for i in range(recipe.num_participants)
        ]
        self.scenes: list[Look] = [
            sample_look(np.random.default_rng([seed, _SCENES, i])) for i in range(recipe.num_scenes)
        ]
        self.world = HumanWorld(len(recipe.colours), recipe.image_size_px, recipe.fps_hz)

    def cast(self, index: int) -> tuple[int, int, HeadCamera]:
        """Participant, scene and camera of a recording; people and scenes take turns in shuffled rounds."""
        chosen = []
        for stream, count in enumerate((len(self.people), len(self.scenes))):
            order = np.random.default_rng([self.recipe.seed, _ORDER, stream, index // count]).permutation(count)
            chosen.append(int(order[index % count]))
        camera = sample_camera(np.random.default_rng([self.recipe.seed, _CAMERAS, index]), self.recipe.camera_sway)
        return chosen[0], chosen[1], camera

    def record(self, out: Path, index: int) -> dict[str, Any]:
        """Film the takes of one recording and return its part of the tables."""
        recipe = self.recipe
        person, scene, camera = self.cast(index)
        self.world.dress(self.scenes[scene], self.people[person])
        name = recording_id(index)
        takes, tracks = [], []
        for t in range(recipe.takes_per_recording):
            number = index * recipe.takes_per_recording + t
            verb = recipe.verbs[number % len(recipe.verbs)]
            take = self.world.film_take(
                [recipe.seed, _TAKES, number], verb, recipe.colours, self.people[person], camera
            )
            take_id = f"{name}-t{t:02d}"
            file = f"videos/{name}/{take_id}.mp4"
            size = (recipe.image_size_px, recipe.image_size_px)
            write_mp4(out / file, take.frames_THWC, recipe.fps_hz, size)
            takes.append(
                {
                    "take_id": take_id,
                    "file": file,
                    "recording_id": name,
                    "participant_id": f"p{person:03d}",
                    "scene_id": f"s{scene:03d}",
                    "task": take.verb,
                    "narration": take.instruction,
                    "fps": recipe.fps_hz,
                    "num_frames": len(take.frames_THWC),
                    "license": LICENSE,
                    "hand_file": "hands.parquet",
                }
            )
            tracks.append(self._track(take, number))
        return {"takes": takes, "tracks": tracks}

    def _track(self, take: Take, number: int) -> dict[str, Any]:
        """The hand as a tracker would see it (with noise), and where the target truly is."""
        rng = np.random.default_rng([self.recipe.seed, _TRACKER, number])
        hand = take.hand.copy()
        hand[:, :3] += rng.normal(0, self.recipe.hand_noise_m, (len(hand), 3))
        return {"hand": np.round(hand, 5).tolist(), "target": np.round(take.target_xy, 5).tolist()}

    def close(self) -> None:
        self.world.close()


def _write_tables(out: Path, records: list[dict[str, Any]]) -> None:
    takes = [take for record in records for take in record["takes"]]
    tracks = [track for record in records for track in record["tracks"]]
    lengths = [take["num_frames"] for take in takes]
    ids = np.repeat(np.array([take["take_id"] for take in takes]), lengths)
    frame = np.concatenate([np.arange(n) for n in lengths])
    keys = {"take_id": ids, "frame": frame.astype(np.int32)}
    hand = np.concatenate([np.asarray(track["hand"]) for track in tracks]).astype(np.float32)
    target = np.concatenate([np.asarray(track["target"]) for track in tracks]).astype(np.float32)
    columns = ("x_m", "y_m", "z_m", "opening")
    _write_parquet(out / "hands.parquet", {**keys, **{c: hand[:, i] for i, c in enumerate(columns)}})
    _write_parquet(out / "truth.parquet", {**keys, "target_x_m": target[:, 0], "target_y_m": target[:, 1]})
    write_text(out / "takes.csv", pl.DataFrame(takes).write_csv())  # last: a folder with takes.csv is whole


def _write_parquet(path: Path, columns: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".part")
    pl.DataFrame(columns).write_parquet(partial)
    partial.replace(path)
