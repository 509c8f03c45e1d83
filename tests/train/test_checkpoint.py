"""Checkpoints without an engine: whole or absent."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import threading

import pytest
import torch

from egoscale.train import checkpoint
from egoscale.train.checkpoint import Checkpoints, discard_checkpoints, export_weights, kept, load_weights, newest
from egoscale.train.ranks import Ranks

IDENTITY = {"recipe": {"train": {"num_steps": 12}, "seed": 0}, "data": "abc"}


@pytest.fixture
def told():
    return []


@pytest.fixture
def checkpoints(tmp_path, told):
    def make(identity=IDENTITY, keep_last=2, keep_every=0, out=tmp_path):
        def tell(name, **fields):
            told.append((name, fields))

        return Checkpoints(out, identity, Ranks(0, 1, 0), keep_last, tell, keep_every)

    return make


def writer(text):
    def write(folder):
        (folder / "part").mkdir()
        (folder / "part" / "state.txt").write_text(text)

    return write


def read(folder):
    return (folder / "part" / "state.txt").read_text()


def test_a_new_run_has_nothing_to_load(checkpoints, told):
    assert checkpoints().load(read) is None and told == []


def test_the_newest_is_loaded_and_the_last_few_are_kept(checkpoints, tmp_path, told):
    for step in (5, 10, 15):
        checkpoints().save(step, writer(f"state {step}"))
    assert checkpoints().load(read) == "state 15"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "latest",
        "step-00000010",
        "step-00000015",
    ]
    assert told[-1] == ("resume", {"step": 15, "checkpoint": "step-00000015"})


def test_a_writer_that_dies_leaves_the_one_before(checkpoints, tmp_path):
    checkpoints().save(5, writer("state 5"))

    def die(folder):
        writer("half")(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints().save(10, die)
    assert checkpoints().load(read) == "state 5"
    checkpoints().save(10, writer("state 10"))
    assert checkpoints().load(read) == "state 10"
    assert not list((tmp_path / "checkpoints").glob(".*.tmp"))


@pytest.mark.ranks
def test_one_rank_that_cannot_write_is_told_by_all(worker, start, tmp_path):
    """The others wait for it where DeepSpeed ends: it comes there too, and then says what was wrong."""
    processes = start("full-disk", tmp_path, world_size=2)
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    for rank in (0, 1):
        assert re.search("of step 10 could not be written .*No space left", (tmp_path / f"rank-{rank}").read_text())
    [unsaved] = [event for event in worker.events(tmp_path) if event["event"] == "unsaved"]
    assert unsaved["step"] == 10 and "No space left on device" in unsaved["reason"]
    assert newest(tmp_path).name == "step-00000005"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000005"]


def test_errors_come_once_the_block_is_through():
    class Writer:
        def save(self, what):
            raise OSError(f"{what} cannot be written")

    writer, through = Writer(), []
    with pytest.raises(OSError, match="one cannot be written"), checkpoint.errors_afterwards((writer, "save")):
        writer.save("one")
        writer.save("two")
        through.append(True)
    assert through == [True] and vars(writer) == {}


def test_a_large_one_is_flushed_while_training_goes_on(checkpoints, tmp_path, told, monkeypatch):
    """Until then it does not count; what ends the process meanwhile leaves the one before."""
    may_end, real = threading.Event(), checkpoint.checksum

    def slow(path):
        assert may_end.wait(60)
        return real(path)

    monkeypatch.setattr(checkpoint, "checksum", slow)
    mine = checkpoints()
    may_end.set()
    mine.save(5, writer("state 5"), wait=False)  # small: at once
    assert told[-1] == ("save", {"step": 5})
    may_end.clear()
    mine.save(10, writer("state 10"), 200_000_000, wait=False)
    mine.poll()
    assert told[-1] == ("save", {"step": 5}) and (tmp_path / "checkpoints" / "latest").read_text() == "step-00000005"
    assert not (tmp_path / "checkpoints" / "step-00000010").exists()
    may_end.set()
    while told[-1] != ("save", {"step": 10}):
        mine.poll()
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000010"
    may_end.clear()
    mine.save(15, writer("state 15"), 200_000_000, wait=False)
    threading.Timer(0.1, may_end.set).start()
    mine.save(20, writer("state 20"))  # waits for the one before
    assert [fields["step"] for _, fields in told] == [5, 10, 15, 20]
    assert checkpoints().load(read) == "state 20"


def test_trouble_in_the_background_is_told_at_the_next_look(checkpoints, tmp_path, told, monkeypatch):
    def fail(path):
        raise OSError("no space left behind the network")

    mine = checkpoints()
    mine.save(5, writer("state 5"))
    monkeypatch.setattr(checkpoint, "checksum", fail)
    mine.save(10, writer("state 10"), 200_000_000, wait=False)
    with pytest.raises(OSError, match=r"step 10 could not be written .*behind the network.*step-00000005 is whole"):
        mine.finish()
    assert told[-1][0] == "unsaved" and not list((tmp_path / "checkpoints").glob(".*"))
    monkeypatch.undo()
    assert checkpoints().load(read) == "state 5"


def test_a_run_that_flushes_in_the_background_equals_the_plain_one(worker, alone, tmp_path, monkeypatch):
    worker.run(tmp_path / "plain", alone, worker.spec(save_every_steps=2))
    monkeypatch.setattr(checkpoint, "BACKGROUND_BYTES", 0)
    with contextlib.suppress(SystemExit):
        worker.run(tmp_path / "run", alone, worker.spec(save_every_steps=2), worker.killed_at(6, signal.SIGTERM))
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-00000007"  # waited for
    worker.run(tmp_path / "run", alone, worker.spec(save_every_steps=2))
    assert worker.trace(tmp_path / "run") == worker.trace(tmp_path / "plain")
    saved = [event["step"] for event in worker.events(tmp_path / "run") if event["event"] == "save"]
    assert saved == [2, 4, 6, 7, 8, 10, 12]


def test_every_so_many_steps_one_is_kept_for_good(checkpoints, tmp_path):
    for step in range(5, 45, 5):
        checkpoints(keep_every=20).save(step, writer(f"state {step}"))
    kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == ["step-00000020", "step-00000035", "step-00000040"]
    assert newest(tmp_path).name == "step-00000040"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_checkpoint_before(checkpoints, small_disk):
    mine = checkpoints(out=small_disk)
    mine.save(5, writer("state 5"))
    with pytest.raises(OSError, match=r"step 10 could not be written .*space.*step-00000005 is whole"):
        mine.save(10, writer("x" * 2_000_000))
    with pytest.raises(OSError, match=r"1\.0 MB free, and a checkpoint takes about 3\.0 MB"):
        mine.save(10, writer("state 10"), expected_bytes=3_000_000)
    assert not list((small_disk / "checkpoints").glob(".step*"))
    assert checkpoints(out=small_disk).load(read) == "state 5"
    mine.save(10, writer("state 10"))
    assert checkpoints(out=small_disk).load(read) == "state 10"


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (700_000, r"; 0\.\d MB free$"),  # enough by the estimate, not for the names and scripts beside the weights
        (790_000, r"0\.\d MB free, and a checkpoint takes about 0\.\d MB"),
    ],
)
def test_a_run_on_a_full_disk_keeps_its_last_checkpoint_and_goes_on_when_there_is_room(
    worker, block_run, alone, small_disk, tmp_path, others, said
):
    settings = worker.spec(batch_size=block_run.BATCH, save_every_steps=2, num_steps=6, keep_last=1)
    ballast = small_disk / "somebody-elses"

    def at(step):
        if step == 2:
            ballast.write_bytes(b"x" * others)
        return block_run.batch_at(step)

    def run(out, at):
        return worker.run(out, alone, settings, at, model=block_run.Net(width=16), batch_ids=None)

    run(tmp_path / "unbroken", block_run.batch_at)
    out = small_disk / "run"
    with pytest.raises(OSError, match=r"checkpoint of step 4 could not be written .*step-00000002 is whole"):
        run(out, at)
    told = worker.events(out)
    assert [(e["event"], e["step"]) for e in told] == [("save", 2), ("unsaved", 4)]
    assert re.search(said, told[-1]["reason"])
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["latest", "step-00000002"]
    ballast.unlink()
    run(out, block_run.batch_at)
    assert [e["step"] for e in worker.events(out) if e["event"] == "resume"] == [2]
    assert worker.trace(out) == worker.trace(tmp_path / "unbroken")


@pytest.mark.parametrize("damage", ["cut", "flip", "delete", "manifest", "gone"])
def test_a_damaged_latest_falls_back(checkpoints, tmp_path, told, damage):
    for step in (5, 10):
        checkpoints().save(step, writer(f"state {step}"))
    folder = tmp_path / "checkpoints" / "step-00000010"
    file = folder / "part" / "state.txt"
    if damage == "cut":
        file.write_text("stat")
    elif damage == "flip":
        file.write_text("state 11")
    elif damage == "delete":
        file.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{")
    else:
        folder.rename(tmp_path / "elsewhere")
    assert checkpoints().load(read) == "state 5"
    assert [name for name, _ in told[2:]] == ["fallback", "resume"]
    assert told[2][1]["checkpoint"] == "step-00000010"
    checkpoints(keep_last=1).save(7, writer("state 7"))  # the damaged one ahead must not push this one out
    assert checkpoints().load(read) == "state 7"


def test_missing_checkpoints_are_an_error(checkpoints, tmp_path):
    checkpoints().save(5, writer("state 5"))
    (tmp_path / "checkpoints" / "step-00000005" / "part" / "state.txt").unlink()
    with pytest.raises(FileNotFoundError, match="one of step 5 was written: restore"):
        checkpoints().load(read)
    (tmp_path / "checkpoints").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="one of step 5 was written: restore"):
        checkpoints().load(read)
    discard_checkpoints(tmp_path)
    assert checkpoints().load(read) is None


@pytest.mark.parametrize(("every", "left"), [(20, [20, 40]), (0, []), (70, [])])
def test_what_is_kept_for_good_outlives_the_run(checkpoints, tmp_path, every, left):
    for step in range(10, 60, 10):
        checkpoints(keep_every=every).save(step, writer(f"state {step}"))
    discard_checkpoints(tmp_path, every)
    assert not (tmp_path / "checkpoint_step").exists()
    if not left:
        assert not (tmp_path / "checkpoints").exists()
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            newest(tmp_path)
        return
    names = [f"step-{step:08d}" for step in left]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", *names]
    assert kept(tmp_path, 20).name == names[0] and newest(tmp_path).name == names[-1]
    assert checkpoints(keep_every=every).load(read) == "state 40"
    with pytest.raises(FileNotFoundError, match=r"step-00000050: no such checkpoint; steps that are there: 20, 40\."):
        kept(tmp_path, 50)


def test_another_recipe_is_refused_naming_the_key(checkpoints):
    checkpoints().save(5, writer("state 5"))
    other = {"recipe": {"train": {"num_steps": 13}, "seed": 0}, "data": "abc"}
    with pytest.raises(ValueError, match=r"recipe\.train\.num_steps: 12 in the checkpoint, 13 now"):
        checkpoints(other).load(read)


def test_weights_round_trip(tmp_path):
    tied = torch.randn(3, 2)
    state = {"a": tied, "b": tied, "count": torch.tensor(3)}
    export_weights(state, {"width": 2}, tmp_path / "weights")
    export_weights(state, {"width": 3}, tmp_path / "weights")  # replaces
    loaded, config = load_weights(tmp_path / "weights")
    assert config == {"width": 3} and loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_weights_that_are_not_there_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors is missing: run the stage"):
        load_weights(tmp_path)
    export_weights({"a": torch.zeros(3)}, {}, tmp_path / "weights")
    (tmp_path / "weights" / "weights.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(tmp_path / "weights")
    (tmp_path / "weights" / "config.json").write_text(json.dumps({}))
