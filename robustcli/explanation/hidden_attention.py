"""Hidden attention: the scan of a state-space model as attention matrices, rolled out over layers.

Source: Ali et al., "The hidden attention of Mamba models" (arXiv 2403.01590); rollout by Abnar and
Zuidema, "Quantifying attention flow in transformers" (ACL 2020).

The scan of channel d is a matrix product y = alpha x + D x, where output i depends on input j <= i:

    alpha_ij = C_i (prod_{k=j+1..i} exp(dt_k A)) dt_j B_j,

summed over the states. The attention of a layer is the mean of |alpha| over channels, summed over
the scan directions, each reordered from its scan order to positions of the image (of Vim: to
tokens). Rows are scaled to a sum of 1; the layer with its residual connection is (I + alpha) / 2,
and the rollout is the product over all layers. The map shows the attention of the class token
(Vim), or of the mean over the last feature map (VMamba). Downsampling between stages is treated as
average pooling. The map is the same for every class.

`class_attention` is the class-specific variant of the paper. It weights the row of position i with
s_i, the gradient of the score with respect to the scan output of the layer at i (positive part,
mean over channels, scaled to a maximum of 1), before it adds the residual connection:
(I + diag(s) alpha) / (1 + s).

Deviations from the paper's code: the paper averages signed values over channels and divides
I + alpha by its row sums. If B and C have one state for all channels, as in VMamba, these sums pass
through zero: in `vmamba-pico`, entries of the rollout exceed 10,000. Absolute values are stable.
With several states, the absolute value of each state is used, which gives an upper bound of
|alpha|. Operations other than the scan that mix positions (depthwise convolutions) are ignored, as
in the paper.

Cost: no matrix is stored. The product of a row vector and a layer's attention is the backward pass
of a scan with |B| and |C| over a constant input, and the row sums are its forward pass. A layer
costs one forward and one backward scan, with the memory of its step sizes. Supported networks:
VMamba and Vim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustcli.core.errors import UsageError
from robustcli.explanation.network import Attribution, ExplainedNetwork, batched
from robustcli.models.ablation import has_scan
from robustcli.models.scan import selective_scan, ss2d_scan
from robustcli.models.vim import Vim
from robustcli.models.vmamba import VMamba


def hidden_attention(
    explained: ExplainedNetwork,
    pixels: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    seeds: Sequence[int] = (),
) -> Attribution:
    """The rollout (N, H, W), upsampled bilinearly to pixels; it is the same for each target.

    Raises:
        UsageError: The network is neither a VMamba nor a Vim, or its scan was removed (ablated).
    """
    parts = batched(len(pixels), batch_size)
    return Attribution(torch.cat([_map(explained, pixels[part]) for part in parts]))


def class_attention(
    explained: ExplainedNetwork,
    pixels: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    seeds: Sequence[int] = (),
) -> Attribution:
    """The class-specific rollout (N, H, W) for `targets`, upsampled bilinearly to pixels.

    Raises:
        UsageError: The network is neither a VMamba nor a Vim.
    """
    parts = batched(len(pixels), batch_size)
    maps = [_map(explained, pixels[part], targets[part]) for part in parts]
    return Attribution(torch.cat(maps))


# --- The scans of a network -----------------------------------------------------------------------


@dataclass(frozen=True)
class HiddenScan:
    """The inputs of the scan of one layer, in image layout, from which attention is computed.

    Shapes: N images, K directions, D channels, S states, height H and width W of the feature map. A
    sequence is a map with one row.

    Args:
        delta: Step sizes before bias and softplus, (N, K, D, H, W).
        A: State decay (K*D, S).
        B: Input matrix (N, K, S, H, W).
        C: Output matrix (N, K, S, H, W).
        bias: Bias of delta, (K*D), or None.
        softplus: Whether softplus is applied to delta.
        directions: Name of the scan order of each of the K directions, as in `ss2d_scan`.
        weights: Weights of the rows from the gradient of the score, (N, H, W); None without a
            score.
    """

    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    bias: Tensor | None
    softplus: bool
    directions: tuple[str, ...]
    weights: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the feature map."""
        return self.delta.shape[3], self.delta.shape[4]

    def attended(self, values: Tensor) -> Tensor:
        """Attention of absolute values times `values` (N, H, W); differentiable in `values`."""
        D = self.delta.shape[2]
        x = values[:, None].expand(-1, D, -1, -1)
        y = ss2d_scan(
            x, self.delta, self.A, self.B.abs(), self.C.abs(), None, self.bias, self.softplus,
            directions=self.directions,
        )  # fmt: skip
        return y.mean(1)


def recorded_scans(
    explained: ExplainedNetwork, pixels: Tensor, targets: Tensor | None = None
) -> list[HiddenScan]:
    """The scans of all layers of the network for `pixels`, in the order of the layers.

    Args:
        explained: The network.
        pixels: Normalised images (N, C, H, W).
        targets: Targets of the score whose gradient sets the row weights; None for no weights.
    """
    recording = _Recording()
    pixels = pixels.detach().requires_grad_(targets is not None)
    with torch.set_grad_enabled(targets is not None):
        with recording:
            scores = (
                explained.logits(pixels) if targets is None else explained.score(pixels, targets)
            )
        if targets is None:
            return recording.scans
        gradients = torch.autograd.grad(scores.sum(), recording.outputs)
    return [
        replace(scan, weights=_row_weights(scan, gradient))
        for scan, gradient in zip(recording.scans, gradients, strict=True)
    ]


def _row_weights(scan: HiddenScan, gradient: Tensor) -> Tensor:
    """Row weights (N, H, W) from the gradient of the scan output: (N, D, H, W) or (N, K*D, L)."""
    if gradient.ndim == 3:
        gradient = _by_place(gradient.unflatten(1, (len(scan.directions), -1))).flatten(1, 2)
    positive = gradient.relu().mean(1)  # (N, H, W)
    largest = positive.flatten(1).amax(1)[:, None, None]
    return positive / largest.clamp(min=torch.finfo(positive.dtype).tiny)


class _Recording(TorchFunctionMode):
    """Records the arguments and output of every scan while active, without changing results."""

    def __init__(self) -> None:
        super().__init__()
        self.scans: list[HiddenScan] = []
        self.outputs: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls `func`, and records the call if it is a scan."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is ss2d_scan:
            _, delta, A, B, C, _, bias, softplus = args
            directions = kwargs["directions"]
        elif func is selective_scan:
            _, delta, A, B, C, _, _, bias, softplus, _ = args
            B, C = (t if t.ndim == 4 else t[:, None] for t in (B, C))
            directions = _SEQUENCE[: B.shape[1]]
            delta = delta.unflatten(1, (len(directions), -1))
            delta, B, C = (_by_place(t) for t in (delta, B, C))
        else:
            return output
        delta, A, B, C = (t.detach() for t in (delta, A, B, C))
        bias = None if bias is None else bias.detach()
        self.scans.append(HiddenScan(delta, A, B, C, bias, softplus, directions))
        self.outputs.append(output)
        return output


_SEQUENCE = ("row", "row-reversed")  # Mamba has one direction, the mixer of Vim both


def _by_place(values: Tensor) -> Tensor:
    """`values` (N, K, X, L) of a sequence as (N, K, X, 1, L); flips back the second direction."""
    ahead, *back = values.unbind(1)
    return torch.stack([ahead, *(t.flip(-1) for t in back)], 1).unsqueeze(-2)


# --- The rollout ----------------------------------------------------------------------------------


def _map(explained: ExplainedNetwork, pixels: Tensor, targets: Tensor | None = None) -> Tensor:
    """The rollout (N, H, W) of one batch; class-specific if `targets` is given."""
    network = explained.module
    if not isinstance(network, VMamba | Vim) or not has_scan(network):
        raise UsageError(
            f"Hidden attention cannot be used with this network (`{explained.family}`).",
            "It follows the scans of VMamba and Vim from the first to the last layer.",
            "Use `--method relevance`, `--method integrated-gradients` or `--method occlusion`.",
        )
    scans = recorded_scans(explained, pixels, targets)
    last = scans[-1].size
    tokens = isinstance(network, Vim)
    received = pixels.new_full((len(pixels), *last), 1 / math.prod(last))
    if tokens and getattr(network, "global_pool", "token") == "token":
        received = F.one_hot(torch.tensor(network.middle), last[1]).to(received).expand_as(received)
    received = rollout(scans, received)  # (N, h, w)
    if isinstance(network, Vim):
        flat = received.flatten(1)
        flat = torch.cat((flat[:, : network.middle], flat[:, network.middle + 1 :]), 1)
        received = flat.unflatten(1, network.config.grid)
    size = (pixels.shape[-2], pixels.shape[-1])
    return F.interpolate(received[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def rollout(scans: Sequence[HiddenScan], received: Tensor) -> Tensor:
    """The attention that each position of the first feature map receives, (N, h, w).

    Args:
        scans: Scans of all layers, in the order of the layers.
        received: Attention that each position of the last feature map receives, (N, H, W). Its sum
            is preserved.
    """
    for scan in reversed(scans):
        if received.shape[1:] != scan.size:
            received = _before_pooling(received, scan.size)
        received = _through(scan, received)
    return received


def _through(scan: HiddenScan, received: Tensor) -> Tensor:
    """Propagates received attention (N, H, W) from the output of a layer to its input."""
    ones = torch.ones_like(received).requires_grad_(True)
    with torch.enable_grad():
        sums = scan.attended(ones)
        weights = torch.ones_like(received) if scan.weights is None else scan.weights
        skip = received / (1 + weights)
        tiny = torch.finfo(sums.dtype).tiny
        (moved,) = torch.autograd.grad(sums, ones, skip * weights / sums.detach().clamp(min=tiny))
    return skip + moved


def _before_pooling(received: Tensor, size: tuple[int, int]) -> Tensor:
    """Propagates received attention (N, h, w) through average pooling of a map of `size`."""
    _, h, w = received.shape
    larger = received.new_zeros(len(received), *size, requires_grad=True)
    with torch.enable_grad():
        pooled = F.adaptive_avg_pool2d(larger[:, None], (h, w))[:, 0]
        (spread,) = torch.autograd.grad(pooled, larger, received)
    return spread
