"""Arguments of the scan that do not fit, named before any kernel starts."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.models.scan.orders import CODES, MOST

Shape = tuple[int, ...]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raises UsageError for the first argument of `selective_scan` that does not fit."""
    _ranks(u=(u, (3,)), A=(A, (2,)), B=(B, (3, 4)))
    batch, channels, length = u.shape
    states = A.shape[1]
    groups = (B.shape[1],) if B.ndim == 4 else ()
    if groups and (groups[0] == 0 or channels % groups[0]):
        raise UsageError(
            "`B` does not fit `u`.",
            f"Its {groups[0]} groups do not divide the {channels} channels of `u`.",
        )
    state_shape = (batch, *groups, states, length)
    _shapes(
        u,
        u=(u, u.shape),
        delta=(delta, u.shape),
        A=(A, (channels, states)),
        B=(B, state_shape),
        C=(C, state_shape),
        D=(D, (channels,)),
        z=(z, u.shape),
        delta_bias=(delta_bias, (channels,)),
    )


def check_ss2d_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    directions: tuple[str, ...],
) -> None:
    """Raises UsageError for the first argument of `ss2d_scan` that does not fit."""
    _known(directions)
    _ranks(x=(x, (4,)), A=(A, (2,)))
    batch, channels, height, width = x.shape
    K, states = len(directions), A.shape[1]
    _shapes(
        x,
        x=(x, x.shape),
        delta=(delta, (batch, K, channels, height, width)),
        A=(A, (K * channels, states)),
        B=(B, (batch, K, states, height, width)),
        C=(C, (batch, K, states, height, width)),
        D=(D, (K * channels,)),
        delta_bias=(delta_bias, (K * channels,)),
    )


def _known(directions: tuple[str, ...]) -> None:
    if not 1 <= len(directions) <= MOST:
        raise UsageError(
            "`directions` has the wrong length.",
            f"Expected 1 to {MOST} directions, got {len(directions)}.",
        )
    for direction in directions:
        if direction not in CODES:
            raise UsageError(
                f"No direction is called `{direction}`.",
                f"Expected {', '.join(f'`{code}`' for code in CODES)}.",
            )


def _ranks(**arguments: tuple[Tensor, Shape]) -> None:
    for name, (tensor, ranks) in arguments.items():
        if tensor.ndim not in ranks or 0 in tensor.shape:
            raise UsageError(
                f"`{name}` has the wrong shape.",
                f"Expected {' or '.join(map(str, ranks))} dimensions, none of them empty; "
                f"got {tuple(tensor.shape)}.",
            )


def _shapes(like: Tensor, **arguments: tuple[Tensor | None, Shape]) -> None:
    for name, (tensor, shape) in arguments.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != tuple(shape):
            raise UsageError(
                f"`{name}` has the wrong shape.",
                f"Expected {tuple(shape)}, got {tuple(tensor.shape)}.",
            )
        if tensor.device != like.device:
            raise UsageError(
                f"`{name}` is on the wrong device.",
                f"The input is on {like.device}, `{name}` on {tensor.device}.",
            )
        if tensor.dtype not in DTYPES:
            raise UsageError(
                f"`{name}` has the wrong dtype.",
                f"Expected float16, bfloat16, float32 or float64, got {tensor.dtype}.",
            )
