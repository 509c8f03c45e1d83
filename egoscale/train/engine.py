"""The one door to DeepSpeed: a model and a `TrainSpec` in, steps out.

What DeepSpeed keeps quiet is made loud here, and what it does needlessly is left out. Measured on 0.19.8,
torch 2.13: stage 0 in fp32 *applies* a NaN gradient (stages 1-3 skip it without a word), so stage 0 has a
guard of its own; loading a missing folder returns (None, None); importing it imports MLflow; on CPU it
compiles a shared-memory all-reduce that only inference uses.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from egoscale.models.blocks import SpaceTimeBlock
from egoscale.models.memory import checkpoint_bytes
from egoscale.recipe import TrainSpec
from egoscale.train.blocks import Blocks
from egoscale.train.checkpoint import errors_afterwards
from egoscale.train.deepspeed_json import deepspeed_config
from egoscale.train.muon import MuonAdamW, Piece, WholeMatrices
from egoscale.train.optimizer import optimizer, parameter_groups
from egoscale.train.ranks import Ranks, lift_timeouts
from egoscale.train.reshape import SHARDS as TAG
from egoscale.train.reshape import Tensors, reshape, shards_of
from egoscale.train.schedule import learning_rate
from egoscale.train.watch import now, seconds


@cache
def _deepspeed() -> Any:
    """Import DeepSpeed without its baggage: no MLflow (1 s), no accelerator guessing, no C++ compilation on
    CPU."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    hidden = "mlflow" not in sys.modules  # its autotuner imports MLflow if it can, and does without if it cannot
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import deepspeed
    finally:
        if hidden:
            del sys.modules["mlflow"]
    if os.environ["DS_ACCELERATOR"] == "cpu":
        # Asked for this table, DeepSpeed runs the C compiler to fill it, and then builds shm_comm (44 s).
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.addFilter(_worth_saying)
    for message in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", message=f".*{message}.*deprecated", category=FutureWarning)
    return deepspeed


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply matrices in bf16: CUDA from compute capability 8 on, x86 with
    AVX512-BF16 or AMX, ARM with BF16. Without them bf16 is slower than fp32.

    Asked, not measured: a machine that is busy for a moment must not train one run of a study in another precision."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _worth_saying(record: logging.LogRecord) -> bool:
    """Skipped steps are reported by guards.py, and an optimizer that DeepSpeed has not tested is tested by us."""
    said = record.getMessage()
    return "OVERFLOW" not in said and "untested optimizer" not in said


_live: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forget_groups() -> None:
    """DeepSpeed caches process groups for the life of the process; the next engine may live in another
    group."""
    if not _live:
        _deepspeed().utils.groups._release_process_group_references()


class Engine:
    """Trains `model` (batch: dict of tensors -> dict of scalars with "loss", a mean over samples).

    The model is moved to the rank's device. At stage 3 its parameters are held in pieces: read them through
    `full_state_dict`. Loading is for a fresh engine only. `learning_rate_scale` maps a parameter's name to a
    factor (0 = frozen). `config` is DeepSpeed's JSON, `overrides` what the recipe changed in it.

    bf16 means that products are computed in it (autocast), while weights, gradients, their sums over micro-batches
    and ranks, and the optimizer stay fp32, at every stage: 16 bytes a parameter at stage 0, and 20 over all ranks at
    stages 1 to 3, which update a copy of the weights (4 less for a matrix of Muon's). DeepSpeed's own bf16 keeps bf16
    weights beside fp32 ones and sums gradients in bf16 or fp32 by stage, so that stage 0 is another optimizer than
    stages 1-3 (losses differ from step 2 on), and a checkpoint cannot change stages exactly; its autocast is a global
    of the process.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: TrainSpec,
        ranks: Ranks,
        learning_rate_scale: Callable[[str], float] | None = None,
    ) -> None:
        self.spec, self.ranks = spec, ranks
        self.module = model.to(ranks.device).train()
        groups = parameter_groups(model, spec, learning_rate_scale)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._groups = [[names[id(parameter)] for parameter in group["params"]] for group in groups]
        self._muon = {names[id(p)] for group in groups if group.get("muon") for p in group["params"]}
        self.num_parameters = sum(p.numel() for group in groups for p in group["params"])
        everything = sum(p.numel() for p in model.parameters())  # counted while they are whole
        of_muon = sum(p.numel() for group in groups if group.get("muon") for p in group["params"])
        self.checkpoint_bytes = checkpoint_bytes(everything, self.num_parameters, of_muon, spec.zero_stage)
        self.config, self.overrides = deepspeed_config(spec, ranks, self.num_parameters)
        self.steps = 0  # taken or skipped
        self.learning_rate = 0.0
        self.bad_passes: list[int] = []  # passes of the last bad step whose loss was not finite on this rank
        self.last_step_skipped = False
        self.forward_s = 0.0  # of the last step, in forward passes

        can = ranks.from_main(multiplies_bf16(ranks.device))
        self.precision = "bf16" if spec.precision == "bf16" or (spec.precision == "auto" and can) else "fp32"
        if self.precision == "bf16":
            model.forward = torch.autocast(ranks.device.type, dtype=torch.bfloat16)(model.forward)

        deepspeed = _deepspeed()
        _forget_groups()
        self._blocks = Blocks(model, spec)
        if self._blocks.leaves:
            deepspeed.utils.set_z3_leaf_modules(model, [SpaceTimeBlock])
        self._linear = nn.functional.linear  # stage 3 replaces it for the whole process
        os.environ["LOCAL_RANK"] = str(ranks.local_rank)  # DeepSpeed reads it, at stage 3 in every trace
        with warnings.catch_warnings():
            # Looking for its own Muon, which it does for every optimizer, it imports torch's compiler: 14 warnings.
            warnings.filterwarnings("ignore", "`torch.jit.script_method` is deprecated", DeprecationWarning)
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=model, optimizer=optimizer(groups, spec), config=self.config, dist_init_required=False
            )
        _live.add(self)
        lift_timeouts()  # DeepSpeed has made groups of its own
        if ranks.world_size == 1 and spec.zero_stage == 0:
            self._engine.enable_backward_allreduce = False  # nobody to add to: saves a copy of the gradients
        if self._blocks.leaves:
            self._blocks.reduce_after_last_call(self._optimizer._leaf_module_hooks)
        if isinstance(self._inner, MuonAdamW) and spec.zero_stage:
            self._inner.whole = self._whole_matrices()

    def _whole_matrices(self) -> dict[Tensor, WholeMatrices]:
        """For each flat tensor of Muon's: where every rank holds its matrices."""
        parameters = dict(self.module.named_parameters())
        found: dict[Tensor, WholeMatrices] = {}
        for flat, names, pieces in self._pieces():
            if names[0] not in self._muon:
                continue
            number = {name: i for i, name in enumerate(names)}
            mine = [Piece(number[name], start, first, numel) for name, start, first, numel in pieces]
            whole = [torch.Size(getattr(parameters[name], "ds_shape", parameters[name].shape)) for name in names]
            found[flat] = WholeMatrices(whole, self.ranks.gathered(mine), self.ranks)
        return found

    def step(self, micro_batches: list[dict[str, Tensor]]) -> dict[str, float]:
        """One update from this rank's micro-batches; metrics averaged over micro-batches and ranks.

        A loss or gradient that is not finite on any rank leaves every weight on every rank as it was; the
        step counts all the same, so schedule and data stay together. See `last_step_skipped`, `bad_passes`.
        """
        wanted = self.config["gradient_accumulation_steps"]
        if len(micro_batches) != wanted:
            raise ValueError(f"a step takes {wanted} micro-batches on each rank, got {len(micro_batches)}")
        self.learning_rate = learning_rate(self.spec, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate * group["lr_scale"]
        skipped, rows = self.skipped_steps, []
        names: list[str] = []
        passed: list[tuple[Any, Any]] = []
        for batch in micro_batches:
            batch = {name: tensor.to(self.ranks.device, non_blocking=True) for name, tensor in batch.items()}
            self._blocks.begin_pass()
            begun = now(self.ranks.device)
            outputs = self._engine(batch)
            passed.append((begun, now(self.ranks.device)))
            loss = outputs["loss"]
            # An infinite loss can have finite gradients; NaN gradients make every rank skip, whatever the
            # stage.
            self._engine.backward(loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan))
            self._blocks.end_pass()
            self._engine.step()
            names = names or ["loss", *sorted(set(outputs) - {"loss"})]
            rows.append(torch.stack([torch.as_tensor(outputs[n]).detach().float().to(loss.device) for n in names]))
        self.steps += 1
        self.last_step_skipped = self.skipped_steps > skipped
        table = torch.stack(rows)
        means = table.mean(0)
        if self.ranks.world_size > 1:
            dist.all_reduce(means)
            means /= self.ranks.world_size
        if self.last_step_skipped:
            self.bad_passes = [i for i, value in enumerate(table[:, 0].tolist()) if not abs(value) < float("inf")]
        norm = self._engine.get_global_grad_norm() if self.spec.zero_stage else self._optimizer._global_grad_norm
        metrics = dict(zip(names, means.tolist(), strict=True))  # waits for the device, so the clocks have stopped
        self.forward_s = sum(seconds(begun, ended) for begun, ended in passed)
        metrics["grad_norm"] = float(norm)
        return metrics

    @property
    def skipped_steps(self) -> int:
        """Steps that left the weights alone because a number was not finite."""
        return int(self._engine.skipped_steps)

    def save(self, folder: Path, client_state: dict[str, Any]) -> None:
        """Write weights, optimizer and `client_state` into `folder`; every rank must call this.

        Raises OSError or RuntimeError on a rank that cannot write, once all ranks are through.
        """
        state = {"client": client_state, "steps": self.steps, "precision": self.precision}
        held = {**state, "world_size": self.ranks.world_size, "zero_stage": self.spec.zero_stage}
        held["groups"] = self._groups
        writers = ((self._engine.checkpoint_engine, "save"), (self._engine, "_copy_recovery_script"))
        with errors_afterwards(*writers):
            self._engine.save_checkpoint(str(folder), tag=TAG, client_state={"egoscale": held}, save_latest=False)

    def load(self, folder: Path) -> dict[str, Any]:
        """Read what `save` wrote and return its `client_state`; every rank must call this, on a fresh engine.

        What another number of ranks or another ZeRO stage wrote is put together first (`reshape`), which rank
        0 does, once.

        Raises FileNotFoundError when nothing is there, DamagedError when the pieces do not fit together,
        ValueError when they are of another model.
        """
        if self.steps:
            raise ValueError("load into a fresh engine: DeepSpeed cannot reload one that has trained")
        if not self.ranks.all_true((folder / TAG).is_dir()):
            raise FileNotFoundError(f"{folder} holds no checkpoint (no folder {TAG!r} in it on some rank)")
        held = self._as_written(folder) if self._fits(folder) else self._joined(folder)
        self.steps = held["steps"]
        client: dict[str, Any] = held["client"]
        return client

    def _fits(self, folder: Path) -> bool:
        """Was it written at this ZeRO stage, by this number of ranks?"""
        stage, shards = self._by_main(lambda: shards_of(folder))
        same: bool = stage == self.spec.zero_stage and (stage == 0 or shards == self.ranks.world_size)
        return same

    def _by_main(self, what: Callable[[], Any]) -> Any:
        """Have rank 0 do something for all; its answer, or its error, on every rank."""
        answer: Any = None
        if self.ranks.main:
            try:
                answer = what()
            except (ValueError, OSError) as error:
                answer = error
        answer = self.ranks.from_main(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _as_written(self, folder: Path) -> dict[str, Any]:
        path, state = self._engine.load_checkpoint(str(folder), tag=TAG)
        if path is None or "egoscale" not in (state or {}):
            raise FileNotFoundError(f"DeepSpeed found no checkpoint of egoscale in {folder}")
        held: dict[str, Any] = state["egoscale"]
        return held

    def _joined(self, folder: Path) -> dict[str, Any]:
        """Load whole tensors by name into whatever pieces this engine holds."""
        full = self._by_main(lambda: reshape(folder))
        held: dict[str, Any] = torch.load(full / "state.pt", weights_only=False)
        self._set_weights(Tensors(full / "weights.safetensors"))
        moments = {kind: Tensors(full / f"{kind}.safetensors") for kind in held["kinds"]}
        for flat, names, pieces in self._pieces():
            # Muon's matrices have one moment, Adam's weights two; a weight that never had a gradient has none.
            state = {kind: torch.zeros_like(flat) for kind, of in moments.items() if of.names & set(names)}
            if not state:
                continue
            for name, start, first, numel in pieces:
                for kind, numbers in state.items():
                    if name in moments[kind].names:
                        whole = moments[kind](name).flatten()
                        numbers.view(-1)[start : start + numel] = whole[first : first + numel]
            # Fused AdamW wants its count where the numbers are, and does not move it.
            step = torch.tensor(held["optimizer_steps"], dtype=torch.float32, device=flat.device)
            self._inner.state[flat] = {"step": step, **state}
        return held

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """The optimizer inside DeepSpeed's wrapper."""
        inner: torch.optim.Optimizer = self._optimizer if self.spec.zero_stage == 0 else self._optimizer.optimizer
        return inner

    def _set_weights(self, weights: Tensors) -> None:
        """Every weight and buffer, by name; ValueError where names or shapes differ."""
        mine = dict(self.module.state_dict(keep_vars=True))
        missing, foreign = sorted(mine.keys() - weights.names), sorted(weights.names - mine.keys())
        if missing or foreign:
            raise ValueError(
                f"{weights.path}: weights of another model: it lacks {missing[:3]} and has {foreign[:3]} beside"
            )
        for name, tensor in mine.items():
            with torch.no_grad():
                if self.spec.zero_stage == 3 and isinstance(tensor, nn.Parameter):
                    with _deepspeed().zero.GatheredParameters([tensor], modifier_rank=0):
                        if self.ranks.main:
                            tensor.copy_(weights(name))
                else:
                    tensor.copy_(weights(name))
        if self.spec.zero_stage:
            self._optimizer.refresh_fp32_params()

    def _pieces(self) -> Iterator[tuple[Tensor, list[str], list[tuple[str, int, int, int]]]]:
        """What the optimizer holds on this rank: a tensor, the weights that it is a part of on all ranks, and (weight,
        place in it, place in the weight, numbers) for what of them is here."""
        parameters = dict(self.module.named_parameters())
        if self.spec.zero_stage == 0:
            for name in (name for group in self._groups for name in group):
                yield parameters[name], [name], [(name, 0, 0, parameters[name].numel())]
        elif self.spec.zero_stage == 3:
            names = {id(parameter): name for name, parameter in parameters.items()}
            groups = zip(self._optimizer.fp32_partitioned_groups_flat, self._optimizer.fp16_groups, strict=True)
            for flat, held in groups:
                pieces, start = [], 0
                for parameter in held:
                    part = parameter.partition_numel()
                    first = self.ranks.rank * part
                    pieces.append((names[id(parameter)], start, first, min(part, parameter.ds_numel - first)))
                    start += part
                here = [piece for piece in pieces if piece[3] > 0]  # the last parts may be padding alone
                yield flat, [piece[0] for piece in pieces], here
        else:
            for i, flat in enumerate(self._optimizer.single_partition_of_fp32_groups):
                pieces = []
                for name in self._groups[i]:
                    at: Any = vars(parameters[name])["_hp_mapping"]
                    if at is not None:  # None: no number of this weight lies on this rank
                        place, there = at.hp_fragment_address, at.lp_fragment_address
                        pieces.append((name, place.start, there.start, place.numel))
                yield flat, self._groups[i], pieces

    def full_state_dict(self) -> dict[str, Tensor]:
        """All weights and buffers in fp32 on the CPU, on rank 0; an empty dict on the others, who must call
        it too."""
        state: dict[str, Tensor] = {}
        gathered = _deepspeed().zero.GatheredParameters if self.spec.zero_stage == 3 else None
        with torch.no_grad():
            for name, tensor in self.module.state_dict(keep_vars=True).items():
                if gathered and isinstance(tensor, nn.Parameter):
                    with gathered([tensor]):
                        if self.ranks.main:
                            state[name] = tensor.detach().to("cpu", torch.float32, copy=True)
                elif self.ranks.main:
                    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
                    state[name] = tensor.detach().to("cpu", dtype, copy=True)
        return state

    def close(self, whole: bool = False) -> None:
        """Release DeepSpeed's hooks, and what it remembers of the process group, so that another engine can
        start.

        The module keeps its weights at stages 0-2; at stage 3 only if `whole`, which every rank must then ask
        for.
        """
        engine, self._engine = self._engine, None
        if engine is None:
            return
        fresh: dict[int, nn.Parameter] = {}
        if whole and self.spec.zero_stage == 3:
            for parameter in self.module.parameters():
                with _deepspeed().zero.GatheredParameters([parameter]), torch.no_grad():
                    fresh[id(parameter)] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        engine.destroy()
        for module in self.module.modules() if fresh else ():
            # Stage 3 leaves parameters and tables of parameters that gather on sight: put ordinary ones in
            # their place.
            held = {name: p if p is None else fresh[id(p)] for name, p in module._parameters.items()}
            module.__dict__["_parameters"] = held
        nn.functional.linear = self._linear
        self._blocks.release()
        self.module.__dict__.pop("forward", None)
        _live.discard(self)
        _forget_groups()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
