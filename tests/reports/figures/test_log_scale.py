import numpy as np
import pytest
from matplotlib.figure import Figure

from robustcli.reports.figures.log_scale import MOST_TICKS, LogScale, log_scale


def test_zeros_stand_a_decade_below_everything_else() -> None:
    scale = log_scale(np.array([3e-7, 0.0, 2e-3, np.nan]), [1e-6])
    assert scale == LogScale(pytest.approx(1e-8), pytest.approx(4e-3), True)  # type: ignore[arg-type]
    placed = scale.place(np.array([0.0, 3e-7, np.nan]))
    np.testing.assert_allclose(placed, [1e-8, 3e-7, np.nan])


def test_marks_are_inside_the_axis() -> None:
    scale = log_scale(np.array([2e-3, 5e-3]), [1e-6, 0.0])
    assert scale.floor <= 1e-6
    assert not scale.zeros


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [np.nan]])
def test_there_is_an_axis_where_nothing_is_above_zero(values: list[float]) -> None:
    scale = log_scale(np.array(values))
    assert 0 < scale.floor < scale.top


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1e-5), (1e-30, 1.0), (0.2, 30.0)])
@pytest.mark.parametrize("zeros", [False, True])
def test_ticks_are_few_and_zero_is_named(low: float, high: float, zeros: bool) -> None:
    told = log_scale(np.array([low, high, *[0.0] * zeros])).ticks()
    assert 1 <= len(told) <= MOST_TICKS + 1
    assert ("0" in told.values()) is zeros
    assert all(float(name) == pytest.approx(place) for place, name in told.items() if name != "0")


def test_it_becomes_the_axis() -> None:
    axes = Figure().subplots()
    scale = log_scale(np.array([1e-7, 0.0, 1e-3]))
    scale.apply(axes)
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] < scale.floor, "what stands on the floor is seen whole"
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[:2] == ["0", "1e-7"]
