"""Compares learning rates for recipe `fair`: trains each network with several rates on few images.

    python recipes/fair_learning_rates.py --data cifar10_jpeg/train.tar.gz --out runs/rates

The budget is small, so that two idle cores take some hours: 4 epochs of 1,500 images instead of 100
epochs of all images. It only detects rates that are far too small or too large. A rate is scored by
the top-1 on 1,000 validation images after the last epoch, averaged over the seeds; the test images
are not used. All rates are powers of the square root of ten. If the best rate of a network is the
smallest or the largest one tried, the next rate is tried too. The same command resumes after an
interruption. Prints a table, and writes it to OUT/rates.json after each training.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import torch

import robustcli
from robustcli.core.machine import processor, usable_cores
from robustcli.training.record import read_train_record

NETWORKS = ("resnet-pico", "vmamba-pico", "vit", "resnet9", "vim", "resnet18")
"""One network of each family of FAIR_RATES, the fastest first."""
RATES = (3e-4, 1e-3, 3e-3)
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
PER_CLASS = {"train": 150, "val": 100, "test": 1}
"""Images per class in each part; a training needs a test part, whose results are not used."""


def next_rate(scores: Mapping[float, float]) -> float | None:
    """The next rate to try after those of `scores`; None if the best one is between two others.

    Args:
        scores: Validation top-1 by rate; the rates are elements of LADDER.
    """
    best, step = max(scores, key=lambda rate: scores[rate]), 0
    if best == max(scores):
        step = 1
    elif best == min(scores):
        step = -1
    place = LADDER.index(best) + step
    return LADDER[place] if step and 0 <= place < len(LADDER) else None


def extract_parts(archive: Path, folder: Path) -> None:
    """Writes the first images of each class to `folder` as PART/CLASS/NAME, unless they are there.

    Args:
        archive: A tar with images as .../CLASS/NAME.
        folder: Target folder. Each class is divided in order: first its training images.
    """
    parts = [part for part, number in PER_CLASS.items() for _ in range(number)]
    seen: Counter[str] = Counter()
    with tarfile.open(archive) as tar:
        for member in sorted(filter(tarfile.TarInfo.isfile, tar), key=lambda m: m.name):
            path = PurePosixPath(member.name)
            label = path.parent.name
            if seen[label] < len(parts):
                target = folder / parts[seen[label]] / label / path.name
                content = tar.extractfile(member)
                if content is not None and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())
            seen[label] += 1


def trained_row(
    model: str, rate: float, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Trains `model` with `rate`; returns the results of the last epoch."""
    run = arguments.out / f"{model}-{rate:g}-seed-{seed}"
    robustcli.train(
        model, data=str(arguments.out / "data"), out=run, recipe="fair", lr=rate, task="cls",
        epochs=arguments.epochs, seed=seed, device="cpu", workers=0,
    )  # fmt: skip
    record, metrics = read_train_record(run), pd.read_csv(run / "metrics.csv")
    return {
        "model": model, "family": record.family, "lr": rate, "seed": seed,
        "epochs": arguments.epochs,
        "train_loss": float(metrics["train_loss"].iloc[-1]),
        "val_loss": float(metrics["val_loss"].iloc[-1]),
        "val_top1": float(metrics["val_top1"].iloc[-1]),
        "images": record.splits["train"].images, "validated": record.splits["val"].images,
    }  # fmt: skip


def write_facts(rows: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    """Writes `rows` to OUT/rates.json, with the settings and the machine."""
    facts = {
        "rows": rows, "per_class": PER_CLASS,
        "data": arguments.data.name, "processor": processor(), "cores": usable_cores(),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }  # fmt: skip
    (arguments.out / "rates.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    """Trains every network with every rate, and prints the best rate of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=NETWORKS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, choices=LADDER)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    extract_parts(arguments.data, arguments.out / "data")
    rows: list[dict[str, Any]] = []
    for model in arguments.models:
        pending, scores = sorted(arguments.rates), dict[float, float]()
        while pending:
            rate = pending.pop(0)
            for seed in range(arguments.seeds):
                rows.append(trained_row(model, rate, seed, arguments))
                print(" ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
                write_facts(rows, arguments)
            tops = [r["val_top1"] for r in rows if (r["model"], r["lr"]) == (model, rate)]
            scores[rate] = sum(tops) / len(tops)
            following = None if pending else next_rate(scores)
            pending += [] if following is None else [following]
    table = pd.DataFrame(rows)
    means = table.groupby(["model", "family", "lr"])[["train_loss", "val_loss", "val_top1"]].mean()
    print(means.round(4).to_string())


if __name__ == "__main__":
    main()
