"""Trains a bundled classifier on CIFAR-10, and evaluates it on all 10,000 test images.

    python recipes/train_cifar10_pico.py --model resnet-pico --source DIR --out runs/resnet-pico

`--source` contains `train.tar.gz` and `test.tar.gz` with `<split>/<class>/NNNN.jpg`. Both networks,
`vmamba-pico` and `resnet-pico`, are trained with the same images, equally often, and the same
recipe. The test images are not used for any selection: the number of epochs is fixed beforehand,
and the last averaged weights are kept.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import tarfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from robustcli.adapters import timm_library  # noqa: F401 (registers `resnet_pico` with timm)
from robustcli.core.machine import processor
from robustcli.metrics.intervals import wilson_interval
from robustcli.models.vmamba import build

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
EPOCHS = 20
"""Passes over the training images."""
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Recipe:
    """All settings that affect the result."""

    epochs: int
    batch_size: int = 128
    peak_learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warm_up_share: float = 0.15
    label_smoothing: float = 0.05
    averaging: float = 0.998
    gradient_clip: float = 2.0
    drop_path: float = 0.05
    autocast: str = "bfloat16"
    seed: int = 0


def read_split(source: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) uint8 and labels (n) of `train` or `test`, in the archive's order."""
    images, labels = [], []
    with tarfile.open(source / f"{split}.tar.gz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is None:
                continue
            images.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
            labels.append(CLASSES.index(Path(member.name).parent.name))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)


def normalise(images: Tensor) -> Tensor:
    """uint8 images as float32, normalised by mean and standard deviation of CIFAR-10."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flips each image with probability 0.5, and crops it at random after padding by 4 pixels."""
    n = len(images)
    flip = torch.rand(n, generator=generator) < 0.5
    images = torch.where(flip.view(n, 1, 1, 1), images.flip(3), images)
    padded = F.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, n, 1, 1, 1), generator=generator)
    rows = (top + torch.arange(32).view(1, 1, 32, 1)).expand(n, 3, 32, 40)
    columns = (left + torch.arange(32).view(1, 1, 1, 32)).expand(n, 3, 32, 32)
    return padded.gather(2, rows).gather(3, columns)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in [0, 1], computed in float32."""
    model.eval()
    hits = [
        int((model(normalise(x)).argmax(1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    ]
    return sum(hits) / len(labels)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """Parameter groups with weight decay only for matrices, as in VMamba's recipe."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others}]


def untrained(name: str, drop_path: float) -> nn.Module:
    """The network `name` with initial weights."""
    if name == "vmamba-pico":
        return build(name, drop_path=drop_path)
    network: nn.Module = timm.create_model(name.replace("-", "_"), drop_path_rate=drop_path)
    return network


def train(name: str, recipe: Recipe, images: Tensor, labels: Tensor) -> nn.Module:
    """The averaged network `name` after `recipe.epochs` passes over `images`."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = untrained(name, recipe.drop_path)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.averaging)
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), weight_decay=0.0)
    steps = recipe.epochs * (len(images) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.peak_learning_rate, steps, pct_start=recipe.warm_up_share
    )
    started = time.time()
    for epoch in range(recipe.epochs):
        model.train()
        total = torch.zeros(())
        order = torch.randperm(len(images), generator=generator)
        batches = order[: len(order) // recipe.batch_size * recipe.batch_size]
        for batch in batches.view(-1, recipe.batch_size):
            x = normalise(augment(images[batch], generator))
            with torch.autocast("cpu", getattr(torch, recipe.autocast)):
                logits = model(x)
            loss = F.cross_entropy(
                logits.float(), labels[batch], label_smoothing=recipe.label_smoothing
            )
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            averaged.update_parameters(model)
            total += loss.detach()
        mean_loss = total.item() / (len(images) // recipe.batch_size)
        print(f"epoch {epoch + 1}: loss {mean_loss:.4f}, {time.time() - started:.0f} s", flush=True)
    trained: nn.Module = averaged.module
    return trained


def main() -> None:
    """Trains and evaluates the network; writes the weights, and the recipe to a separate file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["vmamba-pico", "resnet-pico"], required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(epochs=arguments.epochs)
    started, processor_started = time.time(), time.process_time()
    model = train(arguments.model, recipe, *read_split(arguments.source, "train"))
    trained, processor_trained = time.time(), time.process_time()
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), arguments.out / f"{arguments.model}.safetensors")
    images, labels = read_split(arguments.source, "test")
    top1 = accuracy(model, images, labels)
    interval = wilson_interval(round(top1 * len(labels)), len(labels))
    low, high = interval.low, interval.high
    facts = {"model": arguments.model, "recipe": asdict(recipe), "test_images": len(labels),
             "test_top1": top1, "test_top1_interval": [round(low, 4), round(high, 4)],
             "minutes": round((trained - started) / 60, 1),
             "processor_minutes": round((processor_trained - processor_started) / 60, 1),
             "threads": arguments.threads, "processor": processor(),
             "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
             "torch": torch.__version__, "timm": timm.__version__}  # fmt: skip
    path = arguments.out / f"{arguments.model}.json"
    path.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"top-1 on the test images: {100 * top1:.2f} % ({100 * low:.2f} to {100 * high:.2f})")


if __name__ == "__main__":
    main()
