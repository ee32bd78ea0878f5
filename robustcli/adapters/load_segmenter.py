"""From a name, as a user types it, to a segmenter with weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.adapters import create, smp_library
from robustcli.adapters.cache_paths import hash_state, local_path
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.classifier import Facts
from robustcli.adapters.load import GREY, ModelRequest, names_run, resolve
from robustcli.adapters.preprocessing import input_channels
from robustcli.adapters.segmenter import MaskPreprocessing, Otsu, Segmenter, native_window
from robustcli.adapters.training_run import Trained, WeightsHeader, read_trained
from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.models.mamba import Mamba
from robustcli.models.ss2d import SS2D

# How each kind of segmenter of the catalogue is made: one row per builder.


Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class SegBuilder:
    """What makes a network of a variant.

    Args:
        fresh: Of variant and arguments: as initialised.
        load: Of variant, weights, their origin and arguments: with weights; None for what has none.
    """

    fresh: Callable[[str, Arguments], nn.Module]
    load: Callable[[str, Mapping[str, Tensor], str, Arguments], nn.Module] | None


def _zoo_load(
    variant: str, state: Mapping[str, Tensor], origin: str, arguments: Arguments
) -> nn.Module:
    return create.load(variant, state, origin=origin, options=arguments)


def _otsu(variant: str, arguments: Arguments) -> nn.Module:
    if arguments:
        raise UsageError(f"`{variant}` takes no `{next(iter(arguments))}=...`.", "It takes none.")
    return Otsu().eval()


SEG_BUILDERS: dict[str, SegBuilder] = {
    "zoo": SegBuilder(create.create, _zoo_load),
    "smp": SegBuilder(smp_library.create, smp_library.load),
    "otsu": SegBuilder(_otsu, load=None),
}


def load_segmenter(request: ModelRequest, *, seed: int = 0, offline: bool = False) -> Segmenter:
    """The segmenter that `request` names: float32, on the CPU, in eval mode.

    What the user does not say of window, channels, threshold and arguments comes from the header of
    the weights, where they have one.

    Args:
        request: What to load; its name may be the folder of a training run.
        seed: Initialises an untrained network.
        offline: Forbids every download; none is needed.

    Raises:
        UsageError: Unknown name, missing or foreign weights, or an argument that does not fit.
    """
    entry = resolve(request.name)
    _check_task(entry)
    trained = _trained(entry, request)
    header = _header(trained)
    arguments = {**(header.arguments if header else {}), **request.arguments}
    channels = input_channels(arguments)
    network = _network(entry, trained, arguments, seed)
    preprocessing = _preprocessing(network, header).changed(request.preprocessing)
    if channels == 1:
        preprocessing = replace(preprocessing, channels="grey")
    segmenter = Segmenter(network, preprocessing, Facts(
        name=entry.name,
        family=entry.family,
        builder=f"{entry.builder}:{entry.variant}",
        arguments=arguments,
        parameters=sum(p.numel() for p in network.parameters()),
        weights=_origin(entry, trained, seed),
        weights_sha256=hash_state(network.state_dict()),
        pretraining=_pretraining(entry, trained),
        untrained=trained is None and _learns(entry),
        label_space=entry.label_space,
        scans=any(isinstance(module, (Mamba, SS2D)) for module in network.modules()),
    ), header)  # fmt: skip
    segmenter.notes = (GREY.format(entry.name),) if channels == 1 else ()
    return segmenter


def _check_task(entry: ModelEntry) -> None:
    if entry.task != "seg":
        raise UsageError(
            f"`{entry.name}` is a classifier.",
            "It says what is in an image, not where.",
            "`robust list models` shows which models are segmenters.",
        )


def _trained(entry: ModelEntry, request: ModelRequest) -> Trained | None:
    """The weights that the request names; None where there are none to be read."""
    if not _learns(entry):
        _refuse_weights(entry, request)
        return None
    if request.untrained:
        return None
    if request.weights is not None:
        return read_trained(request.weights, entry)
    if names_run(request.name):
        return read_trained(Path(request.name), entry)
    if entry.asset is not None:
        return read_trained(local_path(entry), entry)
    raise UsageError(
        f"`{entry.name}` has no published weights.",
        "An untrained network finds nothing.",
        f"Train it (`robust train seg --model {entry.name}`) and name the run's folder, or name "
        "weights with `--weights FILE`; `--untrained` takes the network as initialised.",
    )


def _refuse_weights(entry: ModelEntry, request: ModelRequest) -> None:
    if request.weights is not None:
        raise UsageError(
            f"`{entry.name}` has no weights.",
            f"So it cannot have those of `{request.weights}`.",
            "Leave out `--weights`.",
        )


def _network(
    entry: ModelEntry, trained: Trained | None, arguments: Mapping[str, Any], seed: int
) -> nn.Module:
    builder = SEG_BUILDERS[entry.builder]
    if trained is not None and builder.load is not None:
        return builder.load(entry.variant, trained.state, str(trained.path), arguments).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity_seed("untrained", entry.variant, seed, bits=63))
        return builder.fresh(entry.variant, arguments).float()


def _header(trained: Trained | None) -> WeightsHeader | None:
    """What the weights say; `read_trained` has checked that it is of a segmenter."""
    header = None if trained is None else trained.header
    assert header is None or isinstance(header, WeightsHeader)
    return header


def _preprocessing(network: nn.Module, header: WeightsHeader | None) -> MaskPreprocessing:
    if isinstance(network, Otsu):
        return MaskPreprocessing(window=0)
    if header is None:
        return MaskPreprocessing(native_window(network))
    usual = MaskPreprocessing(header.window, header.channels, header.threshold)
    overlap = usual.overlap if header.overlap is None else header.overlap
    return replace(usual, overlap=overlap, nnunet=header.nnunet)


def _learns(entry: ModelEntry) -> bool:
    return SEG_BUILDERS[entry.builder].load is not None


def _origin(entry: ModelEntry, trained: Trained | None, seed: int) -> str:
    if trained is not None:
        return str(trained.path)
    return f"none: initialised with seed {seed}" if _learns(entry) else "none needed"


def _pretraining(entry: ModelEntry, trained: Trained | None) -> str:
    if trained is None:
        return "none (untrained)" if _learns(entry) else entry.pretraining
    header = _header(trained)
    if header is None:
        return "unknown (weights from a file)"
    return f"trained here (protocol {header.protocol})"
