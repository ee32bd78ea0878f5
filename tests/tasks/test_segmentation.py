"""From probabilities to rows."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from PIL import Image

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.segmenter import MaskPreprocessing, Segmenter
from robustcli.core.errors import RunError, UsageError
from robustcli.core.listener import Silent
from robustcli.data.decode import decode
from robustcli.data.masks import decode_pair
from robustcli.data.sources import Masks, open_dataset
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.forecast import forecast
from robustcli.evaluation.loader import Source, batch_stream
from robustcli.evaluation.plan import EvaluationPlan, parts_of
from robustcli.evaluation.record import EVALUATION, read_record, read_sessions
from robustcli.evaluation.store import INPUT_SCHEMA, Store, write_rows
from robustcli.metrics.columns import MASK_SCHEMA, MASK_TABLE_COLUMNS, mask_schema
from robustcli.tasks import segmentation
from robustcli.tasks.base import ORIGINAL, Batch
from robustcli.tasks.segmentation import (
    MaskedImages,
    MaskRows,
    PairPreparation,
    mask_row,
    surface_distance,
)
from robustcli.transforms.base import Cell
from robustcli.transforms.registry import image_seed, resolve_transforms
from tests.evaluation.cells import OTSU, config, make_pairs, make_roads, make_training, pairs_in
from tests.training.runs import Recorder

MASKS = Masks(surveyed=False)


class Reader(Segmenter):
    """A segmenter whose probability is the red channel as a share of 255."""

    def __init__(self, threshold: float) -> None:
        self.preprocessing = MaskPreprocessing(0, threshold=threshold)
        self.device = torch.device("cpu")
        self.facts = type("Facts", (), {"name": "reader"})
        self.asked: list[int] = []

    def probabilities(self, images):
        self.asked.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [image[..., 0].astype(np.float32) / 255 for image in images]


def batch(*images: np.ndarray, masks: list[np.ndarray]) -> Batch[MaskedImages]:
    names = [f"{number}.png" for number in range(len(images))]
    inputs = MaskedImages([f"g{name}" for name in names], list(images), masks)
    return Batch(0, 0, len(names), Cell("identity", 0), ("reader",), names, inputs, {}, [])


def picture(red: list[list[int]]) -> np.ndarray:
    return np.dstack([np.array(red, np.uint8)] * 3)


def test_counts_are_of_pixels_at_or_above_the_threshold():
    image = picture([[255, 204, 203], [0, 230, 0]])
    truth = np.array([[1, 0, 1], [1, 1, 0]], bool)
    rows = MaskRows(Reader(0.8)).rows(batch(image, masks=[truth]))
    assert list(rows[0]) == mask_schema(None).names
    counted = {name: rows[0][name] for name in ("tp", "fp", "fn", "tn")}
    assert counted == {"tp": 2, "fp": 1, "fn": 2, "tn": 1}, "204 of 255 is the threshold itself"
    assert (rows[0]["image_id"], rows[0]["group"]) == ("0.png", "g0.png")


def test_a_tolerance_adds_what_is_near():
    image = picture([[255, 0, 0, 0, 0, 255]])
    truth = np.array([[0, 0, 1, 0, 0, 0]], bool)
    row = MaskRows(Reader(0.5), 2).rows(batch(image, masks=[truth]))[0]
    assert list(row) == MASK_SCHEMA.names
    assert (row["predicted_near"], row["true_near"]) == (1, 1), "two pixels are near, three not"
    assert (row["tp"], row["fp"], row["fn"]) == (0, 2, 1)


def test_images_of_other_sizes_keep_their_order_when_memory_is_short():
    images = [picture([[255] * width]) for width in (3, 1, 2)]
    masks = [np.ones((1, width), bool) for width in (3, 1, 2)]
    reader = Reader(0.5)
    rows = MaskRows(reader).rows(batch(*images, masks=masks))
    assert [row["tp"] for row in rows] == [3, 1, 2]
    assert reader.asked == [3, 1, 1, 1]


def test_cost_is_that_of_the_forward_pass():
    model = MaskRows(Reader(0.5))
    model.rows(batch(picture([[1]]), masks=[np.ones((1, 1), bool)]))
    assert model.cost.images == 1
    assert model.cost.seconds > 0


@pytest.mark.parametrize("empty", ["prediction", "truth"])
def test_without_one_of_the_masks_there_are_counts_and_no_distances(empty):
    full, none = np.ones((2, 3), bool), np.zeros((2, 3), bool)
    row = mask_row(none, full) if empty == "prediction" else mask_row(full, none)
    assert row["fn" if empty == "prediction" else "fp"] == 6
    assert (row["hd95"], row["boundary_dice"]) == (None, None)


def test_ignored_pixels_are_in_no_count_and_no_outline():
    rng = np.random.default_rng(0)
    truth = (rng.random((24, 40)) < 0.4).astype(np.uint8)
    prediction = rng.random((24, 40)) < 0.5
    marked = truth.copy()
    marked[:, 20:] = 255
    other = prediction.copy()
    other[:, 20:] = ~other[:, 20:]
    row = mask_row(prediction, marked, tolerance=2)
    assert mask_row(other, marked, tolerance=2) == row, "what is said there has no part in it"
    left = mask_row(prediction[:, :20], truth[:, :20] == 1)
    assert [row[name] for name in ("tp", "fp", "fn", "tn")] == [
        left[name] for name in ("tp", "fp", "fn", "tn")
    ]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return pairs_in(tmp_path_factory.mktemp("cells"))


def source(index, run, *names, batch_size=4, seed=0, plugins=()):
    cells = {
        Cell(c.transform.name, c.severity): c for c in resolve_transforms(names, None, plugins)
    }
    plan = EvaluationPlan(Store(run), index.samples, tuple(cells), ("model",), (ORIGINAL,), 7)
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
    assert len(sent) == len(index.samples) == 9
    for pair in index.samples:
        image, mask = sent["identity", pair.image_id]
        expected = decode_pair(pair)
        assert np.array_equal(image, expected[0])
        assert np.array_equal(mask, expected[1])
        assert (image.dtype, mask.dtype) == (np.uint8, np.bool_)
    assert len({image.shape for image, _ in sent.values()}) == 3


def test_a_flip_moves_both_and_a_blur_only_the_image(index, tmp_path):
    sent = by_cell(source(index, tmp_path, "fliplr", "gaussian_blur"))
    for pair in index.samples:
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
    sent = by_cell(source(open_dataset(str(manifest), MASKS), tmp_path, name))
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
    sent = by_cell(source(open_dataset(str(manifest), MASKS), tmp_path, "affine", seed=3))
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
    for pair in index.samples:
        image, mask = sent["half", pair.image_id]
        assert mask.shape == image.shape[:2] == (20, decode(pair.image).shape[1])
        assert np.array_equal(mask, decode_pair(pair)[1][:20])


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (0, 9), (2, 3)])
def test_pixels_do_not_depend_on_workers_or_batches(index, tmp_path, workers, batch_size):
    names = ("affine", "cutout", "crop")
    expected = by_cell(source(index, tmp_path, *names))
    other = source(index, tmp_path, *names, batch_size=batch_size)
    batches = by_cell(batch_stream(other, workers, pin=False))
    assert batches.keys() == expected.keys()
    for key, pair in expected.items():
        assert all(np.array_equal(a, b) for a, b in zip(batches[key], pair, strict=True))


def test_every_pair_is_decoded_once(index, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        segmentation, "decode_pair", lambda p: decoded.append(p.image_id) or decode_pair(p)
    )
    list(source(index, tmp_path, "affine", "invert", "crop"))
    assert sorted(decoded) == [pair.image_id for pair in index.samples]


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
    batches = list(source(open_dataset(str(manifest), MASKS), tmp_path, "identity"))
    unreadable = [item for batch in batches for item in batch.unreadable]
    assert [name for name, _ in unreadable] == ["images/bea-1.png"]
    assert "its mask" in unreadable[0][1]


def test_sizes_that_differ_are_an_error_that_names_both(tmp_path):
    manifest = make_pairs(tmp_path / "cells")
    Image.new("L", (7, 7)).save(tmp_path / "cells" / "masks" / "bea-1.png")
    *_, last = list(
        batch_stream(source(open_dataset(str(manifest), MASKS), tmp_path), 1, pin=False)
    )
    assert isinstance(last, UsageError)
    assert "bea-1.png` differ in size" in str(last)


SMALL = ModelRequest("ulvm_v2", untrained=True, preprocessing={"window": 64})


@pytest.fixture
def cells(tmp_path):
    return make_pairs(tmp_path / "cells")


def test_rows_are_the_models_answers_to_the_moved_pairs(cells, tmp_path):
    run = run_evaluation(config(cells, tmp_path / "run", "affine"))
    otsu, affine = load(OTSU, "seg"), resolve_transforms(["affine"], None)[1].transform
    for name, cell in (("identity", Cell("identity", 0)), ("affine", Cell("affine", 0))):
        rows = Store(run).rows("otsu", cell, "seg")
        assert list(rows.columns) == MASK_SCHEMA.names
        rows = rows.set_index("image_id")
        for pair in pairs_in(tmp_path / "again").samples:
            image, truth = decode_pair(pair)
            if name == "affine":
                seed = image_seed(0, "affine", 0, pair.image_id)
                image, truth = affine.apply_with_mask(image, truth, seed=seed, severity=0)
            mask = otsu.predict([image])[0]
            row = rows.loc[pair.image_id]
            assert (row["tp"], row["fp"]) == (
                (mask & truth).sum(),
                (mask & ~truth).sum(),
            )
            assert (row["fn"], row["tn"]) == (
                (~mask & truth).sum(),
                (~mask & ~truth).sum(),
            )
            assert row["group"] == pair.group
            assert np.isnan(row["hd95"]) == (not truth.any() or not mask.any())


def test_roads_have_relaxed_numbers_and_other_data_have_not(cells, tmp_path):
    run = run_evaluation(config(make_roads(tmp_path / "roads"), tmp_path / "run", "fliplr"))
    assert read_record(run).dataset.tolerance == 3
    rows, numbers = Store(run).rows("otsu", Cell("identity", 0), "seg"), table(run).iloc[0]
    predicted, true = (rows["tp"] + rows[other] for other in ("fp", "fn"))
    assert ((rows["predicted_near"] >= rows["tp"]) & (rows["predicted_near"] <= predicted)).all()
    assert numbers["relaxed_precision"] == rows["predicted_near"].sum() / predicted.sum()
    assert numbers["relaxed_recall"] == rows["true_near"].sum() / true.sum()
    assert numbers["relaxed_precision"] > numbers["precision"]
    flipped = table(run).iloc[1]
    assert flipped["relaxed_precision"] == numbers["relaxed_precision"], "a flip moves both masks"
    other = run_evaluation(config(cells, tmp_path / "other"))
    assert read_record(other).dataset.tolerance is None
    assert table(other).filter(like="relaxed").isna().all(axis=None)


def test_a_run_that_was_begun_without_a_tolerance_goes_on_without(tmp_path):
    settings = config(make_roads(tmp_path / "roads"), tmp_path / "run", "fliplr")
    run = run_evaluation(settings)
    record = read_record(run)
    old = record.dataset.model_copy(update={"tolerance": None})
    EVALUATION.write(run, record.model_copy(update={"dataset": old}))
    shutil.rmtree(run / "predictions")
    run_evaluation(replace(settings, transforms=("fliplr", "invert")))
    assert read_record(run).dataset.tolerance is None
    assert table(run).filter(like="relaxed").isna().all(axis=None)
    again = run_evaluation(replace(settings, fresh=True))
    assert table(again).filter(like="relaxed").notna().all(axis=None)


def load_with_note(request, *args, **settings):
    model = load(request, *args, **settings)
    model.notes = (*model.notes, f"Note on {model.facts.name}.")
    return model


def test_a_finished_run_says_what_it_was(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation, "load", load_with_note)
    run = run_evaluation(config(cells, tmp_path / "run", models=(OTSU, SMALL)))
    record = read_record(run)
    assert (record.status, record.task) == ("complete", "seg")
    assert (record.grouping, record.split) == ("group", "all")
    assert record.dataset.model_dump(include={"label_space", "classes", "images"}) == {
        "label_space": "foreground", "classes": 2, "images": 9
    }  # fmt: skip
    seen = record.models[1].preprocessing.model_dump()
    assert seen == {
        "window": 64, "channels": "rgb", "threshold": 0.5, "overlap": 0.5, "nnunet": None,
        "mean": None, "std": None,
    }  # fmt: skip
    assert [model.untrained for model in record.models] == [False, True]
    assert [model.notes[-1] for model in record.models] == ["Note on otsu.", "Note on ulvm_v2."]
    assert read_sessions(run)[0].models["otsu"].images == 18
    assert (run / "samples" / "fliplr-s0.png").is_file()
    assert (run / "panels" / "ulvm_v2" / "best-1" / "prediction.png").is_file()


def test_the_table_has_the_promised_columns_and_a_flip_costs_otsu_nothing(cells, tmp_path):
    run = run_evaluation(config(cells, tmp_path / "run", "fliplr", "gaussian_blur"))
    numbers = table(run)
    assert tuple(numbers.columns) == MASK_TABLE_COLUMNS
    numbers = numbers.set_index("transform")
    assert numbers["n"].tolist() == [9, 9, 9]
    assert numbers["groups"].tolist() == numbers["paired_groups"].tolist() == [3, 3, 3]
    rows = Store(run).rows("otsu", Cell("identity", 0), "seg")
    of_patient = [
        2 * part["tp"].sum() / (2 * part["tp"] + part["fp"] + part["fn"]).sum()
        for _, part in rows.groupby("group")
    ]
    assert numbers.loc["identity", "dice"] == pytest.approx(sum(of_patient) / 3)
    assert numbers.loc["fliplr", "dice"] == pytest.approx(numbers.loc["identity", "dice"])
    assert numbers.loc["fliplr", "drop"] == pytest.approx(0)
    assert numbers.loc["fliplr", "unchanged_share"] == 0
    low, high = numbers.loc["identity", ["dice_low", "dice_high"]]
    assert low <= numbers.loc["identity", "dice"] <= high
    assert table(run).equals(table(run))


def test_a_training_run_is_tested_on_what_it_has_not_seen(cells, tmp_path):
    training = make_training(tmp_path / "mine", pairs_in(tmp_path / "cells"))
    heard = Recorder()
    settings = config(cells, tmp_path / "run", models=(ModelRequest(str(training)), OTSU))
    record = read_record(run_evaluation(settings, heard))
    assert (record.split, record.dataset.images, record.dataset.images_available) == ("test", 3, 9)
    assert "were held out for testing are used" in heard.lines[0]
    rows = Store(tmp_path / "run").rows("otsu", Cell("identity", 0), "seg")
    assert rows["group"].nunique() == 1
    everything = replace(settings, out=tmp_path / "all", split="all")
    assert read_record(run_evaluation(everything)).dataset.images == 9


def masks_of_three_values(cells: Path, run: Path, **changes: object) -> Path:
    """A training in `run` on the pairs in `cells`, whose masks now have 0, 128 and 255."""
    training = make_training(run, pairs_in(cells))
    for mask in (cells / "masks").iterdir():
        values = (np.asarray(Image.open(mask)) > 0).astype(np.uint8) * 128
        values[:4] = 255
        Image.fromarray(values).save(mask)
    read = {"foreground": ["128"], "background": ["0"], "ignored": ["255"], "channel": "colour"}
    masks = {**read, "words": "", **changes}
    (run / "run.json").write_text(json.dumps({"dataset": {**DATASET, "masks": masks}}))
    return training


DATASET = {"name": "cells"}  # what else is in a record does not matter here


def test_masks_are_read_as_in_the_training_unless_the_user_says_how(cells, tmp_path):
    training = masks_of_three_values(tmp_path / "cells", tmp_path / "mine")
    model, heard = ModelRequest(str(training)), Recorder()
    with pytest.raises(UsageError, match="--foreground"):
        run_evaluation(config(cells, tmp_path / "otsu"))
    settings = config(cells, tmp_path / "run", models=(model,))
    record = read_record(run_evaluation(settings, heard))
    assert heard.lines[0] == (f"Masks are read as in the training of `{training}`: `--ignore 255`.")
    assert record.dataset.masks is not None
    assert (record.dataset.masks.foreground, record.dataset.masks.ignored) == (["128"], ["255"])
    heard.lines.clear()
    changed = replace(settings, out=tmp_path / "own", foreground="255")
    record = read_record(run_evaluation(changed, heard))
    assert not any("as in the training" in line for line in heard.lines)
    assert record.dataset.masks is not None
    assert record.dataset.masks.ignored == []


def test_an_image_without_a_pixel_to_score_is_in_no_number(cells, tmp_path):
    first, *others = sorted((tmp_path / "cells/masks").iterdir())
    Image.fromarray(np.full_like(np.asarray(Image.open(first)), 128)).save(first)
    settings = config(cells, tmp_path / "run", foreground="255", ignore="128")
    heard = Recorder()
    run = run_evaluation(settings, heard)
    assert f"1 of {1 + len(others)} images are left out of every number" in heard.lines[-1]
    assert list(Store(run).skipped()["reason"]) == ["every pixel of the mask is ignored"]
    numbers = table(run).iloc[0]
    rows = Store(run).rows("otsu", Cell("identity", 0), "seg")
    assert numbers["n"] == len(rows) == len(others)
    dice = 2 * rows["tp"] / (2 * rows["tp"] + rows["fp"] + rows["fn"])
    assert numbers["dice_image"] == pytest.approx(dice.mean())


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"background": None}, "--foreground 128 --ignore 255"),
        ({"foreground": None, "background": None}, "--foreground nonzero --ignore 255"),
        ({"background": None, "ignored": []}, "--foreground 128"),
    ],
)
def test_what_the_training_was_told_of_its_masks_is_told_again(cells, tmp_path, changes, flags):
    training = masks_of_three_values(tmp_path / "cells", tmp_path / "mine", **changes)
    heard = Recorder()
    run_evaluation(config(cells, tmp_path / "run", models=(ModelRequest(str(training)),)), heard)
    assert f"`{flags}`" in heard.lines[0]


def test_trainings_that_read_the_masks_differently_leave_it_to_the_user(cells, tmp_path):
    trainings = [
        masks_of_three_values(tmp_path / "cells", tmp_path / name, background=None, ignored=ignored)
        for name, ignored in (("a", []), ("b", ["255"]))
    ]
    models = tuple(ModelRequest(str(training)) for training in trainings)
    with pytest.raises(UsageError, match=r"(?s)differently.*`--foreground 128`.*--ignore 255`"):
        run_evaluation(config(cells, tmp_path / "run", models=models))


def test_the_masks_of_other_data_are_not_read_as_those_of_the_training(cells, tmp_path):
    training = masks_of_three_values(tmp_path / "cells", tmp_path / "mine")
    other, heard = make_pairs(tmp_path / "other", side=24), Recorder()
    for folder in ("images", "masks"):
        for file in (tmp_path / "other" / folder).iterdir():
            file.rename(file.with_name(f"new-{file.name}"))
    other.write_text(
        other.read_text().replace("images/", "images/new-").replace("masks/", "masks/new-")
    )
    record = read_record(
        run_evaluation(
            config(other, tmp_path / "run", models=(ModelRequest(str(training)),)), heard
        )
    )
    assert record.dataset.masks is None
    assert not any("as in the training" in line for line in heard.lines)


def test_a_baseline_is_tested_on_what_a_training_held_out(cells, tmp_path):
    training = make_training(tmp_path / "mine", pairs_in(tmp_path / "cells"))
    ids = [
        Store(run_evaluation(config(cells, tmp_path / name, **changes))).rows(
            model, Cell("identity", 0), "seg"
        )["image_id"]
        for name, model, changes in (
            ("own", "mine", {"models": (ModelRequest(str(training)),)}),
            ("baseline", "otsu", {"splits_of": training}),
        )
    ]
    assert ids[0].tolist() == ids[1].tolist()
    assert len(ids[0]) == 3


def test_limit_takes_some_of_the_part_and_both_are_told(cells, tmp_path):
    training = make_training(tmp_path / "mine", pairs_in(tmp_path / "cells"))
    settings = config(cells, tmp_path / "run", models=(ModelRequest(str(training)),), limit=2)
    dataset = read_record(run_evaluation(settings)).dataset
    assert dataset.images == 2
    assert dataset.subset == (
        f"test split of `{training}`: 2 images distributed over the groups, seed 0"
    )


def test_the_default_data_are_announced(tmp_path, monkeypatch):
    monkeypatch.delenv("ROBUST_DATA_SEGMENTATION", raising=False)
    monkeypatch.chdir(tmp_path)
    heard = Recorder()
    settings = replace(config(tmp_path, tmp_path / "run", limit=2), data=None)
    assert read_record(run_evaluation(settings, heard)).dataset.demonstration
    assert heard.lines[0].startswith(
        "`--data` is not set; using nuclei-mini (a demonstration set), 194 im"
    )


def test_a_dry_run_says_what_is_missing_and_writes_nothing(cells, tmp_path):
    settings = config(cells, tmp_path / "run", models=(OTSU, SMALL))
    plan = forecast(settings, Silent())
    assert (plan.images, plan.predictions, plan.predictions_there) == (9, 36, 0)
    assert plan.download_bytes == 0
    assert plan.seconds > 0
    assert not (tmp_path / "run").exists()
    run_evaluation(replace(settings, models=(OTSU,)))
    assert forecast(settings, Silent()).predictions_there == 18


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"per_class": 3},
            "`--per-class 3` cannot be used with segmenters.\nTheir images have masks",
        ),
        ({"apply_at": "crop"}, "`--apply-at crop` cannot .*\n.*no crop exists"),
        ({"label_space": "cifar10"}, "`--label-space` cannot be used with segmenters"),
        ({"labels": "labels.csv"}, "`--labels` cannot be used with segmenters"),
        ({"split": "test"}, "`--split test` selects no images of `pairs.csv`"),
        (
            {"models": (replace(OTSU, preprocessing={"crop": 3}),)},
            "preprocessing of a segmenter has no `crop`",
        ),
        ({"models": (OTSU, ModelRequest("vmamba-pico"))}, "cannot be evaluated in the same run"),
        ({"models": (ModelRequest("unet"),)}, "`unet` has no published weights"),
    ],
)
def test_settings_without_meaning_are_refused_before_anything_is_written(
    cells, tmp_path, changes, named
):
    with pytest.raises(UsageError, match=named):
        run_evaluation(config(cells, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_classifiers_run_is_not_continued_with_segmenters(cells, tmp_path):
    from tests.evaluation.photos import config as of_photos
    from tests.evaluation.photos import make_photos

    run_evaluation(of_photos(make_photos(tmp_path / "photos"), tmp_path / "run"))
    with pytest.raises(UsageError, match="contains an evaluation with other settings"):
        run_evaluation(config(cells, tmp_path / "run"))


def test_unreadable_masks_are_counted_as_unreadable_images(cells, tmp_path):
    (tmp_path / "cells" / "masks" / "ann-0.png").write_bytes(b"no picture")
    settings = config(cells, tmp_path / "run")
    with pytest.raises(RunError, match="1 image cannot be read; the limit is 0"):
        run_evaluation(settings)
    run = run_evaluation(replace(settings, allow_unreadable=0.2))
    assert table(run)["n"].tolist() == [8, 8]
    assert "its mask" in Store(run).skipped()["reason"][0]


def discs(seed: int, shape: tuple[int, int] = (48, 61)) -> np.ndarray:
    """A few discs, some of them cut by the image's end."""
    generator, mask = np.random.default_rng(seed), np.zeros(shape, bool)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    for _ in range(3):
        y, x, r = generator.integers(0, shape[0]), generator.integers(0, shape[1]), 3 + seed % 5
        mask |= (rows - y) ** 2 + (columns - x) ** 2 <= r * r
    return mask


def of_monai(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    first, other = (torch.from_numpy(mask.copy())[None, None] for mask in (prediction, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (
            float(compute_hausdorff_distance(first, other, include_background=True, percentile=95)),
            float(compute_surface_dice(first, other, [2.0], include_background=True)),
        )


@pytest.mark.parametrize("seed", range(12))
def test_the_box_changes_nothing(seed):
    prediction, truth = discs(seed), discs(seed + 100)
    distance = surface_distance(prediction, truth)
    assert (distance.hd95, distance.boundary_dice) == pytest.approx(of_monai(prediction, truth))


@pytest.mark.parametrize("seed", range(3))
def test_nor_does_it_for_noise_and_whole_images(seed):
    prediction = np.random.default_rng(seed).random((30, 22)) < 0.3
    for truth in (np.ones((30, 22), bool), np.eye(30, 22, dtype=bool)):
        distance = surface_distance(prediction, truth)
        assert (distance.hd95, distance.boundary_dice) == pytest.approx(of_monai(prediction, truth))


def test_two_squares_that_lie_three_pixels_apart():
    prediction, truth = np.zeros((2, 20, 20), bool)
    prediction[5:10, 5:10], truth[5:10, 8:13] = True, True
    distance = surface_distance(prediction, truth)
    assert distance.hd95 == 3.0
    near = 2 * sum(
        min(abs(x - 8), abs(x - 12)) <= 2 or (y in (5, 9) and x >= 6) for x, y in outline_of(5)
    )
    assert distance.boundary_dice == pytest.approx(near / 32)


def outline_of(first: int) -> list[tuple[int, int]]:
    """Column and row of the 16 outline pixels of the square from `first` to `first` + 4."""
    full = [(x, y) for x in range(first, first + 5) for y in range(5, 10)]
    return [(x, y) for x, y in full if x in (first, first + 4) or y in (5, 9)]


def test_a_mask_has_no_distance_to_itself():
    distance = surface_distance(discs(1), discs(1))
    assert (distance.hd95, distance.boundary_dice) == (0.0, 1.0)


@pytest.mark.parametrize("empty", [(0,), (1,), (0, 1)])
def test_without_an_outline_there_is_no_distance(empty):
    masks = np.array([discs(1), discs(2)])
    masks[list(empty)] = False
    assert surface_distance(*masks) is None


def test_masks_that_are_views_are_left_as_they_are():
    mask = discs(4)
    before = mask.copy()
    surface_distance(mask[:, ::-1], mask)
    assert np.array_equal(mask, before)
