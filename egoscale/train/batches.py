"""The batches of one rank: its rows of each global batch, made a step ahead where a GPU would wait for them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor

from egoscale.train.order import rows_of

Batch = dict[str, Tensor]


class Batches:
    """A rank's micro-batches by step.

    own_rows: `make(step, rows)` makes some rows; else `make(step)` makes all of them, and the rank takes its own.
    ahead: a thread makes the next step's batch meanwhile (only with `own_rows`, whose maker promises that it is a
    function of its arguments alone).
    """

    def __init__(
        self, make: Callable[..., Batch], rows: list[slice], num_steps: int, own_rows: bool = False, ahead: bool = False
    ) -> None:
        self.make, self.rows, self.num_steps, self.own_rows = make, rows, num_steps, own_rows
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="batches") if ahead and own_rows else None
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def at(self, step: int) -> list[Batch]:
        """The micro-batches of a step; errors of the thread come out here."""
        held = self._next[1] if self._next is not None and self._next[0] == step else None
        parts = held.result() if held is not None else self._made(step)
        if self._threads is not None and step + 1 < self.num_steps:
            self._next = step + 1, self._threads.submit(self._made, step + 1)
        return parts

    def _made(self, step: int) -> list[Batch]:
        if not self.own_rows:
            whole = self.make(step)
            return [rows_of(whole, part) for part in self.rows]
        first, last = self.rows[0].start, self.rows[-1].stop  # a rank's rows adjoin (`order.rank_rows`)
        mine = self.make(step, slice(first, last))
        return [rows_of(mine, slice(part.start - first, part.stop - first)) for part in self.rows]

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
