"""ResNet encoders with a plain decoder, as the tumour paper segments with them; logits out.

Source: He et al., "Deep Residual Learning" (arXiv 1512.03385), in torchvision's form, and the
decoder of "Mamba-Based Tumor Segmentation" (Crews and Whalen, 2024; `mamba-tumor-seg`): four
transposed convolutions and no skip connections; written anew from the published facts, with its
parameter names. As there, the output always has `output` pixels a side, whatever the input's size.
Deviation: an input whose size is no multiple of 32 is refused; upstream answers for the enlarged
image that its halvings, which round up, amount to.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torchvision
from torch import Tensor, nn

from robustcli.models.model_options import changed, check_multiple


@dataclass(frozen=True)
class ResNetSegConfig:
    """The ResNet's number of layers, the decoder's channels and the output's side in pixels."""

    depth: int = 18
    decoder: tuple[int, ...] = (512, 256, 128, 64)
    output: int = 256
    num_classes: int = 1


class ResNetSeg(nn.Module):
    """The segmenter: images (B, 3, H, W) to logits (B, classes, 256, 256)."""

    def __init__(self, config: ResNetSegConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        whole = getattr(torchvision.models, f"resnet{config.depth}")(weights=None)
        self.encoder = nn.Sequential(*list(whole.children())[:-2])  # without pooling and classifier
        layers: list[nn.Module] = []
        for pair in pairwise((*config.decoder, config.num_classes)):
            layers += [nn.ConvTranspose2d(*pair, 4, 2, 1), nn.ReLU(inplace=True)]
        size = (config.output, config.output)
        self.decoder = nn.Sequential(*layers[:-1], nn.Upsample(size, mode="bilinear"))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes, output, output).

        Raises:
            UsageError: Height or width is no multiple of 32.
        """
        check_multiple(x, (32, 32), model=f"resnet{self.config.depth}_seg")
        logits: Tensor = self.decoder(self.encoder(x))
        return logits


VARIANTS: dict[str, ResNetSegConfig] = {
    "resnet18_seg": ResNetSegConfig(),
    "resnet50_seg": ResNetSegConfig(depth=50, decoder=(2048, 512, 256, 128)),
}


def build(variant: str, **changes: object) -> ResNetSeg:
    """The network `variant` of VARIANTS, freshly initialised, with `changes` to its config.

    Raises:
        UsageError: An option is unknown.
    """
    return ResNetSeg(changed(VARIANTS[variant], changes, model=variant))
