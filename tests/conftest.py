"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

# On a loaded machine drawing examples is slow, which says nothing about the code. All else stays as
# it is by default, on a CI server too (fixed examples there, new ones elsewhere).
settings.register_profile(
    "robust", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("robust")


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files of tests need not survive a power failure; waiting for the disk took much time.

    What is synchronised, and in which order, is tested in `core/test_io.py`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which refuses what is no open file as well
        yield


@pytest.fixture(scope="module")
def blank_figures() -> Iterator[None]:
    """Saves a blank picture instead of each figure, for modules that test a report's text.

    Rendering the figures takes most of the time of a report; `reports/test_render.py` and
    `reports/figures` do that.
    """
    figure = pytest.importorskip("matplotlib.figure").Figure

    def savefig(self: Any, path: Path, **settings: Any) -> None:
        if settings["format"] == "pdf":  # Pillow would write the time into it
            path.write_bytes(b"%PDF-1.4\n%%EOF\n")
        else:
            Image.new("RGB", (1200, 100), "white").save(path, settings["format"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "savefig", savefig)
        for name in ("training_figures", "freezing_figures"):  # places are found by drawing
            module = f"robustcli.reports.figures.{name}"
            patch.setattr(f"{module}.place_labels", lambda *_: None)
        yield
