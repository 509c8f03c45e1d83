"""Egocentric-10K and Egocentric-100K: head-mounted video of factory workers, in WebDataset tars by worker.

`factory_001/workers/worker_001/factory001_worker001_part00.tar`, with mp4 and JSON (`factory_id`, `worker_id`,
`video_index`, `duration_sec`, `fps`, ...) for each video. Licence of both: Apache-2.0.

A derived set describes some of its videos in text: `raw_transcriptions/<factory>/<worker>/<video>.txt`, event logs
`process_mining_event_logs/.../<video>.csv` and merged ones. They tell a video's process and activities; alone, they
declare it to the end of what they tell.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import polars as pl

from egoscale.video.readers.clip import ClipMetadata, clip_table
from egoscale.video.readers.files import first, walk
from egoscale.video.readers.match import MISSING
from egoscale.video.readers.times import BACKWARDS
from egoscale.video.readers.webdataset import Sample, clips_of

LICENSE = "Apache-2.0"
VIDEO = re.compile(r"factory_?(?P<factory>\d+)_worker_?(?P<worker>\d+)_(?P<index>\d+)")
STAMP = re.compile(r"\[(\d+):(\d\d):(\d\d) - (\d+):(\d\d):(\d\d)\]")
CLOCK = re.compile(r"(\d\d):(\d\d):(\d\d)$")  # event logs put the time of the video on an invented day
TEXTS = ("raw_transcriptions", "process_mining_event_logs", "merged_process_mining_event_logs")


def finds(root: Path) -> str | None:
    """A tar of a worker, or texts about their videos."""
    return first(
        root,
        "factory*/workers/worker*/*.tar",
        "workers/worker*/factory*.tar",
        "factory*_worker*_part*.tar",
        "raw_transcriptions/factory*/worker*/factory*.txt",
    )


def read(root: Path, source: str) -> pl.LazyFrame:
    """A clip a video; a video that only texts describe is a row."""
    return clip_table(_videos(root))


def segments(root: Path, source: str) -> pl.LazyFrame:
    """A clip an activity of the event logs; of the merged ones where a video has none of its own."""
    told = _told(root, walk(root))
    whole = {PurePosixPath(clip.name).name: clip for clip in clips_of(root, _worker)}
    return clip_table(_activities(root, told, whole))


def _videos(root: Path) -> Iterator[ClipMetadata]:
    told = _told(root, walk(root))
    for clip in clips_of(root, _worker):
        yield _described(clip, told.pop(PurePosixPath(clip.name).name, None))
    for video, text in sorted(told.items()):
        yield _declared(root, video, text)


@dataclass
class _Text:
    """What is told of a video: activities (start, end, activity, process), and its length."""

    events: list[tuple[float, float, str, str]] = field(default_factory=list)
    last_s: float = 0.0


def _worker(clip: ClipMetadata, sample: Sample) -> ClipMetadata:
    match = VIDEO.search(sample.key)
    factory = sample.said.get("factory_id") or (match and f"factory_{match['factory']}")
    worker = sample.said.get("worker_id") or (match and f"worker_{match['worker']}")
    return replace(
        clip,
        # Its names stand once in the whole set, not once a tar.
        recording_id=clip.recording_id if {"recording_id", "recording"} & sample.said.keys() else sample.key,
        participant_id=f"egocentric10k-{factory}-{worker}" if worker else None,
        scene_id=f"egocentric10k-{factory}" if factory else None,
        device="Build AI Gen 1",
        license=LICENSE,
        provenance=f"Egocentric-10K {sample.key}",
    )


def _described(clip: ClipMetadata, text: _Text | None) -> ClipMetadata:
    if text is None or not text.events:
        return clip
    return replace(clip, task=clip.task or _process(text), narration=clip.narration or _story(text))


def _declared(root: Path, video: str, text: _Text) -> ClipMetadata:
    match = VIDEO.fullmatch(video)
    assert match is not None
    factory, worker = f"factory_{match['factory']}", f"worker_{match['worker']}"
    part = f"factory{match['factory']}_worker{match['worker']}_part00.tar"
    clip = ClipMetadata(
        name=video,
        path=root / factory / "workers" / worker / part / f"{video}.mp4",
        recording_id=video,
        participant_id=f"egocentric10k-{factory}-{worker}",
        scene_id=f"egocentric10k-{factory}",
        duration_s=text.last_s or None,
        license=LICENSE,
        provenance=f"Egocentric-10K {video}",
        reason=MISSING.format(table="texts about Egocentric-10K"),
    )
    return _described(clip, text)


def _activities(root: Path, told: dict[str, _Text], whole: dict[str, ClipMetadata]) -> Iterator[ClipMetadata]:
    for video, text in sorted(told.items()):
        clip = whole.get(video) or _declared(root, video, text)
        for number, (begin, end, activity, process) in enumerate(text.events):
            late = BACKWARDS if end <= begin else None
            yield replace(
                clip,
                name=f"{video}/{number:03d}",
                start_s=begin,
                duration_s=None if late else end - begin,
                num_frames=None,
                task=process,
                narration=activity,
                reason=clip.reason or late,
            )


def _told(root: Path, names: list[str]) -> dict[str, _Text]:
    told: dict[str, _Text] = {}
    merged: dict[str, list[tuple[float, float, str, str]]] = {}
    for name in names:
        parts, stem = PurePosixPath(name).parts, PurePosixPath(name).stem
        if TEXTS[0] in parts and VIDEO.fullmatch(stem):
            text = (root / name).read_text(encoding="utf-8", errors="replace")
            told.setdefault(stem, _Text()).last_s = max(
                (_seconds(match.groups()[3:]) for match in STAMP.finditer(text)), default=0.0
            )
        elif TEXTS[1] in parts and VIDEO.fullmatch(stem):
            told.setdefault(stem, _Text()).events += [event for _, event in _log(root / name)]
        elif TEXTS[2] in parts and re.fullmatch(r"worker_\d+", stem):
            for video, event in _log(root / name):
                merged.setdefault(video, []).append(event)
    for video, events in merged.items():
        found = told.setdefault(video, _Text())
        found.events = found.events or events
    for found in told.values():
        found.events.sort()
        found.last_s = max([found.last_s, *(end for _, end, _, _ in found.events)])
    return told


def _log(file: Path) -> Iterator[tuple[str, tuple[float, float, str, str]]]:
    with file.open(newline="", encoding="utf-8-sig") as text:
        for row in csv.DictReader(text):
            begin, end = (CLOCK.search(row[column]) for column in ("start_timestamp", "end_timestamp"))
            if begin and end:
                video = PurePosixPath(row.get("source_file") or file.name).stem
                yield video, (_seconds(begin.groups()), _seconds(end.groups()), row["activity"], row["process"])


def _seconds(clock: tuple[str, ...]) -> float:
    hours, minutes, seconds = map(int, clock)
    return hours * 3600.0 + minutes * 60 + seconds


def _process(text: _Text) -> str:
    """What most of the time is spent on."""
    spent: dict[str, float] = {}
    for begin, end, _, process in text.events:
        spent[process] = spent.get(process, 0.0) + end - begin
    return min(spent, key=lambda process: (-spent[process], process))


def _story(text: _Text) -> str:
    """Activities in the order in which they first happen."""
    return "; ".join(dict.fromkeys(activity for _, _, activity, _ in text.events))
