"""The networks: one space-time block, four models. Torch alone; no ranks, no files, no recipes."""
