"""Damaged and hostile images and arrays: decoded correctly, or refused with one clear reason."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data.dataset import FileRef, UnreadableImage
from robustcli.data.decode import decode, decode_bytes, image_size
from robustcli.data.masks import decode_mask, read_mask
from tests.hostile.images import (
    FORMATS,
    SECRET,
    SIDE,
    HostileImage,
    corpus,
    encoded,
    photo,
    pixels_of,
    valid_file,
    write_hostile_arrays,
)

SECONDS = 3  # for one file; the slowest takes 0.1 on an idle core
MEGABYTES = 3000  # of the process, 200 of which are used by its libraries


def judge(image: HostileImage) -> str:
    """Returns `read` or `refused`; fails if the result is wrong."""
    started_at = time.process_time()
    try:
        pixels = decode_bytes(image.content)
    except UnreadableImage as error:
        pixels, reason = None, error.reason
    assert time.process_time() - started_at < SECONDS, image.name
    if pixels is None:
        assert len(reason.splitlines()) == 1, image.name
        assert image.pixels is None or image.refusable, f"{image.name}: {reason}"
        return "refused"
    assert image.pixels is not None, f"{image.name} must be refused"
    np.testing.assert_array_equal(pixels, image.pixels, err_msg=image.name)
    return "read"


def test_each_file_is_decoded_right_or_refused() -> None:
    verdicts = [judge(image) for image in corpus()]
    assert len(verdicts) > 200
    assert verdicts.count("read") > 70
    assert verdicts.count("refused") > 130


def test_parts_of_a_large_image_are_decoded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large images are converted in parts, here of three rows."""
    monkeypatch.setattr("robustcli.data.decode._PART_PIXELS", 3 * SIDE)
    assert [judge(image) for image in corpus()].count("read") > 70


def test_masks_of_the_same_files_are_read_or_refused() -> None:
    counts = {"read": 0, "refused": 0}
    for image in corpus():
        file = FileRef(image.name, Path("set.tar"), image.name, rows=_Rows(image.content))
        try:
            height, width = read_mask(file).values.shape
        except UnreadableImage:
            assert image.pixels is None or image.refusable, image.name
            counts["refused"] += 1
            continue
        counts["read"] += 1
        if image.pixels is not None:
            assert (height, width) == image.pixels.shape[:2], image.name
    assert counts["read"] > 70
    assert counts["refused"] > 120


class _Rows:
    """A table of one image."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, row: int) -> bytes:
        return self.content

    def pin(self, row: int) -> str:
        return str(row)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FORMATS), st.data())
def test_changed_bytes_give_pixels_or_a_reason(codec: str, data: st.DataObject) -> None:
    content = bytearray(valid_file(codec))
    for _ in range(data.draw(st.integers(1, 6))):
        offset = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "double", "remove"]))
        if change == "set":
            content[offset] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del content[offset + 1 :]
        elif change == "double":
            content[offset:offset] = content[offset : offset + 40]
        else:
            del content[offset : offset + data.draw(st.integers(1, 8))]
        content = content or bytearray(b"\0")
    started_at = time.process_time()
    with suppress(UnreadableImage):
        pixels = decode_bytes(bytes(content))
        assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    assert time.process_time() - started_at < SECONDS


def test_a_jpeg_of_as_many_scans_as_encoders_write_is_read() -> None:
    content = encoded(photo(size=(40, 40)), "JPEG", progressive=True)
    assert content.count(b"\xff\xda") > 5
    np.testing.assert_array_equal(decode_bytes(content), pixels_of(content))


def test_what_never_ends_is_refused_at_once(tmp_path: Path) -> None:
    pipe, endless, sparse = (tmp_path / name for name in ("pipe.png", "endless.png", "sparse.png"))
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    with sparse.open("wb") as file:
        file.truncate(10**12)
    for path, reason in ((pipe, "not a plain file"), (endless, "not a plain file"),
                         (sparse, "exceeds the limit")):  # fmt: skip
        for read_pixels in (decode, image_size, read_mask):
            if (path, read_pixels) == (sparse, image_size):
                continue  # reads the header only
            with pytest.raises(UnreadableImage, match=reason):
                read_pixels(FileRef(path.name, path))


def test_arrays_are_refused_and_show_nothing_of_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    paths = write_hostile_arrays(folder)
    assert len(paths) >= 18
    for path in paths:
        started_at = time.process_time()
        for read_pixels in (decode, read_mask):
            with pytest.raises((UnreadableImage, UsageError)) as caught:
                read_pixels(FileRef(path.name, path, array="mask"))
            assert str(SECRET) not in str(caught.value)
        assert time.process_time() - started_at < SECONDS, path.name
    assert not Path("ran").exists()


def test_a_mask_of_no_numbers_has_no_meaning(tmp_path: Path) -> None:
    for name, value in {"nan": np.nan, "not one": -np.nan}.items():
        mask = np.zeros((4, 4))
        mask[0, 0] = value
        np.save(tmp_path / f"{name}.npy", mask)
        with pytest.raises((UnreadableImage, UsageError)):
            decode_mask(FileRef(f"{name}.npy", tmp_path / f"{name}.npy"))


@pytest.mark.slow  # reads the largest allowed images: seconds and gigabytes
@pytest.mark.timeout(300)
def test_memory_and_time_stay_within_what_is_stated() -> None:
    code = (
        "import io, json, resource, time\n"
        "from PIL import Image\n"
        "from robustcli.data.decode import UnreadableImage, decode_bytes\n"
        "from tests.hostile.images import corpus, progressive_bomb\n"
        "largest = io.BytesIO()\n"
        "Image.new('RGB', (13_377, 13_377)).save(largest, 'PNG')\n"
        "seconds = 0\n"
        "for content in (*(i.content for i in corpus()), largest.getvalue(),\n"
        "                progressive_bomb(256, 13_000)):\n"
        "    begun = time.process_time()\n"
        "    try:\n"
        "        decode_bytes(content)\n"
        "    except UnreadableImage:\n"
        "        pass\n"
        "    seconds = max(seconds, time.process_time() - begun)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "print(json.dumps([peak, seconds]))\n"
    )
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    megabytes, seconds = json.loads(process.stdout)
    assert megabytes < MEGABYTES
    assert seconds < 60


@pytest.mark.slow  # 3,000 mutations
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FORMATS), st.randoms(use_true_random=False))
def test_many_changed_bytes_give_pixels_or_a_reason(codec: str, random: object) -> None:
    content = bytearray(valid_file(codec))
    for _ in range(random.randint(1, 8)):  # type: ignore[attr-defined]
        content[random.randrange(len(content))] = random.randrange(256)  # type: ignore[attr-defined]
    with suppress(UnreadableImage):
        decode_bytes(bytes(content))


def test_an_opened_image_of_many_frames_shows_its_first() -> None:
    frames = [photo(seed) for seed in range(3)]
    content = encoded(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_bytes(content), np.asarray(frames[0]))
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3
