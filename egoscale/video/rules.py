"""Rules of a selection: what each asks of a clip, in the order in which they are applied."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from egoscale.recipe import ColumnSpec, LimitSpec, SelectRecipe

USABLE, PROBED = "usable", "probed"
EXACT, NEAR = "drop_exact_duplicates", "drop_near_duplicates"
MOST_RULES = 60  # what a clip breaks is written in the bits of one number


@dataclass(frozen=True)
class Rule:
    """`broken`: whether a clip breaks it (null: no). `score`: the column it looks at, where that may be unknown."""

    name: str
    broken: pl.Expr
    score: str | None = None


def not_usable() -> pl.Expr:
    """Clips that do not decode, or of which a reader knows without looking that they cannot be used."""
    return (~pl.col("usable")).fill_null(pl.col("reason").is_not_null())


def measured(column: str) -> pl.Expr:
    """The numbers of a column; null where nobody measured, or NaN came of it, which is beyond no limit."""
    return pl.col(column).cast(pl.Float64).fill_nan(None)


def rules_of(recipe: SelectRecipe, columns: Mapping[str, pl.DataType]) -> list[Rule]:
    """The rules of a recipe for a catalogue with these columns, but for duplicates, which are found among clips.

    `usable`: the clip decodes. `probed`: somebody has looked, unless the recipe trusts metadata; a clip whose length
    nobody knows is lost here too. Then durations, rates and sizes, black and frozen pictures, the scores, and last
    the columns made elsewhere.

    Raises ValueError for a limit on a column that is not there, two rules of one name, or too many rules.
    """
    unprobed = pl.col("usable").is_null()
    unknown = pl.lit(True) if not recipe.trust_metadata else pl.col("duration_s").is_null()
    rules = [
        Rule(USABLE, not_usable()),
        Rule(PROBED, unprobed & pl.col("reason").is_null() & unknown),
        Rule("min_duration_s", pl.col("duration_s") < recipe.min_duration_s),
        *_limits("duration_s", LimitSpec(max=recipe.max_duration_s) if recipe.max_duration_s else None),
        Rule("min_fps_hz", pl.col("fps_num") < recipe.min_fps_hz * pl.col("fps_den"), "fps_num"),
        Rule("min_size_px", pl.min_horizontal("width_px", "height_px") < recipe.min_size_px, "width_px"),
        *_limits("black_fraction", LimitSpec(max=recipe.max_black_fraction)),
        *_limits("frozen_fraction", LimitSpec(max=recipe.max_frozen_fraction)),
    ]
    for column in type(recipe.scores).model_fields:
        if (limit := getattr(recipe.scores, column)) is not None:
            _known(column, columns, f"scores.{column}")
            rules += _limits(column, limit)
    for number, spec in enumerate(recipe.columns):
        _known(spec.column, columns, f"columns.{number}.column")
        rules += _limits(spec.column, spec)
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two rules are called {name!r}: limit a column in one place")
    if len(rules) > MOST_RULES:
        raise ValueError(
            f"{len(rules)} rules: at most {MOST_RULES} are counted apart; merge columns made elsewhere into one"
        )
    return rules


def with_columns_of(catalog: pl.LazyFrame, specs: Sequence[ColumnSpec]) -> pl.LazyFrame:
    """The catalogue with the columns made elsewhere that a recipe limits. Raises as `scores.join_columns`."""
    from egoscale.video.scores import join_columns

    for file in dict.fromkeys(spec.file for spec in specs if spec.file):
        before = catalog.collect_schema().names()
        wanted = [spec.column for spec in specs if spec.file == file]
        joined = join_columns(catalog, Path(file), wanted)
        added = [column for column in joined.collect_schema().names() if column not in before]
        for column in wanted:
            if column not in added:
                raise ValueError(f"{file}: no column {column!r} in it; it has {', '.join(added[:8])}")
        catalog = joined.select(*before, *dict.fromkeys(wanted))
    return catalog


def files_of(specs: Sequence[ColumnSpec]) -> list[dict[str, Any]]:
    """The tables that a recipe names, and what was in them, for the record."""
    files = dict.fromkeys(spec.file for spec in specs if spec.file)
    return [{"file": file, "sha256": _digest(Path(file))} for file in files]


def _limits(column: str, limit: LimitSpec | None) -> Iterator[Rule]:
    if limit is not None and limit.min is not None:
        yield Rule(f"min_{column}", measured(column) < limit.min, column)
    if limit is not None and limit.max is not None:
        yield Rule(f"max_{column}", measured(column) > limit.max, column)


def _known(column: str, columns: Mapping[str, pl.DataType], key: str) -> None:
    if column in columns:
        if not (columns[column].is_numeric() or columns[column] == pl.Boolean):
            raise ValueError(f"key `{key}`: column {column!r} holds no numbers ({columns[column]}), which limits need")
        return
    near = difflib.get_close_matches(column, sorted(columns), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`egoscale catalog score` adds the scores of the picture"
    raise ValueError(f"key `{key}`: there is no column {column!r} in the catalogue and its scores; {hint}")


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
