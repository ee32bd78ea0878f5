"""Transforms of users, from files and installed packages."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from robustcli.core.errors import RunError, UsageError
from robustcli.transforms import transform
from robustcli.transforms.plugins import (
    Plugin,
    PluginTransform,
    from_entry_points,
    from_file,
    marked_plugins,
)

GROUP = "robustcli.transforms.made_by_a_test"  # so that installed plugins do not count


def test_a_file_gives_its_transforms_in_order(plugin_file: Path) -> None:
    assert [item.name for item in from_file(plugin_file)] == ["darker", "grain", "roll_random"]
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
    ("code", "message"),
    [
        ("x = 1\ny = x / 0\n", r"Line 2 raised ZeroDivisionError"),
        ("def f(:\n", r"Line 1 raised SyntaxError"),
        ("import sys\nsys.exit(3)\n", r"Line 2 raised SystemExit: 3"),
    ],
)
def test_a_file_that_raises(code: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(UsageError, match=rf"broken.py` cannot be run.\n{message}"):
        from_file(path)


def test_a_message_of_ours_is_not_wrapped(tmp_path: Path) -> None:
    path = tmp_path / "named.py"
    path.write_text("from robustcli.transforms import transform\ntransform(name='A')(print)\n")
    with pytest.raises(UsageError, match=r"^The name `A` is not valid for a transform"):
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
    (first,) = from_entry_points(GROUP)
    assert first.parameters(1) == {"value": 2, "package": module, "version": "2.1"}
    assert pickle.loads(pickle.dumps(first)) == first


@pytest.mark.parametrize(
    ("module", "code", "message"),
    [
        ("plug_broken", "1 / 0\n", "ZeroDivisionError"),
        ("plug_empty", "x = 1\n", "defines no function marked"),
    ],
)
def test_a_broken_package_is_named(
    module: str, code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, module, code, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=rf"package `{module}` cannot be loaded.\n.*{message}"):
        from_entry_points(GROUP)


APPLY = """
import pickle, sys
import numpy as np
one = pickle.load(open(sys.argv[1], "rb"))
image = np.full((5, 7, 3), 200, np.uint8)
sys.stdout.buffer.write(one.apply(image, seed=3, severity=0).tobytes())
"""


def _loaded(path: Path) -> dict[str, PluginTransform]:
    return {item.name: item for item in from_file(path)}


def test_what_the_registry_is_told_and_the_severity_chooses(plugin_file: Path) -> None:
    plugins = _loaded(plugin_file)
    assert plugins["darker"].available() == (1, 2, 3)
    assert plugins["darker"].summary == "Darker by a share."
    assert plugins["grain"].available() == (0,)
    assert [plugin.geometric for plugin in plugins.values()] == [False, False, True]
    assert {plugin.family for plugin in plugins.values()} == {"plugin"}
    image = np.full((5, 7, 3), 200, np.uint8)
    darker = plugins["darker"]
    values = [darker.apply(image, seed=0, severity=s)[0, 0, 0] for s in (1, 2, 3)]
    assert values == [180, 160, 120]


def test_the_record_holds_value_and_code(plugin_file: Path) -> None:
    before = _loaded(plugin_file)["darker"].parameters(2)
    assert (before["value"], before["file"]) == (0.2, "mine.py")
    plugin_file.write_text(plugin_file.read_text() + "\n# another version\n")
    after = _loaded(plugin_file)["darker"].parameters(2)
    assert before["sha256"] != after["sha256"]


def test_a_mask_is_moved_with_the_same_draw(plugin_file: Path) -> None:
    roll = _loaded(plugin_file)["roll_random"]
    labels = np.arange(40, dtype=np.uint8).reshape(1, 40)
    image = np.repeat(labels[..., None], 3, axis=2)
    shifts = set()
    for seed in range(8):
        changed, moved = roll.apply_with_mask(image, labels, seed=seed, severity=2)
        np.testing.assert_array_equal(changed[..., 0], moved)
        shifts.add(int(moved[0, 0]))
    assert len(shifts) > 2


def test_a_mask_that_draws_other_numbers_than_its_image_is_refused(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    path = tmp_path / "shaken.py"
    path.write_text(
        "import numpy as np\n"
        "from robustcli.transforms import transform\n"
        "@transform(geometric=True)\n"
        "def shaken(image, rng, value):\n"
        "    return image[np.argsort(rng.random(image.shape).reshape(len(image), -1)[:, 0])]\n"
        "@transform(geometric=True)\n"
        "def noisy(image, rng, value):\n"
        "    if image.ndim == 3:\n"
        "        image ^= rng.spawn(1)[0].integers(2, size=image.shape, dtype=np.uint8)\n"
        "    return np.roll(image, rng.integers(9), 0)\n"
    )
    plugins, mask = _loaded(path), picture[..., 0] // 128
    with pytest.raises(RunError, match=r"`shaken` draws other random numbers for the mask"):
        plugins["shaken"].apply_with_mask(picture, mask, seed=0, severity=0)
    _, moved = plugins["noisy"].apply_with_mask(picture, mask, seed=0, severity=0)
    assert moved.sum() == mask.sum()


def test_a_mask_with_invented_labels_is_refused(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = tmp_path / "mixing.py"
    path.write_text(
        "from robustcli.transforms import transform\n"
        "@transform(geometric=True)\n"
        "def mixing(image, rng, value):\n    return image // 2 + image[::-1] // 2\n"
    )
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[:10] = 100
    with pytest.raises(RunError, match=r"`mixing` does not transform the mask(.|\n)*1 labels"):
        _loaded(path)["mixing"].apply_with_mask(picture, mask, seed=0, severity=0)


def test_an_image_that_changes_its_size_needs_a_mask_that_does(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    path = tmp_path / "small.py"
    path.write_text(
        "from robustcli.transforms import transform\n"
        "@transform()\ndef small(image, rng, value):\n    return image[::2, ::2]\n"
    )
    (small,) = from_file(path)
    with pytest.raises(RunError, match=r"changes the size of the image.*\n.*\n.*geometric=True"):
        small.apply_with_mask(picture, picture[..., 0], seed=0, severity=0)


def test_a_value_that_the_function_changes_is_the_same_for_the_next_image() -> None:
    @transform(severities=[[1, 2]])
    def drops(image: Any, rng: Any, value: Any) -> Any:
        image[:] = value.pop()
        return image

    (plugin,) = marked_plugins([drops])
    image = np.zeros((2, 2, 3), np.uint8)
    assert [plugin.call(image, 0, plugin.values[0]).max() for _ in range(3)] == [2, 2, 2]


def test_it_crosses_to_another_process(plugin_file: Path, tmp_path: Path) -> None:
    grain = _loaded(plugin_file)["grain"]
    (tmp_path / "pickled").write_bytes(pickle.dumps(grain))
    command = [sys.executable, "-c", APPLY, str(tmp_path / "pickled")]
    text = subprocess.run(command, capture_output=True, check=True).stdout
    image = np.full((5, 7, 3), 200, np.uint8)
    assert text == grain.apply(image, seed=3, severity=0).tobytes()


def test_code_changed_during_a_run_is_noticed(plugin_file: Path) -> None:
    pickled = pickle.dumps(_loaded(plugin_file)["grain"])
    plugin_file.write_text(plugin_file.read_text().replace("100", "50"))
    with pytest.raises(RunError, match="`grain` has changed since the run started"):
        pickle.loads(pickled)


IMAGE = np.full((4, 6, 3), 100, np.uint8)


def _marked(function: Any, **options: Any) -> Plugin:
    return marked_plugins([transform(**options)(function)])[0]


def test_the_function_stays_callable_and_is_found_once() -> None:
    def half(image: Any, rng: Any, value: Any) -> Any:
        """Half as bright.

        More.
        """
        return image // 2

    assert transform(severities=[1, 2])(half) is half
    assert half(IMAGE, None, None)[0, 0, 0] == 50
    marked = marked_plugins([np, half, 3, half, "text"])
    assert [(item.name, item.values, item.summary) for item in marked] == [
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


@pytest.mark.parametrize("name", ["Mine", "a/b", "..", "1st", "a-b", "a*", None])
def test_a_name_must_be_safe_as_a_folder(name: str | None) -> None:
    shown = re.escape(name or "<lambda>")
    with pytest.raises(UsageError, match=f"`{shown}` is not valid for a transform"):
        transform(name=name)(lambda image, rng, value: image)


@pytest.mark.parametrize("values", [[object()], [float("nan")], np.linspace(0, 1, 3)])
def test_values_must_be_recordable(values: Any) -> None:
    with pytest.raises(UsageError, match="`severities` of transform `mine` cannot be recorded"):
        transform(name="mine", severities=values)(lambda image, rng, value: image)


@pytest.mark.parametrize("error", [IndexError, SystemExit])
def test_a_function_that_raises_is_named(error: type[BaseException]) -> None:
    def broken(image: Any, rng: Any, value: Any) -> Any:
        raise error

    words = rf"`broken` failed on an image of 6x4 pixels.\n.*{error.__name__}"
    with pytest.raises(RunError, match=words):
        _marked(broken).call(IMAGE, 0, None)


@pytest.mark.parametrize(
    ("wrong", "returned"),
    [
        (IMAGE / 2, "float64 of shape"),
        (IMAGE[..., 0], r"uint8 of shape \(4, 6\)"),
        (IMAGE[:0], r"uint8 of shape \(0, 6, 3\)"),
        (None, "returned NoneType"),
    ],
)
def test_a_wrong_result_is_described(wrong: Any, returned: str) -> None:
    plugin = _marked(lambda image, rng, value: wrong, name="mine")
    with pytest.raises(RunError, match=rf"`mine` returned no image.\n.* return uint8 .*{returned}"):
        plugin.call(IMAGE, 0, None)
