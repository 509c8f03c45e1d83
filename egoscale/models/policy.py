"""The policy: the world model's agent tokens say where the hand should go, a narrow head says which motors do it.

Shapes: B batch, N latent tokens, D numbers of a latent, W words, K strides, A numbers of a latent action,
P proprioception, H motor commands of a chunk, M numbers of a motor command.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoscale.models.dynamics import WorldModel


class Policy(nn.Module):
    """Frame + instruction -> latent action (taught by video) -> motor chunk (taught by demonstrations).

    The head sees only the K * A numbers of the predicted latent action beside the proprioception: with ten
    demonstrations a head on wide features remembers them, a narrow one does not. `interface="features"` is the wide
    head, kept to show the difference. The head's last layer starts at zero, which is "stay".
    """

    def __init__(
        self,
        world: WorldModel,
        proprioception_dim: int,
        motor_dim: int,
        hidden_width: int,
        num_hidden_layers: int,
        chunk_steps: int,
        interface: str,
    ) -> None:
        super().__init__()
        self.world, self.interface = world, interface
        self.chunk_steps, self.motor_dim = chunk_steps, motor_dim
        codes = world.num_strides * world.action_dim
        width = codes if interface == "latent-action" else world.agent_out.in_features
        sizes = [width + proprioception_dim] + [hidden_width] * num_hidden_layers
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.SiLU()]
        last = nn.Linear(sizes[-1], chunk_steps * motor_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(*layers, last)
        # What a frozen trunk says about the demonstrations, standardised; left at 0 and 1 when the trunk trains too.
        self.register_buffer("read_mean", torch.zeros(width))
        self.register_buffer("read_std", torch.ones(width))
        self.read_mean: Tensor
        self.read_std: Tensor

    def read(self, latents_BND: Tensor, words_BW: Tensor) -> Tensor:
        """What the head may know of the frame and the instruction: [B, K * A], or the agent features."""
        codes, features = self.world.agent(latents_BND[:, None], words_BW)
        return codes.flatten(1) if self.interface == "latent-action" else features[:, 0]

    def act(self, read_BX: Tensor, proprioception_BP: Tensor, noise_BX: Tensor | None = None) -> Tensor:
        """Normalised relative motor chunk [B, H, M]."""
        read = (read_BX.float() - self.read_mean) / self.read_std
        if noise_BX is not None:
            read = read + noise_BX
        motor: Tensor = self.head(torch.cat([read, proprioception_BP], dim=-1))
        return motor.float().view(-1, self.chunk_steps, self.motor_dim)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss on `motor` [B, H, M] with `motor_mask` [B, H]; the frame comes as `read` (frozen trunk) or `latents`.

        Steps beyond the end of a demonstration count as no error: divided by the number of those that are left, the
        loss would depend on how a batch is cut into ranks and passes.
        """
        read = batch["read"] if "read" in batch else self.read(batch["latents"].float(), batch["words"])
        error = F.smooth_l1_loss(
            self.act(read, batch["proprioception"], batch.get("read_noise")),
            batch["motor"],
            reduction="none",
            beta=0.1,
        )
        return {"loss": (error * batch["motor_mask"][..., None]).mean()}


class ActionSlot(nn.Module):
    """A robot's way into the action-conditioned world model: motor command + proprioception -> latent action.

    One slot per embodiment. The last layer starts at zero: an untrained slot says "no change". The prediction error of
    the world model beside it teaches the slot what the robot's commands mean in latent actions.
    """

    def __init__(self, motor_dim: int, proprioception_dim: int, action_dim: int, hidden_width: int) -> None:
        super().__init__()
        last = nn.Linear(hidden_width, action_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(motor_dim + proprioception_dim, hidden_width), nn.SiLU(), last)

    def forward(self, motor: Tensor, proprioception: Tensor) -> Tensor:
        """Latent actions [..., A] for normalised relative commands [..., M] given proprioception [..., P]."""
        action: Tensor = self.layers(torch.cat([motor, proprioception], dim=-1))
        return action.float()


class ActionConditionedWorld(nn.Module):
    """A world model driven through a robot's slot: what happens when the robot does this?"""

    def __init__(self, world: WorldModel, slot: ActionSlot) -> None:
        super().__init__()
        self.world, self.slot = world, slot

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The dynamics loss (`WorldModel.dynamics_loss`) with actions from `motor` and `proprioception` [B, T, ...]."""
        actions = self.slot(batch["motor"], batch["proprioception"])
        return {"loss": self.world.dynamics_loss({**batch, "actions": actions})}
