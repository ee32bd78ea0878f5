"""Whether this machine reproduces a run: its rows are checked, and a sample of them recomputed.

All rows are read and held against the data (images, classes, groups) and against themselves. Of
the blocks (a model, a transform at a severity, up to 128 images) a sample is computed again as the
run's record says: transformed pixels must have the stored digests, answers must be the same within
`row_comparison.Tolerance`. Nothing is written.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from robustcli.adapters.cache_paths import hash_state
from robustcli.adapters.catalogue import FOREGROUND
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.load import ModelRequest, load, resolve
from robustcli.adapters.model import Model
from robustcli.adapters.training_run import WEIGHTS, header_beside, weights_in
from robustcli.core.errors import MachineError, RobustError, UsageError
from robustcli.core.listener import Listener, Silent
from robustcli.core.machine import versions
from robustcli.core.rundir import RECORD_FILE, has_record
from robustcli.core.seeds import identity_seed
from robustcli.data.dataset import Dataset, FileRef, Sample
from robustcli.data.labels import BUNDLED_SPACES, LabelSpace
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.device import choose_device, device_name
from robustcli.evaluation.evaluate import TASKS
from robustcli.evaluation.loader import Source, batch_stream
from robustcli.evaluation.plan import Piece, parts_of
from robustcli.evaluation.record import RunRecord, read_record
from robustcli.evaluation.row_comparison import (
    COMPARISONS,
    Agreement,
    DeviceKind,
    RowDifference,
    Tolerance,
)
from robustcli.evaluation.store import INPUT_SCHEMA, Store
from robustcli.models.scan.choice import choose_backend
from robustcli.tasks.base import Batch, Row, Task
from robustcli.tasks.heldout import mask_values_of
from robustcli.tasks.record import ModelRecord
from robustcli.transforms.base import CLEAN, Cell
from robustcli.transforms.registry import TransformCell
from robustcli.transforms.registry import resolve as resolve_transforms

SAMPLE = 8
"""Blocks that are recomputed unless the user says how many."""
_SHOWN = 10
"""Differences in a text; JSON has all."""


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


# What comes out.


@dataclass(frozen=True)
class Difference:
    """Something of the run that is not as this machine computes it.

    Args:
        place: What it is about: `predictions`, `pixels`, `rows`, `parameters`, `weights`,
            `results.csv`.
        quantity: Which number or text differs.
        stored: In the run.
        recomputed: Here, or what it contradicts.
        model: Its name; None where it is no model's.
        transform: With `severity`, under which it was.
        severity: 0 for the transform's full range.
        image_id: Of the image; None for a whole file.
        note: More on it.
    """

    place: str
    quantity: str
    stored: Any
    recomputed: Any
    model: str | None = None
    transform: str | None = None
    severity: int | None = None
    image_id: str | None = None
    note: str = ""

    @property
    def words(self) -> str:
        """The difference in a line."""
        at = f"{self.transform}, severity {self.severity}" if self.severity else self.transform
        where = [
            f"`{self.model}`" if self.model else "",
            f"under {at}" if at else "",
            f"`{self.image_id}`" if self.image_id else "",
        ]
        named = " ".join(part for part in where if part)
        note = f" ({self.note})" if self.note else ""
        values = f"stored {_shown(self.stored)}, here {_shown(self.recomputed)}"
        return f"{self.place}: {named}{', ' if named else ''}{self.quantity}: {values}{note}"


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass
class EvaluationCheck:
    """One evaluation, held against what this machine computes.

    Args:
        run: Its folder.
        status: Of its record.
        blocks: In the run.
        sampled: Of them recomputed, as `model/transform/severity/block`.
        rows: All rows of models that were read and held against the data.
        pixels: Transformed images whose digest was compared.
        equal_pixels: Of them with the stored digest.
        agreement: Of the recomputed answers.
        tolerance: What counts as the same answer.
        differences: What is not as it should be.
        causes: Versions, devices and backends that differ: where a difference may come from.
        notes: What could not be compared, and why.
    """

    run: Path
    status: str
    tolerance: Tolerance
    blocks: int = 0
    sampled: list[str] = field(default_factory=list)
    rows: int = 0
    pixels: int = 0
    equal_pixels: int = 0
    agreement: Agreement = field(default_factory=Agreement)
    differences: list[Difference] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


@dataclass(frozen=True)
class Verification:
    """The evaluations of a run: one of `robust eval`, or the held-out ones of trainings."""

    run: Path
    seed: int
    checks: tuple[EvaluationCheck, ...]

    @property
    def reproduced(self) -> bool:
        """Whether this machine reproduces all that was compared."""
        return all(check.reproduced for check in self.checks)

    def as_json(self) -> str:
        """All of it as a JSON document."""
        checks = [
            {
                "run": str(check.run),
                "reproduced": check.reproduced,
                "status": check.status,
                "blocks": check.blocks,
                "sampled": check.sampled,
                "rows_checked": check.rows,
                "pixels": {"compared": check.pixels, "equal": check.equal_pixels},
                "answers": asdict(check.agreement),
                "tolerance": asdict(check.tolerance),
                "differences": [asdict(one) for one in check.differences],
                "differs_here": check.causes,
                "notes": check.notes,
            }
            for check in self.checks
        ]
        whole = {
            "run": str(self.run),
            "reproduced": self.reproduced,
            "seed": self.seed,
            "evaluations": checks,
        }
        return json.dumps(whole, indent=1, default=str)

    def as_text(self) -> str:
        """All of it in lines, the answer first."""
        answer = "reproduces" if self.reproduced else "does NOT reproduce"
        lines = [f"This machine {answer} `{self.run}`."]
        for check in self.checks:
            lines += ["", *_lines(check)]
        return "\n".join(lines)


def _lines(check: EvaluationCheck) -> Iterator[str]:
    task = COMPARISONS[_task_of(check)]
    agreement = check.agreement
    yield f"{check.run}"
    yield (
        f"  recomputed: {len(check.sampled):,} of {check.blocks:,} blocks; "
        f"rows read and held against the data: {check.rows:,}"
    )
    yield f"  transformed images with the stored digest: {check.equal_pixels:,} of {check.pixels:,}"
    if agreement.rows:
        tied = f", {agreement.tied:,} tied within the tolerance" if agreement.tied else ""
        yield (
            f"  equal {task.answers}: {agreement.equal:,} of {agreement.rows:,} "
            f"({agreement.equal / agreement.rows:.2%}){tied}"
        )
        yield f"  {task.largest}: {agreement.largest:.3g}; tolerance {check.tolerance.words}"
    for note in check.notes:
        yield f"  note: {note}"
    for difference in check.differences[:_SHOWN]:
        yield f"  differs: {difference.words}"
    if len(check.differences) > _SHOWN:
        yield f"  ... and {len(check.differences) - _SHOWN:,} more differences (`--json` has all)"
    if check.causes:
        title = "likely causes" if check.differences else "differs here without effect"
        yield f"  {title}: {'; '.join(check.causes)}"


def _task_of(check: EvaluationCheck) -> Any:
    return next(name for name, one in COMPARISONS.items() if one.unit == check.tolerance.unit)


# The way from top to bottom.


def verify(config: VerifyConfig, listener: Listener | None = None) -> Verification:
    """Whether this machine reproduces the run in `config.run`; the folder is only read.

    Raises:
        UsageError: There is no readable run, or it has nothing to verify yet.
        MachineError: The data, the weights or a plugin of the run are not here.
    """
    heard = listener or Silent()
    folders = _evaluations(config.run)
    checks = tuple(_check(folder, config, heard) for folder in folders)
    return Verification(config.run, config.seed, checks)


def _evaluations(run: Path) -> list[Path]:
    """The evaluations in the folder `run`: itself, or the held-out ones of its trainings."""
    head: Any = {}
    if has_record(run):
        try:
            head = json.loads((run / RECORD_FILE).read_text(encoding="utf-8"))
        except ValueError:
            head = {}
    kind = head.get("kind") if isinstance(head, dict) else None
    if kind not in ("train", "finetune"):
        return [run]
    trainings = [run] if kind == "train" else [run / str(mode) for mode in head.get("modes", ())]
    tested = [training / "test" for training in trainings if has_record(training / "test")]
    if not tested:
        raise UsageError(
            f"`{run}` has no held-out evaluation yet.",
            f"Its status is `{head.get('status')}`; only what was evaluated can be verified.",
            "Repeat the command that made it: it goes on where it stopped.",
        )
    return tested


def _check(run: Path, config: VerifyConfig, listener: Listener) -> EvaluationCheck:
    record = read_record(run)
    stored = StoredRows(run, record)
    device = choose_device(config.device)
    here: DeviceKind = "cpu" if device.type == "cpu" else "mps" if device.type == "mps" else "cuda"
    comparison = COMPARISONS[record.task]
    tolerance = comparison.tolerance(record.precision, _kind_of(record.device), here)
    check = EvaluationCheck(run, record.status, tolerance, blocks=len(stored.blocks))
    if not stored.blocks:
        raise UsageError(
            f"`{run}` has no predictions yet.",
            "Its folder holds no block of rows.",
            "Repeat the command that made it, then verify it.",
        )
    models = _Models(run, record, config)
    images = _images(stored, models, config, check)
    cells = _transforms(stored, config, check)
    _check_rows(stored, images, check)
    _check_table(run, record, check)
    blocks = _sampled(stored, config, cells)
    loaded = models.loaded({block.model for block in blocks}, check)
    for model in loaded.values():
        model.to(device, record.precision)
    blocks = [block for block in blocks if block.model in loaded]
    check.sampled = [block.name for block in blocks]
    check.causes = _causes(record, device_name(device), loaded)
    _recompute(stored, blocks, loaded, cells, images, check, listener)
    return check


def _kind_of(device: str) -> DeviceKind:
    """The kind of the device that a record names in words."""
    return "cpu" if device.startswith("cpu") else "mps" if device.startswith("mps") else "cuda"


# What the folder holds.


@dataclass(frozen=True)
class Block:
    """The rows of one model, one transform at one severity, and up to `block_size` images."""

    model: str
    cell: Cell
    number: int

    @property
    def name(self) -> str:
        """For a list."""
        return f"{self.model}/{self.cell.transform}/{self.cell.severity}/{self.number}"


class StoredRows:
    """The rows in the folder of an evaluation, read once, each file by itself.

    Args:
        run: The folder.
        record: Of the run.
    """

    def __init__(self, run: Path, record: RunRecord) -> None:
        self.run, self.record, self.store = run, record, Store(run)
        self.cells = [Cell(t.name, t.severity) for t in record.transforms]
        self.damaged: dict[Path, str] = {}

    @cached_property
    def blocks(self) -> list[Block]:
        """All blocks that have a file, in the order of the record."""
        count = -(-self.record.dataset.images // self.record.block_size)
        return [
            Block(model.name, cell, number)
            for model in self.record.models
            for cell in self.cells
            for number in range(count)
            if self.path(Block(model.name, cell, number)).is_file()
        ]

    def path(self, block: Block) -> Path:
        """The file of a block."""
        return self.store.prediction_path(block.model, block.cell, block.number)

    def rows(self, block: Block) -> list[Row] | None:
        """The rows of a block; None where its file is damaged."""
        schema = TASKS[self.record.task]().schema(self.record.dataset)
        return self._read(self.path(block), schema)

    def inputs(self, view: str, cell: Cell, number: int) -> dict[str, Row] | None:
        """What is stored of transformed images, by id; None where there is no readable file."""
        path = self.store.input_path(view, cell, number)
        rows = self._read(path, INPUT_SCHEMA) if path.is_file() else None
        return None if rows is None else {str(row["image_id"]): row for row in rows}

    @cached_property
    def skipped(self) -> set[str]:
        """Images that the run could not read."""
        return set(self.store.skipped()["image_id"])

    @cached_property
    def ids(self) -> dict[int, list[str]]:
        """The readable images of each block: those that at least half of its files have, sorted."""
        seen: dict[int, Counter[str]] = defaultdict(Counter)
        files: Counter[int] = Counter()
        for block in self.blocks:
            rows = self.rows(block)
            if rows is not None:
                files[block.number] += 1
                seen[block.number].update({str(row["image_id"]) for row in rows})
        return {
            number: sorted(name for name, count in names.items() if 2 * count >= files[number])
            for number, names in seen.items()
        }

    def _read(self, path: Path, schema: pa.Schema) -> list[Row] | None:
        try:
            rows: list[Row] = pq.read_table(path, schema=schema, partitioning=None).to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            self.damaged[path] = str(error).splitlines()[0][:200]
            return None
        return rows


# The images, by their contents.


def _images(
    stored: StoredRows, models: _Models, config: VerifyConfig, check: EvaluationCheck
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
    )  # fmt: skip
    try:
        data = models.task.open(opened, Silent())
    except RobustError as error:
        raise _not_here(
            f"The images of `{stored.run}` cannot be opened here: {error.what}",
            error.why,
            f"They were {_described(stored)}, in `{record.location}`. "
            + (error.todo if record.demonstration else "Name where they are now: `--data DIR`."),
        ) from error
    images = {item.image_id: item for item in data.items}
    ids = {name for names in stored.ids.values() for name in names} | stored.skipped
    lacking = sorted(ids - set(images))
    if lacking:
        raise _not_here(
            f"{len(lacking):,} of the {len(ids):,} images of `{stored.run}` are not in `{place}`.",
            f"The first one is `{lacking[0]}`. The run saw {_described(stored)}.",
            "Name the data set that the run saw: `--data DIR`.",
        )
    kept = {name: images[name] for name in sorted(ids)}
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
        raise _not_here(
            f"The images in `{place}` have other {'groups' if masks else 'classes'} than those of "
            f"`{stored.run}`.",
            f"The digest of ids and {'groups' if masks else 'classes'} is {here.digest[:16]}..., "
            f"the run's is {record.digest[:16]}....",
            "Name the data set that the run saw: `--data DIR`.",
        )
    if record.contents and here.contents != record.contents:
        changed = _first_changed(stored, images)
        raise _not_here(
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
    from robustcli.data.decode import UnreadableImage, decode
    from robustcli.tasks.base import ORIGINAL, measure

    for number in stored.ids:
        for name, row in (stored.inputs(ORIGINAL, CLEAN, number) or {}).items():
            try:
                pixels = decode(images[name].image)
            except (UnreadableImage, KeyError):
                return name
            if measure(pixels, pixels).digest != row["digest"]:
                return name
    return None


def _not_here(what: str, why: str, todo: str) -> MachineError:
    return MachineError(what, why, todo)


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


class _Models:
    """The models of a run.

    Args:
        run: The folder of the evaluation.
        record: Of the run.
        config: Where weights and classes are now.
    """

    def __init__(self, run: Path, record: RunRecord, config: VerifyConfig) -> None:
        self.run, self.record, self.config = run, record, config
        self.task: Task[Any] = TASKS[record.task]()
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
        if self._own is not None and self._own.is_file() and "trained here" in model.pretraining:
            here = hash_state(read_weights(self._own))
            values = model.weights_sha256, here
            check.differences.append(
                Difference("weights", f"digest of {WEIGHTS}", *values, model.name)
            )
            return None
        raise _not_here(
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


def _transforms(
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
            raise _not_here(
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


# All rows, held against the data and against themselves.


def _check_rows(stored: StoredRows, images: Mapping[str, Sample], check: EvaluationCheck) -> None:
    comparison = COMPARISONS[stored.record.task]
    for block in stored.blocks:
        rows = stored.rows(block)
        if rows is None:
            check.differences.append(_damaged(stored, stored.path(block), block))
            continue
        check.rows += len(rows)
        names = Counter(str(row["image_id"]) for row in rows)
        for name in stored.ids[block.number]:
            if names[name] != 1:
                values = names[name], 1
                check.differences.append(_in(block, "rows", RowDifference(name, "rows", *values)))
        for row in rows:
            name = str(row["image_id"])
            if name not in images:
                unknown = RowDifference(name, "image", name, None, "no image of the run")
                check.differences.append(_in(block, "rows", unknown))
                continue
            for difference in comparison.contradictions(row, images[name]):
                check.differences.append(_in(block, "rows", difference))


def _damaged(stored: StoredRows, path: Path, block: Block) -> Difference:
    name = path.relative_to(stored.run).as_posix()
    return Difference(
        "rows", name, "a damaged file", "a file of rows", block.model, block.cell.transform,
        block.cell.severity, note=stored.damaged[path],
    )  # fmt: skip


def _in(block: Block, place: str, difference: RowDifference) -> Difference:
    return Difference(
        place, difference.quantity, difference.stored, difference.recomputed, block.model,
        block.cell.transform, block.cell.severity, difference.image_id, difference.note,
    )  # fmt: skip


def _check_table(run: Path, record: RunRecord, check: EvaluationCheck) -> None:
    """`results.csv`, where it is there, against the numbers that its rows give."""
    path = run / "results.csv"
    if not path.is_file() or any(one.place == "rows" for one in check.differences):
        return
    keys = ["model", "transform", "severity"]
    try:
        written = pd.read_csv(path, dtype={"model": str, "transform": str})
        written = written.set_index(keys).sort_index()
    except (ValueError, KeyError) as error:
        check.differences.append(
            Difference(
                "results.csv", "the file", "cannot be read", "a table", note=str(error)[:200]
            )
        )
        return
    numbers = table(run).set_index(keys).sort_index()
    for key, expected in numbers.iterrows():
        cell = dict(zip(keys, key, strict=True))  # type: ignore[arg-type]
        if key not in written.index:
            check.differences.append(
                Difference("results.csv", "line", "none", "one", note="`robust report RUN` writes "
                           "the table anew", **cell)
            )  # fmt: skip
            continue
        line = written.loc[key]
        for column in numbers.columns.intersection(written.columns):
            if not _same_number(line[column], expected[column]):
                check.differences.append(
                    Difference("results.csv", column, line[column], expected[column],
                               note="what the rows give", **cell)
                )  # fmt: skip


def _same_number(written: Any, expected: Any) -> bool:
    if pd.isna(written) or pd.isna(expected):
        return bool(pd.isna(written) and pd.isna(expected))
    return abs(float(written) - float(expected)) <= 1e-9 * max(1.0, abs(float(expected)))


# The sample, recomputed.


def _sampled(
    stored: StoredRows, config: VerifyConfig, cells: Mapping[Cell, TransformCell]
) -> list[Block]:
    """The blocks to recompute: of every model and transform one, as far as the sample reaches.

    Which ones depends on the seed and the name of each block alone.
    """
    ranked: dict[tuple[str, Cell], list[Block]] = defaultdict(list)
    order = sorted(
        (block for block in stored.blocks if block.cell in cells),
        key=lambda block: identity_seed("verify", config.seed, block.name),
    )
    keyed = []
    for block in order:
        ranked[block.model, block.cell].append(block)
        keyed.append((len(ranked[block.model, block.cell]), block))
    keyed.sort(key=lambda pair: pair[0])  # stable: within a round in the order of the seed
    return [block for _, block in keyed][: config.sample]


def _recompute(
    stored: StoredRows,
    blocks: Sequence[Block],
    models: Mapping[str, Model],
    cells: Mapping[Cell, TransformCell],
    images: Mapping[str, Sample],
    check: EvaluationCheck,
    listener: Listener,
) -> None:
    record = stored.record
    task: Task[Any] = TASKS[record.task]()
    config = EvalConfig(
        (), (), seed=record.seed, apply_at=record.apply_at, precision=record.precision
    )
    pieces = [
        _piece(stored, number, [block for block in blocks if block.number == number], images)
        for number in sorted({block.number for block in blocks})
    ]
    listener.start(sum(piece.forwards for piece in pieces), 0)
    if not pieces:
        return
    device = next(iter(models.values())).device
    source = Source(
        parts_of(pieces, task.batch_sizes[device.type]), task.preparation(models, cells, config)
    )
    predictors = {name: task.predictor(model, record.dataset) for name, model in models.items()}
    rows = {block: _by_id(stored.rows(block)) for block in blocks}
    inputs: dict[tuple[str, Cell, int], dict[str, Row] | None] = {}
    for batch in batch_stream(source, 0, pin=False):
        if isinstance(batch, RobustError):
            raise batch
        for view in batch.measures:
            key = (view, batch.cell, batch.block)
            if key not in inputs:
                inputs[key] = stored.inputs(*key)
            check.differences += _pixel_differences(batch, view, inputs[key] or {}, check)
        check.differences += _unreadable(batch, stored.skipped)
        for name in batch.models if batch.image_ids else ():
            block, agreement = Block(name, batch.cell, batch.block), Agreement()
            found = COMPARISONS[record.task].compare(
                batch, predictors[name], rows[block], check.tolerance, agreement
            )
            check.differences += [_in(block, "predictions", one) for one in found]
            check.agreement.add(agreement)
        listener.advance((len(batch.image_ids) + len(batch.unreadable)) * len(batch.models))


def _by_id(rows: list[Row] | None) -> dict[str, Row]:
    return {str(row["image_id"]): row for row in rows or ()}


def _piece(
    stored: StoredRows, number: int, blocks: Sequence[Block], images: Mapping[str, Sample]
) -> Piece:
    """The work on the sampled blocks of the same images, which are then decoded once."""
    views = {model.name: model.view for model in stored.record.models}
    cells = list(dict.fromkeys(block.cell for block in blocks))
    models = {cell: tuple(b.model for b in blocks if b.cell == cell) for cell in cells}
    items = tuple(images[name] for name in stored.ids.get(number, ()) if name in images)
    inputs = {cell: tuple(sorted({views[name] for name in models[cell]})) for cell in cells}
    return Piece(number, items, models, inputs)


def _pixel_differences(
    batch: Batch[Any], view: str, stored: Mapping[str, Row], check: EvaluationCheck
) -> Iterator[Difference]:
    """Transformed images whose pixels are not the stored ones."""
    for image_id, made in zip(batch.image_ids, batch.measures[view], strict=True):
        row = stored.get(image_id)
        check.pixels += 1
        values: tuple[Any, Any]
        if row is None:
            quantity, values = "digest of the pixels", ("no readable row", made.digest)
        elif row["digest"] != made.digest:
            quantity, values = "digest of the pixels", (row["digest"], made.digest)
        else:
            check.equal_pixels += 1
            if _same_psnr(row["psnr_db"], made.psnr_db) and row["changed"] == made.changed:
                continue
            quantity, values = "PSNR (dB)", (row["psnr_db"], made.psnr_db)
        cell = asdict(batch.cell)
        yield Difference("pixels", quantity, *values, image_id=image_id, **cell)


def _same_psnr(stored: Any, made: float) -> bool:
    if stored is None or stored != stored:
        return made != made
    return float(stored) == made or abs(float(stored) - made) <= 1e-9 * abs(made)


def _unreadable(batch: Batch[Any], skipped: set[str]) -> Iterator[Difference]:
    for image_id, reason in batch.unreadable:
        if image_id not in skipped:
            yield Difference(
                "rows", "image", "readable", "unreadable", image_id=image_id, note=reason
            )


# Where a difference may come from.


def _causes(record: RunRecord, device: str, models: Mapping[str, Model]) -> list[str]:
    """Versions, device and backends that are others here than in the record."""
    here = versions()
    causes = [
        f"{name} {here.get(name, 'not installed')} here, {record.versions.get(name, 'none')} then"
        for name in sorted({*here, *record.versions})
        if here.get(name) != record.versions.get(name)
    ]
    if device != record.device:
        causes.append(f"device {device} here, {record.device} then")
    for model in record.models:
        if model.name in models and models[model.name].facts.scans:
            backend = choose_backend(models[model.name].device, torch.float32)
            if backend != model.scan_backend:
                causes.append(
                    f"scan backend of `{model.name}` {backend} here, {model.scan_backend} then"
                )
    return causes
