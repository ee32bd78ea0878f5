"""The evaluation of segmenters: prepares images and masks, and rows from predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.memory import Announce
from robustcli.adapters.segmenter import Pixels, Segmenter
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.core.names import TaskName
from robustcli.core.silence import silenced
from robustcli.core.watchdog import working_on
from robustcli.data.dataset import Sample, UnreadableImage
from robustcli.data.mask_values import IGNORED, UNSCORED, is_unscored
from robustcli.data.masks import decode_pair
from robustcli.data.named_datasets import SEGMENTATION
from robustcli.data.sources import Masks, open_dataset
from robustcli.metrics.columns import mask_schema
from robustcli.metrics.mask_scores import MOST_CONFUSED, BoolMask, near_counts
from robustcli.tasks.base import (
    ORIGINAL,
    Batch,
    ConfigT,
    Data,
    FinishedRows,
    Forward,
    Preparation,
    Prepared,
    Row,
    Task,
    TaskConfig,
    announce_default,
    facts_record,
    measure,
    pool_of,
    select_subset,
)
from robustcli.tasks.heldout import (
    choose_part,
    in_flags,
    trainings_of,
    with_data_of_trainings,
)
from robustcli.tasks.pictures import SamplePicture, first_pair, update_panels, write_masks
from robustcli.tasks.record import (
    DatasetRecord,
    MaskPreprocessingRecord,
    ModelCost,
    ModelRecord,
    dataset_record,
)
from robustcli.transforms.base import Cell
from robustcli.transforms.registry import TransformCell, image_seed

PERCENTILE = 95
BOUNDARY_TOLERANCE = 2.0  # pixels


@dataclass(frozen=True)
class SurfaceDistance:
    """The distances of two outlines: pixels with a 4-neighbour outside the mask or image.

    Args:
        hd95: 95th percentile of the distances to the other outline in pixels, the larger of both
            directions.
        boundary_dice: Share of the pixels of both outlines within BOUNDARY_TOLERANCE of the other
            outline.

    Source: MONAI, `compute_hausdorff_distance` and `compute_surface_dice`.
    """

    hd95: float
    boundary_dice: float


def surface_distance(prediction: BoolMask, truth: BoolMask) -> SurfaceDistance | None:
    """The surface distances of two masks (H, W); None if one is empty (MONAI: infinity or NaN)."""
    if not (prediction.any() and truth.any()):
        return None
    box = _box(prediction | truth)
    directions = _distances(prediction[box], truth[box])
    hd95 = max(float(torch.quantile(direction, PERCENTILE / 100)) for direction in directions)
    near_count = sum(int((direction <= BOUNDARY_TOLERANCE).sum()) for direction in directions)
    return SurfaceDistance(hd95, near_count / sum(map(len, directions)))


def _distances(mask: BoolMask, other_mask: BoolMask) -> tuple[Tensor, ...]:
    """The distances in pixels from each outline pixel to the other outline, in both directions.

    Both scores use them; calling MONAI's two functions would compute them twice.
    """
    from monai.metrics.utils import get_edge_surface_distance

    first, second = torch.from_numpy(mask.copy()), torch.from_numpy(other_mask.copy())
    # MONAI 1.5 and 1.6 warn about `always_return_as_numpy`, which their own code passes.
    with silenced("monai.utils.deprecate_utils"):
        _, distances, _ = get_edge_surface_distance(first, second, symmetric=True)
    return distances


def _box(mask: BoolMask) -> tuple[slice, slice]:
    """The bounding box of the mask; cropping to it makes distances cheaper without changing them.

    Next to the box is background or the image border, which MONAI both treats as outside.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


MaskOrIgnore = NDArray[Any]  # (H, W): bool, or uint8 with pixels to ignore, see `masks.decode_mask`


@dataclass(frozen=True)
class MaskedImages:
    """Images of any sizes, their groups, and their true masks at the sizes of the images."""

    groups: list[str]
    images: list[Pixels]
    masks: list[MaskOrIgnore]


@dataclass(frozen=True)
class PairPreparation(Preparation[tuple[Pixels, MaskOrIgnore], MaskedImages]):
    """Transforms images at their original size, together with their masks.

    A geometric transform is applied to the mask with the same parameters (nearest neighbour), also
    if it changes the size. Regions outside the original image, such as the corners after a
    rotation, are background in the mask, so foreground that a model predicts there is a false
    positive. Other transforms do not change the mask.
    """

    transforms: Mapping[Cell, TransformCell]
    seed: int

    def decode(self, item: Sample) -> tuple[Pixels, MaskOrIgnore]:
        """See `masks.decode_pair`; a pair without a pixel to score is unreadable too.

        Its empty row would count as dice 1.
        """
        image, mask = decode_pair(item)
        if is_unscored(mask):
            raise UnreadableImage(UNSCORED)
        return image, mask

    def prepare(
        self,
        items: Sequence[Sample],
        decoded: Sequence[tuple[Pixels, MaskOrIgnore]],
        *,
        models: Mapping[Cell, Sequence[str]],
        views: Mapping[Cell, Sequence[str]],
    ) -> Iterator[Prepared[MaskedImages]]:
        """Yields the transformed pairs, cell by cell."""
        groups, clean = [item.group for item in items], [image for image, _ in decoded]
        for cell in models:
            moved = [self._move(cell, *pair) for pair in zip(items, decoded, strict=True)]
            images, masks = [image for image, _ in moved], [mask for _, mask in moved]
            measures = {v: list(map(measure, clean, images)) for v in views[cell]}
            yield Prepared(cell, MaskedImages(groups, images, masks), measures)

    def _move(
        self, cell: Cell, item: Sample, decoded: tuple[Pixels, MaskOrIgnore]
    ) -> tuple[Pixels, MaskOrIgnore]:
        seed = image_seed(self.seed, cell.transform, cell.severity, item.image_id)
        transform = self.transforms[cell].transform
        with working_on(f"applying `{cell.transform}` to `{item.image_id}`"):
            return transform.apply_with_mask(*decoded, seed=seed, severity=cell.severity)


class MaskRows:
    """Predicts batches of masked images with a segmenter.

    Args:
        segmenter: A segmenter that predicts the classes of the masks.
        tolerance: Tolerance of the data in pixels; None without one.
        classes: Number of classes without background; 0 for foreground and background.
        announce: Receives a line if memory runs out.
    """

    def __init__(
        self, segmenter: Segmenter, tolerance: int | None = None, classes: int = 0,
        announce: Announce | None = None,
    ) -> None:  # fmt: skip
        self.tolerance, self.classes = tolerance, classes
        self.forward = Forward(segmenter, announce=announce)

    @property
    def cost(self) -> ModelCost:
        """The cost of the forward passes, without the comparison of masks."""
        return self.forward.cost

    def rows(self, batch: Batch[MaskedImages]) -> list[Row]:
        """One row per image (columns: `mask_schema`)."""
        inputs, tolerance, classes = batch.inputs, self.tolerance, self.classes
        masks = [mask for piece in self.forward(inputs.images) for mask in piece]
        images = zip(batch.image_ids, inputs.groups, masks, inputs.masks, strict=True)
        return [
            {"image_id": image_id, "group": group, **mask_row(mask, truth, tolerance, classes)}
            for image_id, group, mask, truth in images
        ]


def mask_row(
    prediction: MaskOrIgnore, truth: MaskOrIgnore, tolerance: int | None = None, classes: int = 0
) -> Row:
    """The columns of a row for a predicted and a true mask, both (H, W).

    Args:
        prediction: The predicted mask: bool, or with `classes` uint8 with values from 0 to K.
        truth: The true mask: bool, or uint8 with 0, 1 (with `classes` 0 to K) and IGNORED. Ignored
            pixels are neither counted nor part of outlines.
        tolerance: Tolerance in pixels for the counts of relaxed scores; None omits these counts.
        classes: Number of classes without background, K; 0 for foreground and background.
    """
    counted = np.ones(truth.shape, bool) if truth.dtype == bool else truth != IGNORED
    if classes:
        predicted_classes, true_classes = prediction * counted, truth * counted
        of_classes = _class_columns(predicted_classes, true_classes, counted, classes)
        row = _two_valued_row(predicted_classes > 0, true_classes > 0, counted, tolerance)
        return row | of_classes
    return _two_valued_row(prediction & counted, truth == 1, counted, tolerance)


def _two_valued_row(
    prediction: BoolMask, truth: BoolMask, counted: BoolMask, tolerance: int | None
) -> Row:
    outlines = surface_distance(prediction, truth)
    row: Row = {
        "tp": int(np.count_nonzero(prediction & truth)),
        "fp": int(np.count_nonzero(prediction & ~truth)),
        "fn": int(np.count_nonzero(~prediction & truth)),
        "tn": int(np.count_nonzero(~prediction & ~truth & counted)),
        "hd95": None if outlines is None else outlines.hd95,
        "boundary_dice": None if outlines is None else outlines.boundary_dice,
    }
    return row if tolerance is None else row | near_counts(prediction, truth, tolerance)


def _class_columns(
    prediction: NDArray[Any], truth: NDArray[Any], counted: BoolMask, classes: int
) -> Row:
    """The values of `CLASS_COLUMNS`; the masks must be 0 at pixels that are not counted."""
    side = classes + 1
    cells = truth[counted].astype(np.int64) * side + prediction[counted]
    confusion = np.bincount(cells, minlength=side**2).reshape(side, side)
    hits = confusion.diagonal()
    outlines = [surface_distance(prediction == n, truth == n) for n in range(1, side)]
    return {
        "class_tp": hits[1:].tolist(),
        "class_fp": (confusion.sum(0) - hits)[1:].tolist(),
        "class_fn": (confusion.sum(1) - hits)[1:].tolist(),
        "class_hd95": [None if o is None else o.hd95 for o in outlines],
        "class_boundary_dice": [None if o is None else o.boundary_dice for o in outlines],
        "class_confusion": confusion.ravel().tolist() if classes <= MOST_CONFUSED else None,
    }


class SegmentationTask(Task[Segmenter]):
    """Segmentation: foreground or background for each pixel, or one of several classes.

    `classes` are the class names of the opened data; empty for foreground and background.
    """

    def __init__(self) -> None:
        self.classes: tuple[str, ...] = ()

    name: ClassVar[TaskName] = "seg"
    batch_sizes: ClassVar[Mapping[str, int]] = {"cuda": 32, "mps": 16, "cpu": 8}

    def check(self, config: TaskConfig) -> None:
        """See `Task.check`."""
        for what, why, todo in _meaningless(config):
            raise UsageError(f"`{what}` cannot be used with segmenters.", why, todo)

    def with_defaults(self, config: ConfigT, listener: Listener) -> ConfigT:
        """Uses the data of the models' training, and for its images also its mask values.

        Each only applies if the user does not set it, and the mask values only to the images of the
        training: in other data, the same value may have another meaning.
        """
        config = with_data_of_trainings(config, SEGMENTATION, listener, masks=True)
        if (config.foreground, config.ignore, config.mask_classes) != (None, None, None):
            return config
        trainings = [training for training in trainings_of(config) if training.mask_values]
        if not trainings:
            return config
        masks = Masks(surveyed=False, offline=config.offline)
        dataset = config.dataset or open_dataset(config.data, masks)
        by_flags = {
            in_flags(training.mask_values): training
            for training in trainings
            if training.mask_values is not None and training.overlaps(dataset)
        }
        if not by_flags:
            return config
        if len(by_flags) > 1:
            (first, training), (second, other_training) = list(by_flags.items())[:2]
            raise UsageError(
                f"`{training.model}` and `{other_training.model}` read the masks of this data "
                "differently.",
                f"They were trained with `{first}` and `{second}`.",
                "Specify how to read them with `--foreground`, `--ignore` or `--classes`.",
            )
        ((flags, training),) = by_flags.items()
        assert training.mask_values is not None, "they were selected by this condition"
        listener.say(f"Masks are read as in the training of `{training.model}`: `{flags}`.")
        foreground, ignore, classes = training.mask_values
        return replace(config, foreground=foreground, ignore=ignore, mask_classes=classes)

    def open(self, config: TaskConfig, listener: Listener) -> Data:
        """See `Task.open`; images that a model was trained on are excluded."""
        masks = Masks(config.foreground, config.ignore, config.mask_classes, offline=config.offline)
        opened = config.dataset or open_dataset(config.data, masks)
        for note in opened.notes:
            listener.say(note)
        announce_default(opened, config.data, listener)
        part = choose_part(opened, config.split, trainings_of(config), listener)
        dataset = select_subset(part.dataset, config)
        record, pool = dataset_record(dataset), pool_of(part.dataset)
        self.classes = dataset.mask_classes
        return Data(dataset.samples, record, pool, dataset.grouping, part.split)

    def load(self, request: ModelRequest, *, seed: int, offline: bool) -> Segmenter:
        """See `Task.load`; the segmenter predicts the classes of the data."""
        segmenter = load(request, "seg", seed=seed, offline=offline)
        return segmenter.for_classes(self.classes)

    def trial_model(self, request: ModelRequest) -> Segmenter:
        """The requested model, because loading a segmenter needs no download."""
        return load(request, "seg", offline=True).for_classes(self.classes)

    def model_record(self, model: Segmenter, config: TaskConfig) -> ModelRecord:
        """See `Task.model_record`."""
        return ModelRecord(
            **facts_record(model.facts, model.device),
            preprocessing=MaskPreprocessingRecord(**asdict(model.preprocessing)),
            view=ORIGINAL,
            notes=list(model.notes),
        )

    def preparation(
        self,
        models: Mapping[str, Segmenter],
        cells: Mapping[Cell, TransformCell],
        config: TaskConfig,
    ) -> PairPreparation:
        """See `Task.preparation`; all segmenters get the same pixels."""
        return PairPreparation(cells, config.seed)

    def schema(self, dataset: DatasetRecord) -> pa.Schema:
        """See `Task.schema`."""
        return mask_schema(dataset.tolerance, len(dataset.mask_classes))

    def predictor(
        self, model: Segmenter, dataset: DatasetRecord, announce: Announce | None = None
    ) -> MaskRows:
        """See `Task.predictor`."""
        names = dataset.mask_classes
        return MaskRows(model.for_classes(names), dataset.tolerance, len(names), announce=announce)

    def sample(
        self, items: Sequence[Sample], models: Mapping[str, Segmenter], config: TaskConfig
    ) -> SamplePicture | None:
        """The first image with foreground, whose outline is drawn on every picture."""
        return first_pair(items)

    def finish(self, finished: FinishedRows[Segmenter]) -> None:
        """Draws the best, median and worst cases of each model, and its masks for the samples."""
        run, items, models = finished.run, finished.data.items, finished.models
        update_panels(run, items, models, finished.clean_rows)
        write_masks(run, finished.cells, finished.seed, items, models)


def _meaningless(config: TaskConfig) -> Iterator[tuple[str, str, str]]:
    """Yields the settings that do not apply to segmenters: setting, reason, advice."""
    if config.per_class is not None:
        yield (
            f"--per-class {config.per_class}",
            "Their images have masks, not classes.",
            "Use `--limit`, which draws from all groups of the data.",
        )
    if config.apply_at == "crop":
        yield (
            "--apply-at crop",
            "They process the complete image at its original size, so that no crop exists.",
            "Omit it: transforms are applied to the decoded image.",
        )
    if config.answers != "auto":
        yield (
            f"--answers {config.answers}",
            "They predict foreground and background.",
            "Omit it.",
        )
    if config.label_space is not None or config.labels is not None:
        yield (
            "--label-space" if config.labels is None else "--labels",
            "They predict foreground and background as defined by the masks of the data.",
            "Omit it.",
        )
