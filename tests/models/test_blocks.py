import pytest
import torch

from egoscale.models.blocks import Memory, SpaceTimeStack, places


def stack(**changes):
    torch.manual_seed(0)
    sizes = dict(width=32, num_layers=4, num_heads=4, num_kv_heads=2, temporal_every=2, num_registers=2)
    made = SpaceTimeStack(**{**sizes, **changes})
    for parameter in made.parameters():  # a fresh block is the identity: give it something to do
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def test_the_future_never_reaches_the_past():
    x = torch.randn(2, 5, 7, 32)
    y = stack()(x)
    changed = x.clone()
    changed[:, 3:] += 1
    z = stack()(changed)
    torch.testing.assert_close(z[:, :3], y[:, :3])
    assert not torch.allclose(z[:, 3:], y[:, 3:])


def test_cached_frames_equal_the_whole_clip():
    x, net = torch.randn(2, 6, 5, 32), stack()
    whole, memory = net(x), Memory()
    parts = [net(x[:, :2], memory=memory)] + [net(x[:, t : t + 1], memory=memory) for t in range(2, 6)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def test_a_trimmed_cache_forgets_the_oldest_frames_only():
    x, net = torch.randn(1, 5, 3, 32), stack(num_layers=2)
    memory = Memory()
    net(x[:, :4], memory=memory)
    memory.trim(2)
    kept = net(x[:, 4:], memory=memory)
    # Rotary embeddings are relative: a clip that starts two frames later gives the same.
    torch.testing.assert_close(kept, net(x[:, 2:])[:, 2:], atol=1e-5, rtol=1e-5)


def test_a_mask_hides_columns_from_rows():
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[:4, 4:] = False  # the first four tokens must not see the last two
    x, net = torch.randn(1, 1, 6, 32), stack()
    changed = x.clone()
    changed[:, :, 4:] += 1
    torch.testing.assert_close(net(x, mask)[:, :, :4], net(changed, mask)[:, :, :4])
    assert not torch.allclose(net(x)[:, :, :4], net(changed)[:, :, :4])


def test_without_temporal_attention_frames_are_independent():
    net = stack(temporal_every=0)
    x = torch.randn(2, 3, 4, 32)
    alone = torch.cat([net(x[:, t : t + 1]) for t in range(3)], 1)
    torch.testing.assert_close(net(x), alone, atol=1e-6, rtol=1e-5)


def test_bf16_is_near_fp32():
    net, x = stack(), torch.randn(2, 2, 9, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x)
    assert low.dtype == torch.bfloat16
    assert (low.float() - net(x)).norm() / net(x).norm() < 0.03


@pytest.mark.parametrize("sizes", [dict(width=30), dict(num_heads=3), dict(num_kv_heads=3)])
def test_sizes_that_do_not_divide_are_refused(sizes):
    with pytest.raises(ValueError, match="width"):
        stack(**sizes)


def test_places_tell_cells_apart():
    place = places(64, 32)
    assert place.shape == (64, 32)
    assert torch.cdist(place, place).fill_diagonal_(9).min() > 0.01


def test_a_single_frame_takes_the_short_way_to_the_same_place():
    x, net = torch.randn(3, 1, 5, 32), stack()
    torch.testing.assert_close(net(x), net(x, memory=Memory()), atol=1e-5, rtol=1e-5)
