"""What is known of a model by its name, before anything is built or downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

IN1K = "ImageNet-1K only"
FOREGROUND = "foreground"
"""The label space of segmenters, which tell foreground from background."""


@dataclass(frozen=True)
class ModelEntry:
    """One name, and what is known of it.

    Args:
        name: As users type it.
        family: Of networks.
        builder: How it is made: a row of `builders.BUILDERS` or of `seg_builders.SEG_BUILDERS`.
        variant: The builder's own name for it.
        parameters: How many the network has; 0 where that is known only when it is built.
        published: A classifier's top-1 on ImageNet-1K's validation set at 224 pixels, in percent,
            as its authors or timm state it. A segmenter's Dice as its paper prints it, in [0, 1].
        pretraining: What the published weights saw.
        licence: Of the published weights; where there are none, of the code that it follows.
        source: Where it comes from.
        label_space: What its answers mean.
        weights_url: Of the official weights.
        asset: A bundled file.
        alias: Whether it is only another name of another entry.
        unchecked: What is not certain of the address of the weights.
        task: `cls` classifies images, `seg` separates foreground from background.
        published_iou: A segmenter's intersection over union, in [0, 1], where it is known.
        remark: What is to be known of the published numbers.
    """

    name: str
    family: str
    builder: Literal["vmamba", "vim", "timm", "zoo", "smp", "otsu"]
    variant: str
    parameters: int
    published: float | None
    pretraining: str
    licence: str
    source: str
    label_space: str = "imagenet-1k"
    weights_url: str | None = None
    asset: str | None = None
    alias: bool = False
    unchecked: str = ""
    task: Literal["cls", "seg"] = "cls"
    published_iou: float | None = None
    remark: str = ""

    @property
    def weights_file(self) -> str | None:
        """The file name of the official weights."""
        return None if self.weights_url is None else self.weights_url.rsplit("/", 1)[1]

    @property
    def network(self) -> str:
        """The name of the network itself, whichever training run the entry is of."""
        return f"smp:{self.variant}" if self.builder == "smp" else self.variant
