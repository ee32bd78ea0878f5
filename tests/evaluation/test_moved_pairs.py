"""What a segmenter's batch holds: images and masks that moved together."""

import numpy as np
import pytest
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data.decode import decode
from robustcli.data.masks import decode_pair
from robustcli.data.open_pairs import open_pairs
from robustcli.evaluation import moved_pairs
from robustcli.evaluation.loader import ORIGINAL, Source, batch_stream
from robustcli.evaluation.moved_pairs import PairPreparation
from robustcli.evaluation.plan import Plan, parts_of
from robustcli.evaluation.store import INPUT_SCHEMA, Cell, Store, write_rows
from robustcli.transforms.registry import resolve
from tests.evaluation.cells import make_pairs, pairs_in


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return pairs_in(tmp_path_factory.mktemp("cells"))


def source(index, run, *names, batch_size=4, seed=0, plugins=()):
    cells = {Cell(c.transform.name, c.severity): c for c in resolve(names, None, plugins)}
    plan = Plan(Store(run), index.pairs, tuple(cells), ("model",), (ORIGINAL,), 7)
    return Source(parts_of(plan.missing(), batch_size), PairPreparation(cells, seed))


def by_cell(stream) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Image and mask by transform and image id."""
    return {
        (batch.cell.transform, name): pair
        for batch in stream
        for name, *pair in zip(
            batch.image_ids, batch.inputs.images, batch.inputs.masks, strict=True
        )
    }


def test_identity_sends_the_pair_itself_at_its_own_size(index, tmp_path):
    sent = by_cell(source(index, tmp_path, "identity"))
    assert len(sent) == len(index.pairs) == 9
    for pair in index.pairs:
        image, mask = sent["identity", pair.image_id]
        expected = decode_pair(pair)
        assert np.array_equal(image, expected[0])
        assert np.array_equal(mask, expected[1])
        assert (image.dtype, mask.dtype) == (np.uint8, np.bool_)
    assert len({image.shape for image, _ in sent.values()}) == 3


def test_a_flip_moves_both_and_a_blur_only_the_image(index, tmp_path):
    sent = by_cell(source(index, tmp_path, "fliplr", "gaussian_blur"))
    for pair in index.pairs:
        image, mask = decode_pair(pair)
        flipped, moved = sent["fliplr", pair.image_id]
        assert np.array_equal(flipped, image[:, ::-1])
        assert np.array_equal(moved, mask[:, ::-1])
        assert np.array_equal(sent["gaussian_blur", pair.image_id][1], mask)


@pytest.mark.parametrize("name", ["affine", "perspective", "piecewise_affine", "crop_and_pad"])
def test_where_the_mask_goes_the_object_goes(tmp_path, name):
    """The image shows its own mask, so that both must agree wherever the transform takes them."""
    manifest = make_pairs(tmp_path / "cells", per_patient=2)
    drawn = np.zeros((200, 220), np.uint8)
    drawn[40:100, 55:120] = 255
    for mask in (tmp_path / "cells" / "masks").iterdir():
        Image.fromarray(drawn).save(mask)
        Image.fromarray(drawn).convert("RGB").save(tmp_path / "cells" / "images" / mask.name)
    sent = by_cell(source(open_pairs(str(manifest)), tmp_path, name))
    moved = [pair for (transform, _), pair in sent.items() if transform == name]
    assert len(moved) == 6
    for image, mask in moved:
        shown = image[..., 0] >= 128
        assert (shown & mask).sum() / (shown | mask).sum() > 0.9
        assert not np.array_equal(mask, drawn > 0)


def test_corners_that_come_into_view_are_background(tmp_path):
    """Grey images that are foreground all over: what affine leaves black is outside them."""
    manifest, size = make_pairs(tmp_path / "cells", per_patient=2), (60, 60)
    for file in (tmp_path / "cells" / "masks").iterdir():
        Image.new("L", size, 255).save(file)
        Image.new("RGB", size, (200, 200, 200)).save(tmp_path / "cells" / "images" / file.name)
    sent = by_cell(source(open_pairs(str(manifest)), tmp_path, "affine", seed=3))
    turned = [pair for (name, _), pair in sent.items() if name == "affine"]
    seen = {bool(mask.all()) for _, mask in turned}
    assert False in seen, "none of them was moved"
    for image, mask in turned:
        inside = image[..., 0] >= 100
        assert (inside != mask).sum() <= 2 * sum(mask.shape), "they differ along one line at most"


def test_a_transform_that_changes_the_size_changes_that_of_the_mask(index, tmp_path):
    plugin = tmp_path / "half.py"
    plugin.write_text(
        "from robustcli.transforms import transform\n"
        "@transform(geometric=True)\n"
        "def half(image, rng, value):\n"
        "    return image[: len(image) // 2].copy()\n"
    )
    sent = by_cell(source(index, tmp_path, "half", plugins=[plugin]))
    for pair in index.pairs:
        image, mask = sent["half", pair.image_id]
        assert mask.shape == image.shape[:2] == (20, decode(pair.image).shape[1])
        assert np.array_equal(mask, decode_pair(pair)[1][:20])


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (0, 9), (2, 3)])
def test_pixels_do_not_depend_on_workers_or_batches(index, tmp_path, workers, batch_size):
    names = ("affine", "cutout", "crop")
    expected = by_cell(source(index, tmp_path, *names))
    other = source(index, tmp_path, *names, batch_size=batch_size)
    found = by_cell(batch_stream(other, workers, pin=False))
    assert found.keys() == expected.keys()
    for key, pair in expected.items():
        assert all(np.array_equal(a, b) for a, b in zip(found[key], pair, strict=True))


def test_every_pair_is_decoded_once(index, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        moved_pairs, "decode_pair", lambda p: decoded.append(p.image_id) or decode_pair(p)
    )
    list(source(index, tmp_path, "affine", "invert", "crop"))
    assert sorted(decoded) == [pair.image_id for pair in index.pairs]


def test_measures_are_sent_for_the_view_that_lacks_them(index, tmp_path):
    stream = source(index, tmp_path, "invert")
    batch = next(b for b in stream if b.cell.transform == "invert")
    assert [m.changed for m in batch.measures[ORIGINAL]] == [True] * 4
    for cell in stream.parts[0].piece.cells:
        row = {"image_id": "a", "digest": "", "psnr_db": 1.0, "changed": True}
        path = Store(tmp_path).input_path(ORIGINAL, cell, 0)
        write_rows(path, [row] * len(stream.parts[0].piece.images), INPUT_SCHEMA)
    assert next(iter(source(index, tmp_path, "invert"))).measures == {}


def test_an_unreadable_mask_leaves_its_image_out(tmp_path):
    manifest = make_pairs(tmp_path / "cells")
    (tmp_path / "cells" / "masks" / "bea-1.png").write_bytes(b"no picture")
    batches = list(source(open_pairs(str(manifest)), tmp_path, "identity"))
    unreadable = [one for batch in batches for one in batch.unreadable]
    assert [name for name, _ in unreadable] == ["images/bea-1.png"]
    assert "its mask" in unreadable[0][1]


def test_sizes_that_differ_are_an_error_that_names_both(tmp_path):
    manifest = make_pairs(tmp_path / "cells")
    Image.new("L", (7, 7)).save(tmp_path / "cells" / "masks" / "bea-1.png")
    *_, last = list(batch_stream(source(open_pairs(str(manifest)), tmp_path), 1, pin=False))
    assert isinstance(last, UsageError)
    assert "bea-1.png` differ in size" in str(last)
