"""Latents of clips in memory-mapped Arrow shards: written once, killed and resumed at will, read by window.

On disk: `shard-00000.arrow` (a frame a row, written through Hugging Face `datasets`) with `shard-00000.json`
beside it (its clips in order, bytes, SHA-256), and `index.json`, written last, which gathers them. A clip
never lies in two shards.

Legend of shapes: T frames, N latent tokens of a frame, D numbers of a token.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1
# bfloat16 is unknown to numpy and Arrow: it travels as the uint16 of its bits.
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(np.uint16)}


def finished_clips(out: Path) -> dict[str, int]:
    """{clip_id: num_frames} of the whole shards under `out`: what a killed writer need not encode again.

    A shard whose bytes are not those that were written is deleted, so that its clips are written again.
    """
    finished: dict[str, int] = {}
    for note in sorted(out.glob("shard-*.json")):
        try:
            shard = json.loads(note.read_text(encoding="utf-8"))
            whole = _sha256(out / shard["file"]) == shard["sha256"]
        except (OSError, ValueError, KeyError):
            whole = False
        if whole:
            finished.update(shard["clips"])
        else:
            note.with_suffix(".arrow").unlink(missing_ok=True)
            note.unlink()
    return finished


def write_latents(out: Path, frames: Iterable[tuple[str, NDArray[Any]]], shard_frames: int) -> None:
    """Writes (clip_id, latents [T, N, D]) to `out`; float16, or bfloat16 as uint16.

    frames: read once, a clip at a time. Clips that a whole shard holds already are passed over; to spare
        their encoding, leave out `finished_clips(out)`.
    shard_frames: a shard is closed when it holds so many frames.

    Raises ValueError for a clip that is empty, comes twice, holds a number that is not finite, or differs
    from the others in N, D or type; and where there is no clip at all.
    """
    if shard_frames < 1:
        raise ValueError(f"shard_frames = {shard_frames}: at least 1")
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.json").unlink(missing_ok=True)
    finished = finished_clips(out)
    kind = _kind_on_disk(out)
    waiting: dict[str, NDArray[Any]] = {}
    held, seen = 0, set()
    for clip, latents in frames:
        if clip in seen:
            raise ValueError(f"clip {clip!r} comes twice")
        seen.add(clip)
        if clip in finished:
            continue
        kind = _check(clip, latents, kind)
        waiting[clip] = latents
        held += len(latents)
        if held >= shard_frames:
            _write_shard(out, waiting, kind)
            waiting, held = {}, 0
    if waiting and kind is not None:
        _write_shard(out, waiting, kind)
    shards = [json.loads(note.read_text(encoding="utf-8")) for note in sorted(out.glob("shard-*.json"))]
    if not shards or kind is None:
        raise ValueError(f"{out}: no clip to write")
    _write_json(out / "index.json", {"version": VERSION, **kind, "shards": shards})


def _kind_on_disk(out: Path) -> dict[str, Any] | None:
    for note in sorted(out.glob("shard-*.json")):
        shard = json.loads(note.read_text(encoding="utf-8"))
        return {"dtype": shard["dtype"], "tokens": shard["tokens"], "dim": shard["dim"]}
    return None


def _check(clip: str, latents: NDArray[Any], kind: dict[str, Any] | None) -> dict[str, Any]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    if latents.dtype not in names:
        raise ValueError(f"clip {clip!r}: latents are {latents.dtype}; float16, or bfloat16 as uint16, is stored")
    if latents.ndim != 3 or not latents.size:
        raise ValueError(f"clip {clip!r}: latents of shape {latents.shape}; [T, N, D] with T > 0 is stored")
    found = {"dtype": names[latents.dtype], "tokens": latents.shape[1], "dim": latents.shape[2]}
    if kind is not None and found != kind:
        raise ValueError(f"clip {clip!r} has latents {found}, the clips before {kind}")
    if not np.isfinite(to_float32(latents)).all():
        raise ValueError(f"clip {clip!r}: latents hold a number that is not finite")
    return found


def _write_shard(out: Path, clips: dict[str, NDArray[Any]], kind: dict[str, Any]) -> None:
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets.arrow_writer import ArrowWriter

    number = next(i for i in range(10**5) if not (out / f"shard-{i:05d}.json").exists())
    path = out / f"shard-{number:05d}.arrow"
    part = path.with_suffix(".arrow.part")
    numbers = np.concatenate(list(clips.values())).reshape(-1)
    width = kind["tokens"] * kind["dim"]
    value = "float16" if kind["dtype"] == "float16" else "uint16"
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
    part.rename(path)
    shard = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": _sha256(path),
        **kind,
        "clips": {clip: len(latents) for clip, latents in clips.items()},
    }
    _write_json(path.with_suffix(".json"), shard)


class LatentShards:
    """Latents of many clips, mapped into memory shard by shard when first read. May be pickled."""

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        self.path = path
        self.num_tokens: int = index["tokens"]
        self.dim: int = index["dim"]
        self.dtype: str = index["dtype"]
        self._shards: list[dict[str, Any]] = index["shards"]
        self._columns: dict[int, NDArray[Any]] = {}
        self._places: dict[str, tuple[int, int, int]] = {}  # shard, first row, frames
        for number, shard in enumerate(self._shards):
            row = 0
            for clip, frames in shard["clips"].items():
                self._places[clip] = (number, row, frames)
                row += frames

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> LatentShards:
        """Opens a finished folder; with `verify` every shard is read once and its SHA-256 compared.

        Raises FileNotFoundError where index.json or a shard is missing, ValueError for a damaged shard (the
        wrong number of bytes, or, with `verify`, the wrong ones).
        """
        path = Path(path)
        file = path / "index.json"
        if not file.is_file():
            raise FileNotFoundError(f"{file}: not there; the latents were never finished: run `encode` again")
        try:
            index = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: damaged ({error}): delete it and run `encode` again") from error
        if index.get("version") != VERSION:
            raise ValueError(f"{file}: version {index.get('version')}, and {VERSION} is read: encode again")
        for shard in index["shards"]:
            one = path / shard["file"]
            if not one.is_file():
                raise FileNotFoundError(f"{one}: a shard is missing: delete index.json and run `encode` again")
            size = one.stat().st_size
            if size != shard["bytes"]:
                raise _damaged(one, f"{size} bytes, and {shard['bytes']} were written")
            if verify and _sha256(one) != shard["sha256"]:
                raise _damaged(one, "its SHA-256 is not the one in index.json")
        return cls(path, index)

    def __reduce__(self) -> tuple[Any, ...]:
        return (LatentShards.open, (self.path,))

    @property
    def clip_ids(self) -> list[str]:
        """In the order of writing."""
        return list(self._places)

    def num_frames(self, clip_id: str) -> int:
        """Frames of a clip. Raises ValueError for an unknown one."""
        return self._place(clip_id)[2]

    def window(self, clip_id: str, start: int, length: int) -> NDArray[np.float32]:
        """Frames start to start + length of a clip: float32 [length, N, D].

        Raises ValueError for an unknown clip, a window that leaves it, or a damaged shard.
        """
        shard, row, frames = self._place(clip_id)
        if length < 1 or start < 0 or start + length > frames:
            raise ValueError(f"clip {clip_id!r} has {frames} frames: there is no window of {length} from {start} on")
        stored = self._column(shard)[row + start : row + start + length]
        return to_float32(stored).reshape(length, self.num_tokens, self.dim)

    def _place(self, clip_id: str) -> tuple[int, int, int]:
        try:
            return self._places[clip_id]
        except KeyError:
            raise ValueError(f"{self.path}: no latents of clip {clip_id!r} ({len(self._places)} clips)") from None

    def _column(self, number: int) -> NDArray[Any]:
        """The numbers of a shard, [rows, N * D], as they lie in the file."""
        if number not in self._columns:
            import datasets

            file = self.path / self._shards[number]["file"]
            try:
                column = datasets.Dataset.from_file(str(file)).data.column("latent")
                parts = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in column.chunks]
            except Exception as error:  # Arrow, OS and datasets each have their own
                raise _damaged(file, str(error).splitlines()[0] if str(error) else repr(error)) from error
            numbers = parts[0] if len(parts) == 1 else np.concatenate(parts)
            rows = sum(self._shards[number]["clips"].values())
            if numbers.size != rows * self.num_tokens * self.dim:
                raise _damaged(file, f"{numbers.size} numbers for {rows} frames")
            self._columns[number] = numbers.reshape(rows, -1)
        return self._columns[number]


def to_float32(stored: NDArray[Any]) -> NDArray[np.float32]:
    """float16, or bfloat16 as uint16, widened to float32."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def _damaged(file: Path, cause: str) -> ValueError:
    return ValueError(f"{file}: damaged shard: {cause}. Delete index.json and run `encode` again: it is rewritten")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(path.suffix + ".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
