"""Synthetic evaluations of segmenters, written through the store, with reproducible numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from robustcli.evaluation.record import (
    EVALUATION,
    RunRecord,
    Session,
    TransformRecord,
    write_session,
)
from robustcli.evaluation.store import INPUT_SCHEMA, Store, write_rows
from robustcli.metrics.columns import MASK_SCHEMA
from robustcli.tasks.record import (
    CaseRank,
    MaskPreprocessingRecord,
    MasksRecord,
    ModelCost,
    ModelRecord,
    Panel,
    write_panels,
)
from robustcli.transforms.base import Cell
from tests.builders import IDENTITY, WHEN, RunPlan, paper21, run_record

AREA = 64 * 64
RANKS: tuple[CaseRank, ...] = ("best", "median", "worst")
UNUSUAL_MASKS = MasksRecord(
    foreground=["128"], background=None, ignored=["255"], channel="colour",
    words="foreground is `128`, `255` is ignored",
)  # fmt: skip


def segmenter(name: str, **changes: object) -> ModelRecord:
    record = ModelRecord(
        name=name,
        family="ulvm",
        builder="ulvm_v5",
        parameters=703_885,
        weights=f"{name}/weights.safetensors",
        weights_sha256="ef" * 32,
        pretraining="nuclei-mini, protocol patient",
        label_space="foreground",
        preprocessing=MaskPreprocessingRecord(
            window=128, channels="rgb", threshold=0.5, overlap=0.5
        ),
        view="original",
    )
    return record.model_copy(update=changes)


@dataclass(frozen=True)
class MaskPlan:
    """The synthetic evaluation; every `empty_every`-th image has no foreground, 0 for none."""

    models: Sequence[ModelRecord] = (segmenter("ulvm_v5"),)
    transforms: Sequence[TransformRecord] = (IDENTITY, *paper21()[:6])
    images: int = 24
    groups: int = 8
    grouping: str = "patient"
    done: float = 1.0
    empty_every: int = 6
    base: float = 0.85
    dataset: dict[str, object] = field(default_factory=dict)
    record: dict[str, object] = field(default_factory=dict)
    panels: bool = True


def build_masks(run: Path, plan: MaskPlan = MaskPlan()) -> Path:
    """Writes the evaluation that `plan` describes and returns its directory."""
    EVALUATION.write(run, _record(plan))
    ids = [f"p{i % plan.groups:02d}/slice-{i:04d}.tif" for i in range(plan.images)]
    finished_ids = ids[: round(len(ids) * plan.done)]
    for number, transform in enumerate(plan.transforms):
        _write_cell(Store(run), plan, transform, finished_ids, number)
    passes = len(finished_ids) * len(plan.transforms)
    session = Session(
        started=WHEN,
        seconds=passes / 8,
        waiting_seconds=passes / 200,
        device="cpu",
        threads=2,
        batch_size=8,
        models={m.name: ModelCost(images=passes, seconds=passes / 10) for m in plan.models},
    )
    write_session(run, "00000000", session)
    if plan.panels:
        _write_panels(run, plan, ids)
    return run


def rewrite_groups(run: Path, groups: Mapping[int, str]) -> None:
    """Changes the group of images, by their number, in all cells of a run of one block."""
    for path in run.glob("predictions/*/*/*/block-000000.parquet"):
        rows = pq.ParquetFile(path).read().to_pylist()
        for number, group in groups.items():
            rows[number]["group"] = group
        write_rows(path, rows, MASK_SCHEMA)


def _record(plan: MaskPlan) -> RunRecord:
    names = " ".join(f"--model {m.name}" for m in plan.models)
    dataset = {
        "name": "kaggle_3m", "location": "lgg/kaggle_3m", "label_space": "foreground", "classes": 2,
        "images_available": plan.images, **plan.dataset,
    }  # fmt: skip
    record = {
        "task": "seg", "grouping": plan.grouping, "split": "all",
        "command": f"robust eval {names} --data lgg/kaggle_3m --transform paper21",
        "versions": {"robust": "0.1.0", "torch": "2.6.0"}, **plan.record,
    }  # fmt: skip
    return run_record(
        RunPlan(plan.models, plan.transforms, plan.images, block_size=16, dataset=dataset,
                record=record)
    )  # fmt: skip


def _write_cell(
    store: Store, plan: MaskPlan, transform: TransformRecord, ids: Sequence[str], number: int
) -> None:
    cell = Cell(transform.name, transform.severity)
    rows = [
        {
            "image_id": image,
            "digest": "0" * 16,
            "psnr_db": float("inf") if number == 0 else 25.0 + number,
            "changed": number > 0,
        }
        for image in ids
    ]
    if ids:
        write_rows(store.input_path("original", cell, 0), rows, INPUT_SCHEMA)
    for rank, model in enumerate(plan.models):
        drop = 0.05 * rank + (0.0 if number == 0 else 0.02 * (number * 7 % 22))
        drop += 0.08 * transform.severity
        predictions = [_row(image, plan, max(0.02, plan.base - drop)) for image in ids]
        if ids:
            write_rows(store.prediction_path(model.name, cell, 0), predictions, MASK_SCHEMA)


def _row(image: str, plan: MaskPlan, quality: float) -> dict[str, object]:
    index = int(image[-8:-4])
    is_empty = plan.empty_every > 0 and index % plan.empty_every == plan.empty_every - 1
    true_pixels = 0 if is_empty else 200 + 37 * index % 400
    # A golden-ratio sequence is evenly spread around the requested quality.
    share = float(np.clip(quality + 0.2 * ((index * 0.618034) % 1.0 - 0.5), 0, 1))
    tp = round(true_pixels * share)
    fp = (3 if index % 4 == 0 else 0) if is_empty else round(true_pixels * (1 - share))
    is_defined = tp > 0
    row: dict[str, object] = {
        "image_id": image,
        "group": image.split("/")[0],
        "tp": tp,
        "fp": fp,
        "fn": true_pixels - tp,
        "tn": AREA - true_pixels - fp,
        "hd95": 3.0 + index % 5 if is_defined else None,
        "boundary_dice": share if is_defined else None,
    }
    if plan.dataset.get("tolerance") is not None:
        row |= {"predicted_near": tp + fp // 2, "true_near": tp + (true_pixels - tp) // 3}
    return row


def _write_panels(run: Path, plan: MaskPlan, ids: Sequence[str]) -> None:
    panels = [
        Panel(
            model=model.name,
            rank=rank,
            number=1,
            image_id=ids[number],
            group=ids[number].split("/")[0],
            dice=0.9 - 0.3 * number,
        )
        for model in plan.models
        for number, rank in enumerate(RANKS)
    ]
    write_panels(run, panels)
    for number, panel in enumerate(panels):
        folder = panel.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        rows, columns = np.mgrid[:48, :64]
        truth = (rows - 24) ** 2 + (columns - 30) ** 2 < 200
        photo = np.stack([90 + 2 * rows, 60 + truth * 90, 80 + columns], axis=-1).astype(np.uint8)
        shifted = np.roll(truth, 3 * (number % 3), axis=1)
        Image.fromarray(photo).save(folder / "image.png")
        Image.fromarray((truth * 255).astype(np.uint8)).save(folder / "truth.png")
        Image.fromarray((shifted * 230).astype(np.uint8)).save(folder / "prediction.png")
