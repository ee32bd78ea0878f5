from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from robustcli.core.errors import RunError
from robustcli.transforms.loading import from_file
from robustcli.transforms.plugged import Plugged

APPLY = """
import pickle, sys
import numpy as np
one = pickle.load(open(sys.argv[1], "rb"))
image = np.full((5, 7, 3), 200, np.uint8)
sys.stdout.buffer.write(one.apply(image, seed=3, severity=0).tobytes())
"""


def _loaded(path: Path) -> dict[str, Plugged]:
    return {one.name: one for one in from_file(path)}


def test_what_the_registry_is_told(plugin_file: Path) -> None:
    plugins = _loaded(plugin_file)
    assert plugins["darker"].available() == (1, 2, 3)
    assert plugins["darker"].summary == "Darker by a share."
    assert plugins["grain"].available() == (0,)
    assert [one.geometric for one in plugins.values()] == [False, False, True]
    assert {one.family for one in plugins.values()} == {"plugin"}


def test_the_severity_chooses_the_value(plugin_file: Path) -> None:
    image = np.full((5, 7, 3), 200, np.uint8)
    darker = _loaded(plugin_file)["darker"]
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


def test_a_mask_with_invented_labels_is_refused(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = tmp_path / "mixing.py"
    path.write_text(
        "from robustcli.transforms import transform\n"
        "@transform(geometric=True)\n"
        "def mixing(image, rng, value):\n    return image // 2 + image[::-1] // 2\n"
    )
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[:10] = 100
    with pytest.raises(RunError, match=r"`mixing` does not move a mask(.|\n)*1 labels"):
        _loaded(path)["mixing"].apply_with_mask(picture, mask, seed=0, severity=0)


def test_it_crosses_to_another_process(plugin_file: Path, tmp_path: Path) -> None:
    grain = _loaded(plugin_file)["grain"]
    (tmp_path / "pickled").write_bytes(pickle.dumps(grain))
    command = [sys.executable, "-c", APPLY, str(tmp_path / "pickled")]
    there = subprocess.run(command, capture_output=True, check=True).stdout
    image = np.full((5, 7, 3), 200, np.uint8)
    assert there == grain.apply(image, seed=3, severity=0).tobytes()


def test_code_changed_during_a_run_is_noticed(plugin_file: Path) -> None:
    pickled = pickle.dumps(_loaded(plugin_file)["grain"])
    plugin_file.write_text(plugin_file.read_text().replace("100", "50"))
    with pytest.raises(RunError, match="`grain` is not what it was when the run began"):
        pickle.loads(pickled)
