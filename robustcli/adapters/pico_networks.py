"""`resnet-pico`: a residual network of the size of `vmamba-pico`, made of timm's blocks.

Importing this module registers it with timm as `resnet_pico`. Both bundled classifiers take 32 x 32
pixels and have three stages of 16 x 16, 8 x 8 and 4 x 4 positions.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import nn

from robustcli.adapters.preprocessing import CIFAR10

__all__: list[str] = []  # timm adds each registered name

default_cfgs = generate_default_cfgs(
    {
        "resnet_pico.cifar10": {
            "num_classes": 10,
            "input_size": (3, CIFAR10.crop, CIFAR10.crop),
            "pool_size": (4, 4),
            "crop_pct": 1.0,
            "interpolation": CIFAR10.interpolation,
            "mean": CIFAR10.mean,
            "std": CIFAR10.std,
            "first_conv": "stem.conv",
            "classifier": "head.fc",
            "license": "apache-2.0",
        }
    }
)
_STAGES = ((1, 32, 1), (1, 64, 2), (2, 120, 2))
"""Blocks, channels and stride of each stage."""


@register_model  # type: ignore[untyped-decorator,unused-ignore]
def resnet_pico(pretrained: bool = False, **options: Any) -> nn.Module:
    """A ResNet for 32 x 32 pixels: four basic blocks, a 3 x 3 stem of stride 2, no max-pooling."""
    blocks = tuple(
        ByoBlockCfg(type="basic", d=depth, c=channels, s=stride, gs=0)
        for depth, channels, stride in _STAGES
    )
    network: nn.Module = build_model_with_cfg(
        ByobNet,
        "resnet_pico",
        pretrained,
        model_cfg=ByoModelCfg(blocks=blocks, stem_chs=32, stem_type="3x3", stem_pool=""),
        feature_cfg={"flatten_sequential": True, "out_indices": (0, 1, 2)},
        **options,
    )
    return network
