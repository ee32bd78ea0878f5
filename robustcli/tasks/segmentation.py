"""The evaluation of segmenters: how images and masks become inputs, and answers become rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.segmenter import Segmenter
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener
from robustcli.core.names import TaskName
from robustcli.core.silence import silenced
from robustcli.data.dataset import Sample
from robustcli.data.mask_values import IGNORED
from robustcli.data.masks import decode_pair
from robustcli.data.sources import Masks, open_dataset
from robustcli.metrics.columns import mask_schema
from robustcli.metrics.mask_scores import Mask, near_counts
from robustcli.tasks.base import (
    ORIGINAL,
    Batch,
    ConfigT,
    Data,
    Preparation,
    Prepared,
    Row,
    Task,
    facts_record,
    measure,
    pool_of,
    taken,
)
from robustcli.tasks.config import TaskConfig
from robustcli.tasks.forward import Forward
from robustcli.tasks.heldout import choose_part, in_flags, trainings_of
from robustcli.tasks.pictures import Pixels, SamplePicture, first_pair, update_panels, write_masks
from robustcli.tasks.record import (
    DatasetRecord,
    MaskPreprocessingRecord,
    ModelCost,
    ModelRecord,
    pairs_record,
)
from robustcli.transforms.base import Cell
from robustcli.transforms.registry import TransformCell, image_seed

# How far the outlines of two masks lie apart: 95 % Hausdorff distance and surface dice.
#
# Source: MONAI, `compute_hausdorff_distance` and `compute_surface_dice`: an outline are the pixels
# of a mask with a neighbour (of four) outside it or outside the image.


PERCENTILE = 95
BOUNDARY_TOLERANCE = 2.0  # pixels


@dataclass(frozen=True)
class SurfaceDistance:
    """The two outlines against each other.

    Args:
        hd95: The larger of the two 95th percentiles of the distances from one to the other, pixels.
        boundary_dice: Share of both outlines that lies within BOUNDARY_TOLERANCE of the other.
    """

    hd95: float
    boundary_dice: float


def surface_distance(prediction: Mask, truth: Mask) -> SurfaceDistance | None:
    """The distance of two masks (H, W); None where one has no pixel, and so no outline.

    MONAI would give infinity or NaN then, with a warning.
    """
    if not (prediction.any() and truth.any()):
        return None
    box = _box(prediction | truth)
    both = _distances(prediction[box], truth[box])
    hd95 = max(float(torch.quantile(one, PERCENTILE / 100)) for one in both)
    near = sum(int((one <= BOUNDARY_TOLERANCE).sum()) for one in both)
    return SurfaceDistance(hd95, near / sum(map(len, both)))


def _distances(one: Mask, other: Mask) -> tuple[Tensor, ...]:
    """From each pixel of one outline to the nearest of the other, and back, in pixels.

    Both measures come from these: MONAI's own two functions would find them twice.
    """
    from monai.metrics.utils import get_edge_surface_distance

    first, second = torch.from_numpy(one.copy()), torch.from_numpy(other.copy())
    # MONAI 1.5 and 1.6 warn of an argument (`always_return_as_numpy`) that they pass themselves.
    with silenced("monai.utils.deprecate_utils"):
        _, distances, _ = get_edge_surface_distance(first, second, symmetric=True)
    return distances


def _box(mask: Mask) -> tuple[slice, slice]:
    """The smallest box that holds the mask: outlines and distances in it are the same, and cheap.

    A pixel beside the box's edge has, beyond that edge, either background or the image's end, and
    MONAI takes both for the outside.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


# A segmenter's inputs: images transformed at their own size, their masks moved along.
#
# A geometric transform moves the mask with the image's own parameters (nearest neighbour). What it
# brings into view from outside the image (the corners of a rotation) is background in the mask, so
# those pixels count: a model that sees foreground in them is wrong. The other transforms leave the
# mask as it is. Where a transform changes the size of the image, the mask changes with it.


MaskOrIgnore = NDArray[Any]  # (H, W): bool, or uint8 with pixels to ignore, see `masks.decode_mask`


@dataclass(frozen=True)
class MaskedImages:
    """Images of any sizes, the true mask of each at its size, and the group it belongs to."""

    groups: list[str]
    images: list[Pixels]
    masks: list[MaskOrIgnore]


@dataclass(frozen=True)
class PairPreparation(Preparation[Sample, tuple[Pixels, MaskOrIgnore], MaskedImages]):
    """Pairs to masked images.

    Args:
        transforms: By cell.
        seed: The run's.
    """

    transforms: Mapping[Cell, TransformCell]
    seed: int

    def decode(self, item: Sample) -> tuple[Pixels, MaskOrIgnore]:
        """The pixels of the image and its mask.

        Raises:
            UnreadableImage: One of the two cannot be decoded.
            UsageError: The two do not fit, or the mask has more than two values.
        """
        return decode_pair(item)

    def prepare(
        self,
        items: Sequence[Sample],
        decoded: Sequence[tuple[Pixels, MaskOrIgnore]],
        *,
        models: Mapping[Cell, Sequence[str]],
        views: Mapping[Cell, Sequence[str]],
    ) -> Iterator[Prepared[MaskedImages]]:
        """The transformed pairs, cell by cell."""
        groups, clean = [item.group for item in items], [image for image, _ in decoded]
        for cell in models:
            made = [self._move(cell, *pair) for pair in zip(items, decoded, strict=True)]
            images, masks = [image for image, _ in made], [mask for _, mask in made]
            measures = {v: list(map(measure, clean, images)) for v in views[cell]}
            yield Prepared(cell, MaskedImages(groups, images, masks), measures)

    def _move(
        self, cell: Cell, item: Sample, decoded: tuple[Pixels, MaskOrIgnore]
    ) -> tuple[Pixels, MaskOrIgnore]:
        seed = image_seed(self.seed, cell.transform, cell.severity, item.image_id)
        transform = self.transforms[cell].transform
        return transform.apply_with_mask(*decoded, seed=seed, severity=cell.severity)


# A segmenter's answers as rows: pixel counts and distances of outlines.


class MaskRows:
    """One segmenter answering batches of masked images.

    Args:
        segmenter: On its device.
        tolerance: Of the data, in pixels; None for data without.
    """

    def __init__(self, segmenter: Segmenter, tolerance: int | None = None) -> None:
        self.tolerance = tolerance
        self.forward = Forward(segmenter)

    @property
    def cost(self) -> ModelCost:
        """What its forward passes took; comparing the masks is not in it."""
        return self.forward.cost

    def rows(self, batch: Batch[MaskedImages]) -> list[Row]:
        """One row an image (columns: `mask_schema`)."""
        found = [mask for piece in self.forward(batch.inputs.images) for mask in piece]
        both = zip(batch.image_ids, batch.inputs.groups, found, batch.inputs.masks, strict=True)
        return [
            {"image_id": name, "group": group, **mask_row(prediction, truth, self.tolerance)}
            for name, group, prediction, truth in both
        ]


def mask_row(prediction: MaskOrIgnore, truth: MaskOrIgnore, tolerance: int | None = None) -> Row:
    """What a row says of a predicted and a true mask, both (H, W).

    Args:
        prediction: Where foreground was found.
        truth: Where it is: bool, or uint8 with 0, 1 and IGNORED. Ignored pixels are in no count,
            and outlines are those of what is left.
        tolerance: In pixels, for the counts of `relaxed`; None leaves them out.
    """
    counted = np.ones(truth.shape, bool) if truth.dtype == bool else truth != IGNORED
    prediction, truth = prediction & counted, truth == 1
    outlines = surface_distance(prediction, truth)
    row: Row = {
        "tp": _pixels(prediction & truth),
        "fp": _pixels(prediction & ~truth),
        "fn": _pixels(~prediction & truth),
        "tn": _pixels(~prediction & ~truth & counted),
        "hd95": None if outlines is None else outlines.hd95,
        "boundary_dice": None if outlines is None else outlines.boundary_dice,
    }
    return row if tolerance is None else row | near_counts(prediction, truth, tolerance)


def _pixels(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))


# Segmenters: foreground and background of every pixel, dice and IoU.


class SegmentationTask(Task[Segmenter]):
    """Where something is in an image."""

    name: ClassVar[TaskName] = "seg"
    batch_sizes: ClassVar[Mapping[str, int]] = {"cuda": 32, "mps": 16, "cpu": 8}

    def check(self, config: TaskConfig) -> None:
        """See `Task.check`."""
        for what, why, todo in _senseless(config):
            raise UsageError(f"`{what}` does not go with segmenters.", why, todo)

    def with_defaults(self, config: ConfigT, listener: Listener) -> ConfigT:
        """Reads the masks of the images of a training as that training read them.

        Only where the user says nothing of their values, and only on these images: in other data
        the same value may mean something else.
        """
        if config.foreground is not None or config.ignore is not None:
            return config
        trainings = [training for training in trainings_of(config) if training.mask_values]
        index = config.dataset if trainings else None
        if trainings and index is None:
            index = open_dataset(config.data, Masks(surveyed=False, offline=config.offline))
        known = [one for one in trainings if index is not None and one.overlaps(index)]
        said = {in_flags(one.mask_values): one for one in known if one.mask_values is not None}
        if not said:
            return config
        if len(said) > 1:
            (first, one), (second, other) = list(said.items())[:2]
            raise UsageError(
                f"`{one.model}` and `{other.model}` read the masks of this data differently.",
                f"One was trained with `{first}`, the other with `{second}`.",
                "Say how they are to be read here, with `--foreground` and `--ignore`.",
            )
        ((flags, training),) = said.items()
        assert training.mask_values is not None, "they were chosen by it"
        listener.say(f"Masks are read as in the training of `{training.model}`: `{flags}`.")
        foreground, ignore = training.mask_values
        return replace(config, foreground=foreground, ignore=ignore)

    def open(self, config: TaskConfig, listener: Listener) -> Data:
        """See `Task.open`; images that a model was trained on are left out."""
        whole = config.dataset or open_dataset(
            config.data, Masks(config.foreground, config.ignore, offline=config.offline)
        )
        for note in whole.notes:
            listener.say(note)
        if config.data is None:
            kind = " (a demonstration set)" if whole.demonstration else ""
            listener.say(
                f"No --data: using {whole.name}{kind}, {len(whole.samples)} images, "
                f"{whole.location}."
            )
        part = choose_part(whole, config.split, trainings_of(config), listener)
        index = taken(part.index, config)
        record, pool = pairs_record(index), pool_of(part.index)
        return Data(index.samples, record, pool, index.grouping, part.split)

    def load(self, request: ModelRequest, *, seed: int, offline: bool) -> Segmenter:
        """See `Task.load`."""
        return load(request, "seg", seed=seed, offline=offline)

    def trial_model(self, request: ModelRequest) -> Segmenter:
        """The model itself: nothing is downloaded for a segmenter."""
        return load(request, "seg", offline=True)

    def model_record(self, model: Segmenter, config: TaskConfig) -> ModelRecord:
        """See `Task.model_record`."""
        return ModelRecord(
            **facts_record(model.facts, model.device),
            preprocessing=MaskPreprocessingRecord(**asdict(model.preprocessing)),
            view=ORIGINAL,
        )

    def preparation(
        self,
        models: Mapping[str, Segmenter],
        cells: Mapping[Cell, TransformCell],
        config: TaskConfig,
    ) -> PairPreparation:
        """See `Task.preparation`: all segmenters get the same pixels."""
        return PairPreparation(cells, config.seed)

    def schema(self, dataset: DatasetRecord) -> pa.Schema:
        """See `Task.schema`."""
        return mask_schema(dataset.tolerance)

    def predictor(self, model: Segmenter, dataset: DatasetRecord) -> MaskRows:
        """See `Task.predictor`."""
        return MaskRows(model, dataset.tolerance)

    def sample(
        self, items: Sequence[Sample], models: Mapping[str, Segmenter], config: TaskConfig
    ) -> SamplePicture | None:
        """The first image with foreground; its outline is drawn on every picture."""
        return first_pair(items)

    def finish(
        self,
        run: Path,
        data: Data,
        models: Mapping[str, Segmenter],
        rows: Callable[[str], pd.DataFrame],
        cells: Collection[TransformCell],
        seed: int,
    ) -> None:
        """Draws the best, median and worst cases of each model, and its masks of the samples."""
        update_panels(run, data.items, models, rows)
        write_masks(run, cells, seed, data.items, models)


def _senseless(config: TaskConfig) -> Iterator[tuple[str, str, str]]:
    """The settings that mean nothing to a segmenter: what, why, what to do."""
    if config.per_class is not None:
        yield (
            f"--per-class {config.per_class}",
            "Their images have masks, not classes.",
            "Use `--limit`, which spreads over the groups of the data.",
        )
    if config.apply_at == "crop":
        yield (
            "--apply-at crop",
            "They see the whole image at its own size, so there is no crop to transform.",
            "Leave it out: transforms act on the decoded image.",
        )
    if config.answers != "auto":
        yield (
            f"--answers {config.answers}",
            "They tell foreground from background.",
            "Leave it out.",
        )
    if config.label_space is not None or config.labels is not None:
        yield (
            "--label-space" if config.labels is None else "--labels",
            "They tell foreground from background, and the masks of the data say which is which.",
            "Leave it out.",
        )
