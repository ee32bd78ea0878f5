"""Runs an explanation: looks up inputs, selects photos, computes missing maps, closes the run.

The photos of a block are loaded once, with the loader of evaluations. Then each method explains
them under each transform, and writes one pair of files per transform (`record.write_block`).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.classifier import Classifier
from robustcli.adapters.foreign import foreign_kind
from robustcli.adapters.load import load
from robustcli.adapters.memory import BatchLimit
from robustcli.adapters.model import made_up_image, needs_contiguous, number_format
from robustcli.adapters.segmenter import Segmenter, is_probability, raw_output
from robustcli.core.errors import RunError, UsageError
from robustcli.core.listener import Listener, Silent
from robustcli.core.machine import versions, versions_with_earlier, with_earlier
from robustcli.core.names import canonical, counted
from robustcli.core.rundir import has_record
from robustcli.core.seeds import identity_seed
from robustcli.core.watchdog import Watchdog
from robustcli.core.working_copy import helping
from robustcli.data.dataset import Sample
from robustcli.data.decode import UnreadableImage, decode
from robustcli.evaluation.device import device_name
from robustcli.evaluation.distributed import (
    Group,
    count_devices,
    group_of,
    incomplete,
)
from robustcli.evaluation.evaluate import (
    check_not_restarted,
    loader_workers,
    run_evaluation,
)
from robustcli.evaluation.forecast import needs_download
from robustcli.evaluation.plan import PIECES_PER_RANK, batches
from robustcli.evaluation.record import transform_record
from robustcli.explanation.block import BlockExplanation, answers_of
from robustcli.explanation.config import BATCH_SIZES, BLOCK_PHOTOS, ExplainConfig
from robustcli.explanation.inputs import (
    ExplainInputs,
    check_precision,
    choice_of,
    explain_inputs,
    mask_class_number,
    named_images,
    worst_images,
)
from robustcli.explanation.layer_methods import cam_layer
from robustcli.explanation.methods import (
    METHODS,
    ExplanationMethod,
    chosen_methods,
    default_methods,
    fitting,
)
from robustcli.explanation.network import ExplainedNetwork
from robustcli.explanation.record import (
    EXPLANATION,
    ChoiceRecord,
    ExplainRecord,
    cells_of,
    is_done,
    read_explain_record,
    rows_path,
    write_block,
)
from robustcli.explanation.views import (
    BlockViews,
    Boxes,
    Geometry,
    View,
    block_views,
    boxed_region,
    geometry_of,
    moved_places,
    read_boxes,
    window_size,
)
from robustcli.transforms.base import CLEAN, Cell

AnyModel = Classifier | Segmenter


def explain(config: ExplainConfig, listener: Listener | None = None) -> Path:
    """Calls `run_explanation` in all processes that `config` or a launcher (torchrun) requests."""
    with group_of(config, "robustcli.explanation.explaining:run_explanation") as group:
        return run_explanation(config, listener or Silent(), group)


def run_explanation(config: ExplainConfig, listener: Listener, group: Group) -> Path:
    """Computes the missing maps of `config`; returns the run's folder.

    Each process of `group` calls this function.

    Raises:
        UsageError: A setting names something that does not exist, settings contradict each other,
            or the inputs of the processes differ.
        MachineError: The data or the weights of a finished run are not on this machine.
        RunError: Some maps could not be computed, or a process died; all others are kept.
    """
    with group.alive(listener) as announcer:
        inputs = explain_inputs(config, announcer, group.place)
        choice, boxes = _checked(inputs, config, announcer)
        _announce_choice(inputs, choice, announcer)
        with _opened_model(inputs, choice, announcer) as (model, explained, methods, record):
            group.check_inputs(_shared_inputs(record, inputs.config))
            work = _Work(inputs, model, explained, methods, boxes, announcer, group)
            if group.first:
                _lead(work, record, choice)
            else:
                _follow(work, choice)
    return inputs.run


def _checked(
    inputs: ExplainInputs, config: ExplainConfig, listener: Listener
) -> tuple[ChoiceRecord, Boxes]:
    """How photos are selected, and the object boxes; checks what needs no model.

    Raises:
        UsageError: An input is in a folder that is discarded, an image or a box does not exist, or
            an option has no effect.
    """
    if config.fresh:
        EXPLANATION.check_kept(inputs.run, [("RUN", config.source), *config.inputs])
    choice = choice_of(inputs.config, inputs.source)
    check_precision(inputs.config, choice, inputs.source)
    if choice.rule == "ids":
        named_images(inputs.config.images, inputs.items)
    return choice, read_boxes(inputs.config.boxes, inputs.items, listener.say)


OpenedModel = tuple[AnyModel, ExplainedNetwork, tuple[ExplanationMethod, ...], ExplainRecord]


@contextmanager
def _opened_model(
    inputs: ExplainInputs, choice: ChoiceRecord, listener: Listener
) -> Iterator[OpenedModel]:
    """Context manager: the model, the same for methods, the methods, and the record of a new run.

    Raises:
        UsageError: The weights are of another network, or an option does not apply to the model.
    """
    model: Any = inputs.load()
    for note in model.notes:
        listener.say(note)
    if isinstance(model, Segmenter) and (model.classes or inputs.config.mask_class is not None):
        listener.say(_explained_classes(inputs, model))
    with _without_gradients(model.network):
        explained = explained_network(inputs, model)
        methods = _usable_methods(inputs, explained, model, listener)
        yield model, explained, methods, _new_record(inputs, model, methods, choice)


def _lead(work: _Work, record: ExplainRecord, choice: ChoiceRecord) -> None:
    """At rank 0: opens the run, selects the photos, shares out the missing maps, closes the run."""
    inputs, group, announcer = work.inputs, work.group, work.listener
    with EXPLANATION.held(inputs.run, announcer.say) as ownership:
        machine = record
        record = EXPLANATION.open(inputs.run, record, fresh=inputs.config.fresh)
        group.check_shared(inputs.run)
        with EXPLANATION.closing(inputs.run) as ending:
            group.send("record", record.model_dump_json())
            source = inputs.source or _evaluated(inputs, choice, announcer, group)
            images = _chosen_images(inputs, choice, source, announcer)
            _keep_images(inputs.run, images)
            record = read_explain_record(inputs.run)
            group.send("images", record.images)
            blocks = dict(enumerate(batches(images, record.block_size)))
            missing = work.missing(blocks)
            if missing:
                EXPLANATION.update(
                    inputs.run,
                    versions=versions_with_earlier(record.versions, machine.versions),
                    device=with_earlier(record.device, machine.device),
                )
            left = sum(
                len(blocks[n]) * rows_per_photo(*f) for n, files in missing.items() for f in files
            )
            total = len(images) * sum(rows_per_photo(*file) for file in work.files)
            announcer.start(total, total - left)
            units = group.share_out(units_of(missing, group.place.world))
            failures, dead_ranks = work.run(blocks, units, ownership.check)
            if not _is_whole(inputs, read_explain_record(inputs.run)):
                ending.status = "partial"
        lost = sum(map(len, work.missing(blocks).values()))
        if lost and (dead_ranks or not failures):
            total = len(blocks) * len(work.files)
            raise incomplete(
                dead_ranks, group.place.world, f"{lost} of {total} files with maps are missing.",
                "The same command computes only the missing maps.",
            )  # fmt: skip
        if failures:
            raise _failed(failures)


def _follow(work: _Work, choice: ChoiceRecord) -> None:
    """At a rank other than 0: computes its share of the maps."""
    inputs, group = work.inputs, work.group
    group.check_shared(inputs.run)
    record = ExplainRecord.model_validate_json(group.receive("record"))
    if inputs.source is None:
        _evaluated(inputs, choice, work.listener, group)
    images = [inputs.items[name] for name in group.receive("images")]
    blocks = dict(enumerate(batches(images, record.block_size)))
    with helping(inputs.run):
        work.run(
            blocks, group.share_out(()),
            partial(check_not_restarted, EXPLANATION, inputs.run, record),
        )  # fmt: skip


def _shared_inputs(record: ExplainRecord, config: ExplainConfig) -> dict[str, Any]:
    """The inputs that must be equal in all ranks."""
    facts = record.model_dump(mode="json")
    dataset, model = facts["dataset"], facts["model"]
    return {
        "images": {k: dataset[k] for k in ("digest", "contents", "images", "label_space")},
        "model or weights": {k: v for k, v in model.items() if k != "scan_backend"},
        "transforms": {
            f"{t['name']}:{t['severity']}": t["parameters"] for t in facts["transforms"]
        },
        "settings": {
            **{k: facts[k] for k in ("seed", "apply_at", "methods", "layer", "sanity", "choice")},
            **{k: facts[k] for k in ("mask_class", "boxes")},
            "batch_size": config.batch_size,
        },
    }


def _explained_classes(inputs: ExplainInputs, model: Segmenter) -> str:
    """A sentence on what the maps of a segmenter with several classes explain."""
    tells = f"`{model.facts.name}` predicts {len(model.classes)} classes: the maps explain"
    if inputs.config.mask_class is None:
        names = ", ".join(f"`{name}`" for name in model.classes)
        return (
            f"{tells} the pixels of any class against the background. `--class NAME` explains a "
            f"single class: {names}."
        )
    number = mask_class_number(inputs.config.mask_class, model.classes)
    return f"{tells} the pixels of `{model.classes[number - 1]}` against all others."


@contextmanager
def _without_gradients(network: nn.Module) -> Iterator[None]:
    """Disables the gradients of parameters inside the context, and restores them afterwards."""
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)


def _announce_choice(inputs: ExplainInputs, choice: ChoiceRecord, listener: Listener) -> None:
    config = inputs.config
    if not (config.transforms or inputs.changed_cells):
        listener.say("`--transform` is not set: only untransformed photos are explained.")
    if choice.rule == "worst" and config.worst is None:
        of = ", ".join(f"`{cell.transform}`" for cell in inputs.changed_cells)
        what = f"lose most under {of}" if of else "have the worst predictions"
        photos = len(inputs.items)
        assert choice.count is not None, "set by `choice_of`"
        which = f"the {choice.count} photos that {what}"
        if photos <= choice.count:
            which = "the only photo" if photos == 1 else f"all {photos} photos"
        listener.say(
            f"None of `--image`, `--worst`, `--class` and `--limit` is set: explaining {which}."
        )


# The network in the form that methods need, and the methods that support it.


def explained_network(inputs: ExplainInputs, model: AnyModel) -> ExplainedNetwork:
    """`model` in the form that methods need; it shares the parameters of `model`."""
    initial = partial(_initial_network, inputs, model)
    shared: dict[str, Any] = {
        "module": model.network, "device": inputs.device, "family": inputs.family,
        "layer": inputs.config.layer,
        "initial": initial if foreign_kind(inputs.request) is None else None,
    }  # fmt: skip
    is_timm = model.facts.builder.startswith("timm:")
    if is_timm and inputs.device.type == "cpu" and not needs_contiguous(model.network):
        # Halves the time of MobileNetV2's forward and backward pass. Not for networks of the user,
        # whose code may rely on the memory layout.
        model.network.to(memory_format=torch.channels_last)
    if isinstance(model, Classifier):
        assert inputs.space is not None, "classifiers have classes"
        answers, preprocessing = inputs.dataset.answers, model.preprocessing
        if answers is None and model.classes is not None:
            answers = list(range(model.classes))  # its further outputs are no classes
        return ExplainedNetwork(
            **shared, task="cls", classes=inputs.space.names,
            mean=preprocessing.mean, std=preprocessing.std,
            answers=None if answers is None else tuple(answers),
        )  # fmt: skip
    masks = model.preprocessing
    channels = 1 if masks.channels == "grey" else 3
    explained = ExplainedNetwork(
        **shared, task="seg", classes=("background", "foreground"),
        mean=masks.mean or (0.0,) * channels, std=masks.std or (1.0,) * channels,
        probabilities=is_probability(model.network), forward=raw_output,
    )  # fmt: skip
    if inputs.config.mask_class is None:
        return explained
    number, total = mask_class_number(inputs.config.mask_class, model.classes), len(model.classes)
    return replace(
        explained,
        classes=("other", model.classes[number - 1]),
        probabilities=False,
        forward=partial(class_logits, number=number, classes=total),
        most_probable=partial(is_most_probable, number=number, classes=total),
    )


def class_logits(network: nn.Module, x: torch.Tensor, number: int, classes: int) -> torch.Tensor:
    """The logits (n, 1, H, W) of one class against background and all other classes.

    The sigmoid of the result is the softmax probability of class `number`, from 1 to `classes`.
    """
    scores = raw_output(network, x, classes)
    other_scores = scores[:, [index for index in range(classes + 1) if index != number]]
    return scores[:, number : number + 1] - torch.logsumexp(other_scores, 1, keepdim=True)


def is_most_probable(
    network: nn.Module, x: torch.Tensor, number: int, classes: int
) -> torch.Tensor:
    """Mask, bool (n, H, W), of pixels whose most probable class is `number`, 1 to `classes`."""
    return raw_output(network, x, classes).argmax(1) == number


def _initial_network(inputs: ExplainInputs, model: AnyModel) -> nn.Module:
    """The network of `model` with its weights before training."""
    request = ModelRequest(
        model.facts.builder.partition(":")[2], None, dict(model.facts.arguments),
        label_space=inputs.request.label_space, untrained=True,
    )  # fmt: skip
    return load(request, inputs.task.name, seed=inputs.config.seed).network


def _usable_methods(
    inputs: ExplainInputs, explained: ExplainedNetwork, model: AnyModel, listener: Listener
) -> tuple[ExplanationMethod, ...]:
    """The methods that the user named, or all default methods that support the network.

    Raises:
        UsageError: A named method does not support the network; the message lists those that do.
    """
    named = inputs.config.methods
    if named:
        methods = chosen_methods(
            named, model=inputs.name, family=inputs.family, task=inputs.task.name
        )
    else:
        methods = default_methods(inputs.family, inputs.task.name)
    if inputs.config.layer is not None and not any(method.layered for method in methods):
        layered = [m.name for m in fitting(inputs.family, inputs.task.name) if m.layered]
        raise UsageError(
            f"`--layer {inputs.config.layer}` cannot be used with "
            f"{', '.join(f'`--method {method.name}`' for method in methods)}.",
            f"Only {', '.join(f'`{name}`' for name in layered)} use a layer.",
            "Omit it, or add one of these methods.",
        )
    image = _made_up(model).to(inputs.device)
    with torch.enable_grad():
        differentiable = explained.logits(image.detach().requires_grad_(True)).requires_grad
    refused = {m: _refusal(m, explained, image, differentiable) for m in methods}
    usable = tuple(method for method, error in refused.items() if error is None)
    spelled = {canonical(name) for name in named}
    for method, error in refused.items():
        if error is not None and (not usable or method.name in spelled):
            raise error
        if error is not None:
            listener.say(f"Skipped `{method.name}`: {error.what} {error.why}".strip())
    if not named:
        listener.say(f"`--method` is not set; using {', '.join(f'`{m.name}`' for m in usable)}.")
    if inputs.config.layer is None and any(method.layered for method in usable):
        layer = cam_layer(explained, image)
        listener.say(
            f"`--layer` is not set; using the output of `{layer.name}`, "
            f"{layer.size[1]} x {layer.size[0]} positions."
        )
    return usable


def _refusal(
    method: ExplanationMethod, explained: ExplainedNetwork, image: torch.Tensor,
    differentiable: bool,
) -> UsageError | None:  # fmt: skip
    """The reason why `method` does not support the network; None if it does."""
    if method.gradients and not differentiable:
        names = [m.name for m in fitting(explained.family, explained.task) if not m.gradients]
        return UsageError(
            f"`--method {method.name}` cannot be used with this network.",
            "It needs gradients, which the output of this network does not have (as for ONNX "
            "files).",
            f"Methods without gradients: {', '.join(f'`{name}`' for name in names)}.",
        )
    if not method.tried:
        return None
    target = torch.zeros(1, dtype=torch.int64, device=image.device)
    if explained.task == "seg":
        target = torch.ones(1, *image.shape[2:], dtype=torch.bool, device=image.device)
    try:
        method.function()(explained, image, target, batch_size=1, seeds=[0])
    except UsageError as error:
        return error
    return None


def _made_up(model: AnyModel) -> torch.Tensor:
    """The normalised input of one image of noise."""
    if isinstance(model, Classifier):
        preprocessing = model.preprocessing
        image = made_up_image((preprocessing.channels, preprocessing.crop, preprocessing.crop))
    else:
        channels = 1 if model.preprocessing.channels == "grey" else 3
        image = made_up_image((channels, *window_size(model)))
    return model.normalised(image.to(model.device))


# The run record and the selection of photos.


def _new_record(
    inputs: ExplainInputs, model: AnyModel, methods: Sequence[ExplanationMethod],
    choice: ChoiceRecord,
) -> ExplainRecord:  # fmt: skip
    config, now = inputs.config, datetime.now(UTC)
    explained_class = None
    if config.mask_class is not None and isinstance(model, Segmenter):
        explained_class = model.classes[mask_class_number(config.mask_class, model.classes) - 1]
    return ExplainRecord(
        task=inputs.task.name,
        command=config.command,
        status="running",
        created=now,
        updated=now,
        seed=config.seed,
        apply_at=config.apply_at,
        block_size=BLOCK_PHOTOS,
        dataset=inputs.dataset,
        model=inputs.task.model_record(model, config),
        transforms=[transform_record(inputs.cells[cell]) for cell in inputs.cells],
        methods=[method.name for method in methods],
        layer=config.layer,
        sanity=config.sanity,
        choice=choice,
        mask_class=explained_class,
        images=[],
        versions={**versions(), "captum": version("captum")},
        device=device_name(inputs.device),
        split=inputs.split,
        boxes=None
        if config.boxes is None
        else hashlib.sha256(config.boxes.read_bytes()).hexdigest(),
    )


def _chosen_images(
    inputs: ExplainInputs, choice: ChoiceRecord, source: Path | None, listener: Listener
) -> tuple[Sample, ...]:
    """The photos to explain; unreadable photos are skipped with a message, unless named by id."""
    if choice.rule == "ids":
        chosen = named_images(inputs.config.images, inputs.items)
    elif choice.rule == "worst":
        assert choice.count is not None, "set by `choice_of`"
        assert source is not None, "made by `_evaluated`"
        chosen = worst_images(
            source, inputs.name, inputs.task.name, inputs.changed_cells, inputs.items,
            choice.count,
        )  # fmt: skip
    else:
        chosen = tuple(inputs.items.values())
    readable = []
    for sample in chosen:
        try:
            decode(sample.image)
            readable.append(sample)
        except UnreadableImage as error:
            if choice.rule == "ids":
                raise RunError(
                    f"`{sample.image_id}` cannot be read.", error.reason,
                    "Repair the file, or select other photos.",
                ) from error  # fmt: skip
            listener.say(f"`{sample.image_id}` cannot be read ({error.reason}) and is skipped.")
    if not readable:
        raise RunError(
            "No photo remains to be explained.", "None of them can be read.", "Repair them."
        )
    return tuple(readable)


def _evaluated(
    inputs: ExplainInputs, choice: ChoiceRecord, listener: Listener, group: Group
) -> Path | None:
    """Evaluates the model in all ranks, if that is needed to select the worst photos.

    Returns the folder of the evaluation.
    """
    if choice.rule != "worst":
        return None
    out = inputs.run / "evaluation"
    count = inputs.dataset.images * len(inputs.cells)
    if not has_record(out):
        listener.say(f"Evaluating {counted(count, 'image')} to find them.")
    return run_evaluation(inputs.config.evaluation(out), _Quiet(listener), group.part("evaluation"))


@dataclass(frozen=True)
class _Quiet:
    """Forwards progress but no messages, because the explanation reported them already."""

    listener: Listener

    def say(self, text: str) -> None:
        """Ignores the message."""

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        """Forwards the start, with predictions as unit."""
        self.listener.start(total, done, "predictions")

    def advance(self, count: int) -> None:
        """Forwards the progress."""
        self.listener.advance(count)


def _keep_images(run: Path, images: Sequence[Sample]) -> None:
    """Records the explained photos; see `_check_images`."""
    names = [sample.image_id for sample in images]
    _check_images(run, names)
    EXPLANATION.update(run, images=names)


def _check_images(run: Path, names: Sequence[str]) -> None:
    """Raises UsageError if the run explains other photos than `names`."""
    before = read_explain_record(run).images
    if before and before != list(names):
        raise UsageError(
            f"`{run}` contains explanations of other photos.",
            f"Photos of the run: {len(before)}, the first is `{before[0]}`. Photos selected now: "
            f"{len(names)}, the first is `{names[0]}`.",
            "Use another `--out` (or omit it to get a separate folder), or discard the run with "
            "`--fresh`.",
        )


# Computation of the missing maps.


def files_of(
    methods: Sequence[ExplanationMethod], cells: Sequence[Cell]
) -> list[tuple[ExplanationMethod, Cell]]:
    """The method and cell of each file of a block."""
    return [(method, cell) for method in methods for cell in cells_of(method, cells)]


def rows_per_photo(method: ExplanationMethod, cell: Cell) -> int:
    """Number of rows per photo in one file: one per view and target."""
    views = 1 if cell == CLEAN else 2
    return views * (2 if method.targeted else 1)


MapFile = tuple[ExplanationMethod, Cell]
Unit = tuple[int, str, list[tuple[str, int]]]
"""Files that one process computes: number of the block, method, and transforms with severities."""


def units_of(missing: Mapping[int, Sequence[MapFile]], ranks: int) -> list[Unit]:
    """Divides the missing files of each block into enough units for `ranks` processes.

    A unit has all transforms of a method, so that the maps of clean photos are computed once. With
    few blocks and methods, the transforms are divided too.
    """
    cells: dict[tuple[str, int], list[tuple[str, int]]] = defaultdict(list)
    for number, files in missing.items():
        for method, cell in files:
            cells[method.name, number].append((cell.transform, cell.severity))
    parts = 1 if ranks == 1 else -(-ranks * PIECES_PER_RANK // max(1, len(cells)))
    # The units of one method follow each other: they take about the same time.
    order = list(dict.fromkeys(method for method, _ in cells))
    return [
        (number, method, of_unit)
        for method, number in sorted(cells, key=lambda unit: order.index(unit[0]))
        for first in range(min(parts, len(cells[method, number])))
        if (of_unit := cells[method, number][first::parts])
    ]


@dataclass(frozen=True)
class _Work:
    """Computes the maps of one command.

    Args:
        inputs: The inputs of the explanation.
        model: The model, on its device.
        explained: The network of the model, in the form that methods need.
        methods: The methods of the command.
        boxes: Object boxes, see `views.read_boxes`.
        listener: Receives messages and progress.
        group: The processes that share the work.
    """

    inputs: ExplainInputs
    model: AnyModel
    explained: ExplainedNetwork
    methods: Sequence[ExplanationMethod]
    boxes: Boxes
    listener: Listener
    group: Group

    @property
    def files(self) -> list[MapFile]:
        """The method and cell of each file of a block."""
        return files_of(self.methods, tuple(self.inputs.cells))

    def missing(self, blocks: Mapping[int, Sequence[Sample]]) -> dict[int, list[MapFile]]:
        """The missing files of each of `blocks`, without finished blocks."""
        by_block = {
            number: [file for file in self.files if not is_done(self._path(*file, number))]
            for number in blocks
        }
        return {number: files for number, files in by_block.items() if files}

    def run(
        self, blocks: Mapping[int, Sequence[Sample]], units: Sequence[Unit],
        check: Callable[[], None],
    ) -> tuple[list[RunError], list[int]]:  # fmt: skip
        """Computes the files of `units`, and waits at rank 0 for the other ranks.

        Args:
            blocks: The photos of each block, by number.
            units: The share of this rank, see `units_of`.
            check: Called before each write; raises if this process no longer owns the run.

        Returns:
            At rank 0, one error per file that could not be computed, and the ranks that died.
        """
        announce, order = partial(self.group.announce, listener=self.listener), self.files
        assigned: dict[int, list[MapFile]] = defaultdict(list)
        for number, name, cells in sorted(units, key=lambda unit: unit[0]):
            assigned[number] += [(METHODS[name], Cell(*cell)) for cell in cells]
        shuffled = None
        if self.inputs.config.sanity and assigned:
            shuffled = self.explained.shuffled(identity_seed("sanity", self.inputs.config.seed))
        failures: list[tuple[int, int, tuple[str, str, str]]] = []
        workers = loader_workers(
            self.inputs.config, self.inputs.device, self.group.place.local_world
        )
        limit, needed = BatchLimit(self.model, announce), {n: blocks[n] for n in assigned}
        with Watchdog(announce) as watchdog:
            for made in block_views(self.inputs, self.model, needed, workers, watchdog, announce):
                if made.unreadable:
                    image_id, reason = made.unreadable[0]
                    raise RunError(
                        f"`{image_id}` can no longer be read.", reason,
                        "Restore the file and repeat the command: all finished maps are kept.",
                    )  # fmt: skip
                files = sorted(assigned[made.number], key=order.index)
                block = self._block(made, [cell for _, cell in files], shuffled, limit)
                for method, cell in files:
                    path = self._path(method, cell, made.number)
                    file = path.with_suffix(".npz").relative_to(self.inputs.run).as_posix()
                    try:
                        with number_format(self.inputs.device, "fp32"):
                            rows, arrays = block.explain(method, cell, file, self.listener.advance)
                    except (RunError, UsageError) as error:
                        # Also of a method that only this photo shows not to fit the network.
                        words = (error.what, error.why, error.todo)
                        failures.append((made.number, order.index((method, cell)), words))
                    else:
                        check()
                        write_block(path, rows, arrays)
        of_ranks, dead_ranks = self.group.collect("failures", failures)
        found = sorted(failure for failed in of_ranks.values() for failure in failed)
        return [RunError(*words) for *_, words in found], dead_ranks

    def _path(self, method: ExplanationMethod, cell: Cell, number: int) -> Path:
        return rows_path(self.inputs.run, self.inputs.name, method.name, cell, number)

    def _block(
        self, made: BlockViews, cells: Sequence[Cell], shuffled: ExplainedNetwork | None,
        limit: BatchLimit,
    ) -> BlockExplanation:  # fmt: skip
        """The explanation of a block, of which the files of `cells` are computed."""
        size = self.batch_size
        threshold = 0.5
        if isinstance(self.model, Segmenter):
            threshold = self.model.preprocessing.threshold
        computed = {cell: made.views[cell] for cell in dict.fromkeys([CLEAN, *cells])}
        places, geometry = self._places(computed), self._geometry
        regions = {
            cell: _regions(view, self.boxes, geometry, places.get(cell), made.views[CLEAN])
            for cell, view in computed.items()
        }
        answers = {
            cell: answers_of(self.explained, view, limit, batch_size=size, threshold=threshold)
            for cell, view in made.views.items()
        }
        return BlockExplanation(
            self.explained, shuffled, made.views, answers, places, regions, self.inputs.name,
            self.inputs.config.seed, size, limit,
        )  # fmt: skip

    @property
    def batch_size(self) -> int:
        """Largest number of images per forward pass."""
        return self.inputs.config.batch_size or BATCH_SIZES[self.inputs.device.type]

    @property
    def _geometry(self) -> Geometry:
        return geometry_of(self.model, at_crop=self.inputs.config.apply_at == "crop")

    def _places(self, views: Mapping[Cell, View]) -> dict[Cell, list[NDArray[np.int64] | None]]:
        """Pixel origins of each photo, by cell, for transforms that move pixels."""
        geometry, seed = self._geometry, self.inputs.config.seed
        return {
            cell: [
                moved_places(sample, self.inputs.cells[cell], geometry, seed)
                for sample in view.samples
            ]
            for cell, view in views.items()
            if cell != CLEAN and self.inputs.cells[cell].transform.geometric
        }


def _regions(
    view: View, boxes: Boxes, geometry: Geometry, places: Sequence[NDArray[np.int64] | None] | None,
    clean: View,
) -> list[NDArray[np.bool_] | None]:  # fmt: skip
    """The object region of each photo: the true mask, or its boxes moved by the transform."""
    if view.masks is not None:
        return [mask.numpy() for mask in view.masks]
    known = [boxed_region(sample, boxes, geometry) for sample in clean.samples]
    if view is clean or places is None:
        return known
    return [
        region
        if region is None or moved is None
        else (moved >= 0) & region.reshape(-1)[np.maximum(moved, 0)].reshape(moved.shape)
        for region, moved in zip(known, places, strict=True)
    ]


def _is_whole(inputs: ExplainInputs, record: ExplainRecord) -> bool:
    """Whether all files exist that the record defines."""
    count = -(-len(record.images) // record.block_size)
    cells = tuple(Cell(t.name, t.severity) for t in record.transforms)
    return all(
        is_done(rows_path(inputs.run, record.model.name, method.name, cell, number))
        for method, cell in files_of([METHODS[name] for name in record.methods], cells)
        for number in range(count)
    )


def _failed(failures: Sequence[RunError]) -> RunError:
    first = failures[0]
    suffix = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return RunError(f"{first.what}{suffix}", first.why, f"{first.todo} All other maps are kept.")


# The forecast of `--dry-run`.


@dataclass(frozen=True)
class ExplainForecast:
    """The forecast of `--dry-run`: numbers of photos, maps, and predictions to select photos.

    `processes` is the number of processes that would share the work.
    """

    out: str
    model: str
    photos: int
    chosen_by: str
    cells: list[str]
    methods: list[str]
    rows: int
    predictions: int
    processes: int

    def as_json(self) -> str:
        """The forecast as one JSON object."""
        return json.dumps(asdict(self), indent=2)

    def as_text(self) -> str:
        """The forecast as lines of text."""
        lines = [
            f"Run:         {self.out}",
            f"Model:       {self.model}",
            f"Photos:      {self.photos:,} ({self.chosen_by})",
            f"Transforms:  {', '.join(self.cells) or 'none'}",
            f"Methods:     {', '.join(self.methods)}",
            f"Maps:        {self.rows:,} (photo x view x class x method; equal ones are computed "
            "once)",
        ]
        if self.processes > 1:
            lines.append(f"Processes:   {self.processes}")
        if self.predictions:
            lines.append(f"Predictions: {self.predictions:,} to find the photos")
        return "\n".join(lines)


_RULES = {
    "ids": "named", "worst": "the worst", "class": "of one class", "subset": "a random subset",
}  # fmt: skip


def explain_forecast(config: ExplainConfig, listener: Listener) -> ExplainForecast:
    """Forecasts what `explain` would compute, without downloads and without writing files.

    The model is loaded, unless its weights have to be downloaded, to check the options that depend
    on it and to compare the settings with those of a run in the folder.

    Raises:
        UsageError: As in `explain`.
    """
    inputs = explain_inputs(replace(config, offline=True), listener)
    choice, _ = _checked(inputs, config, listener)
    _announce_choice(inputs, choice, listener)
    family, task = inputs.family, inputs.task.name
    continues = has_record(inputs.run) and not config.fresh
    if needs_download(inputs.request):
        methods = default_methods(family, task)
        if config.methods:
            methods = chosen_methods(config.methods, model=inputs.name, family=family, task=task)
        compared = f" and compare the settings with those of `{inputs.run}`" if continues else ""
        listener.say(
            f"The weights of `{inputs.name}` have to be downloaded. Only the command itself can "
            f"check whether each method supports it{compared}."
        )
    else:
        with _opened_model(inputs, choice, listener) as (_, _, methods, record):
            if continues:
                EXPLANATION.check_continues(inputs.run, record)
                _compare_images(inputs, choice, listener)
    photos = len(inputs.items)
    if choice.rule == "ids":
        photos = len(named_images(inputs.config.images, inputs.items))
    elif choice.count is not None:
        photos = min(photos, choice.count)
    cells = tuple(inputs.cells)
    rows = photos * sum(rows_per_photo(*file) for file in files_of(methods, cells))
    evaluates = choice.rule == "worst" and inputs.source is None
    return ExplainForecast(
        str(inputs.run), inputs.name, photos, _RULES[choice.rule],
        [f"{c.transform}:{c.severity}" if c.severity else c.transform
         for c in inputs.changed_cells],
        [method.name for method in methods], rows,
        inputs.dataset.images * len(cells) if evaluates else 0,
        count_devices(config.devices, config.device),
    )  # fmt: skip


def _compare_images(inputs: ExplainInputs, choice: ChoiceRecord, listener: Listener) -> None:
    """Raises UsageError if the run in the folder explains other photos.

    Photos that an evaluation would select are not compared, which `listener` is told.
    """
    if choice.rule == "worst" and inputs.source is None:
        listener.say(
            f"The photos are not compared with those of `{inputs.run}`, because they are selected "
            "by predictions."
        )
        return
    images = _chosen_images(inputs, choice, inputs.source, listener)
    _check_images(inputs.run, [sample.image_id for sample in images])
