"""Which U-Mamba a checkpoint of nnU-Net is of."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from robustcli.core.errors import UsageError

TRAINERS = {"umamba": "nnUNetTrainerUMambaBot", "umamba-enc": "nnUNetTrainerUMambaEnc"}
"""Model to the trainer whose files it reads; variants as `...EncNoAMP` begin with it."""
_MARKS = {"umamba": "mamba_layer.", "umamba-enc": "encoder.mamba_layers."}


def recognised(file: Path, names: Collection[str], trainer: str) -> str:
    """The model by the names of its tensors: `umamba` or `umamba-enc`.

    Args:
        file: The checkpoint, for messages.
        names: Of its tensors, under our names.
        trainer: The class that trained it; empty where the file does not say.

    Raises:
        UsageError: It is neither, or the trainer is the other one's.
    """
    by_keys = [
        model for model, mark in _MARKS.items() if any(key.startswith(mark) for key in names)
    ]
    if len(by_keys) != 1:
        raise UsageError(
            f"`{file}` holds no U-Mamba.",
            f"Its trainer is `{trainer or 'not named'}`, and it has no Mamba layer in the "
            "bottleneck or in the encoder.",
            f"Expected a checkpoint of {' or '.join(TRAINERS.values())}.",
        )
    named = [model for model, name in TRAINERS.items() if trainer.startswith(name)]
    if named and named != by_keys:
        raise UsageError(
            f"`{file}` contradicts itself.",
            f"Its trainer is `{trainer}`, but its weights are those of `{by_keys[0]}`.",
            "The file was changed after training; use the original.",
        )
    return by_keys[0]
