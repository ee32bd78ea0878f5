"""The releases under timm's names, and small copies of them."""

from __future__ import annotations

from typing import Any

import timm
import torch

import robustcli.timm_models  # noqa: F401  registers

VMAMBA = {
    "vmamba_tiny_s1l8": "vmamba-t-s1l8", "vmamba_tiny_s2l5": "vmamba-t-s2l5",
    "vmamba_tiny_v0": "vmamba-t-v0", "vmamba_small_s2l15": "vmamba-s-s2l15",
    "vmamba_small_s1l20": "vmamba-s-s1l20", "vmamba_small_v0": "vmamba-s-v0",
    "vmamba_base_s2l15": "vmamba-b-s2l15", "vmamba_base_s1l20": "vmamba-b-s1l20",
    "vmamba_base_v0": "vmamba-b-v0",
}  # fmt: skip
VIM = {
    "vim_tiny": "vim-t", "vim_tiny_plus": "vim-t-plus", "vim_small": "vim-s",
    "vim_small_plus": "vim-s-plus", "vim_base": "vim-b",
}  # fmt: skip
ALL = VMAMBA | VIM
SIDE = 64


def small(name: str, **options: Any) -> Any:
    """The model with few, narrow blocks: everything that distinguishes it else is kept."""
    if name in VMAMBA:
        return timm.create_model(name, depths=(1, 1, 2, 1), dim=16, **options)
    return timm.create_model(name, depth=4, dim=32, img_size=SIDE, **options)


def images(count: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
