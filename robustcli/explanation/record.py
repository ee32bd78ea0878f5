"""`run.json` of `robust explain`. These Pydantic models are the file format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from robustcli.core.rundir import BaseRunRecord, Record, RunKind, changed_fields
from robustcli.evaluation.record import TransformRecord
from robustcli.tasks.record import DatasetRecord, EvaluatedPart, ModelRecord, dataset_differences

ChoiceRule = Literal["ids", "worst", "class", "subset"]


class ChoiceRecord(Record):
    """How the explained photos were chosen.

    Args:
        rule: `ids`: the user named them; `worst`: those that lose most under the transforms;
            `class`: all of one class; `subset`: a random subset.
        count: How many were asked for; None for all.
        class_name: The true class that all of them have; None for any.
        source: The folder of the evaluation whose predictions decided; None where none did.
    """

    rule: ChoiceRule
    count: int | None = None
    class_name: str | None = None
    source: str | None = None


class ExplainRecord(BaseRunRecord):
    """All of `run.json` of an explanation.

    `methods` are names of `methods.METHODS`, `layer` is what the user named for Grad-CAM, `sanity`
    says whether maps were repeated with shuffled weights, `images` are the explained photos in
    order, `block_size` of which share a file. They are empty until they are chosen. `boxes` is the
    SHA-256 of the file that says where objects are; `mask_class` is the one of a segmenter's
    several classes that the maps explain, None for all of them against background.
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


def _kept(old: ExplainRecord, new: ExplainRecord) -> dict[str, Any]:
    """The old methods before the new ones, the photos, and the size of the blocks."""
    methods = list(dict.fromkeys([*old.methods, *new.methods]))
    return {"block_size": old.block_size, "methods": methods, "images": old.images}


EXPLANATION = RunKind(
    ExplainRecord,
    "an explanation",
    "robust explain",
    ("rows", "panels", "figures", "evaluation"),
    ("results.csv", "results.json", "report.md", "report.html"),
    _differences,
    _kept,
    interrupted="partial",
)
"""The run folders of `robust explain`."""


def read_explain_record(run: Path) -> ExplainRecord:
    """The record of the explanation in the folder `run`; raises as `RunKind.read` does."""
    return EXPLANATION.read(run)
