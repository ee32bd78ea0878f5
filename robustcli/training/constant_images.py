"""Images of one value everywhere: how a network trains on a batch that holds some.

A black image, or any constant one that is normalised by its own mean, is exactly zero for the
network. Where biases begin at zero it stays zero from layer to layer, and every norm on the way
divides its gradient by the square root of the norm's epsilon: times 316 for 1e-5. Behind ten norms
a gradient that was 1 leaves float32, and with it the gradients of all images of the batch; behind
seven (U-Mamba) it is finite, and after clipping the step follows the constant image alone.

What such a norm says of its input's direction is rounding, not information. So, in batches with a
constant image, no gradient passes a norm where its input does not vary; biases and scales still
learn from it. Of all other inputs the gradient stays as it is, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

_LOOKED_AT = 64  # pixels by which most images are seen not to be constant
_NO_VARIANCE = 1e-6  # of a norm's epsilon: below it, what varies is rounding


def constant_ids(images: Tensor, ids: Sequence[str]) -> tuple[str, ...]:
    """Which of the images (B, C, H, W) have a single value in each channel, by their `ids`."""
    flat = images.flatten(2)
    some = flat[:, :, :: max(1, flat.shape[2] // _LOOKED_AT)]
    perhaps = (some == some[:, :, :1]).flatten(1).all(1).nonzero().flatten().tolist()
    return tuple(ids[i] for i in perhaps if bool((flat[i] == flat[i, :, :1]).all()))


@contextmanager
def without_gradient_of_constants(network: nn.Module) -> Iterator[None]:
    """Makes norms pass no gradient to inputs that do not vary, in the context's forward passes.

    The numbers that the network says stay the same.
    """
    norms = [module for module in network.modules() if _axes(module, 4) is not None]
    handles = [norm.register_forward_pre_hook(_gated) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gated(norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x = inputs[0]
    if not (torch.is_grad_enabled() and x.requires_grad):
        return inputs
    return (_Gate.apply(x, _varies(norm, x)), *inputs[1:])


def _varies(norm: nn.Module, x: Tensor) -> Tensor:
    """Where the norm's input varies within what it normalises together; broadcasts to `x`."""
    axes = _axes(norm, x.ndim)
    assert axes is not None, "only such norms are watched"
    values = x.detach().float()
    if isinstance(norm, nn.GroupNorm):
        grouped = values.reshape(len(x), norm.num_groups, -1).var(2, correction=0)
        shape = (len(x), x.shape[1], *[1] * (x.ndim - 2))
        variance = grouped.repeat_interleave(x.shape[1] // norm.num_groups, 1).reshape(shape)
    else:
        variance = values.var(axes, correction=0, keepdim=True)
    eps: Any = norm.eps
    return variance > _NO_VARIANCE * float(eps)


def _axes(norm: nn.Module, dimensions: int) -> tuple[int, ...] | None:
    """The axes over which a norm takes mean and variance together; None of other modules."""
    if isinstance(norm, nn.LayerNorm):
        if type(norm).__name__.endswith("2d"):  # timm's: over the channels of (B, C, H, W)
            return (1,)
        return tuple(range(-len(norm.normalized_shape), 0))
    if isinstance(norm, _BatchNorm):
        return (0, *range(2, dimensions))
    if isinstance(norm, (_InstanceNorm, nn.GroupNorm)):
        return tuple(range(2, dimensions))
    return None


class _Gate(Function):
    """The identity, whose gradient is zero where the mask is not set."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, gradients[0], 0.0), None
