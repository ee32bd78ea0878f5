"""Decoding as torchvision and timm do it, and no picture at all rather than half a picture."""

from __future__ import annotations

import errno
import io
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from robustcli.core.errors import RunError
from robustcli.data.dataset import FileRef, contents_digest
from robustcli.data.decode import (
    UnreadableImage,
    decode,
    decode_bytes,
    image_size,
    read_array,
    read_image,
    volume_slices,
)
from robustcli.data.masks import decode_mask
from robustcli.data.sources import Masks, open_dataset

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
    with pytest.raises(
        UnreadableImage, match="32-bit greyscale, for which no value is defined as white"
    ):
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


@pytest.mark.parametrize("allowed", [False, True])
def test_threads_leave_the_process_as_it_was(
    monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """Filters of warnings and Pillow's flag end as they were; every half file is refused."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
    full = _encoded(_palette(), "PNG", transparency=bytes(range(256)))  # one that warns
    jpeg = _encoded(PHOTO, "JPEG")
    half = jpeg[: len(jpeg) // 2]
    filters, hook, most = list(warnings.filters), warnings.showwarning, Image.MAX_IMAGE_PIXELS

    def refused(number: int) -> bool:
        try:
            decode_bytes(half if number % 2 else full)
        except UnreadableImage as error:
            return "truncated" in error.reason
        return False

    with ThreadPoolExecutor(16) as pool:
        result = list(pool.map(refused, range(600)))
    assert result == [bool(number % 2) for number in range(600)]
    assert list(warnings.filters) == filters
    assert warnings.showwarning is hook
    assert (allowed, most) == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


def test_a_library_that_allows_truncated_files_in_between_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    calls = []

    def read(image: Image.Image) -> int:
        if not calls:
            ImageFile.LOAD_TRUNCATED_IMAGES = True  # as another thread might, while this one reads
        calls.append(1)
        image.load()
        return image.width

    jpeg = _encoded(PHOTO, "JPEG")
    with pytest.raises(UnreadableImage, match="truncated"):
        read_image(io.BytesIO(jpeg[: len(jpeg) // 2]), read)
    assert len(calls) == 2, "what was read with the flag set is read again without"
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    inside, leave = threading.Event(), threading.Event()

    def read(image: Image.Image) -> None:
        inside.set()
        leave.wait(30)

    thread = threading.Thread(target=read_image, args=(io.BytesIO(_encoded(PHOTO, "PNG")), read))
    thread.start()
    inside.wait(30)
    child = os.fork()
    if not child:
        code = 2  # for an exception, which must not return into pytest
        try:
            decode_bytes(_encoded(PHOTO, "PNG"))
            code = 0 if ImageFile.LOAD_TRUNCATED_IMAGES else 1
        finally:
            os._exit(code)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_the_limit_of_pixels_holds_where_a_library_has_switched_it_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("robustcli.data.decode._MOST_PIXELS", 48 * 64 - 1)
    with pytest.raises(UnreadableImage, match="more pixels than a photo has"):
        decode_bytes(_encoded(PHOTO, "PNG"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_picture_that_is_in_the_alpha_channel_alone(mode: str) -> None:
    shape = np.zeros((8, 8), np.uint8)
    shape[2:5] = 255
    picture = Image.new("RGBA", (8, 8), (255, 255, 255, 255))
    picture.putalpha(Image.fromarray(shape))
    if mode == "P":
        picture = Image.fromarray((shape > 0).astype(np.uint8)).convert("P")
        picture.putpalette([255, 255, 255] * 2)
        content = _encoded(picture, "PNG", transparency=0)
    else:
        content = _encoded(picture.convert(mode), "PNG")
    with pytest.raises(UnreadableImage, match=r"alpha channel, which is dropped.*#ffffff"):
        decode_bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", r"not in a supported image format \(JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not in a supported image format"),
    ],
)
def test_what_is_no_photo(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode_bytes(content)


@pytest.mark.parametrize("shape", [(8, 8, 4), (8, 8, 13)])
def test_a_tiff_of_many_channels_is_a_tiff_of_another_kind(
    shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="comes with scikit-image")
    path = tmp_path / "bands.tif"
    pixels = np.zeros(shape, np.uint16)
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    file = FileRef(path.name, path)
    for read in (decode, image_size):
        with pytest.raises(UnreadableImage, match="a TIFF that is damaged or of an unsupported"):
            read(file)
    assert capsys.readouterr().err == ""


def test_a_decompression_bomb_is_not_decoded() -> None:
    content = bytearray(_encoded(Image.new("L", (8, 8)), "PNG"))
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    content[12:33] = header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(UnreadableImage, match="more pixels than a photo has"):
        decode_bytes(bytes(content))


def test_a_large_photo_warns_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 64 - 1)
    assert decode_bytes(_encoded(PHOTO, "PNG")).shape == (48, 64, 3)


def test_an_error_that_is_not_of_the_image_does_not_make_it_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    image = FileRef("a.png", tmp_path / "a.png")
    image.path.touch()
    monkeypatch.setattr(FileRef, "read", lambda ref: stale(ref.path))
    with pytest.raises(RunError, match=r"a.png` cannot be read\.\n.*Stale.*\n.*continues the run"):
        decode(image)
    for read in (decode_mask, lambda mask: contents_digest([mask])):  # not another digest either
        with pytest.raises(RunError, match="Its cause is not the file"):
            read(image)


def test_a_missing_file_is_an_unreadable_image(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="cannot be read: No such file"):
        decode(FileRef("a.jpg", tmp_path / "a.jpg"))


def test_every_photo_of_the_sample(shared: Path) -> None:
    files = sorted((shared / "imagenet_sample" / "val").glob("*/*.JPEG"))[::25]
    for file in files:
        np.testing.assert_array_equal(
            decode(FileRef(file.name, file)), _as_torchvision(file.read_bytes())
        )


def test_the_size_of_an_image_without_its_pixels(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.fromarray(np.zeros((31, 17, 3), np.uint8)).save(file)
    ref = FileRef("x.png", file)
    assert image_size(ref) == (31, 17)
    file.write_bytes(file.read_bytes()[:60])  # the header is whole, the pixels are not
    assert image_size(ref) == (31, 17)

    ref = open_dataset("nuclei-mini:stained", Masks(surveyed=False)).samples[0].image
    assert ref.member is not None
    assert image_size(ref) == decode(ref).shape[:2]

    for file in (tmp_path / "missing.png", tmp_path / "text.png"):
        if file.stem == "text":
            file.write_text("not an image")
        with pytest.raises(UnreadableImage, match="its size cannot be read"):
            image_size(FileRef(file.name, file))


def test_repaired_headers_of_volumes_print_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    nibabel = pytest.importorskip("nibabel")
    path = tmp_path / "volume.nii"
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[76:108] = np.array([-1, -1, -2, np.nan, 0, 0, 0, 0], "<f4").tobytes()  # pixdim
    path.write_bytes(content)
    ref = FileRef("volume", path, array="volume", slice_index=1)
    np.testing.assert_array_equal(read_array(ref), values[:, :, 1].T)
    assert volume_slices(path, "volume") == 5
    assert "".join(capfd.readouterr()) == ""
    nibabel.load(path)  # a caller's own reads print as before
    assert caplog.messages
