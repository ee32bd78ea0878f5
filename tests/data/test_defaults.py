"""Which data stands in when none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.sources import DefaultData, default_data, variable_for


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_bundled_set_serves_its_label_space() -> None:
    assert default_data("cifar10") == DefaultData("cifar10-mini", "bundled")


def test_the_environment_comes_before_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("robust.toml").write_text('[data]\nimagenet-1k = "from/toml"\n')
    assert default_data("imagenet-1k") == DefaultData("from/toml", "`robust.toml`")
    monkeypatch.setenv("ROBUST_DATA_IMAGENET_1K", "from/env")
    assert default_data("imagenet-1k").data == "from/env"
    assert "ROBUST_DATA_IMAGENET_1K" in default_data("imagenet-1k").origin


def test_settings_come_before_the_bundled_set_and_may_spell_differently() -> None:
    Path("robust.toml").write_text('[data]\nCIFAR10 = "my"\nimagenet_1k = "other"\n')
    assert default_data("cifar10").data == "my"
    assert default_data("imagenet-1k").data == "other"


def test_settings_for_something_else_do_not_matter() -> None:
    Path("robust.toml").write_text("[other]\nx = 1\n")
    assert default_data("cifar10").data == "cifar10-mini"


def test_without_any_the_three_ways_are_shown() -> None:
    with pytest.raises(UsageError) as caught:
        default_data("imagenet-1k")
    assert caught.value.exit_code == 2
    ways = caught.value.todo.splitlines()[1:]
    assert ways[0].strip() == "--data DIR"
    assert "ROBUST_DATA_IMAGENET_1K=DIR" in ways[1]
    assert '`imagenet-1k = "DIR"` below `[data]` in `robust.toml`' in ways[1]
    assert "--data imagenet-sample, after `robust fetch imagenet-sample`" in ways[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[data\n", r"`robust\.toml` cannot be read"),
        ("[data]\nimagenet-1k = 3\n", r"`imagenet-1k` must be a text\.\n.*got `3`"),
        ('data = "x"\n', r"`data` must be a table\.\nGot `x`"),
    ],
)
def test_wrong_settings(content: str, message: str) -> None:
    Path("robust.toml").write_text(content)
    with pytest.raises(UsageError, match=message):
        default_data("imagenet-1k")


def test_names_of_variables() -> None:
    assert variable_for("imagenet-1k") == "ROBUST_DATA_IMAGENET_1K"
