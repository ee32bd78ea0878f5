"""Loads weights strictly: every tensor must fit, or the error names the differences."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from robustcli.adapters.checkpoint import Weights, is_averaged, rank_of
from robustcli.core.errors import UsageError, shortened_text
from robustcli.models.ablation import removed_parameters
from robustcli.models.architectures import ARCHITECTURES
from robustcli.models.umamba import without_aliases

Shapes = Mapping[str, tuple[int, ...]]
Convert = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

_LOG = logging.getLogger(__name__)
_COUNTER = ".num_batches_tracked"
_DEEPEST = 5  # keys of a prefix
_SHOWN = 3


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name to shape."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


@dataclass(frozen=True)
class Choice:
    """The weights of a file that a network takes.

    Args:
        state: Under the network's names.
        named: Under the file's names, without the prefix.
        place: Where in the file they lie, see `Weights`.
        prefix: What was before every name; empty for nothing.
        fits: Whether names and shapes are the network's.
        passed_over: Other sets of weights in the file, as users know them.
        left_out: Tensors without the prefix, which are no part of the network.
        remarks: What was done to the names while reading.
    """

    state: Mapping[str, Tensor]
    file_state: Mapping[str, Tensor]
    key_path: str
    prefix: str
    fits: bool
    passed_over: tuple[str, ...]
    left_out: tuple[str, ...]
    remarks: tuple[str, ...]

    def announce(self, origin: str, *further: str) -> None:
        """Logs what a user must know of the choice; nothing where there was none.

        Args:
            origin: The file.
            further: More to be said.
        """
        remarks = [*self.remarks, *self._choice(), *further]
        if remarks:
            announce(f"`{origin}`: {'; '.join(remarks)}.")

    def _choice(self) -> list[str]:
        remarks = []
        if self.passed_over:
            source = self.key_path or (
                f"{self.prefix}*" if self.prefix else "the tensors of the file"
            )
            averaged = is_averaged(source.removesuffix("*"))
            kind = "the averaged weights" if averaged else "the weights"
            passed_over = ", ".join(f"`{name}`" for name in self.passed_over)
            remarks.append(f"{kind} `{source}` are taken, not {passed_over}")
        if self.prefix:
            remarks.append(f"the prefix `{self.prefix}` removed from the names of its tensors")
        if self.left_out:
            count = len(self.left_out)
            remarks.append(
                f"{count} tensor{'s' * (count > 1)} without it left out ({_listed(self.left_out)})"
            )
        return remarks


def announce(text: str) -> None:
    """Announces a default choice to the user; the command line prints it as a line."""
    _LOG.warning(text)


def choose(
    state: Mapping[str, Tensor],
    expected: Shapes,
    *,
    convert: Convert = dict,
    heads: Sequence[str] = (),
    complete: bool = False,
) -> Choice:
    """Chooses the set of weights in a file that fits a network, and its prefix of names.

    All must fit; where none do, the set with most of the network's names is returned, for messages.

    Args:
        state: The weights as read; the other sets in their file are tried too.
        expected: Names and shapes of the network.
        convert: The file's names to the network's.
        heads: Beginnings of names that may be of any shape, or not there.
        complete: Whether every tensor of a set must have the prefix.
    """
    sets = [state, *(state.other_sets if isinstance(state, Weights) else ())]
    attempts = [
        _attempt(weights, prefix, expected, convert, tuple(heads))
        for weights in sets
        for prefix in _prefixes(weights, len(expected), complete=complete)
    ]
    fitting = [attempt for attempt in attempts if attempt.fits]
    best = fitting[0] if fitting else max(attempts, key=lambda attempt: attempt.matching)
    return Choice(
        best.state, best.file_state, _key_path(best.weights), best.prefix, best.fits,
        _passed_over(best, fitting, sets), _left_out(best),
        best.weights.remarks if isinstance(best.weights, Weights) else (),
    )  # fmt: skip


def fitted_to_ablation(network: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`state` without the parameters of the scan that `network` was built without.

    Only if `state` has all of them: then it is of the network with its scan. A part of them stays,
    to be refused as unknown.
    """
    removed = removed_parameters(network)
    if not removed or not removed.keys() <= state.keys():
        return state
    return {name: tensor for name, tensor in state.items() if name not in removed}


def ablation_remarks(network: nn.Module, converted: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Remarks on the tensors that `fitted_to_ablation` removed from `converted`."""
    removed = removed_parameters(network)
    if not removed or not removed.keys() <= converted.keys():
        return ()
    numbers = sum(converted[name].numel() for name in removed)
    return (
        f"{len(removed)} tensors of the scan left out ({numbers:,} numbers: "
        f"{_listed(list(removed))}, ...), because the network is built without it",
    )


@dataclass(frozen=True)
class _Attempt:
    weights: Mapping[str, Tensor]
    prefix: str
    file_state: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    fits: bool
    matching: int


def _attempt(
    weights: Mapping[str, Tensor], prefix: str, expected: Shapes, convert: Convert,
    heads: tuple[str, ...],
) -> _Attempt:  # fmt: skip
    file_state = {
        key.removeprefix(prefix): tensor
        for key, tensor in weights.items()
        if key.startswith(prefix)
    }
    state = convert(file_state)
    file_body, network_body = _body(shapes_of(state), heads), _body(expected, heads)
    needed = {
        key: shape for key, shape in network_body.items() if key in file_body or not counts(key)
    }
    return _Attempt(
        weights, prefix, file_state, state, needed == file_body, len(needed.keys() & file_body)
    )


def _body(shapes: Shapes, heads: tuple[str, ...]) -> Shapes:
    if not heads:
        return shapes
    return {key: shape for key, shape in shapes.items() if not key.startswith(heads)}


def _prefixes(names: Collection[str], expected: int, *, complete: bool) -> list[str]:
    """The prefixes shared by enough of `names` that the rest may be a network's names."""
    counts: Counter[str] = Counter()
    for name in names:
        keys = name.split(".")
        counts.update(".".join(keys[:n]) + "." for n in range(1, min(len(keys), _DEEPEST + 1)))
    minimum = len(names) if complete else max(2, expected // 2)
    common = [prefix for prefix, count in counts.items() if count >= minimum]
    return ["", *sorted(common, key=lambda prefix: rank_of(prefix[:-1].split(".")))]


def _key_path(weights: Mapping[str, Tensor]) -> str:
    return weights.key_path if isinstance(weights, Weights) else ""


def _passed_over(
    best: _Attempt, fitting: Sequence[_Attempt], sets: Sequence[Mapping[str, Tensor]]
) -> tuple[str, ...]:
    """Alternatives to the chosen set: earlier or similarly large sets, and other prefixes."""
    chosen = next(n for n, weights in enumerate(sets) if weights is best.weights)
    alternatives = [
        weights for n, weights in enumerate(sets)
        if n != chosen and (n < chosen or 2 * len(weights) >= len(best.weights))
    ]  # fmt: skip
    prefixes = [
        f"{attempt.prefix}*"
        for attempt in fitting
        if attempt.weights is best.weights and attempt.prefix != best.prefix
    ]
    return (*(_key_path(weights) or "the tensors beside it" for weights in alternatives), *prefixes)


def _left_out(best: _Attempt) -> tuple[str, ...]:
    return tuple(key for key in best.weights if not key.startswith(best.prefix))


def heads_in(network: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of a classifier's last layers, which timm's contract tells."""
    classifier = getattr(network, "get_classifier", None)
    classifier_layers = None if classifier is None else classifier()
    layers = (
        classifier_layers if isinstance(classifier_layers, tuple | list) else (classifier_layers,)
    )
    return tuple(
        f"{name}." for name, module in network.named_modules() if any(module is x for x in layers)
    )


def head_classes(network: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """How many classes the head in `state` tells apart; None where it has none.

    Args:
        network: A classifier of the same architecture, with any number of classes.
        state: Weights under its names.
    """
    heads, classes = heads_in(network), getattr(network, "num_classes", None)
    rows = [
        key for key, tensor in network.state_dict().items()
        if key.startswith(heads) and tensor.ndim > 1 and len(tensor) == classes
    ]  # fmt: skip
    return len(state[rows[-1]]) if heads and rows and rows[-1] in state else None


def load_strictly(
    network: nn.Module, state: Mapping[str, Tensor], *, model: str, origin: str, advice: str | None
) -> None:
    """Copies `state` into `network`; every name and shape must be the network's, as in torch.

    Files from before torch counted the batches of a normalisation have no such counters; torch
    loads them, and so does this.

    Args:
        network: Where the weights go.
        state: The weights.
        model: The network's name, for the message.
        origin: Where the weights come from, for the message.
        advice: What to do if they do not fit, where that is known, for the message.

    Raises:
        UsageError: A name is missing, unknown, or of another shape, or a parameter is NaN, infinite
            or no floating-point number.
    """
    expected, received = shapes_of(network.state_dict()), shapes_of(state)
    needed = {key: shape for key, shape in expected.items() if key in received or not counts(key)}
    if needed != received:
        raise UsageError(
            f"`{origin}` does not hold the weights of `{model}`.",
            tensor_differences(needed, received),
            advice or "Name the model that the file was made for.",
        )
    _check_numbers(network, state, model, origin)
    network.load_state_dict(dict(state))


def _check_numbers(
    network: nn.Module, state: Mapping[str, Tensor], model: str, origin: str
) -> None:
    """Raises UsageError where a parameter would be no finite floating-point number.

    Buffers may be infinite, as masks of attention are, and of any type.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for key, tensor in state.items():
        wrong_type = key in parameters and not tensor.is_floating_point()
        if wrong_type:
            fault = f"holds {str(tensor.dtype).removeprefix('torch.')}, expected floating point"
        elif tensor.is_floating_point() and not _is_usable(tensor, finite=key in parameters):
            bad = int((~torch.isfinite(tensor.float())).sum())
            fault = f"has {bad:,} of {tensor.numel():,} numbers that are NaN or infinite"
        else:
            continue
        raise UsageError(
            f"`{origin}` does not hold usable weights of `{model}`.",
            f"`{shortened_text(key)}` {fault}.",
            "Use a file from before the training diverged; quantised weights are not read.",
        )


def _is_usable(tensor: Tensor, *, finite: bool) -> bool:
    """Whether no number is NaN, and with `finite` none infinite; the sum shows both cheaply."""
    total = tensor.double().sum() if tensor.element_size() < 2 else tensor.sum(dtype=torch.double)
    if bool(torch.isfinite(total)):
        return True
    numbers = tensor.float()
    return not bool(torch.isnan(numbers).any()) and not (finite and bool(numbers.isinf().any()))


def counts(key: str) -> bool:
    """Whether a tensor is a normalisation's batch counter, which old files lack."""
    return key.endswith(_COUNTER)


def tensor_differences(expected: Shapes, received: Shapes, most: int = _SHOWN) -> str:
    """The first few names and shapes in which `received` is not `expected`, in words."""
    missing = [key for key in expected if key not in received]
    unknown = [key for key in received if key not in expected]
    reshaped = [key for key in expected if key in received and expected[key] != received[key]]
    parts = []
    if reshaped:
        shown = "; ".join(
            f"`{shortened_text(k)}` is {received[k]}, not {expected[k]}" for k in reshaped[:most]
        )
        parts.append(f"{len(reshaped)} of another shape ({shown})")
    if missing:
        parts.append(f"{len(missing)} missing ({_listed(missing, most)})")
    if unknown:
        parts.append(f"{len(unknown)} unknown ({_listed(unknown, most)})")
    return f"Of {len(expected)} expected tensors: {', '.join(parts)}."


def _listed(names: Sequence[str], most: int = _SHOWN) -> str:
    return ", ".join(f"`{shortened_text(name)}`" for name in names[:most])


# The names of the v0 files (VMamba issue 53) and ours, applied in this order.
_OLD_NAMES = (
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.0."),
    (re.compile(r"^patch_embed\.norm\."), "patch_embed.2."),
    (re.compile(r"\.ln_1\."), ".norm."),
    (re.compile(r"\.self_attention\."), ".op."),
    (re.compile(r"^norm\."), "classifier.norm."),
    (re.compile(r"^head\."), "classifier.head."),
)


def vmamba_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under today's names; projections stored as 1x1 convolutions become matrices."""
    return {_new_name(key): _matrix(key, tensor) for key, tensor in state.items()}


def _new_name(key: str) -> str:
    for pattern, new in _OLD_NAMES:
        key = pattern.sub(new, key)
    return key


def _matrix(key: str, tensor: Tensor) -> Tensor:
    pointwise = re.search(r"\.(in_proj|out_proj|fc1|fc2|reduction|head)\.weight$", key)
    return tensor.flatten(1) if pointwise and tensor.shape[2:] == (1, 1) else tensor


_NOTHING = r"(?!)"  # a ResNet for CIFAR has the names of timm's and torchvision's ResNets
_PLAN = (
    "Give the options of its plan: `robustcli.models.umamba.plan_options` reads them from "
    "an entry of `configurations` in `plans.json`."
)


@dataclass(frozen=True)
class Family:
    """How one family's files look.

    Args:
        title: Its name, for messages.
        mark: A pattern at the beginning of a tensor's name that only its files hold.
        heads: Layers whose size is the number of classes.
        convert: Official names and shapes to ours.
        advice: What to do with a file of the family that fits none of its members.
    """

    title: str
    mark: str
    heads: tuple[str, ...]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    advice: str = "It fits none of them as published: give the options that it was trained with."


FAMILIES: dict[str, Family] = {
    "vmamba": Family(
        "VMamba",
        r"layers\.0\.blocks\.0\.(op|self_attention)\.",
        ("classifier.head",),
        vmamba_names,
    ),
    "vim": Family("Vim", r"layers\.0\.mixer\.conv1d_b\.", ("head",)),
    "vit": Family("vit_pytorch's ViT", r"transformer\.layers\.0\.0\.to_qkv\.", ("mlp_head",)),
    "resnet9": Family("ResNet-9", r"layer1\.residual\.res1\.", ("linear",)),
    "cifar-resnet": Family("the ResNets for CIFAR", _NOTHING, ("fc",)),
    "vmunet": Family("VM-UNet", r"vmunet\.", ("vmunet.final_conv",)),
    "umamba": Family(
        "U-Mamba",
        r"(mamba_layer\.|encoder\.stem\.0\.conv1\.)",
        ("decoder.seg_layers",),
        without_aliases,
        _PLAN,
    ),
    "umambabot": Family("UMambaBot", r"mamba\.in_proj\.", ("decoder.seg_layers",), without_aliases),
    "resenc": Family(
        "nnU-Net's residual encoder",
        r"encoder\.stem\.convs\.",
        ("decoder.seg_layers",),
        without_aliases,
        "Give the `features`, `strides` and `n_blocks` of its plan with `--model-arg`.",
    ),
    "ulvm": Family("UL-VM-UNet", r"scab\.", ("final",)),
    "unet": Family("U-Net", r"upconv\d\.", ("conv",)),
    "segformer": Family("SegFormer", r"encoder\.stages\.0\.overlap_patch", ("head.predict",)),
    "resnet_seg": Family("the ResNet segmenters", r"encoder\.7\.0\.", ("decoder.6",)),
}


def family_of(names: Iterable[str]) -> str | None:
    """The key in FAMILIES of the family whose files hold such names; None for a foreign file."""
    tensor_names = list(names)
    return next(
        (
            key
            for key, family in FAMILIES.items()
            if any(re.match(family.mark, n) for n in tensor_names)
        ),
        None,
    )


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The network whose names and shapes `state` has, whatever its number of classes; else None."""
    family = family_of(state)
    if family is None:
        return None
    shapes = body(shapes_of(FAMILIES[family].convert(state)), family)
    return next((name for name in members(family) if body(layout(name), family) == shapes), None)


def members(family: str) -> list[str]:
    """The names in `family` that are not merely another name of a member."""
    architectures = [a for a in ARCHITECTURES.values() if a.family == family]
    return [a.name for a in architectures if a.name == a.variant]


@cache
def layout(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network `name` as published."""
    with torch.device("meta"):
        return shapes_of(ARCHITECTURES[name].build().state_dict())


def body(shapes: Shapes, family: str) -> dict[str, tuple[int, ...]]:
    """`shapes` without those that the number of classes decides."""
    heads = tuple(f"{head}." for head in FAMILIES[family].heads)
    return {key: shape for key, shape in shapes.items() if not key.startswith(heads)}


def classes_in(shapes: Shapes, family: str) -> int | None:
    """The number of classes of weights with these shapes; None without a head."""
    heads = tuple(f"{head}." for head in FAMILIES[family].heads)
    of_heads = {key: shape for key, shape in shapes.items() if key.startswith(heads)}
    biases = [shape[0] for shape in of_heads.values() if len(shape) == 1]
    if not biases:  # a linear layer without one
        biases = [shape[0] for key, shape in of_heads.items() if key.endswith(".weight")]
    return biases[0] if biases else None
