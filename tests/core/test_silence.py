"""Silence in one thread changes nothing for the others, nor for the process."""

from __future__ import annotations

import sys
import threading
import types
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from robustcli.core.silence import silenced


@pytest.fixture
def loud() -> Iterator[types.ModuleType]:
    """A module whose function `call` warns, filters warnings of its own, and warns again."""
    module = types.ModuleType("loud_module")
    source = (
        "import warnings\n"
        "def call():\n"
        "    warnings.warn('loud', UserWarning)\n"
        "    with warnings.catch_warnings():\n"
        "        warnings.simplefilter('ignore')\n"
        "        warnings.warn('louder', UserWarning)\n"
        "    return 1\n"
    )
    exec(source, module.__dict__)
    sys.modules["loud_module"] = module
    yield module
    del sys.modules["loud_module"]


def test_warnings_of_the_module_are_silent_inside_and_heard_outside(
    loud: types.ModuleType,
) -> None:
    with silenced("loud_module"):
        assert loud.call() == 1
    with pytest.warns(UserWarning, match="loud") as heard:
        loud.call()
    assert heard[0].filename == "<string>", "a warning names the line that warns"


def test_other_modules_are_heard(loud: types.ModuleType) -> None:
    with silenced("loud_module"), pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)


def test_other_threads_are_heard(loud: types.ModuleType) -> None:
    heard: list[BaseException] = []

    def elsewhere() -> None:
        try:
            loud.call()  # an error here: the test suite turns warnings into errors
        except UserWarning as warning:
            heard.append(warning)

    with silenced("loud_module"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(heard) == 1


def test_contexts_may_lie_in_each_other(loud: types.ModuleType) -> None:
    with silenced("loud_module"):
        with silenced("loud_module"):
            loud.call()
        loud.call()


def test_filters_stay_as_they_are_with_many_threads(loud: types.ModuleType) -> None:
    before, hook = list(warnings.filters), warnings.showwarning

    def quiet(_: int) -> int:
        with silenced("loud_module"):
            return int(loud.call())

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(quiet, range(2000))) == 2000
    assert list(warnings.filters) == before
    assert warnings.showwarning is hook


def test_a_module_that_is_not_there_is_passed_over() -> None:
    with silenced("no_such_module_anywhere"):
        pass
