"""What timm expects of a classifier beside its forward pass, the same for every family here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from timm.layers import trunc_normal_
from timm.models import adapt_input_conv
from torch import Tensor, nn

from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.families import FAMILIES, classes_in, recognise
from robustcli.adapters.loading import load_strictly, shapes_of
from robustcli.core.errors import UsageError
from robustcli.models.architectures import ARCHITECTURES


class TimmContract(nn.Module):
    """Head, input channels, weights and weight decay; to be mixed into a network.

    Names and shapes in the state dict stay the network's own.
    """

    family: ClassVar[str]
    first_conv: ClassVar[str]
    pools: ClassVar[tuple[str, ...]]
    num_classes: int
    num_features: int

    def adopt(self, in_chans: int, global_pool: str, drop_rate: float) -> None:
        """Sets what timm may ask of any model: input channels, pooling and dropout of the head."""
        self.in_chans, self.drop_rate = in_chans, drop_rate
        self.head_hidden_size = self.num_features
        self._set_pool(global_pool)
        conv = self.get_submodule(self.first_conv)
        assert isinstance(conv, nn.Conv2d)
        if conv.in_channels != in_chans:
            shape = (conv.out_channels, in_chans, *conv.kernel_size)
            conv.in_channels, conv.weight = in_chans, nn.Parameter(conv.weight.new_empty(shape))
            conv.reset_parameters()

    @property
    def classifier_name(self) -> str:
        """Where the linear layer of the head is."""
        return FAMILIES[self.family].heads[0]

    def get_classifier(self) -> nn.Module:
        """The linear layer of the head; an identity while there are no classes."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the linear layer by a fresh one, or by an identity for 0 classes.

        Args:
            num_classes: Classes of the new head.
            global_pool: One of `pools`; None keeps it, "" returns what is not pooled.

        Raises:
            UsageError: There is no such pooling.
        """
        if global_pool is not None:
            self._set_pool(global_pool)
        self.num_classes = num_classes
        head: nn.Module = nn.Identity()
        if num_classes > 0:
            head = nn.Linear(self.num_features, num_classes)
            trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            like = next(self.parameters())
            head.to(like.device, like.dtype)
        self.set_submodule(self.classifier_name, head)

    def no_weight_decay(self) -> set[str]:
        """The parameters that the family's own training code does not decay."""
        decays = next(a for a in ARCHITECTURES.values() if a.family == self.family).decays()
        return {name for name, parameter in self.named_parameters() if not decays(name, parameter)}

    def load_pretrained(self, checkpoint_path: str | Path, prefix: str = "") -> None:
        """Loads an official file, as timm's `pretrained=True` asks for it.

        As everywhere in timm, a head for another number of classes stays as initialised, and the
        first convolution is adapted to another number of input channels; all else is strict.

        Raises:
            UsageError: The file does not hold this network's weights.
        """
        path = Path(checkpoint_path)
        state = {key.removeprefix(prefix): tensor for key, tensor in read_weights(path).items()}
        really = recognise(state)
        advice = f"These are the weights of `{really}`: use that one." if really else None
        fitted = self.fitted(FAMILIES[self.family].convert(state))
        load_strictly(self, fitted, model=type(self).__name__, origin=str(path), advice=advice)

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """`state` with its first convolution and head made to fit, the latter from this network."""
        conv = f"{self.first_conv}.weight"
        if conv in state and state[conv].shape[1] != self.in_chans:
            state = {**state, conv: adapt_input_conv(self.in_chans, state[conv])}
        if classes_in(shapes_of(state), self.family) == self.num_classes:
            return state
        head = f"{self.classifier_name}."
        kept = {key: tensor for key, tensor in state.items() if not key.startswith(head)}
        own = {key: t for key, t in self.state_dict().items() if key.startswith(head)}
        return kept | own

    def _set_pool(self, global_pool: str) -> None:
        if global_pool not in ("", *self.pools):
            raise UsageError(
                f"`global_pool={global_pool}` is unknown.",
                f"This network pools by {' or '.join(f'`{pool}`' for pool in self.pools)}.",
                'Give one of these, or "" for no pooling.',
            )
        self.global_pool = global_pool


def chosen(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """The numbers that `indices` mean among `count` features, as everywhere in timm.

    Args:
        count: Features that there are.
        indices: Numbers, negative ones from the end; the last so many if an int; all if None.

    Raises:
        UsageError: There is no such feature.
    """
    if indices is None:
        return list(range(count))
    wanted = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
    if not wanted or not all(-count <= index < count for index in wanted):
        raise UsageError(
            f"`out_indices={indices}` names features that this network has not.",
            f"It has {count}, numbered from 0; a number alone means the last so many.",
        )
    return [index % count for index in wanted]


def weights_filter(state: dict[str, Tensor], network: TimmContract) -> dict[str, Tensor]:
    """`state`, read by timm from an official file, under the names of `network`."""
    return FAMILIES[network.family].convert(state)
