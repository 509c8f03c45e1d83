"""Writes latents of clips to Arrow shards: killed and resumed at will, with the same bytes at the end.

What lies where is told in `latents.py`. Legend of shapes: T frames, N latent tokens of a frame, D numbers of a token.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from egoscale.video.clip_index import BATCH_CLIPS, write_index
from egoscale.video.latents import DTYPES, VERSION, file_sha256, to_float32
from egoscale.video.on_disk import flushed, write_json

SHOWN_WITHIN_S = 120.0  # NFS looks into a folder anew after 60 s at the latest (acdirmax)


class Together(Protocol):
    """Processes that write one folder together, as `egoscale.train.ranks.Ranks` are."""

    @property
    def rank(self) -> int:
        """Number of this one, from 0."""

    @property
    def world_size(self) -> int:
        """How many they are."""

    def gathered(self, value: Any) -> list[Any]:
        """Every one's `value`, in the order of their numbers, once all have come here."""


class Alone:
    """One process."""

    rank, world_size = 0, 1

    def gathered(self, value: Any) -> list[Any]:
        return [value]


ALONE = Alone()


def finished_clips(out: Path, together: Together = ALONE) -> dict[str, int]:
    """{clip_id: num_frames} of the whole shards under `out`: what a killed writer need not encode again.

    A shard whose bytes are not those that were written is deleted, so that its clips are written again. Each process
    reads its share of the shards.
    """
    notes = max(together.gathered(sorted(out.glob("shard-*.json"))), key=len)
    mine = notes[together.rank :: together.world_size]
    found = [one for part in together.gathered([_whole(note) for note in mine]) for one in part]
    finished: dict[str, int] = {}
    for clips in found:
        finished.update(clips)
    return finished


def _whole(note: Path) -> dict[str, int]:
    """Clips of a shard; none, and no shard, where it is damaged."""
    try:
        shard = json.loads(note.read_text(encoding="utf-8"))
        if file_sha256(note.parent / shard["file"]) == shard["sha256"]:
            clips: dict[str, int] = shard["clips"]
            return clips
    except (OSError, ValueError, KeyError):
        pass
    note.with_suffix(".arrow").unlink(missing_ok=True)
    note.unlink(missing_ok=True)
    return {}


def write_latents(
    out: Path,
    frames: Iterable[tuple[str, NDArray[Any]]],
    shard_frames: int,
    finished: dict[str, int] | None = None,
    together: Together = ALONE,
    kept: Callable[[int, int], None] | None = None,
) -> None:
    """Writes (clip_id, latents [T, N, D]) to `out`; float16, bfloat16 as uint16, or float32.

    frames: read once, a clip at a time. Clips that a whole shard holds already are passed over; to spare
        their encoding, leave out `finished_clips(out)`.
    shard_frames: a shard is closed when it holds so many frames.
    finished: what `finished_clips(out)` has just answered, to spare a second reading of every shard.
    together: several processes may write one folder, each with clips of its own; another number of them may go on.
        The first writes the index when all are done.
    kept: told (clips, frames) of each shard that this process has written.

    Raises ValueError for a clip that is empty, comes twice, holds a number that is not finite, or differs
    from the others in N, D or type; and where there is no clip at all. FileNotFoundError where another process's
    shards do not show on this machine.
    """
    if shard_frames < 1:
        raise ValueError(f"shard_frames = {shard_frames}: at least 1")
    out.mkdir(parents=True, exist_ok=True)
    finished = finished_clips(out, together) if finished is None else finished
    if together.rank == 0:
        (out / "index.json").unlink(missing_ok=True)
        for torn in out.glob("*.part"):
            torn.unlink()
    (kind,) = together.gathered(_kind_on_disk(out))[:1]  # after which nothing is deleted any more
    waiting: dict[str, NDArray[Any]] = {}
    held = 0

    def write(kind: dict[str, Any]) -> None:
        _write_shard(out, waiting, kind, together.rank)
        if kept is not None:
            kept(len(waiting), held)

    for clip, latents in frames:
        if clip in finished:
            continue
        if clip in waiting:  # one that comes again later is refused when the index is written
            raise ValueError(f"clip {clip!r} comes twice")
        kind = _check(clip, latents, kind)
        waiting[clip] = latents
        held += len(latents)
        if held >= shard_frames:
            write(kind)
            waiting, held = {}, 0
    if waiting and kind is not None:
        write(kind)
    kinds = [one for one in together.gathered(kind) if one is not None]
    if not kinds:
        raise ValueError(f"{out}: no clip to write")
    if any(one != kinds[0] for one in kinds):
        raise ValueError(f"{out}: the processes wrote latents of different kinds: {kinds}")
    notes = together.gathered([note.name for note in out.glob("shard-*.json")])
    if together.rank == 0:
        _await(out, {name for some in notes for name in some})
        _write_index(out, kinds[0])
    together.gathered(None)
    _await(out, {"index.json"})


def _await(out: Path, names: set[str]) -> None:
    """Until these files show: a network file system may show those of another machine late."""
    end = time.monotonic() + SHOWN_WITHIN_S
    while missing := names.difference(file.name for file in out.iterdir()):
        if time.monotonic() > end:
            raise FileNotFoundError(
                f"{out}: {len(missing)} files that other processes wrote do not show here, as {min(missing)}: is it "
                "the same folder on all machines?"
            )
        time.sleep(0.5)


def _write_index(out: Path, kind: dict[str, Any]) -> None:
    """`clips/` and `index.json` from the notes of the shards."""
    shards: list[dict[str, Any]] = []

    def clips() -> Iterator[pl.DataFrame]:
        held, count = [], 0
        for number, note in enumerate(sorted(out.glob("shard-*.json"))):
            shard = json.loads(note.read_text(encoding="utf-8"))
            frames = np.array(list(shard["clips"].values()), np.int64)
            shards.append({name: shard[name] for name in ("file", "bytes", "sha256")} | {"frames": int(frames.sum())})
            held.append(
                pl.DataFrame(
                    {
                        "clip_id": list(shard["clips"]),
                        "num_frames": frames,
                        "first_frame": np.cumsum(frames) - frames,
                        "shard": np.full(len(frames), number),
                    }
                )
            )
            count += len(frames)
            if count >= BATCH_CLIPS:
                yield pl.concat(held)
                held, count = [], 0
        if held:
            yield pl.concat(held)

    shutil.rmtree(out / "clips", ignore_errors=True)
    write_index(out / "clips", clips(), {})
    files = {file.name: file_sha256(file) for file in sorted((out / "clips").iterdir())}
    write_json(out / "index.json", {"version": VERSION, **kind, "shards": shards, "clips": files})


def _kind_on_disk(out: Path) -> dict[str, Any] | None:
    for note in sorted(out.glob("shard-*.json")):
        shard = json.loads(note.read_text(encoding="utf-8"))
        return {"dtype": shard["dtype"], "tokens": shard["tokens"], "dim": shard["dim"]}
    return None


def _check(clip: str, latents: NDArray[Any], kind: dict[str, Any] | None) -> dict[str, Any]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    if latents.dtype not in names:
        raise ValueError(
            f"clip {clip!r}: latents are {latents.dtype}; float16, bfloat16 as uint16, or float32 is stored"
        )
    if latents.ndim != 3 or not latents.size:
        raise ValueError(f"clip {clip!r}: latents of shape {latents.shape}; [T, N, D] with T > 0 is stored")
    found = {"dtype": names[latents.dtype], "tokens": latents.shape[1], "dim": latents.shape[2]}
    if kind is not None and found != kind:
        raise ValueError(f"clip {clip!r} has latents {found}, the clips before {kind}")
    if not np.isfinite(to_float32(latents)).all():
        raise ValueError(f"clip {clip!r}: latents hold a number that is not finite")
    return found


def _write_shard(out: Path, clips: dict[str, NDArray[Any]], kind: dict[str, Any], rank: int) -> None:
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets.arrow_writer import ArrowWriter

    names = (f"shard-{rank:03d}-{number:05d}" for number in itertools.count())
    path = out / f"{next(name for name in names if not (out / f'{name}.json').exists())}.arrow"
    part = path.with_suffix(".arrow.part")
    numbers = np.concatenate(list(clips.values())).reshape(-1)
    width = kind["tokens"] * kind["dim"]
    value = DTYPES[kind["dtype"]].name
    table = pa.table(
        {
            "clip_id": pa.array([clip for clip, latents in clips.items() for _ in latents], pa.string()),
            "frame": pa.array(np.concatenate([np.arange(len(one)) for one in clips.values()]), pa.int32()),
            "latent": pa.FixedSizeListArray.from_arrays(pa.array(numbers), width),
        }
    )
    features = datasets.Features(
        {
            "clip_id": datasets.Value("string"),
            "frame": datasets.Value("int32"),
            "latent": datasets.Sequence(datasets.Value(value), length=width),
        }
    )
    # One record batch a shard: a window is then one slice of the mapped file, with nothing to join.
    with ArrowWriter(path=str(part), features=features, writer_batch_size=table.num_rows) as writer:
        writer.write_table(table, writer_batch_size=table.num_rows)
        writer.finalize()
    with part.open("rb+") as file:
        flushed(file)
    part.rename(path)
    shard = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        **kind,
        "clips": {clip: len(latents) for clip, latents in clips.items()},
    }
    write_json(path.with_suffix(".json"), shard)
