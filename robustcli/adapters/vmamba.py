"""VMamba's official files under today's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# The names of the v0 files (VMamba issue 53) and ours, applied in this order.
_OLD_NAMES = (
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.0."),
    (re.compile(r"^patch_embed\.norm\."), "patch_embed.2."),
    (re.compile(r"\.ln_1\."), ".norm."),
    (re.compile(r"\.self_attention\."), ".op."),
    (re.compile(r"^norm\."), "classifier.norm."),
    (re.compile(r"^head\."), "classifier.head."),
)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under today's names; projections stored as 1x1 convolutions become matrices."""
    return {_new_name(key): _matrix(key, tensor) for key, tensor in state.items()}


def _new_name(key: str) -> str:
    for pattern, new in _OLD_NAMES:
        key = pattern.sub(new, key)
    return key


def _matrix(key: str, tensor: Tensor) -> Tensor:
    pointwise = re.search(r"\.(in_proj|out_proj|fc1|fc2|reduction|head)\.weight$", key)
    return tensor.flatten(1) if pointwise and tensor.shape[2:] == (1, 1) else tensor
