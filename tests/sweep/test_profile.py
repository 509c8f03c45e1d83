"""Profiles of clusters: the shipped ones, and errors that name file, key, value and remedy."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from egoscale.recipe import STAGES, RecipeError, validate
from egoscale.sweep.profile import ContainerSpec, Profile, ResourceSpec, load_profile

PROFILES = sorted((Path(__file__).parents[2] / "slurm" / "profiles").glob("*.toml"))
GPUS_A_NODE = {"a100": 8, "h100": 8, "h200": 8}


def read(**keys: object) -> Profile:
    return validate(Profile, {"name": "mine", **keys}, Path("mine.toml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_shipped_profiles_have_a_class_for_every_stage(path: Path) -> None:
    profile = load_profile(path)
    assert profile.name == path.stem or path.stem == "example"
    for stage in STAGES:
        resources = profile.resources[profile.resource_class(stage)]
        if path.stem in GPUS_A_NODE and resources.gpus_per_node:
            assert resources.gpu_type == path.stem and resources.gpus_per_node <= GPUS_A_NODE[path.stem]
            assert resources.tasks_per_node == resources.gpus_per_node, "a rank a GPU"
        assert profile.signal_before_end_s < resources.time_limit_min * 60 / 2


def test_world_models_train_on_several_nodes() -> None:
    for path in PROFILES:
        profile = load_profile(path)
        assert profile.resources[profile.resource_class("world")].num_tasks > 1, path


def test_the_example_explains_every_key() -> None:
    text = next(path for path in PROFILES if path.stem == "example").read_text()
    keys = set(re.findall(r"^#? ?(\w+) = ", text, re.M))
    assert set(Profile.model_fields) - {"resources", "stages", "container"} <= keys
    assert set(ContainerSpec.model_fields) <= keys and "[container]" in text
    assert set(ResourceSpec.model_fields) <= keys
    switched_on = re.sub(r"^# (\w+ = |\[container\])", r"\1", text, flags=re.M)
    profile = validate(Profile, tomllib.loads(switched_on), Path("example.toml"))
    assert profile.container is not None and profile.modules and profile.environment


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"acount": "robotics"}, "`account`"),
        ({"stages": {"wrld": "default"}}, "stages.wrld is no stage"),
        ({"stages": {"world": "gpu"}}, "stages.world = 'gpu' is not under [resources]: default"),
        ({"resources": {"gpu": {}}}, "[resources.default] is missing"),
        ({"environment": {"A B": "1"}}, "no name of a variable"),
        ({"environment": {"A": "1\n2"}}, "single line"),
        ({"partition": "gpu;reboot"}, "gpu;reboot"),
        ({"python": "-c"}, "option"),
        ({"modules": ["--force"]}, "option"),
        ({"container": {"kind": "docker", "image": "a"}}, "pyxis"),
        ({"container": {"kind": "pyxis", "image": "-a"}}, "option"),
        ({"resources": {"default": {"num_nodes": 0}}}, "num_nodes"),
        ({"max_array_size": 0}, "max_array_size"),
        ({"gpu_count_option": "gpus"}, "gpus-per-node"),
    ],
)
def test_what_a_profile_cannot_hold(keys: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        read(**keys)
    assert "mine.toml" in str(error.value) and said in str(error.value)


def test_an_empty_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("")
    with pytest.raises(RecipeError, match="fill in what `sinfo`"):
        load_profile(tmp_path / "mine.toml")


def test_the_conclusion_takes_the_class_that_is_not_for_gpus() -> None:
    assert {load_profile(path).conclusion_class for path in PROFILES} == {"default"}
    only_gpus = read(resources={"gpu": {"gpus_per_node": 1}}, stages=dict.fromkeys(STAGES, "gpu"))
    assert only_gpus.conclusion_class == "gpu"


def test_stages_take_the_class_that_they_are_given() -> None:
    profile = read(resources={"default": {}, "pair": {"num_nodes": 2, "tasks_per_node": 8}}, stages={"world": "pair"})
    assert profile.resource_class("world") == "pair" and profile.resource_class("film") == "default"
    assert profile.resources["pair"].num_tasks == 16
