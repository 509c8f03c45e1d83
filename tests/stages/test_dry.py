"""What a dry run predicts, against what a step on this machine holds; and what it says."""

import json
from pathlib import Path

import dry_run as bench
import pytest
import torch
import torch.nn.functional as F

from egoscale.models.blocks import RMSNorm, SpaceTimeStack
from egoscale.models.latent_action import LatentActionModel
from egoscale.models.memory import Kernels, latent_action_bytes, stack_bytes, tokenizer_bytes
from egoscale.models.video_tokenizer import VideoTokenizer
from egoscale.recipe import EvaluateRecipe, LatentActionRecipe, TokenizerRecipe, WorldRecipe
from egoscale.stages.dry import Layout, Model, Place, cost, layout, model_of
from egoscale.stages.dry_page import lines, told
from egoscale.train.engine import Engine
from egoscale.train.ranks import ranks

ROOT = Path(__file__).resolve().parents[2]

BLOCKS = dict(width=128, num_layers=4, num_heads=4, num_kv_heads=2)
WIDE = dict(width=256, num_layers=4, num_heads=4, num_kv_heads=2, temporal_every=2, num_registers=2)
TRAIN = dict(num_steps=10, batch_size=8)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("again", ["none", "alternate", "all"])
def test_a_step_of_a_world_model_holds_what_was_predicted(precision, again):
    of = bench.recipe(BLOCKS, precision=precision, checkpoint_activations=again)
    saw, (parameters, flops, parts) = bench.measured(of), bench.predicted(of)
    assert parameters == saw.parameters
    assert flops == pytest.approx(saw.flops, rel=0.02)
    kept = parts.bytes_by_part["activations"]
    # The copies of weights in blocks that are computed again are let go of at the forward pass's end.
    copies = parts.bytes_by_part.get("bf16 copies", 0.0)
    assert kept <= saw.activations * 1.1
    assert saw.activations <= (kept + copies) * 1.1
    if precision == "fp32" or again == "none":
        assert kept + copies == pytest.approx(saw.activations, rel=0.1)


@pytest.mark.parametrize(
    "stage, offload",
    [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (1, "optimizer"), (2, "optimizer"), (3, "parameters")],
)
def test_the_engine_holds_what_was_predicted(stage, offload):
    of = bench.recipe(BLOCKS, zero_stage=stage, offload=offload)
    _, _, parts = bench.predicted(of)
    assert bench.state_bytes(parts) == pytest.approx(bench.measured_state(of), rel=0.1)


@pytest.mark.parametrize("again", ["none", "alternate", "all"])
def test_pairs_and_frames_keep_what_was_predicted(again):
    given = dict(num_latents=64, latent_dim=16, encoder={**WIDE, "temporal_every": 0}, decoder=WIDE)
    model = LatentActionModel(
        action_dim=8, max_stride_frames=4, bottleneck="gaussian", beta=1e-3, free_bits_nats=0.0, fsq_levels=5,
        changed_weight=1.0, **given,
    )  # fmt: skip
    pairs = {"first": torch.rand(4, 64, 16), "second": torch.rand(4, 64, 16), "stride": torch.ones(4).long()}
    pairs |= {"noise": torch.randn(4, 8), "beta_scale": torch.ones(4)}
    saw = _kept(model, pairs, again)
    assert latent_action_bytes(given, Kernels(4, False), again).times(4).held == pytest.approx(saw, rel=0.1)

    given = dict(image_size_px=64, patch_size_px=8, num_latents=64, latent_dim=16, encoder=WIDE, decoder=WIDE)
    model = VideoTokenizer(max_mask_fraction=0.5, **given)
    frames = {"frames": torch.zeros(2, 4, 3, 64, 64, dtype=torch.uint8), "mask_draw": torch.rand(2)}
    saw = _kept(model, {**frames, "mask_noise": torch.rand(2, 4, 64)}, again)
    assert tokenizer_bytes(given, Kernels(4, False), again, 4).times(2).held == pytest.approx(saw, rel=0.1)


def _kept(model, batch, again):
    for stack in (model.encoder, model.decoder):
        stack.recompute(again)
    with bench.kept(model) as found:
        loss = model(batch)["loss"]
    loss.backward()
    return sum(found.values())


class Norm(torch.autograd.Function):
    """A norm that keeps what a GPU's keeps: its input, and a number a token."""

    @staticmethod
    def forward(ctx, x, weight):
        scale = x.float().square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        ctx.save_for_backward(x.float(), scale, weight)
        return x * scale * weight

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def test_with_the_kernels_of_a_gpu_a_block_keeps_less(monkeypatch):
    """torch's own fused attention, which a CPU has too, and a stand-in for the fused norm."""

    def attend(self, q, k, v, mask, causal):
        groups = q.shape[1] // k.shape[1]
        keys, values = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))

    stack = SpaceTimeStack(**WIDE)
    monkeypatch.setattr(type(stack.blocks[0].space), "attend", attend)
    monkeypatch.setattr(RMSNorm, "forward", lambda self, x: Norm.apply(x, self.weight))
    with bench.kept(stack) as found:
        out = stack(torch.randn(2, 8, 60, 256))
    out.sum().backward()
    wanted = stack_bytes(WIDE, 60, Kernels(4, True), num_frames=8).times(2).held
    assert wanted == pytest.approx(sum(found.values()), rel=0.1)
    assert wanted < stack_bytes(WIDE, 60, Kernels(4, False), num_frames=8).times(2).held


def test_a_checkpoint_is_as_large_as_said(tmp_path):
    for stage in (0, 2):
        of = bench.recipe(BLOCKS, zero_stage=stage)
        model, batch = bench.model_and_batch(of)
        with ranks() as alone, Engine(model, of.train, alone) as engine:
            engine.step([batch] * 2)
            engine.save(tmp_path / str(stage), {})
        files = [path for path in (tmp_path / str(stage)).rglob("*") if path.is_file()]
        assert cost(of).checkpoint_bytes == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)


def test_stages_cut_what_each_device_holds():
    model = Model(2_000_000_000, 1_900_000_000, 0, 1e12, 0.0, 20, bench.model_of(bench.recipe(BLOCKS)).kept)

    def parts(stage: int, gpus: int = 64, **train) -> dict[str, float]:
        spec = bench.recipe(BLOCKS, zero_stage=stage, batch_size=256, micro_batch_size=4, **train).train
        return layout(model, spec, Place(gpus)).bytes_by_part

    assert parts(0)["moments"] == 16e9 and parts(0)["gradients"] == 8e9
    assert parts(1)["moments"] == parts(2)["moments"] == parts(3)["moments"] == 16e9 / 64
    assert parts(2)["weights"] == 8e9 and parts(3)["weights"] == 8e9 / 64
    assert parts(3)["weights gathered"] == 4e9
    assert parts(1, gpus=32)["gradients"] == 8e9 > parts(2, gpus=32)["gradients"]  # whole ones, summed over two passes
    assert "moments" not in parts(2, offload="optimizer") and "weights" in parts(2, offload="optimizer")
    assert "weights" not in parts(3, offload="parameters")
    assert parts(2, precision="bf16")["bf16 copies"] == 2 * 1.9e9
    small = {"zero_optimization": {"reduce_bucket_size": 1_000_000}}
    assert parts(2, deepspeed=small)["gradient buffers"] == 8e6 < parts(2)["gradient buffers"]


def test_muon_has_one_moment_for_matrices_of_blocks():
    adamw, muon = (cost(WorldRecipe(train={**TRAIN, "optimizer": kind})) for kind in ("adamw", "muon"))
    assert muon.checkpoint_bytes < adamw.checkpoint_bytes
    moments = [of.layouts[0].bytes_by_part["moments"] for of in (muon, adamw)]
    assert 0.5 < moments[0] / moments[1] < 0.7


def test_a_recipe_is_told_for_one_and_for_eight_gpus_or_for_a_cluster(tmp_path):
    recipe = LatentActionRecipe(train=TRAIN, hours=10.0, rate_hz=5.0)
    said = told(recipe, price=2.0)
    assert any(line.startswith("GPUs") and line.split() == ["GPUs", "1", "8"] for line in said)
    plain = json.loads(told(recipe, profile=ROOT / "slurm/profiles/h200.toml", as_json=True)[0])
    assert plain["device"] == "H200" and plain["layouts"][0]["place"]["num_gpus"] == 8
    assert plain["epochs"] == {"5 Hz": pytest.approx(10 * 8 * 2 / (10 * 3600 * 5))}
    nvml = tmp_path / "nvml.toml"
    h100 = (ROOT / "slurm/profiles/h100.toml").read_text()
    nvml.write_text(h100.replace('gpu_type = "h100"', 'gpu_type = "nvidia_h100_80gb_hbm3"'))
    by_nvml = told(recipe, profile=nvml)
    assert any("of an NVIDIA H100 80GB HBM3 at 40% of 989 TFLOP/s" in line for line in by_nvml)
    assert any(line.split() == ["of", "80", "GB"] for line in by_nvml)
    assert any("of a B200 at" in line for line in lines(cost(recipe, [Place(8, "B200")])))
    refused = told(recipe, gpus=(3,))
    assert any("does not divide among 3 ranks" in line for line in refused)
    wide = told(recipe, tokenizer=ROOT / "tokenizers/egocentric-256px.toml")
    assert "assumed          a tokenizer of 256 x 32 latents a frame" in wide
    with pytest.raises(ValueError, match="has no gpus_per_node or no gpu_type"):
        told(recipe, profile=ROOT / "slurm/profiles/cpu-test.toml")
    with pytest.raises(ValueError, match="--dry-run knows tokenizer"):
        told(EvaluateRecipe(num_episodes=1))


def test_recomputation_costs_hours_and_saves_memory():
    plain, again = (
        cost(TokenizerRecipe(train={**TRAIN, "checkpoint_activations": which})) for which in ("none", "all")
    )
    assert again.gpu_hours == pytest.approx(plain.gpu_hours * 4 / 3)
    kept = [of.layouts[0].bytes_by_part["activations"] for of in (again, plain)]
    assert kept[0] < kept[1] / 5


def test_what_does_not_fit_is_marked():
    of = cost(WorldRecipe(train={"num_steps": 1, "batch_size": 65536}))
    assert any(line.endswith("!") for line in lines(of))
    assert isinstance(of.layouts[0], Layout)
    assert model_of(WorldRecipe(train=TRAIN)).parameters == of.parameters
