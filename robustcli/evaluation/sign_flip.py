"""Whether paired differences are more than chance: the sign-flip (paired permutation) test.

Where two ways of training do not differ, each difference could as well have had the other sign.
No form of the differences' distribution is assumed.

Source: R. A. Fisher, The Design of Experiments, 1935, section 21; E. J. G. Pitman, Significance
tests which may be applied to samples from any populations, J. Roy. Stat. Soc. Suppl. 4 (1937).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robustcli.core.seeds import identity_seed

EXACT_UP_TO = 16  # differences: 65,536 ways to choose the signs
DRAWS = 20_000
_AT_ONCE = 2_000
_SAME = 1e-9  # of the largest sum: the same sum in another order counts as equal


def sign_flip_p(differences: NDArray[np.float64], seed: int = 0) -> float:
    """The two-sided p-value, in (0, 1], of the sum of `differences` being 0 but for chance.

    Exact up to EXACT_UP_TO differences that are not 0, else from DRAWS random signs, the observed
    ones among them.

    Args:
        differences: One per independent unit, at least one.
        seed: Of the random signs.
    """
    values = differences[differences != 0]
    observed = abs(float(values.sum())) - _SAME * float(np.abs(values).sum())
    if len(values) <= EXACT_UP_TO:
        return float((np.abs(_all_sums(values)) >= observed).mean())
    generator = np.random.default_rng(identity_seed(seed, "sign-flip"))
    extreme = 0
    for _ in range(0, DRAWS, _AT_ONCE):
        signs = 2.0 * generator.integers(2, size=(_AT_ONCE, len(values))) - 1
        extreme += int((np.abs(signs @ values) >= observed).sum())
    return (1 + extreme) / (1 + DRAWS)


def smallest_p(units: int) -> float:
    """The smallest p-value that `units` differences can give at all."""
    return 2.0 ** (1 - units) if units <= EXACT_UP_TO else 1 / (1 + DRAWS)


def _all_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums under every choice of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums
