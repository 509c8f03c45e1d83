"""The finetune stage: a world model + N demonstrations -> a policy, and the world model behind the robot's own slot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from egoscale.models.dynamics import WorldModel, word_ids
from egoscale.models.policy import ActionConditionedWorld, ActionSlot, Policy
from egoscale.recipe import FinetuneRecipe
from egoscale.robot.demos import LeRobotDataset
from egoscale.robot.embodiment import TABLETOP_GANTRY, Embodiment, Normaliser
from egoscale.stages.encoding import demo_id
from egoscale.stages.models import device, inference, load
from egoscale.stages.work import Work
from egoscale.train.order import draws, normal
from egoscale.video.clips import WindowTable
from egoscale.video.latents import LatentShards

SLOT = "slot"  # folder of the action slot inside the run
SCRATCH_ACTION_DIM = 8  # numbers of a latent action where no video says how many
PROPRIOCEPTION_NOISE = 0.03  # standard deviations: few demonstrations pass the same place twice
# Weights of a whole world model that come along unused: the policy reads one frame, the slot's rollouts have no agent.
# They are frozen, or ZeRO, which hands the optimizer zeros for a gradient that never came, would let them decay.
UNUSED_BY_POLICY = ("world.action_in.", "world.latent_out.")
UNUSED_BY_SLOT = tuple(
    f"world.{name}" for name in ("agents", "agent_norm.", "agent_out.", "instruction_in.", "words.", "word_place")
)


@dataclass(frozen=True)
class DemoSteps:
    """Every step of the chosen demonstrations, one row each."""

    latents: NDArray[np.float32]  # [F, N, D]
    words: NDArray[np.int64]  # [F, W]
    proprioception: NDArray[np.float32]  # [F, P] normalised
    motor: NDArray[np.float32]  # [F, H, M] relative chunk, normalised
    motor_mask: NDArray[np.bool_]  # [F, H]
    lengths: list[int]  # steps of each demonstration
    motor_scale: Normaliser
    proprioception_scale: Normaliser


def demo_steps(
    work: Work, robot: Embodiment, num_demos: int, chunk_steps: int, vocabulary: int, max_words: int
) -> DemoSteps:
    """The first `num_demos` demonstrations; more of them are the same ones and others.

    Raises:
        ValueError: fewer demonstrations, or of another robot.
    """
    folder = work.input("demos") / "demos"
    dataset = LeRobotDataset.open(folder, with_video=False)
    if dataset.num_episodes < num_demos:
        raise ValueError(f"{folder} holds {dataset.num_episodes} demonstrations, num_demos asks for {num_demos}")
    robot.check_demos(str(folder), dataset.action_dim, dataset.state_dim)
    shards = LatentShards.open(work.input("encode") / "demos")
    latents, words, states, chunks, masks, lengths = [], [], [], [], [], []
    for index in range(num_demos):
        episode = dataset.episode(index)
        steps = len(episode.action)
        chunk, mask = robot.relative_chunks(episode.action, episode.state, chunk_steps)
        latents.append(shards.window(demo_id(index), 0, steps))
        words += [word_ids(episode.task, vocabulary, max_words)] * steps
        states.append(episode.state)
        chunks.append(chunk)
        masks.append(mask)
        lengths.append(steps)
    state, motor, inside = np.concatenate(states), np.concatenate(chunks), np.concatenate(masks)
    motor_scale, state_scale = Normaliser.fit(motor, inside), Normaliser.fit(state)
    return DemoSteps(
        np.concatenate(latents),
        np.array(words),
        state_scale.normalise(state),
        motor_scale.normalise(motor),
        inside,
        lengths,
        motor_scale,
        state_scale,
    )


def finetune(work: Work) -> dict[str, Any]:
    """Train the head (and the trunk, from scratch or if the recipe says so); then the action slot."""
    recipe = work.recipe(FinetuneRecipe)
    robot, seed, size = TABLETOP_GANTRY, recipe.seed, recipe.train.batch_size
    pretrained = "world" in work.inputs
    if pretrained:
        world, config = load(work.input("world"), "WorldModel")
        world_arguments = config["arguments"]
    else:
        shards = LatentShards.open(work.input("encode") / "demos")
        world_arguments = {
            **recipe.world.model_dump(),
            "num_latents": shards.num_tokens,
            "latent_dim": shards.dim,
            "action_dim": SCRATCH_ACTION_DIM,
            "num_strides": 2,
        }
        torch.manual_seed(seed)
        world, config = WorldModel(**world_arguments), {}
    steps = demo_steps(
        work,
        robot,
        recipe.num_demos,
        recipe.policy.chunk_steps,
        world_arguments["vocabulary_size"],
        world_arguments["max_words"],
    )
    arguments = {
        **recipe.policy.model_dump(),
        "proprioception_dim": robot.proprioception_dim,
        "motor_dim": robot.action_dim,
    }
    torch.manual_seed(seed)
    policy = Policy(world, **arguments)
    trunk_scale = recipe.trunk_learning_rate_scale if pretrained else 1.0
    frozen = trunk_scale == 0
    read = _read(policy, steps) if frozen else None
    if read is not None:
        policy.read_mean.copy_(read.mean(0))
        policy.read_std.copy_(read.std(0).clamp_min(0.05))

    demo_of = np.repeat(np.arange(len(steps.lengths)), steps.lengths)

    def row_at(step: int) -> NDArray[np.int64]:
        return (draws(seed, "finetune", step, size, 1)[:, 0] * len(steps.motor)).astype(np.int64)

    def batch_at(step: int) -> dict[str, Tensor]:
        row = row_at(step)
        shake = PROPRIOCEPTION_NOISE * normal(seed, "finetune/state", step, steps.proprioception[row].shape)
        batch = {
            "proprioception": torch.from_numpy(steps.proprioception[row] + shake),
            "motor": torch.from_numpy(steps.motor[row]),
            "motor_mask": torch.from_numpy(steps.motor_mask[row]).float(),
        }
        if read is None:
            return {
                **batch,
                "latents": torch.from_numpy(steps.latents[row]),
                "words": torch.from_numpy(steps.words[row]),
            }
        noise = recipe.read_noise * normal(seed, "finetune/read", step, (size, read.shape[1]))
        return {**batch, "read": read[torch.from_numpy(row)], "read_noise": torch.from_numpy(noise)}

    result = work.train(
        policy,
        recipe.train,
        batch_at,
        seed,
        {
            "model": "Policy",
            "world": world_arguments,
            "arguments": arguments,
            "robot": robot.to_dict(),
            "motor_scale": steps.motor_scale.to_dict(),
            "proprioception_scale": steps.proprioception_scale.to_dict(),
            "pretrained": pretrained,
            "actions": config.get("actions"),
        },
        learning_rate_scale=lambda name: policy_scale(name, trunk_scale, recipe.policy.interface),
        batch_ids=lambda step: [demo_id(row) for row in demo_of[row_at(step)].tolist()],
        frames_per_sample=1,
        tokens_per_frame=steps.latents.shape[1],
    )
    if pretrained and recipe.world_train is not None:
        result["slot"] = _train_slot(work, recipe, work.input("world"), robot, steps)
    return {**result, "num_demos": recipe.num_demos, "demo_steps": len(steps.motor), "frozen_trunk": frozen}


def policy_scale(name: str, trunk_scale: float, interface: str = "latent-action") -> float:
    """Factor of a policy weight's learning rate; 0 = frozen. On wide features the latent action is not read out."""
    unused = (*UNUSED_BY_POLICY, *(("world.agent_out.",) if interface == "features" else ()))
    if name.startswith(unused):
        return 0.0
    return trunk_scale if name.startswith("world.") else 1.0


def slot_scale(name: str) -> float:
    """Factor of the learning rate of a weight of the world behind a slot; 0 = frozen."""
    return 0.0 if name.startswith(UNUSED_BY_SLOT) else 1.0


def _read(policy: Policy, steps: DemoSteps) -> Tensor:
    """What the frozen trunk says about every step, computed once: [F, X]. The policy comes back to the CPU."""
    place = device()
    policy.eval().to(place)
    parts = []
    with inference():
        for first in range(0, len(steps.latents), 256):
            some = slice(first, first + 256)
            latents, words = torch.from_numpy(steps.latents[some]), torch.from_numpy(steps.words[some])
            parts.append(policy.read(latents.to(place), words.to(place)).cpu())
    policy.to("cpu")
    return torch.cat(parts).float()


def _train_slot(
    work: Work, recipe: FinetuneRecipe, folder: Path, robot: Embodiment, steps: DemoSteps
) -> dict[str, Any]:
    """A copy of the world model, trained on the demonstrations with the robot's slot; the policy keeps its own."""
    assert recipe.world_train is not None
    spec, seed, size = recipe.world_train, recipe.seed, recipe.world_train.batch_size
    world, config = load(folder, "WorldModel")
    T = config["arguments"]["context_frames"]
    arguments = {
        "motor_dim": robot.action_dim,
        "proprioception_dim": robot.proprioception_dim,
        "action_dim": config["arguments"]["action_dim"],
        "hidden_width": recipe.policy.hidden_width,
    }
    torch.manual_seed(seed)
    slot = ActionSlot(**arguments)
    starts = np.concatenate([[0], np.cumsum(steps.lengths)[:-1]])
    table = WindowTable(steps.lengths, T)

    def places(step: int) -> tuple[NDArray[Any], ...]:
        u = draws(seed, "finetune/slot", step, size, 1 + T)
        return u, *table.locate(u[:, 0])

    def batch_at(step: int) -> dict[str, Tensor]:
        u, demo, first = places(step)
        rows = (starts[demo] + first)[:, None] + np.arange(T)
        before = np.maximum(rows - 1, starts[demo][:, None])  # the command of step t - 1 led to frame t
        known = (rows - 1) >= starts[demo][:, None]
        latents = steps.latents[rows]
        return {
            "latents": torch.from_numpy(latents),
            "noise": torch.from_numpy(normal(seed, "finetune/slot", step, latents.shape)),
            "motor": torch.from_numpy(steps.motor[before][:, :, 0]),
            "proprioception": torch.from_numpy(steps.proprioception[before]),
            "has_action": torch.from_numpy(known),
            "tau_draw": torch.from_numpy(u[:, 1:]).float(),
            "step_draw": torch.zeros(size),
            "shortcut": torch.zeros(size, dtype=torch.bool),
            "num_clean": torch.ones(size, dtype=torch.int64),
        }

    return work.train(
        ActionConditionedWorld(world, slot),
        spec,
        batch_at,
        seed,
        {"model": "ActionConditionedWorld", "slot": arguments, "world": config["arguments"]},
        folder=SLOT,
        batch_ids=lambda step: [demo_id(demo) for demo in places(step)[1].tolist()],
        learning_rate_scale=slot_scale,
        frames_per_sample=T,
        tokens_per_frame=steps.latents.shape[1],
    )
