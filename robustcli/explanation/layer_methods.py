"""Methods on the output of one layer: Grad-CAM, and the effective receptive field.

Grad-CAM: the feature maps of the layer, weighted by the gradient of the score. Source: Selvaraju et
al., "Grad-CAM: visual explanations from deep networks via gradient-based localization" (ICCV 2017).
Default layers: the feature map before pooling for VMamba; the tokens that enter the last block for
Vim and ViT (after it, only the class token is used); for other classifiers the last feature map or
tokens with positions that the score depends on (with a class token, the last normalised ones); the
last of the smallest feature maps for segmenters, which have at least 4 x 4 positions and tile the
image, unlike pyramid pooling. Matrices of attention weights are no feature maps.

The weight of a channel is the mean of its gradient over the positions. Directly before a norm over
positions (instance norm), this mean is zero and only its rounding error remains: such layers are
never the default, and refused if named.

The effective receptive field: the influence of each pixel on the centre of the layer's feature map.
Source: Luo et al., "Understanding the effective receptive field in deep convolutional neural
networks" (NIPS 2016); averaged over images by Ding et al., "Scaling up your kernels to 31x31"
(RepLKNet, CVPR 2022), and by VMamba (arXiv 2401.10166). With F the feature map (C, h, w), the field
of an image is the gradient of the middle position of F,

    E(p) = sum_channels |d (sum_c F[c, h/2, w/2]) / d pixel p|,

scaled to a mean of 1 over the pixels, so that each image has the same weight in an average. A
feature map with an even number of rows or columns has no middle position: the fields of the
positions around the middle are shifted by half a position, so that each is centred in the image,
and averaged where they overlap. The centre of a position is defined as the centre of its cell in a
regular division of the image; convolutions with stride 2 and padding 1 have receptive fields up to
half a cell further up and left.

Deviations from RepLKNet's script: the script sums only positive gradients, and takes the logarithm
before it measures areas. Here, areas are those of the contributions without a logarithm.

Cost of a field: one forward pass per batch, and one backward pass to the pixels (two if the number
of rows or columns is even, four if both are). Supported networks: all with a layer that Grad-CAM
can use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, nearest
from robustcli.explanation.network import Attribution, ExplainedNetwork, batched
from robustcli.models.cifar_networks import ViT
from robustcli.models.vim import Vim
from robustcli.models.vmamba import VMamba

FeatureLayout = Literal["channels first", "channels last", "tokens"]
_SHOWN = 12  # largest number of candidates in a message
_SMALLEST = 4  # positions per side of the smallest feature map that is a default of segmenters
_ROUNDING = 1e-4  # share of a gradient up to which its mean is a rounding error: 1e-8 to 5e-5
# before instance norms, at least 4e-3 elsewhere in the networks of the catalogue


# Grad-CAM, and the choice of the layer.


@dataclass(frozen=True)
class CamLayer:
    """A layer whose output vectors each belong to a position in the image.

    Args:
        name: Name of the module.
        layout: Layout of the output: (N, C, h, w), (N, h, w, C) or tokens (N, L, C).
        size: Height and width of the output, in vectors.
        extra: Indices of tokens without a position in the image (class token, registers).
    """

    name: str
    layout: FeatureLayout
    size: tuple[int, int]
    extra: tuple[int, ...] = ()

    def last(self, outputs: Sequence[Tensor]) -> Tensor:
        """The last of the layer's `outputs` in one forward pass that has these positions.

        A network can use one module, such as a ReLU, in several places.
        """
        dims = {"channels first": (2, 3), "channels last": (1, 2), "tokens": (1,)}[self.layout]
        lengths = self.size if len(dims) == 2 else (math.prod(self.size) + len(self.extra),)
        return next(
            output
            for output in reversed(outputs)
            if output.ndim == 2 + len(dims) and tuple(output.shape[d] for d in dims) == lengths
        )

    def maps(self, output: Tensor) -> Tensor:
        """The layer's output as (N, C, h, w)."""
        if self.layout == "channels first":
            return output
        if self.layout == "channels last":
            return output.permute(0, 3, 1, 2)
        patch_indices = [place for place in range(output.shape[1]) if place not in self.extra]
        maps: Tensor = output[:, patch_indices].transpose(1, 2).unflatten(2, self.size)
        return maps


def grad_cam(
    explained: ExplainedNetwork,
    pixels: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    seeds: Sequence[int] = (),
) -> Attribution:
    """The Grad-CAM maps (N, H, W), not negative, upsampled bilinearly from the layer's size.

    Raises:
        UsageError: No layer of the network can be used, or the layer named by the user cannot.
    """
    layer = cam_layer(explained, pixels[:1])
    maps = [
        layer_maps(explained, layer, pixels[part], targets[part])
        for part in batched(len(pixels), batch_size)
    ]
    size = (pixels.shape[-2], pixels.shape[-1])
    enlarged = F.interpolate(torch.cat(maps)[:, None], size, mode="bilinear", align_corners=False)
    return Attribution(enlarged[:, 0])


def layer_maps(
    explained: ExplainedNetwork, layer: CamLayer, pixels: Tensor, targets: Tensor
) -> Tensor:
    """The Grad-CAM maps (N, h, w) at the size of the layer's output."""
    with torch.enable_grad(), recording(explained.core.get_submodule(layer.name)) as outputs:
        score = explained.score(pixels.detach().requires_grad_(True), targets)
        output = layer.last(outputs)
        gradient = torch.autograd.grad(score.sum(), output)[0]
    features, gradients = layer.maps(output.detach()), layer.maps(gradient)
    if _cancels(gradients):
        raise UsageError(
            f"`--layer {layer.name}` cannot be used for Grad-CAM.",
            "The gradient of its output sums to zero over the positions, as before an instance "
            "norm, so the weights of its channels are rounding errors.",
            "Use the norm after it, or the output of the block that contains it.",
        )
    weights = gradients.flatten(2).mean(2)[:, :, None, None]
    return (weights * features).sum(1).relu().float()


def _cancels(gradients: Tensor) -> bool:
    """Whether gradients (N, C, h, w) are not zero, but their means over positions are."""
    values = gradients.flatten(2).double()
    means, sizes = values.mean(2).abs().sum(), values.abs().mean(2).sum()
    return bool(sizes > 0) and bool(means < _ROUNDING * sizes)


@contextmanager
def recording(module: nn.Module) -> Iterator[list[Tensor]]:
    """Records the outputs of `module` in a list during forward passes inside the context."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append(output)

    handle = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def cam_layer(explained: ExplainedNetwork, pixels: Tensor) -> CamLayer:
    """The layer for images of the size of `pixels` (1, C, H, W): named by the user, or default.

    Raises:
        UsageError: No layer can be used, or the output of the layer named by the user has no
            positions in the image; the message lists the candidates.
    """
    candidates = cam_layers(explained, pixels)
    if explained.layer is not None:
        return _named(explained, explained.layer, candidates)
    usual = _usual_name(explained.core)
    if usual is not None and usual in candidates:
        return candidates[usual]
    useful = _useful(explained, pixels, list(candidates.values()))
    flat = [layer for layer in useful if layer.layout != "tokens"]
    if explained.task == "seg" and flat:
        side = pixels.shape[-1]
        tiles = [n for n in flat if min(n.size) >= _SMALLEST and side % n.size[1] == 0] or flat
        smallest = min(math.prod(layer.size) for layer in tiles)
        return [layer for layer in tiles if math.prod(layer.size) == smallest][-1]
    if explained.task == "cls" and useful:
        norms = [n for n in useful if _is_norm(explained.core.get_submodule(n.name))]
        # After the last norm before a class token reads the others, only parts of the attention
        # (queries, keys) depend on positions.
        return norms[-1] if useful[-1].extra and norms else useful[-1]
    raise UsageError(
        "Grad-CAM found no suitable layer in this network.",
        "The modules of TorchScript files cannot be observed."
        if isinstance(explained.core, torch.jit.ScriptModule)
        else "None of its modules returns a map (N, C, h, w) with more than one position.",
        f"Select one with `--layer NAME`: {_listed(candidates)}."
        if candidates
        else "Use `--method occlusion` or `--method integrated-gradients`, which need no layer.",
    )


def cam_layers(explained: ExplainedNetwork, pixels: Tensor) -> dict[str, CamLayer]:
    """The layers that can be used, by module name, in the order of execution.

    Their outputs depend on the image, and have more than one position, in the proportions of the
    image.
    """
    layers: dict[str, CamLayer] = {}
    prefix = int(getattr(explained.core, "num_prefix_tokens", 0))
    handles = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            layer = _layer_of(name, output, explained, prefix, pixels.shape[2:])
            if layer is not None:
                layers.pop(name, None)
                layers[name] = layer

        return look

    for name, module in explained.core.named_modules():
        if name and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
            handles.append(module.register_forward_hook(watch(name)))
    try:
        with torch.enable_grad():
            explained.logits(pixels[:1].detach().requires_grad_(True))
    finally:
        for handle in handles:
            handle.remove()
    return layers


def _useful(
    explained: ExplainedNetwork, pixels: Tensor, candidates: Sequence[CamLayer]
) -> list[CamLayer]:
    """The layers of which the score of `pixels` (1, C, H, W) depends on several positions.

    All `candidates` if the score depends on none, as with a last layer of zeros before training.
    """
    target = torch.zeros(1, dtype=torch.int64, device=pixels.device)
    if explained.task == "seg":
        target = torch.ones(1, *pixels.shape[2:], dtype=torch.bool, device=pixels.device)
    with torch.enable_grad(), ExitStack() as stack:
        recorded = [
            stack.enter_context(recording(explained.core.get_submodule(layer.name)))
            for layer in candidates
        ]
        score = explained.score(pixels[:1].detach().requires_grad_(True), target).sum()
        outputs = [layer.last(calls) for layer, calls in zip(candidates, recorded, strict=True)]
        gradients = torch.autograd.grad(score, outputs, allow_unused=True) if outputs else ()
    useful = []
    for layer, gradient in zip(candidates, gradients, strict=True):
        if gradient is not None:
            on_map = layer.maps(gradient)
            depends = on_map.abs().amax(1).flatten() > 0
            if int(depends.sum()) > 1 and not _cancels(on_map):
                useful.append(layer)
    return useful or list(candidates)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _layer_of(
    name: str, output: object, explained: ExplainedNetwork, prefix: int, image: Sequence[int]
) -> CamLayer | None:
    if not isinstance(output, Tensor) or not output.requires_grad or len(output) != 1:
        return None
    if output.ndim == 4:
        shape = tuple(output.shape)
        last = shape[1] == shape[2] != shape[3] or (
            isinstance(explained.core, VMamba) and shape[1] == shape[2]
        )
        h, w = shape[1:3] if last else shape[2:4]
        if h * w == 1 or abs(h * image[1] - w * image[0]) > max(image) or _is_attention(output):
            return None
        return CamLayer(name, "channels last" if last else "channels first", (h, w))
    if output.ndim == 3:
        extra = tuple(range(prefix))
        if isinstance(explained.core, Vim):
            extra = (explained.core.middle,)
        # Not every layer of a network with a class token has it (CaiT), and not every network
        # states that it has one.
        for tokens in dict.fromkeys((extra, (), (0,))):
            places = output.shape[1] - len(tokens)
            side = math.isqrt(max(places, 0))
            if side > 1 and side * side == places:
                return CamLayer(name, "tokens", (side, side), tokens)
    return None


def _is_attention(output: Tensor) -> bool:
    """Whether `output` (N, heads, L, L) contains attention weights: each row sums to 1."""
    weights = output.detach()
    sums = weights.sum(-1)
    return bool((weights >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _usual_name(network: nn.Module) -> str | None:
    """Name of the default layer of VMamba and of networks with tokens; else None."""
    if isinstance(network, VMamba):
        return "layers"
    if isinstance(network, Vim):
        return f"layers.{len(network.layers) - 1}.norm"
    if isinstance(network, ViT):
        return f"transformer.layers.{network.config.depth - 1}.0.norm"
    blocks = getattr(network, "blocks", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks):
        return f"blocks.{len(blocks) - 1}.norm1" if hasattr(blocks[-1], "norm1") else None
    return None


def _named(explained: ExplainedNetwork, name: str, candidates: dict[str, CamLayer]) -> CamLayer:
    if name in candidates:
        return candidates[name]
    modules = [module for module, _ in explained.core.named_modules() if module]
    if name in modules:
        what = f"`--layer {name}` cannot be used."
        why = "Its output is neither a map (N, C, h, w) nor tokens (N, L, C) of a square image."
    else:
        what = f"No layer is called `{name}`."
        close = nearest(canonical(name), modules)
        why = f"Did you mean {' or '.join(f'`{module}`' for module in close)}?" if close else ""
    todo = f"Suitable layers: {_listed(candidates)}." if candidates else (
        "No layer of this network is suitable: omit `--method grad-cam`."
    )  # fmt: skip
    raise UsageError(what, why, todo)


def _listed(candidates: dict[str, CamLayer]) -> str:
    """Names of the last candidate layers, in words; with the number of all if some are omitted."""
    names = list(candidates)
    shown = ", ".join(f"`{name}`" for name in names[-_SHOWN:])
    return shown if len(names) <= _SHOWN else f"{shown} (the last of {len(names)})"


# The effective receptive field.


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
        features = layer.maps(layer.last(outputs)).sum(1)  # (N, h, w)
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
