"""Interface and utilities of the scan backends: argument layout, availability, pixel orders.

A backend is a module that implements `Backend`. The dispatcher converts the arguments of a scan to
the common layout `ScanInputs`. Shapes, here and in the backends: S sequences (the batch), L steps
(pixels row by row), K groups of channels or directions, D channels per group or direction, N state
size, W channels of x. W is K*D for a sequence, whose groups have separate channels, and D for an
image, where all directions read the same channels.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from robustcli.core.errors import first_line


class ScanInputs(NamedTuple):
    """The tensors of a scan in the common layout, in the order of the operators' arguments.

    Channels are the last axis. The tensors may have any strides and any float dtype.
    """

    x: Tensor  # (S, L, W)
    delta: Tensor  # (K, S, L, D), before bias and softplus
    A: Tensor  # (K, N, D)
    B: Tensor  # (K, S, L, N)
    C: Tensor  # (K, S, L, N)
    D: Tensor  # (K, D)
    bias: Tensor  # (K, D)


class ScanSettings(NamedTuple):
    """Settings of a scan: softplus, and the order of the steps."""

    softplus: bool  # whether delta + bias passes through softplus
    directions: tuple[str, ...] = ()  # K directions of an image; () for a sequence of K groups
    height: int = 1  # of the image
    width: int = 1  # of the image


class Backend(Protocol):
    """Interface of the modules that compute scans."""

    def available(self) -> str | None:
        """None, or why this backend cannot run on this machine and how to install it."""

    def refuses(self, device: torch.device, dtype: torch.dtype, states: int) -> str | None:
        """None, or why `device`, `dtype` or the state size `states` is not supported."""

    def remedy(self) -> str:
        """Advice if its kernels fail although it is available; may be empty."""

    def scan(self, arguments: ScanInputs, settings: ScanSettings) -> tuple[Tensor, Tensor]:
        """The outputs y (S, L, W), summed over the directions of an image, and the last states.

        The outputs are float32, or float64 if x is; only mamba-ssm returns the outputs of a
        sequence in the dtype of x. The states are (K, S, N, D), float32. The results are
        differentiable with respect to every tensor of `arguments`.
        """


# --- Availability of a backend -------------------------------------------------------------------

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes supported by kernels, whose states are float32; float64 needs the reference."""


class Broken(str):
    """Reason for a warning: the backend is installed and should work, but does not."""


@lru_cache
def missing(package: str, kernels: str, remedy: Callable[[], str] | None = None) -> str | None:
    """None, or why the module `kernels`, which needs `package`, cannot be imported.

    The result is cached: the second import of a library whose import failed may not fail again.

    Args:
        package: Name of the library for import and installation.
        kernels: Name of the module that needs it.
        remedy: Returns advice if the import fails; by default, to reinstall `package`.
    """
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed (`pip install {package}`)."
    try:
        importlib.import_module(kernels)
    except Exception as error:  # whatever a broken build raises
        advice = remedy() if remedy else f"Try `pip install --force-reinstall {package}`."
        return Broken(
            f"{package} is installed but cannot be used: {type(error).__name__}: "
            f"{first_line(error)}. {advice}"
        )
    return None


# --- Pixel orders of the directions of an image --------------------------------------------------

CROSS = ("row", "column", "row-reversed", "column-reversed")
"""VMamba's four directions, in the order of its parameters (`x_proj_weight[k]`)."""

CODES = {"row": 0, "column": 1, "row-reversed": 2, "column-reversed": 3}
"""Code of each direction: the lowest bit for column by column, the second bit for reversed."""

MOST = 16  # directions: their codes fit in the 32-bit argument of the kernels


def packed(directions: tuple[str, ...]) -> int:
    """The codes of the directions in one integer, two bits each, first direction lowest."""
    return sum(CODES[direction] << 2 * k for k, direction in enumerate(directions))


def path(settings: ScanSettings, delta: Tensor) -> tuple[int, int, int, int]:
    """Height, width, packed directions and group: the order of the steps for operators of torch.

    The group is the number of channels per group of a sequence, and 0 for an image, the outputs of
    whose directions are summed. A sequence is an image with a single row.

    Args:
        settings: The settings of the scan.
        delta: Step sizes (K, S, L, D).
    """
    if settings.directions:
        return settings.height, settings.width, packed(settings.directions), 0
    return 1, delta.shape[2], 0, delta.shape[3]


def unpacked(paths: int, count: int) -> tuple[str, ...]:
    """The inverse of `packed` for `count` directions."""
    names = {code: direction for direction, code in CODES.items()}
    return tuple(names[paths >> 2 * k & 3] for k in range(count))


def pixel_orders(height: int, width: int, directions: tuple[str, ...] = CROSS) -> Tensor:
    """The row-major index of the pixel that direction k visits at step t, (K, L) int32, L = H*W.

    Args:
        height: Number of rows, at least 1.
        width: Number of columns, at least 1.
        directions: One of `row`, `column`, `row-reversed`, `column-reversed` per direction.
    """
    row = torch.arange(height * width, dtype=torch.int32)
    column = row.view(height, width).t().reshape(-1)
    paths = {
        "row": row,
        "column": column,
        "row-reversed": row.flip(0),
        "column-reversed": column.flip(0),
    }
    return torch.stack([paths[direction] for direction in directions])  # (K, L)


def in_order(t: Tensor, order: Tensor) -> Tensor:
    """Permutes the last axis of `t` (S, K, X, L) by `order[k]`; `order` is (K, L) int64."""
    return t.gather(3, order[None, :, None].expand(t.shape))


# --- Conversion to and from the common layout ----------------------------------------------------


def of_image(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None
) -> ScanInputs:
    """Converts the arguments of `ss2d_scan` to the common layout."""
    K, N = delta.shape[1], A.shape[1]
    delta, B, C = (t.permute(1, 0, 3, 4, 2).flatten(2, 3) for t in (delta, B, C))
    return ScanInputs(
        x.permute(0, 2, 3, 1).flatten(1, 2),  # (S, L, D)
        delta,
        A.reshape(K, -1, N).transpose(1, 2),  # (K, N, D)
        B,
        C,
        _rows(D, K, A),
        _rows(bias, K, A),
    )


def of_sequence(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None
) -> ScanInputs:
    """Converts the arguments of `selective_scan`; B and C may have a group axis."""
    B, C = (t.unsqueeze(1) if t.ndim == 3 else t for t in (B, C))
    K, N = B.shape[1], A.shape[1]
    return ScanInputs(
        u.transpose(1, 2),  # (S, L, K*D)
        delta.unflatten(1, (K, -1)).permute(1, 0, 3, 2),  # (K, S, L, D)
        A.reshape(K, -1, N).transpose(1, 2),
        B.permute(1, 0, 3, 2),  # (K, S, L, N)
        C.permute(1, 0, 3, 2),
        _rows(D, K, A),
        _rows(bias, K, A),
    )


def _rows(values: Tensor | None, K: int, A: Tensor) -> Tensor:
    """`values` (K*D) reshaped to (K, D); zeros for None."""
    return (A.new_zeros(A.shape[0]) if values is None else values).reshape(K, -1)


def to_image(y: Tensor, height: int, width: int) -> Tensor:
    """Reshapes outputs `y` (S, L, channels) to images (S, channels, height, width)."""
    return y.reshape(y.shape[0], height, width, -1).permute(0, 3, 1, 2)


# --- Needed gradients of a scan, and what they require -------------------------------------------

NeedsGrad = Sequence[bool]
"""Whether each of the seven tensors needs a gradient, in the order of `ScanInputs`."""


def needs_states(needs_grad: NeedsGrad) -> bool:
    """Whether the backward pass needs the states: only the gradients of x, B and D do not."""
    _, delta, A, _, C, _, bias = needs_grad
    return delta or A or C or bias


def needs_state_grads(needs_grad: NeedsGrad) -> bool:
    """Whether the backward pass needs gradients of the states: those of C and D do not."""
    x, delta, A, B, _, _, bias = needs_grad
    return x or delta or A or B or bias


def keeps_states(tensors: Iterable[Tensor]) -> bool:
    """Whether the forward pass saves states for the backward pass of the seven `tensors`."""
    return torch.is_grad_enabled() and needs_states([t.requires_grad for t in tensors])


def grads_or_zeros(
    x: Tensor, A: Tensor, dy: Tensor | None, dstate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the loss with respect to y and the last state (K, S, N, D); zeros for None.

    Replaces `set_materialize_grads`, which would also allocate a gradient of the saved states, as
    large as these.
    """
    K, N, D = A.shape
    if dy is None:
        dy = torch.zeros_like(x, dtype=torch.float32)
    return dy, A.new_zeros(K, x.shape[0], N, D) if dstate is None else dstate


def spread(grads: Iterable[Tensor], needs_grad: NeedsGrad) -> list[Tensor | None]:
    """Seven gradients in the order of `ScanInputs`: those in `grads`, None for those not needed."""
    remaining = iter(grads)
    return [next(remaining) if needed else None for needed in needs_grad]
