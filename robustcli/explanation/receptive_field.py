"""The effective receptive field: how much each pixel influences the last feature map's centre.

Source: Luo et al., "Understanding the effective receptive field in deep convolutional neural
networks" (NIPS 2016); as an average over images in Ding et al., "Scaling up your kernels to 31x31"
(RepLKNet, CVPR 2022), and in VMamba (arXiv 2401.10166). With F the feature map (C, h, w) of the
layer that Grad-CAM uses, an image's field is the gradient of the middle place,

    E(p) = sum_channels |d (sum_c F[c, h/2, w/2]) / d pixel p|,

scaled to a mean of 1 over the pixels, so that each image counts the same in an average. A map with
an even number of rows or columns has no middle place: the fields of those around the middle are
moved by half a place, so that each is centred in the image, and averaged where they overlap. The
centre of a place is taken as that of the part of the image that it stands for; convolutions with
stride 2 and padding 1 look up to half such a part further up and left.

Deviations from RepLKNet's script: it sums positive gradients alone, and takes the logarithm before
it measures areas. Here areas are of the contributions themselves.

Cost: one forward pass per batch, and one backward pass to the pixels (four where both numbers are
even). It exists for every network with a layer that has places.
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
    """The field of each image (N, H, W), not negative, of mean 1; the same for each target.

    A network's field is the mean over images.

    Raises:
        UsageError: No layer of the network has places.
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
    """The fields (N, H, W) of the same network as it is before training.

    Raises:
        UsageError: The initial weights of the network are not known, or no layer has places.
    """
    if explained.initial is None:
        raise UsageError(
            "`--method erf-untrained` cannot build this network again.",
            "It came with its weights, and nothing says how they were initialised.",
            "Use `--method erf`, which needs the weights alone.",
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
    """The middle of `length` places: one, or two of an even number."""
    return (length // 2,) if length % 2 else (length // 2 - 1, length // 2)


def _centred(place: int, places: int, pixels: int) -> tuple[slice, slice]:
    """Where to, and where from, pixels go so that the centre of `place` is that of the image."""
    offset = int((place + 0.5) * pixels / places - pixels / 2)
    ahead, back = max(offset, 0), max(-offset, 0)
    return slice(back, pixels - ahead), slice(ahead, pixels - back)
