"""Convolutional segmenters of the tumour paper: U-Net and ResNet encoders with a plain decoder.

Source: Ronneberger et al., "U-Net" (arXiv 1505.04597), and He et al., "Deep Residual Learning"
(arXiv 1512.03385, in torchvision's form), as "Mamba-Based Tumor Segmentation" (Crews and Whalen,
2024; `mamba-tumor-seg`) builds them; reimplemented from the published facts, with its
parameter names. The U-Net's convolutions are padded: the output has the input's size. The decoder
of the ResNets consists of four transposed convolutions without skip connections; its output always
has `output` x `output` pixels. Deviation: the ResNets reject an input whose size is not a multiple
of 32; upstream accepts it and rounds its size up at every halving.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from robustcli.models.architectures import changed, check_multiple


@dataclass(frozen=True)
class UNetConfig:
    """Channels of each level, bottleneck last; each level halves the resolution of the previous."""

    features: tuple[int, ...] = (32, 64, 128, 256, 512)
    in_channels: int = 3
    num_classes: int = 1


class UNet(nn.Module):
    """U-Net: maps images (B, 3, H, W) to logits (B, classes, H, W)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.levels = len(config.features) - 1
        widths = config.features
        pairs = list(pairwise((config.in_channels, *widths)))
        for i, pair in enumerate(pairs[:-1], 1):
            self.add_module(f"encoder{i}", _double(*pair))
        self.bottleneck = _double(*pairs[-1])
        for i in range(self.levels, 0, -1):
            wide, narrow = widths[i], widths[i - 1]
            self.add_module(f"upconv{i}", nn.ConvTranspose2d(wide, narrow, 2, 2))
            self.add_module(f"decoder{i}", _double(2 * narrow, narrow))
        self.conv = nn.Conv2d(widths[0], config.num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes, H, W).

        Raises:
            UsageError: Height or width is not a multiple of the network's reduction.
        """
        step = 2**self.levels
        check_multiple(x, (step, step))
        skips = []
        for i in range(1, self.levels + 1):
            skips.append(getattr(self, f"encoder{i}")(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for i in range(self.levels, 0, -1):
            larger = getattr(self, f"upconv{i}")(x)
            x = getattr(self, f"decoder{i}")(torch.cat((larger, skips[i - 1]), 1))
        logits: Tensor = self.conv(x)
        return logits


def _double(c_in: int, c_out: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True),
        nn.Conv2d(c_out, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True),
    )  # fmt: skip


@dataclass(frozen=True)
class ResNetSegConfig:
    """Number of ResNet layers, channels of the decoder, and side of the output in pixels."""

    depth: int = 18
    decoder: tuple[int, ...] = (512, 256, 128, 64)
    output: int = 256
    num_classes: int = 1


class ResNetSeg(nn.Module):
    """ResNet segmenter: maps images (B, 3, H, W) to logits (B, classes, output, output)."""

    def __init__(self, config: ResNetSegConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        resnet = getattr(torchvision.models, f"resnet{config.depth}")(weights=None)
        self.encoder = nn.Sequential(
            *list(resnet.children())[:-2]
        )  # without pooling and classifier
        layers: list[nn.Module] = []
        for pair in pairwise((*config.decoder, config.num_classes)):
            layers += [nn.ConvTranspose2d(*pair, 4, 2, 1), nn.ReLU(inplace=True)]
        size = (config.output, config.output)
        self.decoder = nn.Sequential(*layers[:-1], nn.Upsample(size, mode="bilinear"))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes, output, output).

        Raises:
            UsageError: Height or width is not a multiple of 32.
        """
        check_multiple(x, (32, 32))
        logits: Tensor = self.decoder(self.encoder(x))
        return logits


VARIANTS: dict[str, UNetConfig | ResNetSegConfig] = {
    "unet": UNetConfig(),
    "resnet18_seg": ResNetSegConfig(),
    "resnet50_seg": ResNetSegConfig(depth=50, decoder=(2048, 512, 256, 128)),
}


def build(variant: str, **changes: object) -> UNet | ResNetSeg:
    """Builds the network `variant` of VARIANTS with random weights; `changes` override its config.

    Raises:
        UsageError: An option is unknown.
    """
    config = changed(VARIANTS[variant], changes, model=variant)
    return UNet(config) if isinstance(config, UNetConfig) else ResNetSeg(config)
