"""The order of data is arithmetic: random numbers of a step come from a counter, not from a state.

Number j of sample i at step s is a fixed function of (seed, stream, s, i, j). So a resumed run needs an
integer, and 1, 2 or 8 ranks see the same global batches: every rank draws the whole batch and takes its rows.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egoscale.train.ranks import Ranks

LANES = 4  # kinds of numbers that a step of a stream has: uniform, normal, a seed
NORMAL_ROWS = 64  # rows of normal numbers that are made together


def generator(seed: int, stream: str, step: int, lane: int = 0) -> np.random.Generator:
    """Philox (a counter-based generator, Salmon et al. 2011) keyed by seed and stream, set to the step.

    Step and lane fill the upper words of the 256-bit counter, so two steps are 2**128 blocks apart.
    """
    counter = np.array([0, 0, step, lane], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=_key(seed, stream), counter=counter))


@lru_cache(maxsize=256)
def _key(seed: int, stream: str) -> NDArray[np.uint64]:
    """128 bits of a hash of both, as Philox takes them without a conversion."""
    return np.frombuffer(hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=16).digest(), "<u8")


def draws(seed: int, stream: str, step: int, batch_size: int, k: int = 4) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), shape [batch_size, k], for the global batch of `step`.

    Row i does not depend on `batch_size`.
    """
    return generator(seed, stream, step).random((batch_size, k))


def normal(seed: int, stream: str, step: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise of any `shape` for `step`; independent of `draws` of the same stream."""
    noise: NDArray[np.float32] = generator(seed, stream, step, lane=1).standard_normal(shape, dtype=np.float32)
    return noise


def normal_rows(
    seed: int, stream: str, step: int, shape: tuple[int, ...], rows: slice = slice(None)
) -> NDArray[np.float32]:
    """`normal`, but only these rows (along the first of `shape`) need be made: what one of many ranks has of a batch.

    Rows come in blocks of NORMAL_ROWS, each with a generator of its own, the first that of `normal`; row i does not
    depend on how many there are.
    """
    first, last, _ = rows.indices(shape[0])
    blocks = range(first // NORMAL_ROWS, -(-last // NORMAL_ROWS))
    made = [
        generator(seed, stream, step, lane=1 + LANES * block).standard_normal(
            (min(last, (block + 1) * NORMAL_ROWS) - block * NORMAL_ROWS, *shape[1:]), dtype=np.float32
        )
        for block in blocks
    ]
    start = blocks.start * NORMAL_ROWS
    joined: NDArray[np.float32] = np.concatenate(made) if made else np.empty((0, *shape[1:]), np.float32)
    return joined[first - start : last - start]


def torch_seed(seed: int, stream: str, step: int) -> int:
    """A seed for torch's own generator at `step` (63 bits)."""
    return int(generator(seed, stream, step, lane=2).integers(2**63))


def split(batch_size: int, world_size: int, micro: int | None) -> tuple[int, int]:
    """(samples per rank and backward pass, backward passes per step). Raises ValueError when it does not
    divide."""
    if batch_size % world_size:
        raise ValueError(
            f"train.batch_size = {batch_size} does not divide among {world_size} ranks: "
            f"set it to a multiple of {world_size}, or start another number of ranks"
        )
    rows = batch_size // world_size
    micro = rows if micro is None else micro
    if rows % micro:
        raise ValueError(
            f"train.micro_batch_size = {micro} does not divide the {rows} samples that each of "
            f"{world_size} ranks has of train.batch_size = {batch_size}: "
            "batch_size = micro_batch_size x accumulation x ranks"
        )
    return micro, rows // micro


def rank_rows(batch_size: int, ranks: Ranks, micro: int | None = None) -> list[slice]:
    """Rows of the global batch that this rank computes, one slice per backward pass; ranks hold adjoining
    rows."""
    size, passes = split(batch_size, ranks.world_size, micro)
    first = ranks.rank * size * passes
    return [slice(first + i * size, first + (i + 1) * size) for i in range(passes)]


def rows_of(batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    """These rows of every tensor of a global batch (dimension 0 = sample)."""
    return {name: tensor[rows] for name, tensor in batch.items()}
