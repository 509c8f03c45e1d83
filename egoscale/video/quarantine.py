"""Clips that can no longer be read: named once, never read again, counted, and too many of them end the run.

A failure is a line of a file in the run folder: clip, step, sample, reason. A clip is out from the step *after* its
first failure; at that step only the samples that failed are replaced. So what a step reads follows from the file and
arithmetic alone: a resumed run repeats the steps before a failure as they were, and ranks that read other samples of
the same clip agree, since they train in step and read the file before each one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

NAMED_IN_ERROR = 50


class Quarantine:
    """The failures of a run, in `file` (JSON lines). For threads of a process and for processes of one run."""

    def __init__(
        self,
        file: Path,
        num_clips: int,
        max_fraction: float = 1.0,
        event: Callable[..., None] | None = None,
        origin: str = "",
        told: Callable[[], Iterable[str]] | None = None,
    ) -> None:
        """
        Args:
            file: made at the first failure; what it holds already is known at once.
            num_clips: of the whole set, for the limit.
            max_fraction: share of the clips that may fail before the run stops.
            event: told once about every clip: event("quarantine", clip=, reason=, step=).
            origin: words for the error: which set the clips are from.
            told: clips of which `event` was told by now. A kill between a failure's line and its event leaves a clip
                that was not: it is made up for here.

        Raises ValueError where the file already holds more than the limit.
        """
        self.file, self.num_clips, self.max_fraction = file, num_clips, max_fraction
        self._event, self._origin = event, origin
        self._lock = threading.RLock()
        self._read = 0  # bytes of the file that are known
        self._reasons: dict[str, str] = {}
        self._since: dict[str, int] = {}
        self._samples: set[tuple[str, int, int]] = set()
        self.refresh()
        if event is not None and told is not None and self._reasons:
            with self._lock, self._alone() as held:
                self._take(held)
                for clip in sorted(self._reasons.keys() - set(told())):
                    event("quarantine", clip=clip, reason=self._reasons[clip], step=self._since[clip])
        self.check()

    def __len__(self) -> int:
        """Clips that are out."""
        return len(self._reasons)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._reasons

    @property
    def reasons(self) -> dict[str, str]:
        """{clip_id: reason}, sorted by clip."""
        with self._lock:
            return dict(sorted(self._reasons.items()))

    @property
    def version(self) -> int:
        """Grows with every failure that is known here."""
        return self._read

    def bars(self, clip_id: str, step: int = 0, sample: int = 0) -> bool:
        """Whether this sample of this step may not come from this clip."""
        with self._lock:
            since = self._since.get(clip_id)
            return since is not None and (since < step or (clip_id, step, sample) in self._samples)

    def add(self, clip_id: str, reason: str, step: int = 0, sample: int = 0) -> None:
        """Note a failure. Raises ValueError with the list once there are more clips than the limit allows."""
        line = json.dumps({"clip": clip_id, "step": step, "sample": sample, "reason": reason}) + "\n"
        with self._lock, self._alone() as file:
            self._take(file)
            if self.bars(clip_id, step, sample):
                return
            new = clip_id not in self._reasons
            if self._torn(file):
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            self._take(file)
            if new and self._event is not None:
                self._event("quarantine", clip=clip_id, reason=reason, step=step)
        self.check()

    def refresh(self) -> None:
        """Read what other processes of the run have added. Opens the file: a network file system then looks anew."""
        with self._lock, contextlib.suppress(FileNotFoundError), self.file.open("rb") as file:
            self._take(file)

    def check(self) -> None:
        """Raises ValueError with the list where more clips are out than `max_fraction` allows."""
        if len(self) <= self.max_fraction * self.num_clips:
            return
        named = "\n".join(f"  {clip}: {reason}" for clip, reason in list(self.reasons.items())[:NAMED_IN_ERROR])
        more = f"\n  and {len(self) - NAMED_IN_ERROR} more" if len(self) > NAMED_IN_ERROR else ""
        raise ValueError(
            f"{len(self)} of {self.num_clips} clips{self._origin and ' of ' + self._origin} cannot be read any more, "
            f"beyond max_quarantined_fraction = {self.max_fraction:g} (all of them: {self.file}):\n{named}{more}\n"
            "Check the disk; then delete that file, or run `catalog` and `select` again"
        )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[BinaryIO]:
        """The file, open to read and append, and locked against the other ranks."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            try:
                yield file
            finally:
                file.flush()
                fcntl.lockf(file, fcntl.LOCK_UN)

    def _take(self, file: BinaryIO) -> None:
        """Read on from where this process last stopped; a line that is not whole is left for later."""
        file.seek(self._read)
        for line in file:
            if not line.endswith(b"\n"):
                break
            self._read += len(line)
            with contextlib.suppress(ValueError, KeyError, TypeError):  # torn by a kill, closed by the next writer
                self._note(json.loads(line))

    def _note(self, failure: dict[str, Any]) -> None:
        clip, step, sample = str(failure["clip"]), int(failure["step"]), int(failure["sample"])
        self._samples.add((clip, step, sample))
        if step <= self._since.get(clip, step):
            self._since[clip] = step
        self._reasons.setdefault(clip, str(failure["reason"]))

    @staticmethod
    def _torn(file: BinaryIO) -> bool:
        end = file.seek(0, 2)
        if not end:
            return False
        file.seek(end - 1)
        return file.read(1) != b"\n"
