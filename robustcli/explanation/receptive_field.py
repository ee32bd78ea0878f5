"""The effective receptive field: the influence of each pixel on the centre of a feature map.

Source: Luo et al., "Understanding the effective receptive field in deep convolutional neural
networks" (NIPS 2016); averaged over images by Ding et al., "Scaling up your kernels to 31x31"
(RepLKNet, CVPR 2022), and by VMamba (arXiv 2401.10166). With F the feature map (C, h, w) of the
layer that Grad-CAM uses, the field of an image is the gradient of the middle position of F,

    E(p) = sum_channels |d (sum_c F[c, h/2, w/2]) / d pixel p|,

scaled to a mean of 1 over the pixels, so that each image has the same weight in an average. A
feature map with an even number of rows or columns has no middle position: the fields of the
positions around the middle are shifted by half a position, so that each is centred in the image,
and averaged where they overlap. The centre of a position is defined as the centre of its cell in a
regular division of the image; convolutions with stride 2 and padding 1 have receptive fields up to
half a cell further up and left.

Deviations from RepLKNet's script: the script sums only positive gradients, and takes the logarithm
before it measures areas. Here, areas are those of the contributions without a logarithm.

Cost: one forward pass per batch, and one backward pass to the pixels (two if the number of rows or
columns is even, four if both are). Supported networks: all with a layer that Grad-CAM can use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.explanation.grad_cam import CamLayer, cam_layer, recording
from robustcli.explanation.network import Attribution, ExplainedNetwork, batched


def receptive_field(
    explained: ExplainedNetwork,
    pixels: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    seeds: Sequence[int] = (),
) -> Attribution:
    """The field of each image (N, H, W), not negative, with mean 1; independent of the target.

    The field of the network is the mean over images.

    Raises:
        UsageError: No layer of the network has an output with positions in the image.
    """
    layer = cam_layer(explained, pixels[:1])
    parts = batched(len(pixels), batch_size)
    return Attribution(torch.cat([_fields(explained, layer, pixels[part]) for part in parts]))


def untrained_receptive_field(
    explained: ExplainedNetwork,
    pixels: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    seeds: Sequence[int] = (),
) -> Attribution:
    """The fields (N, H, W) of the same network before training.

    Raises:
        UsageError: The initialisation of the network is unknown, or no layer of it has an output
            with positions in the image.
    """
    if explained.initial is None:
        raise UsageError(
            "`--method erf-untrained` cannot build this network again.",
            "It was loaded with its weights, and their initialisation is not known.",
            "Use `--method erf`, which only needs the weights.",
        )
    module = explained.initial().to(explained.device, torch.float32).eval().requires_grad_(False)
    initial = replace(explained, module=module)
    return receptive_field(initial, pixels, targets, batch_size=batch_size, seeds=seeds)


def _fields(explained: ExplainedNetwork, layer: CamLayer, pixels: Tensor) -> Tensor:
    """The fields (N, H, W) of one batch."""
    pixels = pixels.detach().requires_grad_(True)
    with torch.enable_grad(), recording(explained.core.get_submodule(layer.name)) as outputs:
        explained.logits(pixels)
        features = layer.maps(outputs[-1]).sum(1)  # (N, h, w)
    _, h, w = features.shape
    _, _, H, W = pixels.shape
    total, counted = pixels.new_zeros(len(pixels), H, W), pixels.new_zeros(H, W)
    places = [(i, j) for i in _middle(h) for j in _middle(w)]
    for i, j in places:
        (gradient,) = torch.autograd.grad(
            features[:, i, j].sum(), pixels, retain_graph=(i, j) != places[-1]
        )
        (to_y, from_y), (to_x, from_x) = _centred(i, h, H), _centred(j, w, W)
        total[:, to_y, to_x] += gradient.abs().sum(1)[:, from_y, from_x]
        counted[to_y, to_x] += 1
    field = total / counted
    mean = field.flatten(1).mean(1)[:, None, None]
    return field / mean.clamp(min=torch.finfo(field.dtype).tiny)


def _middle(length: int) -> tuple[int, ...]:
    """Indices in the middle of `length` positions: one, or two for an even number."""
    return (length // 2,) if length % 2 else (length // 2 - 1, length // 2)


def _centred(place: int, places: int, pixels: int) -> tuple[slice, slice]:
    """Target and source slices that shift the centre of `place` to the centre of the image."""
    offset = int((place + 0.5) * pixels / places - pixels / 2)
    ahead, back = max(offset, 0), max(-offset, 0)
    return slice(back, pixels - ahead), slice(ahead, pixels - back)
