"""Stable training on batches that contain constant images (one value in every pixel).

A black image, or a constant image normalised by its own mean, is exactly zero at the input of the
network. With zero-initialised biases it stays zero in every layer, and each normalisation layer
multiplies its gradient by 1 / sqrt(epsilon), which is 316 for epsilon 1e-5. After ten such layers a
gradient of 1 overflows float32 and spoils the gradients of all images in the batch. After seven
layers (U-Mamba) it is finite, but after clipping it dominates the step.

The gradient with respect to such an input is rounding noise. In batches with a constant image,
normalisation layers therefore pass no gradient to inputs without variance; their scales and biases
are still trained. The gradients of all other inputs stay bit-identical.
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

_LOOKED_AT = 64  # pixels of a quick test, which rules out most images
_NO_VARIANCE = 1e-6  # share of epsilon below which the variance is rounding noise


def constant_ids(images: Tensor, ids: Sequence[str]) -> tuple[str, ...]:
    """The `ids` of the images (B, C, H, W) that have a single value in each channel."""
    flat = images.flatten(2)
    some = flat[:, :, :: max(1, flat.shape[2] // _LOOKED_AT)]
    perhaps = (some == some[:, :, :1]).flatten(1).all(1).nonzero().flatten().tolist()
    return tuple(ids[i] for i in perhaps if bool((flat[i] == flat[i, :, :1]).all()))


@contextmanager
def without_gradient_of_constants(network: nn.Module) -> Iterator[None]:
    """Stops gradients of normalisation layers to constant inputs in the context's forward passes.

    The outputs of the network do not change.
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
    """Mask of the groups of values with variance that the layer normalises; broadcasts to `x`."""
    axes = _axes(norm, x.ndim)
    assert axes is not None, "hooks are registered for such layers only"
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
    """The axes over which a layer computes mean and variance; None for other modules."""
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
    """The identity with a gradient of zero outside the mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, gradients[0], 0.0), None
