"""Makes `robustcli/assets/nuclei-mini.tar` and `nuclei-mini.groups.csv` from 194 pairs of DSB 2018.

    python recipes/make_nuclei_mini.py --source dsb2018_pairs

The source contains `images/<id>.png` and `masks/<id>.png` (0/255, all nuclei in one mask) from
stage 1 of the 2018 Data Science Bowl, CC0 (Broad Bioimage Benchmark Collection, BBBC038). The
results are:

- `images/fluorescence/<id>.jpg` (160, grey), `images/stained/<id>.webp` (34, colour), each at the
  lowest quality with a PSNR of at least 37 dB relative to the image's range of values (for noisy
  dark images without such a quality, the highest quality, which has at least 35 dB). Grey images
  are JPEG, because WebP would map grey levels 0..255 to 16..235, and dark images have 30 levels.
- `masks/<kind>/<id>.png`, one bit per pixel, lossless.
- the groups: many images are tiles of a larger photo, cut without overlap, and would leak from
  training to test. Two tiles are joined if the border of one continues in the other: the borders
  correlate, and the step between them is not larger than steps inside the images. The limits were
  chosen by visual inspection of the seams: 50 joins are all seamless; the two next candidates
  (correlation 0.90 with steps of 0.96 and 0.98) are not. The 194 tiles form 144 photos. Tiles that
  touch only at a corner, or along a border without structure, cannot be recognised and are not
  joined.
- the split, so that all runs on this demonstration set are comparable: of each kind, a quarter of
  the photos is for test and an eighth for validation, in an order drawn only from the photo names.

The bundled files were made with Pillow 13.0; other versions may encode the pixels differently.
"""

from __future__ import annotations

import argparse
import csv
import io
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.io import write_bytes, write_text
from robustcli.core.seeds import identity_seed

QUALITIES = (75, 85, 95, 97)
FAITHFUL_DB = 37.0
TEST, VALIDATION = 1 / 4, 1 / 8
# Smallest correlation of two borders, and largest step between them relative to inner steps.
STEPS = {0.7: 0.9, 0.95: 1.05}
# In grey levels: borders with a smaller deviation are only noise; and the step by rounding.
STRUCTURE, ROUNDING = 1.0, 0.3
TARGET = Path(__file__).parents[1] / "robustcli" / "assets" / "nuclei-mini.tar"
Pixels = NDArray[np.uint8]


def build(source: Path) -> tuple[bytes, str]:
    """The tar of images and masks, sorted by name, and the table of groups."""
    images = {path.stem: _rgb(path) for path in sorted((source / "images").glob("*.png"))}
    members, rows = {}, []
    for name, photo in photos(images).items():
        kind = "stained" if is_coloured(images[name]) else "fluorescence"
        suffix, content = encode(images[name])
        members[f"images/{kind}/{name}{suffix}"] = content
        members[f"masks/{kind}/{name}.png"] = _mask(source / "masks" / f"{name}.png")
        rows.append((f"{kind}/{name}{suffix}", photo))
    return _tar(members), table(rows)


def table(rows: Sequence[tuple[str, str]]) -> str:
    """The CSV table `image,photo,split` of all images, sorted, from pairs (image, photo)."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for image, photo in rows:
        kinds[image.partition("/")[0]].add(photo)
    part = {photo: split for found in kinds.values() for photo, split in _parts(found)}
    text = io.StringIO()
    header = ("image", "photo", "split")
    found = [(image, photo, part[photo]) for image, photo in sorted(rows)]
    csv.writer(text, lineterminator="\n").writerows([header, *found])
    return text.getvalue()


def _parts(photos: Collection[str]) -> Iterator[tuple[str, str]]:
    drawn = sorted(photos, key=lambda photo: identity_seed("nuclei-mini", photo))
    for place, photo in enumerate(drawn):
        share = place / len(drawn)
        yield photo, "test" if share < TEST else "val" if share < TEST + VALIDATION else "train"


def is_coloured(image: Pixels) -> bool:
    """Whether channels differ: by 0 in fluorescence images, by 12 on average in stained images."""
    return bool((image.max(axis=2) != image.min(axis=2)).any())


def encode(image: Pixels) -> tuple[str, bytes]:
    """Suffix and content of the image file, at the lowest quality with sufficient PSNR."""
    coloured = is_coloured(image)
    for quality in QUALITIES:
        buffer = io.BytesIO()
        if coloured:
            Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=6)
        else:
            grey = Image.fromarray(image[..., 0])
            grey.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
        if fidelity(image, np.asarray(Image.open(buffer).convert("RGB"))) >= FAITHFUL_DB:
            break
    return (".webp" if coloured else ".jpg"), buffer.getvalue()


def fidelity(image: Pixels, copy: Pixels) -> float:
    """PSNR in dB; the peak value is the 99.9 % quantile of the image."""
    error = np.mean((image.astype(float) - copy) ** 2)
    return float(20 * np.log10(np.quantile(image, 0.999)) - 10 * np.log10(np.maximum(error, 1e-12)))


def photos(images: Mapping[str, Pixels]) -> dict[str, str]:
    """The photo of each image, named after its first tile."""
    photo = {name: name for name in images}
    for left, right in joins(images):
        first, other = sorted((photo[left], photo[right]))
        photo = {name: first if p == other else p for name, p in photo.items()}
    return photo


def joins(images: Mapping[str, Pixels]) -> Iterator[tuple[str, str]]:
    """Pairs of images where the last column (or row) of one continues in the first of the other."""
    shapes: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, image in images.items():
        shapes[image.shape].append(name)
    for names in shapes.values():
        stack = np.stack([images[name] for name in names]).astype(float)
        for lines in (stack.transpose(0, 2, 1, 3), stack):
            yield from ((names[i], names[j]) for i, j in np.argwhere(_continues(lines)))


def _continues(lines: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether image i continues in image j; `lines` (n, lines, pixels, 3) are along the border."""
    last, first = lines[:, -1], lines[:, 0]
    step = np.stack([np.abs(one - first).mean(axis=(1, 2)) for one in last])
    inner_last = np.abs(last - lines[:, -2]).mean(axis=(1, 2))
    inner_first = np.abs(first - lines[:, 1]).mean(axis=(1, 2))
    inner = (inner_last[:, None] + inner_first) / 2 + ROUNDING
    correlation = _standard(last) @ _standard(first).T
    np.fill_diagonal(correlation, 0)
    best: NDArray[np.bool_] = correlation == correlation.max(axis=1, keepdims=True)
    best &= correlation == correlation.max(axis=0)
    close = [(correlation >= least) & (step < most * inner) for least, most in STEPS.items()]
    best &= np.any(close, axis=0)
    return best


def _standard(borders: NDArray[np.float64]) -> NDArray[np.float64]:
    """Borders (n, pixels, 3) as grey vectors of mean 0 and length 1; 0 for borders of noise."""
    grey = borders.mean(axis=2)
    centred = grey - grey.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    structured = grey.std(axis=1, keepdims=True) > STRUCTURE
    return np.where(structured, centred / np.maximum(length, 1e-12), 0)


def _rgb(path: Path) -> Pixels:
    return np.array(Image.open(path).convert("RGB"))


def _mask(path: Path) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(Image.open(path)) > 0).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _tar(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    # Without the padding to 10,240 bytes that `tarfile` adds: two empty blocks end a tar.
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(members.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        end = archive.offset + 2 * tarfile.BLOCKSIZE
    return buffer.getvalue()[:end]


def main() -> None:
    """Writes the assets and prints their sizes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    content, groups = build(arguments.source)
    write_bytes(arguments.out, content)
    write_text(arguments.out.with_suffix(".groups.csv"), groups)
    print(f"{arguments.out}: {len(content):,} bytes, {len(groups.splitlines()) - 1} images")


if __name__ == "__main__":
    main()
