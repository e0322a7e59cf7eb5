"""Fixed pseudo-random numbers for ids: the same in every process, release and order."""

import numpy as np
from numpy.typing import NDArray


def mix64(values: NDArray[np.integer]) -> NDArray[np.uint64]:
    """A fixed pseudo-random 64-bit number for each integer: splitmix64 (Steele, Lea and Flood 2014)."""
    mixed = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def uniform_draws(seed: int, sample_ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """A random number in [0, 1) for each id: it depends on the seed and that id alone, not on the other ids.

    Args:
        seed: 0 .. 2**63 − 1, as ``derive_seed`` gives it; seeds that differ in few low bits give permuted draws.
        sample_ids: (n,) integers.
    """
    hashed = mix64(sample_ids.astype(np.uint64) ^ np.uint64(seed))
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
