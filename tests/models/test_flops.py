import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from egoscale.models.blocks import SpaceTimeStack
from egoscale.models.dynamics import WorldModel
from egoscale.models.flops import code_flops, latent_action_flops, stack_flops, tokenizer_flops, world_flops
from egoscale.models.latent_action import LatentActionModel
from egoscale.models.video_tokenizer import VideoTokenizer
from egoscale.recipe import WorldSpec

WIDE = dict(width=256, num_layers=4, num_heads=8, num_kv_heads=4, temporal_every=2, num_registers=2)
BLOCKS = dict(width=64, num_layers=2, num_heads=4, num_kv_heads=2, temporal_every=0, num_registers=2)


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("temporal_every, frames", [(0, 1), (2, 4)])
def test_a_stack_costs_what_the_counter_says(temporal_every, frames):
    blocks = {**BLOCKS, "temporal_every": temporal_every}
    stack = SpaceTimeStack(**blocks)
    seen = counted(lambda: stack(torch.randn(1, frames, 30, 64)))
    assert stack_flops(blocks, 30, frames) == pytest.approx(seen, rel=0.02)


def test_models_cost_what_the_counter_says():
    given = dict(image_size_px=64, patch_size_px=8, num_latents=64, latent_dim=16, encoder=BLOCKS, decoder=BLOCKS)
    tokenizer = VideoTokenizer(max_mask_fraction=0.5, **given)
    seen = counted(lambda: tokenizer.decode(tokenizer.encode(torch.rand(1, 1, 3, 64, 64))))
    assert tokenizer_flops(given) == pytest.approx(seen, rel=0.02)
    through_time = dict(given, encoder={**WIDE, "temporal_every": 2}, decoder={**WIDE, "temporal_every": 2})
    tokenizer = VideoTokenizer(max_mask_fraction=0.5, **through_time)
    seen = counted(lambda: tokenizer.decode(tokenizer.encode(torch.rand(1, 4, 3, 64, 64))))
    assert tokenizer_flops(through_time, 4) == pytest.approx(seen, rel=0.02)

    given = dict(num_latents=64, latent_dim=16, encoder=WIDE, decoder=WIDE)
    model = LatentActionModel(
        action_dim=8, max_stride_frames=4, bottleneck="gaussian", beta=1e-3, free_bits_nats=0.0, fsq_levels=5,
        changed_weight=1.0, **given,
    )  # fmt: skip
    frame = torch.randn(1, 64, 16)
    seen = counted(lambda: model.decode(frame, model.encode(frame, frame)[0], torch.ones(1).long()))
    assert latent_action_flops(given) == pytest.approx(seen, rel=0.02)
    assert code_flops(given) == pytest.approx(counted(lambda: model.encode(frame, frame)), rel=0.02)


@pytest.mark.parametrize("frames", [4, 16])
def test_a_training_step_of_the_world_model_costs_what_the_counter_says(frames):
    """Forward and backward, the two half steps of shortcut samples, and the agent's frames."""
    B, M, N, D, A = 4, 4, 64, 16, 32
    spec = WorldSpec(context_frames=frames, shortcut_fraction=0.25).model_dump()
    given = {**spec, "blocks": {**WIDE, "temporal_every": 2}, "num_latents": N, "latent_dim": D}
    model = WorldModel(**given, action_dim=A, num_strides=2)
    batch = {
        "latents": torch.rand(B, frames, N, D), "noise": torch.randn(B, frames, N, D),
        "actions": torch.zeros(B, frames, A), "has_action": torch.ones(B, frames, dtype=torch.bool),
        "tau_draw": torch.rand(B, frames), "step_draw": torch.rand(B),
        "shortcut": torch.arange(B) < B // 4, "num_clean": torch.zeros(B, dtype=torch.long),
        "agent_latents": torch.rand(B, M, N, D), "agent_words": torch.ones(B, M, spec["max_words"], dtype=torch.long),
        "agent_codes": torch.zeros(B, M, 2, A),
    }  # fmt: skip
    seen = counted(lambda: model(batch)["loss"].backward())
    assert 3 * B * world_flops(given, M) == pytest.approx(seen, rel=0.02)
