"""The paper's training procedure (protocol `paper`), its scoring and its known faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from robustcli.core.errors import UsageError
from robustcli.core.io import replacing
from robustcli.data.dataset import Sample
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BatchSettings, DecodedSubset, ImageData, decoded_once
from robustcli.training.lit_module import SegmenterModule, outputs
from robustcli.training.procedures.base import Procedure
from robustcli.training.recipes import PAPER_RECIPES
from robustcli.training.record import PAPER
from robustcli.training.samples import ResizedImages, collate_masks

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
        "aug": "it uses no augmentation",
        "patience": "it uses the last epoch, independent of the validation score",
    }

    def check_options(self, config: TrainConfig, options: Mapping[str, Any]) -> None:
        """See `Procedure.check_options`."""
        for name, why in self.refused.items():
            if name in options and options[name] != "none":
                raise UsageError(
                    f"`--{name} {options[name]}` cannot be used with `--protocol paper`.",
                    f"This protocol follows the paper: {why}.",
                    f"Omit `--{name}`, or use `--protocol patient`.",
                )

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
        """Writes `RUN/paper.parquet` from the test images, in the order of their ids."""
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
