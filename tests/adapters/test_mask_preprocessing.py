"""What of a segmenter's preprocessing can be said, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from robustcli.adapters.mask_preprocessing import MaskPreprocessing
from robustcli.core.errors import UsageError


def test_defaults_and_changes() -> None:
    own = MaskPreprocessing(256)
    assert (own.channels, own.threshold, own.overlap) == ("rgb", 0.5, 0.5)
    changed = own.changed({"window": 64, "channels": "bgr", "threshold": 0.6})
    assert changed == MaskPreprocessing(64, "bgr", 0.6)
    assert own.changed({}) == own


def test_every_segmenter_sees_the_same_pixels() -> None:
    assert MaskPreprocessing(256).view == MaskPreprocessing(64, "bgr", 0.2, 0).view == "as-is"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": -1}, "`window=-1` is no number of pixels"),
        ({"window": 2.5}, r"`window=2\.5` is no number of pixels"),
        ({"window": True}, "`window=True` is no number of pixels"),
        ({"channels": "grb"}, r"`channels=grb` is unknown\.\nIt is `rgb`, `bgr` or `grey`"),
        ({"threshold": 1.2}, r"`threshold=1\.2` is no probability"),
        ({"threshold": float("nan")}, "`threshold=nan` is no probability"),
        ({"overlap": 1}, r"`overlap=1` is out of range\.\nIt is at least 0 and below 1"),
        ({"overlap": -0.1}, r"`overlap=-0\.1` is out of range"),
        ({"resize": 256}, r"has no `resize`\.\nIt has `window`, .*images keep their size"),
        ({"mean": (0.5,) * 3}, "has no `mean`"),
    ],
)
def test_what_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        MaskPreprocessing(256).changed(change)
