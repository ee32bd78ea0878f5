"""What every backend of the scan shares: the laid-out arguments, and why a backend is off.

The dispatcher lays the arguments out once; a backend is a module that is a `Backend`. Shapes, here
and in the backends: S sequences (the batch), L steps (pixels row by row), K groups of channels or
directions, D channels of each, N state size, W channels of x: K*D where groups share no channel,
D where all directions read the same ones.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from robustcli.core.errors import first_line


class Laid(NamedTuple):
    """The tensors of a scan, channels fastest, in the order of the operators' arguments.

    They may be views of any strides and any float dtype.
    """

    x: Tensor  # (S, L, W)
    delta: Tensor  # (K, S, L, D), before bias and softplus
    A: Tensor  # (K, N, D)
    B: Tensor  # (K, S, L, N)
    C: Tensor  # (K, S, L, N)
    D: Tensor  # (K, D)
    bias: Tensor  # (K, D)


class Walk(NamedTuple):
    """How a scan goes through its steps."""

    softplus: bool  # whether delta + bias passes through softplus
    directions: tuple[str, ...] = ()  # of an image, K of them; () is a sequence in K groups
    height: int = 1  # of the image
    width: int = 1


class Backend(Protocol):
    """A module that computes scans."""

    def available(self) -> str | None:
        """None, or why this backend cannot run on this machine and how to get it."""

    def refuses(self, device: torch.device, dtype: torch.dtype, states: int) -> str | None:
        """None, or why it cannot take tensors on `device` of `dtype` with state size `states`."""

    def remedy(self) -> str:
        """What to do where its kernels fail although it is available; may be empty."""

    def scan(self, laid: Laid, walk: Walk) -> tuple[Tensor, Tensor]:
        """The outputs y (S, L, W), summed over the directions of an image, and the last states.

        In float32, in float64 where x is; only mamba-ssm's outputs of a sequence have x's dtype.
        Differentiable by every tensor of `laid`. The states are (K, S, N, D), float32.
        """


# --- Why a backend is off ------------------------------------------------------------------------

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What kernels with a float32 state take; float64 is the reference's."""


class Broken(str):
    """A reason that deserves a warning: the backend is installed and ought to work here."""


@lru_cache
def missing(package: str, kernels: str, remedy: str | None = None) -> str | None:
    """None, or why the module `kernels`, which needs `package`, cannot be imported.

    Tried once per process: a library that fails half-way through its import may not say so twice.

    Args:
        package: The library, by the name that it is imported and installed by.
        kernels: The module that needs it.
        remedy: What to do if the import fails; by default, to install `package` anew.
    """
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed (`pip install {package}`)."
    try:
        importlib.import_module(kernels)
    except Exception as error:  # whatever a broken build raises
        return Broken(
            f"{package} is installed but cannot be used: {type(error).__name__}: "
            f"{first_line(error)}. {remedy or f'Try `pip install --force-reinstall {package}`.'}"
        )
    return None


# --- The orders in which the directions of an image visit its pixels -----------------------------

CROSS = ("row", "column", "row-reversed", "column-reversed")
"""VMamba's four directions, in the order of its parameters (`x_proj_weight[k]`)."""

CODES = {"row": 0, "column": 1, "row-reversed": 2, "column-reversed": 3}
"""Bit 1: column by column; bit 2: from the end."""

MOST = 16  # directions whose codes fit in the number that kernels are given


def packed(directions: tuple[str, ...]) -> int:
    """The codes of the directions in one number, two bits each, the first one lowest."""
    return sum(CODES[direction] << 2 * k for k, direction in enumerate(directions))


def pixel_orders(height: int, width: int, directions: tuple[str, ...] = CROSS) -> Tensor:
    """The row-major index of the pixel that direction k visits at step t, (K, L) int32, L = H*W.

    Args:
        height: Rows, at least 1.
        width: Columns, at least 1.
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
    """`t` (S, K, X, L) with the last axis of direction k in the order `order[k]`, (K, L) int64."""
    return t.gather(3, order[None, :, None].expand(t.shape))


# --- Laying out ----------------------------------------------------------------------------------


def of_image(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None
) -> Laid:
    """The arguments of `ss2d_scan`."""
    K, N = delta.shape[1], A.shape[1]
    delta, B, C = (t.permute(1, 0, 3, 4, 2).flatten(2, 3) for t in (delta, B, C))
    return Laid(
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
) -> Laid:
    """The arguments of `selective_scan`, B and C with a group axis or without."""
    B, C = (t.unsqueeze(1) if t.ndim == 3 else t for t in (B, C))
    K, N = B.shape[1], A.shape[1]
    return Laid(
        u.transpose(1, 2),  # (S, L, K*D)
        delta.unflatten(1, (K, -1)).permute(1, 0, 3, 2),  # (K, S, L, D)
        A.reshape(K, -1, N).transpose(1, 2),
        B.permute(1, 0, 3, 2),  # (K, S, L, N)
        C.permute(1, 0, 3, 2),
        _rows(D, K, A),
        _rows(bias, K, A),
    )


def _rows(values: Tensor | None, K: int, A: Tensor) -> Tensor:
    """`values` (K*D) as (K, D), zeros for None."""
    return (A.new_zeros(A.shape[0]) if values is None else values).reshape(K, -1)


def to_image(y: Tensor, height: int, width: int) -> Tensor:
    """`y` (S, L, W) as (S, W, H, W)."""
    return y.reshape(y.shape[0], height, width, -1).permute(0, 3, 1, 2)


# --- Which gradients of a scan somebody asks for, and what that takes ----------------------------

NeedsGrad = Sequence[bool]
"""Seven truth values in the order of `Laid`."""


def needs_states(needs_grad: NeedsGrad) -> bool:
    """Whether the backward pass recomputes the states: only x, B and D do without."""
    _, delta, A, _, C, _, bias = needs_grad
    return delta or A or C or bias


def needs_state_grads(needs_grad: NeedsGrad) -> bool:
    """Whether it computes gradients by the states: only C and D do without."""
    x, delta, A, B, _, _, bias = needs_grad
    return x or delta or A or B or bias


def keeps_states(tensors: Iterable[Tensor]) -> bool:
    """Whether the forward pass keeps states for a backward pass by the seven `tensors`."""
    return torch.is_grad_enabled() and needs_states([t.requires_grad for t in tensors])


def grads_or_zeros(
    x: Tensor, A: Tensor, dy: Tensor | None, dstate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of the loss by y and by the last state (K, S, N, D), zeros where none came.

    Autograd would fill in one more, by the states kept for it, which is as large as they are.
    """
    K, N, D = A.shape
    if dy is None:
        dy = torch.zeros_like(x, dtype=torch.float32)
    return dy, A.new_zeros(K, x.shape[0], N, D) if dstate is None else dstate


def spread(grads: Iterable[Tensor], needs_grad: NeedsGrad) -> list[Tensor | None]:
    """The gradients `grads`, of those needed only, each in its place among seven."""
    remaining = iter(grads)
    return [next(remaining) if needed else None for needed in needs_grad]
