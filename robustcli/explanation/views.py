"""The model's inputs for the photos of one block, clean and transformed, with pixel origins.

The loader and the transforms are those of evaluations; of segmenters, whose images have any size,
one window is taken: the centre of the image, continued by reflection where it is smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.adapters.classifier import Classifier
from robustcli.adapters.preprocessing import Preprocessing, grey
from robustcli.adapters.segmenter import Segmenter, native_window, padded_to_window
from robustcli.core.errors import RobustError, UsageError
from robustcli.core.listener import Listener
from robustcli.core.watchdog import Watchdog
from robustcli.data.dataset import Sample
from robustcli.data.decode import decode
from robustcli.data.mask_values import is_foreground
from robustcli.data.tables import Column, read_columns
from robustcli.evaluation.loader import Notice, Source, batch_stream
from robustcli.evaluation.plan import Piece, parts_of
from robustcli.explanation.inputs import ExplainInputs
from robustcli.explanation.photo_choice import mask_class_number
from robustcli.metrics.explanation_scores import box_region
from robustcli.tasks.base import Batch
from robustcli.transforms.base import CLEAN, Cell, Image
from robustcli.transforms.registry import TransformCell, image_seed

Boxes = Mapping[str, Sequence[tuple[float, float, float, float]]]
"""By image id, the left, top, right and bottom edge of each object, in pixels of the image."""
Places = NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """The readable photos of one block under one cell.

    Args:
        samples: Of the photos.
        pixels: (N, C, H, W), normalised, on the CPU.
        photos: uint8 (N, H, W, 3), before normalisation.
        masks: True masks bool (N, H, W), of segmenters: the pixels of any class, or of that which
            is explained.
    """

    samples: tuple[Sample, ...]
    pixels: Tensor
    photos: NDArray[np.uint8]
    masks: Tensor | None = None


@dataclass(frozen=True)
class BlockViews:
    """All views of one block, and its photos that cannot be read, with the reason."""

    number: int
    views: Mapping[Cell, View]
    unreadable: tuple[tuple[str, str], ...]


def block_views(
    inputs: ExplainInputs, model: Classifier | Segmenter,
    blocks: Mapping[int, tuple[Sequence[Sample], Sequence[Cell]]], workers: int,
    watchdog: Watchdog, listener: Listener,
) -> Iterator[BlockViews]:  # fmt: skip
    """The views of `blocks`, each block whole, in the order in which they are ready.

    Args:
        inputs: The explanation.
        model: On its device.
        blocks: By number, the photos and the cells that are needed (the clean one is always made).
        workers: Processes that load images.
        watchdog: Looks at these processes.
        listener: Hears when memory runs out in one of them.
    """
    name = model.facts.name
    pieces = []
    for number, (samples, cells) in blocks.items():
        needed = dict.fromkeys([CLEAN, *cells])
        pieces.append(
            Piece(number, tuple(samples), dict.fromkeys(needed, (name,)), dict.fromkeys(needed, ()))
        )
    if not pieces:
        return
    preparation = inputs.task.preparation({name: model}, inputs.cells, inputs.config)
    size = max(len(piece.images) for piece in pieces)
    source = Source(parts_of(pieces, size), preparation)
    waiting: dict[int, dict[Cell, list[Batch[Any]]]] = {}
    notices = set[str]()
    stream = iter(batch_stream(source, workers, pin=False, watchdog=watchdog))
    watchdog.start()
    for batch in stream:
        if isinstance(batch, RobustError):
            raise batch
        if isinstance(batch, Notice):
            if batch.text not in notices:
                listener.say(batch.text)
            notices.add(batch.text)
            continue
        samples, cells = blocks[batch.block]
        parts = waiting.setdefault(batch.block, {})
        parts.setdefault(batch.cell, []).append(batch)
        if len(parts) == len({CLEAN, *cells}) and all(map(_is_whole, parts.values())):
            del waiting[batch.block]
            by_id = {sample.image_id: sample for sample in samples}
            unreadable = tuple(pair for part in parts[batch.cell] for pair in part.unreadable)
            yield BlockViews(
                batch.block,
                {
                    cell: _view_of_parts(model, by_id, of_cell, inputs.config.mask_class)
                    for cell, of_cell in parts.items()
                },
                unreadable,
            )


def _is_whole(parts: Sequence[Batch[Any]]) -> bool:
    """Whether `parts` are all images of their block."""
    images = sum(len(part.image_ids) + len(part.unreadable) for part in parts)
    return images == parts[0].block_images


def _view_of_parts(
    model: Classifier | Segmenter, samples: Mapping[str, Sample], parts: Sequence[Batch[Any]],
    mask_class: str | None,
) -> View:  # fmt: skip
    """The view of a block that came in `parts`, in the order of its images."""
    views = [
        _view(model, tuple(samples[name] for name in part.image_ids), part.inputs, mask_class)
        for part in sorted(parts, key=lambda part: part.first)
    ]
    views = [view for view in views if view.samples] or views[:1]
    masks = [view.masks for view in views if view.masks is not None]
    return View(
        tuple(sample for view in views for sample in view.samples),
        torch.cat([view.pixels for view in views]),
        np.concatenate([view.photos for view in views]),
        torch.cat(masks) if masks else None,
    )


def _view(
    model: Classifier | Segmenter, samples: tuple[Sample, ...], made: Any, mask_class: str | None
) -> View:
    if isinstance(model, Classifier):
        preprocessing = model.preprocessing
        views: Tensor = made.views[preprocessing.view]
        with torch.no_grad():
            pixels = model.normalised(views.to(model.device)).cpu()
        photos = views.expand(-1, 3, -1, -1) if views.shape[1] == 1 else views
        return View(samples, pixels, np.ascontiguousarray(photos.permute(0, 2, 3, 1).numpy()))
    if not samples:
        empty = np.zeros((0, 1, 1, 3), np.uint8)
        return View(samples, torch.zeros(0, 3, 1, 1), empty, torch.zeros(0, 1, 1).bool())
    windows = [_window(model, image) for image in made.images]
    stacked = np.stack([prepared for prepared, _ in windows]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        pixels = model.normalised(torch.from_numpy(stacked.copy()).to(model.device)).cpu()
    side = window_side(model)
    shown = [is_foreground(np.asarray(mask)) for mask in made.masks]
    if mask_class is not None:
        number = mask_class_number(mask_class, model.classes)
        shown = [np.asarray(mask) == number for mask in made.masks]
    masks = [_cut(_padded_mask(mask, side), side) for mask in shown]
    return View(
        samples, pixels, np.stack([photo for _, photo in windows]),
        torch.from_numpy(np.stack(masks)),
    )  # fmt: skip


def window_side(segmenter: Segmenter) -> int:
    """Side in pixels of the window that a segmenter is explained on."""
    return segmenter.preprocessing.window or native_window(segmenter.network)


def _window(segmenter: Segmenter, image: Image) -> tuple[NDArray[Any], Image]:
    """The window of `image` as the network reads it (h, w, C), and as people see it."""
    side = window_side(segmenter)
    prepared: NDArray[Any] = grey(image) if segmenter.preprocessing.channels == "grey" else image
    by = "reflect"
    if segmenter.preprocessing.nnunet is not None:
        prepared, by = segmenter.preprocessing.nnunet.normalised(prepared), "constant"
    framed = padded_to_window(prepared, side, by=by).image  # type: ignore[arg-type]
    return _cut(framed, side), _cut(padded_to_window(image, side).image, side)


def _padded_mask(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    return padded_to_window(mask[:, :, None], side, by="constant").image[:, :, 0]


def _cut(image: NDArray[Any], side: int) -> NDArray[Any]:
    """The central square of an image (H, W) or (H, W, C) with sides of at least `side`."""
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


# Where a transform moves what was at a place of the clean photo.


@dataclass(frozen=True)
class Geometry:
    """From the pixels of an original image to those of the model's view of it.

    `preprocessing` is a classifier's, `side` a segmenter's window; the other one is None.
    """

    preprocessing: Preprocessing | None
    side: int | None
    at_crop: bool

    def fit(self, places: Places) -> Places:
        """What is seen of a picture of places (H, W), without mixing any; 0 beside the picture."""
        if self.side is not None:
            padding = padded_to_window(places[:, :, None], self.side, by="constant").image[:, :, 0]
            return _cut(padding, self.side)
        assert self.preprocessing is not None
        preprocessing = self.preprocessing
        height, width = places.shape
        across, down = preprocessing.resized(width, height)
        return _centred(
            places[np.ix_(_nearest(down, height), _nearest(across, width))], preprocessing.crop
        )


def _nearest(size: int, length: int) -> NDArray[np.int64]:
    """For each of `size` rows after a resize the one of `length` that it comes from."""
    return np.minimum(((np.arange(size) + 0.5) * length / size).astype(np.int64), length - 1)


def _centred(places: Places, side: int) -> Places:
    height, width = places.shape
    down, across = max(0, side - height), max(0, side - width)
    pads = [(down // 2, down - down // 2), (across // 2, across - across // 2)]
    places = np.pad(places, pads)
    height, width = places.shape
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return np.ascontiguousarray(places[top : top + side, left : left + side])


def geometry_of(model: Classifier | Segmenter, *, at_crop: bool) -> Geometry:
    """The geometry of what `model` sees."""
    if isinstance(model, Classifier):
        return Geometry(model.preprocessing, None, at_crop)
    return Geometry(None, window_side(model), at_crop)


def moved_places(
    sample: Sample, cell: TransformCell, geometry: Geometry, seed: int
) -> Places | None:
    """Where each pixel (h, w) of the transformed view was in the clean one, as its flat index.

    -1 where it shows what the clean view does not, or nothing. None where the transform moves no
    pixels, or its movement cannot be had.
    """
    transform = cell.transform
    if not transform.geometric or transform.replaces:
        return None
    image = decode(sample.image)
    if geometry.at_crop and geometry.preprocessing is not None:
        image = geometry.preprocessing.apply(image)
    height, width = image.shape[:2]
    labels = np.arange(1, height * width + 1, dtype=np.int32).reshape(height, width)
    drawn = image_seed(seed, transform.name, cell.severity, sample.image_id)
    try:
        _, moved = transform.apply_with_mask(image, labels, seed=drawn, severity=cell.severity)
    except RobustError:
        return None
    fit = (lambda places: places) if geometry.at_crop else geometry.fit
    before, after = fit(labels.astype(np.int64)), fit(moved.astype(np.int64))
    return _matched(before, after, (height, width))


def _matched(before: Places, after: Places, size: tuple[int, int]) -> Places:
    """For each place of `after` the nearest pixel of `before` that shows it.

    `before` is an untransformed picture: its rows and columns follow those of the original.
    """
    width = size[1]
    rows, columns = (before.max(1) - 1) // width, (before.max(0) - 1) % width
    inside_rows, inside_columns = before.max(1) > 0, before.max(0) > 0
    wanted_rows, wanted_columns = (after - 1) // width, (after - 1) % width
    row = _nearest_index(rows, inside_rows, wanted_rows)
    column = _nearest_index(columns, inside_columns, wanted_columns)
    matches = row * before.shape[1] + column
    return np.where((after > 0) & (row >= 0) & (column >= 0), matches, -1)


def _nearest_index(sources: Places, inside: NDArray[np.bool_], queries: Places) -> Places:
    """For each of `wanted` the index in the rising `known` that is nearest; -1 beyond its ends."""
    indices = np.flatnonzero(inside)
    values = sources[indices]
    step = max(1, int(np.ceil((values[-1] - values[0]) / max(1, len(values) - 1))))
    right = np.clip(np.searchsorted(values, queries), 0, len(values) - 1)
    left = np.maximum(right - 1, 0)
    nearer = np.abs(values[left] - queries) <= np.abs(values[right] - queries)
    best = np.where(nearer, left, right)
    beyond = np.abs(values[best] - queries) > step
    return np.where(beyond, -1, indices[best])


# Where objects are, as a user's file says.

_EDGES = ("left", "top", "right", "bottom")
_COLUMNS = (
    Column("image-id", ("image", "id")),
    *(
        Column(name, aliases)
        for name, aliases in zip(
            _EDGES, (("xmin", "x1"), ("ymin", "y1"), ("xmax", "x2"), ("ymax", "y2")), strict=True
        )
    ),
)


def read_boxes(path: Path | None, known: Collection[str], say: Callable[[str], None]) -> Boxes:
    """The boxes in the table `path`, a line each; none without a file.

    Raises:
        UsageError: It cannot be read, an edge is no number or behind the other, or no box is of a
            known image.
    """
    if path is None:
        return {}
    columns = read_columns(path, _COLUMNS, say=say)
    boxes: dict[str, list[tuple[float, float, float, float]]] = {}
    edges = zip(*(columns[name] for name in _EDGES), strict=True)
    for line, (name, texts) in enumerate(zip(columns["image-id"], edges, strict=True), 1):
        try:
            left, top, right, bottom = map(float, texts)
        except ValueError:
            left = right = top = bottom = float("nan")
        if not (left < right and top < bottom):
            raise UsageError(
                f"Row {line} of `{path}` is no box.",
                f"Its edges are {', '.join(texts)}.",
                "Give left, top, right and bottom in pixels of the image, left before right and "
                "top before bottom.",
            )
        boxes.setdefault(name, []).append((left, top, right, bottom))
    if not any(name in known for name in boxes):
        raise UsageError(
            f"`--boxes {path}` has no box of these images.",
            f"Its first image is `{next(iter(boxes), 'none')}`, the data has "
            f"`{next(iter(known), 'none')}`.",
            "The id of an image is its path inside the data set.",
        )
    return boxes


def boxed_region(sample: Sample, boxes: Boxes, geometry: Geometry) -> NDArray[np.bool_] | None:
    """What the boxes of a photo cover in its clean view (h, w); None for a photo without."""
    if sample.image_id not in boxes or geometry.preprocessing is None:
        return None
    height, width = decode(sample.image).shape[:2]
    region = np.zeros((height, width), bool)
    for box in boxes[sample.image_id]:
        region |= box_region(box, (height, width))
    return geometry.fit(region.astype(np.int64)) > 0
