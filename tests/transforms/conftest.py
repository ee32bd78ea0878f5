"""Pictures for the tests of transforms: one made here, and real photos where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from robustcli.transforms.base import Transform

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "imagenet_sample" / "val"


def errors_by_severity(
    transform: Transform, photos: list[NDArray[np.uint8]], seeds: int
) -> list[float]:
    """The mean squared error of each severity against the untouched photos."""
    errors = []
    for severity in transform.severities:
        changed = [
            (photo, transform.apply(photo, seed=seed, severity=severity))
            for photo in photos
            for seed in range(seeds)
        ]
        errors.append(np.mean([np.square(a.astype(float) - b).mean() for a, b in changed]))
    return errors


@pytest.fixture(scope="session")
def picture() -> NDArray[np.uint8]:
    """(48, 64, 3): gradients, a bright square and a dark one, a little texture."""
    rows, columns = np.mgrid[0:48, 0:64]
    image = np.stack([rows * 4, columns * 3, (rows + columns) * 2], axis=2)
    image = image + np.random.default_rng(5).integers(0, 12, image.shape)
    image[8:24, 8:24] = (240, 30, 60)
    image[28:44, 36:56] = (20, 40, 10)
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photos() -> list[NDArray[np.uint8]]:
    """Three real photos, 200 pixels wide."""
    if not PHOTOS.is_dir():
        pytest.skip("needs ../shared")
    from PIL import Image

    files = sorted(PHOTOS.glob("*/*.JPEG"))[40:340:100]
    opened = [Image.open(file).convert("RGB") for file in files]
    return [np.asarray(item.resize((200, 200 * item.height // item.width))) for item in opened]


@pytest.fixture
def plugin_file(tmp_path: Path) -> Path:
    """A plugin with a transform that has severities, one that has none, and a geometric one."""
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "from robustcli.transforms import transform\n"
        "\n"
        "@transform(severities=[0.1, 0.2, 0.4])\n"
        "def darker(image, rng, value):\n"
        '    """Darker by a share.\n\n    More text."""\n'
        "    return (image * (1 - value)).astype(np.uint8)\n"
        "\n"
        "@transform()\n"
        "def grain(image, rng, value):\n"
        "    return (image // 2 + rng.integers(0, 100, image.shape)).astype(np.uint8)\n"
        "\n"
        "@transform(severities=[5, 20], geometric=True, name='roll_random')\n"
        "def roll(image, rng, value):\n"
        "    return np.roll(image, rng.integers(1, value + 1), axis=1)\n"
    )
    return path
