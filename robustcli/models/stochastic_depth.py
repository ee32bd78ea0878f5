"""How often each residual branch is dropped in training."""

from __future__ import annotations

from itertools import islice


def rising_rates(most: float, depths: tuple[int, ...]) -> list[list[float]]:
    """One rate per block of each stage, rising evenly from 0 at the first to `most` at the last.

    Plain numbers, so that a network can also be laid out on the meta device.

    Source: Huang et al., "Deep Networks with Stochastic Depth" (arXiv 1603.09382).
    """
    last = max(sum(depths) - 1, 1)
    rates = (most * i / last for i in range(sum(depths)))
    return [list(islice(rates, depth)) for depth in depths]
