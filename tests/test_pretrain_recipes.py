"""The recipes for clusters: they check, they are as large as they are called, they fit, and their page is true."""

import json
import re
import shlex
from pathlib import Path

import dry_run as bench
import pytest

from egoscale.cli import checked
from egoscale.recipe import load_recipe
from egoscale.stages.dry import Place, cost
from egoscale.stages.dry_page import told

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "pretraining.md"
RECIPES = sorted((ROOT / "recipes" / "pretrain").glob("*.toml"))
TOKENIZER = ROOT / "tokenizers" / "egocentric-256px.toml"
SIZES = {"100m": 1e8, "300m": 3e8, "1b": 1e9, "2b": 2e9}


def place(path: Path) -> Place:
    """The GPUs that a recipe names beside its [train]."""
    number, device = re.search(r"^\[train\] # (\d+) (\w+)$", path.read_text(), re.MULTILINE).groups()
    return Place(int(number), device)


def test_both_models_come_in_four_sizes():
    names = {f"{kind}-{size}" for kind in ("world", "latent-action") for size in SIZES}
    assert {path.stem for path in RECIPES} == names


@pytest.mark.parametrize("path", [*RECIPES, TOKENIZER], ids=lambda path: path.stem)
def test_it_checks_and_fits_where_it_says(path):
    checked(path)
    recipe, latents = load_recipe(path), load_recipe(TOKENIZER).tokenizer
    of = cost(recipe, [place(path)], latents=latents)
    assert not of.layouts[0].fault
    # A tenth of the card is left to the driver, fragments and kernels.
    assert of.layouts[0].total_bytes < 0.9 * of.device_gb * 1e9
    if path != TOKENIZER:
        assert of.parameters == pytest.approx(SIZES[path.stem.rsplit("-", 1)[1]], rel=0.1)
        assert recipe.model.model_dump().keys() == load_recipe(path.parent / path.name).model.model_dump().keys()
        (epochs,) = of.epochs.values()
        assert 1 <= epochs <= 4
    blocks = [value for key, value in _tables(recipe) if key in ("blocks", "encoder", "decoder")]
    assert all(64 <= block["width"] / block["num_heads"] <= 128 for block in blocks)


def _tables(recipe):
    spec = recipe.tokenizer if recipe.stage == "tokenizer" else recipe.model
    return spec.model_dump().items()


def test_the_world_model_asks_for_codes_that_the_latent_action_model_has():
    for size in SIZES:
        world, actions = (
            load_recipe(ROOT / f"recipes/pretrain/{kind}-{size}.toml") for kind in ("world", "latent-action")
        )
        assert max(world.strides_frames) <= actions.max_stride_frames
        assert world.rate_hz == actions.rate_hz == load_recipe(TOKENIZER).rate_hz
        assert world.hours == actions.hours


WORLD = ROOT / "recipes" / "pretrain" / "world-300m.toml"
MERGED = ["train.deepspeed.zero_optimization.reduce_bucket_size=5000000", "train.deepspeed.steps_per_print=9"]


def test_what_is_merged_into_deepspeeds_json_is_a_diff_at_check_and_at_a_dry_run():
    diff = [
        "train.deepspeed: zero_optimization.reduce_bucket_size: 298693456 -> 5000000",
        "train.deepspeed: steps_per_print: (not set) -> 9",
    ]
    assert checked(WORLD, MERGED).splitlines()[-2:] == [f"# {line}" for line in diff]
    recipe = load_recipe(WORLD, MERGED)
    assert told(recipe)[-2:] == diff
    assert json.loads(told(recipe, as_json=True)[0])["deepspeed_changes"] == diff
    sweep = ROOT / "recipes" / "sweeps" / "tabletop.toml"
    said = checked(sweep, ["finetune.world_train.deepspeed.steps_per_print=9"]).splitlines()[-1]
    assert said == "# finetune.world_train.deepspeed: steps_per_print: (not set) -> 9"
    assert not checked(WORLD).splitlines()[-1].startswith("#")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("train.offload=optimizer train.zero_stage=0", 'offload = "optimizer" with zero_stage = 0.*zero_stage to 1'),
        ("train.offload=parameters", 'offload = "parameters" with zero_stage = 1, .*set zero_stage to 3, or offload'),
        ("train.micro_batch_size=7", "micro_batch_size = 7 does not divide batch_size = 512, on any number of ranks"),
        ("train.deepspeed.bf16.enabled=true", "bf16.enabled = True contradicts the recipe, where train.precision"),
        ("train.deepspeed.zero_optimization.stage=3", "train.zero_stage decides it: set that, and leave this out"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_runs(given, said):
    with pytest.raises(ValueError, match=rf"world-300m.toml: .*{said}"):
        checked(WORLD, given.split())


def test_a_batch_that_deepspeed_would_deal_out_otherwise_is_told_for_each_layout():
    given = ["train.deepspeed.gradient_accumulation_steps=8"]
    said = told(load_recipe(WORLD, given), gpus=(16, 32))
    assert next(line for line in said if "samples a GPU" in line).split()[-3:] == ["4", "x", "8"]
    (refused,) = (line for line in said if line.startswith("not on"))
    assert refused.startswith("not on 32 GPUs") and "4 samples x 8 passes x 32 ranks = 1024" in refused


def test_the_page_is_what_the_commands_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = PAGE.read_text()
    commands = re.findall(r"^\$ (egoscale train .*)$", page, re.MULTILINE)
    named = {Path(shlex.split(command)[2]).stem for command in commands}
    assert named == {path.stem for path in [*RECIPES, TOKENIZER]}
    assert bench.told(page) == page, "run: python benchmarks/dry_run.py --page docs/pretraining.md"
