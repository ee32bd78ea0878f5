"""Fixtures of several files of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.evaluation.photos import make_photos


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Uses one thread, as workers do, because the number of threads changes the rounding."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns 28 images: three blocks of eight and one of four."""
    return make_photos(tmp_path_factory.mktemp("photos") / "few", per_class=7)
