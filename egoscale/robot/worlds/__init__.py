"""Simulated worlds: a tabletop with a filmed hand and with a robot."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egoscale.robot.worlds.footage import film as film
    from egoscale.robot.worlds.tabletop import Tabletop as Tabletop
    from egoscale.robot.worlds.teleop import teleoperate as teleoperate

__all__ = ["Tabletop", "film", "teleoperate"]


def __getattr__(name: str) -> Any:
    """Import a world when it is first asked for: the simulator is an extra of the installation."""
    modules = {"Tabletop": "tabletop", "film": "footage", "teleoperate": "teleop"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{modules[name]}"), name)
