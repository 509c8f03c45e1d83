"""A run that goes on at another ZeRO stage has another recipe, so another folder; what was trained comes along."""

from __future__ import annotations

import contextlib
import signal

import pytest

from egoscale.recipe import TokenizerRecipe
from egoscale.stages.carrying import HOW, carry
from egoscale.sweep.ledger import RunFolder
from egoscale.train.checkpoint import discard_checkpoints


@pytest.fixture
def train(worker, alone):
    """Trains worker.py's tiny model in a run folder, as its recipe says."""

    def train(run, at=worker.plain):
        identity = {"run": str(run), "part": "", "seed": 0}
        return worker.run(run.path, alone, run.recipe().train, at, identity=identity)

    return train


@pytest.fixture
def halfway(worker, train, tmp_path):
    """A run at stage 1 that was stopped after step 6."""
    recipe = TokenizerRecipe(train=worker.spec(zero_stage=1).model_dump())
    run = RunFolder.create(tmp_path / "runs", recipe, {})
    with contextlib.suppress(SystemExit):
        train(run, worker.killed_at(5, signal.SIGTERM, worker.plain))
    return run


def test_a_run_goes_on_at_another_stage_as_if_it_had_never_changed(worker, alone, train, halfway, tmp_path):
    worker.run(tmp_path / "unbroken", alone, worker.spec(zero_stage=1), worker.plain)
    new, step = carry(halfway, ["train.zero_stage=3", "train.micro_batch_size=2"])
    assert step == 6 and new.path.parent == halfway.path.parent and new.key != halfway.key
    assert (new.recipe().train.zero_stage, new.recipe().train.micro_batch_size) == (3, 2)
    train(new)
    one, other = ([line["loss"] for line in worker.trace(out)] for out in (tmp_path / "unbroken", new.path))
    assert len(one) == 12 and one == pytest.approx(other, abs=1e-6)
    events = [(event["event"], event.get("step")) for event in worker.events(new.path)]
    assert events[:2] == [("carried", 6), ("resume", 6)]
    train(halfway)  # what it was carried from is as it was
    assert [line["loss"] for line in worker.trace(halfway.path)] == one


def test_codes_that_were_made_come_along(halfway):
    made = {"manifest/shard-000-00000.arrow": b"codes", "scale.json": b"{}"}
    for name, content in made.items():
        (halfway.path / "codes" / name).parent.mkdir(parents=True, exist_ok=True)
        (halfway.path / "codes" / name).write_bytes(content)
    new, _ = carry(halfway, ["train.zero_stage=3"])
    assert {name: (new.path / "codes" / name).read_bytes() for name in made} == made


def test_a_finished_run_is_carried_from_what_it_keeps_for_good(worker, train, tmp_path):
    recipe = TokenizerRecipe(train=worker.spec(keep_every_steps=5, zero_stage=1).model_dump())
    run = RunFolder.create(tmp_path / "runs", recipe, {})
    train(run)
    discard_checkpoints(run.path, 5)
    new, step = carry(run, ["train.zero_stage=2"])
    assert step == 10
    train(new)
    one, other = ([line["loss"] for line in worker.trace(out.path)] for out in (run, new))
    assert len(one) == 12 and one == pytest.approx(other, abs=1e-6)
    discard_checkpoints(new.path)
    with pytest.raises(FileNotFoundError, match="no checkpoint; a finished run keeps its weights, and multiples"):
        carry(new, ["train.zero_stage=3"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["train.learning_rate=0.5"], r"train.learning_rate would make it another training .*train.zero_stage"),
        (["train.precision=bf16", "train.zero_stage=2"], "train.precision would make it another"),
        (["seed=3"], "seed would make it another training"),
        (["train.zero_stage=1"], "nothing is changed"),
        (["train.zero_stag=1"], "unknown key"),
    ],
)
def test_only_how_it_is_run_can_be_changed(halfway, given, said):
    with pytest.raises(ValueError, match=said):
        carry(halfway, given)
    assert len(list(halfway.path.parent.iterdir())) == 1


def test_a_run_that_has_begun_is_left_alone(halfway, tmp_path):
    carry(halfway, ["train.zero_stage=2"])
    with pytest.raises(ValueError, match="has begun already: `egoscale run"):
        carry(halfway, ["train.zero_stage=2"])
    empty = RunFolder.create(tmp_path / "runs", TokenizerRecipe(train={"num_steps": 3, "batch_size": 2}), {})
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        carry(empty, ["train.zero_stage=2"])


def test_a_damaged_checkpoint_is_passed_over(worker, halfway):
    (piece,) = (halfway.path / "checkpoints" / "step-00000006").rglob("*optim_states.pt")
    piece.write_bytes(piece.read_bytes()[:50])
    _, step = carry(halfway, ["train.zero_stage=2"])
    assert step == 5


def test_every_such_key_is_one_of_the_recipes(worker):
    assert set(HOW) <= worker.spec().model_dump().keys()
