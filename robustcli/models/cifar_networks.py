"""Classifiers for 32 x 32 pixels: ViT, ResNet-9, and ResNet-18 and -50 with a stem for CIFAR.

Sources, all reimplemented from the published facts:

- ViT: Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv 2010.11929), in the form and with
  the parameter names of `vit_pytorch` 1.6.5 (class `ViT`), of the size in "Mamba vs
  State-of-the-Art for Vision Tasks" (2024). Patches are normalised before and after they are
  projected; position embedding and class token are initialised with standard deviation 1.
- ResNet-9: D. Page's network for DAWNBench (github.com/davidcpage/cifar10-fast, `dawn.py`, 2018),
  with its parameter names: the last layer has no bias, and the logits are its output divided by 8.
  Deviation: the last max-pooling covers the complete feature map at any input size; at 32 x 32
  pixels the map has 4 x 4 positions, as in the source.
- ResNet-18 and -50: He et al., "Deep Residual Learning" (arXiv 1512.03385), with timm's blocks,
  parameter names and initialisation. The stem is a 3 x 3 convolution with stride 1 without
  max-pooling, instead of 7 x 7 with stride 2 and max-pooling, as in section 4.2 of the paper for
  CIFAR.

Shapes: B batch, C channels, N tokens, D width of a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.models.architectures import changed


class _Classifier(nn.Module, ABC):
    """Base class: feature extractor and linear classifier, with timm's method names."""

    classifier_name: ClassVar[str]
    num_classes: int
    num_features: int

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) for images (B, channels, H, W)."""
        return self.forward_head(self.forward_features(x))

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Features (B, ...) of images (B, channels, H, W)."""

    @abstractmethod
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of features; with `pre_logits`, the input of the last layer."""

    def get_classifier(self) -> nn.Module:
        """The classification layer."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classification layer by a new one, or by the identity for 0 classes."""
        if global_pool is not None:
            raise UsageError(
                f"`global_pool={global_pool}` is unknown.",
                "This network supports only one type of pooling.",
            )
        self.num_classes = num_classes
        like = next(self.parameters())
        layer = self._linear(num_classes) if num_classes else nn.Identity()
        self.set_submodule(self.classifier_name, layer.to(like.device, like.dtype))

    def _linear(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes)


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT; `patch_size` and `img_size` in pixels."""

    dim: int = 168
    depth: int = 8
    heads: int = 4
    dim_head: int = 64
    mlp_dim: int = 128
    patch_size: int = 4
    img_size: int = 32
    in_chans: int = 3
    num_classes: int = 10


class PatchTokens(nn.Module):
    """Splits images (B, C, H, W) into patches (B, N, p * p * C), row by row, channels fastest."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.side, self.patch = config.img_size, config.patch_size

    def forward(self, x: Tensor) -> Tensor:
        """The patches, (B, N, p * p * C).

        Raises:
            UsageError: The image size differs from that of the configuration.
        """
        if x.shape[2:] != (self.side, self.side):
            received = " x ".join(map(str, x.shape[2:]))
            raise UsageError(
                f"The input is {received} pixels; this ViT needs {self.side} x {self.side}.",
                "Its position embedding has one entry per patch.",
                "Build it with `img_size`, or resize the images.",
            )
        blocks = x.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        patches: Tensor = blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return patches  # (B, N, p * p * C)


class Attention(nn.Module):
    """Pre-norm self-attention with `heads` heads; maps (B, N, D) to the same shape."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        inner = config.heads * config.dim_head
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.dim)
        self.to_qkv = nn.Linear(config.dim, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, config.dim))

    def forward(self, x: Tensor) -> Tensor:
        """The branch output, which the caller adds to the residual stream."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, dim_head)
            for part in self.to_qkv(self.norm(x)).chunk(3, 2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Pre-norm MLP with one hidden layer; maps (B, N, D) to the same shape."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        # The identity replaces a dropout of rate 0 in vit_pytorch, so that layer indices agree.
        self.net = nn.Sequential(
            nn.LayerNorm(config.dim), nn.Linear(config.dim, config.mlp_dim), nn.GELU(),
            nn.Identity(), nn.Linear(config.mlp_dim, config.dim),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The branch output, which the caller adds to the residual stream."""
        out: Tensor = self.net(x)
        return out


class Transformer(nn.Module):
    """`depth` layers of attention and MLP, then a norm."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.layers = nn.ModuleList(
            nn.ModuleList((Attention(config), FeedForward(config))) for _ in range(config.depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The normalised tokens (B, N, D)."""
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            for part in layer:
                x = x + part(x)
        normed: Tensor = self.norm(x)
        return normed


class ViT(_Classifier):
    """ViT classifier: maps images (B, channels, H, W) of the configured size to logits.

    The class token is the first of the N + 1 tokens.
    """

    classifier_name = "mlp_head"

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        if config.img_size % config.patch_size:
            raise UsageError(
                f"`vit` cannot be built with `patch_size={config.patch_size}`.",
                f"Images of {config.img_size} pixels cannot be divided into such patches.",
                "Use a divisor of `img_size`.",
            )
        self.config, self.num_classes = config, config.num_classes
        self.num_features = config.dim
        tokens = (config.img_size // config.patch_size) ** 2
        values = config.in_chans * config.patch_size**2
        self.pos_embedding = nn.Parameter(torch.empty(1, tokens + 1, config.dim))
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.to_patch_embedding = nn.Sequential(
            PatchTokens(config), nn.LayerNorm(values), nn.Linear(values, config.dim),
            nn.LayerNorm(config.dim),
        )  # fmt: skip
        self.transformer = Transformer(config)
        self.mlp_head = self._linear(config.num_classes)
        for embedding in (self.pos_embedding, self.cls_token):
            nn.init.normal_(embedding)

    def forward_features(self, x: Tensor) -> Tensor:
        """The normalised tokens, (B, N + 1, D)."""
        patches = self.to_patch_embedding(x)
        class_token = self.cls_token.to(patches.dtype).expand(patches.shape[0], -1, -1)
        tokens: Tensor = self.transformer(torch.cat((class_token, patches), 1) + self.pos_embedding)
        return tokens

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the class token of `x` (B, N + 1, D); with `pre_logits`, the class token."""
        token = x[:, 0]
        return token if pre_logits else self.mlp_head(token)


@dataclass(frozen=True)
class ResNet9Config:
    """Number of channels of the first convolution and of the three layers after it."""

    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    in_chans: int = 3
    num_classes: int = 10


class ConvBlock(nn.Module):
    """A 3 x 3 convolution, batch norm and ReLU; with `pools`, also max-pooling by 2."""

    def __init__(self, c_in: int, c_out: int, *, pools: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2) if pools else nn.Identity()
        self.residual: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', H, W), or with pooling to (B, C', H / 2, W / 2)."""
        out: Tensor = self.residual(self.pool(self.relu(self.bn(self.conv(x)))))
        return out


class Residual(nn.Module):
    """Residual block: adds the output of two convolution blocks to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.res1, self.res2 = ConvBlock(channels, channels), ConvBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        out: Tensor = x + self.res2(self.res1(x))
        return out


class ResNet9(_Classifier):
    """ResNet-9: maps images (B, channels, H, W), at least 8 x 8 pixels, to logits."""

    classifier_name = "linear"
    scale = 0.125

    def __init__(self, config: ResNet9Config) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.num_features = config.channels[-1]
        self.prep = ConvBlock(config.in_chans, config.channels[0])
        self.layer1, self.layer2, self.layer3 = (
            ConvBlock(*pair, pools=True) for pair in pairwise(config.channels)
        )
        self.layer1.residual = Residual(config.channels[1])
        self.layer3.residual = Residual(config.channels[3])
        self.linear = self._linear(config.num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, (B, C, H / 8, W / 8)."""
        out: Tensor = self.layer3(self.layer2(self.layer1(self.prep(x))))
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the feature map `x` (B, C, H, W); with `pre_logits`, its maxima (B, C)."""
        pooled = x.amax((2, 3))
        return pooled if pre_logits else self.scale * self.linear(pooled)

    def _linear(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes, bias=False)


@dataclass(frozen=True)
class ResNetConfig:
    """Type of the blocks and number of blocks in each of the four stages."""

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, int, int, int]
    in_chans: int = 3
    num_classes: int = 10


_BLOCKS: dict[str, Any] = {"basic": BasicBlock, "bottleneck": Bottleneck}
_STEM_CHANNELS, _STEM_REDUCTION = 64, 4  # of timm's stem: convolution and pooling


class CifarResNet(ResNet):  # type: ignore[misc,unused-ignore]  # timm has no types
    """Timm's ResNet with a stem that keeps the image size.

    Maps images (B, channels, H, W) to logits (B, num_classes).
    """

    def __init__(self, config: ResNetConfig) -> None:
        block = _BLOCKS[config.block]
        super().__init__(
            block, config.depths, num_classes=config.num_classes, in_chans=config.in_chans
        )
        self.config = config
        stem = nn.Conv2d(config.in_chans, _STEM_CHANNELS, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as timm's
        self.conv1, self.maxpool = stem, nn.Identity()
        self.feature_info: Sequence[dict[str, Any]] = [
            {**feature, "reduction": max(1, feature["reduction"] // _STEM_REDUCTION)}
            for feature in self.feature_info
        ]


VARIANTS: dict[str, ViTConfig | ResNet9Config | ResNetConfig] = {
    "vit": ViTConfig(),
    "resnet9": ResNet9Config(),
    "cifar-resnet18": ResNetConfig("basic", (2, 2, 2, 2)),
    "cifar-resnet50": ResNetConfig("bottleneck", (3, 4, 6, 3)),
}


def build(variant: str, **changes: object) -> nn.Module:
    """Builds the network `variant` of VARIANTS with random weights; `changes` override its config.

    Raises:
        UsageError: An option is unknown or invalid.
    """
    config = changed(VARIANTS[variant], changes, model=variant)
    if isinstance(config, ViTConfig):
        return ViT(config)
    return ResNet9(config) if isinstance(config, ResNet9Config) else CifarResNet(config)
