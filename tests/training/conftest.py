"""Data sets for trainings; they are read-only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.images import write_pairs, write_photos


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns fourteen discs with masks."""
    return write_pairs(tmp_path_factory.mktemp("discs") / "data", 14)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns twelve photos of each of three colours."""
    return write_photos(tmp_path_factory.mktemp("photos") / "paints", 12)
