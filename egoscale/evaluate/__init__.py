"""Measures: success in closed loop, and how well a world model predicts held-out video."""
