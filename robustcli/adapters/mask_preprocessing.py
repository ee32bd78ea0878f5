"""How an image becomes a segmenter's input, and a probability a mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from robustcli.adapters.nnunet_inference import NnUNetInference
from robustcli.core.errors import UsageError


@dataclass(frozen=True)
class MaskPreprocessing:
    """Values are scaled to [0, 1], with no mean to remove, where `nnunet` does not say otherwise.

    Args:
        window: Side in pixels of what the network sees at once. A smaller image is padded, a larger
            one is covered by overlapping windows. 0: every image as a whole.
        channels: Order of the channels in the network's input; `grey` is their luma alone.
        threshold: Probability from which a pixel is foreground, in [0, 1].
        overlap: Share of a window's side that the next one covers again, in [0, 1).
        nnunet: Of a network trained nnU-Net's way: how it predicts.
    """

    window: int
    channels: Literal["rgb", "bgr", "grey"] = "rgb"
    threshold: float = 0.5
    overlap: float = 0.5
    nnunet: NnUNetInference | None = None

    def __post_init__(self) -> None:
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 0:
            raise UsageError(f"`window={self.window}` is no number of pixels.")
        if self.channels not in ("rgb", "bgr", "grey"):
            raise UsageError(
                f"`channels={self.channels}` is unknown.", "It is `rgb`, `bgr` or `grey`."
            )
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"`threshold={self.threshold}` is no probability.")
        if not 0 <= self.overlap < 1:
            raise UsageError(
                f"`overlap={self.overlap}` is out of range.", "It is at least 0 and below 1."
            )

    @property
    def view(self) -> str:
        """A name for the geometry alone: every segmenter gets the image's own pixels."""
        return "as-is"

    def changed(self, changes: Mapping[str, Any]) -> MaskPreprocessing:
        """This, with some of its fields replaced.

        Raises:
            UsageError: A field is unknown or a value out of range.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise UsageError(
                    f"A segmenter's preprocessing has no `{name}`.",
                    f"It has {', '.join(f'`{field}`' for field in known)}: images keep their size.",
                )
        return replace(self, **changes)
