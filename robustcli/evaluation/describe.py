"""The parts of a run as records: what `run.json` says of data, models, transforms and versions."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from robustcli import __version__
from robustcli.adapters.catalogue import FOREGROUND
from robustcli.adapters.classifier import Classifier
from robustcli.adapters.model import Facts
from robustcli.adapters.segmenter import Segmenter
from robustcli.data.dataset import ImageIndex, PairIndex
from robustcli.data.mask_values import MaskReading, shown_value
from robustcli.evaluation.loader import ORIGINAL
from robustcli.evaluation.record import (
    DatasetRecord,
    MaskPreprocessingRecord,
    MasksRecord,
    ModelRecord,
    PreprocessingRecord,
    TransformRecord,
)
from robustcli.models.scan.choice import choose_backend
from robustcli.transforms.registry import TransformCell

# What decides pixels and logits.
_PACKAGES = (
    "torch", "torchvision", "timm", "numba", "imaug", "imagecorruptions-imaug", "numpy", "pillow",
    "opencv-python-headless", "scikit-image", "scipy",
)  # fmt: skip


def dataset_record(index: ImageIndex) -> DatasetRecord:
    """The record of the images."""
    return DatasetRecord(
        name=index.name,
        location=index.location,
        label_space=index.label_space.name,
        classes=len(index.label_space.ids),
        images=len(index.images),
        images_available=index.available,
        subset=index.subset,
        demonstration=index.demonstration,
        digest=index.digest,
    )


def pairs_record(index: PairIndex) -> DatasetRecord:
    """The record of images with masks, whose classes are background and foreground."""
    return DatasetRecord(
        name=index.name,
        location=index.location,
        label_space=FOREGROUND,
        classes=2,
        images=len(index.pairs),
        images_available=index.available,
        subset=index.subset,
        demonstration=index.demonstration,
        digest=index.digest,
        tolerance=index.tolerance,
        masks=_masks_record(index.reading),
    )


def _masks_record(reading: MaskReading | None) -> MasksRecord | None:
    """The record of how masks are read; None for masks as nearly all are."""
    if reading is None or reading.is_standard:
        return None
    foreground, background = (
        None if values is None else [shown_value(value) for value in values]
        for values in (reading.foreground, reading.background)
    )
    return MasksRecord(
        foreground=foreground,
        background=background,
        ignored=[shown_value(value) for value in reading.ignored],
        channel=reading.channel,
        words=reading.words(),
    )


def model_record(classifier: Classifier, *, at_crop: bool) -> ModelRecord:
    """The record of one model; `view` names the pixels that its transforms act on."""
    own = classifier.preprocessing
    return ModelRecord(
        **_facts(classifier.facts, classifier.device),
        preprocessing=PreprocessingRecord(**asdict(own)),
        view=own.view if at_crop else ORIGINAL,
    )


def segmenter_record(segmenter: Segmenter) -> ModelRecord:
    """The record of one segmenter."""
    return ModelRecord(
        **_facts(segmenter.facts, segmenter.device),
        preprocessing=MaskPreprocessingRecord(**asdict(segmenter.preprocessing)),
        view=ORIGINAL,
    )


def _facts(facts: Facts, device: torch.device) -> dict[str, Any]:
    told = asdict(facts)
    scans = told.pop("scans")
    return {**told, "scan_backend": choose_backend(device, torch.float32) if scans else None}


def transform_record(cell: TransformCell) -> TransformRecord:
    """The record of one transform at one severity."""
    transform = cell.transform
    return TransformRecord(
        name=transform.name,
        severity=cell.severity,
        family=transform.family,
        geometric=transform.geometric,
        parameters=transform.parameters(cell.severity),
        assumed=transform.assumed,
    )


def versions() -> dict[str, str]:
    """The version of this program, of Python, and of every package that decides the numbers."""
    found = {"robust": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # another distribution may bring the same import (opencv-python)
    return found
