"""A classifier's inputs: images transformed, then resized and cropped as each model does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import RunError
from robustcli.data.decode import decode
from robustcli.data.index import ImageRef
from robustcli.evaluation.loader import ORIGINAL, Preparation, Prepared
from robustcli.evaluation.measures import measure
from robustcli.evaluation.plan import Piece
from robustcli.evaluation.store import Cell
from robustcli.transforms.registry import TransformCell, image_seed

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Views:
    """True classes, and per view uint8 (n, channels, crop, crop)."""

    targets: list[int]
    views: dict[str, Tensor]


@dataclass(frozen=True)
class ViewPreparation(Preparation[ImageRef, Pixels, Views]):
    """Images to views.

    Args:
        transforms: By cell.
        preprocessing: By the name of its view.
        model_views: The view of each model.
        seed: The run's.
        at_crop: Whether transforms act on the views instead of the decoded image.
    """

    transforms: Mapping[Cell, TransformCell]
    preprocessing: Mapping[str, Preprocessing]
    model_views: Mapping[str, str]
    seed: int
    at_crop: bool

    def decode(self, item: ImageRef) -> Pixels:
        """The pixels of the image, (H, W, 3)."""
        return decode(item)

    def prepare(
        self, items: Sequence[ImageRef], decoded: Sequence[Pixels], piece: Piece
    ) -> Iterator[Prepared[Views]]:
        """The views of the models that lack rows, and the measures of the views that lack them."""
        ids, targets = [item.image_id for item in items], [item.target for item in items]
        clean = {ORIGINAL: list(decoded)}
        if self.at_crop:
            clean = {v: self._fit_all(v, clean[ORIGINAL]) for v in self.preprocessing}
        for cell in piece.cells:
            views = {self.model_views[model] for model in piece.models[cell]}
            bases = views | set(piece.inputs[cell]) if self.at_crop else {ORIGINAL}
            made = {v: self._apply_all(cell, ids, clean[v]) for v in bases}
            seen = made if self.at_crop else {v: self._fit_all(v, made[ORIGINAL]) for v in views}
            measures = {v: list(map(measure, clean[v], made[v])) for v in piece.inputs[cell]}
            stacked = {v: _stack(seen[v], self.preprocessing[v]) for v in views}
            yield Prepared(cell, Views(targets, stacked), measures)

    def _apply_all(self, cell: Cell, ids: list[str], images: list[Pixels]) -> list[Pixels]:
        made = [self._apply(cell, name, image) for name, image in zip(ids, images, strict=True)]
        for before, after in zip(images, made, strict=True):
            if self.at_crop and before.shape != after.shape:
                raise RunError(
                    f"`{cell.transform}` changed the size of a crop.",
                    f"It made {after.shape[:2]} of {before.shape[:2]} pixels.",
                    "With `--apply-at crop` it must keep the size; use `--apply-at original`.",
                )
        return made

    def _apply(self, cell: Cell, image_id: str, pixels: Pixels) -> Pixels:
        seed = image_seed(self.seed, cell.transform, cell.severity, image_id)
        transform = self.transforms[cell].transform
        return transform.apply(pixels, seed=seed, severity=cell.severity)

    def _fit_all(self, view: str, images: list[Pixels]) -> list[Pixels]:
        return [self.preprocessing[view].apply(image) for image in images]


def _stack(images: list[Pixels], own: Preprocessing) -> Tensor:
    """(n, channels, crop, crop) uint8; the copy also puts the channels first."""
    stacked = np.empty((len(images), own.channels, own.crop, own.crop), np.uint8)
    for place, image in enumerate(images):
        stacked[place] = own.coloured(image).transpose(2, 0, 1)
    return torch.from_numpy(stacked)
