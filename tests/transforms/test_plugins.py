from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robustcli.core.errors import RunError, UsageError
from robustcli.transforms import transform
from robustcli.transforms.plugins import Plugin, marked

IMAGE = np.full((4, 6, 3), 100, np.uint8)


def _marked(function: Any, **options: Any) -> Plugin:
    return marked([transform(**options)(function)])[0]


def test_the_function_stays_callable_and_is_found_once() -> None:
    def half(image: Any, rng: Any, value: Any) -> Any:
        """Half as bright.

        More.
        """
        return image // 2

    assert transform(severities=[1, 2])(half) is half
    assert half(IMAGE, None, None)[0, 0, 0] == 50
    found = marked([np, half, 3, half, "text"])
    assert [(one.name, one.values, one.summary) for one in found] == [
        ("half", (1, 2), "Half as bright.")
    ]


def test_the_generator_is_seeded_and_the_input_safe() -> None:
    def scribble(image: Any, rng: Any, value: Any) -> Any:
        image[:] = rng.integers(0, 256, image.shape) + value * 0
        return image

    plugin = _marked(scribble)
    first = plugin.call(IMAGE, 8, 0)
    np.testing.assert_array_equal(first, plugin.call(IMAGE, 8, 0))
    expected = np.random.default_rng(8).integers(0, 256, IMAGE.shape)
    np.testing.assert_array_equal(first, expected)
    assert (IMAGE == 100).all()


@pytest.mark.parametrize("name", ["Mine", "a/b", "..", "1st", "a-b", "a*"])
def test_a_name_must_be_safe_as_a_folder(name: str) -> None:
    with pytest.raises(UsageError, match="A transform cannot be called"):
        transform(name=name)(lambda image, rng, value: image)


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(UsageError, match="cannot be called `<lambda>`"):
        transform()(lambda image, rng, value: image)


@pytest.mark.parametrize("values", [[object()], [float("nan")], np.linspace(0, 1, 3)])
def test_values_must_be_recordable(values: Any) -> None:
    with pytest.raises(UsageError, match="`severities` of transform `mine` cannot be recorded"):
        transform(name="mine", severities=values)(lambda image, rng, value: image)


def test_a_function_that_raises_is_named() -> None:
    def broken(image: Any, rng: Any, value: Any) -> Any:
        return image[99]

    with pytest.raises(RunError, match=r"`broken` failed on an image of 6x4 pixels.\n.*IndexError"):
        _marked(broken).call(IMAGE, 0, None)


@pytest.mark.parametrize(
    ("wrong", "came"),
    [
        (IMAGE / 2, "float64 of shape"),
        (IMAGE[..., 0], r"uint8 of shape \(4, 6\)"),
        (IMAGE[:0], r"uint8 of shape \(0, 6, 3\)"),
        (None, "came NoneType"),
    ],
)
def test_a_wrong_result_is_described(wrong: Any, came: str) -> None:
    plugin = _marked(lambda image, rng, value: wrong, name="mine")
    with pytest.raises(RunError, match=rf"`mine` gave no image.\nExpected uint8 .*{came}"):
        plugin.call(IMAGE, 0, None)
