"""What a recipe may ask of the engine beside the plain run: the same losses, at every ZeRO stage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from egoscale.models.blocks import Memory, SpaceTimeBlock, SpaceTimeStack
from egoscale.models.dynamics import WorldModel
from egoscale.models.latent_action import LatentActionModel
from egoscale.models.policy import ActionConditionedWorld, ActionSlot, Policy
from egoscale.models.video_tokenizer import VideoTokenizer
from egoscale.recipe import LatentActionSpec, PolicySpec, TrainSpec, VideoTokenizerSpec, WorldSpec
from egoscale.stages.finetuning import policy_scale, slot_scale
from egoscale.train.deepspeed_json import deepspeed_config, shown
from egoscale.train.engine import Engine
from egoscale.train.ranks import Ranks

STAGES = (0, 1, 2, 3)


# --- precision ---


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="reads what the processor can from /proc/cpuinfo")
def test_auto_is_bf16_where_the_processor_has_instructions_for_it(block_run, alone):
    words = set(Path("/proc/cpuinfo").read_text().split())
    precision = "bf16" if words & {"avx512_bf16", "amx_bf16", "bf16"} else "fp32"
    assert block_run.losses(alone, precision="auto") == block_run.losses(alone, precision=precision)
    assert block_run.losses(alone, precision="bf16") != block_run.losses(alone, precision="fp32")


# --- activation checkpointing ---


@pytest.mark.parametrize("stage", STAGES)
def test_blocks_computed_again_give_the_same_losses_bit_for_bit(block_run, alone, stage):
    for precision in ("fp32", "bf16"):
        plain = block_run.losses(alone, zero_stage=stage, precision=precision)
        for policy in ("alternate", "all"):
            again = block_run.losses(alone, zero_stage=stage, precision=precision, checkpoint_activations=policy)
            assert again == plain, (policy, precision)


def test_a_stack_keeps_what_its_policy_says_and_rollouts_are_untouched():
    torch.manual_seed(0)
    stack = SpaceTimeStack(32, 3, 4, 2)
    for block in stack.blocks:
        torch.nn.init.normal_(block.space.out.weight, std=0.1)
    x = torch.randn(2, 4, 5, 32)

    def kept(policy):
        sizes = []
        stack.recompute(policy)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            out = stack(x)
        return sum(sizes), out

    (none, plain), (alternate, _), (every, again) = kept("none"), kept("alternate"), kept("all")
    assert torch.equal(plain, again)
    assert every < alternate < none and every < none / 10
    memory = Memory()
    frames = [stack(x[:, t : t + 1], memory=memory) for t in range(4)]  # "all" is still asked for
    assert torch.allclose(torch.cat(frames, 1), plain, atol=1e-5)
    assert memory.frames == 4 and list(memory.layers) == [1]
    stack.recompute("none")
    assert list(stack.recomputed) == []


PEAK = """
import re, sys
import torch
from egoscale.models.blocks import SpaceTimeStack

def peak_mb():  # (ru_maxrss of a child begins with that of the process it was forked from)
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

torch.set_num_threads(1)
stack = SpaceTimeStack(128, 16, 4, 4, temporal_every=0)
stack.recompute(sys.argv[1])
stack(torch.zeros(1, 1, 62, 128)).sum().backward()  # torch loads half of itself in the first pass
before = peak_mb()
stack(torch.zeros(24, 1, 62, 128)).sum().backward()
print(peak_mb() - before)
"""


def test_the_peak_of_memory_falls():
    policies = ("none", "alternate", "all")
    children = [
        subprocess.Popen([sys.executable, "-c", PEAK, policy], stdout=subprocess.PIPE, text=True) for policy in policies
    ]
    # 430, 305 and 142 MB; on a busy machine 349, 303 and 112: what torch had held before, once, is taken off.
    none, alternate, every = (float(child.communicate(timeout=200)[0]) for child in children)
    assert every < 0.5 * none and every < alternate < 0.95 * none, (none, alternate, every)


# --- compilation ---


@pytest.fixture
def quick_compiler(monkeypatch):
    """torch.compile without the C++ compiler: the same graphs and gradients, run by torch itself."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.parametrize("stage", STAGES)
def test_compiled_blocks_give_the_same_losses_and_names(block_run, alone, tmp_path, quick_compiler, stage):
    plain = block_run.losses(alone, block_run.Net(twice=True), zero_stage=stage)
    for policy in ("none", "all") if stage in (0, 3) else ("none",):
        quick_compiler.clear()
        model = block_run.Net(twice=True)
        options = {"zero_stage": stage, "compile": True, "checkpoint_activations": policy}
        assert block_run.losses(alone, model, **options) == pytest.approx(plain, abs=1e-6), policy
        assert not quick_compiler["graph_break"] and quick_compiler["stats"]["unique_graphs"] <= 4
        block = model.trunk.blocks[0]
        assert "forward" not in vars(block) and not hasattr(block, "_z3_leaf")  # an ordinary block again
    block_run.run(made(tmp_path / "run"), alone, zero_stage=stage, compile=True, num_steps=2)
    files = list(tmp_path.rglob("*model_states.pt"))
    names = {name for file in files for name in torch.load(file, weights_only=False)["module"]}
    assert names == set(block_run.Net().state_dict())


def test_validation_and_rollouts_are_not_compiled(block_run, alone, quick_compiler):
    model = block_run.Net()
    with Engine(model, block_run.spec(compile=True), alone) as engine:
        engine.step([block_run.batch_at(0)])
        graphs = quick_compiler["stats"]["unique_graphs"]
        model.eval()
        with torch.no_grad():
            model({name: tensor[:3, :2] for name, tensor in block_run.batch_at(1).items()})
            model.trunk(torch.zeros(1, 1, 6, 32), memory=Memory())
        model.train()
        engine.step([block_run.batch_at(1)])
        assert quick_compiler["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_code_compiled_for_this_machine_gives_the_same_losses(block_run, alone, stage):
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is no g++")
    torch._dynamo.reset()
    plain = block_run.losses(alone, zero_stage=stage)
    assert block_run.losses(alone, zero_stage=stage, compile=True) == pytest.approx(plain, abs=1e-4)


def test_options_of_blocks_are_refused_where_there_are_none(worker, alone):
    for option in ({"compile": True}, {"checkpoint_activations": "all"}):
        with pytest.raises(ValueError, match="Tiny has no space-time blocks"):
            Engine(worker.Tiny(), worker.spec(**option), alone)


# --- offload ---


@pytest.mark.parametrize(
    ("stage", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]
)
def test_offloaded_training_gives_the_same_losses_and_goes_on(block_run, alone, tmp_path, stage, offload):
    plain = block_run.losses(alone, zero_stage=stage)
    config, _ = deepspeed_config(block_run.spec(zero_stage=stage, offload=offload), alone, 1000)
    zero = config["zero_optimization"]
    place = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    assert zero["offload_optimizer"] == place
    assert zero.get("offload_param") == (place if offload == "parameters" else None)
    for before, after in (
        ((stage, offload), (stage, offload)),
        ((stage, offload), (0, "none")),
        ((0, "none"), (stage, offload)),
    ):
        folder = made(tmp_path / f"{before}-{after}")
        block_run.run(folder, alone, stop_at=3, zero_stage=before[0], offload=before[1])
        on = block_run.run(folder, alone, zero_stage=after[0], offload=after[1])
        # Stage 3 adds up the norm of offloaded gradients in another order.
        assert on == pytest.approx(plain, abs=1e-6 if before == after else 1e-5)
    muon = block_run.losses(alone, zero_stage=stage, optimizer="muon")
    offloaded = block_run.losses(alone, zero_stage=stage, optimizer="muon", offload=offload)
    assert offloaded == pytest.approx(muon, abs=3e-4)


@pytest.mark.parametrize(
    ("stage", "offload", "said"),
    [
        (0, "optimizer", r"zero_stage = 0, where the whole optimizer is on every rank: set zero_stage to 1 or more"),
        (0, "parameters", r"zero_stage to 3, or offload to \"none\""),
        (2, "parameters", r"whole weights are on every rank: set zero_stage to 3, or offload to \"optimizer\""),
    ],
)
def test_offload_is_refused_where_there_is_nothing_to_offload(block_run, stage, offload, said):
    with pytest.raises(ValueError, match=said):
        block_run.spec(zero_stage=stage, offload=offload)


@pytest.mark.ranks
def test_recomputed_and_offloaded_blocks_on_two_ranks(two_ranks):
    _, seen = two_ranks
    for stage in STAGES:
        assert seen[f"again-{stage}"] == pytest.approx(seen[f"plain-{stage}"], abs=1e-6)
        assert seen[f"plain-{stage}"] == pytest.approx(seen["plain-0"], abs=1e-6)


# --- what a checkpoint takes ---


def right_sizes(found: dict[str, list[int]]) -> None:
    assert len(found) == 8
    for kind, (held, predicted, trained) in found.items():
        # 40 to 80 kB of scripts and names: a tenth of a model as small as this one has less of them than of a moment.
        assert 0 <= held - predicted < 0.08 * predicted, kind
        per_weight = (12 if kind.startswith("adamw") else 8) + (4 if kind[-1] in "12" else 0)
        assert predicted == pytest.approx(per_weight * trained, rel=0.03), kind  # frozen and AdamW's own make the rest


def test_a_checkpoint_takes_what_was_predicted(block_run, alone, tmp_path):
    right_sizes(block_run.checkpoint_sizes(tmp_path, alone))


@pytest.mark.ranks
def test_a_checkpoint_of_two_ranks_takes_what_was_predicted(two_ranks):
    folder, _ = two_ranks
    right_sizes(json.loads((folder / "sizes.json").read_text()))


# --- DeepSpeed's JSON ---


def test_what_a_recipe_changes_in_the_json_is_shown(block_run, alone, tmp_path):
    extra = {"zero_optimization": {"reduce_bucket_size": 78, "stage": 1}, "steps_per_print": 1000}
    block_run.run(made(tmp_path / "run"), alone, num_steps=1, zero_stage=1, deepspeed=extra)
    lines = (tmp_path / "run" / "deepspeed.diff").read_text().splitlines()
    bucket = sum(p.numel() for p in block_run.Net().parameters())
    assert lines == [
        f"zero_optimization.reduce_bucket_size: {bucket + bucket % 2} -> 78",
        "steps_per_print: (not set) -> 1000",
    ]
    config = json.loads((tmp_path / "run" / "deepspeed.json").read_text())
    assert config["zero_optimization"]["reduce_bucket_size"] == 78 and config["steps_per_print"] == 1000
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    [told] = [event for event in events if event["event"] == "deepspeed"]
    assert [change["key"] for change in told["overrides"]] == [line.split(":")[0] for line in lines]
    block_run.run(made(tmp_path / "plain"), alone, num_steps=1)
    assert not (tmp_path / "plain" / "deepspeed.diff").exists()
    assert shown([]) == "\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"gradient_accumulation_steps": 4},
            r"1 samples x 4 passes x 2 ranks = 8, and train_batch_size = 4; .* 1 x 2 x 2 = 4: set train.batch_size and "
            r"train.micro_batch_size",
        ),
        (
            {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1},
            r"2 samples x 1 passes x 2 ranks = 4; the recipe's train.batch_size = 4 is dealt out as 1 x 2 x 2",
        ),
        ({"train_batch_size": 64}, r"= 4, and train_batch_size = 64"),
        (
            {"zero_optimization": {"stage": 3}},
            r"zero_optimization.stage = 3 contradicts .* train.zero_stage decides it",
        ),
        ({"bf16": {"enabled": True}}, r"bf16.enabled = True .* train.precision"),
        ({"optimizer": {"type": "Lion", "params": {"lr": 1}}}, r"optimizer.type = 'Lion' .* train.optimizer"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "train.offload"),
        ({"gradient_clipping": 3.0}, "train.clip_norm"),
    ],
)
def test_changes_that_contradict_the_recipe_are_refused(block_run, given, said):
    settings = block_run.spec(zero_stage=2, micro_batch_size=1, deepspeed=given)
    with pytest.raises(ValueError, match=said):
        deepspeed_config(settings, Ranks(0, 2, 0), 10)


def test_the_same_value_once_more_is_no_change(block_run):
    given = {"train_batch_size": 4, "zero_optimization": {"stage": 2}}
    config, changes = deepspeed_config(block_run.spec(zero_stage=2, deepspeed=given), Ranks(0, 2, 0), 10)
    assert changes == [] and config["train_micro_batch_size_per_gpu"] == 2


# --- every weight is used ---

B, T, M = 4, 3, 2
TIME_NORMS = {"query_norm.weight", "key_norm.weight"}  # attention to a single frame needs neither


def world():
    given = WorldSpec.model_validate({"blocks": {"width": 32, "num_layers": 2}}).model_dump()
    return WorldModel(num_latents=9, latent_dim=4, action_dim=8, num_strides=2, **given)


def world_batch():
    return {
        "latents": torch.randn(B, T, 9, 4),
        "noise": torch.randn(B, T, 9, 4),
        "actions": torch.randn(B, T, 8),
        "has_action": torch.rand(B, T) > 0.5,
        "tau_draw": torch.rand(B, T),
        "step_draw": torch.rand(B),
        "shortcut": torch.tensor([True, False, False, True]),
        "num_clean": torch.tensor([0, 1, 0, 1]),
        "agent_latents": torch.randn(B, M, 9, 4),
        "agent_words": torch.randint(0, 500, (B, M, 8)),
        "agent_codes": torch.randn(B, M, 2, 8),
    }


def tokenizer():
    blocks = {"width": 32, "num_layers": 2}
    sizes = {"image_size_px": 16, "patch_size_px": 4, "num_latents": 4, "latent_dim": 4}
    given = VideoTokenizerSpec.model_validate({**sizes, "encoder": blocks, "decoder": blocks})
    model = VideoTokenizer(**given.model_dump(exclude={"kind"}))
    frames = torch.randint(0, 255, (B, 2, 3, 16, 16), dtype=torch.uint8)
    return model, {"frames": frames, "mask_draw": torch.rand(B), "mask_noise": torch.rand(B, 2, 16)}


def latent_actions():
    blocks = {"width": 32, "num_layers": 2}
    given = LatentActionSpec.model_validate({"encoder": blocks, "decoder": blocks}).model_dump()
    given.pop("beta_warmup_fraction")
    model = LatentActionModel(**given, num_latents=9, latent_dim=4, max_stride_frames=5)
    pair = {"first": torch.randn(B, 9, 4), "second": torch.randn(B, 9, 4), "stride": torch.ones(B, dtype=torch.long)}
    return model, {**pair, "noise": torch.randn(B, 32), "beta_scale": torch.rand(B)}


def policy(interface="latent-action"):
    given = PolicySpec(interface=interface).model_dump()
    model = Policy(world(), proprioception_dim=3, motor_dim=4, **given)
    batch = {"latents": torch.randn(B, 9, 4), "words": torch.randint(0, 500, (B, 8)), "motor": torch.randn(B, 4, 4)}
    return model, {**batch, "proprioception": torch.randn(B, 3), "motor_mask": torch.ones(B, 4)}


def slot():
    model = ActionConditionedWorld(world(), ActionSlot(4, 3, 8, 16))
    return model, {**world_batch(), "motor": torch.randn(B, T, 4), "proprioception": torch.randn(B, T, 3)}


@pytest.mark.parametrize(
    ("make", "idle"),
    [
        (tokenizer, set()),
        (lambda: (world(), world_batch()), set()),
        # A pair of frames is two sets of tokens to these, never a sequence: temporal_every = 0 leaves the layer out.
        (latent_actions, TIME_NORMS),
        # A whole world model comes along: for an agent that reads one frame, or for a rollout without an agent.
        (policy, TIME_NORMS | {"action_in", "latent_out"}),
        (slot, {"word_place", "agents", "words", "instruction_in", "agent_out", "agent_norm"}),
    ],
    ids=["tokenizer", "world", "latent-action", "finetune", "finetune-slot"],
)
def test_every_weight_of_a_stage_has_a_gradient(make, idle):
    torch.manual_seed(0)
    model, batch = make()
    for parameter in model.parameters():
        if not parameter.any():  # what starts at zero lets no gradient through
            torch.nn.init.normal_(parameter, std=0.1)
    model(batch)["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    unexpected = [n for n in without if not any(n.endswith(i) or f".{i}." in f".{n}." for i in idle)]
    assert not unexpected
    assert without or not idle, "nothing is idle any more: take the names off the list"


@pytest.mark.parametrize("interface", ["latent-action", "features", "slot"])
@pytest.mark.parametrize("stage", [0, 2])
def test_what_fine_tuning_does_not_use_stays_as_it_was(alone, interface, stage):
    """At stages 1 to 3 a weight without a gradient has zeros for one, and would decay."""
    torch.manual_seed(0)
    model, batch = slot() if interface == "slot" else policy(interface)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    model(batch)["loss"].backward()
    unused = {n for n, p in model.named_parameters() if (p.grad is None or not p.grad.any()) and p.ndim >= 2}
    model.zero_grad()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spec = TrainSpec(num_steps=3, batch_size=B, learning_rate=0.01, weight_decay=1.0, zero_stage=stage, warmup_steps=0)
    scale = slot_scale if interface == "slot" else partial(policy_scale, trunk_scale=1.0, interface=interface)
    with Engine(model, spec, alone, scale) as engine:
        for _ in range(3):
            engine.step([batch])
    frozen = {name for name, tensor in before.items() if torch.equal(tensor, model.state_dict()[name])}
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    assert unused and unused == frozen & matrices


def test_an_unused_weight_stays_and_a_checkpoint_without_its_moments_goes_on(block_run, alone, tmp_path, monkeypatch):
    """At stage 0 a weight without a gradient has no moments, which a run at another stage must make up."""

    class Idle(block_run.Net):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.idle = torch.nn.Parameter(torch.ones(7))

    plain = block_run.losses(alone)
    monkeypatch.setattr(block_run, "Net", Idle)
    for before, after in ((0, 1), (0, 3), (3, 0)):
        folder = made(tmp_path / f"{before}-{after}")
        block_run.run(folder, alone, stop_at=3, zero_stage=before)
        assert block_run.run(folder, alone, zero_stage=after) == pytest.approx(plain, abs=1e-5)


def made(folder):
    folder.mkdir()
    return folder


def test_blocks_are_found_by_their_class():
    assert sum(isinstance(module, SpaceTimeBlock) for module in world().modules()) == 2
