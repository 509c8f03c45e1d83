"""The hours ledger: what each rule of a selection cost, source by source, and what rules have in common.

Hours are of clips; where kept clips share seconds of a file, the ledger says so apart, so that for every source

    all = kept + overlapping + lost to each rule (the first that the clip breaks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from egoscale.video.holdout import HOUR_US
from egoscale.video.rules import USABLE, not_usable
from egoscale.video.scores import OUTDATED

MANY_REASONS = 50
Total = dict[str, float]
NOTHING: Total = {"clips": 0, "hours": 0.0}
BY = ("source", "broken", "unknown", "rule")


def tally(verdicts: pl.LazyFrame) -> pl.DataFrame:
    """Clips, `us` and `unique_us` by source, broken rules (bits), unknown scores (bits) and first rule (null: kept).

    All else in the ledger is counted from this small table.
    """
    shared = pl.col("rule").is_null() & (pl.col("unique_us") < pl.col("us"))
    return (
        verdicts.group_by(BY)
        .agg(
            pl.len().cast(pl.Int64).alias("clips"),
            pl.col("us").sum(),
            pl.col("unique_us").filter(pl.col("rule").is_null()).sum(),
            shared.sum().cast(pl.Int64).alias("shared"),
        )
        .collect(engine="streaming")
    )


def ledger_of(tallied: pl.DataFrame, rules: Sequence[str], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger as it is stored. `rules`: names in the order of their bits and of their application.

    kept, all: {source: {clips, hours}}; kept hours are unique ones, and `overlapping` those that were already counted
        in another clip of the same file.
    lost: {rule: {source: ...}}, by the first rule that a clip breaks.
    alone: {rule: ...}, what it would lose if it were the only one beside `usable`.
    only: {rule: hours} that no other rule would lose: they come back if this rule goes.
    overlaps: {rule: {other: ...}}, usable clips that both would lose, for pairs that have any.
    not_scored: {rule: ...}, usable clips that pass because nobody measured what the rule looks at.

    Near-duplicates are looked for among what passes all else, so theirs overlap with nothing.
    """
    usable = tallied.filter(~_bit("broken", 0))
    kept = tallied.filter(pl.col("rule").is_null())
    broken = {rule: usable.filter(_bit("broken", k)) for k, rule in enumerate(rules)}
    broken[USABLE] = tallied.filter(_bit("broken", 0))
    unknown = {rule: _total(usable.filter(_bit("unknown", k))) for k, rule in enumerate(rules)}
    overlaps: dict[str, dict[str, Total]] = {}
    for k, rule in enumerate(rules[1:], start=1):
        for other in range(k + 1, len(rules)):
            both = _total(broken[rule].filter(_bit("broken", other)))
            if both["clips"]:
                overlaps.setdefault(rule, {})[rules[other]] = both
    return {
        "recipe": dict(recipe),
        "rules": list(rules),
        "all": _by_source(tallied),
        "kept": _by_source(kept, "unique_us"),
        "overlapping": {
            source: {"clips": row["shared"], "hours": (row["us"] - row["unique_us"]) / HOUR_US}
            for source, row in _sums(kept).items()
            if row["us"] > row["unique_us"]
        },
        "lost": {rule: _by_source(tallied.filter(pl.col("rule") == k)) for k, rule in enumerate(rules)},
        "alone": {rule: _total(table) for rule, table in broken.items()},
        "only": {
            rule: _total(tallied.filter((pl.col("broken") == 1 << k) & (pl.col("rule") == k)))["hours"]
            for k, rule in enumerate(rules)
        },
        "overlaps": overlaps,
        "not_scored": {rule: total for rule, total in unknown.items() if total["clips"]},
    }


def totals(by_source: Mapping[str, Mapping[str, float]]) -> Total:
    """Over all sources of one entry of the ledger."""
    return {
        "clips": sum(total["clips"] for total in by_source.values()),
        "hours": sum(total["hours"] for total in by_source.values()),
    }


def ledger_table(ledger: Mapping[str, Any]) -> pl.DataFrame:
    """A row for every rule that loses a clip: by the first rule, alone, and hours that only it loses."""
    rows = []
    for rule, by_source in ledger["lost"].items():
        lost = totals(by_source)
        alone = ledger["alone"].get(rule, NOTHING)
        if lost["clips"] or alone["clips"]:
            rows.append({"rule": rule, **lost, "alone_hours": alone["hours"], "only_hours": ledger["only"][rule]})
    schema = {"rule": pl.String, "clips": pl.Int64, "hours": pl.Float64, "alone_hours": pl.Float64}
    return pl.DataFrame(rows, schema={**schema, "only_hours": pl.Float64})


def source_table(ledger: Mapping[str, Any]) -> pl.DataFrame:
    """A row for every source: clips and hours kept, of how many, and kept hours that are counted in another clip."""
    rows = [
        {
            "source": source,
            "clips": ledger["kept"].get(source, NOTHING)["clips"],
            "hours": ledger["kept"].get(source, NOTHING)["hours"],
            "of_clips": total["clips"],
            "of_hours": total["hours"],
            "overlapping_hours": ledger["overlapping"].get(source, NOTHING)["hours"],
        }
        for source, total in ledger["all"].items()
    ]
    return pl.DataFrame(rows).sort("hours", "source", descending=[True, False])


def reasons_of(catalog: pl.LazyFrame) -> dict[str, dict[str, float]]:
    """Clips and hours by the reason why they are not usable; the rest of many reasons under "others"."""
    table = (
        catalog.filter(not_usable()).group_by("reason").agg(clips=pl.len(), us=microseconds("duration_s").sum())
        .collect(engine="streaming").sort(["clips", "reason"], descending=[True, False])
    )  # fmt: skip
    rows = [(str(reason), clips, us / HOUR_US) for reason, clips, us in table.iter_rows()]
    found = {reason: {"clips": clips, "hours": hours} for reason, clips, hours in rows[:MANY_REASONS]}
    if rest := rows[MANY_REASONS:]:
        found["others"] = {"clips": sum(clips for _, clips, _ in rest), "hours": sum(hours for *_, hours in rest)}
    return found


def duplicates_in(clips: pl.DataFrame, hashed: int | None) -> dict[str, int | None]:
    """Groups of kept clips that look alike (or are copies), the clips in them, and clips that were compared."""
    groups = clips.filter(pl.col("rule").is_null())["duplicate_group"].drop_nulls()
    return {"groups": groups.n_unique(), "clips": len(groups), "compared": hashed}


def notes_on(catalog: pl.LazyFrame, clips: pl.DataFrame) -> list[str]:
    """What a reader of the ledger should know and no number says."""
    notes = []
    unknown = catalog.select(pl.col("duration_s").null_count()).collect(engine="streaming").item()
    if unknown:
        notes.append(f"{unknown} clips have no known length: their hours stand nowhere in this ledger")
    schema = catalog.collect_schema()
    reasons = [name for name, kind in schema.items() if name.endswith("_reason") and kind == pl.String]
    outdated = pl.any_horizontal(pl.lit(False), *(pl.col(name).eq_missing(pl.lit(OUTDATED)) for name in reasons)).sum()
    if count := catalog.filter(~not_usable()).select(outdated).collect(engine="streaming").item():
        notes.append(
            f"{count} clips have scores {OUTDATED}, and count as not scored: `egoscale catalog score` scores them anew"
        )
    many = pl.col("file").is_not_null() & (pl.len().over("file") > 1)
    shared = clips.select(shared=pl.col("rule").is_null() & many).lazy()
    pieces = pl.concat([catalog.select("path", "source", "recording_id"), shared], how="horizontal").filter("shared")
    torn = (
        pieces.group_by("path").agg(recordings=pl.struct("source", "recording_id").n_unique())
        .filter(pl.col("recordings") > 1).select(pl.col("path").min(), files=pl.len()).collect(engine="streaming")
    )  # fmt: skip
    if torn["files"][0]:
        notes.append(
            f"{torn['files'][0]} files hold clips of several recordings (one is {torn['path'][0]}): recordings are"
            " held out and drawn one by one, so such a file may lie on both sides; give its clips one recording_id"
        )
    return notes


def _bit(column: str, k: int) -> pl.Expr:
    return (pl.col(column) // (1 << k)) % 2 == 1


def _sums(table: pl.DataFrame) -> dict[str, dict[str, Any]]:
    sums = table.group_by("source").agg(pl.col("clips", "us", "unique_us", "shared").sum()).sort("source")
    return {str(row["source"]): row for row in sums.iter_rows(named=True)}


def _by_source(table: pl.DataFrame, hours: str = "us") -> dict[str, Total]:
    return {source: {"clips": row["clips"], "hours": row[hours] / HOUR_US} for source, row in _sums(table).items()}


def _total(table: pl.DataFrame) -> Total:
    return {"clips": int(table["clips"].sum()), "hours": int(table["us"].sum()) / HOUR_US}


def microseconds(column: str) -> pl.Expr:
    """Seconds as whole microseconds; what is unknown counts nothing."""
    return (pl.col(column) * 1e6).round().cast(pl.Int64).fill_null(0)
