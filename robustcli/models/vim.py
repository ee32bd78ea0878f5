"""Vim: bidirectional Mamba blocks on the sequence of image patches.

Source: Zhu et al., "Vision Mamba" (arXiv 2401.09417) and its code release; reimplemented from the
published facts. The five ImageNet-1K checkpoints (class token in the middle, absolute
positions) load unchanged: parameter names and shapes are equal. Deviation: for another input size
the position embedding is resized (`resize_positions`).

Shapes: B batch, M patches, C channels; the sequence has M + 1 tokens, the class token at M // 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath, lecun_normal_, trunc_normal_
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.models.ablation import Ablation, ablate_network
from robustcli.models.architectures import changed
from robustcli.models.blocks import rising_rates
from robustcli.models.mamba import BidirectionalMamba


@dataclass(frozen=True)
class VimConfig:
    """Configuration of a Vim; patch size, stride and image size in pixels."""

    dim: int
    depth: int = 24
    patch_size: int = 16
    stride: int | None = None
    img_size: int | tuple[int, int] = 224
    drop_path: float = 0.1
    num_classes: int = 1000
    ablate: Ablation | None = None

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of the input."""
        size = self.img_size
        return (size, size) if isinstance(size, int) else size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches, which overlap if the stride is below the patch size."""
        height, width = self.image
        step = self.stride or self.patch_size
        return (height - self.patch_size) // step + 1, (width - self.patch_size) // step + 1


class PatchEmbed(nn.Module):
    """Patch embedding: maps images (B, 3, H, W) to tokens (B, M, C), row by row."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.image = config.image
        patch, stride = config.patch_size, config.stride or config.patch_size
        self.proj = nn.Conv2d(3, config.dim, patch, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens, (B, M, C).

        Raises:
            UsageError: The image size differs from that of the configuration.
        """
        if tuple(x.shape[2:]) != self.image:
            received, expected = (" x ".join(map(str, size)) for size in (x.shape[2:], self.image))
            raise UsageError(
                f"The input is {received} pixels; this Vim needs {expected}.",
                "Its position embedding has one entry per patch.",
                "Build it with `img_size` to resize the embedding, or resize the images.",
            )
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class Layer(nn.Module):
    """Norm and mixer; the residual stream is a second output, at least in float32."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.mixer = BidirectionalMamba(dim)
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mixer output and the residual stream without it, (B, M + 1, C) each."""
        residual = _wide(hidden) if residual is None else residual + self.drop_path(hidden)
        return self.mixer(_normed(self.norm, residual)), residual


class Vim(nn.Module):
    """Vim: maps images (B, 3, H, W) of the configured size to logits (B, num_classes)."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.num_features = config.dim
        self.middle = math.prod(config.grid) // 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(config.grid) + 1, config.dim))
        self.patch_embed = PatchEmbed(config)
        self.head = nn.Linear(config.dim, config.num_classes)
        (rates,) = rising_rates(config.drop_path, (config.depth,))
        self.layers = nn.ModuleList(Layer(config.dim, rate) for rate in [0.0, *rates[:-1]])
        self.drop_path = DropPath(config.drop_path)
        self.norm_f = nn.RMSNorm(config.dim, eps=1e-5)
        self._initialise()
        ablate_network(self, config.ablate, model="vim")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The normalised tokens, (B, M + 1, C)."""
        tokens = self.patch_embed(x)
        class_token = self.cls_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        hidden = torch.cat((tokens[:, : self.middle], class_token, tokens[:, self.middle :]), 1)
        hidden = hidden + self.pos_embed
        residual = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        residual = hidden if residual is None else residual + self.drop_path(hidden)
        return _normed(self.norm_f, residual)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the class token of `x` (B, M + 1, C); with `pre_logits`, the class token."""
        token = x[:, self.middle]
        return token if pre_logits else self.head(token)

    def _initialise(self) -> None:
        """Initialises as upstream, which sets the step-size bias of the `_b` direction to zero."""
        self.apply(partial(_initialise, depth=self.config.depth))
        for tensor in (self.head.weight, self.pos_embed, self.cls_token):
            trunc_normal_(tensor, std=0.02)
        nn.init.zeros_(self.head.bias)


def _initialise(module: nn.Module, depth: int) -> None:
    if isinstance(module, nn.Conv2d):
        lecun_normal_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
    if isinstance(module, BidirectionalMamba):
        nn.init.zeros_(module.dt_proj_b.bias)
        nn.init.kaiming_uniform_(module.out_proj.weight, a=math.sqrt(5))
        with torch.no_grad():
            module.out_proj.weight /= math.sqrt(depth)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normed(norm: nn.RMSNorm, residual: Tensor) -> Tensor:
    normed: Tensor = norm(residual.to(norm.weight.dtype))
    return normed


# Resizes Vim's position embedding to another input size. The class token is in the middle of the
# sequence, and so is its entry in the embedding. The helper function of the release treats entry 0
# as the class token and thereby shifts the grid by one; these functions do not.


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resizes `positions` (1, M + 1, C) of a square grid to `grid`; keeps the class token's entry.

    Bicubic, as in DeiT and Vim.

    Args:
        positions: The position embedding; the entry of the class token is in the middle.
        grid: Rows and columns of patches after resizing.

    Raises:
        UsageError: The old grid is not square.
    """
    M = positions.shape[1] - 1
    side, middle = math.isqrt(M), M // 2
    if side * side != M:
        raise UsageError(
            f"A position embedding of {M} patches cannot be resized.",
            "Its patches do not form a square grid, so that their positions are unknown.",
        )
    class_position = positions[:, middle : middle + 1]
    patches = torch.cat((positions[:, :middle], positions[:, middle + 1 :]), 1)
    image = patches.transpose(1, 2).unflatten(2, (side, side))  # (1, C, side, side)
    resized = F.interpolate(image, grid, mode="bicubic", align_corners=False)
    tokens = resized.flatten(2).transpose(1, 2)
    new_middle = tokens.shape[1] // 2
    return torch.cat((tokens[:, :new_middle], class_position, tokens[:, new_middle:]), 1)


def fit_positions(state: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """`state` of a Vim; resizes the position embedding if its number of patches differs.

    Args:
        state: The weights.
        grid: Rows and columns of patches of the network to load them into (`VimConfig.grid`).

    Raises:
        UsageError: The old grid is not square.
    """
    positions = state.get("pos_embed")
    if positions is None or positions.shape[1] == math.prod(grid) + 1:
        return dict(state)
    return {**state, "pos_embed": resize_positions(positions, grid)}


# `vim` is the network for CIFAR of "Mamba vs SOTA for Vision Tasks" (2024): patch size 4 or 8.
VARIANTS: dict[str, VimConfig] = {
    "vim-t": VimConfig(dim=192),
    "vim-t-plus": VimConfig(dim=192, stride=8),
    "vim-s": VimConfig(dim=384),
    "vim-s-plus": VimConfig(dim=384, stride=8),
    "vim-b": VimConfig(dim=768),
    "vim": VimConfig(dim=168, depth=8, patch_size=4, img_size=32, num_classes=10),
}


def build(variant: str, **changes: object) -> Vim:
    """Builds the network `variant` of VARIANTS with random weights; `changes` override its config.

    Raises:
        UsageError: An option is unknown.
    """
    return Vim(changed(VARIANTS[variant], changes, model=variant))
