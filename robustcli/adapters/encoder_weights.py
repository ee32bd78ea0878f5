"""Weights of an image classifier in the encoder of a segmenter."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from robustcli.adapters.loading import choose, load_strictly, shapes_of
from robustcli.models.resnet_seg import ResNetSeg

# The children of torchvision's ResNet by their place in the encoder; relu and maxpool hold nothing.
_RESNET = {
    "conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"
}  # fmt: skip
_HEADS = ("fc.", "classifier.", "head.", "last_linear.")


def is_encoder_file(state: Mapping[str, Tensor]) -> bool:
    """Whether `state` is a classifier's rather than a segmenter's, which has more than an encoder.

    All tensors of an encoder may have a common prefix, `encoder.` too.
    """
    within = [key.startswith("encoder.") for key in state]
    return all(within) or not any(within)


def load_encoder(network: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Copies a classifier's weights into `network.encoder`; the classifier's head is left out.

    Args:
        network: A ResNet segmenter, or one whose encoder has the names of the classifier.
        state: Of timm's or torchvision's ResNet, or of the encoder itself.
        origin: Where the weights come from, for the message.

    Raises:
        UsageError: They are of another encoder.
    """
    encoder = network.get_submodule("encoder")

    def convert(named: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        body = {key: tensor for key, tensor in named.items() if not key.startswith(_HEADS)}
        ours = isinstance(network, ResNetSeg)
        return {_name(key): tensor for key, tensor in body.items()} if ours else body

    choice = choose(state, shapes_of(encoder.state_dict()), convert=convert, whole=True)
    advice = "Name weights of the encoder's own architecture, as timm or torchvision has them."
    load_strictly(encoder, choice.state, model="the encoder", origin=origin, advice=advice)
    choice.announce(origin)


def _name(key: str) -> str:
    child, _, rest = key.partition(".")
    return f"{_RESNET.get(child, child)}.{rest}"
