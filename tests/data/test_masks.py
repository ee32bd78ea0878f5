"""Masks are read by one decision for a data set, or refused with the values that were found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data.dataset import FileRef, Sample
from robustcli.data.decode import UnreadableImage
from robustcli.data.mask_values import IGNORED, ValueOption
from robustcli.data.masks import MaskPixels, check_pair, decode_mask, decode_pair, read_mask, survey

TRUTH = np.array([[0, 1, 1], [0, 0, 1]], bool)
BYTES = TRUTH.astype(np.uint8)


def _saved(folder: Path, image: Image.Image, name: str = "m.png") -> FileRef:
    image.save(folder / name)
    return FileRef(name, folder / name)


def _palette(*colours: int) -> Image.Image:
    image = Image.frombytes("P", (3, 2), BYTES.tobytes())
    image.putpalette(list(colours))
    return image


KINDS = {
    "0 and 255": lambda: Image.fromarray(BYTES * 255),
    "0 and 1": lambda: Image.fromarray(BYTES),
    "one bit": lambda: Image.fromarray(TRUTH),
    "16 bits, 0 and 65535": lambda: Image.fromarray(TRUTH.astype(np.uint16) * 65535),
    "16 bits, 0 and 1": lambda: Image.fromarray(TRUTH.astype(np.uint16)),
    "grey as colour": lambda: Image.fromarray(BYTES * 255).convert("RGB"),
    "with alpha": lambda: Image.fromarray(BYTES * 255).convert("LA"),
    "indices of colours": lambda: _palette(0, 0, 0, 128, 0, 0),
    "palette of black and white": lambda: _palette(0, 0, 0, 255, 255, 255),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_way_to_write_two_classes(kind: str, suffix: str, tmp_path: Path) -> None:
    mask = decode_mask(_saved(tmp_path, KINDS[kind](), f"m{suffix}"))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, TRUTH)


def test_a_lossless_webp_with_a_profile_is_lossless(tmp_path: Path) -> None:
    for lossless in (True, False):
        path = tmp_path / f"{lossless}.webp"
        profile = b"x" * 200  # in a chunk before that of the pixels
        Image.fromarray(BYTES * 3).save(path, lossless=lossless, icc_profile=profile)
        assert read_mask(FileRef(path.name, path)).lossy is not lossless


@pytest.mark.parametrize("options", [{}, {"classes": "all"}])
def test_values_that_are_no_numbers_are_not_offered_as_foreground(
    options: dict[str, str], tmp_path: Path
) -> None:
    np.save(tmp_path / "m.npy", np.where(TRUTH, np.nan, 0))
    with pytest.raises(UsageError, match=r"\(NaN\)\.\nSave them again with integers"):
        survey([FileRef("m.npy", tmp_path / "m.npy")], "the set", **options)


def test_a_palette_counts_by_its_greys(tmp_path: Path) -> None:
    turned = _saved(tmp_path, _palette(255, 255, 255, 0, 0, 0))
    np.testing.assert_array_equal(decode_mask(turned), ~TRUTH)


@pytest.mark.parametrize(("level", "foreground"), [(0, 0), (1, 6), (255, 6)])
def test_masks_of_one_value(level: int, foreground: int, tmp_path: Path) -> None:
    ref = _saved(tmp_path, Image.fromarray(np.full((2, 3), level, np.uint8)))
    assert decode_mask(ref).sum() == foreground


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.array([[3]], np.uint8), r"3 \(100\.0%\)\."),
        (
            np.array([[0, 1, 255]], np.uint8),
            r"0 \(33\.3%\), 1 .*, 255 .*--ignore 255` excludes that",
        ),
        (
            np.arange(10, dtype=np.uint8)[None],
            r"0 .*, 7 \(10\.0%\) and 2 others\.\nSpecify .*`1,2`",
        ),
        (np.array([[0, 0.5, 1]], np.float32), r"0 .*, 0\.5 .*, 1 "),
    ],
)
def test_values_that_do_not_tell_are_listed_with_their_shares_and_the_flags(
    levels: NDArray[Any], expected: str, tmp_path: Path
) -> None:
    ref = _saved(tmp_path, Image.fromarray(levels), "m.tif")
    message = rf"(?s)m\.tif` is the foreground\.\nTheir .*{expected}"
    with pytest.raises(UsageError, match=message):
        decode_mask(ref)


def test_a_red_mask_on_white_does_not_say_which_of_the_two_it_is(tmp_path: Path) -> None:
    red = Image.new("RGB", (3, 2), (255, 255, 255))
    red.putpixel((1, 1), (255, 0, 0))
    ref = _saved(tmp_path, red)
    with pytest.raises(UsageError, match=r"(?s)#ff0000.*black.*`--foreground '#ff0000'`"):
        decode_mask(ref)
    reading, _ = survey([ref], "m", foreground="#ff0000")
    assert decode_mask(ref, reading).sum() == 1


SHAPE = np.zeros((48, 64), np.uint8)
SHAPE[10:30, 8:40] = 1


def _write(folder: Path, name: str, values: Any, **options: Any) -> FileRef:
    folder.mkdir(exist_ok=True)
    if name.endswith(".npy"):
        np.save(folder / name, values)
    else:
        image = values if isinstance(values, Image.Image) else Image.fromarray(values)
        image.save(folder / name, **options)
    return FileRef(name, folder / name)


def _red(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([mask * 255, mask * 0, mask * 0], -1)


def _indexed(mask: NDArray[np.uint8], *, inverted: bool = False) -> Image.Image:
    image = Image.frombytes("P", mask.shape[::-1], ((1 - mask) if inverted else mask).tobytes())
    image.putpalette([128, 0, 0, 0, 0, 0] if inverted else [0, 0, 0, 128, 0, 0])
    return image


def _transparent(mask: NDArray[np.uint8]) -> Image.Image:
    image = Image.new("RGBA", mask.shape[::-1], (255, 255, 255, 255))
    image.putalpha(Image.fromarray(mask * 255))
    return image


CLEAR: dict[str, tuple[str, Any, str]] = {
    "0 and 128": ("png", lambda m: m * 128, "foreground 128, background 0"),
    "1 and 2": ("png", lambda m: m + 1, "foreground 2, background 1"),
    "red on black": ("png", _red, "foreground #ff0000, background 0 (colours)"),
    "float": ("tif", lambda m: m.astype(np.float32), "foreground 1, background 0 (floating"),
    "int32": ("tif", lambda m: m.astype(np.int32) * 255, "foreground 255, background 0 (integers"),
    "16 bits": ("png", lambda m: m.astype(np.uint16) * 65535, "foreground 65535, background 0"),
    "16 bits of 1000": ("png", lambda m: m.astype(np.uint16) * 1000, "foreground 1000"),
    "bool npy": ("npy", lambda m: m.astype(bool), "foreground 1, background 0 (arrays of numpy)"),
    "npy": ("npy", lambda m: m.astype(np.int64)[None] * 7, "foreground 7, background 0 (arrays"),
    "palette": ("png", _indexed, "foreground 1, background 0 (palette indices)"),
    "blurred": ("jpg", lambda m: m * 255, "JPEG has blurred their edges; each pixel is assigned"),
    "alpha": ("png", _transparent, "foreground 255 of the alpha channel, background 0"),
    "plain": ("png", lambda m: m * 255, ""),
    "gif": ("gif", lambda m: m * 255, ""),
}


@pytest.mark.parametrize("kind", CLEAR)
def test_masks_that_say_clearly_what_they_mean_are_read_and_announced(
    kind: str, tmp_path: Path
) -> None:
    """An empty mask among the others is empty: one decision holds for all of them."""
    suffix, values, note = CLEAR[kind]
    truths = [SHAPE, np.zeros_like(SHAPE), np.roll(SHAPE, 9, 1)]
    refs = [_write(tmp_path, f"{i}.{suffix}", values(m)) for i, m in enumerate(truths)]
    reading, notes = survey(refs, "the set")
    for ref, truth in zip(refs, truths, strict=True):
        np.testing.assert_array_equal(decode_mask(ref, reading), truth == 1)
    assert len(notes) == bool(note)
    assert note in "".join(notes)


def test_pixels_that_jpeg_has_blurred_are_near_the_truth(tmp_path: Path) -> None:
    stripes = np.tile(np.repeat(np.array([0, 255], np.uint8), 11), (64, 5))
    ref = _write(tmp_path, "m.jpg", stripes, quality=60)
    assert len(np.unique(np.asarray(Image.open(ref.path)))) > 2, "the file is blurred"
    np.testing.assert_array_equal(decode_mask(ref), stripes == 255)


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 1), (0, 40, 80)])
def test_a_jpeg_of_other_classes_is_refused(values: tuple[int, ...], tmp_path: Path) -> None:
    blocks = np.repeat(np.repeat(np.array([values], np.uint8), 32, 1), 32, 0)
    with pytest.raises(UsageError, match=r"(?s)is not known.*JPEG blurs edges, but blur of"):
        decode_mask(_write(tmp_path, "m.jpg", blocks))
    good = _write(tmp_path, "good.jpg", SHAPE * 255)
    reading, _ = survey([good], "the set")
    if len(values) == 3:
        with pytest.raises(UsageError, match=r"are not those of a blurred mask of two values"):
            decode_mask(_write(tmp_path, "late.jpg", blocks), reading)


def test_palettes_that_are_ordered_otherwise_in_each_file_are_told_by_colour(
    tmp_path: Path,
) -> None:
    refs = [
        _write(tmp_path, "a.png", _indexed(SHAPE, inverted=True)),
        _write(tmp_path, "b.png", _red(SHAPE) // 255 * 128),
    ]
    reading, _ = survey(refs, "the set")
    assert reading.words().startswith("foreground #800000, background 0")
    for ref in refs:
        np.testing.assert_array_equal(decode_mask(ref, reading), SHAPE == 1)


def test_values_to_ignore_are_marked(tmp_path: Path) -> None:
    mask = SHAPE.copy()
    mask[:4] = 255
    only_void = np.where(SHAPE == 1, 0, mask)  # 0 and 255: by itself it would look like foreground
    refs = [_write(tmp_path, "a.png", mask), _write(tmp_path, "b.png", only_void)]
    reading, notes = survey(refs, "the set", ignore="255")
    assert "foreground 1, background 0, ignored 255" in notes[0]
    np.testing.assert_array_equal(decode_mask(refs[0], reading), np.where(mask > 1, IGNORED, mask))
    assert set(np.unique(decode_mask(refs[1], reading))) == {0, IGNORED}


@pytest.mark.parametrize(
    ("foreground", "expected"),
    [(2, [2]), ("1,2", [1, 2]), ((1, 3), [1, 3]), ("nonzero", [1, 2, 3])],
)
def test_the_user_may_say_what_is_foreground(
    foreground: ValueOption, expected: list[int], tmp_path: Path
) -> None:
    classes = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    ref = _write(tmp_path, "m.png", classes)
    reading, notes = survey([ref], "the set", foreground=foreground)
    np.testing.assert_array_equal(decode_mask(ref, reading), np.isin(classes, expected))
    assert "background everything else" in notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"foreground": "red"},
            r"`--foreground red` contains no values .*\n.*`#ff0000`\), or `nonze",
        ),
        ({"ignore": "nan"}, r"`--ignore nan` contains no values of masks"),
        ({"ignore": ""}, r"`--ignore ` contains no values of masks"),
        ({"foreground": 2, "ignore": (2, 3)}, r"`--foreground` and `--ignore` both contain 2\."),
        ({"foreground": 9}, r"(?s)No mask of `the set` has the value 9\..*0 \(50\.0%\), 3 "),
        ({"ignore": (0, 3)}, r"`--ignore 0, 3` ignores all values of the masks"),
    ],
)
def test_flags_that_make_no_sense(options: Any, message: str, tmp_path: Path) -> None:
    ref = _write(tmp_path, "m.png", np.array([[0, 3]], np.uint8))
    with pytest.raises(UsageError, match=message):
        survey([ref], "the set", **options)


def test_advice_on_masks_in_colours_is_about_colours(tmp_path: Path) -> None:
    colours = np.array([[[0, 0, 0], [0, 255, 0], [255, 0, 0]]], np.uint8)
    ref = _write(tmp_path, "m.png", colours)
    message = (
        r"(?s)which colour of .*`'#00ff00,#ff0000'` for several, `nonzero` for every colour except "
        r"black\); all other colours .*`--ignore COLOUR`.*every colour as a separate class"
    )
    with pytest.raises(UsageError, match=message):
        survey([ref], "the set")
    message = r"List the colours that are classes, .*`--classes '#00ff00=liver,#ff0000=kidney'`"
    with pytest.raises(UsageError, match=message):
        survey([ref], "the set", classes="all", ignore="#00ff00,#ff0000")


def test_a_value_that_other_masks_do_not_have_is_never_guessed(tmp_path: Path) -> None:
    reading, _ = survey([_write(tmp_path, "a.png", SHAPE)], "the set")
    late = _write(tmp_path, "late.png", SHAPE * 255)
    message = (
        r"(?s)late\.png` contains 255\.\n.*read as foreground 1, background 0;.*--ignore VALUES`"
    )
    with pytest.raises(UsageError, match=message):
        decode_mask(late, reading)


def test_a_set_of_masks_of_two_kinds_is_ambiguous(tmp_path: Path) -> None:
    """0 and 1 in one file, 0 and 255 in another: 255 may be pixels to ignore."""
    refs = [_write(tmp_path, "a.png", SHAPE), _write(tmp_path, "b.png", SHAPE * 255)]
    with pytest.raises(UsageError, match=r"(?s)0 .*, 1 .*, 255 "):
        survey(refs, "the set")
    reading, _ = survey(refs, "the set", foreground="1,255")
    for ref in refs:
        np.testing.assert_array_equal(decode_mask(ref, reading), SHAPE == 1)


def test_a_large_set_is_decided_by_a_sample_that_hangs_on_ids_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustcli.data.masks._MOST_MASKS", 32)
    small = SHAPE[8:12, 6:10]
    refs = [_write(tmp_path, f"{i:03}.png", small * 128) for i in range(100)]
    read: list[str] = []

    def counted(ref: FileRef, palette: str = "auto") -> MaskPixels:
        read.append(ref.relative)
        return read_mask(ref)

    monkeypatch.setattr("robustcli.data.masks.read_mask", counted)
    reading, notes = survey(refs, "the set")
    first, read[:] = sorted(read), []
    assert len(first) == 32
    assert "from 32 of 100 masks" in notes[0]
    survey(refs, "the set")
    assert read == [], "the same files are not read again"
    os.utime(refs[0].path, ns=(1, 1))
    assert survey(refs[::-1], "the set")[0] == reading
    assert sorted(read) == first, "whatever the order of the files"


def test_empty_masks_do_not_decide_while_there_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustcli.data.masks._MOST_MASKS", 2)
    refs = [_write(tmp_path, f"{i:03}.png", SHAPE[:4, :4] * 0) for i in range(99)]
    refs.append(_write(tmp_path, "full.png", SHAPE * 128))
    assert survey(refs, "the set")[0].foreground == (128,)


def test_alpha_must_not_contradict_the_colours(tmp_path: Path) -> None:
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = SHAPE[..., None] * 255, SHAPE * 255
    np.testing.assert_array_equal(decode_mask(_write(tmp_path, "m.png", pixels)), SHAPE == 1)
    pixels[..., 3] = np.roll(SHAPE, 5, 0) * 255
    with pytest.raises(UsageError, match="colours and an alpha channel that contradict each other"):
        decode_mask(_write(tmp_path, "other.png", pixels))


def test_no_channel_of_a_later_mask_is_lost(tmp_path: Path) -> None:
    plain = _write(tmp_path, "plain.png", SHAPE * 255)
    clear = _write(tmp_path, "clear.png", _transparent(SHAPE))
    by_colour, _ = survey([plain], "the set")
    with pytest.raises(UsageError, match="has an alpha channel that contradicts its"):
        decode_mask(clear, by_colour)
    by_alpha, _ = survey([clear], "the set")
    with pytest.raises(UsageError, match="has no alpha channel"):
        decode_mask(plain, by_alpha)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 3, 4, 5)), "an array of shape"),
        (np.array(["a"]), "not a numeric array"),
        (np.array([{}]), "damaged: Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_are_no_masks(array: NDArray[Any], reason: str, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", array, allow_pickle=True)
    with pytest.raises(UnreadableImage, match=reason):
        decode_mask(FileRef("m.npy", tmp_path / "m.npy"))


def test_unreadable_masks(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(b"\x89PNG")
    with pytest.raises(UnreadableImage, match="not in a supported image format"):
        decode_mask(FileRef("m.png", tmp_path / "m.png"))
    with pytest.raises(UnreadableImage, match="cannot be read: No such file"):
        decode_mask(FileRef("n.png", tmp_path / "n.png"))


def test_a_pair_is_decoded_together(tmp_path: Path) -> None:
    photo = _saved(tmp_path, Image.new("RGB", (3, 2), (9, 8, 7)), "i.png")
    pair = Sample(photo, _saved(tmp_path, Image.fromarray(BYTES)), "i")
    image, mask = decode_pair(pair)
    np.testing.assert_array_equal(image, np.full((2, 3, 3), (9, 8, 7)))
    np.testing.assert_array_equal(mask, TRUTH)
    (tmp_path / "m.png").write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"its mask `m\.png`: the file is empty"):
        decode_pair(pair)


def test_sizes_that_differ_name_both_files(tmp_path: Path) -> None:
    photo = _saved(tmp_path, Image.new("RGB", (4, 2)), "i.png")
    pair = Sample(photo, _saved(tmp_path, Image.fromarray(BYTES)), "i")
    message = r"i\.png` and its mask `.*m\.png` differ in size\.\nThe image is 4x2 .* the mask 3x2,"
    with pytest.raises(UsageError, match=message):
        decode_pair(pair)


def test_members_of_a_tar_are_named_with_their_tar() -> None:
    image, mask = (FileRef(n, Path("s.tar"), f"{n}.png") for n in ("i", "m"))
    with pytest.raises(UsageError, match=r"`s\.tar:i\.png` and its mask `s\.tar:m\.png` differ"):
        check_pair(Sample(image, mask, "i"), np.zeros((2, 3, 3)), np.zeros((3, 2)))


@pytest.mark.parametrize("folder", ["lgg_jpeg/kaggle_3m/TCGA_DU_7010_19860307"])
def test_real_masks_are_those_of_pillow(shared: Path, folder: str) -> None:
    files = sorted((shared / folder).glob("*_mask.tif"))[::7]
    for file in files:
        expected = np.asarray(Image.open(file)) == 255
        np.testing.assert_array_equal(decode_mask(FileRef(file.name, file)), expected)
    assert len(files) > 4
