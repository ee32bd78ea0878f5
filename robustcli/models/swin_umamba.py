"""Swin-UMamba: a U-shaped network whose encoder is VMamba-T, with two decoders.

Source: Liu et al., "Swin-UMamba: Mamba-based UNet with ImageNet-based pretraining" (arXiv
2402.03302) and its code release (JiarunLiu/Swin-UMamba at 50eecc8 and 2c1f72e); reimplemented from
the published facts, with its parameter names. `swin-umamba` has a convolutional decoder,
`swin-umamba-d` (in the paper: with a dagger) one of VMamba blocks. With 3 input channels and 2
classes they have 59,886,344 and 27,491,528 parameters; the paper prints 59.9 and 27.5 million. The
first release of the code (6855410) did not use the deepest stage of its encoder and had no
`decoder6`: a network of 40.4 million parameters, which is not built here.

As in the release: the encoder is that of the v0 checkpoints of VMamba without head, so that their
weights can be loaded (`encoder_weights`). The stem of `swin-umamba` and its 2x2 patch embedding
replace the 4x4 patch embedding, which `swin-umamba-d` keeps. The norms in the residual blocks have
no weights. Auxiliary outputs are at 1/2, 1/4 and 1/8 of the resolution, those of `swin-umamba-d` at
1/4, 1/8 and 1/16.
Deviations: none in the function. An input whose size is not a multiple of 32 is rejected with a
message; upstream fails inside the network. Upstream also keeps the encoder frozen in the first 10
epochs if its weights are pretrained; that is a matter of the training and is not done here.

Shapes: B batch, C channels, H and W of the current stage. Maps of VMamba blocks are (B, H, W, C),
all others (B, C, H, W).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.models.ablation import Ablation, ablate_network
from robustcli.models.architectures import changed, check_multiple
from robustcli.models.blocks import (
    ConvNorm,
    SupervisedSegmenter,
    activated,
    rising_rates,
    scores_of,
)
from robustcli.models.vmamba import PatchMerging
from robustcli.models.vmunet import PatchEmbed, PatchExpand, VMUNetBlock

_DECODER_DEPTH = 2
_PATCH = 4
_DECODERS = ("conv", "mamba")


@dataclass(frozen=True)
class SwinUMambaConfig:
    """Configuration of a Swin-UMamba; `depths` has one entry per stage of the encoder."""

    decoder: Literal["conv", "mamba"] = "conv"
    in_channels: int = 3
    num_classes: int = 2
    depths: tuple[int, ...] = (2, 2, 9, 2)
    dim: int = 96
    d_state: int = 16
    drop_path: float = 0.2
    deep_supervision: bool = False
    ablate: Ablation | None = None

    def __post_init__(self) -> None:
        if self.decoder not in _DECODERS:
            raise UsageError(
                f"`decoder={self.decoder}` is unknown.",
                "",
                "It is `conv` (`swin-umamba`) or `mamba` (`swin-umamba-d`).",
            )
        if len(self.depths) < 2 or self.dim % 2:
            raise UsageError(
                f"`depths={list(self.depths)}` with `dim={self.dim}` is no Swin-UMamba.",
                "The encoder needs at least two stages, and the stem half of `dim` channels.",
                "Give two or more `depths` and an even `dim`.",
            )

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each encoder stage: doubled with every stage."""
        return tuple(self.dim * 2**stage for stage in range(len(self.depths)))

    @property
    def reduction(self) -> int:
        """Downsampling factor from the input to the map of the last stage."""
        return _PATCH << (len(self.depths) - 1)


def _within(module: nn.Module, *names: str) -> nn.Module:
    """`module` inside one Sequential per name, outermost first: parameter names contain them."""
    for name in reversed(names):
        module = nn.Sequential(OrderedDict([(name, module)]))
    return module


def _stage(dim: int, rates: list[float], d_state: int) -> nn.Module:
    """VMamba blocks at one resolution; maps (B, H, W, C) to the same shape."""
    return _within(nn.Sequential(*(VMUNetBlock(dim, d_state, rate) for rate in rates)), "blocks")


class VSSMEncoder(nn.Module):
    """VMamba without head: maps (B, C, H, W) to one map (B, h, w, C) per stage.

    Args:
        config: Its `depths`, `dim`, `d_state` and `drop_path` are used.
        in_channels: Channels of the input.
        patch: Side of a patch of the input in pixels.
    """

    def __init__(self, config: SwinUMambaConfig, in_channels: int, patch: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.dim, in_channels, patch)
        rates = rising_rates(config.drop_path, config.depths)
        self.layers = nn.ModuleList(
            _stage(dim, stage, config.d_state)
            for dim, stage in zip(config.dims, rates, strict=True)
        )
        self.downsamples = nn.ModuleList(PatchMerging(dim) for dim in config.dims[:-1])
        self.apply(_initialise_linear)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The output of each stage, highest resolution first."""
        x = self.patch_embed(x)
        maps = [self.layers[0](x)]
        for downsample, stage in zip(self.downsamples, self.layers[1:], strict=True):
            maps.append(stage(downsample(maps[-1])))
        return maps


class ResBlock(nn.Module):
    """Residual block of two convolutions; maps (B, C, H, W) to (B, C', H, W).

    The shortcut is the identity, or a 1x1 convolution with a norm if the number of channels
    changes. No norm has weights. Source: `UnetResBlock` of MONAI, with its parameter names.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(c_in, c_out, (3, 3), bias=False, affine=False)
        self.conv2 = ConvNorm(c_out, c_out, (3, 3), bias=False, affine=False)
        if c_in != c_out:
            self.conv3 = ConvNorm(c_in, c_out, (1, 1), bias=False, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the block."""
        y = self.conv2(activated(self.conv1(x)))
        return activated(y + (self.conv3(x) if hasattr(self, "conv3") else x))


class UpBlock(nn.Module):
    """Upsamples by 2, concatenates a skip connection and applies a residual block.

    Source: `UnetrUpBlock` of MONAI, with its parameter names.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.transp_conv = _within(nn.ConvTranspose2d(c_in, c_out, 2, 2, bias=False), "conv")
        self.conv_block = ResBlock(2 * c_out, c_out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Maps (B, C, H, W) and the skip connection (B, C', 2H, 2W) to (B, C', 2H, 2W)."""
        out: Tensor = self.conv_block(torch.cat((self.transp_conv(x), skip), 1))
        return out


class SwinUMamba(SupervisedSegmenter):
    """Swin-UMamba with convolutional decoder: maps images (B, C, H, W) to class scores."""

    def __init__(self, config: SwinUMambaConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.deep_supervision = config.deep_supervision
        widths = (config.dim // 2, *config.dims)  # of the maps at H, H/2, ..., and of the stem
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_channels, widths[0], 7, 2, 3),
            nn.InstanceNorm2d(widths[0], affine=True),
        )
        self.vssm_encoder = VSSMEncoder(config, widths[0], _PATCH // 2)
        # Upstream numbers these layers from 1, highest resolution first. The decoder has one layer
        # more than the encoder has skip connections: the last one, at full resolution.
        for number, pair in enumerate(pairwise((config.in_channels, *widths)), start=1):
            self.add_module(f"encoder{number}", _within(ResBlock(*pair), "layer"))
        self.add_module("decoder1", _within(ResBlock(widths[0], widths[0]), "layer"))
        for number, (narrow, wide) in enumerate(pairwise(widths), start=2):
            self.add_module(f"decoder{number}", UpBlock(wide, narrow))
        self.add_module(f"decoder{len(widths) + 1}", UpBlock(widths[-1], widths[-1]))
        self.out_layers = nn.ModuleList(
            _within(nn.Conv2d(width, config.num_classes, 1), "conv", "conv")
            for width in widths[:-1]
        )
        ablate_network(self, config.ablate, model="swin-umamba")

    def supervise_deeply(self) -> None:
        """See `SupervisedSegmenter`."""
        self.deep_supervision = True

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Scores (B, classes, H, W); with deep supervision a list, highest resolution first.

        Raises:
            UsageError: Height or width is not a multiple of the network's reduction.
        """
        check_multiple(x, (self.config.reduction,) * 2)
        stem = self.stem(x)
        *stages, deepest = (y.permute(0, 3, 1, 2) for y in self.vssm_encoder(stem))
        skips = [
            getattr(self, f"encoder{number}")(source)
            for number, source in enumerate((x, stem, *stages), start=1)
        ]
        maps, y = [], deepest
        for number in range(len(skips) + 1, 1, -1):
            y = getattr(self, f"decoder{number}")(y, skips[number - 2])
            maps.append(y)
        full: Tensor = self.get_submodule("decoder1")(y)
        if not self.deep_supervision:
            scores: Tensor = self.out_layers[0](full)
            return scores
        sources = (full, *maps[-2:0:-1])  # the decoder's deepest map has no output
        return [head(source) for head, source in zip(self.out_layers, sources, strict=True)]


class MambaDecoder(nn.Module):
    """Decoder of VMamba blocks: maps encoder outputs (B, h, w, C) to class scores."""

    def __init__(self, config: SwinUMambaConfig) -> None:
        super().__init__()
        self.deep_supervision = config.deep_supervision
        steps = list(pairwise(config.dims[::-1]))
        depths = (_DECODER_DEPTH,) * len(steps)
        rates = [stage[::-1] for stage in rising_rates(config.drop_path, depths)[::-1]]
        self.stages = nn.ModuleList(
            _stage(narrow, stage, config.d_state)
            for (_, narrow), stage in zip(steps, rates, strict=True)
        )
        self.expand_layers = nn.ModuleList(PatchExpand(wide, scale=2, share=2) for wide, _ in steps)
        self.expand_layers.append(PatchExpand(config.dim, scale=_PATCH, share=_PATCH**2))
        self.concat_back_dim = nn.ModuleList(nn.Linear(2 * narrow, narrow) for _, narrow in steps)
        self.seg_layers = nn.ModuleList(
            nn.Conv2d(width, config.num_classes, 1)
            for width in (*(narrow for _, narrow in steps), config.dim)
        )

    def forward(self, maps: list[Tensor]) -> Tensor | list[Tensor]:
        """Scores (B, classes, H, W); with deep supervision a list, highest resolution first."""
        x, outputs = maps[-1], []
        *enlarge, enlarge_last = self.expand_layers
        *heads, last_head = self.seg_layers
        for up, merge, stage, head, skip in zip(
            enlarge, self.concat_back_dim, self.stages, heads, maps[-2::-1], strict=True
        ):
            x = stage(merge(torch.cat((up(x), skip), -1)))
            if self.deep_supervision:
                outputs.append(head(x.permute(0, 3, 1, 2)))
        outputs.append(last_head(enlarge_last(x).permute(0, 3, 1, 2)))
        return scores_of(outputs, deep_supervision=self.deep_supervision)


class SwinUMambaD(SupervisedSegmenter):
    """Swin-UMamba with a decoder of VMamba blocks: maps images (B, C, H, W) to class scores."""

    def __init__(self, config: SwinUMambaConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.vssm_encoder = VSSMEncoder(config, config.in_channels, _PATCH)
        self.decoder = MambaDecoder(config)
        self.apply(_initialise_convolution)
        ablate_network(self, config.ablate, model="swin-umamba-d")

    def supervise_deeply(self) -> None:
        """See `SupervisedSegmenter`."""
        self.decoder.deep_supervision = True

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Scores (B, classes, H, W); with deep supervision a list, highest resolution first.

        Raises:
            UsageError: Height or width is not a multiple of the network's reduction.
        """
        check_multiple(x, (self.config.reduction,) * 2)
        scores: Tensor | list[Tensor] = self.decoder(self.vssm_encoder(x))
        return scores


def _initialise_linear(module: nn.Module) -> None:
    """Initialises as VMamba does; only the encoder is initialised so."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)


def _initialise_convolution(module: nn.Module) -> None:
    """Initialises as nnU-Net does; only `swin-umamba-d` is, and `swin-umamba` as torch does."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Names of the tensors of a VMamba classifier, under its current names, and in the encoder here.
_RENAMED = (
    (re.compile(r"^patch_embed\.0\."), "patch_embed.proj."),
    (re.compile(r"^patch_embed\.2\."), "patch_embed.norm."),
    (re.compile(r"^layers\.(\d+)\.downsample\."), r"downsamples.\1."),
    (re.compile(r"(\.blocks\.\d+)\.norm\."), r"\1.ln_1."),
    (re.compile(r"(\.blocks\.\d+)\.op\."), r"\1.self_attention."),
)
_PROJECTION = "patch_embed.proj.weight"


def encoder_weights(
    network: SwinUMamba | SwinUMambaD, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of a VMamba classifier under the names of `network.vssm_encoder`.

    Omits what the release omits: the head, and the patch embedding if the network has another one.
    `swin-umamba` gets the bias of the norm in the patch embedding all the same: the release's list
    of what to omit has the weight of this norm twice, and its bias never. `swin-umamba-d` gets the
    complete patch embedding, unless its images have another number of channels.

    Args:
        network: The network to load the weights into.
        state: Weights of a VMamba, under its current names.
    """
    weights = {}
    for key, tensor in state.items():
        if not key.startswith("classifier."):
            name = key
            for pattern, new in _RENAMED:
                name = pattern.sub(new, name)
            weights[name] = tensor
    omitted: tuple[str, ...] = ()
    if isinstance(network, SwinUMamba):
        omitted = ("patch_embed.proj.", "patch_embed.norm.weight")
    elif _PROJECTION in weights:
        projection = network.vssm_encoder.patch_embed.proj.weight
        if weights[_PROJECTION].shape[1] != projection.shape[1]:
            omitted = ("patch_embed.",)
    return {name: tensor for name, tensor in weights.items() if not name.startswith(omitted)}


VARIANTS: dict[str, SwinUMambaConfig] = {
    "swin-umamba": SwinUMambaConfig(),
    "swin-umamba-d": SwinUMambaConfig(decoder="mamba"),
    "swin-umamba-pico": SwinUMambaConfig(depths=(1, 1, 2, 1), dim=16),  # ours
}


def build(variant: str, **changes: object) -> SwinUMamba | SwinUMambaD:
    """Builds the network `variant` of VARIANTS with random weights; `changes` override its config.

    Raises:
        UsageError: An option is unknown or invalid.
    """
    config = changed(VARIANTS[variant], changes, model=variant)
    return SwinUMamba(config) if config.decoder == "conv" else SwinUMambaD(config)
