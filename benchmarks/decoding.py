"""Frames a second of one thread: our reader, torchcodec, decord, decord2 and PyAV, on the same files in one run.

    python benchmarks/decoding.py --films DIR [--decord2 DIR] > benchmarks/decoding.md

Reads the real files under `--shared`, and films made up here (H.264, 456x256 and 1920x1080, a key frame every 12, 60
or 250) in `--films`, made where they are missing. Every contender that can be imported reads every file in a process
of its own, `--rounds` times in turn; decord2, which has decord's import name, from the folder of
`pip install --target DIR decord2`. Times are CPU seconds of the whole process, all its threads, so that a neighbour on
the machine does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CONTENDERS = ("egoscale", "torchcodec", "torchcodec approximate", "decord", "decord2", "PyAV loop")
REAL = {
    "GoPro kitchen 640x360": "ego/captaincook4d/order_error_0.mp4",
    "hands 1280x720": "ego/sam2_hands/02_cups.mp4",
    "GoPro 1920x1080": "nasty/gopro/max-heromode.mp4",
    "DROID wrist 320x180": "robot/droid_3cam/wrist_image_left.mp4",
    "G1 AV1 640x480": "robot/g1_pick_bottle_v30/videos/observation.images.cam_high/chunk-000/file-000.mp4",
}
SIZES = {"256p": (256, 456, 900, 16), "1080p": (1080, 1920, 420, 3)}  # rows, columns, frames, windows
GOPS = (12, 60, 250)
LENGTH, STRIDE = 16, 6  # frames of a window at 5 a second of 30
AT_LEAST_S = 0.15  # CPU seconds that a measurement repeats for


# ---- films ------------------------------------------------------------------------------------------------------


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise of many sizes, as things have: uint8 [H, W, 3]."""
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 7):
        side = 2**octave
        grain = rng.standard_normal((height // side + 2, width // side + 2, 3)).astype(np.float32)
        total += np.kron(grain, np.ones((side, side, 1), np.float32))[:height, :width] * side**0.6
    return (255 * (total - total.min()) / np.ptp(total)).astype(np.uint8)


def scene(num_frames: int, height: int, width: int) -> Iterator[np.ndarray]:
    """A head that turns before a wall, and a hand-sized thing that moves before it, with the sensor's noise."""
    rng = np.random.default_rng(0)
    margin = height // 2
    wall = texture(rng, height + 2 * margin, width + 2 * margin)
    thing = texture(rng, height // 2, width // 3)
    noise = rng.integers(-4, 5, (8, height, width, 3)).astype(np.int16)
    for index, t in enumerate(np.arange(num_frames) / 30):
        top = int(margin * (1 + 0.8 * np.sin(0.7 * t) * np.cos(0.31 * t)))
        left = int(margin * (1 + 0.8 * np.sin(0.9 * t + 1)))
        frame = wall[top : top + height, left : left + width].astype(np.int16)
        y, x = int(height * (0.5 + 0.2 * np.sin(3 * t))), int(width * (1 / 3 + 0.2 * np.cos(2.3 * t)))
        frame[y : y + len(thing), x : x + thing.shape[1]] = thing[: height - y]
        yield np.clip(frame + noise[index % 8], 0, 255).astype(np.uint8)


def film(path: Path, num_frames: int, height: int, width: int, codec: str, options: dict[str, str]) -> None:
    import av

    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", options
        stream.codec_context.thread_count = 2
        for frame in scene(num_frames, height, width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    part.rename(path)


def made_up(folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    films = {}
    for size, (height, width, num_frames, _) in SIZES.items():
        for gop in GOPS:
            path = films[f"{size}, GOP {gop}"] = folder / f"{size}-gop{gop}.mp4"
            if not path.exists():
                options = {"crf": "23", "g": str(gop), "keyint_min": str(gop), "sc_threshold": "0"}
                film(path, num_frames, height, width, "libx264", options)
    path = films["256p, HEVC as x265 makes it"] = folder / "hevc.mp4"
    if not path.exists():
        film(path, 900, 256, 456, "libx265", {"crf": "26", "x265-params": "log-level=none:pools=none:keyint=60"})
    return films


# ---- contenders: open(path) -> read(rising indices) -> [T, H, W, 3] ------------------------------------------------

Read = Callable[[np.ndarray], np.ndarray]


def egoscale(path: Path) -> Read:
    from egoscale.video.decode import open_video

    video = open_video(path)
    video.times_s()  # opens it
    return video.frames


def torchcodec(path: Path, seek_mode: str = "exact") -> Read:
    import torch
    from torchcodec.decoders import VideoDecoder

    torch.set_num_threads(1)
    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=seek_mode)
    return lambda indices: decoder.get_frames_at(indices.tolist()).data.numpy()


def decord(path: Path) -> Read:
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    reader = decord.VideoReader(str(path), num_threads=1)
    return lambda indices: reader.get_batch(indices.tolist()).asnumpy()


def pyav(path: Path) -> Read:
    """As most loaders use it: seek to the first frame, decode to the last, convert each that is wanted."""
    import av

    container = av.open(str(path))
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    rate, base = stream.average_rate, stream.time_base
    begin = stream.start_time or 0

    def read(indices: np.ndarray) -> np.ndarray:
        container.seek(begin + int(indices[0] / rate / base), stream=stream)
        wanted, found = set(indices.tolist()), {}
        for frame in container.decode(stream):
            index = round((frame.pts - begin) * base * rate)
            if index in wanted:
                found[index] = frame.to_ndarray(format="rgb24")
            if index >= indices[-1]:
                break
        return np.stack([found[index] for index in indices.tolist()])

    return read


def contender(name: str) -> Callable[[Path], Read]:
    return {
        "egoscale": egoscale,
        "torchcodec": torchcodec,
        "torchcodec approximate": lambda path: torchcodec(path, "approximate"),
        "decord": decord,
        "decord2": decord,
        "PyAV loop": pyav,
    }[name]


def version(name: str) -> str:
    package = {"egoscale": "av", "PyAV loop": "av"}.get(name, name.split()[0])
    if name == "decord2":
        return importlib.metadata.version("decord2")
    return importlib.metadata.version(package)


# ---- one contender, one round ------------------------------------------------------------------------------------


def starts(num_frames: int, num_windows: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, num_frames - (LENGTH - 1) * STRIDE, num_windows)


def timed(run: Callable[[], object]) -> float:
    """CPU seconds of a run, the mean of as many as fill AT_LEAST_S, after one that is not counted.

    The first run may touch memory that a virtual machine must fetch from its host: 2.5 ms for each huge page of NumPy's
    large arrays, which doubles the time of 1080p and is nobody's decoding.
    """
    run()
    runs, before = 0, time.process_time()
    while not runs or time.process_time() - before < AT_LEAST_S:
        run()
        runs += 1
    return (time.process_time() - before) / runs


def measure(name: str, path: Path, num_frames: int, num_windows: int) -> dict[str, Any]:
    """CPU seconds of opening; and for each frame of windows, one by one, together, of a file not open, and of all."""
    opened = contender(name)
    read = opened(path)
    windows = [start + STRIDE * np.arange(LENGTH) for start in starts(num_frames, num_windows)]
    frames = [read(window) for window in windows]  # libraries are loaded now
    sums = [zlib.crc32(np.ascontiguousarray(frame)) for window in frames for frame in window]
    del frames
    whole = min(num_frames, 900 if num_windows > 8 else 128)
    together = np.unique(np.concatenate(windows))
    cold = windows[:2]
    return {
        "sums": sums,
        "open": timed(lambda: opened(path)),
        "cold": timed(lambda: [opened(path)(window) for window in cold]) / (len(cold) * LENGTH),
        "windows": timed(lambda: [read(window) for window in windows]) / (num_windows * LENGTH),
        "together": timed(lambda: read(together)) / (num_windows * LENGTH),
        "through": timed(lambda: [read(np.arange(at, min(at + 32, whole))) for at in range(0, whole, 32)]) / whole,
    }


def resizing(path: Path) -> dict[str, float]:
    """Levels between our small pictures and those that torchcodec makes as it decodes; CPU seconds of each frame."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import CenterCrop, Resize

    from egoscale.video.decode import open_video
    from egoscale.video.picture import square

    indices = list(range(0, 120, 6))
    video, side = open_video(path), open_video(path).probe().height_px
    ours = video.frames(indices, size_px=256).astype(int)
    resize = [CenterCrop((side, side)), Resize((256, 256))]
    theirs = VideoDecoder(str(path), dimension_order="NHWC", transforms=resize).get_frames_at(indices).data.numpy()
    full = video.frames(indices)
    return {
        "mean": float(np.abs(ours - theirs).mean()),
        "most": float(np.abs(ours - theirs).max()),
        "square_s": timed(lambda: square(full, 256)) / len(indices),
    }


def round_of(name: str, files: dict[str, tuple[str, int, int]]) -> dict[str, Any]:
    told: dict[str, Any] = {"version": version(name)}
    for title, (path, num_frames, num_windows) in files.items():
        try:
            told[title] = measure(name, Path(path), num_frames, num_windows)
        except Exception as error:
            told[title] = {"error": (str(error) or repr(error)).strip().splitlines()[0][:100]}
    return told


def in_process(name: str, files: dict[str, tuple[str, int, int]], decord2: str | None) -> dict[str, Any] | str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if name == "decord2":
        if decord2 is None:
            return "no --decord2"
        environment["PYTHONPATH"] = decord2
    command = [sys.executable, __file__, "--contender", name, "--files", json.dumps(files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip() or "nothing said").splitlines()[-1]
    return json.loads(done.stdout.splitlines()[-1])


# ---- the page ----------------------------------------------------------------------------------------------------


def page(
    titles: list[str],
    results: dict[str, list[dict[str, Any]]],
    lost: dict[str, str],
    rounds: int,
    small: dict[str, float] | None,
) -> None:
    names = [name for name in CONTENDERS if name in results]

    def times(name: str, title: str, what: str) -> list[float] | None:
        found = [one[title] for one in results[name]]
        return None if any("error" in one for one in found) else [one[what] for one in found]

    def table(what: str, form: Callable[[float], str], ratio: Callable[[float, float], float]) -> None:
        print(f"| file | {' | '.join(names)} | egoscale / best other |\n|---|{'---|' * (len(names) + 1)}")
        for title in titles:
            cells = {name: times(name, title, what) for name in names}
            others = [cells[name] for name in names if name != "egoscale" and cells[name] and right(name, title)]
            best = min(others, key=median) if others else None
            mine = cells["egoscale"]
            share = f"{median(ratio(a, b) for a, b in zip(mine, best, strict=True)):.2f}" if mine and best else ""
            shown = [cell_text(name, title, cells[name], form) for name in names]
            print(f"| {title} | {' | '.join(shown)} | {share} |")
        print()

    def right(name: str, title: str) -> bool:
        return not wrong(name, title)

    def wrong(name: str, title: str) -> int:
        mine, theirs = results["egoscale"][0][title]["sums"], results[name][0][title].get("sums", [])
        return sum(a != b for a, b in zip(mine, theirs, strict=False))

    def cell_text(name: str, title: str, cell: list[float] | None, form: Callable[[float], str]) -> str:
        if cell is None:
            return "fails"
        return form(median(cell)) + (" (wrong)" if wrong(name, title) else "")

    print("# Decoding: who reads fastest, and right\n")
    packages = [name for name in names if name not in ("egoscale", "torchcodec approximate")]
    versions = ", ".join(f"{name.removesuffix(' loop')} {results[name][0]['version']}" for name in packages)
    machine = f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.0f} at the end"
    print(f"{datetime.date.today()}, {machine},")
    print(f"Python {platform.python_version()}, numpy {importlib.metadata.version('numpy')}, {versions}.")
    print(f"`egoscale` decodes by the same PyAV. One thread each; medians of {rounds} rounds in turn. Command:")
    print("`python benchmarks/decoding.py --films DIR --decord2 DIR > benchmarks/decoding.md`.\n")
    print(PREFACE)
    for name, reason in lost.items():
        print(f"Not measured: {name} ({reason}).\n")
    rate: Callable[[float], str] = lambda seconds: f"{1 / seconds:,.0f}"  # noqa: E731
    faster: Callable[[float, float], float] = lambda mine, other: other / mine  # noqa: E731
    print(
        f"## Random windows: frames a CPU second\n\n{LENGTH} frames, every {STRIDE}th, from a random place each; "
        "frames that are given, not those decoded on the way.\n"
    )
    table("windows", rate, faster)
    print("## The same windows in one call: frames a CPU second\n")
    print("All windows of a film asked for together, in rising order, shared frames once.\n")
    table("together", rate, faster)
    print("## Reading through: frames a CPU second\n\nEvery frame, 32 at a call.\n")
    table("through", rate, faster)
    print("## A window of a file that is not open: frames a CPU second\n\nAs a loader reads that keeps no file open.\n")
    table("cold", rate, faster)
    print(
        "## Opening: CPU milliseconds\n\nOf these, FFmpeg's look at the first frames is the most. The last column is "
        "below 1 where egoscale is quicker.\n"
    )
    table("open", lambda seconds: f"{1000 * seconds:.1f}", lambda mine, other: mine / other)
    print("## Wrong frames\n")
    bad = [
        f"- {name}, {title}: {wrong(name, title)} of {len(results['egoscale'][0][title]['sums'])} frames of the windows"
        " are not those asked for."
        for name in names
        for title in titles
        if wrong(name, title)
    ]
    fails = [
        f"- {name}, {title}: {results[name][0][title]['error']}"
        for name in names
        for title in titles
        if "error" in results[name][0][title]
    ]
    print("\n".join(bad or ["None."]))
    print("\n## What fails\n")
    print("\n".join(fails or ["Nothing."]))
    if small is not None:
        print("\n## Smaller pictures\n\nThe centre square of 1080p at 256 px by `picture.square` takes")
        print(f"{1000 * small['square_s']:.1f} ms a frame. What torchcodec makes as it decodes (CenterCrop, Resize) is")
        print(f"{small['mean']:.1f} levels away on average, {small['most']:.0f} at most: another filter, so training")
        print("would depend on who decodes, and no decoder is asked to resize.")


PREFACE = """Times are CPU seconds of the process with all its threads, on a machine that did other work too: compare
within a row. Ratios are medians of the ratios of each round; "best other" leaves out those that give wrong frames.
Large arrays cost page faults, which count; memory is compacted before the first round, and each reading is done once
before it is measured.

**What follows.** `open_video(decoder="auto")` reads with PyAV: frames that no wanted frame is made from are left
undecoded (H.264, HEVC), a scaler is kept, time stamps come from the header. It is right in all cases below. Where it
leaves frames out it is the quickest; where nothing can be left out (AV1, films without B frames, small films read
through) it is as quick as torchcodec within an eighth. torchcodec, sought exactly, is right too; it needs FFmpeg's
libraries and imports torch, which is seconds and hundreds of MB in every worker, so it is the default nowhere. Sought
approximately it gives neighbours where frames are reordered across key frames. decord and decord2 are slower, and wrong
on what x265 makes by default: after a seek into an open group of pictures they count from the wrong frame. They stay
available by name.
Windows that are read together cost a fraction of windows read one by one: group them by clip.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--decord2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender", choices=(*CONTENDERS, "resizing"))
    parser.add_argument("--files")
    asked = parser.parse_args()
    if asked.contender:
        files = json.loads(asked.files)
        told = resizing(Path(files["1080p, GOP 60"][0])) if asked.contender == "resizing" else None
        print(json.dumps(told or round_of(asked.contender, files)))
        return
    from egoscale.video.decode import open_video

    paths = made_up(asked.films) | {title: asked.shared / path for title, path in REAL.items()}
    files = {}
    for title, path in paths.items():
        if path.is_file():
            info = open_video(path).probe()
            num_windows = SIZES["1080p" if info.height_px > 600 else "256p"][3]
            if info.num_frames > (LENGTH - 1) * STRIDE:
                files[title] = (str(path), info.num_frames, num_windows)
    with contextlib.suppress(OSError):  # of root alone: in pieces, memory costs more than decoding
        Path("/proc/sys/vm/compact_memory").write_text("1")
    results: dict[str, list[dict[str, Any]]] = {}
    lost = {}
    for turn in range(asked.rounds):
        for name in CONTENDERS[turn % len(CONTENDERS) :] + CONTENDERS[: turn % len(CONTENDERS)]:
            if name not in lost:
                told = in_process(name, files, asked.decord2)
                print(turn, name, "" if isinstance(told, dict) else told, file=sys.stderr)
                if isinstance(told, str):
                    lost[name] = told
                else:
                    results.setdefault(name, []).append(told)
    small = in_process("resizing", files, None)
    page(list(files), results, lost, asked.rounds, small if isinstance(small, dict) else None)


if __name__ == "__main__":
    main()
