import pytest
import torch

from egoscale.models.latent_action import LatentActionModel

BLOCKS = dict(width=32, num_layers=1, num_heads=2, num_kv_heads=1, temporal_every=0, num_registers=1)


def model(**changes):
    torch.manual_seed(0)
    sizes = dict(
        num_latents=16, latent_dim=4, action_dim=3, max_stride_frames=8, bottleneck="gaussian", beta=1e-3,
        free_bits_nats=0.02, fsq_levels=5, changed_weight=10.0, encoder=BLOCKS, decoder=BLOCKS,
    )  # fmt: skip
    return LatentActionModel(**{**sizes, **changes})


def moving_spot(num, generator):
    """A bright token that jumps from one cell of a 4 x 4 grid to another."""
    first, second = torch.zeros(num, 16, 4), torch.zeros(num, 16, 4)
    start = torch.randint(16, (num,), generator=generator)
    end = torch.randint(16, (num,), generator=generator)
    first[torch.arange(num), start], second[torch.arange(num), end] = 1.0, 1.0
    return first, second, end


def batch(first, second, noise=0.0):
    B = len(first)
    return {
        "first": first, "second": second, "stride": torch.ones(B, dtype=torch.long),
        "noise": noise * torch.randn(B, 3), "beta_scale": torch.ones(B),
    }  # fmt: skip


@pytest.mark.parametrize("bottleneck", ["gaussian", "fsq"])
def test_the_code_learns_where_things_go(bottleneck):
    net, generator = model(bottleneck=bottleneck), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3)
    torch.manual_seed(0)
    for _ in range(250):
        first, second, _ = moving_spot(64, generator)
        optimizer.zero_grad()
        net(batch(first, second, noise=1.0))["loss"].backward()
        optimizer.step()
    first, second, _ = moving_spot(256, generator)
    with torch.no_grad():
        explained = 1 - float(net(batch(first, second))["unexplained"])
        code, _ = net.encode(first, second)
        wrong, still = net.weighted(first, second, net.decode(first, code.roll(1, 0), torch.ones(256).long()))
    assert explained > 0.3
    assert float(wrong.mean() / still.mean()) > 1 - explained + 0.2  # another pair's code explains less


@pytest.mark.parametrize("bottleneck", ["gaussian", "fsq"])
def test_a_batch_costs_what_its_halves_cost(bottleneck):
    """Ranks and passes cut a batch anywhere: numbers near the floor must not cost more in small pieces."""
    net = model(bottleneck=bottleneck, beta=1.0)
    lots = torch.Generator().manual_seed(0)
    whole = batch(torch.randn(24, 16, 4, generator=lots), torch.randn(24, 16, 4, generator=lots), noise=1.0)
    loss = net(whole)["loss"]
    for size in (12, 4, 1):
        parts = [net({name: held[i : i + size] for name, held in whole.items()})["loss"] for i in range(0, 24, size)]
        assert float(torch.stack(parts).mean()) == pytest.approx(float(loss), rel=1e-5)


def test_an_untrained_decoder_says_nothing_changed():
    first, _second, _ = moving_spot(8, torch.Generator().manual_seed(0))
    rebuilt = model().decode(first, torch.randn(8, 3), torch.ones(8).long())
    assert (rebuilt - first).abs().max() < 0.3


def test_fsq_codes_lie_on_their_levels():
    code, _ = model(bottleneck="fsq").encode(torch.randn(9, 16, 4), torch.randn(9, 16, 4))
    assert torch.allclose(code * 2, (code * 2).round(), atol=1e-5) and code.abs().max() <= 1


def test_what_moved_weighs_more():
    first, second, _ = moving_spot(4, torch.Generator().manual_seed(3))
    still, moved = first.clone(), first.clone()
    still += 0.1 * (first == second)  # an error where nothing changed
    moved += 0.1 * (first != second)
    net = model()
    light = net.weighted(first, second, second + (still - first))[0] / (first == second).sum((1, 2))
    heavy = net.weighted(first, second, second + (moved - first))[0] / (first != second).sum((1, 2)).clamp_min(1)
    assert bool((heavy > 3 * light)[(first != second).any(-1).any(-1)].all())
