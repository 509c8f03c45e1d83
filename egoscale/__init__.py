"""egoscale: how much robot success does another thousand hours of first-person video buy?

The rooms, in the order in which data flows: `video` and `robot` hold data, `models` the networks, `train` the
engine, `evaluate` the closed loop, `sweep` the grid, `scaling` the law. `stages` is the one place where they meet.
"""

__version__ = "0.1.0"
