"""Columns that stay on disk: a lookup reads the bytes it needs, and ten million clips cost a process no memory.

Numbers are read at their place (`pread`), not through a map: pages of a map that were touched count as memory of the
process until the kernel takes them back (measured: 400 MB after 20,000 random lookups in ten million clips), bytes
read at a place do not. Texts lie in a memory-mapped Arrow file, whose pages are given back every so often.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

RELEASE_AFTER = 16  # lookups of texts between two releases of their pages: some 6 MB at most are held


class Numbers:
    """A one-dimensional array in an .npy file. May be pickled and used after a fork."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError, or ValueError for a file that is no such array or is cut short."""
        self.path = path
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, self.dtype = np.lib.format.read_array_header_1_0(file)
            self._offset = file.tell()
            self._fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._fd)
        (self._length,) = shape
        held = os.fstat(self._fd).st_size - self._offset
        if held != self._length * self.dtype.itemsize:
            raise ValueError(f"{path}: {held} bytes of numbers, {self._length * self.dtype.itemsize} were written")

    def __len__(self) -> int:
        return int(self._length)

    def span(self, first: int, count: int) -> NDArray[Any]:
        """`count` entries from `first` on; fewer where the array ends."""
        size = self.dtype.itemsize
        return np.frombuffer(os.pread(self._fd, size * count, self._offset + size * first), self.dtype)

    def at(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """The entries at these places, one read each."""
        size = self.dtype.itemsize
        parts = [os.pread(self._fd, size, self._offset + size * place) for place in places.tolist()]
        return np.frombuffer(b"".join(parts), self.dtype)

    def mapped(self) -> NDArray[Any]:
        """The whole, memory-mapped: for one sweep over all of it."""
        return np.load(self.path, mmap_mode="r")  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Any, ...]:
        return (Numbers, (self.path,))


class NumbersWriter:
    """Writes an .npy file whose length shows only at its end. A context manager; nothing is left of a failed one."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype, self.length = path, dtype, 0
        self._file = path.open("wb")
        self._header()

    def add(self, entries: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(entries, self.dtype).tobytes())
        self.length += len(entries)

    def _header(self) -> None:
        """numpy pads its header so that a longer shape fits in the same bytes."""
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> NumbersWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._file.seek(0)
            self._header()
            flushed(self._file)
        self._file.close()
        if kind is not None:
            self.path.unlink(missing_ok=True)


class Texts:
    """Text columns of an Arrow file, by row; memory-mapped, with no memory of its own that grows."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa  # type: ignore[import-untyped]

        self.path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            reader = pa.ipc.open_file(pa.py_buffer(self._map))
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except pa.ArrowException as error:
            raise ValueError(f"{path}: not a whole Arrow file ({str(error).splitlines()[0]})") from error
        self._map.madvise(mmap.MADV_DONTNEED)
        self.columns: list[str] = reader.schema.names
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])
        self._lookups = 0

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def row(self, number: int) -> dict[str, str | None]:
        """All columns of a row."""
        part = int(np.searchsorted(self._ends, number, side="right"))
        batch = self._batches[part]
        place = number - int(self._ends[part]) + batch.num_rows
        found = {name: batch.column(at)[place].as_py() for at, name in enumerate(self.columns)}
        self._lookups += 1
        if self._lookups % RELEASE_AFTER == 0:
            self._map.madvise(mmap.MADV_DONTNEED)
        return found

    def column(self, name: str) -> pl.Series:
        """A whole column, in memory."""
        import pyarrow as pa

        whole = pl.from_arrow(pa.Table.from_batches(self._batches).select([name]))
        assert isinstance(whole, pl.DataFrame)
        return whole[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return (Texts, (self.path,))


def write_texts(path: Path, frames: Iterable[pl.DataFrame]) -> None:
    """Writes data frames of equal text columns to one Arrow file, a record batch each."""
    import pyarrow as pa

    writer = None
    with path.open("wb") as file:
        for frame in frames:
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            writer = pa.ipc.new_file(file, table.schema) if writer is None else writer
            writer.write_table(table)
        if writer is not None:
            writer.close()
        flushed(file)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON under a temporary name, flushes it to the disk and renames it."""
    part = apart(path)
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        flushed(file)
    part.rename(path)


def apart(path: Path) -> Path:
    """A name beside `path` to write it under, which no other process of any machine uses."""
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.part")


def flushed(file: Any) -> None:
    """Sees an open file's bytes to the disk."""
    file.flush()
    os.fsync(file.fileno())
