"""Input sizes that a network can take."""

from __future__ import annotations

from torch import Tensor

from robustcli.core.errors import UsageError


def check_multiple(x: Tensor, step: tuple[int, int], *, model: str) -> None:
    """Raises UsageError unless height and width of `x` (B, C, H, W) are multiples of `step`."""
    height, width = x.shape[-2:]
    if height % step[0] or width % step[1]:
        needed = f"{step[0]}" if step[0] == step[1] else f"{step[0]} and {step[1]}"
        raise UsageError(
            f"The input is {height} x {width} pixels; `{model}` cannot take that.",
            f"Height and width must be multiples of {needed}: the halvings are undone exactly.",
            "Resize or pad the images.",
        )
