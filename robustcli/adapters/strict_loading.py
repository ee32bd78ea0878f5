"""Strict loading of weights, with errors that name differences and the matching network."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from robustcli.adapters.checkpoint import Weights, is_averaged, rank_of
from robustcli.adapters.model import shapes_only
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
    """Shapes of the tensors by name."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


@dataclass(frozen=True)
class Choice:
    """The set of weights in a file that was selected for a network.

    Args:
        weights: The set as read.
        prefix: Common prefix of the names; empty for none.
        file_state: Tensors under the file's names, without the prefix.
        state: Tensors under the network's names.
        fits: Whether names and shapes match the network.
        matching: Number of names that the set shares with the network.
        passed_over: Other sets of weights in the file, in words.
    """

    weights: Weights
    prefix: str
    file_state: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    fits: bool
    matching: int
    passed_over: tuple[str, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Tensors without the prefix, which do not belong to the network."""
        return tuple(key for key in self.weights if not key.startswith(self.prefix))

    def announce(self, origin: str, *further: str) -> None:
        """Announces the selection if there was a choice.

        Args:
            origin: The file.
            further: Further sentences.
        """
        remarks = [*self.weights.remarks, *self._choice(), *further]
        if remarks:
            announce(f"`{origin}`: {'; '.join(remarks)}.")

    def _choice(self) -> list[str]:
        remarks = []
        if self.passed_over:
            source = self.weights.key_path or (
                f"{self.prefix}*" if self.prefix else "the tensors of the file"
            )
            averaged = is_averaged(source.removesuffix("*"))
            kind = "the averaged weights" if averaged else "the weights"
            passed_over = ", ".join(f"`{name}`" for name in self.passed_over)
            remarks.append(f"{kind} `{source}` are used, not {passed_over}")
        if self.prefix:
            remarks.append(f"the prefix `{self.prefix}` removed from the names of its tensors")
        if self.left_out:
            count = len(self.left_out)
            remarks.append(
                f"{count} tensor{'s' * (count > 1)} without it skipped ({_listed(self.left_out)})"
            )
        return remarks


def announce(text: str) -> None:
    """Announces an automatic choice to the user."""
    _LOG.warning(text)


def choose(
    state: Mapping[str, Tensor],
    expected: Shapes,
    *,
    convert: Convert = dict,
    heads: Sequence[str] = (),
    complete: bool = False,
) -> Choice:
    """Selects the set of weights in a file, and the prefix of its names, that match a network.

    All names and shapes must match. Without a match, returns the set that shares most names with
    the network, for messages.

    Args:
        state: The weights as read; the other sets in the file are also tried.
        expected: Names and shapes of the network.
        convert: Maps the file's names to the network's.
        heads: Name prefixes of tensors that can have any shape or be missing.
        complete: Whether every tensor of a set must have the prefix.
    """
    weights = state if isinstance(state, Weights) else Weights(state)
    sets = [weights, *weights.other_sets]
    attempts = [
        _attempt(weights_set, prefix, expected, convert, tuple(heads))
        for weights_set in sets
        for prefix in _prefixes(weights_set, len(expected), complete=complete)
    ]
    fitting = [attempt for attempt in attempts if attempt.fits]
    best = fitting[0] if fitting else max(attempts, key=lambda attempt: attempt.matching)
    return replace(best, passed_over=_passed_over(best, fitting, sets))


def fitted_to_ablation(network: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`state` without the parameters of the scan, for a `network` built without its scan.

    Removes them only if `state` has all of them, as weights of the network with its scan do. A
    subset is kept and later refused as unknown.
    """
    removed = removed_parameters(network)
    if not removed or not removed.keys() <= state.keys():
        return state
    return {name: tensor for name, tensor in state.items() if name not in removed}


def ablation_remarks(network: nn.Module, converted: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A remark on the tensors of `converted` that `fitted_to_ablation` removed."""
    removed = removed_parameters(network)
    if not removed or not removed.keys() <= converted.keys():
        return ()
    numbers = sum(converted[name].numel() for name in removed)
    return (
        f"{len(removed)} tensors of the scan skipped ({numbers:,} numbers: "
        f"{_listed(list(removed))}, ...), because the network is built without it",
    )


def _attempt(
    weights: Weights, prefix: str, expected: Shapes, convert: Convert, heads: tuple[str, ...]
) -> Choice:
    file_state = {
        key.removeprefix(prefix): tensor
        for key, tensor in weights.items()
        if key.startswith(prefix)
    }
    state = convert(file_state)
    file_body = _without_heads(shapes_of(state), heads)
    network_body = _without_heads(expected, heads)
    needed = {
        key: shape for key, shape in network_body.items() if key in file_body or not counts(key)
    }
    return Choice(
        weights, prefix, file_state, state, needed == file_body, len(needed.keys() & file_body)
    )


def _without_heads(shapes: Shapes, heads: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in shapes.items() if not key.startswith(heads)}


def _prefixes(names: Collection[str], expected: int, *, complete: bool) -> list[str]:
    """Common prefixes of enough `names` to be those of a network."""
    counts: Counter[str] = Counter()
    for name in names:
        keys = name.split(".")
        counts.update(".".join(keys[:n]) + "." for n in range(1, min(len(keys), _DEEPEST + 1)))
    minimum = len(names) if complete else max(2, expected // 2)
    common = [prefix for prefix, count in counts.items() if count >= minimum]
    return ["", *sorted(common, key=lambda prefix: rank_of(prefix[:-1].split(".")))]


def _passed_over(
    best: Choice, fitting: Sequence[Choice], sets: Sequence[Weights]
) -> tuple[str, ...]:
    """Sets preferred to the selected one or of similar size, and further matching prefixes."""
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
    return (*(weights.key_path or "the tensors beside it" for weights in alternatives), *prefixes)


def heads_in(network: nn.Module) -> tuple[str, ...]:
    """Name prefixes of a classifier's last layers, from timm's interface."""
    classifier = getattr(network, "get_classifier", lambda: None)()
    layers = classifier if isinstance(classifier, tuple | list) else (classifier,)
    return tuple(
        f"{name}." for name, module in network.named_modules() if any(module is x for x in layers)
    )


def head_classes(network: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Number of classes of the head in `state`; None without a head.

    Args:
        network: A classifier of the same architecture, with any number of classes.
        state: Weights under the network's names.
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
    """Copies `state` into `network`; all names and shapes must match, as in torch.

    Batch counters of normalisation layers can be missing, as in files of old torch versions, which
    torch also loads.

    Args:
        network: The network.
        state: The weights.
        model: Name of the network, for the message.
        origin: Origin of the weights, for the message.
        advice: Advice for the message if the weights do not match, if known.

    Raises:
        UsageError: A name is missing, unknown or has another shape, or a parameter is NaN,
            infinite or not a floating-point number.
    """
    expected, received = shapes_of(network.state_dict()), shapes_of(state)
    needed = {key: shape for key, shape in expected.items() if key in received or not counts(key)}
    if needed != received:
        raise UsageError(
            f"`{origin}` does not contain the weights of `{model}`.",
            tensor_differences(needed, received),
            advice or "Specify the model for which the file was created.",
        )
    _check_numbers(network, state, model, origin)
    network.load_state_dict(dict(state))


def _check_numbers(
    network: nn.Module, state: Mapping[str, Tensor], model: str, origin: str
) -> None:
    """Raises UsageError if a parameter is not a finite floating-point number.

    Buffers can be infinite (attention masks) and of any type.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for key, tensor in state.items():
        wrong_type = key in parameters and not tensor.is_floating_point()
        if wrong_type:
            fault = f"has type {str(tensor.dtype).removeprefix('torch.')}, expected floating point"
        elif tensor.is_floating_point() and not _is_usable(tensor, finite=key in parameters):
            bad = int((~torch.isfinite(tensor.float())).sum())
            fault = f"has {bad:,} of {tensor.numel():,} numbers that are NaN or infinite"
        else:
            continue
        raise UsageError(
            f"`{origin}` does not contain usable weights of `{model}`.",
            f"`{shortened_text(key)}` {fault}.",
            "Use a file from before the training diverged; quantised weights are not supported.",
        )


def _is_usable(tensor: Tensor, *, finite: bool) -> bool:
    """Whether no element is NaN or, with `finite`, infinite; the sum is a cheap first test."""
    # Networks are float32, in which large numbers of float64 are infinite.
    numbers = tensor if tensor.element_size() in (2, 4) else tensor.float()
    if bool(torch.isfinite(numbers.sum(dtype=torch.double))):
        return True
    numbers = tensor.float()
    return not bool(torch.isnan(numbers).any()) and not (finite and bool(numbers.isinf().any()))


def counts(key: str) -> bool:
    """Whether a tensor is a batch counter of a normalisation layer."""
    return key.endswith(_COUNTER)


def tensor_differences(expected: Shapes, received: Shapes) -> str:
    """The first differences in names and shapes between `received` and `expected`, in words."""
    missing = [key for key in expected if key not in received]
    unknown = [key for key in received if key not in expected]
    reshaped = [key for key in expected if key in received and expected[key] != received[key]]
    parts = []
    if reshaped:
        shown = "; ".join(
            f"`{shortened_text(k)}` is {received[k]}, not {expected[k]}" for k in reshaped[:_SHOWN]
        )
        parts.append(f"{len(reshaped)} with a different shape ({shown})")
    if missing:
        parts.append(f"{len(missing)} missing ({_listed(missing)})")
    if unknown:
        parts.append(f"{len(unknown)} unknown ({_listed(unknown)})")
    return f"Of {len(expected)} expected tensors: {', '.join(parts)}."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{shortened_text(name)}`" for name in names[:_SHOWN])


# Patterns from the names of v0 files (VMamba issue 53) to ours, applied in this order.
_OLD_NAMES = (
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.0."),
    (re.compile(r"^patch_embed\.norm\."), "patch_embed.2."),
    (re.compile(r"\.ln_1\."), ".norm."),
    (re.compile(r"\.self_attention\."), ".op."),
    (re.compile(r"^norm\."), "classifier.norm."),
    (re.compile(r"^head\."), "classifier.head."),
)


def vmamba_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under current names; 1 x 1 convolutions of projections become matrices."""
    return {_new_name(key): _matrix(key, tensor) for key, tensor in state.items()}


def _new_name(key: str) -> str:
    for pattern, new in _OLD_NAMES:
        key = pattern.sub(new, key)
    return key


def _matrix(key: str, tensor: Tensor) -> Tensor:
    pointwise = re.search(r"\.(in_proj|out_proj|fc1|fc2|reduction|head)\.weight$", key)
    return tensor.flatten(1) if pointwise and tensor.shape[2:] == (1, 1) else tensor


_NOTHING = r"(?!)"  # no match: ResNets for CIFAR have the names of timm's and torchvision's ResNets
_PLAN = (
    "Pass the options of its plan: `robustcli.models.umamba.plan_options` reads them from an "
    "entry of `configurations` in `plans.json`."
)


@dataclass(frozen=True)
class Family:
    """The files of a family of networks.

    Args:
        title: Name for messages.
        mark: Pattern of the beginning of a tensor name that only files of the family have.
        heads: Layers whose size is the number of classes.
        convert: Maps official names and shapes to ours.
        advice: Advice for a file of the family that matches none of its members.
    """

    title: str
    mark: str
    heads: tuple[str, ...]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    advice: str = "It matches none of the published networks: pass the options of its training."

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """Name prefixes of the tensors of `heads`."""
        return tuple(f"{head}." for head in self.heads)


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
        "Pass the `features`, `strides` and `n_blocks` of its plan with `--model-arg`.",
    ),
    "swin-umamba": Family(
        "Swin-UMamba",
        r"vssm_encoder\.",
        ("out_layers", "decoder.seg_layers"),
        advice="Give the options that it was trained with, such as `in_channels`. Files of the "
        "first release, without `decoder6`, are of another network and are not read.",
    ),
    "ulvm": Family("UL-VM-UNet", r"scab\.", ("final",)),
    "unet": Family("U-Net", r"upconv\d\.", ("conv",)),
    "segformer": Family("SegFormer", r"encoder\.stages\.0\.overlap_patch", ("head.predict",)),
    "resnet_seg": Family("the ResNet segmenters", r"encoder\.7\.0\.", ("decoder.6",)),
}


def family_of(names: Iterable[str]) -> str | None:
    """The key in FAMILIES of the family with such names; None for a foreign file."""
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
    """The network with the names and shapes of `state` except for the head; None if unknown."""
    family = family_of(state)
    if family is None:
        return None
    shapes = body(shapes_of(FAMILIES[family].convert(state)), family)
    return next((name for name in members(family) if body(layout(name), family) == shapes), None)


def members(family: str) -> list[str]:
    """The names in `family` without aliases."""
    architectures = [a for a in ARCHITECTURES.values() if a.family == family]
    return [a.name for a in architectures if a.name == a.variant]


@cache
def layout(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published network `name`."""
    with shapes_only():
        return shapes_of(ARCHITECTURES[name].build().state_dict())


def body(shapes: Shapes, family: str) -> dict[str, tuple[int, ...]]:
    """`shapes` without those that depend on the number of classes."""
    return _without_heads(shapes, FAMILIES[family].head_prefixes)


def classes_in(shapes: Shapes, family: str) -> int | None:
    """Number of classes of weights with these shapes; None without a head."""
    heads = FAMILIES[family].head_prefixes
    of_heads = {key: shape for key, shape in shapes.items() if key.startswith(heads)}
    biases = [shape[0] for shape in of_heads.values() if len(shape) == 1]
    if not biases:  # a linear layer without bias
        biases = [shape[0] for key, shape in of_heads.items() if key.endswith(".weight")]
    return biases[0] if biases else None
