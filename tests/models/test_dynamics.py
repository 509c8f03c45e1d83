import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from egoscale.models.dynamics import WorldModel, word_ids

BLOCKS = dict(width=32, num_layers=2, num_heads=2, num_kv_heads=1, temporal_every=2, num_registers=1)
B, T, N, D, A, K, M, W = 4, 3, 9, 4, 3, 2, 2, 5


def world(**changes):
    torch.manual_seed(0)
    sizes = dict(
        num_latents=N, latent_dim=D, action_dim=A, num_strides=K, blocks=BLOCKS, context_frames=T,
        num_agent_tokens=2, vocabulary_size=64, max_words=W, sampling_steps=4, agent_loss_weight=1.0,
        shortcut_fraction=0.25,
    )  # fmt: skip
    return WorldModel(**{**sizes, **changes})


def batch(shortcut=False):
    torch.manual_seed(1)
    return {
        "latents": torch.randn(B, T, N, D), "noise": torch.randn(B, T, N, D), "actions": torch.randn(B, T, A),
        "has_action": torch.rand(B, T) > 0.2, "tau_draw": torch.rand(B, T), "step_draw": torch.rand(B),
        "shortcut": torch.full((B,), shortcut), "num_clean": torch.tensor([0, 1, 2, 0]),
        "agent_latents": torch.randn(B, M, N, D),
        "agent_words": torch.randint(1, 60, (B, M, W)), "agent_codes": torch.randn(B, M, K, A),
    }  # fmt: skip


def stirred(model):
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("shortcut", [False, True])
def test_every_parameter_learns(shortcut):
    model = stirred(world())
    model(batch(shortcut))["loss"].backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert silent == []  # ZeRO stage 3 stumbles over unused parameters


def test_words_never_reach_the_dynamics_but_reach_the_agent():
    model, given_batch = stirred(world()), batch()
    clean = torch.full((B, T), 16)
    before = model.denoise(given_batch["latents"], None, None, clean, torch.full_like(clean, 4))
    codes, _ = model.agent(given_batch["latents"], given_batch["agent_words"][:, 0])
    others, _ = model.agent(given_batch["latents"], given_batch["agent_words"][:, 1])
    assert codes.shape == (B, T, K, A) and not torch.allclose(codes, others)
    torch.testing.assert_close(
        model.denoise(given_batch["latents"], None, None, clean, torch.full_like(clean, 4)), before
    )


def test_actions_matter_and_the_future_does_not():
    model, z = stirred(world()), torch.randn(1, T, N, D)
    tau, step = torch.full((1, T), 8), torch.full((1, T), 4)
    actions = torch.randn(1, T, A)
    y = model.denoise(z, actions, None, tau, step)
    changed = actions.clone()
    changed[:, 1] += 1
    other = model.denoise(z, changed, None, tau, step)
    torch.testing.assert_close(other[:, 0], y[:, 0])
    assert not torch.allclose(other[:, 1], y[:, 1])


def test_it_learns_dynamics_that_only_the_action_tells():
    """Frame t + 1 is frame t shifted by the action: with the action the loss falls well below the loss without."""
    model = world(blocks={**BLOCKS, "width": 48})
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)

    def moves(has_action):
        action = torch.randn(16, T, A, generator=generator)
        latents = torch.cumsum(action[:, :, None, :1].expand(16, T, N, D), 1) * 0.5
        return {
            "latents": latents, "noise": torch.randn(latents.shape, generator=generator), "actions": action,
            "has_action": torch.full((16, T), has_action), "tau_draw": torch.rand(16, T, generator=generator),
            "step_draw": torch.zeros(16), "shortcut": torch.zeros(16, dtype=torch.bool),
            "num_clean": torch.zeros(16, dtype=torch.long),
        }  # fmt: skip

    for step in range(200):
        optimizer.zero_grad()
        model.dynamics_loss(moves(step % 2 == 0)).backward()
        optimizer.step()
    with torch.no_grad():
        known = sum(float(model.dynamics_loss(moves(True))) for _ in range(8))
        unknown = sum(float(model.dynamics_loss(moves(False))) for _ in range(8))
    assert known < 0.8 * unknown


def test_imagination_continues_and_repeats():
    model = stirred(world())
    start, actions, noise = torch.randn(2, 1, N, D), torch.randn(2, 7, A), torch.randn(2, 7, N, D)
    frames = model.imagine(start, actions, noise)
    assert frames.shape == (2, 7, N, D) and bool(frames.isfinite().all())
    torch.testing.assert_close(model.imagine(start, actions, noise), frames)
    torch.testing.assert_close(model.imagine(start, actions[:, :3], noise[:, :3]), frames[:, :3])


def test_sampling_steps_must_be_a_power_of_two():
    with pytest.raises(ValueError, match="sampling_steps 3"):
        world(sampling_steps=3)


@given(st.text(max_size=60), st.integers(2, 1000), st.integers(1, 12))
def test_word_ids_fit_the_table(text, vocabulary, length):
    ids = word_ids(text, vocabulary, length)
    assert len(ids) == length and all(0 <= i < vocabulary for i in ids)
    assert ids == word_ids(text.upper().lower(), vocabulary, length) or text.upper().lower() != text.lower()


def test_word_ids_are_the_same_everywhere():
    assert word_ids("lift the red cube", 512, 5) == [506, 144, 354, 251, 0]


def test_no_shortcut_sample_is_no_error_and_changes_nothing():
    model, plain = stirred(world()), batch(shortcut=False)
    without = stirred(world(shortcut_fraction=0.0))
    without.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.dynamics_loss(plain), without.dynamics_loss(plain))
