"""Where trained models are used: on the GPU of the rank, with inputs that follow and results that come back.

There is no GPU here: the device "meta" stands for one. It computes nothing, refuses tensors of the CPU beside its own,
and says so when a result is to come back from it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from egoscale.models.dynamics import WorldModel
from egoscale.models.latent_action import LatentActionModel
from egoscale.models.policy import Policy
from egoscale.models.video_tokenizer import VideoTokenizer
from egoscale.recipe import LatentActionSpec, PolicySpec, TokenizerRecipe, WorldSpec, load_recipe
from egoscale.robot.embodiment import TABLETOP_GANTRY, Normaliser
from egoscale.stages import codes, evaluating, finetuning
from egoscale.stages.models import described, device
from egoscale.stages.tokenizing import HELDOUT_FRAMES, psnr_db, windows_at_once
from egoscale.train.checkpoint import export_weights
from egoscale.video.latent_writer import write_latents
from egoscale.video.latents import LatentShards

BLOCKS = {"width": 16, "num_layers": 1, "temporal_every": 0}
COME_BACK = "Cannot copy out of meta tensor"
FRAMES = {"image_size_px": 16, "patch_size_px": 8, "num_latents": 4, "latent_dim": 4}


def tokenizer(**block):
    whole = {**BLOCKS, "num_heads": 2, "num_kv_heads": 1, "num_registers": 0, **block}
    torch.manual_seed(0)
    return VideoTokenizer(**FRAMES, max_mask_fraction=0.5, encoder=whole, decoder=whole).eval()


def policy():
    world = WorldSpec.model_validate({"blocks": {"width": 16, "num_layers": 1}}).model_dump()
    world |= {"num_latents": 4, "latent_dim": 4, "action_dim": 8, "num_strides": 2}
    robot = TABLETOP_GANTRY
    head = {**PolicySpec().model_dump(), "proprioception_dim": robot.proprioception_dim, "motor_dim": robot.action_dim}
    torch.manual_seed(0)
    return Policy(WorldModel(**world), **head).eval(), world


@pytest.fixture
def coded(tmp_path):
    """A latent action model, and the latents of 7 clips."""
    given = LatentActionSpec.model_validate({"encoder": BLOCKS, "decoder": BLOCKS}).model_dump()
    given.pop("beta_warmup_fraction")
    given |= {"num_latents": 4, "latent_dim": 4, "max_stride_frames": 5}
    torch.manual_seed(0)
    model = LatentActionModel(**given)
    export_weights(model.state_dict(), described(LatentActionModel, given), tmp_path / "model" / "weights")
    lots = np.random.default_rng(0)
    clips = [(f"lab/{i}", lots.normal(size=(5 + i, 4, 4)).astype(np.float16)) for i in range(7)]
    write_latents(tmp_path / "video", iter(clips), 1000)
    return tmp_path / "model", LatentShards.open(tmp_path / "video"), (1, 3), lambda clips: np.ones(len(clips)), False


@pytest.fixture
def elsewhere(monkeypatch):
    """elsewhere(room): from now on this room of the stages computes on "meta"."""

    def move(room):
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which knows no such device
        monkeypatch.setattr(room, "device", lambda: torch.device("meta"))

    return move


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, "cuda:0"),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "cuda:1"),
        (
            {"SLURM_STEP_ID": "0", "SLURM_PROCID": "7", "SLURM_NTASKS": "8", "SLURM_LOCALID": "3"}
            | {"SLURM_STEP_NODELIST": "n[1-2]"},
            "cuda:3",
        ),
    ],
)
def test_every_rank_computes_on_its_own_gpu(environ, place, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID", "SLURM_STEPID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert device() == torch.device("cpu") or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device() == torch.device(place)


def test_clips_are_coded_where_the_rank_computes(coded, elsewhere):
    assert [found.shape[:2] for _, found in codes.latent_action_coder(*coded)(list(range(7)))] == [
        (5 + i, 3) for i in range(7)
    ]
    elsewhere(codes)
    with pytest.raises(NotImplementedError, match=COME_BACK):
        list(codes.latent_action_coder(*coded)(list(range(7))))


def test_a_frozen_trunk_reads_where_the_rank_computes(elsewhere):
    model, _ = policy()
    lots = np.random.default_rng(0)
    one = Normaliser((0.0,), (1.0,))
    latents, words = lots.normal(size=(300, 4, 4)).astype(np.float32), np.zeros((300, 3), np.int64)
    nothing = np.zeros((300, 1), np.float32)
    steps = finetuning.DemoSteps(latents, words, nothing, nothing, nothing > 0, [300], one, one)
    assert finetuning._read(model, steps).shape == (300, 16)
    elsewhere(finetuning)
    with pytest.raises(NotImplementedError, match=COME_BACK):
        finetuning._read(model, steps)


def test_a_policy_drives_where_the_rank_computes(elsewhere):
    robot = TABLETOP_GANTRY

    def drive():
        model, world = policy()
        scale = {"motor_scale": robot.action_dim, "proprioception_scale": robot.proprioception_dim}
        config = {name: Normaliser((0.0,) * size, (1.0,) * size).to_dict() for name, size in scale.items()}
        driver = evaluating.Driver(model, {**config, "world": world, "robot": robot.to_dict()}, tokenizer())
        images = np.zeros((2, 16, 16, 3), np.uint8)
        return driver(images, np.zeros((2, robot.proprioception_dim), np.float32), ["take it", "leave it"])

    assert drive().shape[0] == 2
    elsewhere(evaluating)
    with pytest.raises(NotImplementedError, match=COME_BACK):
        drive()


def test_heldout_windows_are_rebuilt_in_pieces_that_a_gpu_takes():
    large = load_recipe("tokenizers/egocentric-256px.toml")
    assert isinstance(large, TokenizerRecipe)
    assert windows_at_once(large) == large.train.micro_batch_size == 8
    whole_batch = large.model_copy(update={"train": large.train.model_copy(update={"micro_batch_size": None})})
    assert windows_at_once(whole_batch) * 260 < 65_536  # rows of temporal attention; of 256 windows, 66,560
    assert windows_at_once(load_recipe("tokenizers/tabletop-64px.toml")) == HELDOUT_FRAMES

    lots = np.random.default_rng(0)
    frames = torch.from_numpy(lots.integers(0, 255, (10, 2, 3, 16, 16), dtype=np.uint8))
    model, sizes = tokenizer(temporal_every=1), []
    encode = model.encode
    model.encode = lambda some: sizes.append(len(some)) or encode(some)
    with torch.no_grad():
        pieces = psnr_db(model, frames, 4)
        assert sizes == [4, 4, 2]
        given = frames.float() / 255
        whole = float(-10 * torch.log10((model.decode(encode(given)) - given).square().mean()))
        assert psnr_db(model, frames, 10) == whole
    assert pieces == pytest.approx(whole, rel=1e-6)
