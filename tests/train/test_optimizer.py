"""Muon: the same steps as torch's own, at every ZeRO stage, on any number of ranks, across restarts."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from egoscale.train.engine import Engine
from egoscale.train.muon import Piece, WholeMatrices, orthogonal
from egoscale.train.optimizer import parameter_groups
from egoscale.train.ranks import Ranks
from egoscale.train.reshape import reshape
from egoscale.train.schedule import learning_rate

STAGES = (0, 1, 2, 3)


def test_muon_has_the_matrices_inside_blocks_and_adam_the_rest(block_run):
    model = block_run.Net()
    settings = block_run.spec(optimizer="muon", muon_learning_rate=0.05, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, settings, lambda name: 0.5 if "blocks.0" in name else 1.0)
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["muon"] == ("blocks" in name and parameter.ndim == 2), name
            rate = settings.learning_rate * group["lr_scale"]
            expected = (0.05 if group["muon"] else 0.01) * (0.5 if "blocks.0" in name else 1.0)
            assert rate == pytest.approx(expected), name
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0)
    assert sum(group["muon"] for group in groups) == 2  # two learning rates
    assert all("muon" not in group for group in parameter_groups(model, block_run.spec(), None))


def test_a_model_without_matrices_for_muon_is_refused(block_run, worker):
    for model, scale in ((worker.Tiny(), None), (block_run.Net(), lambda name: float("trunk" not in name))):
        with pytest.raises(
            ValueError, match=f"{type(model).__name__} has no matrix to train inside a space-time block"
        ):
            parameter_groups(model, block_run.spec(optimizer="muon"), scale)


def test_the_steps_are_those_of_torchs_muon_and_adamw(block_run, alone):
    settings = block_run.spec(optimizer="muon", weight_decay=0.1, clip_norm=0.2)
    model, peer = block_run.Net(), block_run.Net()
    inside = [p for name, p in peer.named_parameters() if "blocks" in name and p.ndim == 2]
    matrices = [p for name, p in peer.named_parameters() if "blocks" not in name and p.ndim == 2]
    gains = [p for p in peer.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(inside, weight_decay=0.1, momentum=0.95, nesterov=True)
    adam = torch.optim.AdamW(
        [{"params": matrices}, {"params": gains, "weight_decay": 0.0}], weight_decay=0.1, betas=(0.9, 0.98), eps=1e-8
    )
    with Engine(model, settings, alone) as engine:
        for step in range(settings.num_steps):
            peer.load_state_dict(model.state_dict())  # else roundings grow from step to step
            engine.step([block_run.batch_at(step)])
            rate = learning_rate(settings, step)
            for group in adam.param_groups:
                group["lr"] = rate
            muon.param_groups[0]["lr"] = rate * settings.muon_learning_rate / settings.learning_rate
            peer.zero_grad()
            peer(block_run.batch_at(step))["loss"].backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 0.2)
            adam.step()
            muon.step()
            for (name, ours), theirs in zip(model.named_parameters(), peer.parameters(), strict=True):
                # Newton-Schulz rounds to bf16, so the last digit of a clipped gradient is seen in a step of 0.01.
                assert (ours - theirs).detach().abs().max() < 3e-4, (step, name)
    start = block_run.Net().trunk.blocks[0].space.qkv.weight
    assert (model.trunk.blocks[0].space.qkv.weight - start).detach().abs().max() > 1e-2


def test_pieces_of_matrices_are_put_together_and_cut_again():
    torch.manual_seed(0)
    matrices = [torch.randn(6, 4), torch.randn(3, 8), torch.randn(5, 5)]
    # In a flat tensor of another order, each matrix in two pieces, padding at the end.
    flat, pieces, at = torch.zeros(80), [], 0
    for half in (0, 1):
        for i in (2, 0, 1):
            numbers = matrices[i].flatten()
            cut = 7
            part = numbers[cut:] if half else numbers[:cut]
            flat[at : at + len(part)] = part
            pieces.append(Piece(i, at, cut * half, len(part)))
            at += len(part)
    update = WholeMatrices([m.shape for m in matrices], [pieces[::-1]], Ranks(0, 1, 0)).orthogonal(flat)
    for piece in pieces:
        wanted = orthogonal(matrices[piece.matrix]).flatten()[piece.first : piece.first + piece.numel]
        assert torch.equal(update[piece.start : piece.start + piece.numel], wanted)
    assert not update[at:].any()
    # All singular values of a step are about one, times sqrt(rows / columns) where there are more rows.
    values = torch.linalg.svdvals(-orthogonal(matrices[0])) / (6 / 4) ** 0.5
    assert values.min() > 0.5 and values.max() < 1.3


@pytest.mark.ranks
def test_every_stage_takes_the_same_steps_on_two_ranks_and_goes_on_on_one(block_run, two_ranks, alone):
    folder, seen = two_ranks
    first = seen["muon-exact-0"]
    assert first[-1] < first[0]
    for stage in STAGES:
        assert seen[f"muon-exact-{stage}"] == first, stage  # to the last digit
        # Elsewhere the last digit of a gradient, rounded to bf16 in Newton-Schulz, is seen in the fifth of the loss.
        assert seen[f"muon-{stage}"] == pytest.approx(seen["muon-0"], abs=3e-4)
    one = block_run.losses(alone, optimizer="muon", micro_batch_size=1)
    assert seen["muon-0"] == pytest.approx(one, abs=3e-4)
    for before, after in ((0, 3), (1, 0), (2, 1), (3, 2), (3, 0)):
        shutil.copytree(folder / f"half-{before}", folder / f"{before}-{after}")
        on = block_run.run(folder / f"{before}-{after}", alone, zero_stage=after, optimizer="muon")
        assert on == pytest.approx(seen[f"whole-{before}"], abs=1e-3) and len(on) == 6


def test_a_run_goes_on_at_every_stage_with_every_moment(block_run, alone, tmp_path):
    whole = {
        stage: block_run.run(made(tmp_path / f"{stage}"), alone, zero_stage=stage, optimizer="muon") for stage in STAGES
    }
    for before, after in itertools.product(STAGES, STAGES):
        folder = made(tmp_path / f"{before}-{after}")
        block_run.run(folder, alone, stop_at=3, zero_stage=before, optimizer="muon")
        [middle] = (folder / "checkpoints").glob("step-*4")
        if before != after:
            kinds = {
                kind: load_file(reshape(middle) / f"{kind}.safetensors")
                for kind in ("momentum_buffer", "exp_avg", "exp_avg_sq")
            }
            matrices = {n for n, p in block_run.Net().named_parameters() if "blocks" in n and p.ndim == 2}
            assert kinds["momentum_buffer"].keys() == matrices
            assert kinds["exp_avg"].keys() == kinds["exp_avg_sq"].keys()
            assert kinds["exp_avg"].keys() | matrices == {n for n, _ in block_run.Net().named_parameters()}
            assert torch.load(middle / "full" / "state.pt", weights_only=False)["optimizer_steps"] == 4.0
        on = block_run.run(folder, alone, zero_stage=after, optimizer="muon")
        if before == after:
            assert on == whole[before]
        else:
            assert on == pytest.approx(whole[before], abs=3e-4)


def made(folder):
    folder.mkdir()
    return folder


QUIET = """
import sys, warnings
warnings.simplefilter("always")
sys.path.insert(0, sys.argv[1])
import block_run
from egoscale.train.ranks import ranks
with ranks() as alone:
    for optimizer in ("muon", "adamw"):
        for stage in (0, 1, 3):
            block_run.losses(alone, optimizer=optimizer, zero_stage=stage, num_steps=2)
"""


def test_a_fresh_process_has_nothing_to_say(block_run):
    """DeepSpeed imports its Muon at the first engine of a process, and torch's compiler with it."""
    command = [sys.executable, "-c", QUIET, str(Path(block_run.__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_events_tell_nothing_of_an_untested_optimizer(block_run, alone, tmp_path, capfd):
    block_run.run(made(tmp_path / "run"), alone, zero_stage=1, optimizer="muon", num_steps=1)
    said = capfd.readouterr()
    assert "untested" not in said.out + said.err
    assert json.loads((tmp_path / "run" / "deepspeed.json").read_text())["zero_optimization"]["stage"] == 1
