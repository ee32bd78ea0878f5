"""U-Mamba in 2D: nnU-Net's residual U-Net with Mamba layers, built from a plan.

Source: Ma et al., "U-Mamba" (arXiv 2401.04722) and its code release (nnU-Net v2.1.1 fork);
reimplemented from the published facts. UMambaBot has one Mamba layer, at the bottleneck;
UMambaEnc has one in every second encoder stage. Without Mamba layers both are the same network:
`umamba-nomamba`, a control that is not part of the release. Upstream checkpoints store most tensors
under several names, of which this module uses the first (`without_aliases` and `with_aliases`
convert).

As upstream: the stem precedes stage 0, which also runs at full resolution; the last decoder stage
has no skip connection; a Mamba layer is unidirectional, and its output replaces the feature map (no
residual). Deviation: none in the function.

Shapes: B batch, C channels, H and W of the current stage.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.models.ablation import Ablation, ablate_network
from robustcli.models.architectures import changed, check_multiple
from robustcli.models.blocks import (
    BasicBlockD,
    BasicResBlock,
    Pair,
    StagedConfig,
    StagedUNet,
    each,
    scores_of,
)
from robustcli.models.mamba import Mamba

# Configuration: the settings of an nnU-Net plan and values derived from them. Source: the plans of
# nnU-Net v2.1.1 and U-Mamba's constructor, which overrides the plan's number of blocks in the
# deeper half of the stages.


@dataclass(frozen=True)
class UMambaConfig(StagedConfig):
    """The settings of an nnU-Net plan (`StagedConfig`) and the position of the Mamba layers.

    `n_conv` and `n_conv_decoder` are the numbers of blocks per stage in the plan; the deeper half
    of the stages always has one block.
    """

    per_stage: ClassVar[tuple[str, ...]] = ("strides", "kernels", "n_conv")

    mamba: Literal["bottleneck", "encoder", "none"] = "bottleneck"
    n_conv: int | tuple[int, ...] = 2
    ablate: Ablation | None = None

    @property
    def encoder_blocks(self) -> tuple[int, ...]:
        """Number of blocks of each encoder stage; the stem has the same number as stage 0."""
        stages = len(self.features)
        return _first(each(self.n_conv, stages), math.ceil(stages / 2))

    @property
    def decoder_blocks(self) -> tuple[int, ...]:
        """Number of blocks of each decoder stage, deepest first."""
        stages = len(self.features) - 1
        return _first(each(self.n_conv_decoder, stages), math.ceil(stages / 2 + 0.5))

    @property
    def bound_to_patch(self) -> bool:
        """Whether a Mamba layer uses channels as tokens, so that its weights fix the input size."""
        return any(self.tokens(stage)[1] for stage in range(len(self.features)))

    def tokens(self, stage: int) -> tuple[int, bool]:
        """Size of a token at `stage`, and whether a token is a channel (True) or a pixel (False).

        In UMambaEnc, tokens are channels if the map at the patch size has no more pixels than
        features: the weights of the layer then depend on the patch size, which fixes the input
        size.
        """
        down, across = self.reductions[stage]
        pixels = (self.patch[0] // down) * (self.patch[1] // across)
        channelwise = self.mamba == "encoder" and pixels <= self.features[stage]
        return (pixels if channelwise else self.features[stage]), channelwise


def plan_options(configuration: Mapping[str, Any]) -> dict[str, object]:
    """Converts a configuration of an nnU-Net plan to options of `build`.

    Args:
        configuration: An entry of `configurations` in nnU-Net's `plans.json`, such as `2d`.

    Raises:
        UsageError: The configuration lacks an entry or is not two-dimensional.
    """
    missing = [key for key in _PLAN_KEYS if key not in configuration]
    if missing:
        raise UsageError(
            "The configuration of the plan is incomplete.",
            f"It lacks {', '.join(f'`{key}`' for key in missing)}.",
            "Pass one entry of `configurations` in nnU-Net's `plans.json`.",
        )
    patch, kernels, strides, encoder, decoder, base, most = (
        configuration[key] for key in _PLAN_KEYS
    )
    if len(patch) != 2:
        raise UsageError(
            f"The plan's patch has {len(patch)} dimensions.",
            "These networks are two-dimensional.",
            "Choose the plan's `2d` configuration.",
        )
    return {
        "patch_size": tuple(patch),
        "kernels": tuple(map(tuple, kernels)),
        "strides": tuple(map(tuple, strides)),
        "n_conv": tuple(encoder),
        "n_conv_decoder": tuple(decoder),
        "features": tuple(min(base * 2**stage, most) for stage in range(len(strides))),
    }


_PLAN_KEYS = (
    "patch_size",
    "conv_kernel_sizes",
    "pool_op_kernel_sizes",
    "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder",
    "UNet_base_num_features",
    "unet_max_num_features",
)


def _first(counts: tuple[int, ...], end: int) -> tuple[int, ...]:
    """`counts` with every entry from index `end` on replaced by 1."""
    return counts[:end] + (1,) * (len(counts) - end)


class MambaLayer(nn.Module):
    """Norm and Mamba on the tokens of a map; maps (B, C, H, W) to the same shape.

    Computes in the dtype of its parameters, without autocast, as upstream.
    """

    def __init__(self, dim: int, channelwise: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mamba = Mamba(dim)
        self.channelwise = channelwise

    def forward(self, x: Tensor) -> Tensor:
        """The output map, (B, C, H, W)."""
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.to(self.norm.weight.dtype).flatten(2)  # (B, C, L)
            if not self.channelwise:
                tokens = tokens.transpose(1, 2)
            mixed: Tensor = self.mamba(self.norm(tokens))
        mixed = (mixed if self.channelwise else mixed.transpose(1, 2)).reshape(x.shape)
        # The next layer is a strided 1x1 convolution. On channels-last maps with few channels its
        # backward pass crashes on the CPU (torch 2.15.0 writes beyond a buffer).
        return mixed.contiguous()


class Encoder(nn.Module):
    """Encoder: maps an image to one feature map per stage, highest resolution first."""

    def __init__(self, config: UMambaConfig) -> None:
        super().__init__()
        n, widths, kernels = len(config.features), config.features, config.stage_kernels
        blocks = config.encoder_blocks
        self.stem = _blocks(config.in_channels, widths[0], kernels[0], (1, 1), blocks[0])
        layers: list[nn.Module] = [nn.Identity() for _ in range(n)]
        if config.mamba == "encoder":
            for stage in range((n + 1) % 2, n, 2):  # the last stage always has one
                layers[stage] = MambaLayer(*config.tokens(stage))
        self.mamba_layers = nn.ModuleList(layers)
        inputs = (widths[0], *widths)
        self.stages = nn.ModuleList(
            _blocks(inputs[s], widths[s], kernels[s], config.stage_strides[s], blocks[s])
            for s in range(n)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The output of each stage, highest resolution first."""
        x = self.stem(x)
        maps = []
        for stage, layer in zip(self.stages, self.mamba_layers, strict=True):
            x = layer(stage(x))
            maps.append(x)
        return maps


class UpsampleConv(nn.Module):
    """Nearest-neighbour upsampling and a 1x1 convolution."""

    def __init__(self, c_in: int, c_out: int, stride: Pair) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', H*s, W*s)."""
        factors = tuple(map(float, self.stride))
        # A 1x1 convolution can precede the upsampling: same result, a quarter of the operations.
        return F.interpolate(self.conv(x), scale_factor=factors, mode="nearest")


class Decoder(nn.Module):
    """Decoder: maps encoder outputs to class scores; `deep_supervision` can be set at any time."""

    def __init__(self, config: UMambaConfig) -> None:
        super().__init__()
        self.deep_supervision = config.deep_supervision
        widths, strides = config.features[::-1], config.stage_strides[::-1]
        kernels, blocks = config.stage_kernels[::-1], config.decoder_blocks
        steps = range(len(widths) - 1)
        shares = [1 if d == steps[-1] else 2 for d in steps]  # the last has no skip connection
        self.stages = nn.ModuleList(
            _blocks(shares[d] * widths[d + 1], widths[d + 1], kernels[d + 1], (1, 1), blocks[d])
            for d in steps
        )
        self.upsample_layers = nn.ModuleList(
            UpsampleConv(widths[d], widths[d + 1], strides[d]) for d in steps
        )
        self.seg_layers = nn.ModuleList(
            nn.Conv2d(widths[d + 1], config.num_classes, 1) for d in steps
        )

    def forward(self, maps: list[Tensor]) -> Tensor | list[Tensor]:
        """Scores (B, classes, H, W); with deep supervision a list, highest resolution first."""
        x, last = maps[-1], len(self.stages) - 1
        outputs = []
        for d, (up, stage) in enumerate(zip(self.upsample_layers, self.stages, strict=True)):
            x = up(x)
            x = stage(x if d == last else torch.cat((x, maps[-2 - d]), 1))
            if self.deep_supervision or d == last:
                outputs.append(self.seg_layers[d](x))
        return scores_of(outputs, deep_supervision=self.deep_supervision)


class UMamba(StagedUNet):
    """U-Mamba: maps images (B, C, H, W) to class scores (before softmax)."""

    config: UMambaConfig

    def __init__(self, config: UMambaConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.encoder = Encoder(config)
        if config.mamba == "bottleneck":
            self.mamba_layer = MambaLayer(config.features[-1])
        self.decoder = Decoder(config)
        self.apply(_initialise)
        ablate_network(self, config.ablate, model="umamba")

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Scores (B, classes, H, W); with deep supervision a list, highest resolution first.

        Raises:
            UsageError: The network does not support the size of the image.
        """
        self._check(x)
        maps = self.encoder(x)
        if self.config.mamba == "bottleneck":
            maps[-1] = self.mamba_layer(maps[-1])
        scores: Tensor | list[Tensor] = self.decoder(maps)
        return scores

    def _check(self, x: Tensor) -> None:
        layers = [layer for layer in self.encoder.mamba_layers if isinstance(layer, MambaLayer)]
        if any(layer.channelwise for layer in layers) and tuple(x.shape[2:]) != self.config.patch:
            received, expected = (
                " x ".join(map(str, size)) for size in (x.shape[2:], self.config.patch)
            )
            raise UsageError(
                f"The input is {received} pixels; this UMambaEnc needs {expected}.",
                "Some of its Mamba layers use complete channels as tokens, so that their weights "
                "depend on the patch size of the plan.",
                "Cut the image into patches of that size, or build it with another `patch_size`.",
            )
        check_multiple(x, self.config.reductions[-1])


def _blocks(c_in: int, c_out: int, kernel: Pair, stride: Pair, count: int) -> nn.Sequential:
    first = BasicResBlock(c_in, c_out, kernel, stride)
    return nn.Sequential(first, *(BasicBlockD(c_out, c_out, kernel) for _ in range(count - 1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


# Keys of official checkpoints. They contain most tensors under two or more names, our checkpoints
# under one. Upstream also registers a convolution (`conv1.conv`) and its norm (`conv1.norm`) as
# `conv1.all_modules.0` and `.1`, and the complete encoder as `decoder.encoder`. nnU-Net loads with
# `strict=True`, so a checkpoint for it must contain every name.

_WRAPPED = re.compile(r"((?:^|\.)(?:conv[12]|convs\.\d+|skip\.\d+))\.(conv|norm)\.(\w+)$")
_COPY = re.compile(r"\.all_modules\.([01])\.(\w+)$")
_MEMBERS = ("conv", "norm")


def canonical_key(key: str) -> str:
    """The name that our networks use for the tensor with the upstream name `key`."""
    key = key.removeprefix("decoder.") if key.startswith("decoder.encoder.") else key
    return _COPY.sub(lambda m: f".{_MEMBERS[int(m[1])]}.{m[2]}", key)


def without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each tensor once, under the name that our networks use.

    Raises:
        UsageError: Two names of the same tensor have different values.
    """
    unique: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = canonical_key(key)
        first = unique.setdefault(name, tensor)
        if first.data_ptr() != tensor.data_ptr() and not torch.equal(first, tensor):
            raise UsageError(
                f"The weights contain two versions of `{name}`.",
                f"`{key}` is a second name of the same tensor, but has different values.",
                "The file was changed after training; export it again.",
            )
    return unique


def with_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` of one of our networks with each tensor under all its upstream names."""
    full: dict[str, Tensor] = {}
    for key, tensor in state.items():
        full |= dict.fromkeys(_names(key), tensor)
    return full


def _names(key: str) -> list[str]:
    names = [key]
    wrapped = _WRAPPED.search(key)
    if wrapped:
        copy = f"{wrapped[1]}.all_modules.{_MEMBERS.index(wrapped[2])}.{wrapped[3]}"
        names.append(key[: wrapped.start()] + copy)
    twice = [f"decoder.{name}" for name in names if name.startswith("encoder.")]
    return names + twice


VARIANTS: dict[str, UMambaConfig] = {
    "umamba": UMambaConfig(mamba="bottleneck"),
    "umamba-enc": UMambaConfig(mamba="encoder"),
    "umamba-nomamba": UMambaConfig(mamba="none"),  # ours: both networks without Mamba layers
    "umamba-pico": UMambaConfig(
        mamba="bottleneck", features=(8, 16, 32, 64), strides=(1, 2, 2, 2), patch_size=(128, 128)
    ),  # ours, bundled with weights; the other two are as published
}


def build(variant: str, **changes: object) -> UMamba:
    """Builds the network `variant` of VARIANTS with random weights; `changes` override its config.

    Raises:
        UsageError: An option is unknown, or options per stage have the wrong length.
    """
    return UMamba(changed(VARIANTS[variant], changes, model=variant))
