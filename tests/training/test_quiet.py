"""Lightning is silent, and only Lightning."""

from __future__ import annotations

import logging
import warnings

import pytest

from robustcli.training.quiet import without_chatter


def test_notes_are_silenced_inside_and_back_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    with without_chatter():
        logging.getLogger("lightning.pytorch.utilities.rank_zero").info("GPU available: no")
        logger.error("this matters")
    assert [record.message for record in caplog.records] == ["this matters"]
    assert logger.level == before


def test_known_warnings_pass_and_others_do_not() -> None:
    with without_chatter():
        warnings.warn("The 'x' does not have many workers which may be a bottleneck.", stacklevel=1)
        with pytest.raises(UserWarning, match="something else"):
            warnings.warn("something else", stacklevel=1)
