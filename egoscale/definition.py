"""Definitions are TOML files: read with one level of `base = "..."`, changed by `--set`, and written back."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_WORD = re.compile(r"[A-Za-z_./~][\w./~+-]*")


class RecipeError(ValueError):
    """A definition that cannot be used: the text names file, key, value and what is allowed."""


def load_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file and merge it over its `base`, a file named relative to it. A base has no base."""
    data = _parsed(Path(path))
    if "base" not in data:
        return data
    base = data.pop("base")
    if not isinstance(base, str):
        raise RecipeError(f'{path}: key `base` = {base!r}: must name one TOML file, as in base = "small.toml"')
    base_path = Path(path).parent / base
    if not base_path.is_file():
        raise FileNotFoundError(f"{path}: key `base` = {base!r}: there is no file {base_path}")
    base_data = _parsed(base_path)
    if "base" in base_data:
        raise RecipeError(
            f"{path}: its base {base_path} has a base itself ({base_data['base']!r}); one level only: "
            "merge the two bases, or name the inner one here and repeat what the outer one changes"
        )
    table: dict[str, Any] = merged(base_data, data)
    return table


def assigned(assignment: str) -> dict[str, Any]:
    """`a.b=3` as nested tables. A bare word is taken as a string, so that a shell needs no second quotes."""
    key, equals, value = (part.strip() for part in assignment.partition("="))
    if equals and key and "\n" not in assignment:
        bare = [f"{key} = {json.dumps(value)}"] if _BARE_WORD.fullmatch(value) else []
        for text in (assignment, *bare):
            try:
                return tomllib.loads(text)
            except tomllib.TOMLDecodeError:
                continue
    raise RecipeError(f"--set {assignment}: write table.key=value, where value is TOML: 3, 0.5, true, [1, 2] or a word")


def merged(under: Any, over: Any) -> Any:
    """Tables are merged key by key; all else is replaced. `--set sources.0.path=...` reaches into a list."""
    if isinstance(under, dict) and isinstance(over, dict):
        return under | {k: merged(under[k], v) if k in under else v for k, v in over.items()}
    if isinstance(under, list) and isinstance(over, dict) and set(over) <= set(map(str, range(len(under)))):
        return [merged(item, over[str(i)]) if str(i) in over else item for i, item in enumerate(under)]
    return over


def to_toml(data: dict[str, Any]) -> str:
    """Write plain data (str, int, float, bool, lists, tables) as TOML; tables in lists are written inline."""
    lines: list[str] = []

    def table(content: dict[str, Any], prefix: str) -> None:
        lines.extend(f"{_key(k)} = {_value(v)}" for k, v in content.items() if not isinstance(v, dict))
        for name, inner in content.items():
            if isinstance(inner, dict):
                dotted = f"{prefix}{_key(name)}"
                lines.extend(([""] if lines else []) + [f"[{dotted}]"])
                table(inner, f"{dotted}.")

    table(data, "")
    return "\n".join(lines) + "\n"


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'a folder, not a TOML file' if path.is_dir() else 'no such file'}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not valid TOML: {error}") from None


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML wants DEL escaped, JSON not


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int | float):
        return repr(value)  # inf, nan, 1e-08 and 1e+16 are TOML as they stand
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    raise RecipeError(f"{value!r} ({type(value).__name__}) cannot be written as TOML")
