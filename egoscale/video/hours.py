"""What a catalogue holds: hours by source, licence, participant, scene and task, and what is wrong with the rest."""

from __future__ import annotations

import polars as pl

from egoscale.video.holdout import HOUR_US
from egoscale.video.hours_ledger import microseconds
from egoscale.video.overlap import in_original, unique_microseconds

UNIQUE_US = "unique_us"  # microseconds of a clip that no earlier clip of its file covers
# Never added up: hours that were decoded, and hours that are only declared.
HOURS = [
    (pl.col(UNIQUE_US).filter("usable").sum() / HOUR_US).alias("hours"),
    (pl.col(UNIQUE_US).filter(pl.col("usable").is_null()).sum() / HOUR_US).alias("declared hours"),
]
COUNTS = [
    pl.col("usable").sum().alias("usable"),
    pl.col("usable").is_null().sum().alias("never probed"),
    (~pl.col("usable")).sum().alias("not usable"),
]
GROUPS = {"licence": "license", "participant": "participant_id", "scene": "scene_id", "task": "task"}
NOT_USABLE = "not usable"


def catalog_tables(catalog: pl.DataFrame | pl.LazyFrame) -> dict[str, pl.DataFrame]:
    """Tables by title, the most hours first.

    "source": hours that were decoded, hours that only metadata declare, clips of each kind, and how many recordings,
    participants and scenes they come from. "licence", "participant", "scene", "task": hours and clips of those that
    are usable or were never probed. "not by decord": why another decoder reads clips, and how many. "not usable": each
    reason with its clips, their hours as far as they are known, and one of them.

    Where clips of a file share seconds, these are hours of the first of them alone.
    """
    clips = pl.concat([catalog.lazy(), _unique(catalog.lazy()).lazy()], how="horizontal")
    people = [
        pl.col("recording_id").n_unique().alias("recordings"),
        pl.col("participant_id").drop_nulls().n_unique().alias("participants"),
        pl.col("scene_id").drop_nulls().n_unique().alias("scenes"),
    ]
    kept = clips.filter(pl.col("usable").fill_null(True))
    queries = {"source": clips.group_by("source").agg(*HOURS, *COUNTS, *people)}
    for title, column in GROUPS.items():
        queries[title] = kept.group_by(column).agg(*HOURS, pl.len().alias("clips")).rename({column: title})
    queries["not by decord"] = (
        clips.filter(pl.col("usable") & pl.col("decoder_reason").is_not_null())
        .group_by("decoder", pl.col("decoder_reason").alias("why"))
        .agg(pl.len().alias("clips"), pl.col("clip_id").min().alias("such as"))
    )
    queries[NOT_USABLE] = (
        clips.filter(~pl.col("usable"))
        .group_by("source", pl.col("reason").alias("why"))
        .agg(
            pl.len().alias("clips"),
            (pl.col("duration_s").sum() / 3600).alias("declared hours"),
            pl.col("clip_id").min().alias("such as"),
        )
    )
    tables = dict(zip(queries, pl.collect_all(list(queries.values()), engine="streaming"), strict=True))
    return {title: _ordered(table) for title, table in tables.items()}


def _unique(catalog: pl.LazyFrame) -> pl.DataFrame:
    """UNIQUE_US of each clip, row for row; what was decoded and what is only declared never cover each other."""
    clips = in_original(catalog).select(
        pl.col("path").cast(pl.Categorical).to_physical().alias("file"),
        "usable",
        start_us=microseconds("start_s"),
        us=microseconds("duration_s"),
    )
    rows = clips.collect(engine="streaming").with_row_index("row")
    kept = rows.filter(pl.col("usable").fill_null(True), pl.col("file").is_not_null())
    pieces = kept.select("row", "start_us", "us", file=2 * pl.col("file").cast(pl.Int64) + pl.col("usable").is_null())
    found = rows.join(unique_microseconds(pieces), on="row", how="left", maintain_order="left")
    return found.select(pl.coalesce(UNIQUE_US, "us"))


def _ordered(table: pl.DataFrame) -> pl.DataFrame:
    numbers = [column for column in ("hours", "declared hours", "clips") if column in table.columns]
    if "such as" in table.columns:
        numbers = ["clips"]
    names = [column for column in table.columns if table[column].dtype == pl.String]
    descending = [True] * len(numbers) + [False] * len(names)
    return table.sort(*numbers, *names, descending=descending, nulls_last=True)


def catalog_info(catalog: pl.DataFrame | pl.LazyFrame, max_rows: int = 20, width: int = 110) -> str:
    """The tables as text, each at most `max_rows` long; columns that say nothing are left out."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=width, no_color=True)
    with console.capture() as text:
        for title, table in catalog_tables(catalog).items():
            if table.is_empty() or (title in ("participant", "scene", "task") and table[title].is_null().all()):
                continue
            more = f" (first {max_rows} of {table.height:,})" if table.height > max_rows else ""
            shown = Table(title=f"{title}{more}", title_justify="left")
            columns = [name for name in table.columns if _says_something(table, name)]
            for column in columns:
                shown.add_column(column, justify="right" if table[column].dtype.is_numeric() else "left")
            for row in table.select(columns).head(max_rows).iter_rows():
                shown.add_row(*(_cell(value) for value in row))
            console.print(shown)
    return text.get()


def _says_something(table: pl.DataFrame, column: str) -> bool:
    return column not in ("declared hours", "never probed") or bool(table[column].sum())


def _cell(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
