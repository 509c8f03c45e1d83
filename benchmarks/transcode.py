"""Why copies are encoded as they are: bytes, likeness and frames a second of each setting, changed one at a time.

    OMP_NUM_THREADS=1 python benchmarks/transcode.py FOLDER > benchmarks/transcode.md

FOLDER holds real clips at 30 fps. Seconds are those of the processor (`time.process_time`), one thread, so that other
work on the machine does not count; ratios are to the settings that are used.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from egoscale.video import encoder
from egoscale.video.bench import machine
from egoscale.video.decode import open_video

SIZE_PX, GOP, CRF, LENGTH, STRIDE, WINDOWS = 256, 12, 18, 16, 6, 40
SMALL_PX = 64
VARIANTS: dict[str, dict[str, str]] = {
    "as used": {},
    "no B frames": {"bf": "0"},
    "no B frames, CRF 19": {"bf": "0", "crf": "19"},
    "B frames placed by x264": {"bf": "3", "x264-params": "b-adapt=1:b-pyramid=normal:mbtree=0"},
    "mbtree, which is not exact": {"x264-params": "b-adapt=0:b-pyramid=none"},
    "mbtree, CRF 19": {"x264-params": "b-adapt=0:b-pyramid=none", "crf": "19"},
    "no fastdecode": {"tune": ""},
    "preset medium": {"preset": "medium"},
    "CRF 15": {"crf": "15"},
    "CRF 20": {"crf": "20"},
    "CRF 23": {"crf": "23"},
    "GOP 1": {"g": "1", "keyint_min": "1"},
    "GOP 6": {"g": "6", "keyint_min": "6"},
    "GOP 60": {"g": "60", "keyint_min": "60"},
    "GOP 250": {"g": "250", "keyint_min": "250"},
}


def measure(clips: list[np.ndarray], change: dict[str, str], folder: Path) -> dict[str, float]:
    """Bytes a pixel, likeness, and frames a second of one setting over all clips."""
    used = encoder.options

    def changed(gop_frames: int, crf: int) -> dict[str, str]:
        return {key: value for key, value in {**used(gop_frames, crf), **change}.items() if value}

    sums = dict.fromkeys(("frames", "bytes", "error", "encode_s", "order_s", "window_s", "open_s"), 0.0)
    rng = np.random.default_rng(0)
    encoder.options = changed
    try:
        for number, frames in enumerate(clips):
            path = folder / f"{number}.mp4"
            begun = time.process_time()
            encoder.write_h264(path, [frames], range(len(frames)), Fraction(1, 30), GOP, CRF)
            sums["encode_s"] += time.process_time() - begun
            sums["frames"] += len(frames)
            sums["bytes"] += path.stat().st_size
            starts = rng.integers(0, len(frames) - (LENGTH - 1) * STRIDE, WINDOWS)
            with open_video(path) as video:
                read = video.frames(range(len(frames)))
                sums["error"] += float(((read.astype(np.float64) - frames) ** 2).mean(axis=(1, 2, 3)).sum())
                begun = time.process_time()
                video.frames(range(len(frames)))
                sums["order_s"] += time.process_time() - begun
                begun = time.process_time()
                for start in starts.tolist():
                    video.frames(start + STRIDE * np.arange(LENGTH))
                sums["window_s"] += time.process_time() - begun
            begun = time.process_time()
            for start in starts.tolist():
                with open_video(path) as video:
                    video.frames(start + STRIDE * np.arange(LENGTH))
            sums["open_s"] += time.process_time() - begun
    finally:
        encoder.options = used
    windowed = len(clips) * WINDOWS * LENGTH
    return {
        "MB/h": sums["bytes"] / sums["frames"] * 30 * 3600 / 1e6,
        "bits/pixel": sums["bytes"] * 8 / sums["frames"] / SIZE_PX**2,
        "PSNR dB": 10 * float(np.log10(255**2 * sums["frames"] / sums["error"])),
        "encode": sums["frames"] / sums["encode_s"],
        "in order": sums["frames"] / sums["order_s"],
        "windows": windowed / sums["window_s"],
        "windows, opened for each": windowed / sums["open_s"],
    }


def at_small(paths: list[Path], size_px: int, folder: Path) -> tuple[float, float]:
    """MB/h of copies at a size, and their PSNR (dB) when a model of SMALL_PX reads them."""
    num_frames, num_bytes, error = 0, 0, 0.0
    for path in paths:
        with open_video(path) as video:
            shown = range(video.probe().num_frames)
            frames, small = video.frames(shown, size_px), video.frames(shown, SMALL_PX).astype(np.float64)
        copy = folder / "copy.mp4"
        encoder.write_h264(copy, [frames], range(len(frames)), Fraction(1, 30), GOP, CRF)
        with open_video(copy) as video:
            error += float(((video.frames(shown, SMALL_PX) - small) ** 2).mean(axis=(1, 2, 3)).sum())
        num_frames, num_bytes = num_frames + len(frames), num_bytes + copy.stat().st_size
    return num_bytes / num_frames * 30 * 3600 / 1e6, 10 * float(np.log10(255**2 * num_frames / error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=6)
    given = parser.parse_args()
    clips = []
    paths = sorted(given.folder.glob("*.mp4"))
    paths = paths[:: max(1, len(paths) // given.clips)][: given.clips]
    for path in paths:
        with open_video(path) as video:
            clips.append(video.frames(range(video.probe().num_frames), SIZE_PX))
    with tempfile.TemporaryDirectory() as folder:
        measure(clips[:1], {}, Path(folder))  # what is imported and warmed up is not counted
        found = {name: measure(clips, change, Path(folder)) for name, change in VARIANTS.items()}
        small = {size: at_small(paths, size, Path(folder)) for size in (64, 96, 128, 192, 256)}
    used = found["as used"]
    print("# Settings of copies\n")
    print(f"`OMP_NUM_THREADS=1 python benchmarks/transcode.py FOLDER`, {datetime.date.today()}, {machine()},")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}.")
    print(f"{len(clips)} clips of {given.folder.name}, {SIZE_PX} px, 30 fps; as used: GOP {GOP}, CRF {CRF}, preset")
    print(f"veryfast, fastdecode, 2 B frames. Windows: {LENGTH} frames, every {STRIDE}th, anywhere. Frames a second of")
    print("processor time, one thread; in brackets the ratio to the settings that are used.\n")
    print("| setting | MB/h | bits/pixel | PSNR dB | " + " | ".join(list(used)[3:]) + " |")
    print("|---" * 8 + "|")
    for name, row in found.items():
        speeds = [f"{row[key]:,.0f} ({row[key] / used[key]:.2f})" for key in list(used)[3:]]
        cells = [f"{row['MB/h']:.0f}", f"{row['bits/pixel']:.3f}", f"{row['PSNR dB']:.2f}", *speeds]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\nA model of {SMALL_PX} px reads copies of several sizes:\n")
    print("| size of the copies, px | MB/h | PSNR dB of what the model sees |\n|---|---|---|")
    for size, (megabytes, likeness) in small.items():
        print(f"| {size} | {megabytes:.0f} | {likeness:.2f} |")


if __name__ == "__main__":
    main()
