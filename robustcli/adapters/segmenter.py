"""A segmenter ready to measure: uint8 images of any size in, foreground probabilities out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.adapters.classifier import AUTOCAST, Facts, Precision
from robustcli.adapters.first_pass import Tried, check_finite, first_pass, made_up
from robustcli.adapters.foreground import is_probability, raw_output
from robustcli.adapters.mask_preprocessing import MaskPreprocessing
from robustcli.adapters.nnunet_mirror import Mirrored
from robustcli.adapters.nnunet_windows import covered_evenly
from robustcli.adapters.preprocessing import grey
from robustcli.adapters.weights_header import WeightsHeader
from robustcli.adapters.windows import Padded, covered, padded

Pixels = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
_TRIED = 64  # pixels, of a network that takes every size
WINDOWS = 4
"""How many windows of a large image are computed at once, at least."""


class Segmenter:
    """A network on its device, with its preprocessing and precision.

    Args:
        network: In eval mode.
        preprocessing: How images become its input.
        facts: For the record.
        header: Of its weights file, where that has one.
    """

    def __init__(
        self, network: nn.Module, preprocessing: MaskPreprocessing, facts: Facts,
        header: WeightsHeader | None = None,
    ) -> None:  # fmt: skip
        self.network, self.preprocessing, self.facts = network, preprocessing, facts
        self.header = header
        self.notes: tuple[str, ...] = ()
        self.device, self.precision = torch.device("cpu"), "fp32"
        self._probability = is_probability(network)
        self._nnunet = preprocessing.nnunet
        axes = () if self._nnunet is None else self._nnunet.mirror_axes
        self._scores = Mirrored(network, axes) if axes else network

    def to(self, device: torch.device, precision: Precision) -> Segmenter:
        """This segmenter, moved."""
        self.network.to(device)
        self.device, self.precision = device, precision
        return self

    def try_out(self) -> None:
        """Puts one made-up image through the network.

        Raises:
            UsageError: It cannot take images of its window, or does not answer as a segmenter; the
                message says what it wants.
        """
        facts, channels = self.facts, 1 if self.preprocessing.channels == "grey" else 3
        side = self.preprocessing.window or _TRIED
        shape = (channels, side, side)
        tried = Tried(
            facts.name, facts.builder, facts.arguments, shape, size_flag="",
            precision=self.precision,
        )  # fmt: skip
        found = first_pass(lambda: self._raw(made_up(shape).to(self.device), self.network), tried)
        check_finite(found, tried)

    def masks(self, images: Sequence[Pixels]) -> list[NDArray[np.bool_]]:
        """Of each image (H, W, 3), which pixels (H, W) are foreground."""
        threshold = self.preprocessing.threshold
        return [found >= threshold for found in self.probabilities(images)]

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Pixels]) -> list[Probabilities]:
        """Of each image (H, W, 3), RGB, the probability (H, W) that a pixel is foreground.

        Images that are alike in size, or smaller than the window, go through the network together.
        """
        prepared = [self._prepared(image) for image in images]
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, one in enumerate(prepared):
            alike[one.image.shape].append(place)
        found: dict[int, Probabilities] = {}
        for places in alike.values():
            batch = np.stack([prepared[place].image for place in places])
            found |= zip(places, self._answers(torch.from_numpy(batch)), strict=True)
        return [
            _cut(found[place], image.shape[:2], (one.top, one.left))
            for place, (image, one) in enumerate(zip(images, prepared, strict=True))
        ]

    def _prepared(self, image: Pixels) -> Padded:
        window = self.preprocessing.window
        if self.preprocessing.channels == "grey":
            image = grey(image)
        if self._nnunet is None:
            return padded(image, window)
        return padded(self._nnunet.normalised(image), window, by="constant")

    def _answers(self, batch: Tensor) -> list[Probabilities]:
        """For images (n, H, W, 3) of one size; large ones one after the other, to bound memory."""
        images, window = batch.permute(0, 3, 1, 2), self.preprocessing.window
        if window == 0 or tuple(images.shape[2:]) == (window, window):
            return list(self._probabilities(images.to(self.device))[:, 0].cpu().numpy())
        overlap, at_once = self.preprocessing.overlap, max(WINDOWS, len(images))
        cover = covered if self._nnunet is None else covered_evenly
        answers = (
            cover(
                image[None].float(), window, self._averaged, overlap=overlap, batch=at_once,
                device=self.device,
            )
            for image in images
        )  # fmt: skip
        if self._nnunet is None:
            return [answer[0, 0].numpy() for answer in answers]
        return [self._as_probability(answer)[0, 0].numpy() for answer in answers]

    def _averaged(self, pixels: Tensor) -> Tensor:
        """What is averaged where windows overlap: nnU-Net takes scores, others probabilities."""
        return self._raw(pixels) if self._nnunet else self._probabilities(pixels)

    def _probabilities(self, pixels: Tensor) -> Tensor:
        return self._as_probability(self._raw(pixels))

    def _as_probability(self, scores: Tensor) -> Tensor:
        return scores if self._probability else scores.sigmoid()

    def _raw(self, pixels: Tensor, network: nn.Module | None = None) -> Tensor:
        """The network's own scores, float32 (n, 1, H, W), on its device.

        Args:
            pixels: (n, C, H, W), values from 0 to 255, or normalised as nnU-Net does.
            network: Which to ask; None for the one that predicts, perhaps of mirrored images.
        """
        images = pixels.float() if self._nnunet else pixels.float() / 255
        if self.preprocessing.channels == "bgr":
            images = images.flip(1)
        autocast = AUTOCAST.get(self.precision)
        with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            return raw_output(network or self._scores, images).float()


def _cut(found: Probabilities, size: tuple[int, ...], corner: tuple[int, int]) -> Probabilities:
    (height, width), (top, left) = size, corner
    return np.ascontiguousarray(found[top : top + height, left : left + width])
