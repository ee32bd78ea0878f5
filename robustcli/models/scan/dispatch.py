"""Public functions of the scan: they check the arguments, choose a backend and call it.

Both functions support `torch.overrides`, like the functions of torch: in a `TorchFunctionMode` each
is a single operation, independently of the backend.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from robustcli.core.errors import UsageError
from robustcli.models.scan.base import (
    CODES,
    CROSS,
    MOST,
    ScanSettings,
    of_image,
    of_sequence,
    to_image,
)
from robustcli.models.scan.choice import BACKENDS, choose_backend


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The selective scan of Mamba over a sequence, with the signature of mamba-ssm.

    Args:
        u: Input (B, D, L).
        delta: Step sizes before bias and softplus, (B, D, L).
        A: State decay (D, N), negative; kept in float32 for half inputs.
        B: Input matrix, (B, N, L) or grouped (B, G, N, L) with D divisible by G.
        C: Output matrix, shaped as `B`.
        D: Skip weight (D,), or None.
        z: Gate (B, D, L): the output is multiplied by silu(z); or None.
        delta_bias: Bias of delta, (D,), or None.
        delta_softplus: Whether delta passes through softplus.
        return_last_state: Whether to also return the last state, (B, D, N) float32.

    Returns:
        y (B, D, L) in u's dtype, or (y, last state).

    Raises:
        UsageError: A shape, dtype or device is invalid; the message names the argument.
        MachineError: The forced backend does not support these tensors.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    if has_torch_function(tensors):
        overridden: Tensor | tuple[Tensor, Tensor] = handle_torch_function(
            selective_scan, tensors, *tensors, delta_softplus, return_last_state
        )
        return overridden
    check_selective_scan(*tensors)
    backend = BACKENDS[choose_backend(u.device, u.dtype, A.shape[1], "selective_scan")]
    y, state = backend.scan(
        of_sequence(u, delta, A, B, C, D, delta_bias), ScanSettings(delta_softplus)
    )
    y = y.transpose(1, 2)  # (B, D, L)
    if z is not None:
        y = y * F.silu(z.to(torch.promote_types(y.dtype, torch.float32)))
    y = y.to(u.dtype)
    return (y, state.permute(1, 0, 3, 2).flatten(1, 2)) if return_last_state else y


def ss2d_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    *,
    directions: tuple[str, ...] = CROSS,
) -> Tensor:
    """The selective scan of VMamba: over an image in K directions, summed at each pixel.

    All arguments are indexed by pixel; direction k reads the pixels in its order, so that no
    cross-scanned copy of the input is made.

    Args:
        x: Input (B, D, H, W).
        delta: Step sizes before bias and softplus, (B, K, D, H, W).
        A: State decay (K*D, N), row k*D + d; kept in float32 for half inputs.
        B: Input matrix (B, K, N, H, W).
        C: Output matrix (B, K, N, H, W).
        D: Skip weight (K*D,), or None.
        delta_bias: Bias of delta, (K*D,), or None.
        delta_softplus: Whether delta passes through softplus.
        directions: Pixel order of each of the K directions: `row`, `column`, `row-reversed` or
            `column-reversed`; repetitions are allowed, at most 16 in total. VMamba's variants:
            `("row",) * 4` is unidirectional, `("row", "row", "row-reversed", "row-reversed")`
            bidirectional.

    Returns:
        y (B, D, H, W): the sum over the directions, in float32 for half inputs, because the sum can
        overflow in float16, as in the official fp16 code (VMamba issue 138).

    Raises:
        UsageError: A shape, dtype, device or direction is invalid; the message names it.
        MachineError: The forced backend does not support these tensors.
    """
    tensors = (x, delta, A, B, C, D, delta_bias)
    if has_torch_function(tensors):
        overridden: Tensor = handle_torch_function(
            ss2d_scan, tensors, *tensors, delta_softplus, directions=directions
        )
        return overridden
    check_ss2d_scan(*tensors, directions)
    backend = BACKENDS[choose_backend(x.device, x.dtype, A.shape[1], "ss2d_scan")]
    height, width = x.shape[2:]
    settings = ScanSettings(delta_softplus, directions, height, width)
    y, _ = backend.scan(of_image(x, delta, A, B, C, D, delta_bias), settings)
    return to_image(y, height, width)


# --- Validation of the arguments before a kernel starts ------------------------------------------

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
    """Raises UsageError for the first invalid argument of `selective_scan`."""
    _ranks(u=(u, (3,)), A=(A, (2,)), B=(B, (3, 4)))
    batch, channels, length = u.shape
    states = A.shape[1]
    groups = (B.shape[1],) if B.ndim == 4 else ()
    if groups and (groups[0] == 0 or channels % groups[0]):
        raise UsageError(
            "`B` does not match `u`.",
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
    """Raises UsageError for the first invalid argument of `ss2d_scan`."""
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
