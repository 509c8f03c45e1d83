import pytest
import torch

from egoscale.models.video_tokenizer import VideoTokenizer, frames_of, patches

BLOCKS = dict(width=32, num_layers=1, num_heads=2, num_kv_heads=1, temporal_every=0, num_registers=1)


def tokenizer(**changes):
    torch.manual_seed(0)
    sizes = dict(image_size_px=32, patch_size_px=8, num_latents=16, latent_dim=12, max_mask_fraction=0.5)
    return VideoTokenizer(**{**sizes, "encoder": BLOCKS, "decoder": BLOCKS, **changes})


def batch(frames, hidden=0.0):
    return {
        "frames": frames,
        "mask_draw": torch.full((len(frames),), hidden),
        "mask_noise": torch.rand(len(frames), frames.shape[1], 16),
    }


def test_patches_and_frames_are_inverse():
    frames = torch.rand(2, 3, 3, 32, 32)
    assert torch.equal(frames_of(patches(frames, 8), 8), frames)


@pytest.mark.parametrize("num_latents", [16, 4])
def test_latents_are_bounded_and_frames_come_back_in_shape(num_latents):
    model = tokenizer(num_latents=num_latents)
    frames = torch.rand(2, 3, 3, 32, 32)
    latents = model.encode(frames)
    assert latents.shape == (2, 3, num_latents, 12) and latents.abs().max() < 1
    assert model.decode(latents).shape == frames.shape


def test_it_learns_to_rebuild_a_few_frames():
    model = tokenizer()
    frames = (torch.rand(4, 1, 3, 4, 4).repeat_interleave(8, -1).repeat_interleave(8, -2) * 255).byte()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    before = float(model(batch(frames))["psnr_db"])
    for _ in range(80):
        optimizer.zero_grad()
        model(batch(frames))["loss"].backward()
        optimizer.step()
    assert float(model(batch(frames))["psnr_db"]) > before + 10


def test_hidden_patches_change_the_loss():
    model, frames = tokenizer(), torch.randint(0, 255, (2, 1, 3, 32, 32), dtype=torch.uint8)
    assert float(model(batch(frames, 1.0))["loss"]) != float(model(batch(frames, 0.0))["loss"])


@pytest.mark.parametrize("changes", [dict(image_size_px=30), dict(num_latents=9), dict(num_latents=15)])
def test_sizes_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        tokenizer(**changes)
