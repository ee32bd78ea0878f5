"""Official files of the U-Mambas hold most tensors under two or more names; these networks one.

Upstream registers a convolution (`conv1.conv`) and its norm (`conv1.norm`) again as
`conv1.all_modules.0` and `.1`, and the whole encoder again as `decoder.encoder`. nnU-Net loads
strictly, so a file for it must hold every name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from robustcli.core.errors import UsageError

_WRAPPED = re.compile(r"((?:^|\.)(?:conv[12]|convs\.\d+|skip\.\d+))\.(conv|norm)\.(\w+)$")
_COPY = re.compile(r"\.all_modules\.([01])\.(\w+)$")
_MEMBERS = ("conv", "norm")


def canonical_key(key: str) -> str:
    """The one name that our networks use for the tensor that upstream calls `key`."""
    key = key.removeprefix("decoder.") if key.startswith("decoder.encoder.") else key
    return _COPY.sub(lambda m: f".{_MEMBERS[int(m[1])]}.{m[2]}", key)


def without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each tensor once, under our name for it, whichever of its names are there.

    Raises:
        UsageError: Two names of one tensor hold different values.
    """
    unique: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = canonical_key(key)
        if name in unique and not _same(unique[name], tensor):
            raise UsageError(
                f"The weights hold two versions of `{name}`.",
                f"`{key}` is another name of the same tensor, but its values differ.",
                "The file was changed after training; export it again.",
            )
        unique.setdefault(name, tensor)
    return unique


def with_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` of one of our networks under every name that upstream writes."""
    full: dict[str, Tensor] = {}
    for key, tensor in state.items():
        full |= dict.fromkeys(_names(key), tensor)
    return full


def _names(key: str) -> list[str]:
    names = [key]
    wrapped = _WRAPPED.search(key)
    if wrapped:
        copy = f"{wrapped[1]}.all_modules.{_MEMBERS.index(wrapped[2])}.{wrapped[3]}"
        names.append(key[: wrapped.start()] + copy)
    twice = [f"decoder.{name}" for name in names if name.startswith("encoder.")]
    return names + twice


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)
