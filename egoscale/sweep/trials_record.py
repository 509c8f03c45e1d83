"""Trials on real robots: from a sheet that was filled in at the robot into the table of a sweep.

A sheet counts only with the key it was printed with, unchanged but for what was filled in: `trials.py` made both.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egoscale.recipe import validate
from egoscale.sweep.ledger import COLUMNS, LINEAGE, OF_A_GRID, key_column
from egoscale.sweep.trials import DESIGN, ENTRIES, HASH, Key, Trial

if TYPE_CHECKING:
    import polars as pl

MOST_FAULTS = 8  # shown of a bad sheet
_DECIMAL = re.compile(r"[0-9]+([.,][0-9]*)?|[.,][0-9]+")  # no credit has thousands: a comma is a decimal one
_SEPARATOR = re.compile(r'"?sep=([^\w\s"]|\t)"?[,;\t]*\r?\n', re.IGNORECASE)  # a line for Excel, which hides it


@dataclass(frozen=True)
class Outcome:
    """What was written into one row; success is None where the trial was not run (or not to its end)."""

    row: Trial
    success: int | None = None
    partial_credit: float | None = None
    operator: str | None = None
    time: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Record:
    """A checked sheet, unblinded. `outcomes` has every trial of the plan, in its order; `sealed` is the key's hash."""

    key: Key
    sealed: str
    outcomes: tuple[Outcome, ...]

    @property
    def num_missing(self) -> int:
        return sum(outcome.success is None for outcome in self.outcomes)

    @property
    def split_sets(self) -> int:
        """Sets that more than one operator worked on: there operators and policies mix."""
        seen: dict[tuple[int, str, int], set[str]] = {}
        for outcome in self.outcomes:
            seen.setdefault(outcome.row.set, set()).update([outcome.operator] if outcome.operator else [])
        return sum(len(operators) > 1 for operators in seen.values())

    def table(self) -> pl.DataFrame:
        """A row a policy with the columns of `egoscale.sweep.ledger.collect`; trials that were not run count nowhere.

        `state` is "partial" where trials are missing. Beside: policy, operator (all names), mean_partial_credit over
        graded_trials (of the trials that count), and the hash of the key.
        """
        import polars as pl

        keys = [key_column(stage) for stage in LINEAGE]
        schema: dict[str, Any] = COLUMNS | self._of_a_grid()
        schema |= {f"{what}_{task}": int for task in self.key.tasks for what in ("successes", "trials")}
        schema |= dict.fromkeys([*keys, "subset_hash", "state", "policy", "operator"], str)
        schema |= {"mean_partial_credit": float, "graded_trials": int, HASH: str}
        rows = [dict.fromkeys(schema) | self._row(code) for code in self.key.codes]
        return pl.DataFrame(rows, schema=schema, orient="row").sort(
            "arm", "hours", "demos", "seed", "policy", nulls_last=True
        )

    def _of_a_grid(self) -> dict[str, Any]:
        """Columns that a table has where its grid names them, by type; a size also where policies differ in it."""
        found: dict[str, Any] = {}
        for label, columns in OF_A_GRID.items():
            known = {name: {row.get(name) for row in self.key.policies.values()} - {None} for name in columns}
            found |= {name: kind for name, kind in columns.items() if known[label] or len(known[name]) > 1}
        return found

    def _row(self, code: str) -> dict[str, Any]:
        name = self.key.codes[code]
        planned = [outcome for outcome in self.outcomes if outcome.row.code == code]
        run = [outcome for outcome in planned if outcome.success is not None]
        credits = [outcome.partial_credit for outcome in run if outcome.partial_credit is not None]
        row = dict(self.key.policies[name]) | _counts(run)
        for task in self.key.tasks:
            row |= _counts([outcome for outcome in run if outcome.row.task == task], f"_{task}")
        return row | {
            "state": "done" if len(run) == len(planned) else "partial",
            "policy": name,
            "operator": "; ".join(sorted({outcome.operator for outcome in run if outcome.operator})) or None,
            "mean_partial_credit": sum(credits) / len(credits) if credits else None,
            "graded_trials": len(credits),
            HASH: self.sealed,
        }

    def raw(self) -> pl.DataFrame:
        """A row a trial, as it was run, with its policy."""
        import polars as pl

        schema = {"trial": int, "block": int, "code": str, "policy": str, "task": str, "initial_condition": int}
        schema |= {"success": int, "partial_credit": float, "operator": str, "time": str, "note": str}
        rows = [
            {name: getattr(outcome.row, name) for name in DESIGN}
            | {"policy": self.key.codes[outcome.row.code]}
            | {name: getattr(outcome, name) for name in ENTRIES}
            for outcome in self.outcomes
        ]
        return pl.DataFrame(rows, schema=schema, orient="row")

    def pairs(self) -> pl.DataFrame:
        """A row a set, in the order of the sheet, a column a policy: for paired tests. Sets with gaps are left out."""
        import polars as pl

        sets: dict[tuple[int, str, int], dict[str, int | None]] = {}
        for outcome in self.outcomes:
            sets.setdefault(outcome.row.set, {})[self.key.codes[outcome.row.code]] = outcome.success
        columns = ("block", "task", "initial_condition")
        rows: list[dict[str, Any]] = [
            {**dict(zip(columns, place, strict=True)), **won} for place, won in sets.items() if None not in won.values()
        ]
        schema: dict[str, Any] = {"block": int, "task": str, "initial_condition": int}
        return pl.DataFrame(rows, schema=schema | dict.fromkeys(sorted(self.key.policies), int), orient="row")


def _counts(run: Sequence[Outcome], suffix: str = "") -> dict[str, int | None]:
    """Successes and trials; both unknown where nothing was run."""
    won = sum(outcome.success or 0 for outcome in run)
    return {f"successes{suffix}": won if run else None, f"trials{suffix}": len(run) or None}


def record(sheet: Path, key_file: Path, partial: bool = False) -> Record:
    """Check a filled-in sheet against its key, and unblind it.

    Args:
        partial: accept trials that were not run: no success written, or no row. They count nowhere.

    Raises:
        FileNotFoundError, ValueError: every fault with row (as a spreadsheet numbers them), column, value, remedy.
    """
    header, rows = _read(sheet)
    key, sealed = _unsealed(key_file, sheet, header, rows)
    plan = {str(row.trial): row for row in key.plan}
    found: dict[str, tuple[int, Outcome]] = {}
    faults: list[str] = []
    for number, cells in rows:
        named = dict(zip(header, cells, strict=True))
        trial = named["trial"]
        if trial not in plan:
            faults.append(_fault(number, "trial", trial, f"the sheet has trials 1 to {len(plan)}; take the row out"))
        elif trial in found:
            faults.append(
                _fault(number, "trial", trial, f"row {found[trial][0]} is this trial too; keep the one that was run")
            )
        else:
            faults += _edited(number, named, plan[trial], key, sealed)
            found[trial] = (number, _outcome(number, named, plan[trial], partial, faults))
    lost = [trial for trial in plan if trial not in found]
    if lost and not partial:
        faults.append(
            f"column trial: {len(lost)} not on the sheet ({', '.join(lost[:5])}{', ...' if lost[5:] else ''}): put the "
            "rows back, their success empty if they were not run; --partial accepts an unfinished sheet"
        )
    if faults:
        more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        raise ValueError("\n".join(f"{sheet}: {fault}" for fault in faults[:MOST_FAULTS] + more))
    return Record(
        key, sealed, tuple(found[trial][1] if trial in found else Outcome(row) for trial, row in plan.items())
    )


def _read(sheet: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and the rows with their numbers in a spreadsheet; empty rows and empty columns without a name go."""
    if not sheet.is_file():
        raise FileNotFoundError(f"{sheet}: no such sheet; `egoscale trials schedule` writes one")
    content = sheet.read_bytes()
    try:
        text = content.decode("utf-8-sig")
        named = _SEPARATOR.match(text)
        text = text[named.end() :] if named else text
        first = text.partition("\n")[0]
        separator = max(",;\t", key=first.count)  # spreadsheets save what their country writes
        separator = named[1] if named and named[1] in first else separator
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except UnicodeDecodeError as error:
        place = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{sheet}: line {place}: not UTF-8; save it as CSV in UTF-8, not as a workbook") from None
    except csv.Error as error:
        raise ValueError(f"{sheet}: not a CSV file that can be read ({error}); save it as CSV in UTF-8") from None
    cells = [[cell.strip() for cell in line] for line in lines]
    header = cells[0] if cells else []
    wanted = (*DESIGN, *ENTRIES, HASH)
    lost = [column for column in wanted if header.count(column) != 1]
    if lost:
        what = "is missing" if lost[0] not in header else "comes twice"
        raise ValueError(f"{sheet}: row 1: column {lost[0]} {what}; the columns are {', '.join(wanted)}")
    rows = []
    for number, line in enumerate(cells[1:], start=2):
        padded = line + [""] * (len(header) - len(line))
        for column, cell in zip([*header, *("" for _ in padded[len(header) :])], padded, strict=True):
            if cell and column not in wanted:
                remedy = "remarks go into the column note; what holds a comma, as 0,5 does, stands in quotes"
                raise ValueError(f"{sheet}: {_fault(number, column or 'without a name', cell, remedy)}")
        if any(padded):
            rows.append((number, padded[: len(header)]))
    return header, rows


def _unsealed(key_file: Path, sheet: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> tuple[Key, str]:
    """The key and its hash, if it is the one that is on the sheet."""
    if not key_file.is_file():
        raise FileNotFoundError(f"{key_file}: no such key; `egoscale trials schedule` wrote it with the sheet")
    content = key_file.read_bytes()
    mine, printed = hashlib.sha256(content).hexdigest(), [cells[header.index(HASH)] for _, cells in rows]
    if not rows:
        raise ValueError(f"{sheet}: holds no trial; give the sheet that was filled in")
    if mine not in printed:
        fault = _fault(
            rows[0][0], HASH, printed[0],
            f"the hash of {key_file} is {mine}, so it is another sheet's key, or was changed since; give the key that "
            "was written with this sheet",
        )  # fmt: skip
        raise ValueError(f"{sheet}: {fault}")
    try:
        return validate(Key, json.loads(content), key_file), mine
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key_file}: not a key of `egoscale trials schedule` ({error})") from None


def _edited(number: int, named: Mapping[str, str], row: Trial, key: Key, sealed: str) -> list[str]:
    """Cells that were printed and read otherwise now."""
    if named["code"] not in key.codes:
        return [_fault(number, "code", named["code"], f"not a code of the key; it was printed as {row.code}")]
    printed = {column: str(getattr(row, column)) for column in DESIGN} | {HASH: sealed}
    return [
        _fault(number, column, named[column], f"was printed as {value}; write that again, and remarks into note")
        for column, value in printed.items()
        if named[column] != value
    ]


def _outcome(number: int, named: Mapping[str, str], row: Trial, partial: bool, faults: list[str]) -> Outcome:
    """What was filled in; faults are added to the list."""
    success, credit = named["success"], named["partial_credit"]
    if success not in ("", "0", "1"):
        faults.append(_fault(number, "success", success, "write 1 or 0; a part of the task goes into partial_credit"))
    elif not success and not partial:
        faults.append(_fault(number, "success", success, "write 1 or 0; --partial accepts an unfinished sheet"))
    part = float(credit.replace(",", ".")) if _DECIMAL.fullmatch(credit) else None
    if credit and (part is None or part > 1):
        faults.append(_fault(number, "partial_credit", credit, "write a number from 0 to 1, as 0.5, or nothing"))
    elif part is not None and success in ("0", "1") and (success == "1") != (part == 1):
        remedy = "1 and 1 is the whole task, 0 and less a part of it; correct what is wrong, or leave credit empty"
        faults.append(_fault(number, f"success = {success!r}, column partial_credit", credit, remedy))
    operator = unicodedata.normalize("NFC", named["operator"])  # one name, on whatever keyboard its accents were typed
    return Outcome(
        row,
        int(success) if success in ("0", "1") else None,
        part,
        operator or None,
        named["time"] or None,
        named["note"] or None,
    )


def _fault(number: int, column: str, value: str, remedy: str) -> str:
    shown = repr(value if len(value) <= 80 else f"{value[:77]}...") if value else "(empty)"
    return f"row {number}, column {column} = {shown}: {remedy}"
