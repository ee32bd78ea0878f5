"""U-Mamba in 2D: nnU-Net's residual U-Net with Mamba layers, built from a plan.

Source: Ma et al., "U-Mamba" (arXiv 2401.04722) and its code release (nnU-Net v2.1.1 fork); written
anew from the published facts. UMambaBot has one Mamba layer, on the bottleneck; UMambaEnc has one
in every second encoder stage. Parameter names are upstream's first ones: its files hold most
tensors under several (`robustcli.models.aliases` converts both ways).

As upstream: the stem comes before stage 0, which runs at full resolution again; the last decoder
stage takes no skip; a Mamba layer's output replaces the feature map (no residual), one direction
only. Deviation: none in the function.

Shapes: B batch, C channels, H and W of the current stage.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.models.blocks import BasicBlockD, BasicResBlock
from robustcli.models.mamba import Mamba
from robustcli.models.options import changed, check_multiple
from robustcli.models.umamba_config import Pair, UMambaConfig


class MambaLayer(nn.Module):
    """Norm and Mamba over the map's tokens, (B, C, H, W) to the same shape.

    Runs in its parameters' precision whatever autocast says, as upstream does.
    """

    def __init__(self, dim: int, channelwise: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mamba = Mamba(dim)
        self.channelwise = channelwise

    def forward(self, x: Tensor) -> Tensor:
        """The mixed map."""
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.to(self.norm.weight.dtype).flatten(2)  # (B, C, L)
            if not self.channelwise:
                tokens = tokens.transpose(1, 2)
            mixed: Tensor = self.mamba(self.norm(tokens))
        mixed = (mixed if self.channelwise else mixed.transpose(1, 2)).reshape(x.shape)
        # Channels-last maps of few channels crash the CPU backward of the strided 1x1 convolution
        # that follows (torch 2.15.0 writes beyond a buffer).
        return mixed.contiguous()


class Encoder(nn.Module):
    """The stem and the stages; an image to one map per stage, highest resolution first."""

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
        """The stages' outputs."""
        x = self.stem(x)
        maps = []
        for stage, layer in zip(self.stages, self.mamba_layers, strict=True):
            x = layer(stage(x))
            maps.append(x)
        return maps


class UpsampleConv(nn.Module):
    """Nearest-neighbour enlargement, then a 1x1 convolution."""

    def __init__(self, c_in: int, c_out: int, stride: Pair) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H*s, W*s)."""
        factors = tuple(map(float, self.stride))
        # Per pixel, so it may come before the enlargement: a fourth of the work, the same result.
        return F.interpolate(self.conv(x), scale_factor=factors, mode="nearest")


class Decoder(nn.Module):
    """From the encoder's maps to class scores; `deep_supervision` may be switched at any time."""

    def __init__(self, config: UMambaConfig) -> None:
        super().__init__()
        self.deep_supervision = config.deep_supervision
        widths, strides = config.features[::-1], config.stage_strides[::-1]
        kernels, blocks = config.stage_kernels[::-1], config.decoder_blocks
        steps = range(len(widths) - 1)
        shares = [1 if d == steps[-1] else 2 for d in steps]  # the last takes no skip
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
        """Scores (B, classes, H, W), or with deep supervision one per step, largest first."""
        x, last = maps[-1], len(self.stages) - 1
        outputs = []
        for d, (up, stage) in enumerate(zip(self.upsample_layers, self.stages, strict=True)):
            x = up(x)
            x = stage(x if d == last else torch.cat((x, maps[-2 - d]), 1))
            if self.deep_supervision or d == last:
                outputs.append(self.seg_layers[d](x))
        return outputs[::-1] if self.deep_supervision else outputs[0]


class UMamba(nn.Module):
    """The segmenter: images (B, C, H, W) to class scores (before softmax)."""

    def __init__(self, config: UMambaConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.encoder = Encoder(config)
        if config.mamba == "bottleneck":
            self.mamba_layer = MambaLayer(config.features[-1])
        self.decoder = Decoder(config)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Scores (B, classes, H, W); with deep supervision a list, highest resolution first.

        Raises:
            UsageError: The image's size does not fit the network.
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
            given, own = (" x ".join(map(str, size)) for size in (x.shape[2:], self.config.patch))
            raise UsageError(
                f"The input is {given} pixels; this UMambaEnc takes {own}.",
                "Some of its Mamba layers read whole channels as tokens: their weights have the "
                "plan's patch size.",
                "Cut the image into patches of that size, or build it with another `patch_size`.",
            )
        check_multiple(x, self.config.reductions[-1], model="umamba")


def _blocks(c_in: int, c_out: int, kernel: Pair, stride: Pair, count: int) -> nn.Sequential:
    first = BasicResBlock(c_in, c_out, kernel, stride)
    return nn.Sequential(first, *(BasicBlockD(c_out, c_out, kernel) for _ in range(count - 1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


VARIANTS: dict[str, UMambaConfig] = {
    "umamba": UMambaConfig(mamba="bottleneck"),
    "umamba-enc": UMambaConfig(mamba="encoder"),
    "umamba-pico": UMambaConfig(
        mamba="bottleneck", features=(8, 16, 32, 64), strides=(1, 2, 2, 2), patch_size=(128, 128)
    ),  # ours, bundled with weights; the others are as published
}


def build(variant: str, **changes: object) -> UMamba:
    """The network `variant` of VARIANTS, freshly initialised, with `changes` to its config.

    Raises:
        UsageError: An option is unknown, or the stages' options differ in length.
    """
    return UMamba(changed(VARIANTS[variant], changes, model=variant))
