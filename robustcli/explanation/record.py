"""Format of `run.json` of `robust explain`, as Pydantic models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from robustcli.core.rundir import BaseRunRecord, Record, RunKind, changed_fields
from robustcli.evaluation.record import TransformRecord
from robustcli.tasks.record import DatasetRecord, EvaluatedPart, ModelRecord, dataset_differences

ChoiceRule = Literal["ids", "worst", "class", "subset"]


class ChoiceRecord(Record):
    """How the explained photos were selected.

    Args:
        rule: `ids`: named by the user; `worst`: largest fall of the score under the transforms;
            `class`: photos of one class; `subset`: a random subset.
        count: Requested number of photos; None for all.
        class_name: True class of the photos; None for any.
        source: Folder of the evaluation whose predictions were used; None if none was named.
    """

    rule: ChoiceRule
    count: int | None = None
    class_name: str | None = None
    source: str | None = None


class ExplainRecord(BaseRunRecord):
    """The content of `run.json` of an explanation.

    `methods` are names in `methods.METHODS`. `layer` is the layer that the user named for Grad-CAM.
    `sanity` is whether maps were repeated with shuffled weights. `images` are the ids of the
    explained photos in order (empty until they are selected), with `block_size` photos per file.
    `boxes` is the SHA-256 of the file of object boxes. `mask_class` is the explained class of a
    segmenter with several classes; None for all classes against background.
    """

    kind: Literal["explanation"] = "explanation"
    task: Literal["cls", "seg"]
    status: Literal["running", "complete", "partial", "failed"]
    seed: int
    apply_at: Literal["original", "crop"]
    block_size: int
    dataset: DatasetRecord
    model: ModelRecord
    transforms: list[TransformRecord]
    methods: list[str]
    layer: str | None
    sanity: bool
    choice: ChoiceRecord
    images: list[str]
    versions: dict[str, str]
    device: str
    split: EvaluatedPart | None = None
    boxes: str | None = None
    mask_class: str | None = None


_FLAGS = {
    "seed": "`--seed`",
    "apply_at": "`--apply-at`",
    "layer": "`--layer`",
    "sanity": "`--sanity`",
    "boxes": "the hash of `--boxes`",
    "mask_class": "`--class`",
}
_MODEL_FLAGS = {
    "name": "`--model`",
    "builder": "`--model`",
    "weights_sha256": "the hash of the weights (`--weights`)",
    "arguments": "`--model-arg`",
    "preprocessing": "preprocessing (`--resize`, `--crop`, `--interpolation`, `--mean`, `--std`)",
    "untrained": "`--untrained`",
}


def _differences(old: ExplainRecord, new: ExplainRecord) -> Iterator[str]:
    yield from changed_fields(old.model, new.model, _MODEL_FLAGS)
    yield from dataset_differences(
        old.dataset, new.dataset, "`--data`, `--per-class`, `--limit`, `--split`, `--seed`"
    )
    yield from changed_fields(old, new, _FLAGS)
    before, now = ([f"{t.name} {t.parameters}" for t in record.transforms] for record in (old, new))
    if before != now:
        names = [", ".join(t.name for t in record.transforms) for record in (old, new)]
        yield f"`--transform` was {names[0]}, now it is {names[1]}."


def _kept_fields(old: ExplainRecord, new: ExplainRecord) -> dict[str, Any]:
    """Fields of the new record that keep old values: block size, photos, and all old methods."""
    methods = list(dict.fromkeys([*old.methods, *new.methods]))
    return {"block_size": old.block_size, "methods": methods, "images": old.images}


EXPLANATION = RunKind(
    ExplainRecord,
    "an explanation",
    "robust explain",
    ("rows", "panels", "figures", "evaluation"),
    ("results.csv", "results.json", "report.md", "report.html"),
    _differences,
    _kept_fields,
    interrupted="partial",
)
"""Defines the run folders of `robust explain`."""


def read_explain_record(run: Path) -> ExplainRecord:
    """The record of the explanation in the folder `run`. Raises the errors of `RunKind.read`."""
    return EXPLANATION.read(run)
