"""Reads the rows of an evaluation, and finds the images, models and transforms of its record.

Images are identified by their content, weights by their digest, transforms by their parameters.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from robustcli.adapters.catalogue import FOREGROUND, ModelRequest
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.fetching import state_digest
from robustcli.adapters.foreign import ForeignKind, foreign_kind, open_foreign, runs_code
from robustcli.adapters.foreign_files import code_file
from robustcli.adapters.load import load, resolve
from robustcli.adapters.model import Model
from robustcli.adapters.training_run import WEIGHTS, header_beside, weights_in
from robustcli.core.arguments import Positive
from robustcli.core.errors import MachineError, RobustError, UsageError
from robustcli.core.listener import Silent
from robustcli.data.dataset import Dataset, FileRef, Sample
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.download import file_sha256
from robustcli.data.labels import BUNDLED_SPACES, LabelSpace
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.look_up import EVALUATION_TASKS
from robustcli.evaluation.published_corruptions import (
    PublishedCorruption,
    bind_published,
    find_published,
)
from robustcli.evaluation.record import RunRecord
from robustcli.evaluation.store import INPUT_SCHEMA, Store
from robustcli.tasks.base import ORIGINAL, Row, Task, measure
from robustcli.tasks.heldout import mask_values_of
from robustcli.tasks.record import ModelRecord
from robustcli.transforms.base import CLEAN, Cell
from robustcli.transforms.registry import TransformCell, resolve_transforms
from robustcli.verification.row_comparison import (
    Discrepancy,
    EvaluationCheck,
)

SAMPLE = 8
"""Number of blocks that are recomputed by default."""
_WHERE_NOW = (
    "Pass their new location: `--data DIR` (and `--label-space FILE` or `--labels FILE` if the "
    "run used them and they were moved)."
)
_BENCHMARK_WHERE_NOW = (
    "Restore the benchmark at the path that `--published` has in the command of the run "
    "(`run.json`); a relative path is relative to the current directory. A run of Python or of a "
    "study file does not name it, and cannot be verified."
)


@dataclass(frozen=True)
class VerifyConfig:
    """Settings of a verification, with the new paths of files that have moved since the run.

    Args:
        run: The folder of an evaluation, a training or a fine-tuning.
        sample: Number of blocks to recompute per evaluation; None for all.
        seed: Seed for the selection of blocks.
        data: Present location of the images; None for the location that the run records.
        weights: Weights files or training runs; those with the recorded digest are used.
        label_space: The classes file of the models.
        labels: The file with the class of each image.
        plugins: Files that define transforms.
        device: Value of `--device`.
        offline: Whether to forbid downloads.
        run_code: Whether to execute the Python and TorchScript code that the run names.
    """

    run: Path
    sample: Positive | None = SAMPLE
    seed: int = 0
    data: str | None = None
    weights: tuple[Path, ...] = ()
    label_space: str | None = None
    labels: Path | None = None
    plugins: tuple[Path, ...] = ()
    device: str = "auto"
    offline: bool = False
    run_code: bool = False


@dataclass(frozen=True)
class RowBlock:
    """Identifies the rows of one model, one cell, and up to `block_size` images."""

    model: str
    cell: Cell
    number: int

    @property
    def name(self) -> str:
        """Model, transform, severity and number, joined by slashes."""
        return f"{self.model}/{self.cell.transform}/{self.cell.severity}/{self.number}"


class StoredRows:
    """The rows in the folder `run` of an evaluation; `damaged` maps unreadable files to errors."""

    def __init__(self, run: Path, record: RunRecord) -> None:
        self.run, self.record, self.store = run, record, Store(run)
        self.cells = [Cell(t.name, t.severity) for t in record.transforms]
        self.damaged: dict[Path, str] = {}

    @cached_property
    def blocks(self) -> list[RowBlock]:
        """All blocks with a file, in the order of the record."""
        count = -(-self.record.dataset.images // self.record.block_size)
        blocks = (
            RowBlock(model.name, cell, number)
            for model in self.record.models
            for cell in self.cells
            for number in range(count)
        )
        return [block for block in blocks if self.path(block).is_file()]

    def path(self, block: RowBlock) -> Path:
        """The file of a block."""
        return self.store.prediction_path(block.model, block.cell, block.number)

    def rows(self, block: RowBlock) -> list[Row] | None:
        """The rows of a block; None if its file is damaged."""
        schema = EVALUATION_TASKS[self.record.task]().schema(self.record.dataset)
        return self._read(self.path(block), schema)

    def inputs(self, view: str, cell: Cell, number: int) -> dict[str, Row] | None:
        """The measures of the transformed images by image id; None without a readable file."""
        path = self.store.input_path(view, cell, number)
        rows = self._read(path, INPUT_SCHEMA) if path.is_file() else None
        return None if rows is None else {str(row["image_id"]): row for row in rows}

    @cached_property
    def skipped(self) -> set[str]:
        """The ids of images that the run could not read."""
        return set(self.store.skipped()["image_id"])

    @cached_property
    def images(self) -> dict[int, dict[str, bool]]:
        """By block, the ids that at least half of its files contain, and whether all files do."""
        counts: dict[int, Counter[str]] = defaultdict(Counter)
        files: Counter[int] = Counter()
        for block in self.blocks:
            rows = self.rows(block)
            if rows is not None:
                files[block.number] += 1
                counts[block.number].update({str(row["image_id"]) for row in rows})
        return {
            number: {
                image_id: count == files[number]
                for image_id, count in sorted(block_counts.items())
                if 2 * count >= files[number]
            }
            for number, block_counts in counts.items()
        }

    def _read(self, path: Path, schema: pa.Schema) -> list[Row] | None:
        try:
            rows: list[Row] = pq.read_table(path, schema=schema, partitioning=None).to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            self.damaged[path] = str(error).splitlines()[0][:200]
            return None
        return rows


def find_images(
    stored: StoredRows, models: RecordedModels, config: VerifyConfig, check: EvaluationCheck
) -> tuple[dict[str, Sample], Dataset | None]:
    """The images of the run by id, and as a data set with their classes (None for masks).

    Raises:
        MachineError: The images are not on this machine, or differ in content or classes.
    """
    record = stored.record.dataset
    foreground, ignore, classes = mask_values_of(stored.run) or (None, None, None)
    labels = config.labels or _file_in(stored.record.command, "--labels")
    place = config.data or (record.name if record.demonstration else record.location)
    data_config = EvalConfig(
        models.requests, ("identity",), place, split="all", seed=stored.record.seed,
        label_space=models.label_space, labels=labels, foreground=foreground, ignore=ignore,
        mask_classes=classes, offline=config.offline,
    )  # fmt: skip
    part = f" ({record.subset})" if record.subset else ""
    described = f"{record.images:,} images of `{record.name}`{part}"
    try:
        data = models.task.open(data_config, Silent())
    except RobustError as error:
        raise MachineError(
            f"The images of `{stored.run}` cannot be opened on this machine: {error.what}",
            error.why,
            f"They were {described}, in `{record.location}`. "
            + (error.todo if record.demonstration else _WHERE_NOW),
        ) from error
    images = {item.image_id: item for item in data.items}
    ids = {name for names in stored.images.values() for name in names} | stored.skipped
    in_all_files = {n for names in stored.images.values() for n, in_all in names.items() if in_all}
    missing = sorted(in_all_files - set(images))
    if missing:
        raise MachineError(
            f"{len(missing):,} of the {len(ids):,} images of `{stored.run}` are not in `{place}`.",
            f"The first of them is `{missing[0]}`. The run used {described}.",
            "Pass the data set of the run: `--data DIR`.",
        )
    run_images = {name: images[name] for name in sorted(ids) if name in images}
    _check_contents(stored, run_images, place, check)
    samples = tuple(run_images.values())
    return run_images, data.dataset and replace(data.dataset, samples=samples)


def _check_contents(
    stored: StoredRows, images: Mapping[str, Sample], place: str, check: EvaluationCheck
) -> None:
    """Raises MachineError if classes or content of the images differ from those of the run."""
    record = stored.record.dataset
    if len(images) < record.images:
        check.notes.append(
            f"the run has rows of {len(images):,} of its {record.images:,} images: the digest of "
            "the complete list was not compared"
        )
        return
    samples = tuple(images.values())
    has_masks = isinstance(samples[0].truth, FileRef)
    present = Dataset(record.name, place, samples, None if has_masks else LabelSpace("", (), ()))
    labels = "groups" if has_masks else "classes"
    if present.digest != record.digest:
        raise MachineError(
            f"The images in `{place}` have different {labels} from those of `{stored.run}`.",
            f"The digest of ids and {labels} is {present.digest[:16]}..., the run's is "
            f"{record.digest[:16]}....",
            "Pass the data set of the run: `--data DIR`.",
        )
    if record.contents and present.contents != record.contents:
        changed = _first_changed(stored, images)
        raise MachineError(
            f"The files in `{place}` are not those of `{stored.run}`.",
            f"`{changed}` has different pixels."
            if changed
            else "Files with the same names differ.",
            "Pass the data set of the run: `--data DIR`.",
        )
    if not record.contents:
        check.notes.append(
            "the record was written by a version without digests of the files: images are "
            "compared only by the digests of their pixels"
        )


def _first_changed(stored: StoredRows, images: Mapping[str, Sample]) -> str | None:
    """The id of the first image with a wrong digest of its clean pixels; None if unknown."""
    for number in stored.images:
        for name, row in (stored.inputs(ORIGINAL, CLEAN, number) or {}).items():
            try:
                pixels = decode(images[name].image)
            except (UnreadableImage, KeyError):
                return name
            if measure(pixels, pixels).digest != row["digest"]:
                return name
    return None


def _option_in(command: str, option: str) -> str | None:
    """The value of `option` in the recorded commands; the last occurrence is used."""
    return next(iter(_values_in(command, option)[::-1]), None)


def _values_in(command: str, option: str) -> list[str]:
    """The values of a repeatable `option` in the recorded commands, in their order."""
    values = []
    for line in command.splitlines():
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        for word, following in zip(words, [*words[1:], None], strict=True):
            if word == option and following is not None:
                values.append(following)
            elif word.startswith(f"{option}="):
                values.append(word.partition("=")[2])
    return values


def _file_in(command: str, option: str) -> Path | None:
    """The file that a recorded command names by `option`, if it still exists."""
    value = _option_in(command, option)
    return Path(value) if value is not None and Path(value).is_file() else None


class RecordedModels:
    """The models of the evaluation in the folder `run`, found by the digest of their weights."""

    def __init__(self, run: Path, record: RunRecord, config: VerifyConfig) -> None:
        self.run, self.record, self.config = run, record, config
        self.task: Task[Any] = EVALUATION_TASKS[record.task]()
        self._trained_weights = run.parent / WEIGHTS if run.name == "test" else None

    @cached_property
    def label_space(self) -> str | None:
        """The label space of the models, if their weights do not name it."""
        name = self.record.dataset.label_space
        if name == FOREGROUND:
            return None
        chosen = self.config.label_space or _option_in(self.record.command, "--label-space")
        if chosen is not None:
            return chosen
        defaults = {_default_label_space(model) for model in self.record.models}
        return name if name in BUNDLED_SPACES and defaults != {name} else None

    @cached_property
    def code(self) -> tuple[RecordedCode, ...]:
        """The code that must be executed to build the models, and that the user did not name."""
        code = []
        for model in self.record.models:
            requests = list(self._requests_for(model)) if _foreign_source(model) else []
            if requests and all(runs_code(r) and not r.run_code for r in requests):
                request = requests[0]
                is_python = foreign_kind(request) == "import"
                file = code_file(request.name) if is_python else Path(request.name)
                typed = [f"{key}={value}" for key, value in request.arguments.items()]
                called = " ".join(["network", f"`{request.name}`", *typed])
                digest = model.code_sha256 if is_python else model.weights_sha256
                code.append(RecordedCode(called, file, digest))
        return tuple(code)

    @cached_property
    def requests(self) -> tuple[ModelRequest, ...]:
        """The first request that may load each model of the record; opens only foreign networks.

        Raises:
            MachineError: A foreign network is not on this machine.
        """
        return tuple(self._first_request(model) for model in self.record.models)

    def _first_request(self, model: ModelRecord) -> ModelRequest:
        requests = list(self._requests_for(model))
        if not _foreign_source(model):
            # Files of `--weights` can be those of other models, with other classes. A training that
            # moved leaves a request for its name, which is not in the catalogue.
            trained = model.pretraining.startswith("trained here")
            is_unsure = self.config.weights or (trained and requests[0].weights is None)
            if is_unsure and self._changed_weights(model) is None:
                return self._load_recorded(model)[0]
            return requests[0]
        errors: list[RobustError] = []
        others: list[ModelRequest] = []  # with another digest, which `_load` reports
        for request in requests:
            try:
                opened = open_foreign(request, offline=self.config.offline)
            except RobustError as error:
                errors.append(error)
                continue
            if opened.model.facts.weights_sha256 == model.weights_sha256:
                return request
            others.append(request)
        if others:
            return others[0]
        raise MachineError(
            f"The network `{model.name}` of `{self.run}` cannot be opened on this machine: "
            f"{errors[0].what}",
            errors[0].why,
            f"It was `{model.builder.partition(':')[2]}`. Restore it, or pass an exported file "
            "with `--weights FILE`.",
        ) from errors[0]

    def unused_options(self) -> Iterator[str]:
        """Yields a note for each option of the verification that has no effect on this run."""
        used = {str(value) for r in self.requests for value in (r.weights, r.name)}
        for file in self.config.weights:
            if str(file) not in used:
                yield f"`--weights {file}` was not used: no model of the run has these weights"
        if self.config.plugins and not _plugins_of(self.record):
            yield "`--plugin` was not used: the run has no transforms of a plugin"
        if self.config.label_space and all(r.label_space is None for r in self.requests):
            yield "`--label-space` was not used: the models of the run name their classes"
        if self.config.labels and self.record.task == "seg":
            yield "`--labels` was not used: the images of the run have masks"

    def loaded(self, names: set[str], check: EvaluationCheck) -> dict[str, Model]:
        """Loads the models `names`, with the recorded weights and preprocessing.

        If the weights of a training have changed since its evaluation, adds a discrepancy to
        `check` and omits the model.

        Raises:
            MachineError: The weights of a model are not on this machine.
        """
        records = (model for model in self.record.models if model.name in names)
        models = {record.name: self._load(record, check) for record in records}
        return {name: model for name, model in models.items() if model is not None}

    def _load(self, model: ModelRecord, check: EvaluationCheck) -> Model | None:
        changed_weights = self._changed_weights(model)
        if changed_weights is not None:
            check.differences.append(changed_weights)
            return None
        return _with_recorded_preprocessing(self._load_recorded(model)[1], model)

    def _load_recorded(self, model: ModelRecord) -> tuple[ModelRequest, Model]:
        """The request that loads the recorded weights of `model`, and the loaded model.

        Raises:
            MachineError: The weights are not on this machine.
        """
        attempts = []
        for request in self._requests_for(model):
            try:
                loaded = load(
                    request, self.record.task, seed=self.record.seed, offline=self.config.offline
                )
            except RobustError as error:
                attempts.append(f"`{request.weights or request.name}`: {error.what} {error.why}")
                continue
            digest = loaded.facts.weights_sha256
            if digest == model.weights_sha256:
                return request, loaded
            attempts.append(
                f"`{request.weights or request.name}` has weights with the digest {digest[:16]}..."
            )
        raise MachineError(
            f"The weights of `{model.name}` were not found.",
            f"The run used `{model.weights}`, whose digest is {model.weights_sha256[:16]}.... "
            f"Tried: {'; '.join(attempts)}",
            "Pass the file or the training run with these weights: `--weights FILE`"
            + (
                "."
                if model.pretraining.startswith(("trained here", "unknown"))
                else f", or download them: `robust fetch {model.name}`."
            ),
        )

    def _changed_weights(self, model: ModelRecord) -> Discrepancy | None:
        """The discrepancy if the weights of the training differ from the evaluated weights."""
        path = self._trained_weights
        if path is None or not path.is_file() or "trained here" not in model.pretraining:
            return None
        try:
            digest = state_digest(read_weights(path))
        except RobustError as error:
            digest = error.what
        if digest == model.weights_sha256:
            return None
        values = model.weights_sha256, digest
        return Discrepancy("weights", f"digest of `{path}`", *values, model.name)

    def _requests_for(self, model: ModelRecord) -> Iterator[ModelRequest]:
        """Yields requests that may load the weights of `model`, most likely first; at least one.

        Raises:
            MachineError: The model was a network in memory, which no file contains.
        """
        request = partial(ModelRequest, arguments=dict(model.arguments), run_code=False)
        if model.untrained and not _foreign_source(model):
            yield request(model.name, label_space=self.label_space, untrained=True)
            return
        trained = [] if self._trained_weights is None else [self._trained_weights]
        recorded = Path(model.weights)
        files = [*trained, *self.config.weights, recorded, self.run.parent / recorded]
        existing = [file for file in files if file.exists() and model.weights != "none needed"]
        if _foreign_source(model):
            yield from self._foreign_requests(model, existing)
            return
        for file in dict.fromkeys(existing):
            try:
                header = header_beside(weights_in(file))
            except UsageError:
                continue
            if header is None:
                yield request(model.name, file, label_space=self.label_space)
            else:
                yield request(header.model, file)
        if not model.pretraining.startswith("unknown") or not existing:
            yield request(model.name, label_space=self.label_space)

    def _foreign_requests(
        self, model: ModelRecord, existing: Sequence[Path]
    ) -> Iterator[ModelRequest]:
        """`_requests_for` a network outside the catalogue, of which `existing` are weights."""
        kind, _, source = model.builder.partition(":")
        if kind == "memory":
            raise MachineError(
                f"The network `{model.name}` of `{self.run}` was in memory.",
                "It was passed to `robustcli.evaluate`, and its record cannot build it again.",
                "Evaluate a function that builds it: `--model FILE.py:FUNCTION`.",
            )
        recorded = model.preprocessing.model_dump()
        recorded["crop"] = recorded.get("crop", recorded.get("window"))
        names = ("resize", "crop", "interpolation", "mean", "std")
        options: dict[str, Any] = {
            "arguments": dict(model.arguments), "label_space": self.label_space,
            "untrained": model.untrained and kind in ("import", "open-clip"),
            "preprocessing": {name: recorded[name] for name in names if recorded.get(name)},
            "run_code": self.config.run_code,
        }  # fmt: skip
        is_file = kind in ("onnx", "torchscript")  # contains its weights
        for file in existing:
            typed = {"run_code": True} if file in self.config.weights else {}
            yield (
                ModelRequest(str(file), **options | typed)
                if is_file
                else ModelRequest(source, file, **options)
            )
        if not (is_file and existing):
            yield ModelRequest(source, **options)


def _foreign_source(model: ModelRecord) -> bool:
    """Whether `model` is a network outside the catalogue: its builder names where it is from."""
    return model.builder.partition(":")[0] in get_args(ForeignKind)


def _default_label_space(model: ModelRecord) -> str:
    try:
        return resolve(model.name).label_space
    except RobustError:
        return model.label_space  # the name of a training


def _with_recorded_preprocessing(model: Any, record: ModelRecord) -> Model:
    names = [field.name for field in fields(model.preprocessing)]
    recorded = {name: getattr(record.preprocessing, name) for name in names}
    preprocessing = type(model.preprocessing)(**recorded)
    # The evaluation of a training names the model after its folder, the weights after the network.
    facts = replace(model.facts, name=record.name)
    same: Model = model.with_preprocessing(preprocessing, facts)
    return same


def find_transforms(
    stored: StoredRows, dataset: Dataset | None, config: VerifyConfig, check: EvaluationCheck
) -> dict[Cell, TransformCell]:
    """The cells of the run; adds those with changed transform parameters to `check` instead.

    Published corruptions are read from the folders that the run's commands name; `dataset` contains
    their clean images.

    Raises:
        MachineError: A transform is not on this machine.
    """
    plugins = config.plugins or (_recorded_plugins(stored.record) if config.run_code else ())
    is_published = any(t.family == "published" for t in stored.record.transforms)
    published = _recorded_published(stored) if is_published else ()
    cells = {}
    for recorded in stored.record.transforms:
        cell = Cell(recorded.name, recorded.severity)
        severities = (recorded.severity,) if recorded.severity else None
        try:
            resolved = resolve_transforms((recorded.name,), severities, plugins, published)
            resolved = list(bind_published(resolved, dataset).values())
        except RobustError as error:
            of_benchmark = recorded.family == "published"
            raise MachineError(
                f"The transform `{recorded.name}` of `{stored.run}` was not found: {error.what}",
                error.why,
                _BENCHMARK_WHERE_NOW
                if of_benchmark
                else "Pass the file that defines it: `--plugin FILE`.",
            ) from error
        by_cell = {Cell(c.transform.name, c.severity): c for c in resolved}
        resolved_cell = by_cell.get(cell)
        parameters = resolved_cell and _plain(resolved_cell.transform.parameters(cell.severity))
        if resolved_cell is None or parameters != _plain(recorded.parameters):
            check.differences.append(
                Discrepancy(
                    "parameters", "parameters of the transform", recorded.parameters, parameters,
                    transform=cell.transform, severity=cell.severity,
                )
            )  # fmt: skip
        else:
            cells[cell] = resolved_cell
    return cells


def _recorded_published(stored: StoredRows) -> tuple[PublishedCorruption, ...]:
    """The corruptions in the folders of `--published` of the run's commands.

    Raises:
        MachineError: A folder is missing or contains none.
    """
    folders = dict.fromkeys(map(Path, _values_in(stored.record.command, "--published")))
    try:
        return find_published(tuple(folders))
    except UsageError as error:
        raise MachineError(
            f"The published images of `{stored.run}` were not found: {error.what}",
            error.why,
            _BENCHMARK_WHERE_NOW,
        ) from error


def check_code(stored: StoredRows, models: RecordedModels, config: VerifyConfig) -> None:
    """Raises UsageError if the run needs code that the user neither named nor allowed.

    A run can come from somebody else, and its record can name any code.
    """
    if config.run_code:
        return
    code = list(models.code)
    if not config.plugins:
        digests = {(file, digest) for file, digest in _plugins_of(stored.record)}
        for path in _recorded_plugins(stored.record):
            recorded = [digest for file, digest in digests if file == path.name]
            digest = file_sha256(path)
            code.append(RecordedCode("plugin", path, digest if digest in recorded else recorded[0]))
    if code:
        raise UsageError(
            f"`{stored.run}` needs code that its record names:",
            "\n".join(f"  {single.words}" for single in code),
            "The record can name any code on this machine. If you trust the run and the files, "
            "repeat the command with `--run-code` (in Python `run_code=True`).",
        )


@dataclass(frozen=True)
class RecordedCode:
    """Code that a record names: what it is, its file if known, and its digest in the run."""

    kind: str
    file: Path | None
    digest: str | None

    @property
    def words(self) -> str:
        """Kind, file, digest, and whether the file is that of the run."""
        if self.file is None or not self.file.is_file():
            return self.kind if self.file is None else f"{self.kind}: `{self.file}` (missing)"
        digest = file_sha256(self.file)
        if self.digest is None:
            state = "not recorded"
        else:
            state = "as in the run" if digest == self.digest else "changed since the run"
        return f"{self.kind}: `{self.file}`, SHA-256 {digest} ({state})"


def _plugins_of(record: RunRecord) -> list[tuple[str, str]]:
    """File name and digest of each plugin whose transforms the run used."""
    parameters = (transform.parameters for transform in record.transforms)
    pairs = [(str(p["file"]), str(p["sha256"])) for p in parameters if {"file", "sha256"} <= set(p)]
    return list(dict.fromkeys(pairs))


def _recorded_plugins(record: RunRecord) -> tuple[Path, ...]:
    """The files of the run's plugins, if they still exist; those with the recorded digests first.

    The same file may have had several paths in the commands of a run.
    """
    paths = [Path(value) for value in _values_in(record.command, "--plugin")[::-1]]
    files = []
    for name, digest in _plugins_of(record):
        namesakes = [path for path in paths if path.name == name and path.is_file()]
        namesakes.sort(key=lambda path: file_sha256(path) != digest)  # stable
        files += namesakes[:1]
    return tuple(dict.fromkeys(files))


def _plain(parameters: Mapping[str, Any]) -> Any:
    """`parameters` after a round trip through JSON, as in a record."""
    return json.loads(json.dumps(parameters, default=str))
