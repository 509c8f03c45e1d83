"""Latents of clips in memory-mapped Arrow shards, read by window; `latent_writer.py` writes them.

On disk: `shard-000-00000.arrow` (number of the process that wrote it, its count; a frame a row, written through Hugging
Face `datasets`) with `shard-000-00000.json` beside it (its clips in order, bytes, SHA-256); `clips/`, where each clip
lies (`clip_index.py`); and `index.json`, written last, which names them all. A clip never lies in two shards. Nothing
that is held in memory while reading grows with the number of clips.

Legend of shapes: B windows, T frames, N latent tokens of a frame, D numbers of a token.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from egoscale.video.clip_index import BATCH_CLIPS, ClipIndex, made_once
from egoscale.video.clips import frames_of

VERSION = 2
# bfloat16 is unknown to numpy and Arrow: it travels as the uint16 of its bits.
DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
}
MAPPED_SHARDS = 512  # mapped at once; a process may hold some 65,000 maps (vm.max_map_count)


class LatentShards:
    """Latents of many clips, mapped into memory shard by shard when first read: `Windows` of float32 [B, T, N, D].

    May be shared by threads, pickled, and used after a fork.
    """

    def __init__(self, path: Path, index: dict[str, Any], clips: ClipIndex) -> None:
        self.path, self.clips = path, clips
        self.num_tokens: int = index["tokens"]
        self.dim: int = index["dim"]
        self.dtype: str = index["dtype"]
        self._index = index
        self._shards: list[dict[str, Any]] = index["shards"]
        self._columns: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> LatentShards:
        """Opens a finished folder; with `verify` every file is read once and its SHA-256 compared.

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
            if verify and file_sha256(one) != shard["sha256"]:
                raise _damaged(one, "its SHA-256 is not the one in index.json")
        for name, digest in index["clips"].items() if verify else ():
            if file_sha256(path / "clips" / name) != digest:
                raise _damaged(path / "clips" / name, "its SHA-256 is not the one in index.json")
        return cls(path, index, ClipIndex.open(path / "clips"))

    def of_manifest(self, manifest: Path, folder: Path) -> LatentShards:
        """The same latents with the clips of a manifest, in its order and with its frame rates; made on disk in
        `folder` unless it is there. Clips without latents are left out.

        Raises ValueError where none of the manifest's clips has latents.
        """
        clips = made_once(manifest, folder, lambda: self._joined(manifest), file_sha256(self.path / "index.json"))
        if not len(clips):
            raise ValueError(f"{manifest}: {self.path} has latents of none of its clips: encode what it was drawn from")
        return LatentShards(self.path, self._index, clips)

    def _joined(self, manifest: Path) -> Iterator[pl.DataFrame]:
        wanted = pl.scan_parquet(manifest).select("clip_id", "fps_num", "fps_den")
        for batch in wanted.collect_batches(chunk_size=BATCH_CLIPS, maintain_order=True):
            found = self.clips.find(batch["clip_id"].to_list())
            here = found >= 0
            rows = self.clips.rows(found[here])
            places = {name: pl.Series(rows[name]) for name in ("num_frames", "first_frame", "shard")}
            yield batch.filter(pl.Series(here)).with_columns(**places)

    def __reduce__(self) -> tuple[Any, ...]:
        return (LatentShards, (self.path, self._index, self.clips))

    @property
    def clip_ids(self) -> list[str]:
        """In order; all of them in memory."""
        return self.clips.clip_ids()

    def num_frames(self, clip_id: str) -> int:
        """Frames of a clip. Raises ValueError for an unknown one."""
        return int(self.clips.rows(np.array([self.number(clip_id)]))["num_frames"][0])

    def number(self, clip_id: str) -> int:
        """Number of a clip. Raises ValueError for an unknown one."""
        found = int(self.clips.find([clip_id])[0])
        if found < 0:
            raise ValueError(f"{self.path}: no latents of clip {clip_id!r} ({len(self.clips)} clips)")
        return found

    def window(self, clip_id: str, start: int, length: int) -> NDArray[np.float32]:
        """Frames start to start + length of a clip: float32 [length, N, D]. Raises as `windows` does."""
        if length < 1:
            raise ValueError(f"clip {clip_id!r}: there is no window of {length} frames")
        found: NDArray[np.float32] = self.windows([self.number(clip_id)], [start], length)[0]
        return found

    def windows(self, clips: ArrayLike, starts: ArrayLike, length: int, stride: ArrayLike = 1.0) -> NDArray[np.float32]:
        """See `Windows`: float32 [B, length, N, D].

        Raises ValueError for a window that leaves its clip, or a damaged shard.
        """
        return self.frames(clips, frames_of(starts, length, stride))

    def frames(self, clips: ArrayLike, frames_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        """Any frames of clips [B], by their numbers in the clip [B, T]: float32 [B, T, N, D]. Raises as `windows`."""
        which = np.asarray(clips, np.int64).reshape(-1)
        rows = self.clips.rows(which)
        outside = (frames_BT.min(1) < 0) | (frames_BT.max(1) >= rows["num_frames"])
        if outside.any():
            bad = int(np.flatnonzero(outside)[0])
            raise ValueError(
                f"clip {self.clips.clip_id(int(which[bad]))!r} has {rows['num_frames'][bad]} frames: "
                f"there is no window from {frames_BT[bad].min()} to {frames_BT[bad].max()}"
            )
        places = frames_BT + rows["first_frame"][:, None]
        stored = np.empty((*frames_BT.shape, self.num_tokens * self.dim), DTYPES[self.dtype])
        for i, shard in enumerate(rows["shard"].tolist()):
            stored[i] = self._column(shard)[places[i]]
        return to_float32(stored).reshape(*frames_BT.shape, self.num_tokens, self.dim)

    def zeros(self, *shape: int) -> NDArray[np.float32]:
        """float32 [*shape, N, D]."""
        return np.zeros((*shape, self.num_tokens, self.dim), np.float32)

    def _column(self, number: int) -> NDArray[Any]:
        """The numbers of a shard, [rows, N * D], as they lie in the file."""
        with self._lock:
            if number in self._columns:
                self._columns.move_to_end(number)
                return self._columns[number]
        column = self._mapped(number)
        with self._lock:
            self._columns[number] = column
            if len(self._columns) > MAPPED_SHARDS:
                self._columns.popitem(last=False)
        return column

    def _mapped(self, number: int) -> NDArray[Any]:
        import pyarrow as pa  # type: ignore[import-untyped]

        file = self.path / self._shards[number]["file"]
        try:
            with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
                parts = [batch.column("latent").flatten().to_numpy(zero_copy_only=True) for batch in stream]
        except Exception as error:  # Arrow and the operating system each have their own
            raise _damaged(file, str(error).splitlines()[0] if str(error) else repr(error)) from error
        numbers = parts[0] if len(parts) == 1 else np.concatenate(parts)
        rows = self._shards[number]["frames"]
        if numbers.size != rows * self.num_tokens * self.dim:
            raise _damaged(file, f"{numbers.size} numbers for {rows} frames")
        column: NDArray[Any] = numbers.reshape(rows, -1)
        return column


def to_float32(stored: NDArray[Any]) -> NDArray[np.float32]:
    """float16, or bfloat16 as uint16, widened to float32; float32 as it is."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32, copy=False)


def _damaged(file: Path, cause: str) -> ValueError:
    return ValueError(f"{file}: damaged shard: {cause}. Delete index.json and run `encode` again: it is rewritten")


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
