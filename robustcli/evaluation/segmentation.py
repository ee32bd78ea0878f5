"""Segmenters: foreground and background of every pixel, dice and IoU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa

from robustcli.adapters.load import ModelRequest
from robustcli.adapters.load_segmenter import load_segmenter
from robustcli.adapters.segmenter import Segmenter
from robustcli.core.errors import UsageError
from robustcli.data.open_pairs import open_masked
from robustcli.data.pair_subset import take_pairs
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.describe import pairs_record, segmenter_record
from robustcli.evaluation.listener import Listener
from robustcli.evaluation.mask_rows import MaskRows
from robustcli.evaluation.moved_pairs import PairPreparation
from robustcli.evaluation.panels import draw_panels
from robustcli.evaluation.record import DatasetRecord, ModelRecord
from robustcli.evaluation.samples import Sample, first_pair
from robustcli.evaluation.split_choice import choose_part
from robustcli.evaluation.store import Cell, mask_schema
from robustcli.evaluation.task import Data, Task
from robustcli.evaluation.training_data import TrainingData, parts_of, training_data
from robustcli.transforms.registry import TransformCell


class Segmentation(Task[Segmenter]):
    """Where something is in an image."""

    name: ClassVar[Literal["cls", "seg"]] = "seg"
    batch_sizes: ClassVar[Mapping[str, int]] = {"cuda": 32, "mps": 16, "cpu": 8}

    def check(self, config: EvalConfig) -> None:
        """See `Task.check`."""
        for what, why, todo in _senseless(config):
            raise UsageError(f"`{what}` does not go with segmenters.", why, todo)

    def open(self, config: EvalConfig, listener: Listener) -> Data:
        """See `Task.open`; images that a model was trained on are left out."""
        whole = open_masked(config.data, foreground=config.foreground, ignore=config.ignore)
        for note in whole.notes:
            listener.say(note)
        if config.data is None:
            kind = " (a demonstration set)" if whole.demonstration else ""
            listener.say(
                f"No --data: using {whole.name}{kind}, {len(whole.pairs)} images, {whole.location}."
            )
        part = choose_part(whole, config.split, _trainings(config), listener)
        index = take_pairs(part.index, limit=config.limit, seed=config.seed)
        return Data(index.pairs, pairs_record(index), index.grouping, part.split)

    def load(self, request: ModelRequest, *, seed: int, offline: bool) -> Segmenter:
        """See `Task.load`."""
        return load_segmenter(request, seed=seed, offline=offline)

    def trial_model(self, request: ModelRequest) -> Segmenter:
        """The model itself: nothing is downloaded for a segmenter."""
        return load_segmenter(request, offline=True)

    def model_record(self, model: Segmenter, config: EvalConfig) -> ModelRecord:
        """See `Task.model_record`."""
        return segmenter_record(model)

    def preparation(
        self,
        models: Mapping[str, Segmenter],
        cells: Mapping[Cell, TransformCell],
        config: EvalConfig,
    ) -> PairPreparation:
        """See `Task.preparation`: all segmenters get the same pixels."""
        return PairPreparation(cells, config.seed)

    def schema(self, dataset: DatasetRecord) -> pa.Schema:
        """See `Task.schema`."""
        return mask_schema(dataset.tolerance)

    def answering(self, model: Segmenter, dataset: DatasetRecord) -> MaskRows:
        """See `Task.answering`."""
        return MaskRows(model, dataset.tolerance)

    def sample(
        self, data: Data, models: Mapping[str, Segmenter], config: EvalConfig
    ) -> Sample | None:
        """The first image with foreground; its outline is drawn on every picture."""
        return first_pair(data.items)

    def finish(self, run: Path, data: Data, models: Mapping[str, Segmenter]) -> None:
        """Draws the best, median and worst cases of each model."""
        draw_panels(run, data.items, models)


def _senseless(config: EvalConfig) -> Iterator[tuple[str, str, str]]:
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
    if config.label_space is not None or config.labels is not None:
        yield (
            "--label-space" if config.labels is None else "--labels",
            "They tell foreground from background, and the masks of the data say which is which.",
            "Leave it out.",
        )


def _trainings(config: EvalConfig) -> list[TrainingData]:
    found = [training_data(request) for request in config.models]
    if config.splits_of is not None:
        found.append(TrainingData(str(config.splits_of), None, parts_of(config.splits_of)))
    return [training for training in found if training is not None]
