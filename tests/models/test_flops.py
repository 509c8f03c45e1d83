import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from egoscale.models.blocks import SpaceTimeStack
from egoscale.models.flops import latent_action_flops, stack_flops, tokenizer_flops
from egoscale.models.latent_action import LatentActionModel
from egoscale.models.video_tokenizer import VideoTokenizer

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
    assert tokenizer_flops(given) == pytest.approx(seen, rel=0.03)

    given = dict(num_latents=64, latent_dim=16, encoder=BLOCKS, decoder=BLOCKS)
    model = LatentActionModel(
        action_dim=8, max_stride_frames=4, bottleneck="gaussian", beta=1e-3, free_bits_nats=0.0, fsq_levels=5,
        changed_weight=1.0, **given,
    )  # fmt: skip
    frame = torch.randn(1, 64, 16)
    seen = counted(lambda: model.decode(frame, model.encode(frame, frame)[0], torch.ones(1).long()))
    assert latent_action_flops(given) == pytest.approx(seen, rel=0.05)
