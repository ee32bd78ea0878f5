"""Trains every CIFAR network with the same small budget on the CPU, and writes the results.

    python recipes/train_zoo_cpu.py --data DIR --out runs/zoo

All networks are trained with the same images, equally often, with recipe `fair`: by default 3
epochs of 1,440 images. The scores are therefore lower than after 100 epochs of all images. It takes
11 minutes on one busy core. `resnet50` is excluded by default because of its time; `--models`
selects other networks. The epoch is selected on validation images; top-1 (with its Wilson interval)
and macro F1 are those of held-out images. The same command resumes after an interruption. Writes
OUT/zoo.json and prints its table; `robust report OUT/*/` compares the networks.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

import robustcli
from robustcli.core.machine import processor, usable_cores
from robustcli.training.record import read_train_record

NETWORKS = ("vit", "vim", "resnet9", "vmamba-pico", "resnet-pico", "resnet18")
NUMBERS = (
    *("params", "multiply_adds", "n", "top1", "top1_low", "top1_high", "f1", "f1_low", "f1_high"),
    *("chosen_epoch", "train_seconds", "val_seconds", "seconds", "images_per_second"),
)
"""Columns of a run's `results.csv`; see `docs/formats.md`."""


def row_of(model: str, run: Path) -> dict[str, object]:
    """Results of the training of `model` in the folder `run`: NUMBERS and the learning rate."""
    (results,) = pd.read_csv(run / "results.csv").to_dict("records")
    rate = read_train_record(run).recipe.lr
    return {"model": model, "learning_rate": rate} | {
        name: round(results[name], 4) for name in NUMBERS
    }


def table_of(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """`rows` as a table; with `vit` in it, also epoch times relative to `vit`."""
    table = pd.DataFrame(rows)
    vit = table.loc[table["model"] == "vit", "train_seconds"]
    if len(vit):
        table["epoch_over_vit"] = (table["train_seconds"] / vit.iloc[0]).round(2)
    return table


def main() -> None:
    """Trains the missing networks in order, and writes the table after each one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=NETWORKS)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1800,
                        help="Number of images in total, of all splits.")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = []
    for model in arguments.models:
        run = arguments.out / model
        training = robustcli.train(
            model, data=arguments.data, out=run, recipe="fair", task="cls", device="cpu",
            epochs=arguments.epochs, limit=arguments.limit, seed=arguments.seed,
        )  # fmt: skip
        training.report()
        rows.append(row_of(model, run))
        table = table_of(rows)
        facts = {
            "rows": table.to_dict("records"), "recipe": "fair", "epochs": arguments.epochs,
            "limit": arguments.limit, "seed": arguments.seed,
            "data": Path(arguments.data).name, "processor": processor(), "cores": usable_cores(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }  # fmt: skip
        (arguments.out / "zoo.json").write_text(json.dumps(facts, indent=2) + "\n")
        print(table.to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
