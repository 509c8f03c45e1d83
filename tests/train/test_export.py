"""A trained model for others: exported by the command line, loaded with one call, without DeepSpeed."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import egoscale
from egoscale.models.dynamics import WorldModel
from egoscale.models.latent_action import LatentActionModel
from egoscale.models.policy import ActionConditionedWorld, ActionSlot, Policy
from egoscale.recipe import (
    CatalogRecipe,
    LatentActionSpec,
    PolicySpec,
    SelectRecipe,
    SubsetRecipe,
    TokenizerRecipe,
    WorldSpec,
    validate,
)
from egoscale.stages.exporting import export
from egoscale.sweep.ledger import RunFolder
from egoscale.train.checkpoint import export_weights

KITCHEN = Path(__file__).parents[3] / "shared" / "data" / "ego" / "captaincook4d"
BLOCKS = {"width": 16, "num_layers": 1, "temporal_every": 0}
TOKENIZER = {
    "tokenizer": {"image_size_px": 16, "patch_size_px": 4, "num_latents": 16, "latent_dim": 4}
    | {"encoder": BLOCKS, "decoder": BLOCKS},
    "train": {"num_steps": 3, "batch_size": 4, "save_every_steps": 1, "keep_every_steps": 2, "keep_last": 3},
    "window_frames": 1,
    "demo_fraction": 0.0,
}


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "egoscale.cli", *map(str, words)], capture_output=True, text=True, timeout=200
    )


def write_video(path, seed):
    """Two seconds of a bright square that moves, where there is no real video."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        for t in range(20):
            frame = np.full((64, 64, 3), 40, np.uint8)
            frame[2 * t : 2 * t + 12, 8 * seed : 8 * seed + 12] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run folder of a tokenizer that took three steps on a few seconds of video, with all before it."""
    from egoscale.stages import execute

    root = tmp_path_factory.mktemp("runs")
    films = tmp_path_factory.mktemp("films")
    reader, real = "folder", sorted(KITCHEN.glob("*.mp4"))[:4]
    for clip in real:
        reader = "captaincook4d"
        (films / clip.name).symlink_to(clip)
    for seed in () if real else range(4):
        write_video(films / f"{seed}.mp4", seed)
    source = {"reader": reader, "path": str(films), "name": "kitchen", "license": "Apache-2.0"}
    subset = {"stage": "subset", "hours": 5e-4, "holdout_participants": 0.2, "holdout_scenes": 0.0}
    run, before = None, {}
    for recipe in (
        validate(CatalogRecipe, {"stage": "catalog", "sources": [source]}, "test"),
        SelectRecipe(min_duration_s=0.5),
        validate(SubsetRecipe, subset, "test"),
        validate(TokenizerRecipe, {"stage": "tokenizer", **TOKENIZER}, "test"),
    ):
        run = RunFolder.create(root, recipe, before)
        execute(str(run.path))
        before = {run.stage: run}
    return run


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def exported(request, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "kitchen-tokenizer"
    done = command("export", trained.path, "--out", out, "--dtype", request.param)
    assert done.returncode == 0, done.stderr
    assert f'egoscale.load_model("{out}")' in done.stdout
    return out, request.param


LOAD = """
import sys
sys.modules["deepspeed"] = sys.modules["mlflow"] = None  # neither can be imported
import egoscale
assert "torch" not in sys.modules
import torch
model = egoscale.load_model(sys.argv[1])
frames = torch.zeros(1, 1, 3, 16, 16)
print(type(model).__name__, model.training, next(model.parameters()).dtype, tuple(model.encode(frames).shape))
"""


def test_an_export_is_loaded_with_one_call_and_no_deepspeed(trained, exported):
    out, dtype = exported
    assert {path.name for path in out.iterdir()} == {"weights.safetensors", "config.json", "README.md"}
    done = subprocess.run([sys.executable, "-c", LOAD, str(out)], capture_output=True, text=True)
    assert done.stdout.strip() == "VideoTokenizer False torch.float32 (1, 1, 16, 4)", done.stderr
    stored = load_file(out / "weights.safetensors")
    weights = load_file(trained.path / "weights" / "weights.safetensors")
    model = egoscale.load_model(out)
    assert stored.keys() == weights.keys()
    for name, weight in model.state_dict().items():
        if dtype == "fp32":
            assert torch.equal(weight, weights[name])
        else:
            assert stored[name].dtype == torch.bfloat16
            assert torch.equal(weight, weights[name].bfloat16().float())
    assert model.config["export"]["run"] == str(trained) and model.config["export"]["dtype"] == dtype
    assert model.config["export"]["num_parameters"] == sum(p.numel() for p in model.parameters())


def test_the_card_says_where_the_model_comes_from(trained, exported):
    out, dtype = exported
    card = (out / "README.md").read_text()
    behind, run = [], trained
    while run is not None:
        behind.append(run)
        run = next(iter(run.inputs().values()), None)
    assert [run.stage for run in behind] == ["tokenizer", "subset", "select", "catalog"]
    for run in behind:
        assert f"`{run}`" in card
    subset = behind[1].result()
    assert subset["hash"] in card and f"{subset['hours']:.4g} hours" in card
    assert "| kitchen | Apache-2.0 |" in card
    result = trained.result()
    assert f"| heldout_psnr_db | {result['heldout_psnr_db']:,.6g} |" in card
    assert (trained.path / "recipe.toml").read_text().strip() in card
    for part in ("## Intended use", "## Limits", 'egoscale.load_model("kitchen-tokenizer")', f"stored in {dtype}"):
        assert part in card


def test_what_cannot_be_exported_is_refused(trained, tmp_path):
    out = tmp_path / "out"
    [subset] = trained.inputs().values()
    new = RunFolder.create(tmp_path, trained.recipe(), {})
    made = tmp_path / "made"
    made.mkdir()
    done = command("export", trained.path, "--out", out, "--dtype", "fp8")
    assert done.returncode == 2 and "--dtype fp8: must be one of fp32, bf16" in done.stderr
    for run, folder, said in (
        (trained, made, "is already there: name a new folder"),
        (subset, out, "stage 'subset' trains no model; export a run of tokenizer, latent-action"),
        (new, out, f"{new} is new, not done"),
    ):
        with pytest.raises(ValueError, match=said):
            export(run, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "tokenizer"]


def test_a_checkpoint_that_was_kept_is_exported_too(trained, tmp_path):
    """The run is done: of steps 1, 2 and 3 the multiple of keep_every_steps is left."""
    assert trained.state() == "done"
    done = command("export", trained.path, "--step", 2, "--out", tmp_path / "then")
    assert done.returncode == 0, done.stderr
    then, now = egoscale.load_model(tmp_path / "then"), egoscale.load_model(trained.path)
    assert then.state_dict().keys() == now.state_dict().keys() and then.config["export"]["step"] == 2
    assert not all(torch.equal(weight, now.state_dict()[name]) for name, weight in then.state_dict().items())
    assert "as it was after step 2; the numbers below are those of its end" in (tmp_path / "then/README.md").read_text()
    for step in (1, 3):
        done = command("export", trained.path, "--step", step, "--out", tmp_path / "none")
        assert done.returncode == 2 and "no such checkpoint; steps that are there: 2. train.keep_every" in done.stderr
    assert not (tmp_path / "none").exists()


def test_the_export_of_a_step_is_the_model_of_that_step(trained, tmp_path):
    """The same training stopped for good at step 2 of as many: its export and its kept checkpoint are equal."""
    from egoscale.stages import execute

    data = trained.recipe().model_dump(mode="json", exclude_none=True)
    data["train"] |= {"num_steps": 2}
    short = RunFolder.create(trained.root, validate(TokenizerRecipe, data, "test"), trained.inputs())
    execute(str(short.path))
    for out, step in (("end", None), ("kept", 2)):
        export(short, tmp_path / out, step=step)
    end, kept = (egoscale.load_model(tmp_path / out).state_dict() for out in ("end", "kept"))
    assert end.keys() == kept.keys() and all(torch.equal(weight, kept[name]) for name, weight in end.items())


def test_a_run_folder_is_loaded_too(trained):
    model = egoscale.load_model(trained.path)
    assert type(model).__name__ == "VideoTokenizer" and not model.training


def world():
    given = WorldSpec.model_validate({"blocks": {"width": 16, "num_layers": 1}}).model_dump()
    return {**given, "num_latents": 4, "latent_dim": 4, "action_dim": 8, "num_strides": 2}


def latent_action():
    given = LatentActionSpec.model_validate({"encoder": BLOCKS, "decoder": BLOCKS}).model_dump()
    given.pop("beta_warmup_fraction")
    return {**given, "num_latents": 4, "latent_dim": 4, "max_stride_frames": 5}


POLICY = {**PolicySpec().model_dump(), "proprioception_dim": 3, "motor_dim": 4}
ROBOT_SLOT = {"motor_dim": 4, "proprioception_dim": 3, "action_dim": 8, "hidden_width": 16}


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (lambda: WorldModel(**world()), {"arguments": world()}),
        (lambda: LatentActionModel(**latent_action()), {"arguments": latent_action()}),
        (lambda: Policy(WorldModel(**world()), **POLICY), {"world": world(), "arguments": POLICY}),
        (
            lambda: ActionConditionedWorld(WorldModel(**world()), ActionSlot(**ROBOT_SLOT)),
            {"world": world(), "slot": ROBOT_SLOT},
        ),
    ],
    ids=["world", "latent-action", "finetune", "slot"],
)
def test_every_kind_of_model_is_built_from_its_configuration(build, config, tmp_path):
    torch.manual_seed(0)
    model = build()
    export_weights(model.state_dict(), {"model": type(model).__name__, **config}, tmp_path / "model")
    loaded = egoscale.load_model(tmp_path / "model")
    assert type(loaded) is type(model) and not loaded.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name


def test_a_finetuned_model_brings_its_slot(tmp_path):
    from egoscale.train.export import write_export

    policy, slot = Policy(WorldModel(**world()), **POLICY), ActionSlot(**ROBOT_SLOT)
    export_weights(policy.state_dict(), {"model": "Policy", "world": world(), "arguments": POLICY}, tmp_path / "main")
    driven = ActionConditionedWorld(WorldModel(**world()), slot)
    config = {"model": "ActionConditionedWorld", "world": world(), "slot": ROBOT_SLOT}
    export_weights(driven.state_dict(), config, tmp_path / "driven")
    size = write_export({"": tmp_path / "main", "slot": tmp_path / "driven"}, tmp_path / "out", "bf16", "# Card", {})
    assert size == sum(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert type(egoscale.load_model(tmp_path / "out")).__name__ == "Policy"
    assert type(egoscale.load_model(tmp_path / "out" / "slot")).__name__ == "ActionConditionedWorld"


def test_what_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        egoscale.load_model(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        egoscale.load_model(tmp_path)
    model = WorldModel(**world())
    export_weights(model.state_dict(), {"model": "Diffuser", "arguments": {}}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="model = 'Diffuser'; this version knows VideoTokenizer"):
        egoscale.load_model(tmp_path / "foreign")
    wrong = {**world(), "latent_dim": 5}
    export_weights(model.state_dict(), {"model": "WorldModel", "arguments": wrong}, tmp_path / "wrong")
    with pytest.raises(ValueError, match="do not make a WorldModel of this version"):
        egoscale.load_model(tmp_path / "wrong")
    (tmp_path / "wrong" / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot be read"):
        egoscale.load_model(tmp_path / "wrong")


def test_importing_the_package_loads_no_torch():
    code = "import sys, egoscale; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_checkpoint_is_reshaped_by_hand(worker, alone, tmp_path):
    with contextlib.suppress(SystemExit):
        worker.run(tmp_path, alone, worker.spec(zero_stage=1), worker.killed_at(5, signal.SIGTERM, worker.plain))
    done = command("checkpoint", "reshape", tmp_path)
    assert done.returncode == 0, done.stderr
    full = tmp_path / "checkpoints" / "step-00000006" / "full"
    assert str(full) in done.stdout and "joined from ZeRO stage 1, 1 ranks" in done.stdout
    weights = load_file(full / "weights.safetensors")
    assert weights.keys() == worker.Tiny().state_dict().keys()
    assert json.loads((full / "manifest.json").read_text()).keys() == {
        f"{name}.safetensors" for name in ("weights", "exp_avg", "exp_avg_sq")
    } | {"state.pt"}
