"""Timm models with few, narrow blocks: everything that distinguishes them else is kept."""

from __future__ import annotations

from typing import Any

import timm

import robustcli.timm_models  # noqa: F401  registers

NAMES = ("vmamba_tiny_s1l8", "vmamba_tiny_v0", "vim_tiny")


def small(name: str, **options: Any) -> Any:
    """The timm model `name` with three blocks of 16 or 32 channels."""
    if name.startswith("vmamba"):
        return timm.create_model(name, **{"depths": (1, 2), "dim": 16, **options})
    return timm.create_model(name, **{"depth": 3, "dim": 32, "img_size": 32, **options})
