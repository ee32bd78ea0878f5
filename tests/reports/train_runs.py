"""Synthetic trainings in the files of `robustcli.training.record`, with reproducible numbers."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from robustcli.tasks.record import DatasetRecord
from robustcli.training.recipes import Protocol
from robustcli.training.record import (
    PAPER,
    TRAINING,
    VALIDATIONS,
    RecipeRecord,
    SplitRecord,
    TrainRecord,
)
from tests.builders import IDENTITY, WHEN, RunPlan, build_run, model
from tests.reports.compared import PLAN, build_evaluation
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter

FAULTS = ["Slices of the same patient are in training and in test.", "Nothing is augmented."]


@dataclass(frozen=True)
class TrainPlan:
    """The synthetic training; `measured` is whether the held-out images were evaluated."""

    model: str = "ulvm_v5"
    parameters: int = 703_885
    protocol: Protocol = "patient"
    epochs: int = 12
    finished: int | None = None
    measured: bool = True
    base: float = 0.85
    grouping: str = "patient"
    groups: int = 8
    images: int = 24
    recipe: dict[str, object] = field(default_factory=dict)
    record: dict[str, object] = field(default_factory=dict)
    dataset: dict[str, object] = field(default_factory=dict)


def build_training(run: Path, plan: TrainPlan = TrainPlan()) -> Path:
    """Writes the training that `plan` describes and returns its directory."""
    run.mkdir(parents=True, exist_ok=True)
    TRAINING.write(run, training_record(plan))
    finished_epochs = plan.epochs if plan.finished is None else plan.finished
    if finished_epochs:
        _metrics(finished_epochs).to_csv(run / "metrics.csv", index=False)
    if plan.measured:
        (run / "weights.safetensors").write_bytes(bytes(4 * plan.parameters // 100))
        test_plan = MaskPlan(
            models=(segmenter(run.name, parameters=plan.parameters),),
            transforms=(IDENTITY,),
            images=plan.images,
            groups=plan.groups,
            grouping=plan.grouping,
            base=plan.base,
            dataset={"tolerance": plan.dataset.get("tolerance")},
        )
        build_masks(run / "test", test_plan)
        otsu = (segmenter("otsu", parameters=0),)
        build_masks(run / "baseline", replace(test_plan, models=otsu, base=0.6, panels=False))
    if plan.measured and plan.protocol == "paper":
        paper_rows().to_parquet(run / "paper.parquet")
    return run


def build_class_training(run: Path, *, measured: bool = True) -> Path:
    """Writes a training of a classifier and returns its directory."""
    run.mkdir(parents=True, exist_ok=True)
    plan = TrainPlan(
        model="vim", epochs=8, measured=measured, grouping="image",
        dataset={"name": "cifar10", "location": "cifar10", "label_space": "cifar10", "classes": 10},
        recipe={"name": "cifar10", "loss": "cross-entropy"},
    )  # fmt: skip
    record = training_record(plan)
    splits = {
        name: SplitRecord(images=part.images, groups=part.images)
        for name, part in record.splits.items()
    }
    changes = {
        "task": "cls",
        "protocol": None,
        "splits": splits,
        "decision": "the class of the highest probability",
        "command": "robust train cls --model vim",
        "chosen_why": "the best top-1 on the validation images, 0.8750" if measured else None,
    }
    TRAINING.write(run, record.model_copy(update=changes))
    metrics = _metrics(8).rename(columns={"val_dice": "val_top1", "val_iou": "val_f1"})
    metrics[list(VALIDATIONS["cls"].metrics)].to_csv(run / "metrics.csv", index=False)
    if measured:
        (run / "weights.safetensors").write_bytes(bytes(1000))
        test_plan = RunPlan(models=(model("vim"),), transforms=(IDENTITY,), samples=False)
        build_run(run / "test", test_plan)
    return run


CLASSIFIERS = ("vim", "vit", "resnet9")


def _measured(run: Path, name: str, offset: int, parameters: int = 1_000) -> Path:
    """Writes a training of a classifier; a larger `offset` gives a lower accuracy."""
    build_class_training(run, measured=False)
    build_evaluation(run / "test", name, offset, replace(PLAN, transforms=(IDENTITY,)))
    TRAINING.update(
        run, model=name, status="complete", parameters=parameters, chosen_epoch=7,
        multiply_adds=2_500 * parameters,
    )  # fmt: skip
    return run


def three_classifiers(folder: Path) -> list[Path]:
    """Writes trainings of CLASSIFIERS on the same images; more parameters give higher scores."""
    return [
        _measured(folder / name, name, 3 * n, 3_000 - 1_000 * n)
        for n, name in enumerate(CLASSIFIERS)
    ]


def paper_rows(images: int = 40) -> pd.DataFrame:
    """Returns rows of protocol `paper`; the last batch of 16 contains no foreground."""
    index = np.arange(images)
    target = np.where(index < 32, 300.0 + 7 * (index % 11), 0.0)
    overlap = np.where(index < 32, np.floor(target * (0.7 + 0.01 * (index % 17))), 0)
    predicted = np.where(index < 32, target - 20, 0.0)
    rows = pd.DataFrame(
        {
            "image_id": [f"p/slice-{i:04d}.tif" for i in index],
            "intersection": overlap,
            "predicted": predicted,
            "target": target,
            "overlap": overlap.astype(int),
            "union": (predicted + target - overlap).astype(int),
        }
    )
    return rows[list(PAPER)]


def _metrics(epochs: int) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    rise = 1 - np.exp(-epoch / 4)
    table = {
        "epoch": epoch,
        "step": 10 * epoch,
        "seconds": np.full(epochs, 4.0),
        "lr": np.full(epochs, 1e-3),
        "train_loss": 1.2 - rise,
        "grad_norm": np.full(epochs, 0.5),
        "val_loss": 1.3 - rise + 0.02 * (epoch % 3),
        "val_dice": 0.8 * rise,
        "val_iou": 0.7 * rise,
        "waiting_share": np.full(epochs, 0.02),
        "val_seconds": np.full(epochs, 0.5),
    }
    return pd.DataFrame(table)[list(VALIDATIONS["seg"].metrics)]


def training_record(plan: TrainPlan) -> TrainRecord:
    paper = plan.protocol == "paper"
    recipe = RecipeRecord(
        name=plan.protocol,
        loss="bce-dice",
        optimizer="AdamW",
        lr=1e-3,
        weight_decay=0.01,
        schedule="constant",
        batch_size=8,
        accumulate=1,
        epochs=plan.epochs,
        clip=1.0,
        window=128,
        augmentation="light",
        patience=None,
        precision="fp32",
        expected_dice=None,
        paper_batch=16 if paper else None,
        source="ours",
    ).model_copy(update=plan.recipe)
    dataset = DatasetRecord(
        name="kaggle_3m",
        location="lgg/kaggle_3m",
        label_space="foreground",
        classes=2,
        images=3929,
        images_available=3929,
        subset=None,
        demonstration=False,
        digest="cd" * 32,
    ).model_copy(update=plan.dataset)
    is_complete = plan.measured
    record = TrainRecord(
        command=f"robust train seg --model {plan.model} --protocol {plan.protocol}",
        status="complete" if is_complete else "running",
        created=WHEN,
        updated=WHEN,
        seed=0,
        protocol=plan.protocol,
        faults=FAULTS if paper else [],
        model=plan.model,
        family="ulvm",
        parameters=plan.parameters,
        multiply_adds=1000 * plan.parameters,
        initial_weights="the documented initialisation, seed 0",
        initial_weights_sha256="aa" * 32,
        dataset=dataset,
        grouping=plan.grouping,
        splits={
            "train": SplitRecord(images=3143, groups=88, empty=2050),
            "val": SplitRecord(images=393, groups=11, empty=260),
            "test": SplitRecord(images=plan.images, groups=plan.groups, empty=4),
        },
        recipe=recipe,
        decision="probability >= 0.5",
        chosen_epoch=plan.epochs - 1 if is_complete else None,
        chosen_why="the best dice on the validation images, 0.7600" if is_complete else None,
        weights_sha256="bb" * 32 if is_complete else None,
        versions={"robust": "0.1.0", "torch": "2.6.0"},
        device="cpu (2 threads)",
        threads=2,
        peak_memory_bytes=3 * 2**29,
    )
    return record.model_copy(update=plan.record)
