"""Where a definition lies: a path given, the working directory, the copy in the wheel (or the checkout)."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["recipes", "tokenizers", "slurm", "analysis"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def share() -> Path:
    """The folder that holds the shipped definitions: `egoscale/_share` in a wheel, the root of a checkout."""
    package = Path(__file__).resolve().parent
    for root in (package / "_share", package.parent):
        if (root / "recipes").is_dir():
            return root
    raise FileNotFoundError(
        f"{package}: the shipped definitions are neither in {package / '_share'} nor beside the package; "
        "install egoscale from its wheel or run it from a checkout"
    )


def find(kind: Kind, name: str | Path) -> Path:
    """The file that `name` means: a path, or a name such as "sweeps/tabletop" below a folder `kind`.

    A study may be named by its folder ("tabletop": its `study.toml`). Looks at the path given, then below
    `kind` in the working directory, then in the shipped copy. FileNotFoundError lists near names.
    """
    wanted = Path(name)
    roots = [Path(), Path(kind), *_shipped(kind)]
    for root in roots:
        for candidate in _candidates(root / wanted):
            if candidate.is_file():
                return candidate
    everything = names(kind)
    near = difflib.get_close_matches(str(name), everything, n=3, cutoff=0.3) or everything[:5]
    looked = ", ".join(str(root / wanted) for root in roots)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are no {kind} here"
    raise FileNotFoundError(f"{name}: no such file among {kind} (looked at {looked}); {hint}")


def names(kind: Kind) -> list[str]:
    """Names that `find` knows below the working directory and the shipped copy, sorted, each once."""
    found = set()
    for root in (Path(kind), *_shipped(kind)):
        found |= {path.relative_to(root).as_posix() for path in root.rglob("*.toml")}
    return sorted(found)


def copy_share(destination: Path) -> list[Path]:
    """Copy the four folders of definitions to `destination` for a user to edit; nothing there is overwritten.

    Returns the files written. `egoscale-version` beside them says which version they came from.
    """
    from egoscale import __version__

    root = share()
    written = []
    for source in sorted(path for kind in KINDS for path in (root / kind).rglob("*") if path.is_file()):
        inside = source.relative_to(root)
        if inside.parts[0] == "analysis" and "out" in inside.parts:  # what a study made is not its definition
            continue
        target = destination / inside
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            written.append(target)
    if written:
        (destination / "egoscale-version").write_text(f"{__version__}\n")
    return written


def _shipped(kind: Kind) -> list[Path]:
    try:
        return [share() / kind]
    except FileNotFoundError:
        return []


def _candidates(path: Path) -> tuple[Path, ...]:
    return path, path.with_name(f"{path.name}.toml"), path / "study.toml"
