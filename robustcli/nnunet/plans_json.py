"""nnU-Net's `plans.json` and `dataset.json` together: what they say of one 2D network and its data.

Source: nnU-Net v2.1.1, `PlansManager`, `LabelManager`, `dataset.json` version 2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.core.errors import UsageError
from robustcli.core.names import find
from robustcli.models.umamba import Pair, plan_options
from robustcli.nnunet.normalisation import Channel, Intensities

# --- What plans and data sets call the normalisations ---------------------------------------------
#
# Source: nnU-Net v2.1.1, `channel_name_to_normalization_mapping` and the classes that it names.


CLASSES = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "RescaleTo01Normalization": "rescale_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
    "NoNormalization": "none",
}
"""nnU-Net's class to the scheme in `robustcli.nnunet.normalisation.SCHEMES`."""
_CHANNEL_NAMES = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_0_1": "rescale_0_1",
    "rescale_to_0_1": "rescale_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}


def scheme_of_class(name: str) -> str:
    """The scheme that a plan's `normalization_schemes` calls `name`.

    Raises:
        UsageError: It is none of nnU-Net's own.
    """
    return CLASSES[find(name, CLASSES, kind="normalisation", listing="plans.json")]


def scheme_of_channel(name: str) -> str:
    """The scheme that a channel called `name` in `dataset.json` asks for; most ask for z-scores."""
    return _CHANNEL_NAMES.get(name.casefold(), "zscore")


PLANS, DATASET = "plans.json", "dataset.json"


@dataclass(frozen=True)
class NnUNetPlan:
    """One configuration of a plan, with the data set that it was made for.

    Args:
        plans: The content of `plans.json`, as nnU-Net wrote it.
        dataset: The content of `dataset.json`.
        configuration: A key of its `configurations`, such as `2d`.

    Raises:
        UsageError: There is no such configuration, it is not two-dimensional, or not complete.
    """

    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    configuration: str = "2d"

    def __post_init__(self) -> None:
        try:  # read all of it at once: a file from elsewhere may hold anything
            _ = self.options, self.patch, self.batch_size
            _ = self.channels, self.labels, self.ignore_label
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            part = f"its configuration `{self.configuration}`"
            raise _malformed(f"{PLANS}` or `{DATASET}", part, error) from error

    @property
    def name(self) -> str:
        """What the plan calls itself."""
        return str(self.plans.get("plans_name", "nnUNetPlans"))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The configuration's entries, with those that it inherits."""
        return _inherited(_mapping(self.plans, "configurations", PLANS), self.configuration)

    @property
    def options(self) -> dict[str, object]:
        """What the plan decides of the network: options of `robustcli.models.umamba.build`."""
        return plan_options(self.settings)

    @property
    def patch(self) -> Pair:
        """Height and width of the plan's patch, in pixels."""
        height, width = self.settings["patch_size"]
        return int(height), int(width)

    @property
    def batch_size(self) -> int:
        """Patches per batch."""
        return int(self.settings.get("batch_size", 2))

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The input channels in order."""
        key = "channel_names" if "channel_names" in self.dataset else "modality"
        names = _mapping(self.dataset, key, DATASET)
        return tuple(str(names[number]) for number in sorted(names, key=int))

    @property
    def channels(self) -> tuple[Channel, ...]:
        """How each input channel is normalised."""
        count = len(self.channel_names)
        schemes = self.settings.get("normalization_schemes", ["ZScoreNormalization"] * count)
        masked = self.settings.get("use_mask_for_norm", [False] * count)
        if not len(schemes) == len(masked) == count:
            raise UsageError(
                f"`{PLANS}` and `{DATASET}` do not belong together.",
                f"The plan normalises {len(schemes)} channels, the data set has {count}.",
                "Put the two files of one training together.",
            )
        return tuple(
            Channel(scheme_of_class(scheme), bool(inside), self._intensities(c))
            for c, (scheme, inside) in enumerate(zip(schemes, masked, strict=True))
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in order, `background` first, without the ignore label.

        Raises:
            UsageError: The labels are regions, which may overlap, or no names with numbers.
        """
        values = dict(_mapping(self.dataset, "labels", DATASET))
        if any(not isinstance(value, int | list | tuple) for value in values.values()):
            raise _no_numbers(values)
        if any(not isinstance(value, int) for value in values.values()):
            raise UsageError(
                f"The labels in `{DATASET}` are regions.",
                "Each is a list of labels; what is trained here gives every pixel one class.",
                "Use a data set whose labels are plain numbers.",
            )
        return tuple(sorted((name for name in values if name != "ignore"), key=values.__getitem__))

    @property
    def ignore_label(self) -> int | None:
        """The value of pixels that nobody annotated; None where there is none."""
        value = _mapping(self.dataset, "labels", DATASET).get("ignore")
        return None if value is None else int(value)

    def _intensities(self, channel: int) -> Intensities | None:
        known = self.plans.get("foreground_intensity_properties_per_channel") or {}
        found = known.get(str(channel))
        if not found:
            return None
        keys = ("mean", "std", "percentile_00_5", "percentile_99_5")
        return Intensities(*(float(found[key]) for key in keys))


def _no_numbers(values: Mapping[str, Any]) -> UsageError:
    """The error where labels are not names with their numbers, with what to write instead."""
    swapped = all(name.strip().isdecimal() for name in values)
    numbers = {str(value): int(name) for name, value in values.items()} if swapped else {}
    texts = all(str(value).strip().isdecimal() for value in values.values())
    if not swapped and texts:
        numbers = {name: int(value) for name, value in values.items()}
    if swapped:
        why = "It gives a name to each number, as nnU-Net 1 did."
    else:
        wrong = next(name for name, value in values.items() if not isinstance(value, int | list))
        why = f"The label `{wrong}` is {values[wrong]!r}, which is no number."
    todo = f'Write `"labels": {json.dumps(numbers)}`.' if numbers else "Correct it."
    what = "the wrong way round" if swapped else "no names with numbers"
    return UsageError(
        f"The labels in `{DATASET}` are {what}.",
        f"{why} Expected the number of each name, as nnU-Net 2 writes it.",
        todo,
    )


def read_plan(folder: Path, configuration: str) -> NnUNetPlan:
    """The plan and data set described in `folder`.

    Raises:
        UsageError: A file is missing or is not what it should be.
    """
    return NnUNetPlan(_json(folder / PLANS), _json(folder / DATASET), configuration)


def _inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = find(name, configurations, kind="configuration of the plan", listing=PLANS)
    own = dict(_mapping(configurations, found, PLANS))
    parent = own.pop("inherits_from", None)
    if parent is None:
        return own
    others = {key: value for key, value in configurations.items() if key != found}
    return _inherited(others, str(parent)) | own  # without itself: no circle can come back


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"`{path}` cannot be read.",
            f"nnU-Net writes it beside its folds: {error}",
            "Copy the whole results folder.",
        ) from error
    if not isinstance(content, Mapping):
        raise _malformed(str(path), "its content", TypeError("it is no JSON object"))
    return content


def _mapping(document: Mapping[str, Any], key: str, file: str) -> Mapping[str, Any]:
    found = document.get(key)
    if not isinstance(found, Mapping) or not found:
        raise UsageError(
            f"`{file}` has no `{key}`.",
            f"It holds {', '.join(map(str, list(document)[:6])) or 'nothing'}.",
            "Use the file as nnU-Net wrote it.",
        )
    return found


def _malformed(file: str, part: str, error: Exception) -> UsageError:
    return UsageError(
        f"`{file}` is not what nnU-Net writes.",
        f"Reading {part}: {type(error).__name__}: {error}.",
        "Copy it anew.",
    )
