"""Data and weights for fine-tunings; they are read-only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustcli.finetuning.config import FinetuneConfig
from tests.finetuning.tunings import tiny_tuning, write_pretrained
from tests.training.conftest import data, photos, unscored

__all__ = ["data", "make_config", "photos", "unscored", "weights"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns weights of a very small U-Mamba."""
    return write_pretrained(tmp_path_factory.mktemp("weights") / "weights.safetensors")


@pytest.fixture
def make_config(data: Path, weights: Path, tmp_path: Path) -> Callable[..., FinetuneConfig]:
    """Returns a function that makes settings; default output is `tmp_path / "run"`."""

    def config(
        out: Path = tmp_path / "run", pretrained: Path | None = weights, data: Path = data,
        **overrides: Any,
    ) -> FinetuneConfig:  # fmt: skip
        return tiny_tuning(data, out, pretrained, **overrides)

    return config
