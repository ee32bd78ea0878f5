"""Training runs to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustcli.adapters.networks import create
from robustcli.adapters.training_run import WeightsHeader, write_weights
from tests.adapters.files import random_state


def header(model: str, **changes: Any) -> WeightsHeader:
    """Of weights that a paper's protocol left, so that nothing in it is a default."""
    preprocessing: dict[str, Any] = {
        "window": 64, "channels": "bgr", "threshold": 0.6224593, "protocol": "paper",
        "trained_on": "ab", "images_sha256": "cd",
    }  # fmt: skip
    return WeightsHeader(model=model, **(preprocessing | changes))


def trained(folder: Path, model: str, **arguments: Any) -> Path:
    """`folder`, as the training of `model` built with `arguments` leaves it."""
    state = random_state(create(model, arguments))
    write_weights(folder / "weights.safetensors", state, header(model, arguments=arguments))
    return folder
