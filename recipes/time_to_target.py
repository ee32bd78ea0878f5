"""Recipe `speedrun` with several seeds: top-1 and seconds with intervals, as in airbench.

    python recipes/time_to_target.py --model resnet9 --data cifar10 --seeds 5 --out runs/speedrun

airbench (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024) reports the mean accuracy
over many runs of a fixed length, and the seconds of a run from the first step on. The length is
fixed here too. For each seed, this script prints the top-1 on the held-out images, the seconds of
all training steps with and without the first batch, and the seconds up to the first epoch that
reached the target on the validation images. Intervals are 95 % intervals of the mean over seeds, by
Student's t. The same command resumes after an interruption.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from scipy import stats

import robustcli
from robustcli.evaluation.cell_table import table
from robustcli.training.record import read_train_record


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t; NaN with fewer than two values."""
    mean, count = sum(values) / len(values), len(values)
    if count < 2:
        return mean, math.nan, math.nan
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return mean, mean - half, mean + half


def row_of(seed: int, run: Path) -> dict[str, float | int | None]:
    """The results of the training in the folder `run`, as a row of the table."""
    record = read_train_record(run)
    speed, test = record.speed, table(run / "test").iloc[0]
    if speed is None:
        raise SystemExit(f"`{run}` counted no seconds: it was not trained under `speedrun`.")
    return {
        "seed": seed, "top1": float(test["top1"]), "seconds": speed.seconds,
        "seconds_warm": speed.seconds - speed.warm_up_seconds,
        "to_target": speed.seconds_to_target, "to_target_warm": speed.seconds_to_target_warm,
        "images_per_second": speed.images_per_second,
    }  # fmt: skip


def main() -> None:
    """Trains with each seed; prints one line per seed, and one with the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet9")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--target", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        run = arguments.out / f"seed-{seed}"
        robustcli.train(
            arguments.model, data=arguments.data, out=run, recipe="speedrun", task="cls",
            seed=seed, target=arguments.target, epochs=arguments.epochs, limit=arguments.limit,
            device=arguments.device,
        )  # fmt: skip
        rows.append(row_of(seed, run))
    record = read_train_record(arguments.out / "seed-0")
    assert record.speed is not None
    print(pd.DataFrame(rows).to_string(index=False))
    print(f"{arguments.model} on {record.device}, {record.recipe.precision}:")
    reached = [row for row in rows if row["to_target"] is not None]
    print(f"{len(reached)} of {len(rows)} runs reached {100 * record.speed.target:g} % of the "
          "validation images.")  # fmt: skip
    means = {}
    for name in ("top1", "seconds", "seconds_warm", "to_target", "to_target_warm"):
        values = [value for row in rows if (value := row[name]) is not None]
        if values:
            means[name] = mean, low, high = mean_interval(values)
            print(f"{name:<16} {mean:.4f} ({low:.4f} to {high:.4f})")
    facts = {"rows": rows, "means": means, "device": record.device}
    (arguments.out / "speedrun.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
