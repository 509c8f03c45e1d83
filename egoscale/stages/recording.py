"""Stages that make data where there is none: filmed people and teleoperated robots on the simulated tabletop."""

from __future__ import annotations

import shutil
from typing import Any

from egoscale.recipe import FilmRecipe, TeleopRecipe
from egoscale.robot import worlds
from egoscale.stages.work import Work


def film(work: Work) -> dict[str, Any]:
    """First-person human video as a data set of mp4 files; see `robot/worlds/footage.py`."""
    return worlds.film(work.out, work.recipe(FilmRecipe), work.progress)


def teleop(work: Work) -> dict[str, Any]:
    """Robot demonstrations as a LeRobot v3.0 data set under `demos/`; a killed recording starts over."""
    out = work.out / "demos"
    if out.exists():
        shutil.rmtree(out)
    return worlds.teleoperate(out, work.recipe(TeleopRecipe), work.progress)
