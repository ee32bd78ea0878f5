"""The model's inputs for the photos of one block, clean and transformed, with pixel origins.

The loader and the transforms are those of evaluations. Segmenters accept images of any size; their
view is one window at the centre of the image. Images smaller than it are padded by reflection.
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
from robustcli.adapters.preprocessing import Preprocessing, centre_crop, grey
from robustcli.adapters.segmenter import Segmenter, native_window, padded_to_window
from robustcli.core.errors import RobustError, UsageError
from robustcli.core.watchdog import Watchdog
from robustcli.data.dataset import Sample
from robustcli.data.decode import decode
from robustcli.data.mask_values import is_foreground
from robustcli.data.tables import Column, read_columns
from robustcli.evaluation.loader import Notice, Source, batch_stream
from robustcli.evaluation.plan import Piece, parts_of
from robustcli.explanation.inputs import ExplainInputs, mask_class_number
from robustcli.metrics.explanation_scores import box_region
from robustcli.tasks.base import Batch
from robustcli.transforms.base import Cell, Image
from robustcli.transforms.registry import TransformCell, image_seed

Boxes = Mapping[str, Sequence[tuple[float, float, float, float]]]
"""Left, top, right and bottom edge of each object, in pixels of the image, by image id."""
Places = NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """The readable photos of one block under one cell.

    Args:
        samples: The photos as samples of the data set.
        pixels: Normalised inputs of the network, (N, C, H, W), on the CPU.
        photos: The inputs before normalisation, uint8 (N, H, W, 3).
        masks: For segmenters, the true masks, bool (N, H, W), of the explained class, or of any
            class but background; else None.
    """

    samples: tuple[Sample, ...]
    pixels: Tensor
    photos: NDArray[np.uint8]
    masks: Tensor | None = None


@dataclass(frozen=True)
class BlockViews:
    """All views of one block, and the ids of its unreadable photos with the reasons."""

    number: int
    views: Mapping[Cell, View]
    unreadable: tuple[tuple[str, str], ...]


def block_views(
    inputs: ExplainInputs, model: Classifier | Segmenter, blocks: Mapping[int, Sequence[Sample]],
    workers: int, watchdog: Watchdog, say: Callable[[str], None],
) -> Iterator[BlockViews]:  # fmt: skip
    """Yields the views of each of `blocks` as soon as all views of the block are loaded.

    Args:
        inputs: The inputs of the explanation.
        model: The model, on its device.
        blocks: Photos of each block, by number.
        workers: Number of processes that load images.
        watchdog: Observes these processes.
        say: Receives messages of these processes, e.g. when memory runs out.
    """
    name = model.facts.name
    pieces = []
    for number, samples in blocks.items():
        models, measures = dict.fromkeys(inputs.cells, (name,)), dict.fromkeys(inputs.cells, ())
        pieces.append(Piece(number, tuple(samples), models, measures))
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
                say(batch.text)
            notices.add(batch.text)
            continue
        samples = blocks[batch.block]
        parts = waiting.setdefault(batch.block, {})
        parts.setdefault(batch.cell, []).append(batch)
        if len(parts) == len(inputs.cells) and all(map(_is_whole, parts.values())):
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
    """Whether `parts` contain all images of their block."""
    images = sum(len(part.image_ids) + len(part.unreadable) for part in parts)
    return images == parts[0].block_images


def _view_of_parts(
    model: Classifier | Segmenter, samples: Mapping[str, Sample], parts: Sequence[Batch[Any]],
    mask_class: str | None,
) -> View:  # fmt: skip
    """Concatenates the batches of a block to a view, in the order of its images."""
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
    window = window_size(model)
    shown = [is_foreground(np.asarray(mask)) for mask in made.masks]
    if mask_class is not None:
        number = mask_class_number(mask_class, model.classes)
        shown = [np.asarray(mask) == number for mask in made.masks]
    masks = [
        _cut(padded_to_window(mask[:, :, None], window, by="constant").image[:, :, 0], window)
        for mask in shown
    ]
    return View(
        samples, pixels, np.stack([photo for _, photo in windows]),
        torch.from_numpy(np.stack(masks)),
    )  # fmt: skip


def window_size(segmenter: Segmenter) -> tuple[int, int]:
    """Height and width in pixels of the window on which a segmenter is explained."""
    side = native_window(segmenter.network)
    return segmenter.preprocessing.sides if segmenter.preprocessing.window else (side, side)


def _window(segmenter: Segmenter, image: Image) -> tuple[NDArray[Any], Image]:
    """The window of `image`: preprocessed (h, w, C), and as RGB (h, w, 3)."""
    window = window_size(segmenter)
    prepared: NDArray[Any] = grey(image) if segmenter.preprocessing.channels == "grey" else image
    by = "reflect"
    if segmenter.preprocessing.nnunet is not None:
        prepared, by = segmenter.preprocessing.nnunet.normalised(prepared), "constant"
    framed = padded_to_window(prepared, window, by=by).image  # type: ignore[arg-type]
    return _cut(framed, window), _cut(padded_to_window(image, window).image, window)


def _cut(image: NDArray[Any], window: tuple[int, int]) -> NDArray[Any]:
    """The central window of an image (H, W) or (H, W, C), which is at least as large."""
    height, width = window
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


# Pixel origins: the position in the clean view of each pixel of a transformed view.


@dataclass(frozen=True)
class Geometry:
    """Maps the pixels of an original image to those of the model's view of it.

    Classifiers set `preprocessing`; segmenters set `window`, the height and width of their window.
    """

    preprocessing: Preprocessing | None
    window: tuple[int, int] | None
    at_crop: bool

    def fit(self, places: Places) -> Places:
        """The view of a label image (H, W), without interpolation; 0 outside of the image."""
        if self.window is not None:
            padded = padded_to_window(places[:, :, None], self.window, by="constant")
            return _cut(padded.image[:, :, 0], self.window)
        assert self.preprocessing is not None
        preprocessing = self.preprocessing
        height, width = places.shape
        across, down = preprocessing.resized(width, height)
        return centre_crop(
            places[np.ix_(_nearest(down, height), _nearest(across, width))], preprocessing.crop
        )


def _nearest(size: int, length: int) -> NDArray[np.int64]:
    """Nearest source index in `length` rows for each of `size` rows after a resize."""
    return np.minimum(((np.arange(size) + 0.5) * length / size).astype(np.int64), length - 1)


def geometry_of(model: Classifier | Segmenter, *, at_crop: bool) -> Geometry:
    """The geometry of the view of `model`."""
    if isinstance(model, Classifier):
        return Geometry(model.preprocessing, None, at_crop)
    return Geometry(None, window_size(model), at_crop)


def moved_places(
    sample: Sample, cell: TransformCell, geometry: Geometry, seed: int
) -> Places | None:
    """Flat index in the clean view of each pixel (h, w) of the transformed view.

    -1 for pixels without a counterpart in the clean view. None if the transform moves no pixels, or
    if the origins cannot be determined.
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
    """For each label of `after`, the flat index of the nearest label in `before`, or -1.

    Labels are positive pixel numbers of the original image (H, W) = `size`; 0 is no pixel. `before`
    is not transformed: its rows and columns are in the order of the original image.
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
    """Index of the nearest of the ascending `sources` for each query; -1 beyond their range."""
    indices = np.flatnonzero(inside)
    values = sources[indices]
    step = max(1, int(np.ceil((values[-1] - values[0]) / max(1, len(values) - 1))))
    right = np.clip(np.searchsorted(values, queries), 0, len(values) - 1)
    left = np.maximum(right - 1, 0)
    nearer = np.abs(values[left] - queries) <= np.abs(values[right] - queries)
    best = np.where(nearer, left, right)
    beyond = np.abs(values[best] - queries) > step
    return np.where(beyond, -1, indices[best])


# Object boxes from a file of the user.

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
    """Reads object boxes from the table `path`, one per row; empty if `path` is None.

    Raises:
        UsageError: The table cannot be read, edges are no numbers or in the wrong order, or no box
            belongs to an image in `known`.
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
                f"Row {line} of `{path}` is not a valid box.",
                f"Its edges are {', '.join(texts)}.",
                "Expected left, top, right and bottom in pixels of the image, with left < right "
                "and top < bottom.",
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
    """The region of the clean view (h, w) inside the boxes of a photo; None without boxes."""
    if sample.image_id not in boxes or geometry.preprocessing is None:
        return None
    height, width = decode(sample.image).shape[:2]
    region = np.zeros((height, width), bool)
    for box in boxes[sample.image_id]:
        region |= box_region(box, (height, width))
    return geometry.fit(region.astype(np.int64)) > 0
