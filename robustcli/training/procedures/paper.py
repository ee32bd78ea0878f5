"""The paper's procedure (protocol `paper`), how it scored its test set, and its known faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from robustcli.core.errors import UsageError
from robustcli.core.io import replacing
from robustcli.data.dataset import Sample
from robustcli.training.cache import Decoded, decoded_once
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import DecodedPairs, SegmentationData
from robustcli.training.lit_segmenter import SegmentationModule, outputs
from robustcli.training.procedures.base import BatchSettings
from robustcli.training.procedures.standard import Standard
from robustcli.training.recipes import PAPER_RECIPES
from robustcli.training.record import PAPER
from robustcli.training.samples import Batch, WholeSamples, collate

PAPER_FILE = "paper.parquet"
Row = dict[str, object]

_ALL = (
    "Slices of one patient are in training and in test: the split is by slice, not by patient.",
    "The dice is pooled over batches of {batch} slices and averaged over the batches, the last and "
    "smaller one counting as much; it is neither per image nor per patient.",
    "The weights are those of the last epoch; validation chose nothing.",
    "Colours are in the order blue, green, red, as OpenCV reads them, where the ImageNet weights "
    "of the ResNets expect red, green, blue.",
    "Nothing is augmented.",
    "Neither weights nor order were seeded in the paper, and its split hung on the order in which "
    "the file system listed the files. Here both are seeded and the files are sorted, so the split "
    "is another one of the same kind.",
)
_LOGIT = "A pixel is foreground where the logit is at least 0.5, that is probability 0.622."
_NOT_THERE = "The paper has no such network; it is trained and scored as its others were."
_OF_MODEL = {
    "unet": "Its batches of evaluation hold 64 slices, those of all others 16: another statistic.",
    "segformer": "Images and masks are resized to 224 pixels, which makes the masks soft at their "
    "edges: dice counts them softly, IoU wherever they are above 0.",
    "resnet18_seg": "How the paper evaluated it is not on record; taken as for UMambaBot.",
    "resnet50_seg": "How the paper evaluated it is not on record; taken as for UMambaBot.",
}


class WholeImages(SegmentationData):
    """Batches of whole images and masks, resized as the paper did."""

    def train_samples(self) -> WholeSamples:
        """See `SegmentationData.train_samples`."""
        return WholeSamples(self.train.ids, self.train.decoded, self.recipe.window)

    def val_samples(self) -> WholeSamples:
        """See `SegmentationData.val_samples`."""
        return WholeSamples(self.val.ids, self.val.decoded, self.recipe.window)


class Paper(Standard):
    """Whole images in OpenCV's order of colours; the last epoch; dice over batches of images."""

    channels: ClassVar[Literal["rgb", "bgr"]] = "bgr"
    keeps_best: ClassVar[bool] = False
    refused: ClassVar[Mapping[str, str]] = {
        "aug": "it augments nothing",
        "patience": "it takes the last epoch, whatever validation says",
    }

    def check_options(self, config: TrainConfig, given: Mapping[str, Any]) -> None:
        """See `Procedure.check_options`."""
        for name, why in self.refused.items():
            if name in given and given[name] != "none":
                raise UsageError(
                    f"`--{name} {given[name]}` does not go with `--protocol paper`.",
                    f"That protocol is done as the paper did it: {why}.",
                    f"Leave out `--{name}`, or use `--protocol patient`.",
                )

    def data(
        self, train: DecodedPairs, val: DecodedPairs, settings: BatchSettings
    ) -> SegmentationData:
        """See `Procedure.data`."""
        return WholeImages(
            train, val, self.recipe, seed=settings.seed, workers=settings.workers,
            pin=settings.pin, least=settings.least,
        )  # fmt: skip

    def faults(self, model: str) -> list[str]:
        """See `Procedure.faults`."""
        found = [text.format(batch=self.recipe.paper_batch) for text in _ALL]
        if self.recipe.decision == "logit":
            found.append(_LOGIT)
        if model in _OF_MODEL:
            found.append(_OF_MODEL[model])
        if model not in PAPER_RECIPES:
            found.append(_NOT_THERE)
        return found

    def score(
        self, run: Path, module: SegmentationModule, chosen: Mapping[str, Any],
        test: Sequence[Sample], decode: Callable[[Sample], Decoded], device: torch.device,
    ) -> None:  # fmt: skip
        """Writes `RUN/paper.parquet` from the test images, in the order of their ids."""
        module.network.load_state_dict(chosen)
        module.to(device)
        with decoded_once(test, run / "cache", decode) as decoded:
            ids = [pair.image_id for pair in test]
            samples = WholeSamples(ids, decoded, self.recipe.window)
            write_paper_rows(run, module, samples, batch_size=min(16, self.recipe.batch_size))


@torch.inference_mode()
def write_paper_rows(
    run: Path, module: SegmentationModule, samples: WholeSamples, *, batch_size: int
) -> None:
    """Writes `RUN/paper.parquet`: the columns of PAPER for every image, in order.

    Args:
        run: The run's folder.
        module: With the weights to score, on its device.
        samples: The test images, sorted.
        batch_size: Images a forward pass; it changes no number.
    """
    module.eval()
    rows: list[Row] = []
    for batch in DataLoader(samples, batch_size, collate_fn=collate):
        rows.extend(_rows(module, batch))
    with replacing(run / PAPER_FILE) as beside:
        pd.DataFrame(rows, columns=list(PAPER)).to_parquet(beside)


def _rows(module: SegmentationModule, batch: Batch) -> Iterator[Row]:
    images = module.pixels(batch._replace(images=batch.images.to(module.device)))
    said = module.foreground(outputs(module.network, images)[0]).cpu()
    yield from paper_rows(batch.ids, said, batch.masks)


def paper_rows(ids: Sequence[str], said: Tensor, masks: Tensor) -> Iterator[Row]:
    """One row per image.

    Args:
        ids: The images.
        said: Foreground as predicted, bool (B, 1, H, W).
        masks: Foreground as it is, 0 to 1, (B, 1, H, W).
    """
    p, t = said.flatten(1).double(), masks.flatten(1).double()
    true = t > 0
    for i, image_id in enumerate(ids):
        yield {
            "image_id": image_id,
            "intersection": float((p[i] * t[i]).sum()),
            "predicted": float(p[i].sum()),
            "target": float(t[i].sum()),
            "overlap": int((said.flatten(1)[i] & true[i]).sum()),
            "union": int((said.flatten(1)[i] | true[i]).sum()),
        }
