"""Random numbers for many identities at once: vectorised, and a function of identity and number."""

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
    """A key of each identity, from which `stream_bits` draws for many identities at once."""
    return np.array([identity_seed(*identity) for identity in identities], np.uint64)


def stream_bits(keys: Bits, first: NDArray[np.integer] | int, count: int) -> Bits:
    """Draws number `first` to `first + count - 1` of each key's own random stream, (n, count).

    The stream of a key is SplitMix64 started at it, whose draw number i is a function of the key
    and of i alone: nothing has to be drawn before, and all keys are drawn for in one pass.
    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014),
    figure 17, with the constants of its `mix64variant13`.

    Args:
        keys: Of `stream_keys`, (n,).
        first: Number of the first draw, from 0 on; of all keys, or of each (n,).
        count: Draws of each key.
    """
    numbers = np.asarray(first, np.uint64)[..., None] + np.arange(1, count + 1, dtype=np.uint64)
    z = keys[:, None] + numbers * _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    bits: Bits = z ^ (z >> np.uint64(31))
    return bits


def below(bits: Bits, limit: int) -> NDArray[np.int64]:
    """Integers in [0, limit), each as likely, from the 53 highest of `bits`; limit below 2**20."""
    fractions = (bits >> np.uint64(11)).astype(np.float64) * _FRACTION
    integers: NDArray[np.int64] = np.floor(fractions * limit).astype(np.int64)
    return integers
