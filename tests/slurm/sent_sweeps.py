"""What tests of sweeps on Slurm share: a profile, waiting for a state, and what must be true of every run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import toy_stages

from egoscale.sweep.profile import Profile, ResourceSpec
from egoscale.sweep.status import lines, standing
from egoscale.sweep.study import Study

EXECUTE = "toy_stages:execute"
LONG = 100_000  # steps: until `finish`
LONG_S = 400.0  # a machine may be busy with ten other things
SHORT = ("grid.demos=[]", "grid.hours=[0.25]")  # pretraining alone: nine runs, for what needs no table
TOYS = str(Path(toy_stages.__file__).parent)


def profile(**changes):
    resources = {"default": ResourceSpec(**{"time_limit_min": 5, **changes.pop("resources", {})})}
    stages = {}
    if "per_stage" in changes:
        for stage, spec in changes.pop("per_stage").items():
            resources[stage] = ResourceSpec(**{"time_limit_min": 5, **spec})
            stages[stage] = stage
    return Profile(name="test", environment={"PYTHONPATH": TOYS}, resources=resources, stages=stages, **changes)


def finish(root):
    """Let runs that work in steps come to their end."""
    behaviour = json.loads((root / "toy.json").read_text())
    toy_stages.behave(root, **{**behaviour, "steps": 1})


def until(true, what="it", seconds=LONG_S):
    """What `true` answers, once it is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := true():
            return answer
        time.sleep(0.2)
    raise AssertionError(f"{what} did not happen in {seconds:.0f} s")


def wait(planned, root, reached, seconds=LONG_S):
    """Where a sweep stands, once that is so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = standing(planned, root)
        if reached(found):
            return found
        time.sleep(0.5)
    raise AssertionError(told(planned, root))


def over(found):
    return not found.counts["queued"] and not found.counts["running"]


def told(planned, root):
    """The status, and the logs of what is not done."""
    found = standing(planned, root)
    out = lines(found)
    study = Study(planned, root)
    for key, state in found.states.items():
        if state != "done":
            job = planned.jobs[key]
            out.append(f"{job}: {state}: {[event['event'] for event in job.run(root).events()]}")
            out += [log.read_text()[-1500:] for log in study.logs(str(job)) if log.is_file()]
    return "\n".join(out)


def of(planned, stage):
    """The first job of a stage."""
    return next(job for job in planned.jobs.values() if job.stage == stage)


def names(job, root):
    """What happened to a run, in order."""
    return [event["event"] for event in job.run(root).events()]


def started(job, root):
    """Whether a run is at work."""
    return "start" in names(job, root) and job.run(root).state() == "running"


def once(planned, root, *but):
    """Every run, but for some, was begun once and finished (before, it may have been looked at, or not be launched)."""
    kinds = ("start", "end", "fail")
    found = {str(job): [name for name in names(job, root) if name in kinds] for job in planned.jobs.values()}
    found = {job: told for job, told in found.items() if job not in map(str, but)}
    assert {tuple(told) for told in found.values()} == {("start", "end")}, found


def sound(planned, root):
    """Nothing was computed twice, and nothing was begun before its inputs were finished."""
    for job in planned.jobs.values():
        events = job.run(root).events()
        counted = Counter(event["event"] for event in events)
        assert counted["end"] == (job.run(root).result() is not None), (str(job), counted)
        starts = [event["time"] for event in events if event["event"] == "start"]
        for source in job.inputs.values():
            ends = [event["time"] for event in source.run(root).events() if event["event"] == "end"]
            assert not starts or (ends and ends[0] <= starts[0]), f"{job} was begun before {source} was finished"
        steps = job.run(root).path / "steps.txt"
        if steps.is_file() and counted["end"]:
            assert steps.read_text().split() == [str(i) for i in range(len(steps.read_text().split()))], str(job)


def conclusions(planned, root):
    """Logs of the conclusions that ran."""
    return sorted(Study(planned, root).slurm.glob("*-conclusion-0.log"))


def element_of(planned, root, job):
    """The id of a run's element in the queue ("17_3")."""
    study = Study(planned, root)
    found = study.in_queue().get(str(job))
    assert found is not None, f"{job} is not in the queue: {study.elements()}"
    return f"{found.array_id}_{found.index}"


SUBMIT = """
import sys; sys.path[:0] = {paths!r}
import json, toy_stages
from pathlib import Path
from egoscale.sweep.plan import plan
from egoscale.sweep.profile import Profile
from egoscale.sweep.submission import lines, submit
profile = Profile.model_validate_json({profile!r})
print("ready", flush=True)
sys.stdin.readline()
for line in lines(submit(plan(toy_stages.sweep(*{overrides!r})), Path({root!r}), profile, execute={execute!r})):
    print(line)
"""


def submitting(root, with_profile, *overrides, path=""):
    """A process that submits when it is told to (a line on its standard input), as a person's shell would."""
    code = SUBMIT.format(
        paths=[TOYS, str(toy_stages.RECIPE.parents[2])],
        profile=with_profile.model_dump_json(),
        overrides=overrides,
        root=str(root),
        execute=EXECUTE,
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def slow_sbatch(folder, before_s=0.0, after_s=0.0):
    """A folder for the search path, whose `sbatch` is Slurm's, slowed down so that a kill can fall in between."""
    import shutil

    real = shutil.which("sbatch")
    script = folder / "slow" / "sbatch"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nsleep {before_s}\n"{real}" "$@"\ncode=$?\nsleep {after_s}\nexit $code\n')
    script.chmod(0o755)
    return str(script.parent)


def kill(process):
    """As a closed laptop would."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
