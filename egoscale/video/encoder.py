"""H.264 files from frames, and the proof that a file holds them: count, time stamps, key frames.

Settings, all for windows read anywhere by one thread (`benchmarks/transcode.md`: real kitchens at 256 px, GOP 12,
windows of 16 frames at 5 fps out of 30):

- key frames at every `gop_frames`, never elsewhere: x264 would add them at cuts and make reading uneven;
- two of three frames are B frames that no other frame is made from: who reads 5 of 30 frames leaves most of them
  undecoded, which is a third more windows a second, and at equal quality the files are 8 % smaller;
- `tune=fastdecode` (no arithmetic coding, no deblocking): more than twice the windows a second for 6 % more bytes;
- `preset=veryfast`: nearly three times the speed of `medium` for 3 % fewer bytes and 0.6 dB less;
- no `mbtree` (bits moved to what later frames are made from): with AVX-512, x264 (core 165) now and then made another
  file of the same pictures, and without it none in ten thousand (`docs/journal.md`); it saves 6 % of the bytes;
- one thread and FFmpeg's exact arithmetic: the same frames give the same bytes.

Legend of shapes: T frames, H rows, W columns, C colours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from egoscale.video.picture import Frames
from egoscale.video.stream import first_line

CODEC = "libx264"


class CopyError(ValueError):
    """A file that was written and does not hold what it should."""


def write_h264(
    path: Path,
    pieces: Iterable[Frames],
    pts: Sequence[int],
    time_base: Fraction,
    gop_frames: int,
    crf: int,
) -> None:
    """Writes frames, one piece after another in memory, to an mp4 with its index at the front.

    Args:
        pieces: uint8 [T, H, W, 3] each, H and W even, together as many frames as `pts` has.
        pts: rising time stamps from 0, in units of `time_base` (seconds).
        crf: constant rate factor of x264; 6 less doubles the bytes.

    Raises:
        ValueError: more frames than time stamps, or fewer.
        OSError: the file cannot be written.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    exact = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    exact |= Interpolation.FULL_CHR_H_INP
    steps = [later - before for before, later in itertools.pairwise(pts)]
    written = 0
    stream = None
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        for piece in pieces:
            if stream is None:
                rate = 1 / (time_base * (min(steps) if steps else 1))
                stream = container.add_stream(CODEC, rate=rate)
                stream.height, stream.width, stream.pix_fmt = piece.shape[1], piece.shape[2], "yuv420p"
                stream.codec_context.time_base = time_base
                stream.codec_context.thread_count = 1
                # FFmpeg's own colours for RGB, written down so that no reader has to guess.
                stream.codec_context.colorspace = Colorspace.ITU601
                stream.codec_context.color_range = ColorRange.MPEG
                stream.options = options(gop_frames, crf)
            for picture in piece:
                if written == len(pts):
                    raise ValueError(f"{path}: more frames than the {len(pts)} time stamps")
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                    format="yuv420p",
                    interpolation=exact,
                    dst_colorspace=Colorspace.ITU601,
                    dst_color_range=ColorRange.MPEG,
                    threads=1,
                )
                frame.pts, frame.time_base = pts[written], time_base
                frame.duration = steps[min(written, len(steps) - 1)] if steps else 1
                container.mux(stream.encode(frame))
                written += 1
        if stream is not None:
            container.mux(stream.encode())
    if written != len(pts):
        raise ValueError(f"{path}: {written} frames for {len(pts)} time stamps")


def options(gop_frames: int, crf: int) -> dict[str, str]:
    """Of x264."""
    return {
        "crf": str(crf),
        "preset": "veryfast",
        "tune": "fastdecode",
        "g": str(gop_frames),
        "keyint_min": str(gop_frames),
        "sc_threshold": "0",
        "bf": "2",
        "x264-params": "b-adapt=0:b-pyramid=none:mbtree=0",
    }


def check_h264(path: Path, size_px: int, pts: Sequence[int], time_base: Fraction, gop_frames: int) -> None:
    """Decodes a file to its end and compares: frames and their size, time stamps, key frames.

    Raises:
        CopyError: what differs, at which frame.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            shown = [
                (frame.pts * frame.time_base, frame.key_frame, (frame.height, frame.width))
                for frame in container.decode(stream)
            ]
    except (av.FFmpegError, ValueError, IndexError, TypeError) as error:
        raise CopyError(f"the copy does not decode: {first_line(error)}") from error
    if len(shown) != len(pts):
        raise CopyError(f"the copy has {len(shown)} frames of {len(pts)}")
    for index, (time_s, key, size) in enumerate(shown):
        if time_s != pts[index] * time_base:
            raise CopyError(
                f"frame {index} of the copy is shown at {float(time_s):.6f} s, and belongs at "
                f"{float(pts[index] * time_base):.6f} s"
            )
        if key != (index % gop_frames == 0):
            raise CopyError(f"frame {index} of the copy is {'a' if key else 'no'} key frame (GOP {gop_frames})")
        if size != (size_px, size_px):
            raise CopyError(f"frame {index} of the copy is {size[1]}x{size[0]}, not {size_px}x{size_px}")
