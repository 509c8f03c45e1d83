"""What the verbs print, and how an error reads: one paragraph, and an exit code that means something."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def read_table(path: Path) -> pl.DataFrame:
    """A .csv or .parquet file."""
    import polars as pl

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table; `egoscale sweep collect` writes one")
    try:
        return pl.read_csv(path, infer_schema_length=None) if path.suffix == ".csv" else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path}: not a table that can be read ({str(error).splitlines()[0]})") from None


def shown(table: pl.DataFrame) -> str:
    """A table for a terminal, whole."""
    import polars as pl

    with pl.Config(
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        tbl_width_chars=160,
    ):
        return str(table)


def complain(text: str) -> None:
    """To standard error."""
    print(text, file=sys.stderr)


@contextmanager
def bar(name: str) -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
    """A bar for one run where there is a terminal; nothing else says what the run folder does not."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=None)

        def report(said: Mapping[str, Any]) -> None:
            progress.update(
                task,
                completed=said.get("done", 0),
                total=said.get("total"),
                description=f"{name} {said.get('unit', '')}",
            )

        yield report


def explained(error: Exception) -> int:
    """Print an error for a person; its exit code."""
    from egoscale.sweep.ledger import RunLockedError, reason_of

    if isinstance(error, ModuleNotFoundError):
        complain(
            f"error: {error.name} is not installed; this verb needs `pip install 'egoscale[train,sim]'` "
            "(`egoscale doctor` shows what is there)"
        )
        return BAD_INPUT
    complain(f"error: {reason_of(error)}")
    if isinstance(error, ValueError | FileNotFoundError | NotADirectoryError):
        return BAD_INPUT
    if not isinstance(error, RunLockedError | OSError):
        complain("this should not happen; the same command with --debug shows where")
    return FAILED
