"""Trains the bundled `umamba-pico` on the fluorescence images of `nuclei-mini`.

    python recipes/train_umamba_pico.py --out runs/umamba-pico --asset umamba-pico.safetensors

The training is that of `robust train seg`, and can be repeated with the same command. The held-out
images are not used for any selection: the epoch is selected on the validation images.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from robustcli.evaluation.cell_table import table
from robustcli.training.config import TrainConfig
from robustcli.training.engine import run_training
from robustcli.training.record import read_train_record

SETTINGS = TrainConfig(
    model="umamba-pico", data="nuclei-mini:fluorescence", epochs=40, batch_size=8, window=128,
    lr=2e-3, device="cpu", command="python recipes/train_umamba_pico.py",
)  # fmt: skip


class Printing:
    """A listener that prints messages, without a progress bar."""

    def say(self, text: str) -> None:
        """Prints `text`."""
        print(text, flush=True)

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        """Ignored."""

    def advance(self, count: int) -> None:
        """Ignored."""


def main() -> None:
    """Trains; writes the weights, and a file that describes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/umamba-pico"))
    parser.add_argument("--asset", type=Path, default=Path("umamba-pico.safetensors"))
    given = parser.parse_args()
    run = run_training(TrainConfig(**{**vars(SETTINGS), "out": given.out}), Printing())
    shutil.copyfile(run / "weights.safetensors", given.asset)
    facts = json.dumps(facts_of(run), indent=2) + "\n"
    given.asset.with_suffix(".json").write_text(facts, encoding="utf-8")
    print(facts)


def facts_of(run: Path) -> dict[str, object]:
    """The description of the weights: recipe, data, held-out dice, time and machine."""
    record, row = read_train_record(run), table(run / "test").iloc[0]
    lines = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()
    seconds = lines[0].split(",").index("seconds")
    return {
        "recipe": record.recipe.model_dump(mode="json"),
        "data": record.dataset.name,
        "seed": record.seed,
        "chosen_epoch": record.chosen_epoch,
        "held_out_images": int(row["n"]),
        "held_out_groups": int(row["groups"]),
        "dice": round(float(row["dice"]), 4),
        "dice_low": round(float(row["dice_low"]), 4),
        "dice_high": round(float(row["dice_high"]), 4),
        "minutes": round(sum(float(line.split(",")[seconds]) for line in lines[1:]) / 60, 1),
        "threads": record.threads,
        "torch": record.versions["torch"],
    }


if __name__ == "__main__":
    main()
