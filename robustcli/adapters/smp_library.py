"""Architectures of segmentation_models_pytorch, named as `smp:Unet/resnet34`."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor, nn

from robustcli.adapters import timm_library
from robustcli.adapters.catalogue import FOREGROUND, ModelEntry
from robustcli.adapters.fetching import hub, hub_failure_reason
from robustcli.adapters.strict_loading import choose, load_strictly, shapes_of
from robustcli.core.errors import MachineError, UsageError, first_line
from robustcli.core.names import check_options, did_you_mean, find, nearest
from robustcli.models.architectures import check_multiple

SMP_PREFIX = "smp:"
# Images have three channels, outputs are logits of `num_classes`, weights are not options.
_OURS = ("in_channels", "classes", "activation", "aux_params", "encoder_name", "encoder_weights")
_SOURCE = "https://github.com/qubvel-org/segmentation_models.pytorch"


def smp_entry(name: str) -> ModelEntry:
    """The entry for `smp:ARCHITECTURE/ENCODER`, in any spelling.

    Raises:
        UsageError: The library has no such architecture or encoder.
        MachineError: The library is not installed.
    """
    library = _library()
    architecture, slash, encoder = name[len(SMP_PREFIX) :].partition("/")
    if not slash or not encoder:
        raise UsageError(
            f"`{name}` contains no encoder.",
            "",
            "Write `smp:ARCHITECTURE/ENCODER`: `smp:Unet/resnet34`.",
        )
    architectures = {cls.__name__ for cls in library.MODEL_ARCHITECTURES_MAPPING.values()}
    listing = f"{_SOURCE}#architectures"
    architecture_name = find(
        architecture, sorted(architectures), kind="architecture of smp", listing=listing
    )
    variant = f"{architecture_name}/{_encoder(encoder, library)}"
    return ModelEntry(
        SMP_PREFIX + variant, "smp", "smp", variant, 0, None,
        "no published weights; training starts from an encoder pretrained on ImageNet-1K", "MIT",
        _SOURCE, label_space=FOREGROUND, task="seg",
    )  # fmt: skip


def _encoder(name: str, library: Any) -> str:
    if name.startswith("tu-"):
        if not timm_library.has_architecture(name[3:]):
            close = nearest(name[3:], timm_library.suggestions(name[3:]))
            raise UsageError(
                f"timm has no encoder `{name[3:]}`.",
                did_you_mean([f"tu-{encoder}" for encoder in close]),
            )
        return name
    # The library warns about its `timm-` names: `tu-` are the same networks from timm.
    encoders = [
        encoder
        for encoder in library.encoders.get_encoder_names()
        if not encoder.startswith("timm-")
    ]
    return find(name, encoders, kind="encoder of smp", listing=f"{_SOURCE}#encoders")


def create(
    variant: str, arguments: Mapping[str, Any], *, pretrained: bool = False, offline: bool = False
) -> nn.Module:
    """The network `variant` (`Unet/resnet34`) in eval mode, with logits of one class by default.

    Args:
        variant: Architecture and encoder in the library's spelling.
        arguments: Arguments of the library's constructor, and `num_classes`.
        pretrained: Whether the encoder has its ImageNet weights.
        offline: Forbids downloading them.

    Raises:
        UsageError: An argument is invalid, or the weights are unavailable.
    """
    architecture, encoder = variant.split("/", 1)
    _check_arguments(variant, arguments)
    options = dict(arguments)
    classes = options.pop("num_classes", 1)
    from_timm = encoder.startswith("tu-")
    imagenet: Any = (True if from_timm else "imagenet") if pretrained else None
    if pretrained and offline and from_timm:
        timm_library.check_offline(encoder[3:])
    try:
        with hub(offline=offline or not pretrained):
            network: nn.Module = _library().create_model(
                architecture, encoder, imagenet, classes=classes, **options
            )
    except OSError as error:  # the hub's own errors among them
        raise UsageError(
            f"The ImageNet weights of `{encoder}` could not be downloaded.",
            f"The reason: {hub_failure_reason(error, offline=offline)}.",
            "Pass a file with `--weights FILE`, or use random weights with `--untrained`.",
        ) from error
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, KeyError) as error:
        raise UsageError(
            f"`smp:{variant}` cannot be built.",
            f"The error of the library is: {first_line(error)}",
            "Check the name and `--model-arg`.",
        ) from error  # fmt: skip
    network.num_classes = classes
    network.register_forward_pre_hook(_check_size)
    return network.eval()


def _check_arguments(variant: str, arguments: Mapping[str, Any]) -> None:
    """Raises UsageError for arguments that the library ignores or that change the output."""
    constructor = _library().MODEL_ARCHITECTURES_MAPPING[variant.split("/")[0].lower()].__init__
    option_names = [
        name for name in signature(constructor).parameters if name not in ("self", "kwargs", *_OURS)
    ]
    check_options(arguments, [*option_names, "num_classes"], owner=f"smp:{variant}")


def with_weights(
    variant: str, state: Mapping[str, Tensor], origin: str, arguments: Mapping[str, Any]
) -> nn.Module:
    """The network `variant` with the weights `state`, in eval mode.

    Raises:
        UsageError: The weights are of another network.
    """
    network = create(variant, arguments)
    choice = choose(state, shapes_of(network.state_dict()))
    load_strictly(network, choice.state, model=f"smp:{variant}", origin=origin, advice=None)
    choice.announce(origin)
    return network


def _check_size(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if getattr(network, "requires_divisible_input_shape", False):
        encoder: Any = network.get_submodule("encoder")
        step = int(encoder.output_stride)
        check_multiple(inputs[0], (step, step))


def _library() -> Any:
    try:
        import segmentation_models_pytorch as library
    except ImportError as error:
        raise MachineError(
            "Names that start with `smp:` need segmentation-models-pytorch.",
            "It is not installed.",
            "Install it: `pip install 'robustcli[smp]'`.",
        ) from error
    return library
