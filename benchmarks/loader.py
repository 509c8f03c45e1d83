"""Random windows from video, from copies of it and from latents: the loader beside what people write by hand.

    python benchmarks/loader.py > benchmarks/loader.md

Makes its files with PyAV in a temporary folder. decord, torchcodec and LeRobot are measured where they import;
`--decord2 DIR` names a folder with decord2, which has decord's import name. About 25 minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

CASES = {  # name: height, width, frames between key frames
    "256p, GOP 12": (256, 456, 12),
    "256p, GOP 250": (256, 456, 250),
    "1080p, GOP 12": (1080, 1920, 12),
    "1080p, GOP 250": (1080, 1920, 250),
}
FILES, SECONDS, FPS = 3, 40, 30
LENGTH, RATE_HZ, SIZE_PX = 16, 5.0, 256
BATCH = 4
HAND_WRITTEN = ("torchcodec", "decord", "decord2", "PyAV", "LeRobot")
TOGETHER = 16


# --- files ------------------------------------------------------------------------------------------------------


def film(path: Path, height: int, width: int, gop: int, seed: int) -> None:
    """A textured scene that a camera pans over, with noise that changes from frame to frame."""
    import av

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 8 + 40, width // 8 + 40, 3), dtype=np.uint8)
    scene = np.repeat(np.repeat(coarse, 8, 0), 8, 1)
    scene += rng.integers(0, 40, scene.shape, dtype=np.uint8) // 2
    noise = rng.integers(0, 6, (8, height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"g": str(gop), "preset": "veryfast", "crf": "26", "sc_threshold": "0"}
        for t in range(SECONDS * FPS):
            y, x = int(150 + 140 * np.sin(t / 97)), int(150 + 140 * np.sin(t / 61))
            frame = scene[y : y + height, x : x + width] // 2 + noise[t % 8] + 40
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make(folder: Path, height: int, width: int, gop: int) -> None:
    folder.mkdir(parents=True)
    paths = [folder / f"{i}.mp4" for i in range(FILES)]
    for seed, path in enumerate(paths):
        film(path, height, width, gop, seed)
    manifest(folder, paths, height, width)


def manifest(folder: Path, paths: list[Path], height: int, width: int) -> None:
    columns = {
        "clip_id": [path.stem for path in paths],
        "path": [str(path) for path in paths],
        "source": "made",
        "decoder": "pyav",
        "start_s": 0.0,
        "duration_s": float(SECONDS),
        "num_frames": SECONDS * FPS,
        "first_frame": 0,
        "fps_num": FPS,
        "fps_den": 1,
        "width_px": width,
        "height_px": height,
        "bytes": [path.stat().st_size for path in paths],
        "usable": True,
        "selected": True,
    }
    pl.DataFrame(columns).write_parquet(folder / "manifest.parquet")


def copies(folder: Path, out: Path) -> None:
    """Copies of training size with short distances between key frames, as `egoscale video transcode` writes them."""
    from egoscale.video.catalog import SCHEMA
    from egoscale.video.transcode import CopySettings, transcode

    table = pl.read_parquet(folder / "manifest.parquet")
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in SCHEMA.items() if name not in table.columns]
    table.with_columns(missing).write_parquet(folder / "selection.parquet")
    out.mkdir()
    transcode(folder / "selection.parquet", out / "files", CopySettings(size_px=SIZE_PX, gop_frames=12))
    manifest(out, sorted((out / "files").rglob("*.mp4")), SIZE_PX, SIZE_PX)


def latents(folder: Path, out: Path) -> None:
    """Latents of 64 x 16 numbers a frame for every clip."""
    from egoscale.video.latent_writer import write_latents

    rng = np.random.default_rng(0)
    clips = pl.read_parquet(folder / "manifest.parquet")
    numbers = (
        (clip, rng.normal(size=(count, 64, 16)).astype(np.float16))
        for clip, count in clips.select("clip_id", "num_frames").rows()
    )
    out.mkdir()
    write_latents(out / "latents", numbers, 20_000)
    clips.write_parquet(out / "manifest.parquet")


# --- readers: each reads the same windows in the same order, one thread, files kept open -----------------------------


def windows_of(folder: Path, count: int) -> list[tuple[str, list[int]]]:
    """The windows that the loader draws, as path and frames."""
    from egoscale.video.clip_index import index_clips
    from egoscale.video.clips import WindowTable, frames_of

    clips = index_clips(folder / "manifest.parquet", folder / "index")
    table = WindowTable.on_disk(clips, LENGTH, RATE_HZ)
    found = []
    for step in range(-(-count // BATCH)):
        clip, start = table.locate(draw(step, 0))
        frames = frames_of(start, LENGTH, table.stride(clip))
        found += [(str(clips.texts(c)["path"]), row.tolist()) for c, row in zip(clip.tolist(), frames, strict=True)]
    return found


def draw(step: int, attempt: int) -> np.ndarray:
    return np.random.default_rng([step, attempt]).random(BATCH)


def by_torchcodec(path: str) -> Callable[[list[int]], int]:
    import torch
    from torchcodec.decoders import VideoDecoder

    torch.set_num_threads(1)
    reader = VideoDecoder(path, num_ffmpeg_threads=1)
    return lambda frames: len(reader.get_frames_at(indices=frames).data)


def by_decord(path: str) -> Callable[[list[int]], int]:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    return lambda frames: len(reader.get_batch(frames).asnumpy())


def by_lerobot(path: str) -> Callable[[list[int]], int]:
    import torch
    from lerobot.datasets.video_utils import decode_video_frames_torchcodec

    torch.set_num_threads(1)
    return lambda frames: len(decode_video_frames_torchcodec(path, [f / FPS for f in frames], 1e-3))


def by_pyav(path: str) -> Callable[[list[int]], int]:
    import av

    container = av.open(path)
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1

    def read(frames: list[int]) -> int:
        wanted = {round(f / FPS / stream.time_base): f for f in frames}
        container.seek(min(wanted), stream=stream)
        found = []
        for frame in container.decode(stream):
            if frame.pts in wanted:
                found.append(frame.to_ndarray(format="rgb24"))
                if len(found) == len(wanted):
                    break
        return len(found)

    return read


def by_video(path: str) -> Callable[[list[int]], int]:
    """The loader's own decoder without the loader."""
    from egoscale.video.decode import open_video

    video = open_video(path, "pyav")
    return lambda frames: len(video.frames(frames, SIZE_PX))


LOOPS: dict[str, Callable[[str], Callable[[list[int]], int]]] = {
    "torchcodec": by_torchcodec,
    "decord": by_decord,
    "decord2": by_decord,
    "LeRobot": by_lerobot,
    "PyAV": by_pyav,
    "bare": by_video,
}


def loop(name: str, folder: Path, count: int) -> Iterator[int]:
    drawn = windows_of(folder, count)
    readers = {path: LOOPS[name](path) for path in sorted({path for path, _ in drawn})}
    for path, read in readers.items():
        read(next(frames for one, frames in drawn if one == path))
    yield 0  # what follows is timed
    for path, frames in drawn:
        got = readers[path](frames)
        assert got == LENGTH, f"{name} gave {got} frames"
        yield got


def loader(folder: Path, count: int, steps_together: int, num_readers: int = 1) -> Iterator[int]:
    from egoscale.video.batches import WindowBatches
    from egoscale.video.clip_index import index_clips
    from egoscale.video.clips import WindowTable
    from egoscale.video.latents import LatentShards
    from egoscale.video.windows import FrameWindows, Windows

    source: Windows
    if (folder / "latents").is_dir():
        whole = LatentShards.open(folder / "latents")
        source = whole.of_manifest(folder / "manifest.parquet", folder / "index")
    else:
        source = FrameWindows(index_clips(folder / "manifest.parquet", folder / "index"), SIZE_PX, cache_bytes=0)
    table, steps = WindowTable.on_disk(source.clips, LENGTH, RATE_HZ), -(-count // BATCH)
    options = {"num_readers": num_readers, "steps_together": steps_together, "num_steps": steps}
    source.windows(range(FILES), [0] * FILES, 1)
    with WindowBatches(source, table, LENGTH, BATCH, draw, **options) as batches:
        yield 0
        for step in range(steps):
            yield batches.at(step).shape[0] * LENGTH


def ahead(source: Iterator[int]) -> dict[str, float]:
    next(source)
    wall, cpu = time.perf_counter(), time.process_time()
    frames = sum(source)
    return {"frames": frames, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def measured(job: dict[str, Any]) -> dict[str, float]:
    folder, count, kind = Path(job["folder"]), job["count"], job["kind"]
    return ahead(loop(kind, folder, count) if kind in LOOPS else loader(folder, count, job["together"], job["readers"]))


# --- running ------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, decord2: str | None, notes: Path) -> None:
        self.decord2, self.notes = decord2, notes

    def start(self, kind: str, folder: Path, count: int, together: int = 1, readers: int = 1) -> subprocess.Popen[str]:
        job = {"kind": kind, "folder": str(folder), "count": count, "together": together, "readers": readers}
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if kind == "decord2":
            environ["PYTHONPATH"] = f"{self.decord2}:{environ.get('PYTHONPATH', '')}"
        command = [sys.executable, __file__, "--job", json.dumps(job)]
        return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        process = self.start(*args, **kwargs)
        out, error = process.communicate()
        if process.returncode:
            raise RuntimeError(error.strip().splitlines()[-1])
        found: dict[str, float] = json.loads(out)
        return found

    def rate(self, what: str, **job: Any) -> float:
        """Frames a second of processor time; noted, so that a bench that was stopped goes on with the same files."""
        notes = [json.loads(line) for line in self.notes.read_text().splitlines()] if self.notes.exists() else []
        known = {note["what"]: float(note["rate"]) for note in notes}
        if what not in known:
            one = self.run(**job)
            known[what] = one["frames"] / one["cpu_s"]
            with self.notes.open("a") as file:
                file.write(json.dumps({"what": what, "rate": known[what]}) + "\n")
        return known[what]

    def works(self, kind: str, folder: Path) -> str | None:
        """Why a reader cannot be measured here."""
        if kind == "decord2" and not self.decord2:
            return "not given (`--decord2`)"
        try:
            self.run(kind, folder, BATCH)
        except RuntimeError as error:
            return str(error)[:160]
        return None


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def decoding(bench: Bench, root: Path, repeats: int, scale: float) -> list[str]:
    lines, missing = [], {}
    rates: dict[tuple[str, str], float] = {}
    first = root / next(iter(CASES))
    for kind in HAND_WRITTEN:
        why = bench.works(kind, first)
        if why:
            missing[kind] = why
    loops = [kind for kind in HAND_WRITTEN if kind not in missing]
    for case, (height, _, gop) in CASES.items():
        count = int(scale * (8 if height > 500 else 96))
        jobs: dict[str, dict[str, Any]] = {kind: {"kind": kind, "folder": root / case} for kind in (*loops, "bare")}
        jobs["loader"] = {"kind": "loader", "folder": root / case}
        jobs["together"] = {"kind": "loader", "folder": root / case, "together": TOGETHER, "count": BATCH * TOGETHER}
        if gop == 250:
            jobs["copies"] = {"kind": "loader", "folder": root / f"{case} copies", "count": 96}
        found: dict[str, list[float]] = {name: [] for name in jobs}
        for repeat in range(repeats):
            order = list(jobs)[repeat % len(jobs) :] + list(jobs)[: repeat % len(jobs)]
            for name in order:
                found[name].append(bench.rate(f"{case}, {name}, {repeat}", **{"count": count, **jobs[name]}))
        rates |= {(case, name): median(values) for name, values in found.items()}
    many = bench.run("loader", root / "latents", 4096, readers=0)
    rate = {case: [rates.get((case, name), 0.0) for name in loops] for case in CASES}
    head = [*loops, "own decoder, no loader", "loader", f"loader, {TOGETHER} steps together", "loader, copies"]
    lines += ["| files | " + " | ".join(head) + " | loader / own decoder | best of the loader / best loop |"]
    lines += ["|---" * (len(head) + 3) + "|"]
    for case in CASES:
        own = [rates.get((case, name), 0.0) for name in ("bare", "loader", "together", "copies")]
        cells = [f"{value:,.0f}" if value else "" for value in (*rate[case], *own)]
        ratios = f"{own[1] / own[0]:.2f} | {max(own[1:]) / max(rate[case]):.2f}"
        lines.append(f"| {case} | " + " | ".join(cells) + f" | {ratios} |")
    from_latents = many["frames"] / many["cpu_s"]
    best = max(max(values) for values in rate.values())
    lines += [
        "",
        f"From latents (64 x 16 float16 a frame): {from_latents:,.0f} frames/s, {from_latents / best:,.0f} times",
    ]
    lines += [f"the quickest decoding loop of the table ({best:,.0f})."]
    lines += [""] + [f"{kind} was not measured: {why}" for kind, why in missing.items()]
    return lines


def parallel(bench: Bench, root: Path, repeats: int, scale: float) -> list[str]:
    """Wall time: two threads of one process beside two processes that need not hand anything over."""
    count, found = int(192 * scale), {"1 thread": [], "2 threads": [], "2 processes": []}
    folder = root / "256p, GOP 12"
    for _ in range(repeats):
        for readers in (1, 2):
            one = bench.run("loader", folder, count, readers=readers)
            found[f"{readers} thread{'s' * (readers > 1)}"].append(one["frames"] / one["wall_s"])
        pair = [bench.start("loader", folder, count // 2) for _ in range(2)]
        answers = [json.loads(process.communicate()[0]) for process in pair]
        found["2 processes"].append(sum(one["frames"] for one in answers) / max(one["wall_s"] for one in answers))
    cells = " | ".join(f"{median(values):,.0f}" for values in found.values())
    return ["| " + " | ".join(found) + " |", "|---|---|---|", f"| {cells} |"]


# --- the index of ten million clips ----------------------------------------------------------------------------------

INDEX = """
import json, sys, time
from pathlib import Path
import numpy as np
import pyarrow
from egoscale.train.order import draws
from egoscale.video.clip_index import index_clips
from egoscale.video.clips import WindowTable

def resident_mb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1e3

before, begin = resident_mb(), time.perf_counter()
clips = index_clips(Path(sys.argv[1]), Path(sys.argv[2]))
table = WindowTable.on_disk(clips, 16, 5.0)
opened = time.perf_counter() - begin
taken = {}
for size in (1, 64):
    took = []
    for step in range(3000 // size + 200):
        begin = time.perf_counter()
        u = draws(0, "loader", step, size, 1)[:, 0]
        drawn = time.perf_counter()
        clip, start = table.locate(u)
        end = time.perf_counter()
        took.append(((end - begin) / size, (end - drawn) / size))
    taken[size] = np.median(took, axis=0).tolist()
for clip in np.random.default_rng(0).integers(0, len(clips), 300).tolist():
    clips.texts(clip)
print(json.dumps({"open_s": opened, "mb": resident_mb() - before, "sample_s": taken}))
"""


def index(root: Path, largest: int) -> list[str]:
    from egoscale.video.clip_index import index_clips
    from egoscale.video.clips import WindowTable

    head = ["clips", "made once, s", "opened, s", "MB more after 3,000 batches", "a sample alone, us", "one of 64, us"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for count in (largest // 1000, largest // 10, largest):
        file, rng = root / f"{count}.parquet", np.random.default_rng(0)
        pl.DataFrame(
            {
                "clip_id": pl.Series(np.arange(count)).cast(pl.String).str.zfill(9),
                "decoder": ["pyav"] * count,
                "num_frames": rng.integers(100, 400, count),
                "fps_num": np.where(rng.random(count) < 0.5, 30, 60),
                "fps_den": np.ones(count, np.int64),
            }
        ).with_columns(path="/data/videos/recording-" + pl.col("clip_id") + ".mp4").write_parquet(file)
        begin = time.perf_counter()
        WindowTable.on_disk(index_clips(file, root / "index"), LENGTH, RATE_HZ)
        made = time.perf_counter() - begin
        done = subprocess.run(
            [sys.executable, "-c", INDEX, str(file), str(root / "index")], capture_output=True, text=True, check=True
        )
        one = json.loads(done.stdout)
        alone, of_many = (one["sample_s"][size][0] * 1e6 for size in ("1", "64"))
        lines.append(
            f"| {count:,} | {made:.1f} | {one['open_s']:.3f} | {one['mb']:.0f} | {alone:.1f} | {of_many:.1f} |"
        )
    return lines


TEXT = """
Frames a second of processor time (the machine is shared; one decoding thread each), medians of {repeats}, all readers
in turns within one run on the same {files} files of {seconds} s a case, made here (libx264 veryfast, B-frames, 30 fps).
Windows of {length} frames at {rate:g} a second, drawn by arithmetic; all readers are given the same ones and
keep their files open. Loops written by hand hand over frames as they are decoded; the loader and its own decoder also
average them down to {size} px, which the loops would still have to do.

"{together} steps together" reads the windows that {together} adjoining batches of {batch} take from one clip in one
pass: a gain where clips are few (here {windows} windows in {minutes:g} minutes of video), none where each window has a
clip of its own. "copies" reads windows at the same places of copies of {size} px with a key frame every 12, which is
what helps with any number of clips.

What it says. With short GOPs the loader is as quick as its own decoder, and quicker where a batch happens to hold
windows of one clip. With long GOPs it gains where windows share clips; where clips are many, copies help most.
LeRobot's function was imported without its other dependencies, which its reading through torchcodec never calls.
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job")
    parser.add_argument("--decord2")
    parser.add_argument("--files", type=Path, help="make the files here, keep them, and go on with what is measured")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--clips", type=int, default=10_000_000)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(measured(json.loads(given.job))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = given.files or Path(temporary)
        for case, (height, width, gop) in CASES.items():
            if not (root / case / "manifest.parquet").is_file():
                make(root / case, height, width, gop)
            if gop == 250 and not (root / f"{case} copies" / "manifest.parquet").is_file():
                copies(root / case, root / f"{case} copies")
        if not (root / "latents").is_dir():
            latents(root / "256p, GOP 12", root / "latents")
        bench = Bench(given.decord2, root / "measured.jsonl")
        tables = decoding(bench, root, given.repeats, given.scale)
        threads = parallel(bench, root, given.repeats, given.scale)
        sizes = index(root, given.clips)
    packages = ("torchcodec", "decord", "av", "lerobot", "numpy", "polars", "pyarrow")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print("# Windows from video: the loader beside loops written by hand\n")
    machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}"
    print(f"{datetime.date.today()}, {machine}, {versions},")
    print(
        f"load {os.getloadavg()[0]:.0f}. Command: `python benchmarks/loader.py --decord2 DIR > benchmarks/loader.md`."
    )
    told = {"repeats": given.repeats, "files": FILES, "seconds": SECONDS, "length": LENGTH, "rate": RATE_HZ}
    told |= {"size": SIZE_PX, "together": TOGETHER, "batch": BATCH}
    told |= {"windows": TOGETHER * BATCH, "minutes": FILES * SECONDS / 60}
    print(TEXT.format(**told))
    print("\n".join(tables))
    print("\n## Threads or processes\n\nFrames a second of wall time, 256p, GOP 12:\n")
    print("\n".join(threads))
    print("\n## The index\n\nA made-up manifest, half of it at 30 and half at 60 frames a second. A sample is drawn")
    print(
        "(Philox set to the step) and located, with the index in the page cache; a batch pays for the drawing once.\n"
    )
    print("\n".join(sizes))


if __name__ == "__main__":
    main()
