"""Export of a network to a file, with a parity check; implements `robust export`."""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.classifier import Classifier
from robustcli.adapters.exported import (
    ExportedInput,
    ExportedModel,
    ExportedOutput,
    ExportFormat,
    ParityRow,
    Sidecar,
    SpeedRow,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from robustcli.adapters.foreign import foreign_kind
from robustcli.adapters.load import answers_in, entry_of, header_for, load
from robustcli.adapters.memory import is_out_of_memory
from robustcli.adapters.networks import is_trainable
from robustcli.adapters.segmenter import (
    MaskPreprocessing,
    Pixels,
    Segmenter,
    foreground_logits,
    native_window,
)
from robustcli.core.arguments import Positive
from robustcli.core.errors import RunError, UsageError, first_line
from robustcli.core.io import replacing
from robustcli.core.listener import Listener, Silent
from robustcli.core.machine import installed_version, versions
from robustcli.core.names import counted, file_name
from robustcli.data.decode import decode
from robustcli.data.download import file_sha256
from robustcli.data.sources import Classes, Masks, open_dataset
from robustcli.evaluation.export_formats import (
    FORMATS,
    INPUT,
    OPSET,
    OUTPUT,
    ExportedNetwork,
    GraphOptions,
    check_packages,
    read_graph,
    write_graph,
)
from robustcli.models.scan.dispatch import choose_backend
from robustcli.tasks.heldout import MaskValues, training_data

NOISE_TOLERANCE, PHOTO_TOLERANCE = 1e-4, 1e-3
"""Allowed difference from torch's outputs, relative to their largest magnitude (at least 1).

Float32 sums of some thousand terms in another order differ by 1e-7 to 1e-5 of their largest value;
this is also the difference measured on noise. A wrongly translated operator changes the first
digits. On photos, norm layers amplify rounding errors if a channel is nearly constant, as in a dark
photo. `RowwiseNorm` keeps that below 1e-5; norms that a network calls as functions keep
onnxruntime's own sums, which made up to 2e-3 in a network of this project.
"""
_SPLIT_SHARE = 1000
"""At most one of this many decisions may differ, such as of a pixel close to the threshold."""
_NOISE_NAME = "noise"
_NOISE = (3, 1)  # batch sizes of the noise images
_REAL = 8
_BATCHES = (1, 8)  # batch sizes for which speed is measured
_SECONDS, _LEAST_PASSES, _MOST_PASSES = 6.0, 3, 30
_SLOW = 2.0  # seconds; for slower passes, larger batches are not measured
_EXTRA = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportConfig:
    """Settings of an export.

    Args:
        model: The model to export.
        formats: File formats; one file is written for each.
        out: A file, or the folder for the files; None for `runs/export-MODEL-HASH`.
        opset: Operator set of ONNX.
        image_size: Side of the input in pixels; None for the model's default.
        dynamic_batch: Whether the batch size is variable.
        fresh: Whether existing files are replaced.
        offline: Whether downloads are forbidden.
        command: The command line, stored in the description.
    """

    model: ModelRequest
    formats: tuple[ExportFormat, ...] = ("onnx",)
    out: Path | None = None
    opset: Positive = OPSET
    image_size: Positive | None = None
    dynamic_batch: bool = True
    fresh: bool = False
    offline: bool = False
    command: str = "robustcli.export(...)"


@dataclass(frozen=True)
class Exported:
    """An exported file, its description, and whether it existed before."""

    path: Path
    sidecar: Sidecar
    existed: bool


def export(config: ExportConfig, listener: Listener | None = None) -> tuple[Exported, ...]:
    """Exports the network of `config` in each format, with a description file next to it.

    A file gets its final name only after its outputs were compared with torch's.

    Raises:
        UsageError: The model is unknown or cannot be exported, or other files exist at the targets.
        MachineError: Packages that a format needs are not installed.
        RunError: An exporter does not support the network, or the outputs of a file differ from
            torch's; files of other formats are kept.
    """
    listener = listener or Silent()
    formats = tuple(dict.fromkeys(config.formats))
    _check_exportable(config)
    for export_format in formats:
        check_packages(export_format)
    model = _of_size(load(config.model, offline=config.offline), config)
    if isinstance(model, Segmenter) and config.model.label_space is not None:
        raise UsageError(
            "`--label-space` cannot be used with segmenters.",
            f"The masks of `{model.facts.name}` have its own classes.",
            "Omit it.",
        )
    model.try_out()
    for note in model.notes:
        listener.say(note)
    subject = _describe(model, config)
    targets = _targets(config, formats, model.facts.name, subject)
    finished = {
        f: Exported(target, existing, True)
        for f, target in targets.items()
        if (existing := _existing(target, f, subject, config)) is not None
    }
    missing = [export_format for export_format in formats if export_format not in finished]
    failures: list[RunError] = []
    if missing:
        folder = targets[missing[0]].parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
            graphs = _graphs(model, missing, Path(temporary), config, listener, failures)
            speed = _speeds(model, graphs, subject.input.shape, listener) if graphs else ()
            for graph in graphs:
                target = targets[graph.format]
                sidecar = _sidecar(subject, graph, target, speed, config)
                _install(graph.path, target, sidecar)
                finished[graph.format] = Exported(target, sidecar, False)
                listener.say(f"Written: `{target}`, described in `{sidecar_path(target).name}`.")
    if failures:
        written = "".join(f" `{exported.path}` has been written." for exported in finished.values())
        first = failures[0]
        raise RunError(f"{first.what}{written}", first.why, first.todo)
    return tuple(finished[export_format] for export_format in formats)


def _check_exportable(config: ExportConfig) -> None:
    if config.opset != OPSET and "onnx" not in config.formats:
        raise UsageError(
            f"`--opset {config.opset}` cannot be used without `--format onnx`.",
            "Only ONNX files have an operator set.",
            "Omit it, or add `--format onnx`.",
        )
    kind = foreign_kind(config.model)
    if kind in ("onnx", "torchscript"):
        raise UsageError(
            f"`{config.model.name}` is already an exported file.",
            "It contains a graph, not a network that can be exported.",
            "Pass the training run or the model from which it was exported.",
        )
    if kind is None:
        entry = entry_of(config.model, offline=config.offline)
        if not is_trainable(entry):
            raise UsageError(
                f"`{entry.name}` cannot be exported.",
                "It is a threshold on the histogram of an image, not a network.",
                "Pass a network; `robust list models` lists them.",
            )


def _of_size(model: Classifier | Segmenter, config: ExportConfig) -> Classifier | Segmenter:
    """The model for inputs of the requested size."""
    side = config.image_size
    if isinstance(model, Classifier):
        preprocessing = model.preprocessing if side is None else model.preprocessing.of_size(side)
        return model.with_preprocessing(preprocessing)
    window = side or model.preprocessing.window or native_window(model.network)
    if isinstance(window, tuple):
        raise UsageError(
            f"`{model.facts.name}` cannot be exported with its windows of {window[0]} x "
            f"{window[1]} pixels.",
            "Exported networks have square inputs.",
            "Choose the side with `--image-size`; masks then differ from those of nnU-Net.",
        )
    return model.with_preprocessing(replace(model.preprocessing, window=window))


# Content of the description.


@dataclass(frozen=True)
class _Subject:
    """The parts of a description that are known before the export."""

    task: Any
    model: ExportedModel
    input: ExportedInput
    output: ExportedOutput
    training: dict[str, Any] | None
    splits: Mapping[str, str]
    earlier_splits: tuple[dict[str, str], ...]
    mask_values: MaskValues | None


def _describe(model: Classifier | Segmenter, config: ExportConfig) -> _Subject:
    facts, header = model.facts, header_for(config.model)
    training = training_data(config.model)
    source = Path(config.model.name)
    exported_model = ExportedModel(
        **{
            name: getattr(facts, name)
            for name in ExportedModel.model_fields
            if name not in ("source", "arguments")
        },
        arguments=json.loads(json.dumps(facts.arguments, default=str)),
        source=source.as_posix() if source.is_dir() else config.model.name,
    )
    return _Subject(
        "cls" if isinstance(model, Classifier) else "seg",
        exported_model,
        _input(model, config),
        _output(model, config),
        None if header is None else header.model_dump(mode="json"),
        {} if training is None else training.parts,
        () if training is None else tuple(dict(earlier.parts) for earlier in training.earlier),
        None if training is None else training.mask_values,
    )


def _input(model: Classifier | Segmenter, config: ExportConfig) -> ExportedInput:
    preprocessing = model.preprocessing
    channels, height, width = _shape(model)
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    order: Literal["rgb", "bgr", "grey"]
    if isinstance(preprocessing, MaskPreprocessing):
        order, is_scaled = preprocessing.channels, preprocessing.nnunet is None
    else:
        order, is_scaled = ("grey" if channels == 1 else "rgb"), True
    return ExportedInput(
        name=INPUT,
        shape=("batch" if config.dynamic_batch else 1, channels, height, width),
        channels=order,
        scale=1 / 255 if is_scaled else 1.0,
        mean=preprocessing.mean or zeros,
        std=preprocessing.std or ones,
        preprocessing=json.loads(json.dumps(asdict(preprocessing), default=str)),
    )


def _output(model: Classifier | Segmenter, config: ExportConfig) -> ExportedOutput:
    if isinstance(model, Classifier):
        space = answers_in(config.model)
        return ExportedOutput(
            name=OUTPUT, scores="logits", classes=space.ids, class_names=space.names
        )
    scores: Literal["logits", "probabilities"]
    scores = "probabilities" if model.answers_probabilities else "logits"
    if model.classes:
        classes = ("background", *model.classes)
        return ExportedOutput(name=OUTPUT, scores=scores, classes=classes, class_names=classes)
    return ExportedOutput(
        name=OUTPUT, scores=scores, classes=("foreground",), class_names=("foreground",),
        threshold=model.preprocessing.threshold,
    )  # fmt: skip


def _targets(
    config: ExportConfig, formats: Sequence[ExportFormat], name: str, subject: _Subject
) -> dict[ExportFormat, Path]:
    """Path of the file of each format."""
    out = config.out
    if out is None:
        settings = [subject.model.model_dump(mode="json"), subject.input.model_dump(mode="json")]
        text = json.dumps([*settings, config.opset], sort_keys=True)
        short = hashlib.sha256(text.encode()).hexdigest()[:8]
        out = Path("runs") / f"export-{file_name(name)}-{short}"
    suffixes = {FORMATS[f].suffix for f in FORMATS}
    if out.suffix not in suffixes or out.is_dir():
        return {f: out / f"{file_name(name)}{FORMATS[f].suffix}" for f in formats}
    if len(formats) > 1:
        raise UsageError(
            f"`--out {out}` is a single file, but {len(formats)} formats were requested.",
            "",
            "Pass a folder, in which each format is written to a separate file.",
        )
    if out.suffix != FORMATS[formats[0]].suffix:
        raise UsageError(
            f"`--out {out}` does not have the suffix of {formats[0]}.",
            f"Files of this format end in `{FORMATS[formats[0]].suffix}`, by which they are "
            "recognised.",
            f"Use `--out {out.with_suffix(FORMATS[formats[0]].suffix)}`, or another `--format`.",
        )
    return {formats[0]: out}


def _existing(
    target: Path, export_format: ExportFormat, subject: _Subject, config: ExportConfig
) -> Sidecar | None:
    """Description of an existing file with the same settings; None if the file must be written.

    Raises:
        UsageError: Another file exists at `target`.
    """
    if config.fresh or not target.exists():
        return None
    try:
        sidecar = read_sidecar(target) if target.is_file() else None
    except UsageError:
        sidecar = None
    if sidecar is None:
        raise UsageError(
            f"`{target}` already exists.",
            "It was not written by this command, or was changed since.",
            "Choose another path with `--out`, or replace it with `--fresh`.",
        )
    expected: dict[str, Any] = {
        "model": subject.model, "input": subject.input, "output": subject.output,
        "opset": config.opset if export_format == "onnx" else None,
    }  # fmt: skip
    differences = [name for name, value in expected.items() if getattr(sidecar, name) != value]
    if differences:
        raise UsageError(
            f"`{target}` was exported with other settings ({', '.join(differences)}).",
            f"It was made by `{sidecar.command}`.",
            "Choose another path with `--out`, or replace it with `--fresh`.",
        )
    return sidecar


# Writing files and comparing their outputs with torch's.


@dataclass(frozen=True)
class _Graph:
    """A written file whose outputs agree with torch's."""

    format: ExportFormat
    path: Path
    network: nn.Module
    parity: tuple[ParityRow, ...]


def _graphs(
    model: Classifier | Segmenter, formats: Sequence[ExportFormat], folder: Path,
    config: ExportConfig, listener: Listener, failures: list[RunError],
) -> list[_Graph]:  # fmt: skip
    """Writes and checks a file per format; errors are appended to `failures`."""
    wrapped = _wrapped(model)
    shape = _shape(model)
    options = GraphOptions(shape, config.dynamic_batch, config.opset)
    inputs = list(_inputs(model, shape, config.dynamic_batch))
    with torch.inference_mode():
        expected = [(name, [(batch, wrapped(batch)) for batch in batches])
                    for name, batches in inputs]  # fmt: skip
    graphs = []
    for export_format in formats:
        path = folder / f"network{FORMATS[export_format].suffix}"
        listener.say(f"Exporting `{model.facts.name}` to {export_format}.")
        try:
            write_graph(wrapped, export_format, path, options, model.facts.name)
            network = _read(export_format, path, model.facts.name)
            rows = tuple(_parity(model, network, export_format, *named) for named in expected)
            _check_parity(rows, export_format, model.facts.name)
        except RunError as failure:
            failures.append(failure)
            continue
        graphs.append(_Graph(export_format, path, network, rows))
    return graphs


def _wrapped(model: Classifier | Segmenter) -> ExportedNetwork:
    if isinstance(model, Classifier):
        return ExportedNetwork(model.network, classes=model.classes).eval()
    return ExportedNetwork(model.network, resize_maps=bool(model.classes)).eval()


def _shape(model: Classifier | Segmenter) -> tuple[int, int, int]:
    if isinstance(model, Classifier):
        side = model.preprocessing.crop
        return model.preprocessing.channels, side, side
    return (1 if model.preprocessing.channels == "grey" else 3), *model.preprocessing.sides


def _read(export_format: ExportFormat, path: Path, name: str) -> nn.Module:
    try:
        return read_graph(export_format, path)
    except Exception as error:  # each engine has its own classes of exceptions
        raise RunError(
            f"`{name}` cannot be exported to {export_format}.",
            f"{FORMATS[export_format].engine} rejected the file: {error}",
            "Try another `--format` or `--opset`.",
        ) from error


def _inputs(
    model: Classifier | Segmenter, shape: tuple[int, int, int], dynamic: bool
) -> Iterator[tuple[str, list[Tensor]]]:
    """Batches for the comparison: noise, and preprocessed bundled photos."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(sum(_NOISE), *shape, generator=generator)
    yield _NOISE_NAME, list(noise.split(list(_NOISE) if dynamic else 1))
    name, photos = _photos(isinstance(model, Classifier))
    if isinstance(model, Classifier):
        views = [model.preprocessing.coloured(model.preprocessing.apply(p)) for p in photos]
        stacked = torch.stack([torch.from_numpy(view.copy()).permute(2, 0, 1) for view in views])
        images = model.normalised(stacked)
    else:
        images = torch.cat([model.first_window(photo) for photo in photos])
    yield f"{name} photos", list(images.split(5 if dynamic else 1))


def _photos(classifies: bool) -> tuple[str, list[Pixels]]:
    """Name of a bundled data set and some of its photos, evenly spaced."""
    name = "cifar10-mini" if classifies else "nuclei-mini"
    dataset = open_dataset(name, Classes("cifar10") if classifies else Masks(surveyed=False))
    step = max(1, len(dataset.samples) // _REAL)
    return name, [decode(sample.image) for sample in dataset.samples[::step][:_REAL]]


def _parity(
    model: Classifier | Segmenter, network: nn.Module, export_format: ExportFormat, name: str,
    batches: Sequence[tuple[Tensor, Tensor]],
) -> ParityRow:  # fmt: skip
    with torch.inference_mode():
        answers = torch.cat(
            [_answer(network, batch, export_format, model.facts.name) for batch, _ in batches]
        ).float()
    expected = torch.cat([scores for _, scores in batches]).float()
    if answers.shape != expected.shape:
        raise RunError(
            f"The exported `{model.facts.name}` returns outputs of a different shape than torch.",
            f"Its output has shape {tuple(answers.shape)}; expected {tuple(expected.shape)}.",
            "Try another `--format`, or `--fixed-batch`.",
        )
    largest = float(expected.abs().max())
    decisions, expected_decisions = _decided(model, answers), _decided(model, expected)
    return ParityRow(
        inputs=name,
        images=len(expected),
        difference=float((answers - expected).abs().max()),
        allowed=(NOISE_TOLERANCE if name == _NOISE_NAME else PHOTO_TOLERANCE) * max(1.0, largest),
        largest=largest,
        decided=expected_decisions.numel(),
        agreeing=int((decisions == expected_decisions).sum()),
    )


def _answer(network: nn.Module, batch: Tensor, export_format: ExportFormat, name: str) -> Tensor:
    try:
        answer: Tensor = network(batch)
    except MemoryError:
        raise
    except Exception as error:  # each engine has its own classes of exceptions
        if is_out_of_memory(error):
            raise
        raise RunError(
            f"`{name}` cannot be exported to {export_format}.",
            f"{FORMATS[export_format].engine} cannot run the file with "
            f"{counted(len(batch), 'image')}: {first_line(error)}",
            "Try another `--format`, or `--fixed-batch` if the network uses the number of images "
            "in its computation.",
        ) from error
    return answer


def _decided(model: Classifier | Segmenter, scores: Tensor) -> Tensor:
    """The predicted class of each image or pixel, or whether each pixel is foreground."""
    if isinstance(model, Classifier) or model.classes:
        return scores.argmax(1)
    foreground = foreground_logits(scores)
    probabilities = foreground if model.answers_probabilities else foreground.sigmoid()
    return probabilities >= model.preprocessing.threshold


def _check_parity(rows: Sequence[ParityRow], export_format: str, name: str) -> None:
    for row in rows:
        split = row.decided - row.agreeing
        # also true for NaN
        if not row.difference <= row.allowed or split * _SPLIT_SHARE > row.decided:
            raise RunError(
                f"The {export_format} file of `{name}` does not reproduce the outputs of torch, "
                "and was deleted.",
                f"On {row.images} images ({row.inputs}) its outputs differ by up to "
                f"{row.difference:.1e}; allowed is {row.allowed:.1e} (largest output: "
                f"{row.largest:.3g}). {row.agreeing} of {row.decided} decisions agree.",
                "Try another `--format` or `--opset`, and please report it.",
            )


def _speeds(
    model: Classifier | Segmenter, graphs: Sequence[_Graph], shape: tuple[int | str, ...],
    listener: Listener,
) -> tuple[SpeedRow, ...]:  # fmt: skip
    """Median times of all engines, measured in turn so that other load affects all equally."""
    listener.say("Measuring speed on the CPU.")
    scan = f", scan by `{choose_backend(torch.device('cpu'), torch.float32)}`"
    engines: dict[str, nn.Module] = {
        f"torch, eager{scan if model.facts.scans else ''}": _wrapped(model),
        **{FORMATS[graph.format].engine: graph.network for graph in graphs},
    }
    rows: list[SpeedRow] = []
    for batch in _BATCHES if shape[0] == "batch" else (1,):
        if any(row.milliseconds * batch > 1000 * _SLOW for row in rows):
            listener.say(
                f"Batches of {batch} are not measured, because a single image already takes long."
            )
            break
        images = torch.randn(batch, *_shape(model), generator=torch.Generator().manual_seed(1))
        for engine, times in _timed(engines, images).items():
            milliseconds = 1000 * statistics.median(times)
            rows.append(SpeedRow(engine=engine, batch=batch, milliseconds=milliseconds,
                                 passes=len(times)))  # fmt: skip
    return tuple(rows)


def _timed(engines: Mapping[str, nn.Module], images: Tensor) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    with torch.inference_mode():
        for network in engines.values():  # warm-up: the first passes compile and allocate
            for _ in range(2):
                network(images)
        started = time.perf_counter()
        for number in range(_MOST_PASSES):
            for engine, network in engines.items():
                before = time.perf_counter()
                network(images)
                times[engine].append(time.perf_counter() - before)
            if number + 1 >= _LEAST_PASSES and time.perf_counter() - started > _SECONDS:
                break
    return times


def _sidecar(
    subject: _Subject, graph: _Graph, target: Path, speed: tuple[SpeedRow, ...],
    config: ExportConfig,
) -> Sidecar:  # fmt: skip
    extra: dict[str, str] = {}
    if graph.format == "onnx":
        extra = {name: v for name in _EXTRA if (v := installed_version(name))}
    return Sidecar(
        file=target.name,
        sha256=file_sha256(graph.path),
        format=graph.format,
        opset=config.opset if graph.format == "onnx" else None,
        task=subject.task,
        model=subject.model,
        input=subject.input,
        output=subject.output,
        training=subject.training,
        splits=dict(subject.splits),
        earlier_splits=subject.earlier_splits,
        mask_values=subject.mask_values,
        parity=graph.parity,
        speed=speed,
        threads=torch.get_num_threads(),
        versions={**versions(), **extra},
        command=config.command,
        created=datetime.now(UTC),
    )


def _install(graph: Path, target: Path, sidecar: Sidecar) -> None:
    """Writes the description, then moves the file `graph` to `target`."""
    write_sidecar(target, sidecar)
    with replacing(target) as temporary:
        graph.replace(temporary)
