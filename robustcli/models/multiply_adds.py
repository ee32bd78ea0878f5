"""Counts the multiply-adds of a network for one input, including its selective scans.

Counted are products of matrices, convolutions, and attention, by torch's own counter (two of its
operations are one multiply-add), and the scans by `scan_multiply_adds`, whichever backend serves:
no counter sees into their kernels. As with other counters, what is done element by element
(activations, normalisation, gates, sums) does not count.
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

    Of the recurrence h = exp(delta A) h + (delta u) B, y = C h + D u, per step and channel: delta u
    is one product; per state delta A and (delta u) B are one product each, the new state and the
    sum of the output one multiply-add each; D u is one. A product alone counts as a multiply-add.
    Softplus and exp do not count.

    VMamba's published counts take 9 per step, channel and state instead, which is the number of
    operations of a parallel scan (Mamba's issue 110), so that they are higher than these.

    Args:
        steps: Tokens or pixels, over all sequences of the batch.
        channels: Inner channels, over all directions.
        states: State size N.
        skip: Whether there is a skip weight D.
    """
    return steps * channels * (4 * states + 1 + skip)


def count_multiply_adds(forward: Callable[[], object], *modules: nn.Module) -> int:
    """The multiply-adds of one call of `forward`; its answer is thrown away.

    The scans themselves are left out of the call and counted by their arguments, so the values that
    follow them are zeros.

    Args:
        forward: What is counted; it should put one input through a network.
        modules: Networks in it, which are in evaluation mode during the call.
    """
    learning = [module for network in modules for module in network.modules() if module.training]
    for module in learning:
        module.training = False
    scans = _CountedScans()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # Neither of the fused kernels is among the operations that torch's counter knows on a CPU.
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
    """Counts every scan and gives zeros for it."""

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """`func`, or the zeros in place of a scan's output."""
        if func is selective_scan:
            return self._sequence(*args)
        if func is ss2d_scan:
            return self._image(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _sequence(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        z: Tensor | None, bias: Tensor | None, softplus: bool, return_last_state: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        """In place of `selective_scan`."""
        batch, channels, length = u.shape
        self.multiply_adds += scan_multiply_adds(
            batch * length, channels, A.shape[1], skip=D is not None
        )
        y = torch.zeros_like(u)
        return (y, y.new_zeros(batch, *A.shape, dtype=torch.float32)) if return_last_state else y

    def _image(
        self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        *others: Any, **directions: Any,
    ) -> Tensor:  # fmt: skip
        """In place of `ss2d_scan`."""
        batch, _, height, width = x.shape
        self.multiply_adds += scan_multiply_adds(
            batch * height * width, A.shape[0], A.shape[1], skip=D is not None
        )
        return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
