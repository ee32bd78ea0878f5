"""How each kind of segmenter of the catalogue is made: one row per builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustcli.adapters import own, smp_library
from robustcli.adapters.otsu import Otsu
from robustcli.core.errors import UsageError

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
    return own.load(variant, state, origin=origin, options=arguments)


def _otsu(variant: str, arguments: Arguments) -> nn.Module:
    if arguments:
        raise UsageError(f"`{variant}` takes no `{next(iter(arguments))}=...`.", "It takes none.")
    return Otsu().eval()


SEG_BUILDERS: dict[str, SegBuilder] = {
    "zoo": SegBuilder(own.create, _zoo_load),
    "smp": SegBuilder(smp_library.create, smp_library.load),
    "otsu": SegBuilder(_otsu, load=None),
}
