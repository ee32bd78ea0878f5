"""Networks outside the catalogue: those of users, and those of hubs.

The form of the name determines the source (`foreign_kind`); `foreign_files` and `foreign_hubs` read
the network into a `ForeignNetwork`. A forward pass with a generated image then determines its task,
its number of classes, its input size, and whether its outputs are logits or probabilities. These
decisions are announced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustcli.adapters.catalogue import FOREGROUND, ModelRequest
from robustcli.adapters.classifier import Classifier
from robustcli.adapters.exported import Sidecar, sidecar_path
from robustcli.adapters.foreign_files import (
    ForeignNetwork,
    foreign_code_error,
    onnx,
    torchscript,
    users_network,
)
from robustcli.adapters.foreign_hubs import clip_model, timm_model, transformers_model
from robustcli.adapters.memory import is_out_of_memory
from robustcli.adapters.model import ModelFacts, made_up_image
from robustcli.adapters.preprocessing import Preprocessing, overridden
from robustcli.adapters.segmenter import MaskPreprocessing, Segmenter
from robustcli.adapters.training_run import WeightsHeader
from robustcli.core.errors import RobustError, RunError, UsageError
from robustcli.core.names import TaskName
from robustcli.data.labels import BUNDLED_SPACES, LabelSpace, numbered_classes, read_label_space
from robustcli.models.ablation import has_scan

ForeignKind = Literal["memory", "import", "torchscript", "onnx", "hf", "timm-hub", "open-clip"]
FILES = (".pt", ".pth", ".ts", ".jit", ".torchscript")
_IMPORT = re.compile(r"(?:.*\.py|[A-Za-z_][\w.]*):[A-Za-z_][\w.]*")
_PREFIXES: dict[str, ForeignKind] = {
    "hf": "hf", "hf-hub": "timm-hub", "hf_hub": "timm-hub", "open-clip": "open-clip"
}  # fmt: skip
_HF_TIMM = re.compile(r"hf[-_]hub:timm/", re.IGNORECASE)
_OTHER_DOORS = ("smp", "timm")  # prefixes that `load.resolve` handles
_SIDES = (224, 256, 384, 512, 128, 96, 64, 48, 32, 28)  # tried in this order
_WINDOW = 256
_SHARE = 224 / 256
_EXACT = 1e-3  # tolerance of sums of float32 or float16 probabilities
_SMALLEST = 1e-12  # smallest probability whose logarithm is computed
_LARGEST = 1 - 2**-24  # largest float32 below 1: the logit of 1 is infinite, and its resizing NaN
_SHOWN = 5


@dataclass(frozen=True)
class ForeignModel:
    """A foreign network with known task, classes and preprocessing.

    Args:
        task: `cls` or `seg`, from the dimensions of its output.
        model: The model for evaluation.
        space: The label space of a classifier.
        names_classes: Whether the network or the user named the classes; False if they were
            inferred from their number.
        sidecar: The sidecar of `robust export`; None without one.
    """

    task: TaskName
    model: Classifier | Segmenter
    space: LabelSpace | None
    names_classes: bool
    sidecar: Sidecar | None = None


# The source of a network, from the form of its name.


def foreign_kind(request: ModelRequest) -> ForeignKind | None:
    """The source of the network of `request`; None for names of the catalogue, timm and runs."""
    name = request.name
    if request.module is not None:
        return "memory"
    prefix = name.partition(":")[0].lower()
    if prefix in _PREFIXES:
        return None if _HF_TIMM.match(name) else _PREFIXES[prefix]
    if _IMPORT.fullmatch(name) and prefix not in _OTHER_DOORS:
        return "import"
    suffix = Path(name).suffix.lower()
    if suffix == ".onnx":
        return "onnx"
    return "torchscript" if suffix in FILES else None


def foreign_name(request: ModelRequest) -> str:
    """The name in rows and tables: the last part of the path of a file or folder."""
    kind = foreign_kind(request)
    if request.called is not None:
        return request.called
    if kind in ("torchscript", "onnx"):
        return Path(request.name).name
    prefix, colon, target = request.name.partition(":")
    if kind == "import" and prefix.endswith(".py"):
        return f"{Path(prefix).name}:{target}"
    if kind in ("hf", "timm-hub") and Path(target).expanduser().is_dir():
        return f"{prefix}{colon}{Path(target).expanduser().resolve().name}"
    return request.name


def open_foreign(request: ModelRequest, *, offline: bool) -> ForeignModel:
    """The foreign model of `request`; opens it once per request.

    Raises:
        UsageError: There is no such network, it cannot be built, or its output is not that of a
            classifier or segmenter.
        MachineError: The package that reads it is not installed.
    """
    if not request.opened:
        request.opened.append(_tried(request, _read_network(request, offline=offline)))
    opened: ForeignModel = request.opened[0]
    return opened


def runs_code(request: ModelRequest) -> bool:
    """Whether opening `request` executes code that its name refers to: Python or TorchScript."""
    return foreign_kind(request) in ("import", "torchscript")


def sidecar_of(request: ModelRequest) -> Sidecar | None:
    """The sidecar of the file of `request`; None without one."""
    if foreign_kind(request) not in ("torchscript", "onnx"):
        return None
    opened = open_foreign(request, offline=True)
    return opened.sidecar


def names_classes(request: ModelRequest) -> bool:
    """Whether the classes of an opened foreign network were named, not inferred."""
    return bool(request.opened) and bool(request.opened[0].names_classes)


def _read_network(request: ModelRequest, *, offline: bool) -> ForeignNetwork:
    kind = foreign_kind(request)
    if runs_code(request) and not request.run_code:
        raise UsageError(
            f"`{request.name}` is code, which is only executed if you name it.",
            "Here a file contains this name: the record of a run, or the header of weights.",
            "If you trust the code, evaluate it: `robust eval --model NAME`.",
        )
    if request.untrained and kind not in ("memory", "import", "open-clip"):
        raise UsageError(
            f"`--untrained` cannot be used with `{request.name}`.",
            "Its weights are in the file or on the hub.",
            "Omit it.",
        )
    if kind in ("memory", "import"):
        return users_network(request)
    if request.weights is not None and kind != "open-clip":
        raise UsageError(
            f"`--weights {request.weights}` cannot be used with `{request.name}`.",
            "It holds its own weights.",
            "Omit `--weights`.",
        )
    if kind == "torchscript":
        return torchscript(request)
    if kind == "onnx":
        return onnx(request)
    if kind == "hf":
        return transformers_model(request, offline=offline)
    if kind == "timm-hub":
        return timm_model(request, offline=offline)
    return clip_model(request, offline=offline)


# The output of a network in a common form.


class _OutputError(RunError):
    """The network returned something other than scores, whatever the size of its input."""


class LogitNetwork(nn.Module):
    """A foreign network with logits as output: (B, classes) or (B, classes, h, w).

    Args:
        foreign: The network.
        name: Name for messages.
    """

    def __init__(self, foreign: ForeignNetwork, name: str) -> None:
        super().__init__()
        self.network, self.users_code, self.model_name = foreign.network, foreign.users_code, name
        self.batch = foreign.batch
        self.num_classes: int | None = None
        self.probabilities = False

    def forward(self, images: Tensor) -> Tensor:
        """The logits; probabilities are converted to logarithms, or to logits for one class.

        Raises:
            RunError: The network fails, its output does not have one item per image, or the values
                are not probabilities although those for the generated image were.
        """
        if self.batch is None:
            answers = self.raw(images)
        else:
            answers = torch.cat([self._padded(part) for part in images.split(self.batch)])
        # Not `len`, which makes the number of images a constant of an exported graph.
        if answers.ndim not in (2, 4) or answers.shape[0] != images.shape[0]:
            raise RunError(
                f"`{self.model_name}` does not return one output per image.",
                f"For {len(images)} images, its output has the shape {tuple(answers.shape)}.",
                "The first dimension must be the number of images.",
            )
        if answers.shape[1] != (self.num_classes or answers.shape[1]):
            raise RunError(
                f"`{self.model_name}` does not return the same number of classes for all images.",
                f"It had {self.num_classes} for a synthetic image, and has {answers.shape[1]} now.",
                "The second dimension must be the number of classes.",
            )
        if not self.probabilities:
            return answers
        answers = answers.float()
        if not torch.compiler.is_compiling():  # an exported graph cannot depend on values
            self._check_probabilities(answers)
        if answers.shape[1] == 1:
            return torch.logit(answers.clamp(max=_LARGEST), _SMALLEST)
        return answers.clamp(min=_SMALLEST).log()

    def _check_probabilities(self, answers: Tensor) -> None:
        if bool(((answers < -_EXACT) | (answers > 1 + _EXACT)).any()):
            raise RunError(
                f"`{self.model_name}` does not return probabilities for all images.",
                "Its output for a synthetic image was in [0, 1]; now it contains "
                f"{answers.min():.4g} to {answers.max():.4g}.",
                "Wrap it in a module that returns probabilities (sigmoid of one class, softmax of "
                "several).",
            )

    def _padded(self, images: Tensor) -> Tensor:
        """The outputs of at most one batch, padded by its last image to a fixed size."""
        assert self.batch is not None, "only called with a fixed batch"
        padding = self.batch - len(images)
        copies = images[-1:].expand(padding, -1, -1, -1)
        return self.raw(torch.cat([images, copies]) if padding else images)[: len(images)]

    def raw(self, images: Tensor) -> Tensor:
        """The output of the network as one tensor."""
        try:
            output = self.network(images)
            scores = _tensor(output)
        except (Exception, SystemExit) as error:
            if isinstance(error, RobustError) or is_out_of_memory(error):
                raise  # the caller halves the batch if memory ran out
            shape = tuple(images.shape)
            problem = f"`{self.model_name}` fails on an input of shape {shape}."
            located = foreign_code_error(problem, error)
            raise RunError(located.what, located.why, located.todo) from error
        if scores is None:
            came = (
                f"a tensor of {output.dtype}"
                if isinstance(output, Tensor)
                else f"`{type(output).__name__}`"
            )
            raise _OutputError(
                f"`{self.model_name}` does not return a tensor of scores.",
                "Expected (images, classes) of a classifier or (images, classes, h, w) of a "
                "segmenter: a tensor of floating-point numbers, the first item of a list, or under "
                f"`logits` or `out`. It returned {came}.",
                "Wrap it in a module that returns its scores.",
            )
        if scores.ndim == 1 and len(scores) == len(images):
            return scores[:, None]  # one number per image
        if scores.ndim == 4 and tuple(scores.shape[2:]) == (1, 1):
            return scores.flatten(1)  # a fully convolutional classifier
        return scores[:, None] if scores.ndim == 3 else scores


def _tensor(answer: Any) -> Tensor | None:
    """The scores in the return value of a network."""
    for key in ("logits", "out"):
        if isinstance(answer, Mapping) and key in answer:
            answer = answer[key]
        elif not isinstance(answer, Tensor) and hasattr(answer, key):
            answer = getattr(answer, key)
    if isinstance(answer, list | tuple) and answer:
        answer = answer[0]
    return answer if isinstance(answer, Tensor) and answer.is_floating_point() else None


# The first forward pass.


def _tried(request: ModelRequest, foreign: ForeignNetwork) -> ForeignModel:
    name, sidecar = foreign_name(request), foreign.sidecar
    answers = LogitNetwork(foreign, name)
    notes = list(foreign.notes)
    if sidecar is not None:
        notes.append(
            f"`{sidecar_path(Path(request.name)).name}` defines the use of `{name}`: "
            f"preprocessing, {'threshold' if sidecar.output.threshold is not None else 'classes'} "
            f"and origin (`{sidecar.model.name}`)."
        )
    size, scores = _first_answer(answers, foreign, request)
    if foreign.batch is None and not _takes_two(answers, size):
        answers.batch = 1
        notes.append(f"`{name}` only accepts batches of one image.")
    task: TaskName = "cls" if scores.ndim == 2 else "seg"
    answers.num_classes = scores.shape[1]
    if task == "cls" and scores.shape[1] == 1:
        raise UsageError(
            f"`{name}` returns one number per image.",
            "A classifier needs one score per class, as the class with the highest score is its "
            "prediction; with one score, this is the same class for every image.",
            "For two classes, wrap it in a module that returns two scores: of a logit z of the "
            "second class, with the shape (images, 1), `torch.cat([torch.zeros_like(z), z], 1)`; "
            "of its probability p, `torch.cat([1 - p, p], 1)`.",
        )
    if sidecar is None:
        answers.probabilities = _are_probabilities(answers, scores, notes)
    else:
        answers.probabilities = sidecar.output.scores == "probabilities"
    space, names_classes = None, False
    if task == "cls":
        space, names_classes = _space(request, foreign, scores.shape[1], notes)
    network: nn.Module = answers
    facts = ModelFacts(
        name=name,
        family=foreign.family,
        builder=f"{foreign_kind(request)}:{request.name if request.module is None else name}",
        arguments=dict(foreign.arguments),
        parameters=sum(p.numel() for p in network.parameters())
        if foreign.parameters is None
        else foreign.parameters,
        weights=foreign.origin,
        weights_sha256=foreign.digest,
        pretraining=foreign.pretraining,
        untrained=request.untrained or (sidecar is not None and sidecar.model.untrained),
        label_space=FOREGROUND if space is None else space.name,
        scans=has_scan(network),
        code_sha256=foreign.code_sha256,
    )
    if task == "seg":
        header = None if sidecar is None else sidecar.header
        header = header if isinstance(header, WeightsHeader) else None
        separate = header is not None and header.mask_classes
        merging = () if separate else _foreground_notes(name, foreign, scores.shape[1])
        masks = _mask_preprocessing(request, foreign, size, notes)
        segmenter = Segmenter(network, masks, facts, header, tuple(notes), merging)
        return ForeignModel(task, segmenter, None, False, sidecar)
    preprocessing = _preprocessing(request, foreign, size, notes)
    classifier = Classifier(network, preprocessing, facts, tuple(notes))
    return ForeignModel(task, classifier, space, names_classes, sidecar)


def _first_answer(
    answers: LogitNetwork, foreign: ForeignNetwork, request: ModelRequest
) -> tuple[tuple[int, int, int], Tensor]:
    """The first supported input size, and the output for one generated image of that size.

    If the user, the network or its preprocessing defines a size, only that size is tried.
    """
    crop = request.preprocessing.get("crop")
    if crop is not None and foreign.side is not None and crop != foreign.side:
        raise UsageError(
            f"`--crop {crop}` cannot be used with `{answers.model_name}`.",
            f"Its input has {foreign.side} x {foreign.side} pixels, which the file fixes.",
            f"Omit `--crop`, or export the network again with an input of {crop} pixels.",
        )
    chosen = crop or foreign.side
    own_preprocessing = foreign.preprocessing
    if chosen is None and own_preprocessing is not None:
        chosen = own_preprocessing.crop
    sides = _SIDES if chosen is None else (int(chosen),)
    user_statistics = request.preprocessing.get("mean") or request.preprocessing.get("std")
    channel_count = foreign.channels or (None if user_statistics is None else len(user_statistics))
    if channel_count is None and own_preprocessing is not None:
        channel_count = own_preprocessing.channels
    problem: RobustError | None = None
    for channels in (3, 1) if channel_count is None else (channel_count,):
        for side in sides:
            size = (channels, side, side)
            try:
                scores = _answer(answers, size)
            except _OutputError as error:
                raise UsageError(error.what, error.why, error.todo) from error
            except RunError as error:
                problem = problem or error
                continue
            if scores.ndim in (2, 4):
                return size, scores
            squeezed = (
                " The first dimension must be the images: for one image, `squeeze` removes it."
            )
            raise UsageError(
                f"`{answers.model_name}` has the output of neither a classifier nor a segmenter.",
                f"For one image, its output has the shape {tuple(scores.shape)}; expected (1, "
                "classes) or (1, classes, h, w).",
                "Wrap it in a module that returns one of these shapes."
                + (squeezed if scores.ndim < 2 else ""),
            )
    assert problem is not None, "one size was tried"
    tried = "" if len(sides) == 1 else (
        f" None of the sizes {', '.join(map(str, sides))} works, with 3 channels or 1; set its "
        "size with `--crop`."
    )  # fmt: skip
    raise UsageError(problem.what, problem.why, problem.todo + tried)


def _answer(answers: LogitNetwork, size: tuple[int, int, int], count: int = 1) -> Tensor:
    images = made_up_image(size).float().repeat(count, 1, 1, 1) / 255
    with torch.inference_mode():
        if answers.batch is None:
            return answers.raw((images - 0.5) / 0.25)
        answer: Tensor = answers((images - 0.5) / 0.25)
        return answer


def _takes_two(answers: LogitNetwork, size: tuple[int, int, int]) -> bool:
    try:
        return len(_answer(answers, size, 2)) == 2
    except RobustError:
        return False


def _are_probabilities(answers: LogitNetwork, scores: Tensor, notes: list[str]) -> bool:
    """Whether the outputs are probabilities: in [0, 1] and, for several classes, with sum 1."""
    scores = scores.float()
    inside = bool(((scores >= 0) & (scores <= 1)).all())
    summed = scores.shape[1] == 1 or bool(((scores.sum(1) - 1).abs() <= _EXACT).all())
    if inside and summed:
        notes.append(
            f"`{answers.model_name}` returns probabilities, according to its output for a "
            "synthetic image."
        )
        return True
    if scores.ndim == 4 and scores.shape[1] == 1:
        notes.append(
            f"`{answers.model_name}` returns logits, according to its output for a synthetic image."
        )
    return False


# Classes.


def _space(
    request: ModelRequest, foreign: ForeignNetwork, outputs: int, notes: list[str]
) -> tuple[LabelSpace, bool]:
    """The classes of the outputs, and whether the network or the user named them.

    Raises:
        UsageError: The classes are not named and their number matches no label space, or their
            number differs from that of the names.
    """
    name = foreign_name(request)
    if request.classes is not None:
        space = _named_space(request.classes, name)
    elif request.label_space is not None:
        space = read_label_space(request.label_space)
    elif foreign.sidecar is not None and foreign.sidecar.task == "cls":
        space = foreign.sidecar.space
    elif foreign.space is not None:
        space = foreign.space
    elif foreign.classes is not None:
        space = _named_space(foreign.classes, name)
    else:
        by_count = [s for s in map(read_label_space, BUNDLED_SPACES) if len(s.ids) == outputs]
        if not by_count and request.number_classes:
            return numbered_classes(name, outputs), True
        if not by_count:
            raise UsageError(
                f"`{name}` has {outputs} outputs, and their classes are not known.",
                "Recognised by their number are "
                + ", ".join(
                    f"{s.name} ({len(s.ids)})" for s in map(read_label_space, BUNDLED_SPACES)
                )
                + ".",
                "Specify its classes with `--label-space FILE`, one class per line, in the order "
                "of its outputs; in Python with `classes=[...]`.",
            )
        notes.append(
            f"`{name}` has {outputs} outputs: they are read as {by_count[0].name}, in its order "
            "(`--label-space` sets other classes)."
        )
        return by_count[0], False
    if len(space.ids) != outputs:
        raise UsageError(
            f"`{name}` has {outputs} outputs; `{space.name}` has {len(space.ids)} classes.",
            "",
            "Specify the classes of the network with `--label-space FILE`, one class per line, in "
            "the order of its outputs; in Python with `classes=[...]`.",
        )
    return space, space.name not in BUNDLED_SPACES


def _named_space(classes: Sequence[str], name: str) -> LabelSpace:
    """The label space of `classes`: a bundled one if it has these classes in this order."""
    class_names = tuple(str(class_name) for class_name in classes)
    if len(set(class_names)) != len(class_names):
        twice = next(word for word in class_names if class_names.count(word) > 1)
        raise UsageError(
            f"Two classes of `{name}` are called `{twice}`.", "Names tell classes apart.",
            "Give each class a different name with `--label-space FILE`.",
        )  # fmt: skip
    for space in map(read_label_space, BUNDLED_SPACES):
        if len(space.ids) != len(class_names):
            continue
        indices = [_index(space, word) for word in class_names]
        known_positions = [(n, index) for n, index in enumerate(indices) if index is not None]
        if all(n == index for n, index in known_positions) and len(known_positions) >= 0.9 * len(
            class_names
        ):
            return space
    return LabelSpace(f"classes of {name}", class_names, class_names)


def _index(space: LabelSpace, word: str) -> int | None:
    """Index of the class `word`; for ImageNet also in the form `tench, Tinca tinca`."""
    index = space.index_of(word)
    return space.index_of(word.split(",")[0]) if index is None else index


def _foreground_notes(name: str, foreign: ForeignNetwork, outputs: int) -> tuple[str, ...]:
    if outputs == 1:
        return ()
    background = f"`{foreign.classes[0]}`" if foreign.classes else "class 0"
    foreground_names = ", ".join(
        f"`{class_name}`" for class_name in (foreign.classes or ())[1 : _SHOWN + 1]
    )
    suffix = ", ..." if len(foreign.classes or ()) > _SHOWN + 1 else ""
    foreground = f"{foreground_names}{suffix}" if foreground_names else "all others"
    return (
        f"`{name}` has {outputs} classes: background is {background}, foreground {foreground}.",
    )


# Preprocessing.


def _preprocessing(
    request: ModelRequest, foreign: ForeignNetwork, size: tuple[int, int, int], notes: list[str]
) -> Preprocessing:
    """The network's or the usual preprocessing with the options of the user; announced."""
    name, (channels, side, _) = foreign_name(request), size
    exported = None if foreign.sidecar is None else foreign.sidecar.preprocessing
    if isinstance(exported, Preprocessing):
        result, override_notes = overridden(exported, request.preprocessing)
        notes.extend(override_notes)
        return result
    if foreign.preprocessing is not None:
        base, source = foreign.preprocessing, f"as defined by {foreign.preprocessing_source}"
    else:
        uncut = side < _SIDES[0]  # small images are not cropped
        resize = side if uncut else round(side / _SHARE)
        base = Preprocessing(resize, side, "bilinear").of_channels(channels)
        source = "by default"
    result, override_notes = overridden(base, request.preprocessing)
    notes.extend(override_notes)
    defaulted = {"resize", "crop", "interpolation", "mean", "std"} - set(request.preprocessing)
    if defaulted:
        notes.append(f"`{name}`, {source}: {_in_words(result, defaulted)}.")
    return result


def _in_words(preprocessing: Preprocessing, fields: set[str]) -> str:
    values = {
        "resize": f"resize {preprocessing.resize}"
        if preprocessing.mode == "center"
        else f"squash to {preprocessing.resize}",
        "crop": f"crop {preprocessing.crop}",
        "interpolation": preprocessing.interpolation,
        "mean": f"mean {','.join(f'{v:.4g}' for v in preprocessing.mean)}",
        "std": f"std {','.join(f'{v:.4g}' for v in preprocessing.std)}",
    }
    flags = ", ".join(f"`--{key}`" for key in values if key in fields)
    return ", ".join(text for key, text in values.items() if key in fields) + f" (set by {flags})"


def _mask_preprocessing(
    request: ModelRequest, foreign: ForeignNetwork, size: tuple[int, int, int], notes: list[str]
) -> MaskPreprocessing:
    """Preprocessing with windows of the network's size; images are not resized.

    Raises:
        UsageError: The user requested a resize.
    """
    name, (channels, side, _) = foreign_name(request), size
    for option in ("resize", "interpolation"):
        if option in request.preprocessing:
            raise UsageError(
                f"`--{option}` cannot be used with the segmenter `{name}`.",
                "Images keep their size, so that masks can be compared pixel by pixel.",
                "Omit it; `--crop` sets the side of its window.",
            )
    user_statistics = {key: request.preprocessing[key] for key in ("mean", "std")
             if key in request.preprocessing}  # fmt: skip
    exported = None if foreign.sidecar is None else foreign.sidecar.preprocessing
    if isinstance(exported, MaskPreprocessing):
        if not user_statistics:
            return exported
        if exported.nnunet is not None:
            raise UsageError(
                f"`--{next(iter(user_statistics))}` cannot be used with `{name}`.",
                "It was trained by nnU-Net's procedure, which normalises each image by its own "
                "values or by those of the training.",
                "Omit it.",
            )
        base = Preprocessing(
            None, side, mean=exported.mean or (0.0,) * channels,
            std=exported.std or (1.0,) * channels,
        )  # fmt: skip
        scaled, override_notes = overridden(base, user_statistics)
        notes.extend([*override_notes, f"`{name}`: {_in_words(scaled, {'mean', 'std'})}."])
        return replace(exported, mean=scaled.mean, std=scaled.std)
    base = foreign.preprocessing or Preprocessing(None, side, mean=(0.0,) * 3, std=(1.0,) * 3)
    scaled, override_notes = overridden(base.of_channels(channels), user_statistics)
    notes.extend(override_notes)
    fixed = foreign.side or request.preprocessing.get("crop") or foreign.preprocessing
    window = side if fixed or side != _SIDES[0] else _WINDOW
    plain = not any(scaled.mean) and set(scaled.std) == {1.0}
    masks = MaskPreprocessing(
        window,
        mean=None if plain else scaled.mean,
        std=None if plain else scaled.std,
    ).of_channels(channels)
    source = (
        f"as defined by {foreign.preprocessing_source}" if foreign.preprocessing else "by default"
    )
    values = "values in [0, 1]" if plain else _in_words(scaled, {"mean", "std"})
    if {"crop", "mean", "std"} - set(request.preprocessing):
        only_size = foreign.side or (not fixed and window != _WINDOW)
        why = "the size of its input" if only_size else "`--crop`"
        notes.append(f"`{name}`, {source}: windows of {window} pixels ({why}), {values}.")
    return masks
