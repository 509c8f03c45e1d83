"""metrics.jsonl: one line every `log_every_steps`, cut back to the resumed step, so that it reads as if never
broken."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from egoscale.train.checkpoint import write_text


def number(value: float) -> float | None:
    """JSON knows no NaN: a number that is not finite is written as null."""
    return value if math.isfinite(value) else None


class Trace:
    """Means of the metrics since the last line. Only rank 0 has a file; every rank keeps the same sums.

    Bad steps count in no mean; a line whose steps were all bad says so.
    """

    def __init__(self, path: Path | None, state: dict[str, Any] | None = None) -> None:
        self.path = path
        state = state or {"step": 0, "sums": {}, "counts": {}, "last": {}}
        self.step: int = state["step"]
        self.sums: dict[str, float] = dict(state["sums"])
        self.counts: dict[str, int] = dict(state["counts"])
        self.last: dict[str, Any] = dict(state["last"])  # the newest value of each key: what a result quotes
        if path is not None:
            self._cut(path)

    def _cut(self, path: Path) -> None:
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] <= self.last.get("step", 0):  # later ones the loop writes again
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(f"{line}\n" for line in kept))

    def state(self) -> dict[str, Any]:
        """What a checkpoint carries."""
        return {"step": self.step, "sums": self.sums, "counts": self.counts, "last": self.last}

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of one step; `step` counts the steps done."""
        self.step = step
        for name, value in metrics.items():
            if math.isfinite(value):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def write(self, **now: float) -> None:
        """End the interval with a line; `now` are values of this moment."""
        line: dict[str, Any] = {"step": self.step}
        line |= {name: total / self.counts[name] for name, total in self.sums.items()}
        line.setdefault("loss", None)
        line |= {name: number(value) for name, value in now.items()}
        self.sums, self.counts = {}, {}
        self.last |= {name: value for name, value in line.items() if value is not None}
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Make the file durable, before a checkpoint that relies on it."""
        if self.path is not None and self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
