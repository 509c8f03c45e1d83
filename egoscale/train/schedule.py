"""The learning rate as a pure function of the step: nothing to save, nothing to get out of step."""

from __future__ import annotations

import math

from egoscale.recipe import TrainSpec


def learning_rate(spec: TrainSpec, step: int) -> float:
    """Learning rate of the update number `step` (0 is the first).

    Linear warm-up over `warmup_steps`, then: "constant"; "cosine" down to zero at `num_steps`; "wsd"
    constant, then over the last `decay_fraction` of the steps down to zero as 1 - sqrt (the best shape in
    arXiv 2405.18392).
    """
    warmup = min(spec.warmup_steps, spec.num_steps)
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    scale = 1.0
    if spec.schedule == "cosine":
        progress = (step - warmup) / max(1, spec.num_steps - warmup)
        scale = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    elif spec.schedule == "wsd":
        decay = spec.decay_fraction * spec.num_steps
        left = spec.num_steps - step
        if left < decay:
            scale = 1 - math.sqrt(1 - max(0.0, left / decay))
    return spec.learning_rate * scale
