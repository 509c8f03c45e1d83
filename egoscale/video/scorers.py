"""What is run over the clips of a catalogue, shard by shard: the probe, and the scores of the picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import polars as pl

from egoscale.video.decode import DecodeError, Video, open_video
from egoscale.video.probe import Span, clip_frames, probe_clips, unreadable
from egoscale.video.score import PictureScores, score_clip
from egoscale.video.scores import PROBE, Shard, catalog_file, open_catalog
from egoscale.video.shards import FileClips, Finished, Progress, Row, Scorer, run_shard
from egoscale.video.stream import first_line

# Seconds without a sign of life after which a decoder counts as stuck; a sign comes with every few frames.
LIMIT_S = 60.0

NOT_SCORED = PictureScores(None, None, None, None, None, None, None, None, None, None, None)


def probe_catalog(
    catalog: Path,
    shard: Shard | None = None,
    jobs: int = 1,
    limit_s: float | None = LIMIT_S,
    progress: Progress | None = None,
) -> Finished | None:
    """Decodes the files of a shard of a catalogue, each once, for the clips that were never probed.

    What is found lies beside the catalogue and is read by `open_catalog`. None where every clip was probed when the
    catalogue was built, or has a reason not to be. Raises FileNotFoundError without a catalogue.
    """
    file = catalog_file(catalog)
    waiting = pl.scan_parquet(file).filter(pl.col("usable").is_null() & pl.col("reason").is_null())
    if waiting.select(pl.len()).collect().item() == 0:
        return None
    return run_shard(waiting, file, PROBER, shard or Shard(), jobs, limit_s, progress)


def score_catalog(
    catalog: Path,
    shard: Shard | None = None,
    jobs: int = 1,
    limit_s: float | None = LIMIT_S,
    progress: Progress | None = None,
) -> Finished:
    """Scores the picture of the clips of a shard that are usable, as far as is known.

    Raises FileNotFoundError without a catalogue, or where it was probed in shards and some are not done.
    """
    file = catalog_file(catalog)
    clips = open_catalog(file, scorers=(PROBE,)).filter(pl.col("usable").fill_null(True) & pl.col("reason").is_null())
    return run_shard(clips, file, PICTURE, shard or Shard(), jobs, limit_s, progress)


# --- the probe ----------------------------------------------------------------------------------------------


def probe(item: FileClips) -> list[Row]:
    """The columns of `FileProbe`, a row a clip."""
    return [asdict(found) for found in probe_clips(item.path, [declared_span(clip) for clip in item.clips])]


def declared_span(clip: Row) -> Span:
    """Where a clip that was never probed lies in its file; `first_frame` 0 says that it is the whole of it."""
    return (clip["start_s"] or 0.0, None if clip["first_frame"] == 0 else clip["duration_s"])


def not_probed(item: FileClips, reason: str) -> list[Row]:
    """The rows of a file that took its process down."""
    size = item.path.stat().st_size if item.path.is_file() else 0
    return [asdict(unreadable(size, None, f"cannot be decoded: {reason}"))] * len(item.clips)


PROBER = Scorer(
    name=PROBE,
    version=1,
    needs=("start_s", "duration_s", "first_frame"),
    schema={
        "duration_s": pl.Float64(),
        "fps_num": pl.Int64(),
        "fps_den": pl.Int64(),
        "num_frames": pl.Int64(),
        "first_frame": pl.Int64(),
        "width_px": pl.Int64(),
        "height_px": pl.Int64(),
        "rotation_deg": pl.Int64(),
        "codec": pl.String(),
        "gop_frames": pl.Float64(),
        "bytes": pl.Int64(),
        "sha256": pl.String(),
        "decoder": pl.String(),
        "decoder_reason": pl.String(),
        "irregular_fraction": pl.Float64(),
        "black_fraction": pl.Float64(),
        "frozen_fraction": pl.Float64(),
        "mean_luma": pl.Float64(),
        "usable": pl.Boolean(),
        "reason": pl.String(),
    },
    score=probe,
    lost=not_probed,
)


# --- the picture --------------------------------------------------------------------------------------------


def picture(item: FileClips) -> list[Row]:
    """The columns of `PictureScores`, a row a clip; one that cannot be read has a reason and no scores."""
    try:
        with open_video(item.path, item.clips[0]["decoder"] or "auto") as video:
            return [asdict(_scored(video, clip)) for clip in item.clips]
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else None
        return not_scored(item, f"cannot be read: {cause or error}")


def _scored(video: Video, clip: Row) -> PictureScores:
    try:
        fps_num, fps_den, first, count = (clip[key] for key in ("fps_num", "fps_den", "first_frame", "num_frames"))
        if not clip["usable"]:  # never probed: what is declared may be off by frames
            info = video.probe()
            first, end = clip_frames(video, declared_span(clip))
            fps_num, fps_den, count = info.fps_num, info.fps_den, min(end, info.num_frames) - first
        return score_clip(video, first, count, fps_num / fps_den)
    except DecodeError as error:
        return _without(f"{error.decoder} fails at frame {error.frame_index}: {error.cause}")
    except Exception as error:  # foreign code over a file that may be damaged; the other clips of the file go on
        return _without(f"{type(error).__name__}: {first_line(error)}")


def _without(reason: str) -> PictureScores:
    return PictureScores(**{**asdict(NOT_SCORED), "picture_reason": reason})


def not_scored(item: FileClips, reason: str) -> list[Row]:
    """The rows of a file that took its process down."""
    return [asdict(_without(reason))] * len(item.clips)


PICTURE = Scorer(
    name="picture",
    version=2,
    needs=("start_s", "duration_s", "first_frame", "num_frames", "fps_num", "fps_den", "decoder", "usable", "sha256"),
    schema={
        "underexposed_fraction": pl.Float64(),
        "overexposed_fraction": pl.Float64(),
        "sharpness": pl.Float64(),
        "camera_motion_per_s": pl.Float64(),
        "residual_motion_per_s": pl.Float64(),
        "idle_fraction": pl.Float64(),
        "longest_idle_s": pl.Float64(),
        "num_cuts": pl.Int64(),
        "cut_times_s": pl.List(pl.Float64()),
        "frame_hashes": pl.List(pl.UInt64()),
        "clip_hash": pl.UInt64(),
        "picture_reason": pl.String(),
    },
    score=picture,
    lost=not_scored,
)
