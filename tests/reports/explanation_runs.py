"""Synthetic runs of `robust explain`, written through their store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from robustcli.evaluation.record import TransformRecord
from robustcli.explanation.methods import METHODS
from robustcli.explanation.record import (
    EXPLANATION,
    Arrays,
    ChoiceRecord,
    ExplainRecord,
    rows_path,
    write_block,
)
from robustcli.tasks.record import DatasetRecord
from robustcli.transforms.base import CLEAN, Cell
from tests.builders import WHEN, model, paper21

SIDE = 16
(PERSPECTIVE,) = (t for t in paper21() if t.name == "perspective")
(INVERT,) = (t for t in paper21() if t.name == "invert")
LABELS = ("tench", "goldfish", "great white shark", "tiger shark")


@dataclass(frozen=True)
class ExplainPlan:
    """The synthetic run to write.

    Args:
        methods: Names of METHODS.
        transforms: One file each.
        images: Number of photos; the transform flips the prediction of every third.
        further: Additional distance in pixels that a map moves if the prediction flips.
        sanity: Whether maps were repeated with shuffled weights.
        done: Number of photos that have rows; None for all.
        labels: Names of the classes.
        record: Further fields of the record.
        name: Name of the model.
    """

    methods: Sequence[str] = ("integrated-gradients", "grad-cam")
    transforms: Sequence[TransformRecord] = (PERSPECTIVE,)
    images: int = 18
    further: float = 2.0
    sanity: bool = True
    done: int | None = None
    labels: Sequence[str] = LABELS
    record: dict[str, object] = field(default_factory=dict)
    name: str = "vmamba-b"

    @property
    def ids(self) -> list[str]:
        """Returns the ids of the photos."""
        return [f"class-{i % 4}/photo-{i:03d}.jpeg" for i in range(self.images)]


def build_explanation(run: Path, plan: ExplainPlan = ExplainPlan()) -> Path:
    """Writes the run that `plan` describes and returns its directory."""
    EXPLANATION.write(run, _record(plan))
    for number, transform in enumerate(plan.transforms):
        for name in plan.methods:
            _write_block(run, plan, name, transform, number)
    return run


def _record(plan: ExplainPlan) -> ExplainRecord:
    dataset = DatasetRecord(
        name="imagenet-val", location="photos/val", label_space="imagenet-1k", classes=4,
        images=plan.images, images_available=50_000, subset="the worst", demonstration=False,
        digest="cd" * 32,
    )  # fmt: skip
    record = ExplainRecord(
        command=f"robust explain --model {plan.name} --transform perspective",
        status="complete" if plan.done is None else "partial",
        created=WHEN, updated=WHEN, task="cls", seed=0, apply_at="original", block_size=64,
        dataset=dataset, model=model(plan.name), transforms=list(plan.transforms),
        methods=list(plan.methods), layer=None, sanity=plan.sanity,
        choice=ChoiceRecord(rule="worst", count=plan.images), images=plan.ids,
        versions={"robustcli": "0.1.0", "torch": "2.6.0"}, device="cpu (2 threads)",
    )  # fmt: skip
    return record.model_copy(update=plan.record)


def spot(row: float, column: float) -> np.ndarray:
    """Returns a map with its evidence around one position."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.exp(-((y - row) ** 2 + (x - column) ** 2) / 8)


def _write_block(
    run: Path, plan: ExplainPlan, name: str, transform: TransformRecord, number: int
) -> None:
    method, cell = METHODS[name], Cell(transform.name, transform.severity)
    path = rows_path(run, plan.name, name, cell, 0)
    draw = np.random.default_rng([number, len(name)])
    kinds = ("true", "predicted") if method.targeted else ("none",)
    rows, maps, photos, pictures, ids, views = [], [], [], [], [], []
    for i, image_id in enumerate(plan.ids[: plan.done]):
        flips, truth = i % 3 == 0, i % 4
        predictions = {"clean": truth, "transformed": (truth + 1) % 4 if flips else truth}
        shift = 1 + plan.further * flips + 0.2 * draw.random()
        for view in ("clean", "transformed")[: 1 if cell == CLEAN else 2]:
            photo = np.full((SIDE, SIDE, 3), 90, dtype=np.uint8)
            photo[2:9, 3:9] = (200, 30 + 5 * i, 90)
            photos.append(np.roll(photo, 2 * (view == "transformed"), axis=1))
            ids.append(image_id)
            views.append(view)
            for kind in kinds:
                is_transformed = view == "transformed"
                target = {"true": truth, "predicted": predictions["transformed"], "none": None}[
                    kind
                ]
                relevance = spot(6, 5 + is_transformed * shift) - 0.6 * spot(12, 12)
                maps.append(relevance)
                pictures.append(np.roll(photos[-1], 3, axis=0))
                rows.append(
                    {
                        "model": plan.name, "image_id": image_id, "method": name,
                        "transform": cell.transform, "severity": cell.severity, "view": view,
                        "target_kind": kind, "target_class": target,
                        "target_label": None if target is None else plan.labels[target],
                        "probability": None if target is None else
                        (0.8 if target == predictions[view] else 0.06),
                        "prediction": predictions[view], "true_class": truth,
                        "flipped": None if cell == CLEAN else flips,
                        "array_file": path.with_suffix(".npz").relative_to(run).as_posix(),
                        "array_index": len(maps) - 1, "photo_index": len(photos) - 1,
                        **(_scores(plan, name, view, shift, draw)
                           if method.kind == "localised" else {}),
                    }
                )  # fmt: skip
    picture_array = np.array(pictures, dtype=np.uint8) if method.kind == "learned" else None
    arrays = Arrays(
        np.array(maps, dtype=np.float16), np.array(photos), tuple(ids), tuple(views), picture_array
    )
    write_block(path, rows, arrays)


def _scores(
    plan: ExplainPlan, name: str, view: str, shift: float, draw: np.random.Generator
) -> dict[str, object]:
    scores: dict[str, object] = {
        "insertion_auc": 0.6 + 0.1 * draw.random(),
        "deletion_auc": 0.2 + 0.1 * draw.random(),
    }
    if name == "integrated-gradients":
        scores["completeness_error"] = 0.001 * draw.random()
    if name == "relevance":
        scores["conservation_error"] = 1e-7 * draw.random()
    if view == "transformed":
        scores |= {"map_similarity": 0.9 - 0.1 * shift, "centroid_shift": shift / 21.2}
        scores["map_moved"] = name != "attention"
    elif plan.sanity:
        scores["sanity_similarity"] = 0.1 * draw.normal()
    return scores
