"""A checkpoint of any number of ranks and any ZeRO stage, put together into whole tensors by name.

What DeepSpeed writes is cut to the ranks and the stage that wrote it, and its own converter ("universal"
checkpoints) loses Adam's count of steps, needs state injected for stages 1 and 2, and does not cross from stage 1
to stage 3 (measured on 0.19.8). Here the pieces are joined by name into `full/` beside them:

    full/weights.safetensors          every weight and buffer, fp32
    full/exp_avg.safetensors, ...     each moment of the optimizer, fp32, by the name of its weight
    full/state.pt                     Adam's count of steps, and what the loop keeps

Layouts read: stage 0 (one file, an optimizer state a weight), stages 1 and 2 (a flat partition a group and rank,
with the address of each piece), stage 3 (a flat partition a sub-group and rank, each weight cut into equal parts).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from egoscale.train.checkpoint import DamagedError, checksum, flush_folder, write_text

FULL, SHARDS = "full", "engine"


class Tensors:
    """Tensors of a safetensors file, read one at a time."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self.path = path
        self._file = cast(Any, safe_open(path, framework="pt"))
        self.names: set[str] = set(self._file.keys())

    def __call__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


def shards_of(checkpoint: Path) -> tuple[int, int]:
    """(ZeRO stage, ranks) that wrote a checkpoint folder; 1 rank for stage 0, whose file is whole.

    Raises FileNotFoundError where the folder holds no checkpoint.
    """
    files = _optimizer_files(checkpoint / SHARDS)
    if files:
        first = _load(files[0])["optimizer_state_dict"]
        return int(first["zero_stage"]), len(files)
    if not (checkpoint / SHARDS / "mp_rank_00_model_states.pt").is_file():
        raise FileNotFoundError(f"{checkpoint}: no checkpoint in it (nothing under {SHARDS}/)")
    return 0, 1


def reshape(checkpoint: Path) -> Path:
    """Join the pieces of one checkpoint (`…/checkpoints/step-00000200`) into its `full/`, and return that folder.

    Whole or absent: written under a temporary name and renamed. One that is there and unchanged is kept. Needs
    memory for one tensor kind at a time (4 bytes a parameter).

    Raises FileNotFoundError where a piece is missing, DamagedError where the pieces do not fit together.
    """
    full = checkpoint / FULL
    if _whole(full):
        return full
    stage, ranks = shards_of(checkpoint)
    pieces = _Pieces(checkpoint / SHARDS, stage, ranks)
    temporary = checkpoint / f".{FULL}.tmp"
    for left in (temporary, full):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir()
    _write(temporary / "weights.safetensors", pieces.weights())
    for kind in pieces.kinds():
        _write(temporary / f"{kind}.safetensors", pieces.moment(kind))
    held = {**pieces.model["egoscale"], "optimizer_steps": pieces.steps(), "kinds": pieces.kinds()}
    torch.save(held, temporary / "state.pt")
    files = sorted(path for path in temporary.iterdir())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    write_text(temporary / "manifest.json", json.dumps({path.name: checksum(path) for path in files}, indent=1))
    temporary.rename(full)
    flush_folder(checkpoint)
    return full


def _whole(full: Path) -> bool:
    try:
        listed: dict[str, list[int]] = json.loads((full / "manifest.json").read_text())
        return all(checksum(full / name) == expected for name, expected in listed.items())
    except (OSError, ValueError):
        return False


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    # safetensors refuses tensors that share memory, and keeps only what is contiguous
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)


def _optimizer_files(folder: Path) -> list[Path]:
    """The optimizer's pieces in the order of ranks."""

    def rank(path: Path) -> int:
        return int(path.name.split("zero_pp_rank_")[1].split("_")[0])

    return sorted(folder.glob("*zero_pp_rank_*optim_states.pt"), key=rank)


def _load(path: Path) -> dict[str, Any]:
    # DeepSpeed pickles classes of its own beside the tensors; `weights_only` refuses them. The files are this run's.
    # Reading them imports it, and unless it is told, it says at length what accelerator it has found.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    try:
        held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise DamagedError(f"{path}: cannot be read ({error})") from error
    return held


class _Pieces:
    """The files of one checkpoint, mapped rather than read, and how they fit together."""

    def __init__(self, folder: Path, stage: int, ranks: int) -> None:
        self.folder, self.stage, self.ranks = folder, stage, ranks
        self.parts = [_load(path)["optimizer_state_dict"] for path in _optimizer_files(folder)]
        name = "zero_pp_rank_0_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
        self.model = _load(folder / name)
        if "egoscale" not in self.model:
            raise DamagedError(f"{folder / name}: not a checkpoint of egoscale")
        for part in self.parts:
            if part["partition_count"] not in (ranks, [ranks] * len(_as_list(part["partition_count"]))):
                raise DamagedError(
                    f"{folder}: written by {part['partition_count']} ranks, and the pieces of {ranks} are here"
                )
        # A list of {name: shape} for each group of the optimizer, in its order.
        self.shapes: list[dict[str, torch.Size]] = self.model["param_shapes"] or []

    def weights(self) -> dict[str, Tensor]:
        """Every weight and buffer, fp32."""
        held: dict[str, Tensor] = dict(self.model["module"])
        if self.stage == 3:
            buffers = set(self.model["buffer_names"])
            held = {name: tensor for name, tensor in held.items() if name in buffers}
            held |= self._frozen()
            held |= dict(self._of_stage_3([dict(enumerate(part["fp32_flat_groups"])) for part in self.parts]))
        return {n: t.float() if t.is_floating_point() else t for n, t in held.items()}

    def states(self) -> list[dict[int, dict[str, Any]]]:
        """The optimizer's state of each rank: {index of the group or weight: {"step", "exp_avg", ...}}."""
        if self.stage == 0:
            return [self.model["optimizer"]["state"]]
        if self.stage == 3:
            return [part["optimizer_state_dict"]["state"] for part in self.parts]
        return [part["base_optimizer_state"]["state"] for part in self.parts]

    def kinds(self) -> list[str]:
        """Names of the moments: Adam's two, and Muon's momentum."""
        held = [state for states in self.states() for state in states.values()]
        return sorted({name for state in held for name, value in state.items() if name != "step" and value.ndim})

    def steps(self) -> float:
        """The optimizer's own count of updates; skipped steps are not in it."""
        return max((float(state["step"]) for states in self.states() for state in states.values()), default=0.0)

    def moment(self, kind: str) -> dict[str, Tensor]:
        """One moment by the name of its weight. A weight that never had a gradient has none, at stage 0."""
        held = [{i: state[kind] for i, state in states.items() if kind in state} for states in self.states()]
        if self.stage == 0:
            names = [name for group in self._groups_of_stage_0() for name in group]
            return {name: held[0][i] for i, name in enumerate(names) if i in held[0]}
        return dict(self._of_stage_3(held) if self.stage == 3 else self._of_stages_1_and_2(held))

    def _groups_of_stage_0(self) -> list[list[str]]:
        names: list[list[str]] = self.model["egoscale"]["groups"]
        return names

    def _of_stages_1_and_2(self, flat: list[dict[int, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """`flat`: of each rank, a partition of some of the groups."""
        for group, shapes in enumerate(self.shapes):
            if group not in flat[0]:
                continue
            found: dict[str, list[Tensor]] = {}
            for part, rank_flat in zip(self.parts, flat, strict=True):
                for name, at in part["param_slice_mappings"][group].items():
                    found.setdefault(name, []).append(rank_flat[group].narrow(0, at.start, at.numel))
            for name, shape in shapes.items():
                joined = torch.cat(found.get(name, [torch.empty(0)]))
                if joined.numel() != shape.numel():
                    raise DamagedError(f"{self.folder}: {joined.numel()} numbers for {name} of {tuple(shape)}")
                yield name, joined.view(shape)

    def _of_stage_3(self, flat: list[dict[int, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """`flat`: of each rank, a partition of some of the sub-groups. Each weight lies in `ranks` equal parts, padded
        at the end, one after the other in the order of groups, and never in two sub-groups."""
        sizes = [piece.numel() for piece in self.parts[0]["fp32_flat_groups"]]
        at = group = 0
        for name, shape in ((name, shape) for shapes in self.shapes for name, shape in shapes.items()):
            part = -(-shape.numel() // self.ranks)
            while group < len(sizes) and at >= sizes[group]:
                at, group = at - sizes[group], group + 1
            if group == len(sizes) or at + part > sizes[group]:
                raise DamagedError(f"{self.folder}: the partitions end before {name}")
            if group in flat[0]:
                joined = torch.cat([one[group].flatten().narrow(0, at, part) for one in flat])
                yield name, joined[: shape.numel()].view(shape)
            at += part

    def _frozen(self) -> dict[str, Tensor]:
        """Weights that are not trained; at stage 3 they too lie in parts, in the files of the model."""
        shapes = self.model.get("frozen_param_shapes") or {}
        if not shapes:
            return {}
        files = [self.folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(self.ranks)]
        parts = [_load(file)["frozen_param_fragments"] for file in files]
        return {
            name: torch.cat([part[name].flatten() for part in parts])[: shape.numel()].view(shape)
            for name, shape in shapes.items()
        }


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
