"""Drop rates of residual branches."""

import numpy as np
import pytest

from robustcli.models.stochastic_depth import rising_rates


@pytest.mark.parametrize("depths", [(2, 2, 5, 2), (24,), (1, 1)])
def test_rises_evenly_over_all_stages(depths):
    rates = rising_rates(0.3, depths)
    assert [len(stage) for stage in rates] == list(depths)
    expected = np.linspace(0, 0.3, sum(depths))
    assert np.allclose([rate for stage in rates for rate in stage], expected)


def test_a_single_block_is_never_dropped():
    assert rising_rates(0.3, (1,)) == [[0.0]]
