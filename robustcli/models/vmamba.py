"""VMamba: a hierarchical vision backbone whose token mixer scans the image in four directions.

Source: Liu et al., "VMamba: Visual State Space Model" (arXiv 2401.10166) and its code release;
written anew from the published facts. The nine ImageNet-1K releases load unchanged: same parameter
names and shapes. Deviation: feature maps are channels-last (B, H, W, C) in every variant, because
norms and projections then read contiguous memory; the function is the same in either layout.

Shapes: B batch, H and W of the current stage, C channels, D inner channels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from robustcli.models.forward_type import mixing
from robustcli.models.options import changed
from robustcli.models.resample import PatchMerging, downsample_v3, stem_v1, stem_v2
from robustcli.models.ss2d import SS2D
from robustcli.models.stochastic_depth import rising_rates


@dataclass(frozen=True)
class VMambaConfig:
    """What distinguishes one VMamba from another."""

    depths: tuple[int, ...]
    dim: int
    d_state: int = 1
    ssm_ratio: float = 2.0
    forward_type: str = "v05_noz"
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
        self.op = SS2D(
            dim, d_state=config.d_state, ratio=config.ssm_ratio, conv_bias=config.conv_bias,
            **asdict(mixing(config.forward_type)),
        )  # fmt: skip
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

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, H, W, C) to logits (B, num_classes), or to the pooled features (B, C)."""
        pooled: Tensor = self.norm(x).mean((1, 2))
        return pooled if pre_logits else self.head(pooled)


class VMamba(nn.Module):
    """The classifier: images (B, 3, H, W), any size from 32 up, to logits (B, num_classes)."""

    def __init__(self, config: VMambaConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.num_features = config.dims[-1]
        self.patch_embed = _stem(config)
        self.layers = nn.Sequential(*_stages(config))
        self.classifier = Classifier(config.dims[-1], config.num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's map, (B, H/32, W/32, C), before its norm."""
        features: Tensor = self.layers(self.patch_embed(x))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits from that map; the normalised and pooled features (B, C) with `pre_logits`."""
        head: Tensor = self.classifier(x, pre_logits)
        return head


class VMambaBackbone(nn.Module):
    """The trunk for dense prediction: images (B, 3, H, W) to one map per stage, (B, C, h, w).

    Each stage's output is normalised by its `outnorm{i}` before it is downsampled; a classifier's
    weights load but for these norms, which it has not, and its head.
    """

    def __init__(self, config: VMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = _stem(config)
        self.layers = nn.ModuleList(_stages(config))
        for stage, dim in enumerate(config.dims):
            self.add_module(f"outnorm{stage}", nn.LayerNorm(dim))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps, highest resolution first: strides 4, 8, 16 and 32 in the releases."""
        x = self.patch_embed(x)
        maps = []
        for stage, layer in enumerate(self.layers):
            assert isinstance(layer, Stage)
            x = layer.blocks(x)
            maps.append(self.get_submodule(f"outnorm{stage}")(x).permute(0, 3, 1, 2))
            x = layer.downsample(x)
        return maps


def _stem(config: VMambaConfig) -> nn.Sequential:
    return stem_v1(config.dim) if config.stem == "v1" else stem_v2(config.dim, config.stem_strides)


def _stages(config: VMambaConfig) -> list[Stage]:
    rates = rising_rates(config.drop_path, config.depths)
    shrink = PatchMerging if config.downsample == "v1" else downsample_v3
    last = len(config.depths) - 1
    return [
        Stage(
            [VSSBlock(dim, rate, config) for rate in rates[stage]],
            nn.Identity() if stage == last else shrink(dim),
        )
        for stage, dim in enumerate(config.dims)
    ]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_V2 = VMambaConfig(depths=(2, 2, 5, 2), dim=96)
_V0 = VMambaConfig(
    depths=(2, 2, 9, 2), dim=96, d_state=16, forward_type="v0", conv_bias=True, mlp_ratio=0.0,
    stem="v1", downsample="v1",
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
    """The network `variant` of VARIANTS, freshly initialised, with `changes` to its config.

    Raises:
        UsageError: An option is unknown.
    """
    return VMamba(changed(VARIANTS[variant], changes, model=variant))


def build_backbone(variant: str, **changes: object) -> VMambaBackbone:
    """The trunk of `variant` for dense prediction, as `build` makes the classifier.

    Raises:
        UsageError: An option is unknown.
    """
    return VMambaBackbone(changed(VARIANTS[variant], changes, model=variant))
