"""The world model: a block-causal diffusion transformer over latents, and the agent tokens that live in it.

Shapes: B batch, T frames, N latent tokens of a frame, D numbers of a latent, A numbers of a latent action, W words of
an instruction, G agent tokens, K strides, M frames for the agent, X model width.

Each frame is [N latents, possibly noisy | 1 action token | 1 noise token], then [W words, G agent tokens] when an
instruction is given. Latents never look at words or agent tokens, so the dynamics do not depend on what is asked.

Training is diffusion forcing (a noise level per frame, arXiv 2407.01392) with shortcut forcing (the step size is an
input and large steps are taught by two halves, arXiv 2410.12557), predicting the clean latents with a weight that
grows with the signal level, as in Dreamer 4 (arXiv 2509.24527). Signal level tau is 1 for a clean frame.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from egoscale.models.blocks import Memory, RMSNorm, SpaceTimeStack, places

FINEST = 4  # the smallest step is 2 ** -FINEST of the way from noise to signal


class WorldModel(nn.Module):
    """Predicts the next frames given latent actions; its agent tokens predict the next latent action given words."""

    def __init__(
        self,
        num_latents: int,
        latent_dim: int,
        action_dim: int,
        num_strides: int,
        blocks: dict[str, Any],
        context_frames: int,
        num_agent_tokens: int,
        vocabulary_size: int,
        max_words: int,
        sampling_steps: int,
        agent_loss_weight: float,
        shortcut_fraction: float,
    ) -> None:
        super().__init__()
        if sampling_steps & (sampling_steps - 1) or sampling_steps > 2**FINEST:
            raise ValueError(f"sampling_steps {sampling_steps} must be a power of two up to {2**FINEST}")
        self.num_latents, self.latent_dim, self.action_dim = num_latents, latent_dim, action_dim
        self.num_strides, self.context_frames = num_strides, context_frames
        self.num_agent_tokens, self.max_words = num_agent_tokens, max_words
        self.sampling_steps, self.agent_loss_weight = sampling_steps, agent_loss_weight
        self.shortcut_fraction = shortcut_fraction
        width = blocks["width"]
        self.latent_in = nn.Linear(latent_dim, width)
        self.place = nn.Parameter(places(num_latents, width))
        self.action_in = nn.Linear(action_dim, width)
        self.no_action = nn.Parameter(torch.randn(width) * 0.02)
        self.signal_in = nn.Embedding(2**FINEST + 1, width)
        self.step_in = nn.Embedding(FINEST + 1, width)
        self.words = nn.Embedding(vocabulary_size, width, padding_idx=0)
        self.word_place = nn.Parameter(torch.randn(max_words, width) * 0.02)
        self.agents = nn.Parameter(torch.randn(num_agent_tokens, width) * 0.3)
        self.instruction_in = nn.Linear(width, width)
        self.trunk = SpaceTimeStack(**blocks)
        self.latent_out = nn.Linear(width, latent_dim)
        self.agent_out = nn.Linear(num_agent_tokens * width, num_strides * action_dim)
        self.agent_norm = RMSNorm(width)
        nn.init.zeros_(self.latent_out.weight)
        nn.init.normal_(self.words.weight, std=0.3)

    def _frame(
        self, latents: Tensor, actions: Tensor | None, has_action: Tensor | None, tau: Tensor, step: Tensor
    ) -> Tensor:
        """Body tokens [B, T, N + 2, X]; `tau` and `step` are integers [B, T] in units of the finest step."""
        B, T = latents.shape[:2]
        x = self.latent_in(latents) + self.place
        action = self.no_action.expand(B, T, -1)
        if actions is not None:
            given = self.action_in(actions).to(action.dtype)
            action = given if has_action is None else torch.where(has_action[..., None], given, action)
        noise = self.signal_in(tau) + self.step_in(step)
        return torch.cat([x, action[:, :, None], noise[:, :, None]], dim=2)

    def denoise(
        self,
        latents: Tensor,
        actions: Tensor | None,
        has_action: Tensor | None,
        tau: Tensor,
        step: Tensor,
        memory: Memory | None = None,
    ) -> Tensor:
        """Clean latents [B, T, N, D] predicted from latents at signal level `tau` for a jump of 2^-step."""
        x = self._frame(latents, actions, has_action, tau, step)
        denoised: Tensor = self.latent_out(self.trunk(x, None, memory)[:, :, : self.num_latents])
        return denoised.float()

    def agent(self, latents: Tensor, words_BW: Tensor) -> tuple[Tensor, Tensor]:
        """Agent tokens over clean frames: predicted codes [B, T, K, A] and features [B, T, G * X]."""
        B, T = latents.shape[:2]
        clean = torch.full((B, T), 2**FINEST, device=latents.device)
        body = self._frame(latents, None, None, clean, torch.full_like(clean, FINEST))
        words = self.words(words_BW)
        # The agents start from the whole instruction, so that their first layer can already look for what it names.
        agents = self.agents + self.instruction_in(words.sum(1))[:, None]
        group = torch.cat([words + self.word_place[: words_BW.shape[1]], agents], dim=1)
        x = torch.cat([body, group[:, None].expand(B, T, -1, -1)], dim=2)
        S, first = x.shape[2], body.shape[2]
        mask = torch.ones(S, S, dtype=torch.bool, device=x.device)
        mask[:first, first:] = False
        features = self.agent_norm(self.trunk(x, mask)[:, :, -self.num_agent_tokens :]).flatten(2)
        codes: Tensor = self.agent_out(features)
        return codes.float().view(B, T, self.num_strides, self.action_dim), features

    def dynamics_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Diffusion and shortcut forcing on `latents` [B, T, N, D], `actions` [B, T, A] (that led to a frame).

        Draws: `noise` like latents, `tau_draw` [B, T] and `step_draw` [B] in [0, 1), `shortcut` bool [B],
        `has_action` bool [B, T], `num_clean` [B]: leading frames that are context and carry no noise, as in a rollout.
        """
        clean, noise, actions, has = batch["latents"].float(), batch["noise"], batch["actions"], batch["has_action"]
        short = batch["shortcut"]
        context = torch.arange(clean.shape[1], device=clean.device) < batch["num_clean"][:, None]
        # Jump of 2^-step: the finest for plain samples, one of the coarser for shortcut samples.
        step_B = torch.where(short, (batch["step_draw"] * FINEST).long(), torch.full_like(batch["num_clean"], FINEST))
        jump = (2 ** (FINEST - step_B))[:, None].expand_as(context)
        tau = (batch["tau_draw"] * (2**FINEST // jump)).long() * jump
        tau = torch.where(context, 2**FINEST, tau)
        step = torch.where(context, FINEST, step_B[:, None])
        level = (tau / 2**FINEST)[..., None, None]
        noisy = (1 - level) * noise + level * clean
        predicted = self.denoise(noisy, actions, has, tau, step)
        weight = (0.9 * level + 0.1) * ~context[..., None, None]
        error = (weight * (predicted - clean).square()).mean((1, 2, 3))
        # Run it for no sample too: ZeRO stage 3 gathers weights in the forward pass, so all ranks must make as many.
        if self.shortcut_fraction:
            chosen = [t[short] for t in (noisy, actions, has, tau, step, context, jump, weight, predicted)]
            teach = self._taught_by_halves(*chosen)
            error = error.masked_scatter(short, teach)
        frames = (~context).float().mean(1)
        loss: Tensor = (error / frames).mean()
        return loss

    def _taught_by_halves(
        self,
        noisy: Tensor,
        actions: Tensor,
        has: Tensor,
        tau: Tensor,
        step: Tensor,
        context: Tensor,
        jump: Tensor,
        weight: Tensor,
        predicted: Tensor,
    ) -> Tensor:
        """Error of one large step against two steps of half its size, [B] (shortcut models)."""
        with torch.no_grad():
            half = torch.where(context, 0, jump // 2)
            finer = torch.where(context, step, step + 1)
            left = (1 - tau / 2**FINEST).clamp_min(2**-FINEST)[..., None, None]
            first = (self.denoise(noisy, actions, has, tau, finer) - noisy) / left
            middle = noisy + first * (half / 2**FINEST)[..., None, None]
            left_after = (1 - (tau + half) / 2**FINEST).clamp_min(2**-FINEST)[..., None, None]
            second = (self.denoise(middle, actions, has, tau + half, finer) - middle) / left_after
            target = noisy + left * (first + second) / 2
        error: Tensor = (weight * (predicted - target).square()).mean((1, 2, 3))
        return error

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Dynamics loss (see there) plus the agent's. M frames of each sample are for the agent: `agent_latents`
        [B, M, N, D], `agent_words` [B, M, W], `agent_codes` [B, M, K, A] standardised."""
        dynamics = self.dynamics_loss(batch)
        latents = batch["agent_latents"].float().flatten(0, 1)[:, None]
        codes, _ = self.agent(latents, batch["agent_words"].flatten(0, 1))
        error = (codes[:, 0] - batch["agent_codes"].flatten(0, 1)).square().mean()
        return {
            "loss": dynamics + self.agent_loss_weight * error,
            "dynamics": dynamics.detach(),
            "agent": error.detach(),
        }

    @torch.no_grad()
    def imagine(self, start_BTND: Tensor, actions_BTA: Tensor, noise_BTND: Tensor) -> Tensor:
        """Continue the frames of `start` for as many steps as there are actions: [B, T, N, D].

        Each frame takes `sampling_steps` denoising steps on cached keys and values of the frames before it.
        """
        memory = Memory()
        B = start_BTND.shape[0]
        clean = torch.full((B, start_BTND.shape[1]), 2**FINEST, device=start_BTND.device)
        finest = torch.full_like(clean, FINEST)
        self.denoise(start_BTND, None, None, clean, finest, memory)
        jump = 2**FINEST // self.sampling_steps
        step = torch.full((B, 1), FINEST - jump.bit_length() + 1, device=start_BTND.device)
        frames = []
        for t in range(actions_BTA.shape[1]):
            action = actions_BTA[:, t : t + 1]
            z = noise_BTND[:, t : t + 1].float()
            for k in range(self.sampling_steps):
                tau = torch.full((B, 1), k * jump, device=z.device)
                trial = Memory(memory.frames, dict(memory.layers))
                predicted = self.denoise(z, action, None, tau, step, trial)
                z = z + (predicted - z) / (self.sampling_steps - k)
            self.denoise(z, action, None, clean[:, :1], finest[:, :1], memory)
            if memory.frames >= self.context_frames:
                memory.trim(self.context_frames - 1)
            frames.append(z)
        return torch.cat(frames, dim=1)


def word_ids(text: str, vocabulary_size: int, max_words: int) -> list[int]:
    """Hash the words of an instruction into `max_words` ids (0 = padding): no vocabulary file to carry around.

    FNV-1a, so that every machine and Python agrees. Longer texts are cut.
    """
    ids = []
    for word in text.lower().split()[:max_words]:
        value = 0x811C9DC5
        for byte in word.encode():
            value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
        ids.append(1 + value % (vocabulary_size - 1))
    return ids + [0] * (max_words - len(ids))


__all__ = ["FINEST", "WorldModel", "word_ids"]
