"""How fast training reads these files on this machine, how many readers feed a GPU, and what copies would buy.

Measured as training reads: windows of `length` frames at `rate_hz`, drawn anywhere in a random sample of the clips, by
the loader's own `FrameWindows`, one reader being one thread. With more clips than the loader keeps open, each window
opens its file again, as it will be in training. Files come from wherever they lie now: a second measurement on the
same machine may find them in memory, the first days of a training run will not.

The sample is cut to parts little longer than a window; copies are made of the same parts, so that all ways read the
same pictures.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from egoscale.video.clip_index import ClipIndex, write_index
from egoscale.video.clips import SLOWEST, WindowTable
from egoscale.video.copies import asked_for, table_file
from egoscale.video.copy_clip import PIECE_FRAMES, CopySettings
from egoscale.video.decode import open_video
from egoscale.video.scores import open_catalog
from egoscale.video.transcode import transcode
from egoscale.video.windows import FrameWindows
from egoscale.video.workers import Lost, alive, each

Progress = Callable[[int, int, str], None]

SAMPLE_CLIPS = 32
MAX_OPEN = 16  # readers that the loader keeps open
PART_WINDOWS = 1.5  # seconds of a part, in windows
SLACK_S = 120.0  # beyond the time asked for, after which a measurement is given up


@dataclass(frozen=True)
class Speed:
    """Frames handed over in so many seconds."""

    frames: int
    seconds: float

    @property
    def frames_per_s(self) -> float:
        return self.frames / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Way:
    """One way of keeping the clips, and how fast it is read."""

    name: str
    one_reader: Speed  # random windows
    all_cores: Speed  # random windows, by as many readers as there are cores
    in_order: Speed  # every frame of one clip after another, one reader: the limit of the decoder
    bytes_per_hour: float
    gop_frames: float | None

    def readers_for(self, frames_per_s: float, cores: int) -> int:
        """Readers that hand over so many frames a second, if more of them go on as those of this machine do."""
        each_of_all = self.all_cores.frames_per_s / cores
        return math.ceil(frames_per_s / each_of_all) if each_of_all > 0 else 0


@dataclass(frozen=True)
class Bench:
    """What was measured. `ways[0]` is the files as they are."""

    ways: tuple[Way, ...]
    cores: int
    machine: str
    num_clips: int  # of the table
    hours: float
    source_frames: int  # of all these clips
    sample_clips: int
    copied_frames_per_s: float  # frames of the originals that one core turns into copies; 0 where none were made
    failed: dict[str, str]  # clip id -> why it could not be read

    def advice(self) -> list[str]:
        """What copies would buy and cost, in sentences."""
        before, *tried = self.ways
        lines = []
        for way in tried:
            gain = way.all_cores.frames_per_s / (before.all_cores.frames_per_s or math.inf)
            gigabytes = way.bytes_per_hour * self.hours / 1e9
            lines.append(f"{way.name}: read {gain:.1f} times as fast; {gigabytes:,.3g} GB for all {self.hours:,.3g} h")
        if self.copied_frames_per_s:
            core_hours = self.source_frames / self.copied_frames_per_s / 3600
            lines.append(
                f"to make them takes about {core_hours:,.3g} core-hours ({self.copied_frames_per_s:,.0f} frames a"
                " second and core), in as many shards at once as you like"
            )
        return lines


def bench(
    table: Path,
    length: int = 16,
    rate_hz: float = 5.0,
    size_px: int = 256,
    gop_frames: int = 12,
    seconds: float = 5.0,
    copies: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bench:
    """Measures the selected clips of a selection, or the usable ones of a catalogue.

    Args:
        length, rate_hz, size_px: the windows of the training run, see `FrameWindows` and `WindowTable`.
        gop_frames: of the copies that are tried: with all frames, and with `rate_hz` frames a second.
        seconds: of each measurement; there are three for each way.
        copies: whether copies are made of the sample (in a temporary folder) and measured too.
        seed: of the sample and the windows.

    Raises:
        FileNotFoundError: no such table.
        ValueError: no clip to read, or none that holds such a window; a number that is not above 0.
    """
    for name, value in (("frames of a window", length), ("frames a second", rate_hz), ("seconds", seconds)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value:g}: above 0")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    table = table_file(table)
    clips, num_clips, hours, source_frames = _sample(table, length, rate_hz, seed)
    failed: dict[str, str] = {}
    total = 9 if copies else 3
    done = 0

    def measured(kind: str, index: Path) -> Speed:
        nonlocal done
        task = _Task(kind, index, length, rate_hz, size_px, seconds, seed, cores, num_clips)
        ((_, answer),) = each(_measure, [task], limit_s=seconds + SLACK_S)
        done += 1
        if progress is not None:
            progress(done, total, "measurements")
        if isinstance(answer, Lost):
            raise ValueError(f"{table}: the measurement {kind!r} came to no end: {answer.reason}")
        speed, lost = answer
        failed.update(lost)
        return speed

    def way(name: str, rows: pl.DataFrame, folder: Path, gop: float | None) -> Way:
        write_index(folder, [rows], {})
        ClipIndex.open(folder)
        seconds_of = (rows["num_frames"] * rows["fps_den"] / rows["fps_num"]).sum()
        per_hour = float(rows["bytes_of_part"].sum()) / float(seconds_of) * 3600
        one, together, in_order = (measured(kind, folder) for kind in ("one reader", "all cores", "in order"))
        return Way(name, one, together, in_order, per_hour, gop)

    with tempfile.TemporaryDirectory(prefix="egoscale-bench-") as temporary:
        folder = Path(temporary)
        ways = [way("as they are", clips, folder / "as they are", _mean(clips, "gop_frames"))]
        copied_per_s = 0.0
        if copies:
            slow = Fraction(rate_hz).limit_denominator(1001)
            for name, rate in (("copies", None), (f"copies at {rate_hz:g} fps", slow)):
                made, per_s = _copies(clips, folder / name, CopySettings(max(16, size_px // 2 * 2), gop_frames, rate))
                copied_per_s = copied_per_s or per_s
                ways.append(way(name, made, folder / name / "index", _mean(made, "gop_frames")))
    return Bench(tuple(ways), cores, machine(), num_clips, hours, source_frames, clips.height, copied_per_s, failed)


def machine() -> str:
    """Processor and versions, for a number that is written down."""
    import importlib.metadata as metadata

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    versions = []
    for package in ("decord", "decord2", "torchcodec", "av"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{name}, {', '.join(versions)}"


# --- the sample ---------------------------------------------------------------------------------------------


def _sample(table: Path, length: int, rate_hz: float, seed: int) -> tuple[pl.DataFrame, int, float, int]:
    """Parts of clips that hold a window; number, hours and frames of all clips."""
    clips = open_catalog(table)
    schema = clips.collect_schema()
    optional = {"first_frame": pl.Int64(), "decoder": pl.String(), "gop_frames": pl.Float64(), "bytes": pl.Int64()}
    absent = [pl.lit(None, kind).alias(name) for name, kind in optional.items() if name not in schema]
    usable = clips.filter(asked_for(schema)).with_columns(absent)
    of_all = usable.select(pl.col("duration_s").sum() / 3600, pl.col("num_frames").sum(), pl.len())
    hours, source_frames, num_clips = of_all.collect().row(0)
    if not num_clips:
        raise ValueError(f"{table}: no clip to read: none is selected, or proven usable by `egoscale catalog probe`")
    window_s = length / rate_hz
    fast = pl.col("fps_num") >= SLOWEST * rate_hz * pl.col("fps_den")
    held = usable.filter(fast, pl.col("duration_s") >= window_s)
    ids = held.select("clip_id").collect()["clip_id"].sort()
    if not len(ids):
        raise ValueError(
            f"{table}: no clip holds a window of {length} frames at {rate_hz:g} fps ({window_s:g} s): ask for fewer"
        )
    chosen = np.random.default_rng(seed).permutation(len(ids))[:SAMPLE_CLIPS]
    sample = (
        held.join(pl.LazyFrame({"clip_id": ids[np.sort(chosen)]}), on="clip_id", how="semi").collect().sort("clip_id")
    )
    return _parts(sample, PART_WINDOWS * window_s, seed), num_clips, float(hours), source_frames


def _parts(clips: pl.DataFrame, part_s: float, seed: int) -> pl.DataFrame:
    """A random part of each clip, `part_s` long or all of it; `bytes_of_part` in proportion."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in clips.iter_rows(named=True):
        whole = int(row["num_frames"])
        frames = min(whole, math.ceil(part_s * row["fps_num"] / row["fps_den"]))
        first = int(rng.integers(whole - frames + 1))
        share = frames / max(1, whole)
        rows.append(
            {
                **{
                    name: row[name]
                    for name in ("clip_id", "path", "decoder", "sha256", "fps_num", "fps_den", "gop_frames")
                },
                "first_frame": (row["first_frame"] or 0) + first,
                "num_frames": frames,
                "irregular_fraction": 0.0,
                "start_s": 0.0,
                "duration_s": frames * row["fps_den"] / row["fps_num"],
                "bytes": row["bytes"],
                "bytes_of_part": share * (row["bytes"] or 0),
                "usable": True,
                "reason": None,
            }
        )
    return pl.DataFrame(
        rows, schema_overrides={"decoder": pl.String(), "gop_frames": pl.Float64(), "reason": pl.String()}
    )


def _copies(clips: pl.DataFrame, folder: Path, settings: CopySettings) -> tuple[pl.DataFrame, float]:
    """The same parts as files of their own, and frames of the originals that one core worked through in a second."""
    folder.mkdir()
    clips.drop("bytes_of_part").write_parquet(folder / "sample.parquet")
    done_s: list[float] = []
    done = transcode(
        folder / "sample.parquet",
        folder / "copies",
        settings,
        progress=lambda *_: done_s.append(time.perf_counter()),
    )
    if done.table is None or not done.copied:
        raise ValueError("no clip of the sample could be copied: `egoscale video transcode` says why")
    # From the first clip on: before it, a process was started.
    frames = sum(clips.sort("path", "first_frame", "clip_id")["num_frames"].to_list()[1:])
    per_s = frames / (done_s[-1] - done_s[0]) if len(done_s) > 1 else 0.0
    made = pl.read_parquet(done.table).filter("usable")
    return made.with_columns(bytes_of_part=pl.col("bytes").cast(pl.Float64)), per_s


def _mean(clips: pl.DataFrame, column: str) -> float | None:
    mean: Any = clips[column].mean()
    return None if mean is None else float(mean)


# --- one measurement, in a process of its own ---------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    kind: str
    index: Path
    length: int
    rate_hz: float
    size_px: int
    seconds: float
    seed: int
    cores: int
    num_clips: int


def _measure(task: _Task) -> tuple[Speed, dict[str, str]]:
    clips = ClipIndex.open(task.index)
    failed: dict[str, str] = {}
    if task.kind == "in order":
        return _in_order(clips, task, failed), failed
    table = WindowTable.on_disk(clips, task.length, task.rate_hz)
    # More clips than are kept open: no two windows in a row are of one file.
    source = FrameWindows(clips, task.size_px, MAX_OPEN if task.num_clips <= MAX_OPEN else 1, cache_bytes=0)
    readers = task.cores if task.kind == "all cores" else 1
    begun = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        counts = list(
            pool.map(lambda reader: _windows(source, table, task, reader, begun + task.seconds, failed), range(readers))
        )
    return Speed(sum(counts), time.perf_counter() - begun), failed


def _windows(
    source: FrameWindows, table: WindowTable, task: _Task, reader: int, until_s: float, failed: dict[str, str]
) -> int:
    """Frames that one reader hands over until then."""
    rng = np.random.default_rng((task.seed, reader))
    frames = 0
    while time.perf_counter() < until_s:
        clip, start = table.locate(rng.random(1))
        try:
            frames += source.windows(clip, start, task.length, table.stride(clip)).shape[1]
        except (ValueError, OSError) as error:
            failed[source.clips.clip_id(int(clip[0]))] = str(error)
            if len(failed) == len(source.clips):
                break
    return frames


def _in_order(clips: ClipIndex, task: _Task, failed: dict[str, str]) -> Speed:
    begun, frames = time.perf_counter(), 0
    for clip in itertools.cycle(range(len(clips))):
        row, text = clips.rows(np.array([clip]))[0], clips.texts(clip)
        first, end = int(row["first_frame"]), int(row["first_frame"] + row["num_frames"])
        try:
            with open_video(str(text["path"]), text.get("decoder") or "auto") as video:  # type: ignore[arg-type]
                while first < end and time.perf_counter() < begun + task.seconds:
                    frames += len(video.frames(range(first, min(end, first + PIECE_FRAMES)), task.size_px))
                    first += PIECE_FRAMES
                    alive()
        except (ValueError, OSError) as error:
            failed[str(text["clip_id"])] = str(error)
        if time.perf_counter() >= begun + task.seconds or len(failed) == len(clips):
            break
    return Speed(frames, time.perf_counter() - begun)
