"""Synthetic trainings and fine-tunings with several seeds, in the files of real ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from robustcli.training.record import (
    SEEDS,
    TRAINING,
    SeedFailure,
    SeedsRecord,
    read_train_record,
    seed_folder,
)
from tests.builders import WHEN
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.train_runs import TrainPlan, build_class_training, build_training

SEGMENTER, TUNING = TrainPlan(), FinetunePlan()
QUALITY = (0.85, 0.86, 0.83)
"""What decides the dice of each seed, see `mask_runs`."""


def build_seeds(
    run: Path, plan: TrainPlan = SEGMENTER, qualities: Sequence[float] = QUALITY,
    missing: int = 0,
) -> Path:  # fmt: skip
    """Writes trainings from seed 0 on; the last `missing` ones are not finished."""
    run.mkdir(parents=True, exist_ok=True)
    finished = len(qualities) - missing
    for seed, base in enumerate(qualities):
        seed_plan = replace(plan, measured=seed < finished, finished=None if seed < finished else 2)
        folder = build_training(seed_folder(run, seed), replace(seed_plan, base=base))
        TRAINING.update(folder, seed=seed, split_seed=0 if seed else None)
    failures = [
        SeedFailure(seed=seed, error="The loss is not finite.") for seed in range(finished, 3)
    ]
    _write(run, seed_folder(run, 0), len(qualities), failures[:missing])
    return run


def build_class_seeds(run: Path, count: int = 2) -> Path:
    """Writes trainings of a classifier."""
    for seed in range(count):
        build_class_training(seed_folder(run, seed))
    _write(run, seed_folder(run, 0), count, [])
    return run


def build_tuned_seeds(run: Path, count: int = 2, plan: FinetunePlan = TUNING) -> Path:
    """Writes fine-tunings; the modes of the second seed have slightly lower scores."""
    for seed in range(count):
        build_finetuning(seed_folder(run, seed), plan)
        for number, mode in enumerate(plan.modes if seed else ()):
            seed_plan = replace(plan.training, base=0.8 - 0.03 * number - 0.01 * seed)
            build_training(seed_folder(run, seed) / mode, replace(seed_plan, epochs=plan.epochs))
    _write(run, seed_folder(run, 0) / plan.modes[0], count, [], command="finetune")
    return run


def _write(
    run: Path, template: Path, count: int, failures: list[SeedFailure], command: str = "train"
) -> None:
    """Writes the record of the seeds; `template` is the folder of one of the trainings."""
    record = read_train_record(template)
    seeds = SeedsRecord.model_validate(
        {
            "command": f"robust {command} {record.task} --model {record.model} --seeds {count}",
            "status": "failed" if failures else "complete",
            "created": WHEN, "updated": WHEN, "of": command, "task": record.task, "seed": 0,
            "count": count, "split_seed": 0, "model": record.model,
            "dataset": record.dataset.model_dump(), "failures": failures,
        }
    )  # fmt: skip
    SEEDS.write(run, seeds)
