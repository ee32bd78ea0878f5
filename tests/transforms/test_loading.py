from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from robustcli.core.errors import UsageError
from robustcli.transforms.loading import from_entry_points, from_file

GROUP = "robustcli.transforms.made_by_a_test"  # so that installed plugins do not count


def test_a_file_gives_its_transforms_in_order(plugin_file: Path) -> None:
    assert [one.name for one in from_file(plugin_file)] == ["darker", "grain", "roll_random"]
    assert from_file(plugin_file) == from_file(plugin_file)


def test_a_file_may_use_dataclasses_with_postponed_annotations(tmp_path: Path) -> None:
    path = tmp_path / "modern.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from robustcli.transforms import transform\n"
        "@dataclass\nclass Setting:\n    strength: int = 3\n"
        "@transform()\ndef modern(image, rng, value):\n    return image + Setting().strength\n"
    )
    image = np.zeros((2, 2, 3), np.uint8)
    assert from_file(path)[0].apply(image, seed=0, severity=0).max() == 3


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`.*gone.py` cannot be read.\n.*No such file"):
        from_file(tmp_path / "gone.py")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\ny = x / 0\n", r"Line 2 raised ZeroDivisionError"),
        ("def f(:\n", r"Line 1 raised SyntaxError"),
        ("import sys\nsys.exit(3)\n", r"Line 2 raised SystemExit: 3"),
    ],
)
def test_a_file_that_raises(code: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(UsageError, match=rf"broken.py` cannot be run.\n{told}"):
        from_file(path)


def test_a_message_of_ours_is_not_wrapped(tmp_path: Path) -> None:
    path = tmp_path / "named.py"
    path.write_text("from robustcli.transforms import transform\ntransform(name='A')(print)\n")
    with pytest.raises(UsageError, match=r"^A transform cannot be called `A`"):
        from_file(path)


def test_a_file_without_a_transform(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("def f(image, rng, value):\n    return image\n")
    with pytest.raises(UsageError, match=r"empty.py` defines no transform.\nExpected a function"):
        from_file(path)


def _install(folder: Path, module: str, code: str, target: str) -> None:
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nmine = {target}\n")


CODE = (
    "from robustcli.transforms import transform\n"
    "@transform(severities=[2])\ndef thinner(image, rng, value):\n    return image // value\n"
)


@pytest.mark.parametrize(("module", "attribute"), [("plug_module", ""), ("plug_one", ":thinner")])
def test_an_installed_package_is_found(
    module: str, attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, module, CODE, module + attribute)
    monkeypatch.syspath_prepend(tmp_path)
    (one,) = from_entry_points(GROUP)
    assert one.parameters(1) == {"value": 2, "package": module, "version": "2.1"}
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize(
    ("module", "code", "told"),
    [
        ("plug_broken", "1 / 0\n", "ZeroDivisionError"),
        ("plug_empty", "x = 1\n", "defines no function marked"),
    ],
)
def test_a_broken_package_is_named(
    module: str, code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, module, code, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=rf"package `{module}` cannot be loaded.\n.*{told}"):
        from_entry_points(GROUP)
