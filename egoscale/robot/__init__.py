"""Robots: demonstrations on disk, what their numbers mean, and simulated worlds to be judged in."""
