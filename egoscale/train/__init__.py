"""Training: ranks, engine, order of data, checkpoints, guards, throughput, the loop, and the mirror into
MLflow."""
