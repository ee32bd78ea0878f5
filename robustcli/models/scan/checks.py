"""Arguments of the scan that do not fit, named before any kernel starts."""

from __future__ import annotations

from torch import Tensor

from robustcli.core.errors import UsageError

Shape = tuple[int, ...]


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
) -> None:
    """Raises UsageError for the first argument of `ss2d_scan` that does not fit."""
    _ranks(x=(x, (4,)), A=(A, (2,)))
    batch, channels, height, width = x.shape
    states = A.shape[1]
    _shapes(
        x,
        delta=(delta, (batch, 4, channels, height, width)),
        A=(A, (4 * channels, states)),
        B=(B, (batch, 4, states, height, width)),
        C=(C, (batch, 4, states, height, width)),
        D=(D, (4 * channels,)),
        delta_bias=(delta_bias, (4 * channels,)),
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
        if not tensor.is_floating_point():
            raise UsageError(
                f"`{name}` has the wrong dtype.",
                f"Expected a real floating-point tensor, got {tensor.dtype}.",
            )
