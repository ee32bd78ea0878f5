"""Chooses the learning rates of recipe `fair`: each network under three rates, on few images.

    python recipes/fair_learning_rates.py --models vim vit resnet9 --data DIR --out runs/rates

The budget is small, so that two CPU cores do it: 4 epochs of about 3,000 images where the recipe
has 100 of all. It separates rates that are far too small or too large, and no more. A rate is
judged by the validation top-1 after the last epoch; the test images take no part. The same command
goes on after an interruption. Prints a table, and writes it to OUT/rates.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import pandas as pd
import torch

import robustcli
from robustcli.core.machine import processor
from robustcli.training.record import read_train_record

RATES = (3e-4, 1e-3, 3e-3)


def main() -> None:
    """Trains every network with every rate, and says which rate was best for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = []
    for model in arguments.models:
        for rate in arguments.rates:
            run = arguments.out / f"{model}-{rate:g}"
            robustcli.train(
                model, data=arguments.data, out=run, recipe="fair", lr=rate, task="cls",
                epochs=arguments.epochs, limit=arguments.limit, seed=arguments.seed, device="cpu",
            )  # fmt: skip
            record, metrics = read_train_record(run), pd.read_csv(run / "metrics.csv")
            row = {
                "model": model, "family": record.family, "lr": rate,
                "train_loss": float(metrics["train_loss"].iloc[-1]),
                "val_loss": float(metrics["val_loss"].iloc[-1]),
                "val_top1": float(metrics["val_top1"].iloc[-1]),
                "images": record.splits["train"].images, "validated": record.splits["val"].images,
            }  # fmt: skip
            rows.append(row)
            print(" ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    table = pd.DataFrame(rows)
    best = table.loc[table.groupby("model")["val_top1"].idxmax()]
    print(best[["model", "family", "lr", "val_top1"]].to_string(index=False))
    facts = {
        "rows": rows, "epochs": arguments.epochs, "limit": arguments.limit,
        "seed": arguments.seed, "data": Path(arguments.data).name, "processor": processor(),
        "torch": torch.__version__, "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }  # fmt: skip
    (arguments.out / "rates.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
