"""The attention bridge against the papers' code."""

import pytest

from robustcli.models.skip_bridge import SkipBridge
from tests.models import golden


@pytest.mark.parametrize(
    ("name", "widths"),
    [("scbridge5_A", (8, 16, 24, 32, 48)), ("scbridge4_B5", (16, 32, 64, 128))],
)
def test_agrees_with_the_papers_code(name, widths):
    maps = [golden.images(2, c, 32 >> i, 32 >> i, seed=i) for i, c in enumerate(widths)]
    assert golden.block_error(name, SkipBridge(widths), *maps) < 1e-5
