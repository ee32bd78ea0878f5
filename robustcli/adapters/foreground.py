"""One foreground score per pixel of the input, whatever a segmenter's network returns.

Networks here return logits or probabilities, of one class or several, of the input's size or not,
alone or as the first of a list. Training and prediction both read them through this file.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.adapters.otsu import Otsu
from robustcli.core.errors import UsageError
from robustcli.models.resnet_seg import ResNetSeg
from robustcli.models.segformer import SegFormer
from robustcli.models.ulvm import ULVMUNet
from robustcli.models.umamba import UMamba
from robustcli.models.vmunet import VMUNet

Output = Tensor | list[Tensor] | tuple[Tensor, ...]


def is_probability(network: nn.Module) -> bool:
    """Whether the network's outputs are probabilities; else they are logits.

    Raises:
        UsageError: They are probabilities of several classes, which do not exclude each other.
    """
    if isinstance(network, ULVMUNet) and network.num_classes > 1:
        raise UsageError(
            f"The network has {network.num_classes} outputs.",
            "Its outputs are independent probabilities: none of them is the foreground.",
            "Build it with `num_classes=1`.",
        )
    one = isinstance(network, VMUNet) and network.num_classes == 1  # of several: logits
    return one or isinstance(network, (ULVMUNet, Otsu))


def raw_output(network: nn.Module, x: Tensor) -> Tensor:
    """The network's foreground scores (n, 1, H, W) for the images `x` (n, 3, H, W).

    They are probabilities or logits, see `is_probability`.
    """
    return at_size(first(network(x)), (x.shape[-2], x.shape[-1]))


def first(output: Output) -> Tensor:
    """Of a list, as deep supervision gives it, the output of highest resolution."""
    return output if isinstance(output, Tensor) else output[0]


def at_size(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The foreground scores (n, 1, *size) of class scores (n, C, h, w).

    Enlarged or shrunk bilinearly with align_corners off, as the tumour paper did outside of
    SegFormer, whose logits have a quarter of the input's size.
    """
    scores = foreground_logits(scores)
    if tuple(scores.shape[2:]) == size:
        return scores
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


def foreground_logits(scores: Tensor) -> Tensor:
    """(n, C, h, w) to (n, 1, h, w): of several classes, all but the first are foreground.

    The sigmoid of the result is the softmax's sum over these classes.
    """
    if scores.shape[1] == 1:
        return scores
    return torch.logsumexp(scores[:, 1:], 1, keepdim=True) - scores[:, :1]


def native_window(network: nn.Module) -> int:
    """The side in pixels of what the network was published for, where nothing else is said."""
    if isinstance(network, UMamba):
        return min(network.config.patch)
    if isinstance(network, ResNetSeg):
        return network.config.output
    return 224 if isinstance(network, SegFormer) else 256
