"""Fine-tuning of segmenters: bundled weights and data, and nnU-Net's files in and out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from torch import nn

from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.places import local_path
from robustcli.adapters.seg_builders import SEG_BUILDERS
from robustcli.adapters.start import start_weights, wants_imagenet
from robustcli.core.errors import UsageError
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.defaults import (
    no_weights,
    usual_recipe,
    usual_steps,
    with_defaults,
)
from robustcli.finetuning.kind import Kind
from robustcli.finetuning.nnunet_export import export_nnunet
from robustcli.finetuning.pretrained import Pretrained, fill, heads_of, read_pretrained
from robustcli.finetuning.rules import SHARES, FreezeRule
from robustcli.models.umamba import UMamba
from robustcli.training.config import TrainConfig
from robustcli.training.task import Selection


class Segmenters(Kind):
    """Foreground and background of every pixel; prefixes of U-Mamba save the most in a sweep.

    Nothing before the first trained layer has a way back.
    """

    rules: ClassVar[Sequence[FreezeRule]] = (
        *SHARES[:2],
        FreezeRule(pattern="mamba_layer.*"),
        *SHARES[2:],
        FreezeRule(pattern="encoder.stem.*,encoder.stages.0.*"),
        FreezeRule(pattern="encoder.stem.*,encoder.stages.[01].*"),
        FreezeRule(pattern="encoder.*"),
    )

    def with_defaults(self, config: FinetuneConfig, say: Callable[[str], None]) -> FinetuneConfig:
        """See `Kind.with_defaults`."""
        return with_defaults(config, say)

    def pretrained(self, config: FinetuneConfig, entry: ModelEntry) -> Pretrained | None:
        """See `Kind.pretrained`."""
        arguments = config.training.model_args
        if config.pretrained is not None:
            return read_pretrained(config.pretrained, entry, arguments)
        if SEG_BUILDERS[entry.builder].load is None:
            return None
        if entry.asset is not None:  # also for `scratch` alone: other modes may join it later
            found = read_pretrained(local_path(entry), entry, arguments)
            origin = f"the bundled `{entry.name}`, trained on {entry.pretraining}"
            return replace(found, origin=origin)
        if config.modes == ("scratch",) or wants_imagenet(entry):
            return None
        raise no_weights(entry)

    def heads(self, entry: ModelEntry, network: Callable[[], nn.Module]) -> tuple[str, ...]:
        """See `Kind.heads`: known by the family."""
        return heads_of(entry)

    def fill(
        self, network: nn.Module, given: Pretrained, entry: ModelEntry, heads: tuple[str, ...]
    ) -> None:
        """See `Kind.fill`."""
        fill(network, given, entry, heads)

    def usual_recipe(
        self, training: TrainConfig, entry: ModelEntry, data: str, say: Callable[[str], None]
    ) -> TrainConfig:
        """See `Kind.usual_recipe`."""
        return usual_recipe(training, entry, data, say)

    def usual_steps(self, typed: TrainConfig, training: TrainConfig, data: str) -> int | None:
        """See `Kind.usual_steps`."""
        return usual_steps(typed, training, data)

    def sized(self, training: TrainConfig, entry: ModelEntry) -> TrainConfig:
        """See `Kind.sized`: a U-Mamba-Enc's weights have its patch's size."""
        if entry.family != "umamba":
            return training
        network, _ = start_weights(entry.name, None, True, True, 0, training.model_args)
        assert isinstance(network, UMamba)
        config = network.config
        if not any(config.tokens(stage)[1] for stage in range(len(config.features))):
            return training
        height, width = config.patch
        if height != width or training.window not in (None, height):
            raise UsageError(
                f"`{entry.name}` here takes patches of {height} x {width} pixels only.",
                "Some of its Mamba layers read whole channels as tokens, so its weights have the "
                "size of its plan's patch; training cuts squares of `--window`.",
                f"Leave out `--window`, or use `--window {height}`."
                if height == width
                else "Use weights that were trained with a square patch.",
            )
        return replace(training, window=height)

    def export(self, training: TrainConfig, selection: Selection, out: Path) -> None:
        """See `Kind.export`: a U-Mamba as nnU-Net has it."""
        export_nnunet(training, selection, out)
