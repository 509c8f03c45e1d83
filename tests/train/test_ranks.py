"""Where ranks come from, and that two of them train as one."""

from __future__ import annotations

import json

import pytest
import torch

from egoscale.train.ranks import Ranks, address, first_host, init_ranks


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("gpu3", "gpu3"),
        ("gpu[003-007,12],login1", "gpu003"),
        ("a1,b[1-2]", "a1"),
        ("rack[1-2]node[04,07]", "rack1node04"),
        ("node-a[5]", "node-a5"),
    ],
)
def test_first_host(nodelist, host):
    assert first_host(nodelist) == host


def test_an_empty_node_list_is_an_error():
    with pytest.raises(ValueError, match="node list ''"):
        first_host("")


def test_address():
    torchrun = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "h", "MASTER_PORT": "29500"}
    assert address(torchrun) == (Ranks(3, 4, 1), "h", 29500)
    job = {"SLURM_JOB_ID": "12345", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    job |= {"SLURM_JOB_NODELIST": "n[08-11]"}
    assert address({}) is None
    assert address(job) is None  # a batch script outside srun is one process, whatever SLURM_NTASKS says
    assert address(job | {"SLURM_STEP_ID": "0"}) == (Ranks(5, 8, 1), "n08", 22345)
    one = job | {
        "SLURM_STEP_ID": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "n09",
        "SLURM_PROCID": "1",
    }
    ranks, host, port = address(one)
    assert (ranks, host) == (Ranks(1, 2, 1), "n09") and port != 22345  # steps side by side do not meet
    assert address(one | {"MASTER_ADDR": "m", "MASTER_PORT": "7"})[1:] == ("m", 7)


@pytest.mark.parametrize(("visible", "local_rank", "taken"), [(1, 3, 0), (1, 0, 0), (4, 3, 3), (2, 3, None)])
def test_a_task_that_sees_one_gpu_takes_it(monkeypatch, visible, local_rank, taken):
    """Under `srun --gpus-per-task=1` every task sees its own GPU alone, as number 0."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    group = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": str(local_rank), "MASTER_ADDR": "h", "MASTER_PORT": "1"}
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    if taken is None:
        with pytest.raises(ValueError, match="local rank 3, but 2 GPUs are visible: start no more"):
            init_ranks()
        return
    ranks = init_ranks()
    assert chosen == [taken] and ranks.local_rank == taken and ranks.device == torch.device("cuda", taken)


@pytest.mark.ranks
def test_two_ranks_train_as_one(worker, alone, start, tmp_path):
    processes = start("pair", tmp_path, world_size=2)
    single = {}
    for stage in (0, 1, 2, 3):
        settings = worker.spec(zero_stage=stage, micro_batch_size=2, num_steps=20)
        worker.run(tmp_path / f"single-{stage}", alone, settings, worker.plain)
        single[stage] = [line["loss"] for line in worker.trace(tmp_path / f"single-{stage}")]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))

    # One rank or two, and every ZeRO stage: the same losses.
    double = {s: [line["loss"] for line in worker.trace(tmp_path / f"zero-{s}")] for s in (0, 1, 2, 3)}
    assert len(double[0]) == 20
    for stage in (0, 1, 2, 3):
        assert double[stage] == pytest.approx(double[0], rel=1e-6)
        assert double[stage] == pytest.approx(single[stage], rel=1e-5)
    half = {s: [line["loss"] for line in worker.trace(tmp_path / f"bf16-{s}")] for s in (1, 2, 3)}
    assert len(half[1]) == 20 and half[1] == half[2] == half[3] and half[1] != double[1]
    # One rank that takes a batch in two passes adds up what two ranks add up: equal to the last digit.
    settings = worker.spec(zero_stage=1, micro_batch_size=4, num_steps=20, precision="bf16", clip_norm=1e9)
    worker.run(tmp_path / "in-two", alone, settings, worker.plain)
    assert [line["loss"] for line in worker.trace(tmp_path / "in-two")] == half[1]
    # A NaN on rank 1 alone is skipped by both, names its clip, and shifts nothing.
    for stage in (0, 3):
        assert first[f"bad-{stage}"] == second[f"bad-{stage}"] == 1
        [skip] = [event for event in worker.events(tmp_path / f"nan-{stage}") if event["event"] == "skip"]
        assert skip["step"] == 5 and skip["clips"] == [f"clip-4-{i}" for i in (4, 5, 6, 7)]
    # A signal that only rank 1 got stops both; resumed, they equal the unbroken run to the last digit.
    assert first["exit_code"] == second["exit_code"] == 85
    assert worker.trace(tmp_path / "broken") == worker.trace(tmp_path / "unbroken")
    kinds = [event["event"] for event in worker.events(tmp_path / "broken")]
    assert kinds.count("preflight") == 2
    kinds = [kind for kind in kinds if kind not in ("preflight", "straggler")]
    assert kinds == ["signal", "requeue", "save", "resume", "save"]
    # Stage 3 puts whole weights back into the module of every rank.
    assert first["whole"] == second["whole"]
    assert "micro_batch_size = 8 does not divide the 4 samples" in first["refused"]
    # Another number of ranks finds the finished run, whatever the stage.
    for stage in (0, 2):
        settings = worker.spec(zero_stage=stage, micro_batch_size=2, num_steps=20)
        again = worker.run(tmp_path / f"zero-{stage}", alone, settings, worker.plain)
        assert again["loss"] == first[f"final-{stage}"]
