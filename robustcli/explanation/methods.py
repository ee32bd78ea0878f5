"""The methods of `robust explain`, and the models that each method supports."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from robustcli.core.errors import UsageError
from robustcli.core.names import TaskName, matching

MethodKind = Literal["localised", "learned", "model"]
_LISTING = "robust explain --help"


@dataclass(frozen=True)
class ExplanationMethod:
    """An explanation method.

    Args:
        name: Name in `--method`.
        title: Name in headings.
        kind: `localised` computes a map over the pixels of a photo, `learned` optimises a picture,
            `model` computes a map that describes the network.
        compute: `module:function` of a `network.Attribute` in this package, imported at first use.
        source: The publication.
        families: Supported families of networks (`ModelFacts.family`); empty for all.
        tasks: Supported tasks.
        targeted: Whether the result depends on the explained class.
        from_photo: Whether the result depends on the photo.
        gradients: Whether the method needs gradients of the network.
        tried: Whether some networks of the families are unsupported, so that the method is tried
            on a generated image first.
        layered: Whether the method uses the output of one layer (`--layer`).
    """

    name: str
    title: str
    kind: MethodKind
    compute: str
    source: str
    families: tuple[str, ...] = ()
    tasks: tuple[TaskName, ...] = ("cls", "seg")
    targeted: bool = True
    from_photo: bool = True
    gradients: bool = True
    tried: bool = False
    layered: bool = False

    def function(self) -> Callable[..., Any]:
        """Imports and returns the function of the method."""
        module, _, name = self.compute.partition(":")
        imported = importlib.import_module(f"robustcli.explanation.{module}")
        function: Callable[..., Any] = getattr(imported, name)
        return function

    def fits(self, family: str, task: TaskName) -> bool:
        """Whether the method supports networks of `family` for `task`."""
        return task in self.tasks and (not self.families or family in self.families)


_SCANS = ("vmamba", "vim")
_METHODS = (
    ExplanationMethod(
        "integrated-gradients", "Integrated gradients", "localised",
        "input_methods:integrated_gradients",
        "Sundararajan et al., Axiomatic attribution for deep networks (ICML 2017)",
    ),
    ExplanationMethod(
        "occlusion", "Occlusion", "localised", "input_methods:occlusion",
        "Zeiler and Fergus, Visualizing and understanding convolutional networks (ECCV 2014)",
        gradients=False,
    ),
    ExplanationMethod(
        "grad-cam", "Grad-CAM", "localised", "layer_methods:grad_cam",
        "Selvaraju et al., Grad-CAM (ICCV 2017)", tried=True, layered=True,
    ),
    ExplanationMethod(
        "relevance", "Layer-wise relevance", "localised", "relevance:relevance",
        "Jafari et al., MambaLRP (NeurIPS 2024)", tried=True,
    ),
    ExplanationMethod(
        "attention", "Hidden attention", "localised", "hidden_attention:hidden_attention",
        "Ali et al., The hidden attention of Mamba models (arXiv 2403.01590)", families=_SCANS,
        tasks=("cls",), targeted=False, gradients=False, tried=True,
    ),
    ExplanationMethod(
        "class-attention", "Hidden attention for a class", "localised",
        "hidden_attention:class_attention",
        "Ali et al., The hidden attention of Mamba models (arXiv 2403.01590)", families=_SCANS,
        tasks=("cls",), tried=True,
    ),
    ExplanationMethod(
        "maximised-photo", "Activation maximisation from the photo", "learned",
        "input_methods:from_photo",
        "Olah et al., Feature visualization (Distill 2017)", tasks=("cls",),
    ),
    ExplanationMethod(
        "maximised-noise", "Activation maximisation from noise", "learned",
        "input_methods:from_noise",
        "Olah et al., Feature visualization (Distill 2017)", tasks=("cls",), from_photo=False,
    ),
    ExplanationMethod(
        "erf", "Effective receptive field", "model", "layer_methods:receptive_field",
        "Luo et al., Understanding the effective receptive field (NIPS 2016)", targeted=False,
        tried=True, layered=True,
    ),
    ExplanationMethod(
        "erf-untrained", "Effective receptive field before training", "model",
        "layer_methods:untrained_receptive_field",
        "Luo et al., Understanding the effective receptive field (NIPS 2016)", targeted=False,
        tried=True, layered=True,
    ),
)  # fmt: skip
METHODS: dict[str, ExplanationMethod] = {method.name: method for method in _METHODS}


def fitting(family: str, task: TaskName) -> tuple[ExplanationMethod, ...]:
    """The methods that support networks of `family` for `task`."""
    return tuple(method for method in _METHODS if method.fits(family, task))


def default_methods(family: str, task: TaskName) -> tuple[ExplanationMethod, ...]:
    """The methods that run by default: all supported methods of kind `localised`."""
    return tuple(method for method in fitting(family, task) if method.kind == "localised")


def chosen_methods(
    patterns: Sequence[str], *, model: str, family: str, task: TaskName
) -> tuple[ExplanationMethod, ...]:
    """The methods that match `patterns` (names or globs), without duplicates, in table order.

    Matches of a glob that do not support the model are ignored.

    Raises:
        UsageError: A pattern matches no method, or no method that supports the model; the message
            lists those that do.
    """
    named: set[str] = set()
    for pattern in patterns:
        hits = matching(pattern, METHODS, kind="method", listing=_LISTING)
        fit = [name for name in hits if METHODS[name].fits(family, task)]
        if not fit:
            raise _unfit(METHODS[hits[0]], pattern, model, family, task)
        named.update(fit)
    return tuple(method for method in _METHODS if method.name in named)


def _unfit(
    method: ExplanationMethod, pattern: str, model: str, family: str, task: TaskName
) -> UsageError:
    reasons = []
    if method.families and family not in method.families:
        reasons.append(f"is made for {_listed(method.families)} networks, not for `{family}`")
    if task not in method.tasks:
        reasons.append("explains classes, not masks")
    return UsageError(
        f"`--method {pattern}` cannot be used with `{model}`.",
        f"{method.title} {' and '.join(reasons)}.",
        f"Suitable methods: {_listed(m.name for m in fitting(family, task))}.",
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
