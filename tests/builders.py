"""Synthetic runs, written through the store, with plausible and reproducible numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from robustcli.evaluation.record import (
    EVALUATION,
    RunRecord,
    Session,
    TransformRecord,
    write_session,
)
from robustcli.evaluation.store import INPUT_SCHEMA, SKIPPED_SCHEMA, Store, write_rows
from robustcli.metrics.columns import PREDICTION_SCHEMA
from robustcli.tasks.record import DatasetRecord, ModelCost, ModelRecord, PreprocessingRecord
from robustcli.transforms.base import Cell

PAPER21 = (
    *("additive_gaussian_noise", "affine", "crop", "hue_and_saturation", "crop_and_pad", "cutout"),
    *("dropout", "edge_detect", "emboss", "piecewise_affine", "salt", "fast_snowy_landscape"),
    *("fliplr", "gaussian_blur", "grayscale", "invert", "linear_contrast", "multiply"),
    *("multiply_per_channel", "perspective", "flipud"),
)
CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur"),
    *("zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform"),
    *("pixelate", "jpeg_compression", "speckle_noise", "gaussian_blur", "spatter", "saturate"),
)
IDENTITY = TransformRecord(
    name="identity", severity=0, family="identity", geometric=False, parameters={}, assumed=False
)
WHEN = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


def paper21(severity: int = 0) -> list[TransformRecord]:
    return [
        TransformRecord(
            name=name,
            severity=severity,
            family="paper21",
            geometric="affine" in name or name in ("perspective", "fliplr", "flipud", "crop"),
            parameters={"strength": [0.0, 0.5], "per_channel": True},
            assumed=True,
        )
        for name in PAPER21
    ]


def imagenet_c(
    prefix: str = "c_", severities: Sequence[int] = (1, 2, 3, 4, 5)
) -> list[TransformRecord]:
    return [
        TransformRecord(
            name=prefix + name,
            severity=severity,
            family="imagenet-c",
            geometric=False,
            parameters={"severity": severity},
            assumed=False,
        )
        for name in CORRUPTIONS
        for severity in severities
    ]


def model(name: str, pretraining: str = "imagenet-1k", **changes: object) -> ModelRecord:
    record = ModelRecord(
        name=name,
        family=name.split("-")[0],
        builder=f"{name}.in1k",
        parameters=89_000_000,
        weights=f"{name}.safetensors",
        weights_sha256="ab" * 32,
        pretraining=pretraining,
        label_space="imagenet-1k",
        preprocessing=PreprocessingRecord(
            resize=256, crop=224, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        view="r256c224",
    )
    return record.model_copy(update=changes)


@dataclass(frozen=True)
class RunPlan:
    """What to make up; `done` is the share of each cell's images that is finished.

    The accuracy falls with the rank of a model; that of the first model is `first_rank`.
    """

    models: Sequence[ModelRecord] = (model("vmamba-b"),)
    transforms: Sequence[TransformRecord] = (IDENTITY, *paper21())
    images: int = 60
    classes: int = 10
    block_size: int = 32
    done: float = 1.0
    skipped: Sequence[tuple[str, str]] = ()
    dataset: dict[str, object] = field(default_factory=dict)
    record: dict[str, object] = field(default_factory=dict)
    samples: bool = True
    first_rank: int = 0


def build_run(run: Path, plan: RunPlan = RunPlan()) -> Path:
    """Writes the run that `plan` describes and returns its directory."""
    EVALUATION.write(run, run_record(plan))
    store = Store(run)
    ids = [f"class-{i % plan.classes:02d}/photo-{i:05d}.jpeg" for i in range(plan.images)]
    skipped: list[dict[str, object]] = [
        {"image_id": image, "reason": reason} for image, reason in plan.skipped
    ]
    readable = [image for image in ids if image not in dict(plan.skipped)]
    if skipped:
        write_rows(store.skipped_path(0), skipped, SKIPPED_SCHEMA)
    for number, transform in enumerate(plan.transforms):
        _write_cell(store, plan, transform, readable, number)
    _write_session(run, plan)
    if plan.samples:
        _write_samples(run, plan.transforms)
    return run


def run_record(plan: RunPlan) -> RunRecord:
    """Returns the record of the run that `plan` describes."""
    dataset = DatasetRecord(
        name="imagenet-val",
        location="photos/val",
        label_space="imagenet-1k",
        classes=plan.classes,
        images=plan.images,
        images_available=50_000,
        subset=None,
        demonstration=False,
        digest="cd" * 32,
    ).model_copy(update=plan.dataset)
    names = " ".join(f"--model {m.name}" for m in plan.models)
    return RunRecord(
        command=f"robust eval {names} --data photos/val --transform paper21 --seed 0",
        status="complete",
        created=WHEN,
        updated=WHEN,
        seed=0,
        apply_at="original",
        precision="fp32",
        block_size=plan.block_size,
        dataset=dataset,
        models=list(plan.models),
        transforms=list(plan.transforms),
        versions={"robustcli": "0.1.0", "torch": "2.6.0", "imgaug": "0.4.2", "python": "3.11.2"},
        device="cpu (2 threads)",
    ).model_copy(update=plan.record)


def top1_of(transform: TransformRecord, number: int, rank: int) -> float:
    """The made-up accuracy: spread over the transforms, falling with severity and rank."""
    if transform.name == "identity":
        return 0.84 - 0.02 * rank
    hardness = (number * 7 % 22) / 22 if transform.severity == 0 else (len(transform.name) % 7) / 9
    fall = (
        0.25 * hardness if transform.severity == 0 else 0.15 * transform.severity * (0.3 + hardness)
    )
    return max(0.03, 0.835 - 0.03 * rank - fall)


def _write_cell(
    store: Store, plan: RunPlan, transform: TransformRecord, ids: Sequence[str], number: int
) -> None:
    cell = Cell(transform.name, transform.severity)
    finished = ids[: round(len(ids) * plan.done)]
    for block, start in enumerate(range(0, len(finished), plan.block_size)):
        part = finished[start : start + plan.block_size]
        for rank, entry in enumerate(plan.models, plan.first_rank):
            share = top1_of(transform, number, rank)
            rows = [_prediction(image, share, rank, plan.classes) for image in part]
            write_rows(store.prediction_path(entry.name, cell, block), rows, PREDICTION_SCHEMA)
        for view in dict.fromkeys(entry.view for entry in plan.models):
            rows = [_input(image, transform, number) for image in part]
            write_rows(store.input_path(view, cell, block), rows, INPUT_SCHEMA)


def _prediction(image: str, share: float, rank: int, classes: int) -> dict[str, object]:
    index = int(image[-10:-5])
    target = index % classes
    # A golden-ratio sequence is evenly spread, so the share of right answers is close to `share`.
    right = (index * 0.618034 + 0.07 * rank) % 1.0 < share
    prediction = target if right else (target + 1) % classes
    top5 = [(prediction + shift) % classes for shift in range(min(5, classes))]
    if not right and index % 2 and classes > 5:  # the true class is in the second place
        top5 = [prediction, target, *top5[1:-1]]
    return {
        "image_id": image,
        "target": target,
        "prediction": prediction,
        "top5": top5,
        "probability": 0.75,
        "target_probability": 0.75 if right else 0.125,
    }


def _input(image: str, transform: TransformRecord, number: int) -> dict[str, object]:
    unchanged = transform.name == "identity" or (number % 5 == 0 and image[-6] == "0")
    psnr = float("inf") if unchanged else 30.0 - 2 * transform.severity - number % 9
    return {"image_id": image, "digest": "0" * 16, "psnr_db": psnr, "changed": not unchanged}


def _write_session(run: Path, plan: RunPlan) -> None:
    passes = plan.images * len(plan.transforms)
    session = Session(
        started=WHEN,
        seconds=passes / 10,
        waiting_seconds=passes / 100,
        device="cpu",
        threads=2,
        batch_size=32,
        models={m.name: ModelCost(images=passes, seconds=passes / 20) for m in plan.models},
    )
    write_session(run, "00000000", session)


def _write_samples(run: Path, transforms: Sequence[TransformRecord]) -> None:
    folder = run / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    gradient = np.linspace(40, 220, 256, dtype=np.uint8)
    photo = np.stack([np.tile(gradient, (192, 1))] * 3, axis=-1)
    Image.fromarray(photo).save(folder / "clean.png")
    for number, transform in enumerate(transforms):
        picture = Image.fromarray(np.roll(photo, 9 * number, axis=1))
        ImageDraw.Draw(picture).ellipse((70, 40, 180, 150), fill=(200, 8 * number % 255, 90))
        picture.save(folder / f"{transform.name}-s{transform.severity}.png")
