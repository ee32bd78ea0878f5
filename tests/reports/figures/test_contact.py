from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from robustcli.reports.figures.contact import Tile, draw_contact
from tests.reports.figures.layout import assert_no_overlap, assert_nothing_clipped, caught


def tile(folder: Path, name: str, size: tuple[int, int] = (256, 171), level: int = 90) -> Tile:
    path = folder / f"{name}.png"
    Image.new("RGB", size, (level, level, 10)).save(path)
    return Tile(path, name, "severity 3, PSNR 21.4 dB")


def drawn(monkeypatch: pytest.MonkeyPatch, lines: list[list[Tile]]) -> Figure:
    return caught(monkeypatch, "contact", lambda: draw_contact(lines, Path()))


@pytest.mark.parametrize("size", [(256, 171), (171, 256), (32, 32), (256, 30)])
def test_tiles_and_labels_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: tuple[int, int]
) -> None:
    names = ["additive_gaussian_noise", "multiply_per_channel", "imagenetc_elastic_transform"]
    lines = [[tile(tmp_path, name, size) for name in (*names, "crop", "fliplr")]] * 3
    figure = drawn(monkeypatch, lines)
    assert_nothing_clipped(figure)
    assert_no_overlap([axes.title for axes in figure.axes])
    for above, below in zip(figure.axes, figure.axes[5:], strict=False):
        assert below.title.get_window_extent().y1 <= above.get_window_extent().y0


def test_each_label_is_above_its_own_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [[tile(tmp_path, f"t{i}", level=20 * i + j) for i in range(5)] for j in range(1)]
    for index, axes in enumerate(drawn(monkeypatch, lines).axes):
        assert axes.get_title().startswith(f"t{index}\n")
        pixels = np.asarray(axes.images[0].get_array())
        assert pixels[0, 0].tolist() == [20 * index, 20 * index, 10]
        box = axes.get_window_extent()
        label = axes.title.get_window_extent()
        assert label.y0 >= box.y1
        assert (label.x0 + label.x1) / 2 == pytest.approx((box.x0 + box.x1) / 2, abs=1)


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_a_missing_or_damaged_picture_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "broken.png"
    if content:
        path.write_bytes(content)
    lines = [[tile(tmp_path, "fine"), Tile(path, "broken", "PSNR unknown")]]
    fine, broken = drawn(monkeypatch, lines).axes
    assert [text.get_text() for text in broken.texts] == ["no sample"]
    assert not broken.images
    assert fine.images


def test_a_truncated_picture_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = tile(tmp_path, "cut")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8)).save(
        whole.picture
    )
    whole.picture.write_bytes(whole.picture.read_bytes()[:9000])
    (axes,) = drawn(monkeypatch, [[whole]]).axes
    assert not axes.images
