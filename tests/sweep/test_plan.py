"""From grid to jobs: shared once, keys of their own, inputs first, and errors for what cannot be."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import toy_stages

from egoscale.recipe import GridSpec, RecipeError
from egoscale.sweep.plan import Job, Plan, plan


def only(planned: Plan, stage: str, **labels: object) -> Job:
    found = [
        job
        for job in planned.jobs.values()
        if job.stage == stage and all(job.labels.get(name) == value for name, value in labels.items())
    ]
    assert len(found) == 1
    return found[0]


def test_shared_stages_come_once_and_inputs_before_users() -> None:
    planned = plan(toy_stages.sweep("grid.hours=[0, 0.1, 0.25]", "grid.demos=[5, 10]", "grid.seeds=[0, 1]"))
    counts = Counter(job.stage for job in planned.jobs.values())
    assert counts == {
        "film": 1, "teleop": 1, "catalog": 1, "select": 1, "tokenizer": 1, "encode": 1,
        "subset": 4, "latent-action": 4, "world": 4, "finetune": 12, "evaluate": 12,
    }  # fmt: skip
    seen: set[str] = set()
    for key, job in planned.jobs.items():
        assert all(source.key in seen for source in job.inputs.values())
        seen.add(key)
    assert len(planned.cells) == 12


def test_the_graph_of_one_cell() -> None:
    planned = plan(toy_stages.sweep())
    cell = only(planned, "evaluate", hours=0.25)
    assert cell.labels == {"arm": "latent", "hours": 0.25, "demos": 5, "seed": 0}
    assert set(cell.inputs) == {"finetune", "tokenizer"}
    policy = cell.inputs["finetune"]
    assert set(policy.inputs) == {"encode", "demos", "tokenizer", "world", "latent-action"}
    world = policy.inputs["world"]
    assert set(world.inputs) == {"encode", "subset", "latent-action"}
    assert set(world.inputs["encode"].inputs) == {"tokenizer", "select", "demos"}
    assert set(world.inputs["subset"].inputs) == {"select"}
    assert set(cell.inputs["tokenizer"].inputs) == {"subset", "select", "demos"}
    assert planned.jobs[cell.key] is cell
    assert world.recipe.model_dump()["hours"] == 0.25
    assert policy.recipe.model_dump()["num_demos"] == 5


def test_without_video_there_is_no_world_model() -> None:
    scratch = only(plan(toy_stages.sweep()), "finetune", hours=0.0)
    assert set(scratch.inputs) == {"encode", "demos", "tokenizer"}


def test_labelled_hands_read_the_film_and_no_latent_actions() -> None:
    planned = plan(toy_stages.sweep("grid.arms=['latent', 'hand']"))
    hand = only(planned, "world", arm="hand")
    assert set(hand.inputs) == {"encode", "subset", "video"}
    assert hand.inputs["video"].stage == "film"
    assert "latent-action" not in only(planned, "finetune", arm="hand").inputs
    assert only(planned, "world", arm="latent").inputs["subset"] is hand.inputs["subset"]
    assert [cell.labels["arm"] for cell in planned.cells if cell.labels["hours"] == 0] == ["latent"]


def test_demos_from_scratch_are_cells_of_their_own_arm() -> None:
    planned = plan(toy_stages.sweep("grid.scratch_demos=[40]"))
    scratch = only(planned, "evaluate", arm="scratch")
    assert scratch.labels == {"arm": "scratch", "hours": 0.0, "demos": 40, "seed": 0}


def test_numbers_of_scenes_are_other_subsets() -> None:
    planned = plan(toy_stages.sweep("grid.scenes=[5, 20]", "grid.hours=[0, 0.1, 0.25]"))
    counts = Counter(job.stage for job in planned.jobs.values())
    assert (counts["subset"], counts["world"], counts["evaluate"]) == (5, 4, 5)  # the tokenizer's is drawn from all
    cell = only(planned, "evaluate", hours=0.25, scenes=5)
    recipe = cell.ancestry()["subset"].recipe.model_dump()
    assert (recipe["axis"], recipe["num_groups"], recipe["hours"]) == ("scenes", 5, 0.25)
    assert cell.title() == "evaluate latent, 0.25 h, 5 scenes, 5 demos, seed 0"
    assert "scenes" not in only(planned, "evaluate", hours=0.0).labels
    with pytest.raises(RecipeError, match="participants"):
        plan(toy_stages.sweep("grid.scenes=[5]", "subset.axis=participants", "subset.num_groups=3"))


def test_sizes_of_world_models_share_all_before_them() -> None:
    small, large = "grid.models.small={width=32, num_layers=1}", "grid.models.large={width=64, num_layers=2}"
    planned = plan(toy_stages.sweep(small, large, "grid.scratch_demos=[40]"))
    counts = Counter(job.stage for job in planned.jobs.values())
    assert (counts["latent-action"], counts["world"], counts["evaluate"]) == (1, 2, 6)  # 0 h, 0.25 h, scratch
    worlds = [only(planned, "world", model=name) for name in ("small", "large")]
    assert [job.recipe.model_dump()["model"]["blocks"]["width"] for job in worlds] == [32, 64]
    assert worlds[0].inputs["latent-action"] is worlds[1].inputs["latent-action"]
    assert worlds[0].weight < worlds[1].weight
    scratch = only(planned, "finetune", arm="scratch", model="large")
    assert scratch.recipe.model_dump()["world"]["blocks"]["width"] == 64


def test_keys_do_not_depend_on_the_rest_of_the_grid() -> None:
    small = plan(toy_stages.sweep())
    grid = ("grid.hours=[1.0, 0.25, 0.1, 0]", "grid.demos=[20, 5]", "grid.seeds=[1, 0]")
    arms = ("grid.arms=['hand', 'latent']", "grid.scratch_demos=[50]")
    large = plan(toy_stages.sweep(*grid, *arms, "name=other"))
    assert set(small.jobs) < set(large.jobs)


def test_a_changed_stage_changes_what_follows_and_nothing_before() -> None:
    before, after = plan(toy_stages.sweep()), plan(toy_stages.sweep("world.train.num_steps=7"))
    changed = {job.stage for key, job in before.jobs.items() if key not in after.jobs}
    assert changed == {"world", "finetune", "evaluate"}
    kept = [job for key, job in before.jobs.items() if key in after.jobs and job.stage == "finetune"]
    assert [job.labels["hours"] for job in kept] == [0.0]  # from scratch it does not read the world model


def test_somebodys_own_video_needs_no_film() -> None:
    planned = plan(toy_stages.sweep("catalog.sources.0.path=/videos", "grid.hours=[0, 500]"))
    assert not [job for job in planned.jobs.values() if job.stage == "film"]
    assert only(planned, "catalog").inputs == {}


def test_without_demonstrations_only_pretraining_is_planned() -> None:
    planned = plan(toy_stages.sweep("grid.demos=[]", "grid.hours=[0.1, 0.25]"))
    assert planned.cells == ()
    assert not {"finetune", "evaluate"} & {job.stage for job in planned.jobs.values()}
    assert only(planned, "world", hours=0.1)
    with pytest.raises(RecipeError, match="0 hours pretrain nothing"):
        plan(toy_stages.sweep("grid.demos=[]"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("film.hours=0.3", "film at least"),
        ("grid.hours=[0, 9]", "`film.hours` = 1.4"),
        ("tokenizer_hours=9", "`tokenizer_hours` ask for 9 h"),
        ("grid.demos=[61]", "raise `teleop.num_demos` to 61"),
        ("grid.demos=[0]", "must lie in 1..60, the number recorded; take 0 out"),
        ("grid.demos=[0, 61]", "take 0 out and raise `teleop.num_demos` to 61"),
        ("grid.scratch_demos=[500]", "raise `teleop.num_demos` to 500"),
        ("grid.seeds=[]", "`grid.seeds` = []"),
        ("grid.hours=[0.1, 0.1]", "each once"),
        ("grid.hours=[-1.0]", "hours are 0"),
        ("grid.hours=[nan]", "hours are 0"),
        ("catalog.sources=[]", "`catalog.sources` is empty"),
    ],
)
def test_what_cannot_be_is_an_error_with_a_remedy(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        plan(toy_stages.sweep(override))
    assert said in str(raised.value) and "to 0" not in str(raised.value)


def test_labelled_hands_need_the_film() -> None:
    with pytest.raises(RecipeError, match="tracked hands"):
        plan(toy_stages.sweep("catalog.sources.0.path=/videos", "grid.arms=['hand']"))


def test_titles_are_for_people() -> None:
    cell = only(plan(toy_stages.sweep()), "evaluate", hours=0.25)
    assert cell.title() == "evaluate latent, 0.25 h, 5 demos, seed 0"


def test_the_page_of_concepts_names_every_axis_of_a_grid():
    page = (Path(__file__).parents[2] / "docs" / "concepts.md").read_text()
    rows = page.partition("## What a sweep varies")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|.*\| `\w+` \|$", rows, re.MULTILINE) == list(GridSpec.model_fields)
