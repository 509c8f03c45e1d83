"""The clips of a manifest on disk, by number: opened at once and in the same memory, however many there are.

A folder of four files, made once: `rows.npy` (numbers of a clip, 32 bytes), `names.arrow` (its texts), `lookup.npy`
(hash of the clip id -> row) and `index.json`, written last. Built from a manifest, the folder is named by the
manifest's SHA-256, so that another manifest is never mistaken for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b, file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from egoscale.video.on_disk import Numbers, NumbersWriter, Texts, write_json, write_texts

Progress = Callable[[int, int, str], None]

VERSION = 1
ROW = np.dtype(
    {
        "names": ["num_frames", "first_frame", "fps_num", "fps_den", "shard"],
        "formats": ["<i8", "<i8", "<i4", "<i4", "<i4"],
        "itemsize": 32,
    }
)
LOOKUP = np.dtype([("hash", "<u8"), ("row", "<i8")])
TEXTS = ("clip_id", "path", "decoder")
BATCH_CLIPS = 65_536


class ClipIndex:
    """Clips 0 to len - 1. May be pickled and used after a fork.

    Of a clip: `num_frames`; `first_frame`, the number of its first one in its file (of latents: in its shard);
    `fps_num / fps_den` (0/1 where unknown); `shard` (of latents).
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.facts = facts
        self.total_frames: int = facts["total_frames"]
        self.total_s: float = facts["total_s"]
        self.longest_frames: int = facts["longest_frames"]
        self.fps_hz: float | None = facts["fps_hz"]  # of all clips, where they share one
        self.mixed: bool = facts["mixed"]  # whether clips differ in frame rate
        self._rows = Numbers(folder / "rows.npy")
        self._names = Texts(folder / "names.arrow")
        self._lookup = Numbers(folder / "lookup.npy")
        self._table: NDArray[Any] | None = None  # the same, mapped for a search by id
        if not len(self._rows) == len(self._names) == len(self._lookup) == facts["num_clips"]:
            raise ValueError(f"{folder}: its files differ in length: delete the folder, it is made again")

    @classmethod
    def open(cls, folder: Path) -> ClipIndex:
        """Raises FileNotFoundError where there is none, ValueError for a damaged one or another version."""
        try:
            facts = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{folder / 'index.json'}: damaged ({error}): delete the folder") from error
        if facts.get("version") != VERSION:
            raise ValueError(f"{folder}: version {facts.get('version')}, and {VERSION} is read: delete the folder")
        return cls(folder, facts)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, clips: NDArray[np.int64]) -> NDArray[Any]:
        """Numbers of these clips, fields of `ROW`."""
        return self._rows.at(clips)

    def chunks(self, clips: int = 1_000_000) -> Iterator[NDArray[Any]]:
        """Numbers of all clips in order, so many at a time."""
        for first in range(0, len(self), clips):
            yield self._rows.span(first, clips)

    def texts(self, clip: int) -> dict[str, str | None]:
        """`clip_id` and, of files, `path` and `decoder`."""
        return self._names.row(clip)

    def clip_id(self, clip: int) -> str:
        return str(self._names.row(clip)["clip_id"])

    def clip_ids(self) -> list[str]:
        """All of them, in memory."""
        return list(self._names.column("clip_id"))

    def find(self, clip_ids: Sequence[str]) -> NDArray[np.int64]:
        """Numbers of clips by id; -1 for an unknown one."""
        if self._table is None:
            self._table = self._lookup.mapped()
        table = self._table
        hashes = hashed(clip_ids)
        places = np.searchsorted(table["hash"], hashes)
        found = np.full(len(clip_ids), -1, np.int64)
        for i, (clip, key, first) in enumerate(zip(clip_ids, hashes, places.tolist(), strict=True)):
            place = first
            while place < len(table) and table["hash"][place] == key:  # two ids may share a hash
                row = int(table["row"][place])
                if self.clip_id(row) == clip:
                    found[i] = row
                    break
                place += 1
        return found

    def seconds(self, clips: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds that a frame of these clips lasts; infinite where the frame rate is unknown."""
        if not self.mixed:
            return np.full(len(clips), 1 / self.fps_hz if self.fps_hz else np.inf)
        return frame_seconds(self.rows(clips))

    def __reduce__(self) -> tuple[Any, ...]:
        return (ClipIndex.open, (self.folder,))


def frame_seconds(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Seconds that a frame lasts; infinite where the frame rate is unknown."""
    unknown = np.full(len(rows), np.inf)
    seconds: NDArray[np.float64] = np.divide(rows["fps_den"], rows["fps_num"], out=unknown, where=rows["fps_num"] > 0)
    return seconds


def hashed(clip_ids: Sequence[str]) -> NDArray[np.uint64]:
    """A hash of each id that no version of any library changes (the first 8 bytes of BLAKE2b)."""
    digests = b"".join(blake2b(clip.encode(), digest_size=8).digest() for clip in clip_ids)
    return np.frombuffer(digests, "<u8")


def index_clips(manifest: Path, folder: Path, progress: Progress | None = None) -> ClipIndex:
    """The clips of a manifest (parquet, catalogue columns), in its order; made in `folder` unless it is there.

    Raises:
        FileNotFoundError: no such manifest.
        ValueError: an empty manifest, one without a needed column, or a clip that comes twice.
    """
    return made_once(manifest, folder, lambda: _clips_of(manifest, progress))


def made_once(
    manifest: Path, folder: Path, clips: Callable[[], Iterable[pl.DataFrame]], joined_with: str = ""
) -> ClipIndex:
    """The index of `clips` below `folder`, which follow from a manifest (and the content named `joined_with`).

    An index of the same file (path, bytes, time of change) is opened at once; else the file's SHA-256 decides.
    """
    stat = manifest.stat()
    known = {"manifest": str(manifest.absolute()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    known["joined_with"] = joined_with
    for note in sorted(folder.glob("[!.]*/index.json")):  # not what another rank is about to rename
        with contextlib.suppress(ValueError, OSError):
            if json.loads(note.read_text(encoding="utf-8")).get("source") == known:
                return ClipIndex.open(note.parent)
    with manifest.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    out = folder / sha256(f"{digest}/{joined_with}".encode()).hexdigest()[:16]
    if not (out / "index.json").is_file():
        write_index(out, clips(), known)
    return ClipIndex.open(out)


def _clips_of(manifest: Path, progress: Progress | None) -> Iterator[pl.DataFrame]:
    rows = pl.scan_parquet(manifest)
    names = rows.collect_schema().names()
    missing = [name for name in ("clip_id", "path", "num_frames", "fps_num", "fps_den") if name not in names]
    if missing:
        raise ValueError(f"{manifest}: has no column {', '.join(missing)}; a manifest of `subset` has them")
    total = int(rows.select(pl.len()).collect().item())
    if not total:
        raise ValueError(f"{manifest}: the manifest is empty: no clip to read")
    wanted = [name for name in (*TEXTS, *(ROW.names or ())) if name in names]
    done = 0
    for batch in rows.select(wanted).collect_batches(chunk_size=BATCH_CLIPS, maintain_order=True):
        yield batch
        done += batch.height
        if progress is not None:
            progress(done, total, "clips")


def write_index(folder: Path, clips: Iterable[pl.DataFrame], source: dict[str, Any]) -> None:
    """Writes an index of clips given as data frames (columns `clip_id` and those of `ROW` and `TEXTS` they have).

    Written beside its place and renamed, so that it is whole or absent, also where several processes write it.
    Raises ValueError for a clip that comes twice.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    part = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}")
    part.mkdir()
    try:
        facts = _write_files(part, clips)
        write_json(part / "index.json", {"version": VERSION, **facts, "source": source})
        if folder.exists() and not (folder / "index.json").is_file():
            shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # another process was quicker: its folder is the same
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Removes what killed processes of this machine left beside a folder."""
    for part in folder.parent.glob(f".{folder.name}.{socket.gethostname()}.*"):
        pid = part.name.rsplit(".", 1)[1]
        if pid == str(os.getpid()) or not Path(f"/proc/{pid}").exists():
            shutil.rmtree(part, ignore_errors=True)


def _write_files(part: Path, clips: Iterable[pl.DataFrame]) -> dict[str, Any]:
    hashes: list[NDArray[np.uint64]] = []
    rates: set[tuple[int, int]] = set()
    total_frames, total_s, longest = 0, 0.0, 0

    def texts() -> Iterator[pl.DataFrame]:
        nonlocal total_frames, total_s, longest
        for frame in clips:
            rows = _rows(frame)
            numbers.add(rows)
            hashes.append(hashed(frame["clip_id"].to_list()))
            if len(rates) < 2:
                rates.update(zip(rows["fps_num"].tolist(), rows["fps_den"].tolist(), strict=True))
            total_frames += int(rows["num_frames"].sum())
            seconds = frame_seconds(rows)
            total_s += float((rows["num_frames"] * np.where(np.isfinite(seconds), seconds, 0)).sum())
            longest = max(longest, int(rows["num_frames"].max(initial=0)))
            yield frame.select(pl.col(name).cast(pl.String) for name in TEXTS if name in frame.columns)

    with NumbersWriter(part / "rows.npy", ROW) as numbers:
        write_texts(part / "names.arrow", texts())
    found = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    order = np.argsort(found, kind="stable")
    lookup = np.zeros(len(found), LOOKUP)
    lookup["hash"], lookup["row"] = found[order], order
    with NumbersWriter(part / "lookup.npy", LOOKUP) as sorted_hashes:
        sorted_hashes.add(lookup)
    _refuse_twice(Texts(part / "names.arrow"), lookup)
    num, den = next(iter(rates)) if len(rates) == 1 else (0, 1)
    return {
        "num_clips": len(found),
        "total_frames": total_frames,
        "total_s": total_s,
        "longest_frames": longest,
        "fps_hz": num / den if num > 0 else None,
        "mixed": len(rates) > 1,
    }


def _rows(frame: pl.DataFrame) -> NDArray[Any]:
    rows = np.zeros(frame.height, ROW)
    for name in ROW.names or ():
        missing = 1 if name == "fps_den" else 0
        rows[name] = frame[name].fill_null(missing).to_numpy() if name in frame.columns else missing
    return rows


def _refuse_twice(names: Texts, lookup: NDArray[Any]) -> None:
    for place in np.flatnonzero(lookup["hash"][1:] == lookup["hash"][:-1]).tolist():
        first, second = (names.row(int(row))["clip_id"] for row in lookup["row"][place : place + 2])
        if first == second:
            raise ValueError(f"clip {first!r} comes twice: a clip is one row of a manifest")
