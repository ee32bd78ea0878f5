"""The clean image, evaluated beside every other transform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robustcli.transforms.base import Image, Transform


@dataclass(frozen=True, kw_only=True)
class Identity(Transform):
    """The same pixels."""

    def _parameters(self, severity: int) -> dict[str, Any]:
        return {}

    def _changed(self, image: Image, *, seed: int, severity: int) -> Image:
        return image.copy()


IDENTITY = Identity(name="identity", family="identity", summary="The image as it is (clean)")
