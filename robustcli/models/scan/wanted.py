"""Which gradients of a scan somebody asks for, and what that takes.

Seven truth values in the order of `layout.Laid`: x, delta, A, B, C, D and bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Wanted = Sequence[bool]


def needs_states(wanted: Wanted) -> bool:
    """Whether the backward pass recomputes the states: only x, B and D do without."""
    _, delta, A, _, C, _, bias = wanted
    return delta or A or C or bias


def needs_slopes(wanted: Wanted) -> bool:
    """Whether it walks the slopes by the states back: only C and D do without."""
    x, delta, A, B, _, _, bias = wanted
    return x or delta or A or B or bias


def slopes_or_zeros(
    x: Tensor, A: Tensor, dy: Tensor | None, dstate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The slopes of the loss by y and by the last state (K, S, N, D), zeros where none came.

    Autograd would fill in one more, by the states kept for it, which is as large as they are.
    """
    K, N, D = A.shape
    if dy is None:
        dy = torch.zeros_like(x, dtype=torch.float32)
    return dy, A.new_zeros(K, x.shape[0], N, D) if dstate is None else dstate


def spread(found: Iterable[Tensor], wanted: Wanted) -> list[Tensor | None]:
    """The gradients `found`, of those wanted only, each in its place among seven."""
    rest = iter(found)
    return [next(rest) if asked else None for asked in wanted]
