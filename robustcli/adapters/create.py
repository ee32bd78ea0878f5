"""`robustcli.create_model`: any network of the registry by name, fresh or with weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from robustcli.adapters import smp_library, timm_library, timm_vim, timm_vmamba
from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.families import FAMILIES, body, classes_in, family_of, members, recognise
from robustcli.adapters.loading import Shapes, announce, choose, load_strictly, shapes_of
from robustcli.core.errors import UsageError, first_line
from robustcli.core.names import canonical, nearest
from robustcli.models.architectures import ARCHITECTURES, Architecture, architecture
from robustcli.models.vim import fit_positions

if TYPE_CHECKING:
    pass


# Our networks by name, fresh or with the weights of any file of their own project.


# Classifiers come with timm's methods, whichever door they come through.
_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "vmamba": timm_vmamba.build,
    "vim": timm_vim.build,
}
_TIMMS = ("in_chans", "global_pool", "drop_rate", "drop_path_rate")


def create(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The network `name` of the registry, freshly initialised, in eval mode.

    Raises:
        UsageError: It has no such option, or cannot take such a value.
    """
    found = architecture(name)
    _check(found, options)
    try:
        if found.family in _BUILDERS:
            return _BUILDERS[found.family](found.variant, **options).eval()
        return found.build(**options).eval()
    except (TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
        given = " ".join(f"{key}={value}" for key, value in options.items())
        raise UsageError(
            f"`{found.name}` cannot be built with `{given}`.",
            f"It says: {first_line(error)}",
            "Compare with its own values: the fields of its `config` when built without options.",
        ) from error


def _check(found: Architecture, options: Mapping[str, Any]) -> None:
    config = import_module(f"robustcli.models.{found.builder.split(':')[0]}").VARIANTS
    takes = [field.name for field in fields(config[found.variant])]
    for option in options:
        if option not in takes and not (found.family in _BUILDERS and option in _TIMMS):
            close = nearest(option, takes, most=1)
            raise UsageError(
                f"`{found.name}` takes no `{option}=...`.",
                f"Did you mean `{close[0]}`?" if close else "",
                f"It takes {', '.join(takes)}.",
            )


def load(
    name: str, state: Mapping[str, Tensor], *, origin: str, options: Mapping[str, Any]
) -> nn.Module:
    """The network `name` with the weights `state`, in eval mode.

    Args:
        name: A name of the registry.
        state: Weights under official names or ours.
        origin: Where they come from, for messages.
        options: For the builder; with `img_size`, a Vim's position embedding is resized to it.

    Raises:
        UsageError: The weights are of another network; the message says of which, if it can.
    """
    found = architecture(name)
    network = create(name, options)

    def convert(named: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        own = family_of(named) in (None, found.family)
        given = FAMILIES[found.family].convert(named) if own else dict(named)
        if "img_size" in options and recognise(named) in (None, found.variant):
            given = _resized(network, given)
        return given

    heads = tuple(f"{head}." for head in FAMILIES[found.family].heads)
    choice = choose(state, shapes_of(network.state_dict()), convert=convert, heads=heads)
    fits = shapes_of(choice.state) == shapes_of(network.state_dict())
    advice = None if fits else _advice(found, network, choice.named, options)
    load_strictly(network, choice.state, model=found.name, origin=origin, advice=advice)
    choice.announce(origin)
    return network


def load_classifier(
    name: str, state: Mapping[str, Tensor], *, origin: str, options: Mapping[str, Any]
) -> nn.Module:
    """As `load`, with as many classes as the head in the file tells apart, unless `options` say.

    Raises:
        UsageError: The weights are of another network, or of another number of classes.
    """
    if "num_classes" in options:
        return load(name, state, origin=origin, options=options)
    found = architecture(name)
    shapes = shapes_of(create(name, options).state_dict())
    family = FAMILIES[found.family]
    heads = tuple(f"{head}." for head in family.heads)
    choice = choose(state, shapes, convert=family.convert, heads=heads)
    classes = classes_in(shapes_of(choice.state), found.family) if choice.fits else None
    if classes in (None, classes_in(shapes, found.family)):
        return load(name, state, origin=origin, options=options)
    network = load(name, state, origin=origin, options={**options, "num_classes": classes})
    announce(f"`{origin}`: its head tells {classes} classes apart, and so does `{name}` here.")
    return network


def _resized(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    assert isinstance(network, timm_vim.TimmVim), "no other configuration has an `img_size`"
    return fit_positions(state, network.config.grid)


def _advice(
    found: Architecture, network: nn.Module, state: Mapping[str, Tensor], options: Mapping[str, Any]
) -> str | None:
    family = family_of(state)
    if family is None:
        return None
    really = recognise(state)
    if really is not None and really != found.variant:
        return f"These are the weights of `{really}`: use that name."
    if family != found.family:
        return f"It is a file of {FAMILIES[family].title} ({', '.join(members(family))})."
    given = shapes_of(FAMILIES[family].convert(state))
    expected = shapes_of(network.state_dict())
    if body(given, family) == body(expected, family):
        return _other_classes(family, classes_in(given, family), options)
    if really is not None:
        return f"They are the weights of `{really}` as published: leave out the options."
    return _other_size(given, expected) or FAMILIES[family].advice


def _other_classes(family: str, classes: int | None, options: Mapping[str, Any]) -> str | None:
    if classes is None:
        return "They have no head: the file holds a backbone only."
    if "num_classes" not in options:
        return (
            f"They are of this model with {classes} classes: set `num_classes={classes}` "
            f"(`--model-arg num_classes={classes}`, and name them with `--label-space FILE`)."
        )
    heads = " and ".join(f"`{head}`" for head in FAMILIES[family].heads)
    wanted = options["num_classes"]
    change = (
        f"call `model.reset_classifier({wanted})`" if family in _BUILDERS else f"replace {heads}"
    )
    return f"Load them with their own `num_classes={classes}`, then {change} and train it."


def _other_size(given: Shapes, expected: Shapes) -> str | None:
    """What to do where only the number of positions differs: images of another size."""
    other = {key for key in {*given, *expected} if given.get(key) != expected.get(key)}
    if other - {"head.weight", "head.bias"} != {"pos_embed"}:
        return None
    side = math.isqrt(given["pos_embed"][1])
    return (
        f"They are for images with {side} x {side} patches: give `img_size`, in pixels, and the "
        "position embedding is resized to it."
    )


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
            return create(known, options).float()
        state = read_weights(Path(weights))
        classifies = ARCHITECTURES[known].task == "cls"
        loads = load_classifier if classifies else load
        return loads(known, state, origin=str(weights), options=options).float()
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
