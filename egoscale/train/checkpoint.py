"""Checkpoints that are whole or absent, and weights as files.

    checkpoints/latest                  name of the newest
    checkpoints/step-00000200/          manifest.json: step, identity, size and checksum of each file
    checkpoint_step                     beside them: a checkpoint of this step has been written

Written under a temporary name, flushed to disk, renamed, then `latest` is updated; checked on load.

DeepSpeed writes into the system's cache while training waits. Flushing a large checkpoint to the disk, and summing it
up, is left to a thread while training goes on; it counts as written only after that. (DeepSpeed's own asynchronous
writers are not used: 0.19's decoupled one wants a compiled libaio writer and gives no checksums, DataStates is for
ZeRO 1 on CUDA.) Measured on one machine's own disk, 600 MB: 1.5 s of writing, .35 s of flushing and summing up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egoscale.train.ranks import Ranks

FOLDER, MARK = "checkpoints", "checkpoint_step"
BACKGROUND_BYTES = 100_000_000  # below, flushing takes less than a step


def write_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one, even after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> list[int]:
    """[bytes, CRC-32] of a file: finds what is torn or zeroed, at about a gigabyte a second."""
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return [size, crc]


def identity_hash(identity: dict[str, Any]) -> str:
    """First 12 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Keys at which two nested dicts differ, with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [d for k in keys for d in differences(one.get(k), other.get(k), f"{place}.{k}" if place else str(k))]
    return [] if one == other else [f"{place}: {one!r} in the checkpoint, {other!r} now"]


class DamagedError(ValueError):
    """A checkpoint is not what was written."""


@contextlib.contextmanager
def errors_afterwards(*methods: tuple[object, str]) -> Iterator[None]:
    """Keep the first OSError or RuntimeError of these methods (object, name) until the block is through.

    Other ranks may be waiting for this one at the block's end; they would wait for as long as they can.
    """
    errors: list[Exception] = []

    def held(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs) if not errors else None
            except (OSError, RuntimeError) as error:
                errors.append(error)

        return call

    for owner, name in methods:
        vars(owner)[name] = held(getattr(owner, name))
    try:
        yield
    finally:
        for owner, name in methods:
            del vars(owner)[name]
    if errors:
        raise errors[0]


class _Flush(threading.Thread):
    """Flushes some files of a checkpoint to the disk, and sums them up."""

    def __init__(self, step: int, folder: Path, files: list[Path]) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.step, self.folder, self.files = step, folder, files
        self.sums: dict[str, list[int]] = {}
        self.trouble = ""
        self.start()

    def run(self) -> None:
        try:
            for path in self.files:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                self.sums[str(path.relative_to(self.folder))] = checksum(path)
        except OSError as error:  # a file system behind a network may say only now that it is full
            self.trouble = str(error)


class Checkpoints:
    """The checkpoints of one run folder. `identity` says whose they are: another recipe's are refused."""

    def __init__(
        self,
        out: Path,
        identity: dict[str, Any],
        ranks: Ranks,
        keep_last: int,
        event: Callable[..., None],
        keep_every: int = 0,
    ) -> None:
        self.out, self.folder, self.ranks, self.event = out, out / FOLDER, ranks, event
        self.keep_last, self.keep_every = keep_last, keep_every
        self.identity = json.loads(json.dumps(identity, default=str))  # as it will be read back
        self._flush: _Flush | None = None

    def save(self, step: int, write: Callable[[Path], None], expected_bytes: int = 0, wait: bool = True) -> Path:
        """Have `write(folder)` called on every rank, then make the folder durable and known as the latest.

        Without `wait`, the second half of a large one is done in the background: call `poll` after every step, on every
        rank, and `finish` at the end.

        Raises OSError on every rank where a rank cannot write, or where fewer than `expected_bytes` are free: the
        checkpoint before stays as it is.
        """
        self.finish()
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        lack = ""
        if self.ranks.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
            free = shutil.disk_usage(self.folder).free
            if free < expected_bytes:
                lack = f"{free / 1e6:,.1f} MB free, and a checkpoint takes about {expected_bytes / 1e6:,.1f} MB"
            else:
                temporary.mkdir()
        self._agree(self.ranks.from_main(lack), step, temporary)
        trouble = ""
        try:
            write(temporary)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by a RuntimeError
            trouble = f"{error}; {shutil.disk_usage(self.folder).free / 1e6:,.1f} MB free"
        self._agree(next((t for t in self.ranks.gathered(trouble) if t), ""), step, temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        mine = files[self.ranks.rank :: self.ranks.world_size]  # reading back large files is shared by all ranks
        self._flush = _Flush(step, temporary, mine)
        if wait or expected_bytes < BACKGROUND_BYTES:
            self.finish()
        return final

    def poll(self) -> None:
        """Make what was flushed meanwhile known as the latest, once that is so on every rank. Raises as `save`."""
        if self._flush is not None and self.ranks.all_true(not self._flush.is_alive()):
            self.finish()

    def finish(self) -> None:
        """Wait for what is being flushed, and make it known as the latest. Every rank calls this. Raises as `save`."""
        flush, self._flush = self._flush, None
        if flush is None:
            return
        flush.join()
        step, temporary = flush.step, flush.folder
        final = self.folder / f"step-{step:08d}"
        self._agree(next((t for t in self.ranks.gathered(flush.trouble) if t), ""), step, temporary)
        parts = self.ranks.gathered(flush.sums)
        if self.ranks.main:
            manifest = {
                "step": step,
                "identity": self.identity,
                "identity_hash": identity_hash(self.identity),
                "world_size": self.ranks.world_size,
                "files": {name: held for part in parts for name, held in part.items()},
            }
            write_text(temporary / "manifest.json", json.dumps(manifest, indent=1))
            shutil.rmtree(final, ignore_errors=True)  # left from before a fallback to an older one
            temporary.rename(final)
            flush_folder(self.folder)
            write_text(self.folder / "latest", final.name)
            write_text(self.out / MARK, str(step))
            older = [path for path in self._found() if path.name <= final.name]
            ahead = [path for path in self._found() if path.name > final.name]  # damaged ones that were passed over
            for old in older[self.keep_last :] + ahead:
                if old in ahead or not self.keep_every or _step(old) % self.keep_every:
                    shutil.rmtree(old, ignore_errors=True)
            self.event("save", step=step)
        self.ranks.barrier()

    def _agree(self, trouble: str, step: int, temporary: Path) -> None:
        """On every rank: OSError where any rank had trouble; what was half written is deleted, and "unsaved" told."""
        if not trouble:
            return
        if self.ranks.main:
            shutil.rmtree(temporary, ignore_errors=True)
            with contextlib.suppress(OSError):  # there may be no room for a line either
                self.event("unsaved", step=step, reason=trouble)
        last = self._found()
        kept = f"{last[0].name} is whole: the same run goes on from there" if last else "there is none before it"
        raise OSError(
            f"{self.folder}: the checkpoint of step {step} could not be written ({trouble}); {kept}. "
            "Free some space (train.keep_last = 1 keeps less), and start again"
        )

    def load(self, read: Callable[[Path], Any]) -> Any:
        """The newest whole checkpoint through `read(folder)`, called on every rank; None when the run is new.

        A damaged one is passed over for the one before, with a "fallback" event. Raises FileNotFoundError
        when a checkpoint was written and none is left whole, ValueError when it belongs to another recipe or
        when ranks see different files.
        """
        chosen: tuple[str, Any] = ("", "")
        if self.ranks.main:
            try:
                chosen = self._choose()
            except (ValueError, FileNotFoundError) as error:
                chosen = ("", error)
        name, manifest = self.ranks.from_main(chosen)
        if isinstance(manifest, Exception):
            raise manifest
        if not name:
            return None
        path = self.folder / name
        try:
            seen = self._manifest(path) == manifest
        except DamagedError:
            seen = False
        if not self.ranks.all_true(seen):
            raise ValueError(f"not every rank sees {path} as rank 0 does: put the runs on a file system shared by all")
        state = read(path)
        self.event("resume", step=manifest["step"], checkpoint=name)
        return state

    def _found(self) -> list[Path]:
        """Checkpoints, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _manifest(self, path: Path) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise DamagedError(f"{path / 'manifest.json'}: {error}") from error
        return manifest

    def _checked(self, path: Path) -> dict[str, Any]:
        """The manifest of a checkpoint whose files are as it says; raises DamagedError, or ValueError for
        another's."""
        manifest = self._manifest(path)
        if path.name != f"step-{manifest['step']:08d}":
            raise DamagedError(f"{path} says that it is of step {manifest['step']}")
        if manifest["identity_hash"] != identity_hash(self.identity):
            changed = "; ".join(differences(manifest["identity"], self.identity)[:5])
            raise ValueError(
                f"{path} belongs to another run ({changed}): start in another folder, or delete {self.folder}"
            )
        for name, expected in manifest["files"].items():
            if not (path / name).is_file():
                raise DamagedError(f"{path / name} is missing")
            if checksum(path / name) != expected:
                raise DamagedError(f"{path / name} has changed since it was written")
        return manifest

    def _choose(self) -> tuple[str, Any]:
        """(name, manifest) of the newest whole checkpoint; ("", None) for a new run."""
        candidates = [path.name for path in self._found()]
        latest = self.folder / "latest"
        named = latest.read_text().strip() if latest.is_file() else ""
        if named and named not in candidates:
            candidates.insert(0, named)
        for name in candidates:
            try:
                return name, self._checked(self.folder / name)
            except DamagedError as damage:
                self.event("fallback", checkpoint=name, reason=str(damage))
        mark = self.out / MARK
        if candidates or mark.is_file():
            step = mark.read_text() if mark.is_file() else "?"
            raise FileNotFoundError(
                f"{self.folder} holds no whole checkpoint, but one of step {step} was written: "
                f"restore the folder, or delete {mark} and {self.folder} to train from the beginning"
            )
        return "", None


def newest(out: Path) -> Path:
    """The newest checkpoint of a run folder. Raises FileNotFoundError where there is none."""
    found = sorted((out / FOLDER).glob("step-*"))
    if not found:
        raise FileNotFoundError(
            f"{out / FOLDER}: no checkpoint; a finished run keeps its weights, and multiples of train.keep_every_steps"
        )
    return found[-1]


def kept(out: Path, step: int) -> Path:
    """The checkpoint of a step in a run folder. Raises FileNotFoundError that names those that are there."""
    path = out / FOLDER / f"step-{step:08d}"
    if not path.is_dir():
        there = ", ".join(str(_step(found)) for found in sorted((out / FOLDER).glob("step-*"))) or "none"
        raise FileNotFoundError(
            f"{path}: no such checkpoint; steps that are there: {there}. train.keep_every_steps keeps its multiples"
        )
    return path


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def discard_checkpoints(out: Path, keep_every_steps: int = 0) -> None:
    """Delete the checkpoints of a finished run, whose weights were exported, but for multiples of `keep_every_steps`
    (0: all)."""
    found = sorted((out / FOLDER).glob("step-*"))
    for_good = [path for path in found if keep_every_steps and _step(path) % keep_every_steps == 0]
    (out / MARK).unlink(missing_ok=True)
    if not for_good:
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        return
    write_text(out / FOLDER / "latest", for_good[-1].name)  # first: what it names must be there
    for path in found:
        if path not in for_good:
            shutil.rmtree(path, ignore_errors=True)


def export_weights(state_dict: dict[str, Tensor], config: dict[str, Any], path: Path) -> None:
    """Write folder `path` with weights.safetensors and config.json, whole or not at all; replaces what is
    there."""
    from safetensors.torch import save_file

    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    # safetensors refuses tensors that share memory (tied weights)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    save_file(tensors, temporary / "weights.safetensors")
    with (temporary / "weights.safetensors").open("rb") as file:
        os.fsync(file.fileno())
    write_text(temporary / "config.json", json.dumps(config, indent=1, sort_keys=True))
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    flush_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state dict on the CPU, config) from a folder that `export_weights` wrote. Raises FileNotFoundError,
    ValueError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights, config = path / "weights.safetensors", path / "config.json"
    for file in (weights, config):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: run the stage that trains it again")
    try:
        state: dict[str, torch.Tensor] = load_file(weights)
        return state, json.loads(config.read_text())
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): run the stage that trains it again") from error
