"""Decoding as torchvision and timm do it, and no picture at all rather than half a picture."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from robustcli.data.decode import UnreadableImage, decode, decode_bytes
from robustcli.data.index import ImageRef

PHOTO = Image.effect_noise((64, 48), 80).convert("RGB")


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _as_torchvision(content: bytes) -> NDArray[np.uint8]:
    """torchvision.datasets.folder.pil_loader, by heart."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def _palette() -> Image.Image:
    image = PHOTO.convert("P", palette=Image.Palette.ADAPTIVE)
    image.info["transparency"] = bytes(range(256))
    return image


def _rotated_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _encoded(PHOTO, "JPEG", exif=exif)


KINDS = {
    "colour jpeg": lambda: _encoded(PHOTO, "JPEG"),
    "progressive jpeg": lambda: _encoded(PHOTO, "JPEG", progressive=True),
    "grey jpeg": lambda: _encoded(PHOTO.convert("L"), "JPEG"),
    "cmyk jpeg": lambda: _encoded(PHOTO.convert("CMYK"), "JPEG"),
    "jpeg with exif": _rotated_by_exif,
    "png": lambda: _encoded(PHOTO, "PNG"),
    "png with alpha": lambda: _encoded(PHOTO.convert("RGBA"), "PNG"),
    "grey png with alpha": lambda: _encoded(PHOTO.convert("LA"), "PNG"),
    "palette png": lambda: _encoded(PHOTO.convert("P"), "PNG"),
    "black and white png": lambda: _encoded(PHOTO.convert("1"), "PNG"),
    "webp": lambda: _encoded(PHOTO, "WEBP"),
    "bmp": lambda: _encoded(PHOTO, "BMP"),
    "tiff": lambda: _encoded(PHOTO, "TIFF"),
    "gif": lambda: _encoded(PHOTO.convert("P"), "GIF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_torchvision(kind: str) -> None:
    content = KINDS[kind]()
    pixels = decode_bytes(content)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (48, 64, 3)
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, _as_torchvision(content))


def test_palette_with_transparency_warns_nobody() -> None:
    content = _encoded(_palette(), "PNG", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = _as_torchvision(content)
    np.testing.assert_array_equal(decode_bytes(content), expected)


def test_exif_rotation_is_not_applied() -> None:
    assert decode_bytes(_rotated_by_exif()).shape == (48, 64, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_high_byte(kind: str) -> None:
    values = np.array([[0, 255, 256, 32768], [65535, 4660, 511, 65280]], np.uint16)
    pixels = decode_bytes(_encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(pixels[..., 0], [[0, 0, 1, 128], [255, 18, 1, 255]])
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_32_bit_grey_is_refused() -> None:
    content = _encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(UnreadableImage, match="32-bit greyscale, for which no value means white"):
        decode_bytes(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files_are_unreadable(kind: str, share: float) -> None:
    content = _encoded(PHOTO, kind)
    with pytest.raises(UnreadableImage, match=r"damaged: .+|not an image"):
        decode_bytes(content[: int(len(content) * share)])


def test_truncated_stays_unreadable_where_a_library_allows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    content = _encoded(PHOTO, "JPEG")
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_bytes(content[: len(content) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", r"not an image of a known kind \(JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known kind"),
    ],
)
def test_what_is_no_photo(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode_bytes(content)


def test_a_decompression_bomb_is_not_decoded() -> None:
    content = bytearray(_encoded(Image.new("L", (8, 8)), "PNG"))
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    content[12:33] = header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(UnreadableImage, match="more pixels than a photo has"):
        decode_bytes(bytes(content))


def test_a_large_photo_warns_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 64 - 1)
    assert decode_bytes(_encoded(PHOTO, "PNG")).shape == (48, 64, 3)


def test_flipped_bytes_never_escape_as_another_exception() -> None:
    content = _encoded(PHOTO, "PNG")
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        damaged = bytearray(content)
        damaged[generator.integers(8, len(content))] ^= 1 << generator.integers(8)
        try:
            outcomes.add(decode_bytes(bytes(damaged)).shape[2])
        except UnreadableImage as error:
            outcomes.add(type(error).__name__)
    assert "UnreadableImage" in outcomes


def test_a_missing_file_is_an_unreadable_image(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="cannot be read: No such file"):
        decode(ImageRef("a.jpg", 0, tmp_path / "a.jpg"))


def test_every_photo_of_the_sample(shared: Path) -> None:
    files = sorted((shared / "imagenet_sample" / "val").glob("*/*.JPEG"))[::25]
    for file in files:
        np.testing.assert_array_equal(
            decode(ImageRef(file.name, 0, file)), _as_torchvision(file.read_bytes())
        )
