"""From a name, as a user types it, to a classifier with weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.adapters import create, smp_library, timm_library
from robustcli.adapters.cache_paths import hash_state, official_weights
from robustcli.adapters.catalogue import CATALOGUE, ModelEntry
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.classifier import Classifier, Facts
from robustcli.adapters.first_pass import IMG_SIZE
from robustcli.adapters.preprocessing import Preprocessing, input_channels, overridden
from robustcli.adapters.training_run import (
    ClassifierHeader,
    entry_of_run,
    header_beside,
    header_of,
    is_run,
    read_trained,
    weights_in,
)
from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, nearest
from robustcli.core.seeds import identity_seed
from robustcli.data.labels import BUNDLED_SPACES, LabelSpace, label_space

# How `robust eval` gets each kind of classifier: one row per builder of the catalogue.


OFFICIAL = Preprocessing(resize=256, crop=224)
"""Of VMamba's and Vim's own evaluations."""
PICO = Preprocessing(
    resize=32, crop=32, interpolation="bilinear",
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
)  # fmt: skip

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Builder:
    """What makes a network of a variant.

    Args:
        fresh: Of variant and arguments: as initialised.
        load: Of variant, weights, their origin and arguments: with weights.
        preprocessing: Of variant and network: its own.
        scans: Whether the selective scan runs in it.
    """

    fresh: Callable[[str, Arguments], nn.Module]
    load: Callable[[str, Mapping[str, Tensor], str, Arguments], nn.Module]
    preprocessing: Callable[[str, nn.Module], Preprocessing]
    scans: bool


def _load(
    variant: str, state: Mapping[str, Tensor], origin: str, arguments: Arguments
) -> nn.Module:
    return create.load_classifier(variant, state, origin=origin, options=arguments)


def _official(variant: str, network: nn.Module) -> Preprocessing:
    """VMamba's and Vim's own; at the size that the network was built for, where it has one."""
    if variant == "vmamba-pico":
        return PICO
    side = min(getattr(network.config, "image", (OFFICIAL.crop,)))
    if variant == "vim":  # for CIFAR, whose photos are not cut
        return replace(PICO, resize=side, crop=side)
    return Preprocessing(resize=side * 256 // 224, crop=side)


def _timm_fresh(variant: str, arguments: Arguments) -> nn.Module:
    return timm_library.create(variant, pretrained=False, arguments=arguments)


def _timm_load(
    variant: str, state: Mapping[str, Tensor], origin: str, arguments: Arguments
) -> nn.Module:
    return timm_library.load(variant, state, origin=origin, arguments=arguments)


def _timm_preprocessing(variant: str, network: nn.Module) -> Preprocessing:
    return timm_library.preprocessing(network)


def own_preprocessing(
    builder: str, variant: str, network: nn.Module, arguments: Arguments
) -> Preprocessing:
    """The preprocessing of a network, in the channels and the size that it was built for.

    Raises:
        UsageError: It is built for a number of channels that images here do not have.
    """
    built = BUILDERS[builder].preprocessing(variant, network)
    preprocessing = built.of_channels(input_channels(arguments))
    side = arguments.get(IMG_SIZE)
    if builder == "timm" and isinstance(side, int):
        return preprocessing.of_size(side)
    return preprocessing


_OURS = Builder(create.create, _load, _official, scans=True)
BUILDERS: dict[str, Builder] = {
    "vmamba": _OURS,
    "vim": _OURS,
    "timm": Builder(_timm_fresh, _timm_load, _timm_preprocessing, scans=False),
}


_SHOWN = 5  # classes in a message
GREY = "`{}` reads one channel: images are turned into greyscale (luma of ITU-R BT.601)."


@dataclass(frozen=True)
class ModelRequest:
    """One `--model` with what was said about it.

    Args:
        name: A name of the catalogue or of timm, `smp:ARCHITECTURE/ENCODER`, or the folder of a
            training run.
        weights: A file or the folder of a training run; None for the official weights.
        arguments: For the builder (`--model-arg`).
        preprocessing: Fields of Preprocessing, or of a segmenter's MaskPreprocessing, to override.
        label_space: What the classes are, where the weights do not say it.
        untrained: Evaluate the network as initialised; it is marked everywhere.
    """

    name: str
    weights: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    label_space: str | None = None
    untrained: bool = False


@dataclass(frozen=True)
class TrainedClassifier:
    """A weights file of a training here, and what it says of itself."""

    file: Path
    header: ClassifierHeader

    @property
    def label_space(self) -> LabelSpace:
        """The classes that it was trained for."""
        header = self.header
        if (
            header.label_space in BUNDLED_SPACES
            and label_space(header.label_space).ids == header.classes
        ):
            return label_space(header.label_space)
        return LabelSpace(header.label_space, header.classes, header.class_names)


def resolve(name: str) -> ModelEntry:
    """The catalogue's entry for `name`, or one made for a training run or for another library.

    Raises:
        UsageError: Nothing is called so; the message offers the nearest names.
    """
    spelling = {canonical(known): entry for known, entry in CATALOGUE.items()}
    if canonical(name) in spelling:
        return spelling[canonical(name)]
    if name.startswith(smp_library.PREFIX):
        return smp_library.entry(name)
    if names_run(name):
        return entry_of_run(Path(name), resolve(header_of(Path(name)).model))
    if timm_library.known(name):
        plain = timm_library.plain_name(name)
        return ModelEntry(
            plain, "timm", "timm", plain, 0, None, timm_library.pretraining(plain), "see source",
            f"https://huggingface.co/timm/{plain}",
        )  # fmt: skip
    if name.startswith(("hf-hub:", "hf_hub:")):
        raise UsageError(
            f"`{name}` is no model of timm's own on the hub.",
            "Of the hub, only the models `hf-hub:timm/NAME` are known by name.",
            "Download its file, and name its architecture: `--model NAME --weights FILE` (and "
            "`--label-space FILE` where its classes are not ImageNet's).",
        )
    close = [*nearest(name, CATALOGUE), *timm_library.suggestions(name)]
    raise UsageError(
        f"No model is called `{name}`.",
        f"Did you mean {' or '.join(f'`{c}`' for c in close[:4])}?" if close else "",
        "`robust list models` shows the names; any timm name works, with its tag.",
    )


def names_run(name: str) -> bool:
    """Whether `name` is the folder of a training run; a model of that name goes before it."""
    known = {canonical(entry) for entry in CATALOGUE}
    return canonical(name) not in known and is_run(Path(name))


def load_classifier(request: ModelRequest, *, seed: int = 0, offline: bool = False) -> Classifier:
    """The classifier that `request` names: float32, on the CPU, in eval mode.

    Args:
        request: What to load.
        seed: Initialises an untrained network.
        offline: Forbids every download.

    Raises:
        UsageError: Unknown name, missing or foreign weights, or an argument that does not fit.
    """
    entry = resolve(request.name)
    if entry.task != "cls":
        raise UsageError(
            f"`{entry.name}` is a segmenter.",
            "It says where something is, not what is in an image.",
            "`robust list models` shows which models are classifiers.",
        )
    trained = trained_classifier(request)
    if trained is not None:
        request = _as_trained(request, trained.header)
    channels = input_channels(request.arguments)  # checked before anything is built
    network, origin = _network(entry, request, trained, seed, offline)
    space = _label_space(entry, request, network, trained)
    own = _preprocessing(entry, network, trained, request.arguments)
    preprocessing, notes = overridden(own, request.preprocessing)
    if channels == 1:
        notes = (GREY.format(entry.name), *notes)
    facts = Facts(
        name=entry.name,
        family=entry.family,
        builder=f"{entry.builder}:{entry.variant}",
        arguments=_arguments(entry, request, network, trained),
        parameters=sum(p.numel() for p in network.parameters()),
        weights=origin,
        weights_sha256=hash_state(network.state_dict()),
        pretraining=_pretraining(entry, request, trained),
        untrained=request.untrained,
        label_space=space,
        scans=BUILDERS[entry.builder].scans,
    )
    return Classifier(network, preprocessing, facts, notes)


def trained_classifier(request: ModelRequest) -> TrainedClassifier | None:
    """What a training here says of the classifier that `request` names; None where it is of none.

    Raises:
        UsageError: The weights are damaged.
    """
    named = Path(request.name) if names_run(request.name) else None
    place = request.weights or named
    if place is None or request.untrained:
        return None
    file = weights_in(place)
    header = header_beside(file)
    return TrainedClassifier(file, header) if isinstance(header, ClassifierHeader) else None


def _as_trained(request: ModelRequest, header: ClassifierHeader) -> ModelRequest:
    classes = {"num_classes": len(header.classes)}
    return replace(request, arguments={**header.arguments, **request.arguments, **classes})


def _network(
    entry: ModelEntry, request: ModelRequest, trained: TrainedClassifier | None, seed: int,
    offline: bool,
) -> tuple[nn.Module, str]:  # fmt: skip
    if trained is not None:
        state = read_trained(trained.file, entry).state
        origin = str(trained.file)
        made = BUILDERS[entry.builder].load(entry.variant, state, origin, request.arguments)
        return made, origin
    builder = BUILDERS[entry.builder]
    if request.untrained:
        torch.manual_seed(identity_seed("untrained", entry.variant, seed, bits=63))
        fresh = builder.fresh(entry.variant, request.arguments)
        return fresh, f"none: initialised with seed {seed}"
    if entry.builder == "timm" and request.weights is None:
        network = timm_library.create(
            entry.variant, pretrained=True, arguments=request.arguments, offline=offline
        )
        return network, entry.source
    path = request.weights or official_weights(entry, offline=offline)
    network = builder.load(entry.variant, read_weights(path), str(path), request.arguments)
    return network, path.name if request.weights is None else str(path)


def answers_in(request: ModelRequest) -> LabelSpace:
    """The classes that the outputs of the classifier of `request` mean, in their order.

    Raises:
        UsageError: The named label space is none, or contradicts the weights.
    """
    trained = trained_classifier(request)
    named = None if request.label_space is None else label_space(request.label_space)
    if trained is None:
        return named or label_space(resolve(request.name).label_space)
    if named is not None and named.ids != trained.label_space.ids:
        raise UsageError(
            f"`--label-space {request.label_space}` contradicts the weights of `{request.name}`.",
            f"They were trained for {_in_order(trained.label_space)}; it names {_in_order(named)}.",
            "Leave out `--label-space`: the weights say what their classes are.",
        )
    return trained.label_space


def _in_order(space: LabelSpace) -> str:
    more = ", ..." if len(space.ids) > _SHOWN else ""
    return f"{len(space.ids)} classes ({', '.join(space.ids[:_SHOWN])}{more}, in this order)"


def _label_space(
    entry: ModelEntry, request: ModelRequest, network: nn.Module, trained: TrainedClassifier | None
) -> str:
    space = answers_in(request)
    classes, named = getattr(network, "num_classes", None), len(space.ids)
    if trained is None and classes is None:
        raise UsageError(
            f"`{entry.name}` as built does not tell classes apart.",
            f"It was built with {dict(request.arguments)}, which leaves out its last layer.",
            "Leave out that `--model-arg`.",
        )
    if trained is None and classes != named:
        of = f" with the weights in `{request.weights}`" if request.weights is not None else ""
        raise UsageError(
            f"`{entry.name}`{of} tells {classes} classes apart; "
            f"`{request.label_space or space.name}` has {named}.",
            "",
            f"Name the model's own {classes} classes with `--label-space FILE`, one class a line, "
            "in the order of its outputs.",
        )
    return space.name


def _arguments(
    entry: ModelEntry, request: ModelRequest, network: nn.Module, trained: TrainedClassifier | None
) -> dict[str, object]:
    """What the network was built with, as if the user had said what the head in a file says."""
    arguments = dict(request.arguments)
    recognised = trained is None and request.weights is not None and "num_classes" not in arguments
    if recognised and network.num_classes != len(label_space(entry.label_space).ids):
        arguments["num_classes"] = network.num_classes
    return arguments


def _preprocessing(
    entry: ModelEntry, network: nn.Module, trained: TrainedClassifier | None,
    arguments: Mapping[str, Any],
) -> Preprocessing:  # fmt: skip
    if trained is not None:
        return Preprocessing(**trained.header.preprocessing)
    return own_preprocessing(entry.builder, entry.variant, network, arguments)


def _pretraining(
    entry: ModelEntry, request: ModelRequest, trained: TrainedClassifier | None
) -> str:
    if trained is not None:
        return "trained here"
    if request.untrained:
        return "none (untrained)"
    return entry.pretraining if request.weights is None else "unknown (weights from a file)"
