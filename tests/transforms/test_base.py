"""The contract that every transform keeps: pure, seeded, shape and dtype, clear errors."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from robustcli.core.errors import UsageError
from robustcli.transforms.registry import TransformCell, resolve

EVERYTHING = resolve(["all"], [0, 1, 2, 3, 4, 5])

DIGESTS = """
import hashlib, json, sys
import numpy as np
from robustcli.transforms.registry import image_seed, resolve
np.random.seed(int(sys.argv[1]))
image = np.frombuffer(bytes.fromhex(sys.stdin.read()), np.uint8).reshape(48, 64, 3)
cells = resolve(["all"], [0, 1, 2, 3, 4, 5])
np.random.default_rng(int(sys.argv[1])).shuffle(cells)
print(json.dumps({
    f"{c.transform.name} {c.severity}": hashlib.sha256(c.transform.apply(
        image, seed=image_seed(0, c.transform.name, c.severity, "a.jpg"), severity=c.severity
    )).hexdigest() for c in cells}))
"""


def _digest(cell: TransformCell, image: NDArray[np.uint8], seed: int) -> str:
    changed = cell.transform.apply(image, seed=seed, severity=cell.severity)
    return hashlib.sha256(changed).hexdigest()


def _digests_elsewhere(image: NDArray[np.uint8], order: int) -> dict[str, str]:
    command = [sys.executable, "-W", "error", "-c", DIGESTS, str(order)]
    done = subprocess.run(
        command, input=image.tobytes().hex(), capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def test_pixels_do_not_depend_on_order_or_process(picture: NDArray[np.uint8]) -> None:
    first, second = (_digests_elsewhere(picture, order) for order in (1, 2))
    assert first == second
    assert len(first) == 1 + 21 + 16 * 5 + 19 * 5


def test_pixels_do_not_depend_on_threads_or_neighbours(picture: NDArray[np.uint8]) -> None:
    names = ["affine", "cutout", "multiply_per_channel", "piecewise_affine", "c_snow", "c_spatter"]
    work = [(cell, seed) for cell in resolve(names, None) for seed in range(6)]
    alone = [_digest(cell, picture, seed) for cell, seed in work]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: _digest(one[0], picture, one[1]), reversed(work)))
    assert together[::-1] == alone


def test_global_generators_stay_as_they_are(picture: NDArray[np.uint8]) -> None:
    import imgaug.random

    imgaug.random.seed(7)
    before = np.random.get_state()[1:3], imgaug.random.get_global_rng().state  # noqa: NPY002
    for cell in EVERYTHING:
        cell.transform.apply(picture, seed=1, severity=cell.severity)
    after = np.random.get_state()[1:3], imgaug.random.get_global_rng().state  # noqa: NPY002
    np.testing.assert_equal(after, before)


@pytest.mark.parametrize("shape", [(32, 32), (37, 50)])
def test_every_cell_keeps_shape_and_input(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image.flags.writeable = False
    for cell in EVERYTHING:
        changed = cell.transform.apply(image, seed=2**64 - 1, severity=cell.severity)
        assert (changed.shape, changed.dtype) == (image.shape, np.uint8), cell.transform.name
        assert changed.flags.c_contiguous
        assert changed.flags.writeable
        assert not np.shares_memory(changed, image)


def test_seed_matters_where_there_is_chance(picture: NDArray[np.uint8]) -> None:
    without = {"identity", "fliplr", "flipud", "invert"}
    without |= {f"c_{one}" for one in ("contrast", "brightness", "saturate", "pixelate")}
    without |= {f"c_{one}" for one in ("jpeg_compression", "defocus_blur", "zoom_blur")}
    without |= {"c_gaussian_blur"}
    same = {
        cell.transform.name
        for cell in resolve(["all"], None)
        if len({_digest(cell, picture, seed) for seed in range(5)}) == 1
    }
    assert same == without


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(wrong: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match=r"`image` cannot be given to transform `fliplr`") as told:
        resolve(["fliplr"], None)[1].transform.apply(wrong, seed=0, severity=0)
    assert f"came {wrong.dtype} of shape {wrong.shape}" in told.value.why


def test_a_severity_that_is_not_there_is_refused(picture: NDArray[np.uint8]) -> None:
    flip, fog = (resolve([name], None)[1].transform for name in ("fliplr", "c_fog"))
    with pytest.raises(UsageError, match=r"`fliplr` has no severity 2.\nIt has one strength only"):
        flip.apply(picture, seed=0, severity=2)
    with pytest.raises(UsageError, match=r"`c_fog` has no severity 0.\nIt has 1, 2, 3, 4, 5"):
        fog.parameters(0)


def test_parameters_are_json() -> None:
    for cell in EVERYTHING:
        stated = cell.transform.parameters(cell.severity)
        assert json.loads(json.dumps(stated)) == stated
