"""One file a data set: where its videos lie and what its own metadata says of each.

A reader is a module with `read(root, source) -> pl.LazyFrame`, whose columns are those of METADATA_SCHEMA that it
knows; `finds(root) -> str | None`, the name of what tells its layout; where pieces of videos are described,
`segments(root, source)`, a clip a piece in place of a clip a video; and, where a table may be misread,
`notes(root) -> list[str]`, what of it is not read.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

# Data sets, whose layout can be told; then layouts that several share; then any folder.
DATA_SETS = (
    "takes",
    "aria",
    "captaincook4d",
    "cerd",
    "ego4d",
    "ego_exo4d",
    "egocentric10k",
    "egodex",
    "egoexolearn",
    "egovid",
    "epic_kitchens",
    "hd_epic",
    "hot3d",
    "lerobot",
    "nymeria",
    "openego",
    "something_something",
)
LAYOUTS = ("webdataset", "table")
READERS = (*DATA_SETS, *LAYOUTS, "folder")


def reader(name: str) -> Any:
    """The module of a reader. Raises ValueError for a name that is none."""
    if name not in READERS:
        raise ValueError(f"reader {name!r}: say auto, {', '.join(READERS[:-1])} or {READERS[-1]}")
    return importlib.import_module(f"{__name__}.{name}")


def notes(name: str, root: Path) -> list[str]:
    """What a reader finds in a folder and does not read, a line each."""
    module = reader(name)
    return module.notes(root) if hasattr(module, "notes") else []


def choose(root: Path) -> tuple[str, str]:
    """The reader that fits a folder, and what speaks for it.

    Raises ValueError where several data sets, or several layouts, are in it: which one counts is not ours to say.
    """
    for names in (DATA_SETS, LAYOUTS):
        found = {name: what for name in names if (what := reader(name).finds(root)) is not None}
        # HOT3D and Nymeria record with Aria glasses: their VRS files are their own.
        if len(found) > 1 and "aria" in found:
            del found["aria"]
        if len(found) > 1:
            several = ", ".join(f"{name} ({what})" for name, what in found.items())
            raise ValueError(f"{root}: fits several readers: {several}; name the one that counts with `reader`")
        for name, what in found.items():
            return name, what
    return "folder", "no table or layout of a known data set"
