"""What a network says in training: one output, or with deep supervision one per resolution."""

from __future__ import annotations

from torch import Tensor, nn

from robustcli.adapters.foreground import at_size, foreground_logits


def outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits or probabilities of the foreground (B, 1, H, W), the first at the size of `images`.

    Further ones, where there are any, are at the sizes that the network gives them.
    """
    said = network(images)
    levels = [said] if isinstance(said, Tensor) else list(said)
    height, width = images.shape[-2:]
    return [at_size(levels[0], (height, width)), *map(foreground_logits, levels[1:])]
