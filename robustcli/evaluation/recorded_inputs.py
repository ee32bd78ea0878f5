"""What the record of an evaluation names, found again: its images, models and transforms.

Images are told by their contents, weights by their digest, transforms by their parameters.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from robustcli.adapters.catalogue import FOREGROUND, ModelRequest
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.fetching import state_digest
from robustcli.adapters.load import load, resolve
from robustcli.adapters.model import Model
from robustcli.adapters.training_run import WEIGHTS, header_beside, weights_in
from robustcli.core.errors import MachineError, RobustError, UsageError
from robustcli.core.listener import Silent
from robustcli.data.dataset import Dataset, FileRef, Sample
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.labels import BUNDLED_SPACES, LabelSpace
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.look_up import EVALUATION_TASKS
from robustcli.evaluation.record import RunRecord
from robustcli.evaluation.stored_rows import StoredRows
from robustcli.evaluation.verification_result import Difference, EvaluationCheck
from robustcli.tasks.base import ORIGINAL, Task, measure
from robustcli.tasks.heldout import mask_values_of
from robustcli.tasks.record import ModelRecord
from robustcli.transforms.base import CLEAN, Cell
from robustcli.transforms.registry import TransformCell, resolve_transforms

SAMPLE = 8
"""Blocks that are recomputed unless the user says how many."""


@dataclass(frozen=True)
class VerifyConfig:
    """What is verified, and what lies elsewhere than when the run was made.

    Args:
        run: The folder of an evaluation, a training or a fine-tuning.
        sample: Blocks to recompute of each evaluation; None for all.
        seed: Which blocks.
        data: Where the images are now; None for where the run found them.
        weights: Files of weights, or training runs; those with the recorded digest are taken.
        label_space: The classes file of the models, where it has moved.
        labels: The file with the class of each image, where it has moved.
        plugins: Files that define transforms, where they have moved.
        device: As `--device` takes it.
        offline: Forbids every download.
    """

    run: Path
    sample: int | None = SAMPLE
    seed: int = 0
    data: str | None = None
    weights: tuple[Path, ...] = ()
    label_space: str | None = None
    labels: Path | None = None
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    offline: bool = False


_WHERE_NOW = (
    "Name where they are now: `--data DIR` (and `--label-space FILE` or `--labels FILE` where the "
    "run had them and they have moved)."
)


# The images, by their contents.


def find_images(
    stored: StoredRows, models: RecordedModels, config: VerifyConfig, check: EvaluationCheck
) -> dict[str, Sample]:
    """The images of the run by id, where the data here are those that the run saw.

    Raises:
        MachineError: They are not here, or others.
    """
    record = stored.record.dataset
    foreground, ignore = mask_values_of(stored.run) or (None, None)
    labels = config.labels or _typed_file(stored.record.command, "--labels")
    place = config.data or (record.name if record.demonstration else record.location)
    opened = EvalConfig(
        models.requests, ("identity",), place, split="all", seed=stored.record.seed,
        label_space=models.label_space, labels=labels, foreground=foreground, ignore=ignore,
        offline=config.offline,
    )  # fmt: skip
    try:
        data = models.task.open(opened, Silent())
    except RobustError as error:
        raise MachineError(
            f"The images of `{stored.run}` cannot be opened here: {error.what}",
            error.why,
            f"They were {_described(stored)}, in `{record.location}`. "
            + (error.todo if record.demonstration else _WHERE_NOW),
        ) from error
    images = {item.image_id: item for item in data.items}
    ids = {name for names in stored.images.values() for name in names} | stored.skipped
    everywhere = {n for names in stored.images.values() for n, common in names.items() if common}
    lacking = sorted(everywhere - set(images))
    if lacking:
        raise MachineError(
            f"{len(lacking):,} of the {len(ids):,} images of `{stored.run}` are not in `{place}`.",
            f"The first one is `{lacking[0]}`. The run saw {_described(stored)}.",
            "Name the data set that the run saw: `--data DIR`.",
        )
    kept = {name: images[name] for name in sorted(ids) if name in images}
    _check_contents(stored, kept, place, check)
    return kept


def _described(stored: StoredRows) -> str:
    record = stored.record.dataset
    part = f" ({record.subset})" if record.subset else ""
    return f"{record.images:,} images of `{record.name}`{part}"


def _check_contents(
    stored: StoredRows, images: Mapping[str, Sample], place: str, check: EvaluationCheck
) -> None:
    """Raises MachineError where the images here have other classes or other contents."""
    record = stored.record.dataset
    if len(images) < record.images:
        check.notes.append(
            f"the run has rows of {len(images):,} of its {record.images:,} images: the digest of "
            "the whole list was not compared"
        )
        return
    samples = tuple(images.values())
    masks = isinstance(samples[0].truth, FileRef)
    here = Dataset(record.name, place, samples, None if masks else LabelSpace("", (), ()))
    if here.digest != record.digest:
        raise MachineError(
            f"The images in `{place}` have other {'groups' if masks else 'classes'} than those of "
            f"`{stored.run}`.",
            f"The digest of ids and {'groups' if masks else 'classes'} is {here.digest[:16]}..., "
            f"the run's is {record.digest[:16]}....",
            "Name the data set that the run saw: `--data DIR`.",
        )
    if record.contents and here.contents != record.contents:
        changed = _first_changed(stored, images)
        raise MachineError(
            f"The files in `{place}` are not those that `{stored.run}` saw.",
            f"`{changed}` has other pixels." if changed else "Files of the same names differ.",
            "Name the data set that the run saw: `--data DIR`.",
        )
    if not record.contents:
        check.notes.append(
            "the record is of a version that kept no digest of the files: images are compared by "
            "the digests of their pixels alone"
        )


def _first_changed(stored: StoredRows, images: Mapping[str, Sample]) -> str | None:
    """The first image whose untouched pixels do not have the stored digest; None for none known."""
    for number in stored.images:
        for name, row in (stored.inputs(ORIGINAL, CLEAN, number) or {}).items():
            try:
                pixels = decode(images[name].image)
            except (UnreadableImage, KeyError):
                return name
            if measure(pixels, pixels).digest != row["digest"]:
                return name
    return None


def _typed(command: str, option: str) -> str | None:
    """The value of `option` in the commands that a record keeps; the last one counts."""
    value = None
    for line in command.splitlines():
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        for word, following in zip(words, [*words[1:], None], strict=True):
            if word == option:
                value = following
            elif word.startswith(f"{option}="):
                value = word.partition("=")[2]
    return value


def _typed_file(command: str, option: str) -> Path | None:
    """The file that a recorded command names by `option`, where it is still there."""
    value = _typed(command, option)
    return Path(value) if value is not None and Path(value).is_file() else None


# The models, by the digest of their weights.


class RecordedModels:
    """The models of a run.

    Args:
        run: The folder of the evaluation.
        record: Of the run.
        config: Where weights and classes are now.
    """

    def __init__(self, run: Path, record: RunRecord, config: VerifyConfig) -> None:
        self.run, self.record, self.config = run, record, config
        self.task: Task[Any] = EVALUATION_TASKS[record.task]()
        self._own = run.parent / WEIGHTS if run.name == "test" else None

    @cached_property
    def label_space(self) -> str | None:
        """What the classes of the models are, where their weights do not say it."""
        name = self.record.dataset.label_space
        if name == FOREGROUND:
            return None
        typed = self.config.label_space or _typed(self.record.command, "--label-space")
        if typed is not None:
            return typed
        usual = [_usual_space(model) for model in self.record.models]
        return name if name in BUNDLED_SPACES and any(one != name for one in usual) else None

    @cached_property
    def requests(self) -> tuple[ModelRequest, ...]:
        """For each model of the record the first way of loading it; nothing is loaded yet."""
        return tuple(next(self._ways(model)) for model in self.record.models)

    def loaded(self, names: set[str], check: EvaluationCheck) -> dict[str, Model]:
        """The models called `names`, with the recorded weights and preprocessing.

        A training's own weights that are others than those it was evaluated with are a difference;
        the model is then left out.

        Raises:
            MachineError: The weights of one are not here.
        """
        models = (model for model in self.record.models if model.name in names)
        found = {model.name: self._load(model, check) for model in models}
        return {name: model for name, model in found.items() if model is not None}

    def _load(self, model: ModelRecord, check: EvaluationCheck) -> Model | None:
        changed = self._changed(model)
        if changed is not None:
            check.differences.append(changed)
            return None
        tried = []
        for request in self._ways(model):
            try:
                loaded = load(
                    request, self.record.task, seed=self.record.seed, offline=self.config.offline
                )
            except RobustError as error:
                tried.append(f"`{request.weights or request.name}`: {error.what} {error.why}")
                continue
            digest = loaded.facts.weights_sha256
            if digest == model.weights_sha256:
                return _as_recorded(loaded, model)
            tried.append(
                f"`{request.weights or request.name}` has weights with the digest {digest[:16]}..."
            )
        raise MachineError(
            f"The weights of `{model.name}` are not here.",
            f"The run had `{model.weights}`, whose digest is {model.weights_sha256[:16]}.... "
            f"Tried: {'; '.join(tried)}",
            "Name the file or the training run with these weights: `--weights FILE`"
            + (
                "."
                if model.pretraining.startswith(("trained here", "unknown"))
                else f", or download them: `robust fetch {model.name}`."
            ),
        )

    def _changed(self, model: ModelRecord) -> Difference | None:
        """How the weights of the training of this evaluation differ from those evaluated."""
        if self._own is None or not self._own.is_file() or "trained here" not in model.pretraining:
            return None
        try:
            here = state_digest(read_weights(self._own))
        except RobustError as error:
            here = error.what
        if here == model.weights_sha256:
            return None
        values = model.weights_sha256, here
        return Difference("weights", f"digest of `{self._own}`", *values, model.name)

    def _ways(self, model: ModelRecord) -> Iterator[ModelRequest]:
        """How the weights of `model` may be had, the likeliest first; at least one."""
        arguments = dict(model.arguments)
        if model.untrained:
            yield ModelRequest(
                model.name, None, arguments, label_space=self.label_space, untrained=True
            )
            return
        own = [] if self._own is None else [self._own]
        recorded = Path(model.weights)
        files = [*own, *self.config.weights, recorded, self.run.parent / recorded]
        here = [file for file in files if file.exists() and model.weights != "none needed"]
        for file in dict.fromkeys(here):
            request = self._from_file(model, file)
            if request is not None:
                yield request
        if not model.pretraining.startswith("unknown") or not here:
            yield ModelRequest(model.name, None, arguments, label_space=self.label_space)

    def _from_file(self, model: ModelRecord, file: Path) -> ModelRequest | None:
        try:
            header = header_beside(weights_in(file))
        except UsageError:
            return None
        if header is not None:
            return ModelRequest(header.model, file, dict(model.arguments))
        arguments = dict(model.arguments)
        return ModelRequest(model.name, file, arguments, label_space=self.label_space)


def _usual_space(model: ModelRecord) -> str:
    try:
        return resolve(model.name).label_space
    except RobustError:
        return model.label_space  # a training's own name


def _as_recorded(model: Any, record: ModelRecord) -> Model:
    """`model` with the preprocessing of the record."""
    names = [each.name for each in fields(model.preprocessing)]
    recorded = {name: getattr(record.preprocessing, name) for name in names}
    preprocessing = type(model.preprocessing)(**recorded)
    made: Model = type(model)(model.network, preprocessing, facts=model.facts, notes=model.notes)
    return made


# The transforms, with their parameters.


def find_transforms(
    stored: StoredRows, config: VerifyConfig, check: EvaluationCheck
) -> dict[Cell, TransformCell]:
    """The cells of the run that have the recorded parameters here.

    Raises:
        MachineError: A transform is not here.
    """
    typed = _typed_file(stored.record.command, "--plugin")
    plugins = config.plugins or (() if typed is None else (typed,))
    cells = {}
    for recorded in stored.record.transforms:
        cell = Cell(recorded.name, recorded.severity)
        try:
            resolved = resolve_transforms(
                (recorded.name,), (recorded.severity,) if recorded.severity else None, plugins
            )
        except RobustError as error:
            raise MachineError(
                f"The transform `{recorded.name}` of `{stored.run}` is not here: {error.what}",
                error.why,
                "Name the file that defines it: `--plugin FILE`.",
            ) from error
        by_cell = {Cell(one.transform.name, one.severity): one for one in resolved}
        found = by_cell.get(cell)
        parameters = None if found is None else _plain(found.transform.parameters(cell.severity))
        if found is None or parameters != _plain(recorded.parameters):
            check.differences.append(
                Difference(
                    "parameters", "parameters of the transform", recorded.parameters, parameters,
                    transform=cell.transform, severity=cell.severity,
                )
            )  # fmt: skip
        else:
            cells[cell] = found
    return cells


def _plain(parameters: Mapping[str, Any]) -> Any:
    """`parameters` as they are read back from a record."""
    return json.loads(json.dumps(parameters, default=str))
