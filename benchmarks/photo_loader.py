"""Images per second of the training loader of classifiers, by augmentation and number of workers.

`python benchmarks/photo_loader.py` generates 20,000 images of 32 x 32 pixels and times an epoch of
batches of 128 with 0, 1 and 2 loader processes (the second epoch, when the processes are running).
The goal is 5,000 images per second for `shift` on two cores. `resident` is the loader of recipe
`speedrun`: batches are cropped from one tensor on the device, here the CPU. A core-second is a
second of processor time on one core, independent of other load. The reference is torchvision's
transforms of each image, on Pillow images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from robustcli.adapters.preprocessing import CIFAR10
from robustcli.training.datamodule import BatchSettings, Decoded, DecodedSubset
from robustcli.training.procedures import procedure_of
from robustcli.training.recipes import CLASS_RECIPES, Recipe

BATCH = 128


def made_up(count: int) -> DecodedSubset:
    """`count` noise images, each with one of ten classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    ids = [f"train/{number % 10}/{number:05}.png" for number in range(count)]
    return DecodedSubset(ids, [Decoded(image) for image in images], [n % 10 for n in range(count)])


class OneByOne(Dataset[torch.Tensor]):
    """The transforms of torchvision's training scripts, one image at a time."""

    def __init__(self, subset: DecodedSubset, *, randaugment: bool) -> None:
        self.subset = subset
        steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        self.transform = v2.Compose(
            [v2.ToPILImage(), *steps, *([v2.RandAugment(2, 9)] if randaugment else []),
             v2.PILToTensor()]
        )  # fmt: skip

    def __getitem__(self, index: int) -> torch.Tensor:
        tensor: torch.Tensor = self.transform(self.subset.decoded[index].image)
        return tensor

    def __len__(self) -> int:
        return len(self.subset.ids)


def rates(batches: Iterable[object], images: int) -> tuple[float, float]:
    """Images per second of the second pass over `batches`, and per core-second of this process.

    The second number does not depend on other load, and excludes loader processes.
    """
    for _ in batches:
        pass
    started, processor_started = time.perf_counter(), time.process_time()
    for _ in batches:
        pass
    ended, processor_ended = time.perf_counter(), time.process_time()
    return images / (ended - started), images / (processor_ended - processor_started)


def loader(recipe: Recipe, subset: DecodedSubset, workers: int) -> DataLoader[object]:
    """The training batches of `recipe`."""
    settings = BatchSettings(seed=0, workers=workers)
    data = procedure_of(recipe).photo_data(subset, made_up(10), CIFAR10, settings)
    batches: DataLoader[object] = data.train_dataloader()
    return batches


def main() -> None:
    """Prints one line per augmentation and number of loader processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    subset = made_up(arguments.images)
    few = made_up(min(arguments.images, 4_000))
    plain = {}
    for name in ("shift", "randaugment"):
        alone = OneByOne(few, randaugment=name == "randaugment")
        plain[name] = rates(DataLoader(alone, BATCH), len(few.ids))[1]
        print(f"torchvision's {name:<26} {plain[name]:9,.0f} images a core-second", flush=True)
    fair = replace(CLASS_RECIPES["fair"], batch_size=BATCH, window=32)
    for name in ("none", "shift", "shift-reflect", "randaugment", "light"):
        for workers in arguments.workers:
            batches = loader(replace(fair, augmentation=name), subset, workers)
            seconds, core = rates(batches, len(subset.ids))
            line = f"{name:<14} {workers} workers  {seconds:9,.0f} images/s"
            if workers == 0:
                ratio = core / plain["randaugment" if name == "randaugment" else "shift"]
                line += f"  {core:9,.0f} images a core-second, {ratio:5.1f} times torchvision's"
            print(line, flush=True)
    resident = replace(CLASS_RECIPES["speedrun"], batch_size=BATCH, window=32)
    seconds, core = rates(loader(resident, subset, 0), len(subset.ids))
    print(f"resident       0 workers  {seconds:9,.0f} images/s  {core:9,.0f} images a core-second")


if __name__ == "__main__":
    main()
