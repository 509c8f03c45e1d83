"""The evaluate stage: a policy in closed loop over fixed seeded episodes; a few rollouts kept, real beside imagined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from egoscale.evaluate.clips import write_gif
from egoscale.evaluate.rollout import Floats, Rollouts, roll_out
from egoscale.evaluate.success import counted
from egoscale.models.dynamics import WorldModel, word_ids
from egoscale.models.policy import ActionConditionedWorld, ActionSlot, Policy
from egoscale.models.video_tokenizer import VideoTokenizer
from egoscale.recipe import EvaluateRecipe
from egoscale.robot.embodiment import Embodiment, Normaliser
from egoscale.robot.worlds import Tabletop
from egoscale.stages.finetuning import SLOT
from egoscale.stages.models import device, inference, load, load_policy
from egoscale.stages.work import WEIGHTS, Work
from egoscale.train.checkpoint import load_weights
from egoscale.train.order import normal

BATCH_FRAMES = 256
RECORDED_EPISODES = 16  # the first ones: imagined too, measured, and the clips are chosen from them


class Driver:
    """A trained policy as it meets the world: pictures and words in, absolute commands out."""

    def __init__(self, policy: Policy, config: dict[str, Any], tokenizer: VideoTokenizer) -> None:
        self.place = device()
        self.policy, self.tokenizer, self.world = policy.to(self.place), tokenizer.to(self.place), config["world"]
        self.robot = Embodiment.from_dict(config["robot"])
        self.motor = Normaliser.from_dict(config["motor_scale"])
        self.proprioception = Normaliser.from_dict(config["proprioception_scale"])

    def latents(self, images_NHWC: NDArray[np.uint8]) -> torch.Tensor:
        """Latents [N, 1, L, D] of unrelated frames; float16 in between, as in the shards the policy learnt from."""
        frames = torch.from_numpy(np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)))[:, None]
        with inference():
            parts = [
                self.tokenizer.encode(some.to(self.place).float() / 255) for some in torch.split(frames, BATCH_FRAMES)
            ]
        return torch.cat(parts).half().float()

    def __call__(self, images: NDArray[np.uint8], state: Floats, instructions: list[str]) -> Floats:
        words = torch.tensor(
            [word_ids(text, self.world["vocabulary_size"], self.world["max_words"]) for text in instructions]
        )
        with inference():
            read = self.policy.read(self.latents(images)[:, 0], words.to(self.place))
        with torch.no_grad():  # the head in fp32, as it was trained
            known = torch.from_numpy(self.proprioception.normalise(state)).to(self.place)
            chunk = self.policy.act(read, known).cpu()
        return self.robot.absolute_chunk(self.motor.restore(chunk.numpy()), state)


def evaluate(work: Work) -> dict[str, Any]:
    """Success over episodes `seed`, `seed` + 1, ...; the same episodes for every policy of a study."""
    recipe = work.recipe(EvaluateRecipe)
    tokenizer, _ = load(work.input("tokenizer"), "VideoTokenizer")
    policy, config = load_policy(work.input("finetune"))
    driver = Driver(policy, config, tokenizer)
    worlds = Tabletop(recipe.num_episodes, tokenizer.image_size_px)
    try:
        rollouts = roll_out(
            worlds,
            driver,
            range(recipe.seed, recipe.seed + recipe.num_episodes),
            recipe.max_steps,
            recipe.execute_steps,
            min(RECORDED_EPISODES, recipe.num_episodes) if recipe.num_rollout_clips else 0,
            work.progress,
        )
    finally:
        worlds.close()
    result = counted(rollouts)
    if recipe.num_rollout_clips:
        imagined = _imagine(work.input("finetune"), driver, rollouts)
        shown = _telling(rollouts, recipe.num_rollout_clips)
        result["rollouts"] = _write_clips(work.out, rollouts, imagined, shown)
        if imagined is not None:
            real = np.stack(rollouts.images, 1)[:, 1:].astype(np.float64)
            error = ((real - imagined[:, 1:].astype(np.float64)) / 255) ** 2
            result["imagined_psnr_db"] = float(-10 * np.log10(error.mean()))
            still = ((real - np.repeat(np.stack(rollouts.images, 1)[:, :1], real.shape[1], 1)) / 255) ** 2
            result["still_psnr_db"] = float(-10 * np.log10(still.mean()))  # of imagining that nothing moves
    return result


def _imagine(finetune: Path, driver: Driver, rollouts: Rollouts) -> NDArray[np.uint8] | None:
    """The recorded episodes as the world model imagines them from the first frame and the commands executed."""
    if not (finetune / SLOT / WEIGHTS).is_dir():
        return None
    state, config = load_weights(finetune / SLOT / WEIGHTS)
    model = ActionConditionedWorld(WorldModel(**config["world"]), ActionSlot(**config["slot"]))
    model.load_state_dict(state)
    model.eval().to(driver.place)
    states, actions = np.stack(rollouts.states, 1), np.stack(rollouts.actions, 1)  # [R, T, ...]
    relative = actions[:, :, None] - driver.robot.absolute_chunk(np.zeros_like(actions)[:, :, None], states)
    with inference():
        latent_actions = model.slot(
            torch.from_numpy(driver.motor.normalise(relative[:, :, 0])).to(driver.place),
            torch.from_numpy(driver.proprioception.normalise(states)).to(driver.place),
        )[:, :-1]
        start = driver.latents(rollouts.images[0])
        shape = (*latent_actions.shape[:2], *start.shape[2:])
        noise = torch.from_numpy(normal(0, "imagine", 0, shape)).to(driver.place)
        frames = driver.tokenizer.decode(torch.cat([start, model.world.imagine(start, latent_actions, noise)], 1))
    pixels = (frames.float().clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2)
    return pixels.cpu().numpy()


def _telling(rollouts: Rollouts, how_many: int) -> list[int]:
    """Recorded episodes to show: the first success and the first failure, then the others in order."""
    recorded = range(rollouts.images[0].shape[0])
    firsts = [next((i for i in recorded if bool(rollouts.success[i]) == outcome), None) for outcome in (True, False)]
    order = [i for i in firsts if i is not None]
    return (order + [i for i in recorded if i not in order])[:how_many]


def _write_clips(
    out: Path, rollouts: Rollouts, imagined: NDArray[np.uint8] | None, shown: list[int]
) -> list[dict[str, Any]]:
    written = []
    images = np.stack(rollouts.images, 1)
    for index in shown:
        frames = images[index]
        name = f"rollout-{index}"
        write_gif(out / f"{name}.gif", frames, Tabletop.control_hz)
        if imagined is not None:
            write_gif(out / f"{name}-imagined.gif", imagined[index], Tabletop.control_hz)
        written.append(
            {
                "instruction": rollouts.instructions[index],
                "success": bool(rollouts.success[index]),
                "real": f"{name}.gif",
                "imagined": f"{name}-imagined.gif" if imagined is not None else None,
            }
        )
    return written
