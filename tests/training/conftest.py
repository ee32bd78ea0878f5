"""Data sets for trainings; they are read-only."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.training import classifier_training, segmenter_training
from tests.training.images import write_pairs, write_photos


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns fourteen discs with masks."""
    return write_pairs(tmp_path_factory.mktemp("discs") / "data", 14)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns twelve photos of each of three colours."""
    return write_photos(tmp_path_factory.mktemp("photos") / "paints", 12)


@pytest.fixture
def unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends trainings without the evaluation of their held-out images, which takes a third of them.

    For tests of weights, records and resuming; other tests of each room read the scores.
    """
    for module in (classifier_training, segmenter_training):
        monkeypatch.setattr(module, "evaluate_test_images", lambda plan, model, out: None)
