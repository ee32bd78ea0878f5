"""Weights of an image classifier in the encoder of a segmenter."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from robustcli.adapters.loading import load_strictly
from robustcli.models.resnet_seg import ResNetSeg

# The children of torchvision's ResNet by their place in the encoder; relu and maxpool hold nothing.
_RESNET = {
    "conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"
}  # fmt: skip
_HEADS = ("fc.", "classifier.", "head.", "last_linear.")
_COUNTER = ".num_batches_tracked"


def is_encoder_file(state: Mapping[str, Tensor]) -> bool:
    """Whether `state` is a classifier's rather than a segmenter's, whose encoder has a prefix."""
    return not any(key.startswith("encoder.") for key in state)


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
    body = {key: tensor for key, tensor in state.items() if not key.startswith(_HEADS)}
    if isinstance(network, ResNetSeg):
        body = {_name(key): tensor for key, tensor in body.items()}
    # Files older than torch 0.4.1 do not count batches; nothing here reads the counters.
    counters = {k: t for k, t in encoder.state_dict().items() if k.endswith(_COUNTER)}
    advice = "Name weights of the encoder's own architecture, as timm or torchvision has them."
    load_strictly(encoder, counters | body, model="the encoder", origin=origin, advice=advice)


def _name(key: str) -> str:
    child, _, rest = key.partition(".")
    return f"{_RESNET.get(child, child)}.{rest}"
