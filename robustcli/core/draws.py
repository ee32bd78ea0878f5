"""Vectorised random numbers that depend only on an identity and the number of the draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from robustcli.core.seeds import identity_seed

Bits = NDArray[np.uint64]
_GAMMA, _FIRST, _SECOND = (
    np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_FRACTION = 2.0**-53  # of the 53 highest bits


def stream_keys(identities: Sequence[tuple[object, ...]]) -> Bits:
    """One key per identity for `stream_bits`, uint64 (n,)."""
    return np.array([identity_seed(*identity) for identity in identities], np.uint64)


def stream_bits(keys: Bits, first: NDArray[np.integer] | int, count: int) -> Bits:
    """Draws `first` to `first + count - 1` of the random stream of each key, uint64 (n, count).

    The stream of a key is SplitMix64 with the key as its state. Draw i depends only on the key and
    i, so that draws can start at any number and all keys are processed in one pass.
    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014),
    figure 17, with the constants of its `mix64variant13`.

    Args:
        keys: Keys of `stream_keys`, (n,).
        first: Number of the first draw, counted from 0: one for all keys, or one per key (n,).
        count: Number of draws per key.
    """
    numbers = np.asarray(first, np.uint64)[..., None] + np.arange(1, count + 1, dtype=np.uint64)
    z = keys[:, None] + numbers * _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    bits: Bits = z ^ (z >> np.uint64(31))
    return bits


def below(bits: Bits, limit: int) -> NDArray[np.int64]:
    """Uniform integers in [0, limit) from the 53 highest bits of `bits`; limit below 2**20."""
    fractions = (bits >> np.uint64(11)).astype(np.float64) * _FRACTION
    integers: NDArray[np.int64] = np.floor(fractions * limit).astype(np.int64)
    return integers
