"""`robustcli.create_model`: any network of the registry by name, fresh or with weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.adapters import own, smp_library, timm_library
from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.checkpoint import read_weights
from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, nearest
from robustcli.models.registry import ARCHITECTURES

if TYPE_CHECKING:
    from torch import nn


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> nn.Module:
    """The network called `name`: float32, on the CPU, in eval mode.

    Args:
        name: One of ours, in any spelling, a timm name (with its tag where no weights are given),
            or `smp:ARCHITECTURE/ENCODER`.
        weights: A file in any format of the model's own project, or ours; loaded strictly. None
            leaves the network as its authors initialise it; nothing is downloaded.
        num_classes: Classes of the head; None for as many as a classifier's weights have in their
            head, without weights for the network's own.
        options: Changes to the network's configuration (`features`, `img_size`, ...).

    Raises:
        UsageError: The name or an option is unknown, or the file does not hold its weights.
    """
    if num_classes is not None:
        options["num_classes"] = num_classes
    spelling = {canonical(known): known for known in ARCHITECTURES}
    if canonical(name) in spelling:
        known = spelling[canonical(name)]
        if weights is None:
            return own.create(known, options).float()
        state = read_weights(Path(weights))
        classifies = ARCHITECTURES[known].task == "cls"
        load = own.load_classifier if classifies else own.load
        return load(known, state, origin=str(weights), options=options).float()
    if name.startswith(smp_library.PREFIX):
        return _smps(smp_library.entry(name).variant, weights, options)
    variant = _timms(name, tagged=weights is None)
    if weights is None:
        return timm_library.create(variant, pretrained=False, arguments=options)
    state = read_weights(Path(weights))
    return timm_library.load(variant, state, origin=str(weights), arguments=options)


def _smps(variant: str, weights: str | Path | None, options: dict[str, Any]) -> nn.Module:
    if weights is None:
        return smp_library.create(variant, options)
    return smp_library.load(variant, read_weights(Path(weights)), str(weights), options)


def _timms(name: str, *, tagged: bool) -> str:
    """Timm's name for `name`: one of the catalogue's short ones, or timm's own.

    Args:
        name: As typed.
        tagged: Whether a tag must say which pretraining is meant.
    """
    short = {canonical(e.name): e.variant for e in CATALOGUE.values() if e.builder == "timm"}
    if canonical(name) in short:
        return short[canonical(name)]
    if timm_library.known(name):
        plain = timm_library.plain_name(name)
        if "." in plain or not tagged:
            return plain
        raise UsageError(
            f"`{name}` is timm's, and says nothing of its pretraining.",
            "A name without a tag means another one in different versions of timm.",
            f"Add the tag (`{name}.TAG`), or use `timm.create_model`.",
        )
    known = [*ARCHITECTURES, *(e.name for e in CATALOGUE.values() if e.builder == "timm")]
    close = nearest(name, known)
    raise UsageError(
        f"No model is called `{name}`.",
        f"Did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else "",
        f"There are {', '.join(known)}; and any timm name with its tag.",
    )
