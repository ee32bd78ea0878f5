"""Training procedures: ours, which is the base class of all, and that of the paper for masks.

Ours trains epochs over windows and selects the best epoch by validation. Protocol `paper` follows
the training notebooks of "Mamba-Based Tumor Segmentation" with their scoring and known faults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import UsageError
from robustcli.core.io import replacing
from robustcli.core.listener import Listener
from robustcli.data.dataset import Dataset, Sample
from robustcli.data.splits import Splits
from robustcli.nnunet.normalisation import Channel
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import (
    BaseDataModule,
    BatchSettings,
    DecodedSubset,
    ImageData,
    decoded_once,
)
from robustcli.training.lit_module import SegmenterModule, decays_of, outputs
from robustcli.training.mask_samples import AllWindows, RandomWindows, ResizedImages, collate_masks
from robustcli.training.photo_samples import PHOTO_AUGMENTATIONS, PhotoBatches
from robustcli.training.recipes import OWN_RECIPE, PAPER_RECIPES, Recipe
from robustcli.training.record import PAPER
from robustcli.training.trainer import Machine


@dataclass(frozen=True)
class Procedure:
    """A way to train with a recipe. This class is our procedure; the others derive from it.

    LitModule and scores apply to segmenters; those of classifiers are in `classifier_training`.
    """

    recipe: Recipe

    channels: ClassVar[Literal["rgb", "bgr"]] = "rgb"
    """Channel order of the input of a network with three channels."""
    keeps_best: ClassVar[bool] = True
    """Whether the best epoch by the monitored value is selected; else the last epoch."""
    why_chosen: ClassVar[str] = "on the validation images"
    """In words: the images of the monitored value; if the last epoch is selected, the reason."""
    finetunes: ClassVar[bool] = True
    """Whether a pretrained network can be fine-tuned with this procedure."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Options that the procedure does not use, with the reason as a sentence."""
    alternative: ClassVar[str] = f"--recipe {OWN_RECIPE}"
    """The option that selects a procedure for the options in `refused`."""

    @property
    def flag(self) -> str:
        """The option that selects this procedure."""
        return f"--recipe {self.recipe.name.split()[0]}"

    def check_options(self, config: TrainConfig, options: Mapping[str, Any]) -> None:
        """Validates the overrides `options` by name; raises UsageError for those in `refused`."""
        for name, why in self.refused.items():
            if name in options:
                raise UsageError(
                    f"`--{name} {options[name]}` cannot be used with `{self.flag}`.",
                    why,
                    f"Omit `--{name}`, or use `{self.alternative}`.",
                )

    def check(self, machine: Machine, *, grey: bool) -> None:
        """Raises UsageError if the procedure does not support the devices or channels."""
        return

    def planned(self, config: TrainConfig, entry: ModelEntry, train: Dataset) -> Recipe:
        """The recipe with the unset values that depend on network and images."""
        return self.recipe

    def images_per_epoch(self, available: int) -> int:
        """Number of training images or patches per epoch, for `available` images."""
        return min(self.recipe.images_per_epoch or available, available)

    def val_batches(self, images: int) -> float:
        """Approximate number of validation batches; one image can need several batches."""
        return images / self.recipe.batch_size

    def monitor(self, score: str) -> str:
        """Name of the logged value that selects the best epoch, for a task's `score`."""
        return score

    @property
    def normalised(self) -> tuple[Channel, ...]:
        """Normalisation of each channel after division by 255; empty for none."""
        return ()

    def data(
        self, train: DecodedSubset, val: DecodedSubset, settings: BatchSettings
    ) -> BaseDataModule:
        """The data module of a segmenter.

        Raises:
            UsageError: The procedure needs foreground in both subsets, and a subset has none.
        """
        window, augmentation = self.recipe.window, self.recipe.augmentation
        windows = RandomWindows(train, window, augmentation, settings.seed)
        return ImageData(
            train.ids, windows, AllWindows(val, window), collate_masks, self.recipe, settings
        )

    def photo_data(
        self, train: DecodedSubset, val: DecodedSubset, preprocessing: Preprocessing,
        settings: BatchSettings,
    ) -> BaseDataModule:  # fmt: skip
        """The data module of a classifier."""
        augmentation = PHOTO_AUGMENTATIONS[self.recipe.augmentation]
        samples = PhotoBatches(train, preprocessing, augmentation, settings.seed)
        validation = PhotoBatches(val, preprocessing, None, settings.seed)
        return ImageData(train.ids, samples, validation, None, self.recipe, settings)

    def module(
        self, network: nn.Module, entry: ModelEntry, val: Dataset, data: BaseDataModule | None, *,
        grey: bool, ignores: bool,
    ) -> SegmenterModule:  # fmt: skip
        """The LitModule of a segmenter; dice and IoU are pooled by the groups of `val`.

        Args:
            network: The network; put into training mode.
            entry: Catalogue entry of the network.
            val: The validation pairs.
            data: Their batches; None without validation.
            grey: Whether the network takes greyscale images.
            ignores: Whether masks contain pixels to ignore.
        """
        indices = data.val_samples.places if isinstance(data, ImageData) else []
        classes = len(val.mask_classes)
        return SegmenterModule(
            network.train(), self.recipe, channels="grey" if grey else self.channels,
            decays=decays_of(entry), val_groups=[val.samples[index].group for index in indices],
            ignores=ignores, classes=classes,
        )  # fmt: skip

    def callbacks(self, run: Path, listener: Listener) -> list[pl.Callback]:
        """Additional Lightning callbacks."""
        return []

    def splits(self, splits: Splits) -> Splits:
        """The training, validation and test parts of a classifier's data in this procedure."""
        return splits

    def faults(self, model: str) -> list[str]:
        """Known faults of the procedure, kept for comparability with the paper."""
        return []

    def score(
        self, run: Path, module: SegmenterModule, chosen: Mapping[str, Any],
        test: Sequence[Sample], device: torch.device,
    ) -> None:  # fmt: skip
        """Writes additional scores of the held-out images into `run`; by default none."""
        return


PAPER_FILE = "paper.parquet"

_FAULTS = (
    "The split is by slice, not by patient: slices of the same patient are in training and in "
    "test.",
    "The dice is pooled over batches of {batch} slices and averaged over the batches, with equal "
    "weight for the smaller last batch; it is neither per image nor per patient.",
    "The weights are those of the last epoch; the validation score is not used.",
    "Colours are in the order blue, green, red, as read by OpenCV, but the ImageNet weights of "
    "the ResNets expect red, green, blue.",
    "No augmentation is used.",
    "In the paper, neither weights nor order were seeded, and the split depended on the order in "
    "which the file system listed the files. Here both are seeded and the files are sorted, so "
    "that the split is drawn in the same way but differs.",
)
_LOGIT = "A pixel is foreground if its logit is at least 0.5, which is probability 0.622."
_NOT_IN_PAPER = (
    "This network is not in the paper; it is trained and scored like those of the paper."
)
_EVALUATION_UNKNOWN = (
    "The evaluation of this network in the paper is not recorded; that of UMambaBot is used."
)
_FAULTS_OF_MODEL = {
    "unet": "Its evaluation batches have 64 slices, but those of all other networks 16, so that "
    "the pooled dice is not the same statistic.",
    "segformer": "Images and masks are resized to 224 pixels, which gives the masks values between "
    "0 and 1 at edges: dice uses these values, and IoU counts all pixels above 0.",
    "resnet18_seg": _EVALUATION_UNKNOWN,
    "resnet50_seg": _EVALUATION_UNKNOWN,
}


class Paper(Procedure):
    """Complete images with BGR channels; the last epoch; dice pooled over batches of images."""

    channels: ClassVar[Literal["rgb", "bgr"]] = "bgr"
    keeps_best: ClassVar[bool] = False
    why_chosen: ClassVar[str] = "protocol `paper`"
    refused: ClassVar[Mapping[str, str]] = {
        "aug": "This protocol follows the paper: it uses no augmentation.",
        "patience": "This protocol follows the paper: it uses the last epoch, independent of the "
        "validation score.",
    }
    alternative: ClassVar[str] = "--protocol patient"
    flag = "--protocol paper"

    def check_options(self, config: TrainConfig, options: Mapping[str, Any]) -> None:
        """See `Procedure.check_options`; `--aug none` is what the protocol does."""
        super().check_options(config, {n: v for n, v in options.items() if v != "none"})

    def data(self, train: DecodedSubset, val: DecodedSubset, settings: BatchSettings) -> ImageData:
        """See `Procedure.data`: complete images and masks, resized as in the paper."""
        images, val_images = (ResizedImages(part, self.recipe.window) for part in (train, val))
        return ImageData(train.ids, images, val_images, collate_masks, self.recipe, settings)

    def faults(self, model: str) -> list[str]:
        """See `Procedure.faults`."""
        faults = [text.format(batch=self.recipe.paper_batch) for text in _FAULTS]
        if self.recipe.decision == "logit":
            faults.append(_LOGIT)
        if model in _FAULTS_OF_MODEL:
            faults.append(_FAULTS_OF_MODEL[model])
        if model not in PAPER_RECIPES:
            faults.append(_NOT_IN_PAPER)
        return faults

    def score(
        self, run: Path, module: SegmenterModule, chosen: Mapping[str, Any],
        test: Sequence[Sample], device: torch.device,
    ) -> None:  # fmt: skip
        """Writes `RUN/paper.parquet` from the test images, in the order of their split."""
        module.network.load_state_dict(chosen)
        module.to(device)
        with decoded_once(test, run / "cache") as decoded:
            samples = ResizedImages(DecodedSubset.of(test, decoded), self.recipe.window)
            write_paper_rows(run, module, samples, batch_size=min(16, self.recipe.batch_size))


@torch.inference_mode()
def write_paper_rows(
    run: Path, module: SegmenterModule, samples: ResizedImages, *, batch_size: int
) -> None:
    """Writes `RUN/paper.parquet`: the columns of PAPER for every image, in order."""
    module.eval()
    rows: list[dict[str, object]] = []
    for batch in DataLoader(samples, batch_size, collate_fn=collate_masks):
        images = module.pixels(batch._replace(images=batch.images.to(module.device)))
        predicted = module.foreground(outputs(module.network, images)[0]).cpu()
        rows.extend(paper_rows(batch.ids, predicted, batch.masks))
    with replacing(run / PAPER_FILE) as temporary:
        pd.DataFrame(rows, columns=list(PAPER)).to_parquet(temporary)


def paper_rows(ids: Sequence[str], predicted: Tensor, masks: Tensor) -> Iterator[dict[str, object]]:
    """One row per image.

    Args:
        ids: Ids of the images.
        predicted: Predicted foreground, bool (B, 1, H, W).
        masks: True foreground in [0, 1], (B, 1, H, W).
    """
    foreground, target = predicted.flatten(1), masks.flatten(1).double()
    for image_id, p, t in zip(ids, foreground, target, strict=True):
        yield {
            "image_id": image_id,
            "intersection": float((p.double() * t).sum()),
            "predicted": float(p.double().sum()),
            "target": float(t.sum()),
            "overlap": int((p & (t > 0)).sum()),
            "union": int((p | (t > 0)).sum()),
        }
