"""A segmenter's inputs: images transformed at their own size, their masks moved along.

A geometric transform moves the mask with the image's own parameters (nearest neighbour). What it
brings into view from outside the image (the corners of a rotation) is background in the mask, so
those pixels count: a model that sees foreground in them is wrong. The other transforms leave the
mask as it is. Where a transform changes the size of the image, the mask changes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcli.data.masks import decode_pair
from robustcli.data.pairs import PairRef
from robustcli.evaluation.loader import Preparation, Prepared
from robustcli.evaluation.measures import measure
from robustcli.evaluation.plan import Piece
from robustcli.evaluation.store import Cell
from robustcli.transforms.registry import TransformCell, image_seed

Pixels = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[Any]  # (H, W): bool, or uint8 with pixels to ignore, see `masks.decode_mask`


@dataclass(frozen=True)
class MaskedImages:
    """Images of any sizes, the true mask of each at its size, and the group it belongs to."""

    groups: list[str]
    images: list[Pixels]
    masks: list[Mask]


@dataclass(frozen=True)
class PairPreparation(Preparation[PairRef, tuple[Pixels, Mask], MaskedImages]):
    """Pairs to masked images.

    Args:
        transforms: By cell.
        seed: The run's.
    """

    transforms: Mapping[Cell, TransformCell]
    seed: int

    def decode(self, item: PairRef) -> tuple[Pixels, Mask]:
        """The pixels of the image and its mask.

        Raises:
            UnreadableImage: One of the two cannot be decoded.
            UsageError: The two do not fit, or the mask has more than two values.
        """
        return decode_pair(item)

    def prepare(
        self, items: Sequence[PairRef], decoded: Sequence[tuple[Pixels, Mask]], piece: Piece
    ) -> Iterator[Prepared[MaskedImages]]:
        """The transformed pairs, cell by cell."""
        groups, clean = [item.group for item in items], [image for image, _ in decoded]
        for cell in piece.cells:
            made = [self._move(cell, *pair) for pair in zip(items, decoded, strict=True)]
            images, masks = [image for image, _ in made], [mask for _, mask in made]
            measures = {v: list(map(measure, clean, images)) for v in piece.inputs[cell]}
            yield Prepared(cell, MaskedImages(groups, images, masks), measures)

    def _move(self, cell: Cell, item: PairRef, decoded: tuple[Pixels, Mask]) -> tuple[Pixels, Mask]:
        seed = image_seed(self.seed, cell.transform, cell.severity, item.image_id)
        transform = self.transforms[cell].transform
        return transform.apply_with_mask(*decoded, seed=seed, severity=cell.severity)
