"""Loads models with weights by the name that a user types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from robustcli.adapters import smp_library, timm_library
from robustcli.adapters.catalogue import (
    CATALOGUE,
    CIFAR100_MEAN,
    CIFAR100_STD,
    ModelEntry,
    ModelRequest,
)
from robustcli.adapters.checkpoint import missing_weights
from robustcli.adapters.classifier import Classifier
from robustcli.adapters.fetching import (
    check_published,
    local_path,
    official_weights,
    state_digest,
)
from robustcli.adapters.foreign import foreign_kind, open_foreign, sidecar_of
from robustcli.adapters.model import GREY_NOTE, ModelFacts
from robustcli.adapters.networks import BUILDERS, is_trainable, own_preprocessing
from robustcli.adapters.nnunet_models import PlannedWeights, planned_weights
from robustcli.adapters.preprocessing import Preprocessing, input_channels
from robustcli.adapters.segmenter import MaskPreprocessing, Segmenter
from robustcli.adapters.training_run import (
    WEIGHTS,
    ClassifierHeader,
    Header,
    WeightsHeader,
    header_beside,
    header_of,
    is_run,
    read_trained,
    refuse_run_after_colon,
    weights_in,
)
from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, did_you_mean, nearest
from robustcli.core.objects import names_url, path_here
from robustcli.core.seeds import identity_seed
from robustcli.data.labels import LabelSpace, numbered_classes, read_label_space
from robustcli.models.ablation import has_scan
from robustcli.nnunet.files import is_results_folder

_SHOWN = 5  # classes in a message


@overload
def load(
    request: ModelRequest, task: Literal["cls"], *, seed: int = 0, offline: bool = False
) -> Classifier: ...
@overload
def load(
    request: ModelRequest, task: Literal["seg"], *, seed: int = 0, offline: bool = False
) -> Segmenter: ...
@overload
def load(
    request: ModelRequest, task: None = None, *, seed: int = 0, offline: bool = False
) -> Classifier | Segmenter: ...
def load(
    request: ModelRequest,
    task: Literal["cls", "seg"] | None = None,
    *,
    seed: int = 0,
    offline: bool = False,
) -> Classifier | Segmenter:
    """Loads the model of `request`: float32, on the CPU, in eval mode.

    Preprocessing and builder arguments come from the request, else from the header of the weights.

    Args:
        request: The model; its name can be the folder of a training run.
        task: Required task of the model; None for either task.
        seed: Seed of the weights of an untrained network.
        offline: Forbids downloads.

    Raises:
        UsageError: Unknown name, a model of another task, missing or foreign weights, or an
            invalid argument.
    """
    if foreign_kind(request) is not None:
        opened = open_foreign(request, offline=offline)
        check_task(entry_of(request, offline=offline), task or opened.task)
        return opened.model
    entry = entry_of(request)
    check_task(entry, task or entry.task)
    weights = _find_weights(entry, request, offline=offline)
    header = None if weights is None else weights.header
    arguments = _arguments(request, weights)
    channels = input_channels(arguments)  # checked before building
    network = _network(entry, weights, arguments, seed, offline=offline)
    base = _preprocessing(entry, network, header, arguments)
    planned = None if weights is None else weights.planned
    if planned is not None and isinstance(base, MaskPreprocessing):
        base = planned.preprocessing(base)
    preprocessing, notes = base.changed(request.preprocessing, channels)
    notes = (GREY_NOTE.format(entry.name), *notes) if channels == 1 else notes
    facts = _facts(entry, request, weights, network, arguments, seed)
    if isinstance(preprocessing, MaskPreprocessing):
        assert header is None or isinstance(header, WeightsHeader), "checked by its model's name"
        if header is None and request.weights is not None and weights is not None:
            notes = (*notes, _note_on_foreign_file(entry, weights, preprocessing))
        return Segmenter(
            network, preprocessing, facts, header, notes,
            trained_classes=() if planned is None else planned.classes(network),
        )  # fmt: skip
    facts, classes = _with_classes(facts, entry, request, network)
    if classes is not None and header is None:
        assert isinstance(base, Preprocessing), "of a classifier"
        published = replace(base, mean=CIFAR100_MEAN, std=CIFAR100_STD)
        preprocessing, notes = published.changed(request.preprocessing, channels)
        notes = (*notes, _PUBLISHED_NORMALISATION.format(entry.name, facts.weights))
    if classes is not None:
        notes = (*notes, _spare_outputs(entry, facts, network, classes))
    return Classifier(network, preprocessing, facts, notes, classes=classes)


def _facts(
    entry: ModelEntry, request: ModelRequest, weights: _Weights | None, network: nn.Module,
    arguments: dict[str, Any], seed: int,
) -> ModelFacts:  # fmt: skip
    no_weights = f"none: initialised with seed {seed}" if is_trainable(entry) else "none needed"
    return ModelFacts(
        name=entry.name,
        family=entry.family,
        builder=f"{entry.builder}:{entry.variant}",
        arguments=arguments,
        parameters=sum(p.numel() for p in network.parameters()),
        weights=weights.origin if weights is not None else no_weights,
        weights_sha256=state_digest(network.state_dict()),
        pretraining=_pretraining(entry, request, weights),
        untrained=weights is None and is_trainable(entry),
        label_space=entry.label_space,
        scans=has_scan(network),
    )


def entry_of(request: ModelRequest, *, offline: bool = False) -> ModelEntry:
    """The catalogue entry of a request, with the name of the request in rows and tables.

    Opens a foreign network to determine its task.

    Raises:
        UsageError: The name is unknown, the foreign network cannot be used, or the request names
            weights of an untrained network.
    """
    if request.weights is not None and request.untrained:
        raise UsageError(
            f"`--weights {request.weights}` and `--untrained` exclude each other.",
            "A network has either the weights of a file or random weights.",
            "Omit one of them.",
        )
    if names_url(request.name):
        path_here(request.name, "A model")
    if foreign_kind(request) is None:
        entry = resolve(request.name)
        return entry if request.called is None else replace(entry, name=request.called)
    opened = open_foreign(request, offline=offline)
    facts = opened.model.facts
    return ModelEntry(
        facts.name, facts.family, "foreign", request.name, facts.parameters, None,
        facts.pretraining, "your own", facts.weights, label_space=facts.label_space,
        task=opened.task,
    )  # fmt: skip


def resolve(name: str) -> ModelEntry:
    """The catalogue entry of `name`, or a new one for a training run or another library.

    Raises:
        UsageError: The name is unknown; the message has the nearest names.
    """
    if names_url(name):
        path_here(name, "A model")
    spelling = {canonical(known): entry for known, entry in CATALOGUE.items()}
    if canonical(name) in spelling:
        return spelling[canonical(name)]
    if name.startswith(smp_library.SMP_PREFIX):
        return smp_library.smp_entry(name)
    if names_run(name):
        network = resolve(header_of(Path(name)).model)
        return replace(network, name=Path(name).resolve().name)
    if foreign_kind(ModelRequest(name)) is not None:
        raise UsageError(
            f"`{name}` can be evaluated, but not trained or fine-tuned here.",
            "Its network is not one of the catalogue, of timm or of smp.",
            "`robust eval` and `robust predict` support it; train it with its own code.",
        )
    if timm_library.has_architecture(name):
        plain = timm_library.plain_name(name)
        return ModelEntry(
            plain, "timm", "timm", plain, 0, None, timm_library.pretraining(plain), "see source",
            f"https://huggingface.co/timm/{plain}",
        )  # fmt: skip
    if name.endswith(".py"):
        raise UsageError(
            f"`--model {name}` names a Python file, but not the network in it.",
            "",
            f"Add the name of a function, class or module of the file: `--model {name}:build`.",
        )
    if "/" in name or "\\" in name or name.startswith((".", "~")):
        raise _no_run(Path(name))
    close = nearest(name, [*nearest(name, CATALOGUE), *timm_library.suggestions(name)], most=4)
    raise UsageError(
        f"No model is called `{name}`.",
        did_you_mean(close),
        "`robust list models` lists the names; any timm name with its tag can be used too.",
    )


def _no_run(path: Path) -> UsageError:
    """The error of a model that is named by a path at which there is no training run."""
    if path.is_file():
        return UsageError(
            f"`{path}` is a file that does not contain the name of its network.",
            "",
            f"Pass the network as well: `--model NAME --weights {path}`.",
        )
    if is_results_folder(path):
        return UsageError(
            f"`{path}` is a results folder of nnU-Net, not the name of a model.",
            "",
            f"Pass the network as well, such as `--model umamba --weights {path}`.",
        )
    if path.is_dir():
        return UsageError(
            f"`{path}` is a folder, but not a training run.",
            f"It contains neither `{WEIGHTS}` nor a record of a run.",
            "Pass the folder of a finished training, or a name of `robust list models`.",
        )
    refuse_run_after_colon(str(path))
    folders = [p.name for p in path.parent.iterdir() if is_run(p)] if path.parent.is_dir() else []
    close = [path.parent / name for name in nearest(path.name, folders)]
    return UsageError(
        f"The folder `{path}` does not exist.",
        did_you_mean(close),
        "Pass the folder of a finished training, or a name of `robust list models`.",
    )


def names_run(name: str) -> bool:
    """Whether `name` is the folder of a training run; models with that name take precedence."""
    known = {canonical(entry) for entry in CATALOGUE}
    return canonical(name) not in known and is_run(Path(name))


_SAYS = {
    "cls": ("classifier", "It predicts the class of an image, not the location of objects."),
    "seg": ("segmenter", "It predicts the location of objects, not the class of an image."),
}


def check_task(entry: ModelEntry, task: Literal["cls", "seg"]) -> None:
    """Raises UsageError if `entry` is not for `task`."""
    if entry.task != task:
        kind, answers = _SAYS[entry.task]
        raise UsageError(
            f"`{entry.name}` is a {kind}.",
            answers,
            f"`robust list models` lists the {_SAYS[task][0]}s.",
        )


@dataclass(frozen=True)
class _Weights:
    """The weights of a model.

    Args:
        origin: Origin of the weights, for records and messages.
        state: Tensors by name; None if the library of the network downloads them.
        header: Header of weights that this program trained.
        planned: What the plan of weights that nnU-Net trained defines.
    """

    origin: str
    state: Mapping[str, Tensor] | None = None
    header: Header | None = None
    planned: PlannedWeights | None = None


def weights_path(request: ModelRequest) -> Path | None:
    """The local file or run folder with the weights of `request`.

    None for downloaded official weights and for untrained networks.
    """
    if request.untrained or foreign_kind(request) is not None:
        return None
    if request.weights is not None:
        return request.weights
    entries = {canonical(entry.name): entry for entry in CATALOGUE.values()}
    entry = entries.get(canonical(request.name))
    if entry is not None:
        return local_path(entry) if entry.asset is not None else None
    return Path(request.name) if is_run(Path(request.name)) else None


def header_for(request: ModelRequest) -> Header | None:
    """Header of the weights of `request`; None if this program did not train them.

    Raises:
        UsageError: The weights are damaged.
    """
    if foreign_kind(request) is not None:
        sidecar = sidecar_of(request)
        return None if sidecar is None else sidecar.header
    path = weights_path(request)
    return None if path is None else header_beside(weights_in(path))


def check_has_weights(request: ModelRequest, entry: ModelEntry) -> None:
    """Raises UsageError if `request` names a network or a file without weights.

    This needs no data. The contents of a file are not read.

    Args:
        request: The model.
        entry: Its catalogue entry, `entry_of(request)`.
    """
    if request.weights is not None and not request.weights.exists():
        raise missing_weights(request.weights)
    named = request.weights is not None or names_run(request.name)
    if named or request.untrained or foreign_kind(request) is not None or not is_trainable(entry):
        return
    if BUILDERS[entry.builder].download is None or entry.asset is not None:
        check_published(entry)


def _find_weights(entry: ModelEntry, request: ModelRequest, *, offline: bool) -> _Weights | None:
    """The weights of the request; None for untrained networks and baselines."""
    if not is_trainable(entry):
        if request.weights is not None:
            raise UsageError(
                f"`{entry.name}` has no weights.",
                f"`{request.weights}` cannot be loaded into it.",
                "Omit `--weights`.",
            )
        return None
    if request.untrained:
        return None
    path = request.weights or (Path(request.name) if names_run(request.name) else None)
    if path is not None:
        trained = read_trained(path, entry)
        planned = planned_weights(entry, trained.path, trained.state)
        return _Weights(str(trained.path), trained.state, trained.header, planned)
    if BUILDERS[entry.builder].download is not None and entry.asset is None:
        return _Weights(entry.source)
    trained = read_trained(official_weights(entry, offline=offline), entry)
    return _Weights(trained.path.name, trained.state, trained.header)


def _network(
    entry: ModelEntry, weights: _Weights | None, arguments: Mapping[str, Any], seed: int, *,
    offline: bool,
) -> nn.Module:  # fmt: skip
    builder = BUILDERS[entry.builder]
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(identity_seed("untrained", entry.variant, seed, bits=63))
            return builder.create(entry.variant, arguments).float()
    if weights.state is None:
        assert builder.download is not None, "a library without a file downloads its weights"
        return builder.download(entry.variant, arguments, offline=offline).float()
    assert builder.with_weights is not None, "what has weights can load them"
    return builder.with_weights(entry.variant, weights.state, weights.origin, arguments).float()


def _arguments(request: ModelRequest, weights: _Weights | None) -> dict[str, Any]:
    """Builder arguments of the weights, overridden by the user except for the classes."""
    header = None if weights is None else weights.header
    planned = None if weights is None or weights.planned is None else weights.planned.model
    if planned is not None:
        return {**planned.options, **request.arguments}
    if header is None:
        return dict(request.arguments)
    if not isinstance(header, ClassifierHeader):
        return {**header.arguments, **request.arguments}
    outputs = header.arguments.get("num_classes", len(header.classes))  # at least the classes
    return {**header.arguments, **request.arguments, "num_classes": outputs}


def _preprocessing(
    entry: ModelEntry, network: nn.Module, header: Header | None, arguments: Mapping[str, Any]
) -> Preprocessing | MaskPreprocessing:
    """Preprocessing of the training, else that of the network."""
    if isinstance(header, ClassifierHeader):
        return Preprocessing(**header.preprocessing)
    if isinstance(header, WeightsHeader):
        usual = MaskPreprocessing(header.window, header.channels, header.threshold)
        overlap = usual.overlap if header.overlap is None else header.overlap
        return replace(usual, overlap=overlap, nnunet=header.nnunet)
    return own_preprocessing(entry, network, arguments)


_OF_VMUNET = "The code of its authors passes values from 0 to 255, scaled per image. "
_OF_TABLE_I = "The paper's code passes blue, green, red{}. "
_LOGITS = ", and counts a pixel as foreground from logit 0.5 (probability 0.622)"


def _note_on_foreign_file(
    entry: ModelEntry, weights: _Weights, preprocessing: MaskPreprocessing
) -> str:
    """An announcement of the `preprocessing` of a segmenter with weights of another program."""
    if weights.planned is not None:
        return (
            f"`{entry.name}`: `{weights.origin}` is a checkpoint of nnU-Net. As in nnU-Net, images "
            "are normalised as its plan says, and windows are flipped, weighted and averaged."
        )
    published = _OF_VMUNET if entry.network == "vmunet" else ""
    if entry.published is not None:
        published = _OF_TABLE_I.format("" if entry.family in ("ulvm", "segformer") else _LOGITS)
    return (
        f"`{entry.name}`: `{weights.origin}` does not define its preprocessing; the network gets "
        f"{'grey' if preprocessing.channels == 'grey' else 'red, green, blue'} in [0, 1], and a "
        f"pixel is foreground from probability {preprocessing.threshold:g}. {published}If the "
        "weights need something else, wrap the network in a function of your own "
        "(`--model FILE.py:FUNCTION`)."
    )


def _pretraining(entry: ModelEntry, request: ModelRequest, weights: _Weights | None) -> str:
    if weights is None:
        return "none (untrained)" if is_trainable(entry) else entry.pretraining
    if weights.header is not None:
        return weights.header.pretraining
    return entry.pretraining if request.weights is None else "unknown (weights from a file)"


def answers_in(request: ModelRequest) -> LabelSpace:
    """The label space of the outputs of the classifier of `request`.

    Raises:
        UsageError: The label space does not exist or contradicts the weights.
    """
    if foreign_kind(request) is not None:
        space = open_foreign(request, offline=True).space
        assert space is not None, "only classifiers are asked for their classes"
        return space
    header = header_for(request)
    named_space = None if request.label_space is None else read_label_space(request.label_space)
    if not isinstance(header, ClassifierHeader):
        return named_space or read_label_space(resolve(request.name).label_space)
    trained_space = header.answers_in
    if named_space is not None and named_space.ids != trained_space.ids:
        raise UsageError(
            f"`--label-space {request.label_space}` contradicts the weights of `{request.name}`.",
            f"They were trained for {_in_order(trained_space)}; the option contains "
            f"{_in_order(named_space)}.",
            "Omit `--label-space`: the classes are stored with the weights.",
        )
    return trained_space


def _in_order(space: LabelSpace) -> str:
    suffix = ", ..." if len(space.ids) > _SHOWN else ""
    return f"{len(space.ids)} classes ({', '.join(space.ids[:_SHOWN])}{suffix}, in this order)"


AS_RUN = {"vim": 1000}
"""Networks published with more outputs than trained classes."""
_PUBLISHED_NORMALISATION = (
    "`{}`: `{}` is of its paper's code, which normalises images with the mean and standard "
    "deviation of CIFAR-100; so they are normalised here too (`--mean` and `--std` override it)."
)


def _with_classes(
    facts: ModelFacts, entry: ModelEntry, request: ModelRequest, network: nn.Module
) -> tuple[ModelFacts, int | None]:
    """`facts` with the classes of a classifier, checked against the size of its last layer.

    Also returns the number of classes if the last layer has further outputs, which are ignored.

    Raises:
        UsageError: The number of classes does not match the last layer.
    """
    space = answers_in(request)
    classes = getattr(network, "num_classes", None)
    if header_for(request) is not None:
        spare = classes is not None and classes > len(space.ids)
        return replace(facts, label_space=space.name), len(space.ids) if spare else None
    if classes is None:
        raise UsageError(
            f"`{entry.name}` is built without a classifier.",
            f"It was built with {dict(request.arguments)}, which removes its last layer.",
            "Omit that `--model-arg`.",
        )
    as_run = request.weights is not None and classes == AS_RUN.get(entry.network)
    if as_run and classes is not None and classes > len(space.ids):
        arguments = {**facts.arguments, "num_classes": classes}
        return replace(facts, label_space=space.name, arguments=arguments), len(space.ids)
    unnamed = classes != len(space.ids) and request.label_space is None
    if unnamed and request.number_classes:
        space = numbered_classes(entry.name, classes)
    elif classes != len(space.ids):
        of = f" with the weights in `{request.weights}`" if request.weights is not None else ""
        raise UsageError(
            f"`{entry.name}`{of} has {classes} classes; `{request.label_space or space.name}` has "
            f"{len(space.ids)}.",
            "",
            f"Specify the {classes} classes of the model with `--label-space FILE`, one class per "
            "line, in the order of its outputs.",
        )
    arguments = dict(facts.arguments)
    if request.weights is not None and classes != len(read_label_space(entry.label_space).ids):
        arguments.setdefault("num_classes", classes)  # as if typed by the user
    return replace(facts, label_space=space.name, arguments=arguments), None


def _spare_outputs(entry: ModelEntry, facts: ModelFacts, network: nn.Module, classes: int) -> str:
    """The announcement for a last layer with more outputs than classes."""
    return (
        f"`{entry.name}`: the last layer in `{facts.weights}` has {network.num_classes:,} outputs. "
        f"Only the first {classes}, in the order of {facts.label_space}, are classes; the others "
        "are ignored."
    )
