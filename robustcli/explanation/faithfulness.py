"""Faithfulness of maps: insertion and deletion curves.

This module computes the curves, which need the network. The scores computed from the curves are
pure functions in `metrics.explanation_scores`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.explanation.network import ExplainedNetwork, batched

CURVE_STEPS = 8
"""Number of steps of a curve; each step inserts or deletes one eighth of the pixels."""
BLUR = 10 / 224
"""Standard deviation of the blur at the start of insertion, as a share of the longer side."""


def insertion_and_deletion(
    explained: ExplainedNetwork, pixels: Tensor, targets: Tensor, maps: Tensor, *, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Insertion and deletion curves: two tensors (N, CURVE_STEPS + 1) of target probabilities.

    Insertion starts from the blurred photo and restores its pixels, those with the highest map
    values first. Deletion starts from the photo and replaces its pixels with the mean colour, in
    the same order.

    Args:
        explained: The network.
        pixels: Normalised photos (N, C, H, W).
        targets: Targets, see `ExplainedNetwork.score`.
        maps: Maps (N, H, W).
        batch_size: Largest number of images per forward pass.

    Source: Petsiuk et al., "RISE" (BMVC 2018), section 3.4.
    """
    shares = [step / CURVE_STEPS for step in range(CURVE_STEPS + 1)]
    curves = [
        _curves(explained, pixels[row], targets[row], maps[row], shares, batch_size)
        for row in range(len(pixels))
    ]
    return (
        torch.stack([insertion for insertion, _ in curves]),
        torch.stack([deletion for _, deletion in curves]),
    )


def _curves(
    explained: ExplainedNetwork, photo: Tensor, target: Tensor, relevance: Tensor,
    shares: list[float], batch_size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The two curves of one photo (C, H, W), on the CPU."""
    order = relevance.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    rank = rank.view(1, *relevance.shape)
    blurred, bare = blur(photo[None])[0], torch.zeros_like(photo)
    count = relevance.numel()
    inputs = []
    for first, second in ((photo, blurred), (bare, photo)):  # selected pixels, all others
        inputs += [torch.where(rank < round(s * count), first, second) for s in shares]
    stack = torch.stack(inputs)
    with torch.no_grad():
        probabilities = torch.cat(
            [
                explained.probability(
                    stack[part], target[None].expand(part.stop - part.start, *target.shape)
                ).cpu()
                for part in batched(len(stack), batch_size)
            ]
        )
    return probabilities[: len(shares)], probabilities[len(shares) :]


def blur(pixels: Tensor) -> Tensor:
    """Pixels (N, C, H, W) after a Gaussian blur of width `BLUR`; borders are replicated."""
    sigma = max(BLUR * max(pixels.shape[2:]), 0.5)
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = (-offsets.square() / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    channels = pixels.shape[1]
    for shape, pad in (((1, -1), (reach, reach, 0, 0)), ((-1, 1), (0, 0, reach, reach))):
        weight = kernel.view(1, 1, *shape).expand(channels, 1, *kernel.view(*shape).shape)
        pixels = F.conv2d(F.pad(pixels, pad, mode="replicate"), weight, groups=channels)
    return pixels
