"""VMamba: a hierarchical vision backbone whose token mixer scans the image in four directions.

Source: Liu et al., "VMamba: Visual State Space Model" (arXiv 2401.10166) and its code release;
written anew from the published facts. The nine ImageNet-1K releases load unchanged: same parameter
names and shapes. Deviation: feature maps are channels-last (B, H, W, C) in every variant, because
norms and projections then read contiguous memory; the function is the same in either layout.

Shapes: B batch, H and W of the current stage, C channels, D inner channels, K = 4 directions,
N state size, R rank of the step-size projection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from robustcli.models.scan import ss2d_scan


@dataclass(frozen=True)
class VMambaConfig:
    """What distinguishes one VMamba from another."""

    depths: tuple[int, ...]
    dim: int
    d_state: int = 1
    ssm_ratio: float = 2.0
    gate: bool = False
    conv_bias: bool = False
    mlp_ratio: float = 4.0
    stem: Literal["v1", "v2"] = "v2"
    stem_strides: tuple[int, int] = (2, 2)
    downsample: Literal["v1", "v3"] = "v3"
    drop_path: float = 0.0
    num_classes: int = 1000

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage: doubled from stage to stage."""
        return tuple(self.dim * 2**stage for stage in range(len(self.depths)))


class Permute(nn.Module):
    """Reorders dimensions inside a Sequential; holds no parameters."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """`x` with its dimensions in `order`."""
        return x.permute(self.order)


def _to_last() -> Permute:
    return Permute(0, 2, 3, 1)


def _to_first() -> Permute:
    return Permute(0, 3, 1, 2)


def stem_v1(dim: int) -> nn.Sequential:
    """One 4x4 patch convolution; (B, 3, H, W) to (B, H/4, W/4, C)."""
    return nn.Sequential(nn.Conv2d(3, dim, 4, 4), _to_last(), nn.LayerNorm(dim))


def stem_v2(dim: int, strides: tuple[int, int]) -> nn.Sequential:
    """Two overlapping 3x3 convolutions; (B, 3, H, W) to (B, H/s, W/s, C), s their product."""
    return nn.Sequential(
        nn.Conv2d(3, dim // 2, 3, strides[0], 1),
        _to_last(),
        nn.LayerNorm(dim // 2),
        _to_first(),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, strides[1], 1),
        _to_last(),
        nn.LayerNorm(dim),
    )


def _stem(config: VMambaConfig) -> nn.Sequential:
    return stem_v1(config.dim) if config.stem == "v1" else stem_v2(config.dim, config.stem_strides)


def downsample_v3(dim: int) -> nn.Sequential:
    """A 3x3 convolution with stride 2; (B, H, W, C) to (B, H/2, W/2, 2C)."""
    conv = nn.Conv2d(dim, 2 * dim, 3, 2, 1)
    return nn.Sequential(_to_first(), conv, _to_last(), nn.LayerNorm(2 * dim))


class PatchMerging(nn.Module):
    """Downsampling of the v0 releases: 2x2 pixels side by side, then a projection."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H/2), ceil(W/2), 2C); odd sizes are zero-padded."""
        H, W = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(corners, -1)))
        return merged


class SS2D(nn.Module):
    """The two-dimensional selective scan with its projections, (B, H, W, C) to the same shape."""

    def __init__(self, dim: int, config: VMambaConfig) -> None:
        super().__init__()
        D, N = int(config.ssm_ratio * dim), config.d_state
        self.rank, self.gate = math.ceil(dim / 16), config.gate
        K, R = 4, self.rank
        self.x_proj_weight = nn.Parameter(_uniform((K, R + 2 * N, D), D**-0.5))
        self.A_logs = nn.Parameter(torch.arange(1.0, N + 1).log().repeat(K * D, 1))
        self.Ds = nn.Parameter(torch.ones(K * D))
        self.dt_projs_weight = nn.Parameter(_uniform((K, D, R), R**-0.5))
        self.dt_projs_bias = nn.Parameter(step_size_bias((K, D)))
        self.out_norm = nn.LayerNorm(D)
        self.in_proj = nn.Linear(dim, 2 * D if config.gate else D, bias=False)
        self.conv2d = nn.Conv2d(D, D, 3, padding=1, groups=D, bias=config.conv_bias)
        self.out_proj = nn.Linear(D, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The mixed feature map, (B, H, W, C)."""
        x = self.in_proj(x)
        z = None
        if self.gate:
            x, z = x.chunk(2, -1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2)))  # (B, D, H, W)
        y = self.out_norm(self._scan(x).permute(0, 2, 3, 1)).to(x.dtype)  # (B, H, W, D)
        if z is not None:
            y = y * F.silu(z)
        mixed: Tensor = self.out_proj(y)
        return mixed

    def _scan(self, x: Tensor) -> Tensor:
        """(B, D, H, W), summed over the directions.

        The projections are per pixel, so no cross-scanned copy is made: each direction's share lies
        by pixel and is read in the direction's own order.
        """
        B, D, H, W = x.shape
        K, N, R = 4, self.A_logs.shape[1], self.rank
        tokens = x.permute(0, 2, 3, 1).reshape(-1, D)  # (B*H*W, D)
        projected = F.linear(tokens, self.x_proj_weight.flatten(0, 1)).view(-1, K, R + 2 * N)
        low, Bs, Cs = projected.split((R, N, N), -1)
        delta = torch.bmm(low.transpose(0, 1), self.dt_projs_weight.transpose(1, 2).to(low.dtype))
        return ss2d_scan(
            x,
            delta.view(K, B, H, W, D).permute(1, 0, 4, 2, 3),  # (B, K, D, H, W)
            -self.A_logs.float().exp() if x.dtype != torch.float64 else -self.A_logs.exp(),
            Bs.reshape(B, H, W, K, N).permute(0, 3, 4, 1, 2),  # (B, K, N, H, W)
            Cs.reshape(B, H, W, K, N).permute(0, 3, 4, 1, 2),
            self.Ds,
            self.dt_projs_bias.flatten(),
        )


class Mlp(nn.Module):
    """Two layers with GELU between, per pixel."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        mixed: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return mixed


class VSSBlock(nn.Module):
    """Norm, SS2D and MLP with residuals, (B, H, W, C) to the same shape."""

    def __init__(self, dim: int, drop_path: float, config: VMambaConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(dim, config)
        self.drop_path = DropPath(drop_path)
        if config.mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = Mlp(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, (B, H, W, C)."""
        x = x + self.drop_path(self.op(self.norm(x)))
        if hasattr(self, "mlp"):
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class Stage(nn.Module):
    """Blocks at one resolution, then the downsampling to the next."""

    def __init__(self, blocks: list[VSSBlock], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H/2, W/2, 2C), or unchanged in size at the last stage."""
        out: Tensor = self.downsample(self.blocks(x))
        return out


class Classifier(nn.Module):
    """Norm, global average pooling and the linear head."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to logits (B, num_classes)."""
        logits: Tensor = self.head(self.norm(x).mean((1, 2)))
        return logits


class VMamba(nn.Module):
    """The classifier: images (B, 3, H, W), any size from 32 up, to logits (B, num_classes)."""

    def __init__(self, config: VMambaConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        stem = (
            stem_v1(config.dim) if config.stem == "v1" else stem_v2(config.dim, config.stem_strides)
        )
        self.patch_embed = stem
        self.layers = nn.Sequential(*_stages(config))
        self.classifier = Classifier(config.dims[-1], config.num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.classifier(self.layers(self.patch_embed(x)))
        return logits


def _stages(config: VMambaConfig) -> list[Stage]:
    rates = iter(torch.linspace(0, config.drop_path, sum(config.depths)).tolist())
    shrink = PatchMerging if config.downsample == "v1" else downsample_v3
    last = len(config.depths) - 1
    return [
        Stage(
            [VSSBlock(dim, next(rates), config) for _ in range(depth)],
            nn.Identity() if stage == last else shrink(dim),
        )
        for stage, (depth, dim) in enumerate(zip(config.depths, config.dims, strict=True))
    ]


def _uniform(shape: tuple[int, ...], bound: float) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound)


def step_size_bias(shape: tuple[int, ...], low: float = 1e-3, high: float = 0.1) -> Tensor:
    """Biases whose softplus is log-uniform in [low, high], at least 1e-4 (Mamba's own start)."""
    step = torch.empty(shape).uniform_(math.log(low), math.log(high)).exp().clamp(min=1e-4)
    return step + torch.log(-torch.expm1(-step))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_V2 = VMambaConfig(depths=(2, 2, 5, 2), dim=96)
_V0 = VMambaConfig(
    depths=(2, 2, 9, 2), dim=96, d_state=16, gate=True, conv_bias=True, mlp_ratio=0.0, stem="v1",
    downsample="v1",
)  # fmt: skip
VARIANTS: dict[str, VMambaConfig] = {
    "vmamba-t-v0": replace(_V0, drop_path=0.2),
    "vmamba-s-v0": replace(_V0, depths=(2, 2, 27, 2), drop_path=0.3),
    "vmamba-b-v0": replace(_V0, depths=(2, 2, 27, 2), dim=128, drop_path=0.6),
    "vmamba-t-s2l5": replace(_V2, drop_path=0.2),
    "vmamba-s-s2l15": replace(_V2, depths=(2, 2, 15, 2), drop_path=0.3),
    "vmamba-b-s2l15": replace(_V2, depths=(2, 2, 15, 2), dim=128, drop_path=0.6),
    "vmamba-t-s1l8": replace(_V2, depths=(2, 2, 8, 2), ssm_ratio=1.0, drop_path=0.2),
    "vmamba-s-s1l20": replace(_V2, depths=(2, 2, 20, 2), ssm_ratio=1.0, drop_path=0.3),
    "vmamba-b-s1l20": replace(_V2, depths=(2, 2, 20, 2), dim=128, ssm_ratio=1.0, drop_path=0.5),
    "vmamba-pico": VMambaConfig(
        depths=(1, 2, 2), dim=32, ssm_ratio=1.0, stem_strides=(2, 1), num_classes=10
    ),
}


def build(variant: str, **changes: object) -> VMamba:
    """The network `variant` of VARIANTS, freshly initialised, with `changes` to its config."""
    return VMamba(replace(VARIANTS[variant], **changes))  # type: ignore[arg-type]
