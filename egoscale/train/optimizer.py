"""One AdamW for every ZeRO stage, with every default written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from egoscale.recipe import TrainSpec


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that clips as ZeRO clips, and leaves the weights alone when a gradient is not finite (stage 0
    only).

    DeepSpeed reads `overflow` and `_global_grad_norm` after each step, as it does from its ZeRO optimizers.
    """

    clip_norm: float
    overflow = False
    _global_grad_norm: Tensor | float = 0.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self._global_grad_norm = norm
        self.overflow = not bool(torch.isfinite(norm))
        if self.overflow:
            return
        excess = float((norm + 1e-6) / self.clip_norm)
        if excess > 1:
            for gradient in gradients:
                gradient.mul_(1 / excess)
        super().step(closure)


def parameter_groups(model: nn.Module, spec: TrainSpec, scale: Callable[[str], float] | None) -> list[dict[str, Any]]:
    """Parameters by weight decay (matrices decay; gains, biases and scalars do not) and learning rate scale.

    A parameter whose scale is 0 is frozen.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        factor = 1.0 if scale is None else scale(name)
        if factor == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim >= 2, factor), []).append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no parameter to train: all are frozen")
    return [
        {"params": held, "weight_decay": spec.weight_decay if decays else 0.0, "lr_scale": factor}
        for (decays, factor), held in groups.items()
    ]


def adamw(groups: list[dict[str, Any]], spec: TrainSpec) -> torch.optim.Optimizer:
    """One AdamW for every stage and device, with each of its defaults written out.

    `fused` is four times as fast as the others on CPU, and bit for bit the same on ZeRO's flat partitions.
    """
    kind = GuardedAdamW if spec.zero_stage == 0 else torch.optim.AdamW
    optimizer = kind(
        groups,
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        eps=spec.epsilon,
        weight_decay=spec.weight_decay,
        amsgrad=False,
        maximize=False,
        foreach=False,
        capturable=False,
        differentiable=False,
        fused=True,
    )
    if isinstance(optimizer, GuardedAdamW):
        optimizer.clip_norm = spec.clip_norm
    return optimizer
