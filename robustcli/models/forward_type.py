"""VMamba's `forward_type`: how its mixer scans, gates and normalises, read from one name.

Source: the code release of VMamba (arXiv 2401.10166). A name is a core, then suffixes in a fixed
order: one for the norm, `_nozact`, `_noz`, `_oact`, `_no32`. Cores that differ in kernels and
precision alone are one function here, whose sums are always float32. Not here, because what is
published of them does not say what they compute: the cascade `v052dc`, the norms `_ondwconv3`,
`_oncnorm` and `_onsoftmax`; `v2`, which fails in the release itself; Mamba-2's `m0`, which has no
checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robustcli.core.errors import UsageError
from robustcli.models.scan.orders import CROSS

_NORMS: dict[str, Literal["none", "sigmoid"]] = {"_onnone": "none", "_onsigmoid": "sigmoid"}
_ROW, _BACK = "row", "row-reversed"
_CORES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("v0", "v01", "v02", "v03", "v3", "v04", "v05"), CROSS),
    "v051d": (_ROW,) * 4,
    "v052d": (_ROW, _ROW, _BACK, _BACK),
}


@dataclass(frozen=True)
class Mixing:
    """What a `forward_type` says, by the names of `SS2D`'s arguments."""

    directions: tuple[str, ...] = CROSS
    gate: bool = True
    gate_activation: bool = True  # the gate passes through silu
    norm: Literal["layer", "none", "sigmoid"] = "layer"
    out_activation: bool = False  # the normed output passes through gelu


def mixing(forward_type: str) -> Mixing:
    """What `forward_type` says.

    Args:
        forward_type: Such as `v05_noz`, which all second releases have, or `v052d_onnone_oact`.

    Raises:
        UsageError: The core is unknown, or a suffix is unknown or out of order.
    """
    rest = forward_type.removesuffix("_no32")  # what it turns off, we never do
    rest, out_activation = _stripped(rest, "_oact")
    rest, no_gate = _stripped(rest, "_noz")
    rest, raw_gate = _stripped(rest, "_nozact")
    suffix = next((suffix for suffix in _NORMS if rest.endswith(suffix)), "")
    core = rest.removesuffix(suffix)
    if core not in _CORES:
        raise UsageError(
            f"`forward_type` `{forward_type}` is not known.",
            f"Expected one of {', '.join(_CORES)}, then of {', '.join(_NORMS)}, _nozact, _noz, "
            f"_oact and _no32 those that apply, in this order.",
        )
    norm = _NORMS[suffix] if suffix else "layer"
    return Mixing(_CORES[core], not no_gate, not raw_gate, norm, out_activation)


def _stripped(name: str, suffix: str) -> tuple[str, bool]:
    return name.removesuffix(suffix), name.endswith(suffix)
