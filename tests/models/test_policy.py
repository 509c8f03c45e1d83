import torch

from egoscale.models.dynamics import WorldModel
from egoscale.models.policy import ActionConditionedWorld, ActionSlot, Policy

BLOCKS = dict(width=32, num_layers=1, num_heads=2, num_kv_heads=1, temporal_every=0, num_registers=1)


def world():
    torch.manual_seed(0)
    return WorldModel(
        num_latents=9, latent_dim=4, action_dim=3, num_strides=2, blocks=BLOCKS, context_frames=2, num_agent_tokens=2,
        vocabulary_size=64, max_words=5, sampling_steps=4, agent_loss_weight=1.0, shortcut_fraction=0.0,
    )  # fmt: skip


def policy(**changes):
    sizes = dict(proprioception_dim=4, motor_dim=4, hidden_width=16, num_hidden_layers=1, chunk_steps=3)
    return Policy(world(), **{**sizes, "interface": "latent-action", **changes})


def test_a_new_policy_stays_where_it_is():
    made = policy()
    read = made.read(torch.randn(5, 9, 4), torch.randint(1, 60, (5, 5)))
    assert torch.equal(made.act(read, torch.randn(5, 4)), torch.zeros(5, 3, 4))


def test_the_narrow_head_sees_the_latent_action_and_the_wide_one_the_features():
    latents, words = torch.randn(5, 9, 4), torch.randint(1, 60, (5, 5))
    assert policy().read(latents, words).shape == (5, 2 * 3)
    assert policy(interface="features").read(latents, words).shape == (5, 2 * 32)


def test_steps_after_the_end_of_a_demonstration_do_not_count():
    made = policy()
    batch = {
        "read": torch.randn(6, 6), "proprioception": torch.randn(6, 4), "motor": torch.randn(6, 3, 4),
        "motor_mask": torch.tensor([[1.0, 1.0, 0.0]]).repeat(6, 1),
    }  # fmt: skip
    loss = made(batch)["loss"]
    batch["motor"] = batch["motor"].clone()
    batch["motor"][:, 2] += 100
    torch.testing.assert_close(made(batch)["loss"], loss)


def test_a_batch_costs_what_its_parts_cost_wherever_demonstrations_end():
    made = policy()
    whole = {
        "read": torch.randn(6, 6), "proprioception": torch.randn(6, 4), "motor": torch.randn(6, 3, 4),
        "motor_mask": torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]).repeat(2, 1),
    }  # fmt: skip
    for size in (3, 2, 1):
        parts = [made({name: held[i : i + size] for name, held in whole.items()})["loss"] for i in range(0, 6, size)]
        torch.testing.assert_close(torch.stack(parts).mean(), made(whole)["loss"])


def test_a_slot_starts_at_no_change_and_learns_beside_a_frozen_world():
    slot = ActionSlot(motor_dim=4, proprioception_dim=4, action_dim=3, hidden_width=8)
    assert torch.equal(slot(torch.randn(2, 2, 4), torch.randn(2, 2, 4)), torch.zeros(2, 2, 3))
    model = ActionConditionedWorld(world(), slot)
    torch.nn.init.normal_(model.world.latent_out.weight)
    model.world.requires_grad_(False)
    batch = {
        "latents": torch.randn(2, 2, 9, 4), "noise": torch.randn(2, 2, 9, 4), "motor": torch.randn(2, 2, 4),
        "proprioception": torch.randn(2, 2, 4), "has_action": torch.ones(2, 2, dtype=torch.bool),
        "tau_draw": torch.rand(2, 2), "step_draw": torch.zeros(2), "shortcut": torch.zeros(2, dtype=torch.bool),
        "num_clean": torch.zeros(2, dtype=torch.long),
    }  # fmt: skip
    model(batch)["loss"].backward()
    assert next(name for name, p in model.named_parameters() if p.grad is not None and p.requires_grad).startswith(
        "slot"
    )
    assert all(p.grad is None for p in model.world.parameters())
