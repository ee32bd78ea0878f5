from __future__ import annotations

import pytest

from robustcli.transforms.strength import Span, has_span, settings_at


def test_one_sided_range_goes_from_mild_to_the_far_end() -> None:
    noise = Span(0, 51.0, mild=0)
    assert [noise.at(s) for s in range(1, 6)] == [10.2, 20.4, 30.6, 40.8, 51.0]
    points = Span(0.01, 0.05, mild=0.01)
    assert [points.at(s) for s in range(1, 6)] == [0.018, 0.026, 0.034, 0.042, 0.05]


def test_two_sided_range_goes_both_ways() -> None:
    contrast = Span(0.4, 1.6, mild=1)
    assert contrast.at(2) == {"one_of": [0.76, 1.24]}
    assert contrast.at(5) == {"one_of": [0.4, 1.6]}


def test_whole_numbers_stay_whole() -> None:
    values = [Span(100, 255, mild=100, whole=True).at(s) for s in range(1, 6)]
    assert values == [131, 162, 193, 224, 255]
    assert all(isinstance(value, int) for value in values)


def test_severity_0_is_the_whole_range() -> None:
    assert Span(-25, 25, mild=0).at(0) == {"range": [-25, 25]}


@pytest.mark.parametrize(
    ("settings", "expected"), [({"p": 1.0}, False), ({"scale": {"x": Span(0, 1, mild=0)}}, True)]
)
def test_a_range_is_found_at_any_depth(settings: dict[str, object], expected: bool) -> None:
    assert has_span(settings) is expected


def test_settings_keep_what_has_no_range() -> None:
    settings = {"mul": {"x": Span(0, 1, mild=0)}, "per_channel": True}
    assert settings_at(settings, 5) == {"mul": {"x": 1}, "per_channel": True}
