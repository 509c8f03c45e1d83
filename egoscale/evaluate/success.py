"""Successes and trials, in all and per verb."""

from __future__ import annotations

from typing import Any

from egoscale.evaluate.rollout import Rollouts


def counted(rollouts: Rollouts) -> dict[str, Any]:
    """{"successes", "trials", "per_verb": {verb: [successes, trials]}, "seeds": [first, last]}."""
    per_verb: dict[str, list[int]] = {}
    for verb, done in zip(rollouts.verbs, rollouts.success.tolist(), strict=True):
        row = per_verb.setdefault(verb, [0, 0])
        row[0] += int(done)
        row[1] += 1
    return {
        "successes": int(rollouts.success.sum()),
        "trials": len(rollouts.success),
        "per_verb": dict(sorted(per_verb.items())),
        "episode_seeds": [min(rollouts.seeds), max(rollouts.seeds)],
    }
