"""Recipes: merged, checked, written and hashed; every error says where, what and what else."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egoscale.definition import to_toml
from egoscale.recipe import (
    EvaluateRecipe,
    RecipeError,
    SweepRecipe,
    TokenizerRecipe,
    TrainSpec,
    WorldRecipe,
    load_recipe,
    load_toml,
    recipe_hash,
    resolved_toml,
)

WORLD = 'stage = "world"\n[train]\nnum_steps = 10\nbatch_size = 4\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "world.toml"
    path.write_text(WORLD)
    return path


def test_a_recipe_fills_its_defaults(recipe: Path) -> None:
    read = load_recipe(recipe)
    assert isinstance(read, WorldRecipe)
    assert read.train == TrainSpec(num_steps=10, batch_size=4)


def test_base_is_merged_table_by_table_and_lists_are_replaced(recipe: Path) -> None:
    over = recipe.with_name("over.toml")
    over.write_text('base = "world.toml"\nstrides_frames = [2]\n[train]\nnum_steps = 99\n')
    read = load_recipe(over)
    assert isinstance(read, WorldRecipe)
    assert (read.train.num_steps, read.train.batch_size, read.strides_frames) == (99, 4, (2,))


def test_base_is_relative_to_the_file_not_to_the_working_directory(
    recipe: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = recipe.with_name("over.toml")
    over.write_text('base = "world.toml"\n')
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_recipe(over) == load_recipe(recipe)


@pytest.mark.parametrize(
    ("base", "error", "said"),
    [
        ('"gone.toml"', FileNotFoundError, "there is no file"),
        ("3", RecipeError, "`base` = 3"),
        ('"second.toml"', RecipeError, "one level only"),
    ],
)
def test_a_bad_base_is_an_error(recipe: Path, base: str, error: type[Exception], said: str) -> None:
    recipe.with_name("second.toml").write_text('base = "world.toml"\n')
    recipe.write_text(f"base = {base}\n{WORLD}")
    with pytest.raises(error, match=said) as raised:
        load_recipe(recipe)
    assert str(recipe) in str(raised.value)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("train.num_steps=3", ("num_steps", 3)),
        ("train.learning_rate=1e-4", ("learning_rate", 1e-4)),
        ("train.learning_rate=1", ("learning_rate", 1.0)),
        ("train.precision=bf16", ("precision", "bf16")),
        ('train.precision = "bf16"', ("precision", "bf16")),
    ],
)
def test_set_follows_the_rules_of_the_file(recipe: Path, assignment: str, expected: tuple[str, object]) -> None:
    read = load_recipe(recipe, [assignment])
    assert isinstance(read, WorldRecipe)
    assert getattr(read.train, expected[0]) == expected[1]


def test_set_reaches_into_a_list(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text('stage = "catalog"\n[[sources]]\npath = "a"\n[[sources]]\npath = "b"\n')
    read = load_recipe(path, ["sources.1.path=/videos/c"])
    assert [source.path for source in read.sources] == ["a", "/videos/c"]  # type: ignore[union-attr]


@pytest.mark.parametrize("assignment", ["train.num_steps", "=3", "train.num_steps=", "a=[1", "a=1\nb=2", "a b=1"])
def test_a_malformed_set_says_how_to_write_it(recipe: Path, assignment: str) -> None:
    with pytest.raises(RecipeError, match=r"table\.key=value"):
        load_recipe(recipe, [assignment])


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("train.num_step=3", ["unknown key `train.num_step`", "`num_steps`"]),
        ("num_steps=3", ["unknown key `num_steps`", "`train.num_steps`, in another table"]),
        ("model.blocks.widht=3", ["unknown key `model.blocks.widht`", "`width`"]),
        ("train.num_steps=0", ["`train.num_steps` = 0", "greater than 0"]),
        ("train.num_steps='10'", ["`train.num_steps` = '10'", "valid integer"]),
        ("train.num_steps=true", ["`train.num_steps` = True", "valid integer"]),
        ("train.zero_stage=4", ["`train.zero_stage` = 4", "0, 1, 2 or 3"]),
        ("actions=hands", ["`actions` = 'hands'", "'latent' or 'hand'"]),
        ("stage=wrld", ["`stage` = 'wrld'", "`world`", "finetune"]),
    ],
)
def test_a_wrong_key_or_value_names_file_key_value_and_remedy(recipe: Path, assignment: str, parts: list[str]) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(recipe, [assignment])
    for part in [str(recipe), *parts]:
        assert part in str(raised.value)


def test_every_fault_is_listed_at_once(recipe: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(recipe, ["train.num_steps=0", "train.batch_size=-1", "foo=1"])
    assert len(str(raised.value).splitlines()) == 3


def test_a_missing_key_a_missing_stage_and_a_missing_file(recipe: Path) -> None:
    recipe.write_text('stage = "world"\n')
    with pytest.raises(RecipeError, match="`train` is missing"):
        load_recipe(recipe)
    recipe.write_text("seed = 1\n")
    with pytest.raises(RecipeError, match="`stage` is missing"):
        load_recipe(recipe)
    with pytest.raises(FileNotFoundError, match=r"gone\.toml"):
        load_recipe(recipe.with_name("gone.toml"))
    with pytest.raises(FileNotFoundError, match="a folder"):
        load_recipe(recipe.parent)


@pytest.mark.parametrize("content", [b"a = ", b"a = 1\na = 2\n", b"\xff\xfe\x00"])
def test_text_that_is_not_toml_names_the_file(recipe: Path, content: bytes) -> None:
    recipe.write_bytes(content)
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_toml(recipe)


scalars = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), values, max_size=5))
def test_what_is_written_as_toml_is_read_back(data: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(data)) == data


trains = st.builds(
    TrainSpec,
    num_steps=st.integers(1, 10**9),
    batch_size=st.integers(1, 512).map(lambda eighth: 8 * eighth),
    learning_rate=st.floats(1e-12, 1.0),
    micro_batch_size=st.none() | st.sampled_from([1, 2, 4, 8]),
    schedule=st.sampled_from(["constant", "cosine", "wsd"]),
    deepspeed=st.dictionaries(st.text(max_size=5), scalars, max_size=2),
)
recipes = (
    st.builds(TokenizerRecipe, train=trains, seed=st.integers(0, 99))
    | st.builds(
        WorldRecipe,
        train=trains,
        strides_frames=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    )
    | st.builds(EvaluateRecipe, num_episodes=st.integers(1, 500))
)


@given(recipes)
def test_a_resolved_recipe_reads_back_equal_with_an_equal_hash(
    tmp_path_factory: pytest.TempPathFactory, written: WorldRecipe
) -> None:
    path = tmp_path_factory.getbasetemp() / "resolved.toml"
    path.write_text(resolved_toml(written))
    read = load_recipe(path)
    assert read == written
    assert recipe_hash(read) == recipe_hash(written)


def test_the_hash_sees_values_and_not_how_they_are_written(recipe: Path) -> None:
    plain = recipe_hash(load_recipe(recipe))
    assert recipe_hash(load_recipe(recipe, ["train.clip_norm=1"])) == plain  # the default, written as an integer
    assert recipe_hash(load_recipe(recipe, ["train.clip_norm=2"])) != plain


def test_the_sweep_is_one_recipe_with_a_table_for_each_stage(repository: Path) -> None:
    read = load_recipe(repository / "recipes/sweeps/tabletop.toml", ["grid.hours=[0, 0.1]"])
    assert isinstance(read, SweepRecipe)
    assert read.grid.hours == (0.0, 0.1)
