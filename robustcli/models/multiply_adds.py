"""Counts the multiply-adds of a network for one input, including its selective scans.

Matrix products, convolutions and attention are counted by torch's counter (two of its operations
are one multiply-add). Scans are counted by `scan_multiply_adds`, independently of the backend,
because no counter covers their kernels. As in other counters, element-wise operations (activations,
normalisation, gates, sums) are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from robustcli.models.scan import selective_scan, ss2d_scan


def scan_multiply_adds(steps: int, channels: int, states: int, *, skip: bool = True) -> int:
    """The multiply-adds of a selective scan: `steps` x `channels` x (4 `states` + 1, + 1 with D).

    The recurrence is h = exp(delta A) h + (delta u) B, y = C h + D u. Per step and channel, delta u
    and D u are one multiply-add each. Per state, delta A, (delta u) B, the new state and the sum of
    the output are one multiply-add each. A product without a sum counts as a multiply-add. Softplus
    and exp are not counted.

    VMamba's published counts are higher: they assume 9 per step, channel and state, the number of
    operations of a parallel scan (Mamba's issue 110).

    Args:
        steps: Number of tokens or pixels, over all sequences of the batch.
        channels: Number of inner channels, over all directions.
        states: State size N.
        skip: Whether the scan has a skip weight D.
    """
    return steps * channels * (4 * states + 1 + skip)


def count_multiply_adds(forward: Callable[[], object], *modules: nn.Module) -> int:
    """The multiply-adds of one call of `forward`; its return value is discarded.

    Scans are counted by the shapes of their arguments and not executed: their outputs are zeros.

    Args:
        forward: The function to count; it should pass one input through a network.
        modules: The networks that it calls; they are in evaluation mode during the call.
    """
    learning = [module for network in modules for module in network.modules() if module.training]
    for module in learning:
        module.training = False
    scans = _CountedScans()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # On a CPU torch's counter does not cover the fused kernels of attention.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
            scans,
        ):
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module in learning:
            module.training = True
    operations: int = counter.get_total_flops()
    return operations // 2 + scans.multiply_adds


class _CountedScans(TorchFunctionMode):
    """Counts every scan and returns zeros instead of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls `func`, unless it is a scan: returns zeros for scans."""
        if func is selective_scan:
            return self._sequence(*args)
        if func is ss2d_scan:
            return self._image(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _sequence(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        z: Tensor | None, bias: Tensor | None, softplus: bool, return_last_state: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        """Replaces `selective_scan`."""
        batch, channels, length = u.shape
        self.multiply_adds += scan_multiply_adds(
            batch * length, channels, A.shape[1], skip=D is not None
        )
        y = torch.zeros_like(u)
        return (y, y.new_zeros(batch, *A.shape, dtype=torch.float32)) if return_last_state else y

    def _image(
        self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        *args: Any, **directions: Any,
    ) -> Tensor:  # fmt: skip
        """Replaces `ss2d_scan`."""
        batch, _, height, width = x.shape
        self.multiply_adds += scan_multiply_adds(
            batch * height * width, A.shape[0], A.shape[1], skip=D is not None
        )
        return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
