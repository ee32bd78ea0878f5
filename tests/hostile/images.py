"""About 200 damaged and hostile image files, made from a seed, and hostile array files.

Each image file has the pixels that a decoder must return (Pillow's, for the undamaged file) and
whether it may be refused, so that half an image is never accepted as complete. Array files are
those of NumPy, and of HDF5 and NIfTI if their libraries are installed.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import pickle
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 24
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM")
_SHARES = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif"}


@dataclass(frozen=True)
class HostileImage:
    """An image file.

    Args:
        name: The damage, with a suffix.
        content: The bytes of the file.
        pixels: Expected pixels, uint8 (H, W, 3); None if the file must be refused.
        refusable: Whether the file may also be refused.
    """

    name: str
    content: bytes
    pixels: NDArray[np.uint8] | None = None
    refusable: bool = False


def photo(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Returns a gradient with noise, which compresses badly."""
    generator = np.random.default_rng(seed)
    height, width = size
    ramp = np.linspace(0, 200, height * width * 3).reshape(height, width, 3)
    return Image.fromarray((ramp + generator.integers(0, 55, ramp.shape)).astype(np.uint8))


def encoded(image: Image.Image, codec: str, **options: Any) -> bytes:
    """Returns the bytes of `image` in a format."""
    file = io.BytesIO()
    image.save(file, codec, **options)
    return file.getvalue()


def pixels_of(content: bytes) -> NDArray[np.uint8]:
    """Returns the pixels that Pillow decodes."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def valid_file(codec: str) -> bytes:
    """Returns an undamaged file."""
    image = photo()
    return encoded(image.convert("P") if codec == "GIF" else image, codec)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Returns a chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, data: bytes, *extra: bytes, depth: int = 8, colour: int = 2
) -> bytes:
    """Returns a PNG of these chunks, with the given values in its header."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", data), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """Returns a little-endian TIFF with one directory of (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", following)


def progressive_bomb(scans: int, size: int) -> bytes:
    """Returns a progressive JPEG whose scans cover all pixels without content."""
    table = bytes([0x10, 1, *[0] * 15, 0xE0])  # an AC table with one code: a run of 32767 blocks
    blocks = (-(-size // 8)) ** 2
    runs = -(-blocks // (1 << 14))
    bits = "".join("0" + format(0, "014b") for _ in range(runs))
    packed = int(bits.ljust(-(-len(bits) // 8) * 8, "1"), 2).to_bytes(-(-len(bits) // 8), "big")
    packed = packed.replace(b"\xff", b"\xff\x00")
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0) + packed
    return b"".join((
        b"\xff\xd8", b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([1] * 64),
        b"\xff\xc2" + struct.pack(">HBHHBBBB", 11, 8, size, size, 1, 1, 0x11, 0),
        b"\xff\xc4" + struct.pack(">H", 2 + len(table)) + table, scan * scans, b"\xff\xd9",
    ))  # fmt: skip


@cache
def corpus() -> list[HostileImage]:
    """Returns all files, in a fixed order."""
    images = [*_truncated(), *_flipped(), *_bombs(), *_unusual(), *_not_images(), *_structures()]
    assert len({image.name for image in images}) == len(images)
    return images


def _truncated() -> Iterator[HostileImage]:
    for codec in FORMATS:
        content, suffix = (valid_file(codec), _SUFFIXES.get(codec, codec.lower()))
        pixels = pixels_of(content)
        for share in _SHARES:
            truncated = content[: int(share * len(content))]
            yield HostileImage(f"cut at {share}.{suffix}", truncated, pixels, refusable=True)
        for missing in (1, 2, 12):
            yield HostileImage(f"less {missing}.{suffix}", content[:-missing], pixels, True)
        yield HostileImage(f"empty.{suffix}", b"")
        yield HostileImage(f"first byte.{suffix}", content[:1])
        other_format = FORMATS[(FORMATS.index(codec) + 1) % len(FORMATS)]
        yield HostileImage(f"really {codec}.{other_format.lower()}", content, pixels)
        yield HostileImage(f"with a tail.{suffix}", content + b"MZ" * 500, pixels, True)


def _flipped() -> Iterator[HostileImage]:
    """Only PNG detects each changed byte of its pixels; other formats may show other pixels."""
    content = valid_file("PNG")
    pixels, start = pixels_of(content), content.index(b"IDAT") + 4
    for n in range(8):
        generator = random.Random(f"flipped {n}")
        changed = bytearray(content)
        changed[generator.randrange(start, len(content) - 20)] ^= 1 << generator.randrange(8)
        yield HostileImage(f"flipped bit {n}.png", bytes(changed), pixels, refusable=True)


def _bombs() -> Iterator[HostileImage]:
    rows = zlib.compress(bytes(1_000_000), 9)
    yield HostileImage("bomb of 60,000 x 60,000.png", png(60_000, 60_000, rows))
    yield HostileImage("bomb of one row.png", png(2**31 - 1, 1, rows))
    yield HostileImage("bomb of a column.png", png(1, 2**31 - 1, rows))
    yield HostileImage("no width.png", png(0, 10, rows))
    yield HostileImage("bomb in a text.png", png(4, 4, zlib.compress(bytes(52)), png_chunk(
        b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000), 9)
    )), np.zeros((4, 4, 3), np.uint8), refusable=True)  # fmt: skip
    yield HostileImage("bomb in a profile.png", png(4, 4, zlib.compress(bytes(52)), png_chunk(
        b"iCCP", b"icc\0\0" + zlib.compress(bytes(80_000_000), 9)
    )), np.zeros((4, 4, 3), np.uint8), refusable=True)  # fmt: skip
    jpeg = bytearray(valid_file("JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    yield HostileImage("bomb of 65,500 x 65,500.jpg", bytes(jpeg))
    yield HostileImage("bomb of scans.jpg", progressive_bomb(2_000, 8_000))
    webp = bytearray(encoded(photo(), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", 16_382 | 16_382 << 14)
    yield HostileImage("bomb of 16,383 x 16,383.webp", bytes(webp))
    size = ((256, 3, 1, 60_000), (257, 3, 1, 60_000), (258, 3, 1, 8), (262, 3, 1, 1))
    yield HostileImage("bomb of 60,000 x 60,000.tif", tiff(
        *size, (259, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 60_000), (279, 4, 1, 9),
    ))  # fmt: skip
    yield HostileImage("many strips.tif", tiff(
        *size, (259, 3, 1, 8), (273, 4, 2**31, 8), (277, 3, 1, 1), (279, 4, 2**31, 9)
    ))  # fmt: skip
    gif = bytearray(valid_file("GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield HostileImage("bomb of 65,535 x 65,535.gif", bytes(gif))
    bmp = bytearray(valid_file("BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    yield HostileImage("bomb of 60,000 x 60,000.bmp", bytes(bmp))
    bmp[18:26] = struct.pack("<ii", SIDE, -(2**31))
    yield HostileImage("negative height.bmp", bytes(bmp))
    yield HostileImage("bomb of 60,000 x 60,000.ppm", b"P6\n60000 60000\n255\n" + bytes(100))
    yield HostileImage("a long number.ppm", b"P6\n" + b"9" * 10_000 + b" 3\n255\n" + bytes(100))
    yield HostileImage("no maximum.ppm", b"P6\n2 2\n0\n" + bytes(12))
    yield HostileImage("endless comment.ppm", b"P6\n#" + b"x" * 300_000)


def _unusual() -> Iterator[HostileImage]:
    """Returns valid files with unusual features."""
    image = photo()
    frames = [photo(seed) for seed in range(1, 4)]
    for codec in ("GIF", "WEBP", "PNG", "TIFF"):
        content = encoded(image, codec, save_all=True, append_images=frames)
        yield HostileImage(f"animated.{codec.lower()}", content, pixels_of(content))
    many = encoded(image.convert("L"), "TIFF", save_all=True, append_images=[
        Image.new("L", (1, 1)) for _ in range(300)
    ])  # fmt: skip
    yield HostileImage("301 directories.tif", many, pixels_of(many))
    values = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 113
    high = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    for codec in ("PNG", "TIFF"):
        content = encoded(Image.fromarray(values), codec)
        yield HostileImage(f"16 bits.{codec.lower()}", content, high)
    yield HostileImage("32 bits.tif", encoded(Image.fromarray(values.astype(np.int32)), "TIFF"))
    yield HostileImage("numbers.tif", encoded(Image.fromarray(values.astype(np.float32)), "TIFF"))
    for mode, codec in (
        *(("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("YCbCr", "TIFF"), ("L", "JPEG")),
        *(("1", "PNG"), ("1", "TIFF"), ("L", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("P", "PNG")),
        *(
            ("RGBA", "WEBP"),
            ("RGBA", "TIFF"),
            ("LAB", "TIFF"),
            ("P", "BMP"),
            ("1", "BMP"),
            ("1", "PPM"),
        ),
    ):
        content = encoded(image.convert(mode), codec)
        try:
            pixels = pixels_of(content)
        except OSError:  # Pillow 11.0 cannot read the YCbCr TIFF that it wrote
            pixels = None
        yield HostileImage(f"{mode}.{codec.lower()}", content, pixels)
    lab = encoded(Image.frombytes("LAB", image.size, image.tobytes()), "TIFF")
    yield HostileImage("LAB.tif", lab, pixels_of(lab))
    palette = encoded(image.convert("P"), "PNG", transparency=bytes(range(256)))
    yield HostileImage("palette with alpha.png", palette, pixels_of(palette))
    clear = image.convert("RGBA")
    clear.putalpha(0)
    yield HostileImage("transparent.png", encoded(clear, "PNG"), pixels_of(encoded(image, "PNG")))
    for orientation in (*range(9), 255):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(image, "JPEG", exif=exif)
        yield HostileImage(f"orientation {orientation}.jpg", content, pixels_of(content))
    pixels_without_profile = pixels_of(encoded(image, "JPEG"))
    for name, exif in {
        "no EXIF": b"Exif\0\0", "cut EXIF": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        "looping EXIF": b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8),
        "zeros as EXIF": b"Exif\0\0" + bytes(1000),
        "noise as EXIF": b"Exif\0\0" + bytes(range(256)),
    }.items():  # fmt: skip
        yield HostileImage(f"{name}.jpg", encoded(image, "JPEG", exif=exif), pixels_without_profile)
    for size in (1, 100, 3_000_000):
        profile = bytes(random.Random(size).randbytes(size))
        for codec in ("JPEG", "PNG", "TIFF", "WEBP"):
            content = encoded(image, codec, icc_profile=profile)
            expected = pixels_of(encoded(image, codec))
            name = f"profile of {size} bytes.{codec.lower()}"
            yield HostileImage(name, content, expected, refusable=size > 1_000_000)
    yield HostileImage("comments.jpg", b"\xff\xd8" + (
        b"\xff\xfe\xff\xff" + bytes(65_533)
    ) * 40 + encoded(image, "JPEG")[2:], pixels_without_profile)  # fmt: skip
    for width, height in ((1, 1), (1, 3000), (3000, 1)):
        content = encoded(photo(size=(height, width)), "PNG")
        yield HostileImage(f"{width} x {height}.png", content, pixels_of(content))


def _not_images() -> Iterator[HostileImage]:
    jpeg = valid_file("JPEG")
    for name, content in {
        "text.png": b"This is no picture.\n", "zeros.png": bytes(5000), "zeros.jpg": bytes(5000),
        "ones.tif": b"\xff" * 5000, "page.jpg": b"<!DOCTYPE html><html><script>1</script></html>",
        "drawing.svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='x'/></svg>",
        "program.png": b"MZ" + bytes(500), "elf.gif": b"\x7fELF" + bytes(500),
        "script.gif": b"GIF89a=1;alert(1)//" + bytes(20),
        "postscript.tif": b"%!PS-Adobe-3.0 EPSF\n",
        "eps.jpg": b"\xc5\xd0\xd3\xc6" + bytes(40), "document.png": b"%PDF-1.7\n1 0 obj",
        "archive.png": b"PK\x03\x04" + bytes(60), "gzip.png": b"\x1f\x8b\x08" + bytes(60),
        "pickle.png": b"cos\nsystem\n(S'touch x'\ntR.", "json.jpg": b'{"image": "/etc/passwd"}',
        "lfs.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "icon.png": b"\0\0\1\0\1\0\x10\x10\0\0" + bytes(60), "psd.png": b"8BPS\0\1" + bytes(60),
        "video.jpg": b"\0\0\0\x18ftypmp42" + bytes(60),
        "heic.jpg": b"\0\0\0\x18ftypheic" + bytes(60),
        "jpeg2000.jpg": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
        "fits.tif": b"SIMPLE  =" + bytes(80),
        "half a JPEG in a row.jpg": jpeg[:200] * 2, "two starts.jpg": b"\xff\xd8" * 100,
        "markers.jpg": b"\xff\xd8" + b"\xff\xe0\0\2" * 1000, "signature.png": b"\x89PNG\r\n\x1a\n",
        "riff.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff", "gif.gif": b"GIF89a",
        "bm.bmp": b"BM" + b"\xff" * 60, "p7.ppm": b"P7\nWIDTH 2\nENDHDR\n",
        "ii.tif": b"II*\0" + b"\xff" * 20,
    }.items():  # fmt: skip
        yield HostileImage(name, content)


def _structures() -> Iterator[HostileImage]:
    """Returns complete files whose parts contradict each other."""
    data = zlib.compress((b"\0" + bytes(3 * SIDE)) * SIDE)
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    yield HostileImage("short rows.png", png(SIDE, SIDE, zlib.compress(bytes(100))))
    yield HostileImage("no data.png", png(SIDE, SIDE, b""))
    yield HostileImage("more rows.png", png(SIDE, SIDE // 2, data), black[: SIDE // 2], True)
    yield HostileImage("depth 3.png", png(SIDE, SIDE, data, depth=3))
    yield HostileImage("colour 9.png", png(SIDE, SIDE, data, colour=9))
    yield HostileImage("no palette.png", png(SIDE, SIDE, data, colour=3), black, True)
    yield HostileImage("filter 99.png", png(SIDE, SIDE, zlib.compress(b"\x63" * (73 * SIDE))))
    content = valid_file("PNG")
    yield HostileImage("wrong checksum.png", content[:29] + b"\0\0\0\0" + content[33:])
    long = content[:33] + b"\xff\xff\xff\xff" + content[37:]
    yield HostileImage("long chunk.png", long, pixels_of(content), refusable=True)
    empty_chunks = content[:33] + png_chunk(b"tEXt", b"") * 2000 + content[33:]
    yield HostileImage("empty chunks.png", empty_chunks, pixels_of(content), refusable=True)
    yield HostileImage("looping directories.tif", tiff((256, 3, 1, 4), (257, 3, 1, 4), following=8))
    yield HostileImage("directory far away.tif", b"II*\0" + struct.pack("<I", 2**32 - 2))
    yield HostileImage("65,535 entries.tif", b"II*\0" + struct.pack("<IH", 8, 65_535) + bytes(600))
    yield HostileImage("offset far away.tif", tiff(
        (256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 2**32 - 10), (277, 3, 1, 1), (278, 4, 1, 4), (279, 4, 1, 16),
    ))  # fmt: skip
    jpeg = valid_file("JPEG")
    for marker in (0xC0, 0xC4, 0xDA, 0xDB):
        offset = jpeg.index(bytes((0xFF, marker)))
        damaged = jpeg[: offset + 2] + b"\xff\xff" + jpeg[offset + 4 :]
        yield HostileImage(f"long marker {marker:x}.jpg", damaged)


SECRET = 114
"""A byte outside the data set that no reader may show."""
_MILLION = 10**6


def npy(description: str, body: bytes) -> bytes:
    """Returns a `.npy` file with the given header."""
    text = description.encode() + b"\n"
    return b"\x93NUMPY\x02\0" + struct.pack("<I", len(text)) + text + body


def _bytes_of(*shape: int) -> str:
    return f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}"


def write_hostile_arrays(folder: Path) -> list[Path]:
    """Writes files without a valid image or mask named `mask`."""
    objects = npy(
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([os.system])
    )
    contents = {
        "empty.npy": b"", "magic.npy": b"\x93NUMPY",
        "version.npy": b"\x93NUMPY\xff\xff" + bytes(80),
        "objects.npy": objects, "pickle.npy": pickle.dumps(os.system),
        "huge.npy": npy(_bytes_of(_MILLION, _MILLION), bytes(10)),
        "negative.npy": npy(_bytes_of(-1, 4), bytes(10)),
        "header.npy": b"\x93NUMPY\x02\0" + struct.pack("<I", 2**31) + bytes(100),
        "nested.npy": npy("(" * 9000 + ")" * 9000, b""),
        "call.npy": npy("__import__('os').system('touch ran')", b""),
        "text.npy": npy("{'descr': '<U9', 'fortran_order': False, 'shape': (1,)}", bytes(36)),
        "objects.npz": zipped({"mask.npy": objects}),
        "outside.npz": zipped({"../../mask.npy": npy(_bytes_of(2, 2), bytes(4))}),
        "text.npz": zipped({"mask": b"no array"}),
        "cut.npz": zipped({"mask.npy": bytes(900)})[:60],
        "bomb.npz": _zip_bomb(),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    if importlib.util.find_spec("h5py"):
        _write_hdf5(folder)
    if importlib.util.find_spec("nibabel"):
        _write_nifti(folder)
    os.mkfifo(folder / "pipe.npy")
    (folder / "endless.npy").symlink_to("/dev/zero")
    return sorted(path for path in folder.iterdir() if path.is_symlink() or not path.is_dir())


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Returns a zip of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _zip_bomb() -> bytes:
    """Returns an archive whose directory declares a member of nearly 5 GiB."""
    members = {"mask.npy": npy(_bytes_of(70_000, 70_000), bytes(5_000_000))}
    content = bytearray(zipped(members, zipfile.ZIP_DEFLATED))
    # The size field holds at most 4 GiB; a larger member would need ZIP64.
    directory = content.index(b"PK\1\2")
    size = struct.pack("<Q", 4_900_000_000)
    extra_field = struct.pack("<HH", 1, 8) + size
    name_length = struct.unpack_from("<H", content, directory + 28)[0]
    struct.pack_into("<I", content, directory + 24, 0xFFFFFFFF)
    struct.pack_into("<H", content, directory + 30, len(extra_field))
    at = directory + 46 + name_length
    content[at:at] = extra_field
    end = content.index(b"PK\5\6")
    struct.pack_into("<I", content, end + 12, struct.unpack_from("<I", content, end + 12)[0] + 12)
    return bytes(content)


def _write_hdf5(folder: Path) -> None:
    import h5py

    external_folder = folder.parent / "outside"
    external_folder.mkdir(exist_ok=True)
    secret = np.full((8, 8), SECRET, np.uint8)
    (external_folder / "raw").write_bytes(secret.tobytes())
    with h5py.File(external_folder / "secret.h5", "w") as file:
        file["mask"] = secret
    with h5py.File(folder / "link.h5", "w") as file:
        file["mask"] = h5py.ExternalLink("../outside/secret.h5", "mask")
    with h5py.File(folder / "soft link.h5", "w") as file:
        file["inner"] = h5py.ExternalLink("../outside/secret.h5", "/")
        file["mask"] = h5py.SoftLink("/inner/mask")
    with h5py.File(folder / "loop.h5", "w") as file:
        file["mask"] = h5py.SoftLink("/mask")
    with h5py.File(folder / "raw.h5", "w") as file:
        file.create_dataset("mask", (8, 8), "u1", external=[(str(external_folder / "raw"), 0, 64)])
    with h5py.File(folder / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout(shape=(8, 8), dtype="u1")
        layout[:] = h5py.VirtualSource("../outside/secret.h5", "mask", shape=(8, 8))
        file.create_virtual_dataset("mask", layout)
    with h5py.File(folder / "fill.h5", "w") as file:
        file.create_dataset("mask", (_MILLION, _MILLION), "u1", chunks=(1000, 1000))
    with h5py.File(folder / "group.h5", "w") as file:
        file.create_group("mask")
    with h5py.File(folder / "text.h5", "w") as file:
        file["mask"] = ["a", "b"]
    (folder / "cut.h5").write_bytes((external_folder / "secret.h5").read_bytes()[:700])


def _write_nifti(folder: Path) -> None:
    import nibabel

    image = nibabel.Nifti1Image(np.zeros((4, 4), np.uint8), np.eye(4))
    header = bytearray(image.header.binaryblock)
    struct.pack_into("<8h", header, 40, 3, 30_000, 30_000, 30_000, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352.0)
    (folder / "huge.nii").write_bytes(bytes(header) + bytes(100))
    (folder / "bomb.nii.gz").write_bytes(gzip.compress(bytes(header) + bytes(30_000_000)))
    (folder / "noise.nii.gz").write_bytes(b"\x1f\x8b" + bytes(range(256)))
    (folder / "text.nii").write_bytes(b"no volume")
    os.mkfifo(folder / "pipe.nii")
