"""What a sweep's jobs cost by their recipes is what the dry run says of them, and nothing where it says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from egoscale.recipe import load_recipe
from egoscale.stages import forecast
from egoscale.stages.dry import Place, cost
from egoscale.sweep.plan import Job, plan

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def jobs() -> dict[str, Job]:
    """The last job of each stage; its world model saw the most video."""
    changes = ["grid.models.small={width=32, num_layers=1}", "grid.models.large={width=256, num_layers=4}"]
    planned = plan(load_recipe(ROOT / "recipes/sweeps/tabletop.toml", changes))  # type: ignore[arg-type]
    return {f"{job.stage} {job.labels.get('model', '')}".strip(): job for job in planned.jobs.values()}


def test_training_stages_are_what_the_dry_run_says(jobs: dict[str, Job]) -> None:
    tokenizer = jobs["tokenizer"].recipe
    film = jobs["film"].recipe
    for job in (jobs["tokenizer"], jobs["latent-action"], jobs["world large"]):
        found = forecast(job, "A100")
        codes_of = jobs["latent-action"].recipe if job.stage == "world" else None
        given = {"latents": tokenizer.tokenizer, "codes_of": codes_of}  # type: ignore[union-attr]
        dry = cost(job.recipe, (Place(1, "A100"),), **given)  # type: ignore[arg-type]
        codes = dry.gpu_hours_codes.get("5 Hz", 0.0) * film.fps_hz / 5  # type: ignore[union-attr]
        assert bool(codes) == (job.stage == "world")
        assert found is not None and found.gpu_hours == pytest.approx(dry.gpu_hours + codes)
        assert found.weights_bytes == 4 * dry.parameters
        assert found.checkpoint_bytes == 3 * dry.checkpoint_bytes  # two are kept, and one is being written


def test_fine_tuning_follows_its_world_model(jobs: dict[str, Job]) -> None:
    small, large = (forecast(jobs[f"finetune {name}"], "H100") for name in ("small", "large"))
    assert small is not None and large is not None
    assert 0 < small.gpu_hours < large.gpu_hours and small.weights_bytes < large.weights_bytes
    slower = forecast(jobs["finetune large"], "A100")
    assert slower is not None and slower.gpu_hours / large.gpu_hours == pytest.approx(989 / 312)


def test_what_no_recipe_says_is_none(jobs: dict[str, Job]) -> None:
    for stage in ("film", "catalog", "subset", "encode", "evaluate small"):
        assert forecast(jobs[stage], "H100") is None, stage
    assert forecast(jobs["world large"], "an abacus") is None


def test_a_gpu_is_known_by_the_name_that_slurm_has_for_it(jobs: dict[str, Job]) -> None:
    for job in (jobs["world large"], jobs["finetune large"]):
        for plain, by_nvml in (("H100", "NVIDIA_H100_80GB_HBM3"), ("A100", "A100-SXM4-80GB")):
            known = forecast(job, plain)
            assert known is not None and forecast(job, by_nvml) == known
