"""VM-UNet: a U-shaped network of VMamba blocks for medical segmentation.

Source: Ruan and Xiang, "VM-UNet" (arXiv 2402.02491) and its code release; reimplemented from the
published facts, with its parameter names. As in the release: a skip connection is the input
of an encoder stage and is added before the decoder upsamples; the skip of highest resolution is not
used; a network with one class outputs probabilities.
Deviation: an input whose size is not a multiple of 32 is rejected with a message; upstream fails
inside the network.

Shapes: B batch, H and W of the current stage, C channels; feature maps are (B, H, W, C).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from robustcli.models.ablation import Ablation, ablate_network
from robustcli.models.architectures import changed, check_multiple
from robustcli.models.blocks import rising_rates
from robustcli.models.vmamba import SS2D, PatchMerging, VMambaStage


@dataclass(frozen=True)
class VMUNetConfig:
    """Configuration of a VM-UNet; `depths` and `depths_decoder` are in order of execution."""

    depths: tuple[int, ...] = (2, 2, 2, 2)
    depths_decoder: tuple[int, ...] = (2, 2, 2, 1)
    dim: int = 96
    d_state: int = 16
    drop_path: float = 0.2
    num_classes: int = 1
    ablate: Ablation | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each encoder stage: doubled with every stage."""
        return tuple(self.dim * 2**stage for stage in range(len(self.depths)))


class PatchEmbed(nn.Module):
    """A convolution of p x p = `patch` pixels with stride p, and a norm."""

    def __init__(self, dim: int, in_channels: int = 3, patch: int = 4) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the first feature map, (B, H/p, W/p, C')."""
        embedded: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return embedded


class PatchExpand(nn.Module):
    """Upsampling by s = `scale`; maps (B, H, W, C) to (B, H*s, W*s, C*share/s^2)."""

    def __init__(self, dim: int, *, scale: int, share: int) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(dim, share * dim, bias=False)
        self.norm = nn.LayerNorm(share * dim // scale**2)

    def forward(self, x: Tensor) -> Tensor:
        """The upsampled map, (B, H*s, W*s, C*share/s^2)."""
        B, H, W, _ = x.shape
        s = self.scale
        grid = self.expand(x).view(B, H, W, s, s, -1).permute(0, 1, 3, 2, 4, 5)
        larger: Tensor = self.norm(grid.reshape(B, H * s, W * s, -1))
        return larger


class VMUNetBlock(nn.Module):
    """Norm and SS2D with a residual; maps (B, H, W, C) to the same shape."""

    def __init__(self, dim: int, d_state: int, drop_path: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = SS2D(dim, d_state=d_state, ratio=2.0, gate=True, conv_bias=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the block, (B, H, W, C)."""
        mixed: Tensor = self.drop_path(self.self_attention(self.ln_1(x)))
        return x + mixed


class DecoderStage(nn.Module):
    """Upsampling (an identity in the first decoder stage), then blocks."""

    def __init__(self, blocks: list[VMUNetBlock], upsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, 2H, 2W, C/2), or to the same shape in the first stage."""
        larger: Tensor = self.blocks(self.upsample(x))
        return larger


class VMUNetBody(nn.Module):
    """The network without the final sigmoid: maps (B, 3, H, W) to logits (B, classes, H, W)."""

    def __init__(self, config: VMUNetConfig) -> None:
        super().__init__()
        dims = config.dims
        self.patch_embed = PatchEmbed(config.dim)
        rates = rising_rates(config.drop_path, config.depths)
        down = [PatchMerging(dim) for dim in dims[:-1]]
        self.layers = nn.ModuleList(
            VMambaStage([VMUNetBlock(dim, config.d_state, rate) for rate in stage], shrink)
            for dim, stage, shrink in zip(dims, rates, (*down, nn.Identity()), strict=True)
        )
        reverse = rising_rates(config.drop_path, config.depths_decoder[::-1])[::-1]
        up = [PatchExpand(dim, scale=2, share=2) for dim in dims[:0:-1]]
        self.layers_up = nn.ModuleList(
            DecoderStage([VMUNetBlock(dim, config.d_state, rate) for rate in stage[::-1]], grow)
            for dim, stage, grow in zip(dims[::-1], reverse, (nn.Identity(), *up), strict=True)
        )
        self.final_up = PatchExpand(config.dim, scale=4, share=4)
        self.final_conv = nn.Conv2d(config.dim // 4, config.num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes, H, W)."""
        x = self.patch_embed(x)
        skips = []
        for encode in self.layers:
            skips.append(x)
            x = encode(x)
        x = self.layers_up[0](x)
        for decode, skip in zip(self.layers_up[1:], skips[:0:-1], strict=True):
            x = decode(x + skip)
        logits: Tensor = self.final_conv(self.final_up(x).permute(0, 3, 1, 2))
        return logits


class VMUNet(nn.Module):
    """VM-UNet: maps images (B, 3 or 1, H, W) to probabilities (one class) or logits (several).

    Upstream's training images are normalised, then scaled to 0..255 per image.
    """

    def __init__(self, config: VMUNetConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.vmunet = VMUNetBody(config)
        self.apply(_initialise)
        ablate_network(self, config.ablate, model="vmunet")

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (B, 1, H, W) for one class, or logits (B, classes, H, W) for several.

        Raises:
            UsageError: Height or width is not a multiple of the network's reduction.
        """
        step = 4 * 2 ** (len(self.config.depths) - 1)
        check_multiple(x, (step, step))
        logits: Tensor = self.vmunet(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x)
        return torch.sigmoid(logits) if self.num_classes == 1 else logits


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)


VARIANTS: dict[str, VMUNetConfig] = {"vmunet": VMUNetConfig()}


def build(variant: str, **changes: object) -> VMUNet:
    """Builds the network `variant` of VARIANTS with random weights; `changes` override its config.

    Raises:
        UsageError: An option is unknown.
    """
    return VMUNet(changed(VARIANTS[variant], changes, model=variant))
