"""Segmenters through the same store, resume and plan as classifiers."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from robustcli.adapters.load import ModelRequest
from robustcli.adapters.load_segmenter import load_segmenter
from robustcli.core.errors import RunError, UsageError
from robustcli.data.masks import decode_pair
from robustcli.evaluation import runner
from robustcli.evaluation.dry import forecast
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.listener import Silent
from robustcli.evaluation.metrics import SEG_COLUMNS, table
from robustcli.evaluation.record import read_record, write_record
from robustcli.evaluation.sessions import read_sessions
from robustcli.evaluation.store import MASK_SCHEMA, Cell, Store
from robustcli.transforms.registry import image_seed, resolve
from tests.evaluation.cells import OTSU, config, make_pairs, make_roads, pairs_in
from tests.evaluation.test_evaluate import contents, small_blocks
from tests.evaluation.trained import make_training

SMALL = ModelRequest("ulvm_v2", untrained=True, preprocessing={"window": 64})


@pytest.fixture
def cells(tmp_path):
    return make_pairs(tmp_path / "cells")


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_rows_are_the_models_answers_to_the_moved_pairs(cells, tmp_path):
    run = run_evaluation(config(cells, tmp_path / "run", "affine"))
    otsu, affine = load_segmenter(OTSU), resolve(["affine"], None)[1].transform
    for name, cell in (("identity", Cell("identity", 0)), ("affine", Cell("affine", 0))):
        rows = Store(run).masks("otsu", cell)
        assert list(rows.columns) == MASK_SCHEMA.names
        rows = rows.set_index("image_id")
        for pair in pairs_in(tmp_path / "again").pairs:
            image, truth = decode_pair(pair)
            if name == "affine":
                seed = image_seed(0, "affine", 0, pair.image_id)
                image, truth = affine.apply_with_mask(image, truth, seed=seed, severity=0)
            found = otsu.masks([image])[0]
            row = rows.loc[pair.image_id]
            assert (row["tp"], row["fp"]) == ((found & truth).sum(), (found & ~truth).sum())
            assert (row["fn"], row["tn"]) == ((~found & truth).sum(), (~found & ~truth).sum())
            assert row["group"] == pair.group
            assert np.isnan(row["hd95"]) == (not truth.any() or not found.any())


def test_roads_have_relaxed_numbers_and_other_data_have_not(cells, tmp_path):
    run = run_evaluation(config(make_roads(tmp_path / "roads"), tmp_path / "run", "fliplr"))
    assert read_record(run).dataset.tolerance == 3
    rows, numbers = Store(run).masks("otsu", Cell("identity", 0)), table(run).iloc[0]
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
    write_record(run, record.model_copy(update={"dataset": old}))
    shutil.rmtree(run / "predictions")
    run_evaluation(replace(settings, transforms=("fliplr", "invert")))
    assert read_record(run).dataset.tolerance is None
    assert table(run).filter(like="relaxed").isna().all(axis=None)
    again = run_evaluation(replace(settings, fresh=True))
    assert table(again).filter(like="relaxed").notna().all(axis=None)


def test_a_finished_run_says_what_it_was(cells, tmp_path):
    run = run_evaluation(config(cells, tmp_path / "run", models=(OTSU, SMALL)))
    record = read_record(run)
    assert (record.status, record.task) == ("complete", "seg")
    assert (record.grouping, record.split) == ("group", "all")
    assert record.dataset.model_dump(include={"label_space", "classes", "images"}) == {
        "label_space": "foreground", "classes": 2, "images": 9
    }  # fmt: skip
    seen = record.models[1].preprocessing.model_dump()
    assert seen == {
        "window": 64, "channels": "rgb", "threshold": 0.5, "overlap": 0.5, "nnunet": None
    }  # fmt: skip
    assert [model.untrained for model in record.models] == [False, True]
    assert read_sessions(run)[0].models["otsu"].images == 18
    assert (run / "samples" / "fliplr-s0.png").is_file()
    assert (run / "panels" / "ulvm_v2" / "best-1" / "prediction.png").is_file()


def test_the_table_has_the_promised_columns_and_a_flip_costs_otsu_nothing(cells, tmp_path):
    run = run_evaluation(config(cells, tmp_path / "run", "fliplr", "gaussian_blur"))
    numbers = table(run)
    assert tuple(numbers.columns) == SEG_COLUMNS
    numbers = numbers.set_index("transform")
    assert numbers["n"].tolist() == [9, 9, 9]
    assert numbers["groups"].tolist() == numbers["paired_groups"].tolist() == [3, 3, 3]
    rows = Store(run).masks("otsu", Cell("identity", 0))
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


def test_going_on_after_a_crash_gives_the_bytes_of_an_unbroken_run(cells, tmp_path, monkeypatch):
    small_blocks(monkeypatch)
    names = ("affine", "crop", "invert")
    unbroken = run_evaluation(config(cells, tmp_path / "unbroken", *names))
    real, written = runner.write_rows, []

    def failing(path, *rest):
        written.append(path)
        if len(written) == 9:
            raise KeyboardInterrupt
        real(path, *rest)

    monkeypatch.setattr(runner, "write_rows", failing)
    settings = config(cells, tmp_path / "broken", *names)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(settings)
    assert read_record(tmp_path / "broken").status == "partial"
    monkeypatch.setattr(runner, "write_rows", real)
    broken = run_evaluation(settings)
    assert contents(broken) == contents(unbroken)
    assert table(broken).equals(table(unbroken))
    monkeypatch.setattr(runner, "batch_stream", None)  # would be called to compute anything
    run_evaluation(settings)


def test_a_training_run_is_tested_on_what_it_has_not_seen(cells, tmp_path):
    training = make_training(tmp_path / "mine", pairs_in(tmp_path / "cells"))
    heard = Heard()
    settings = config(cells, tmp_path / "run", models=(ModelRequest(str(training)), OTSU))
    record = read_record(run_evaluation(settings, heard))
    assert (record.split, record.dataset.images, record.dataset.images_available) == ("test", 3, 9)
    assert "were held out for testing are used" in heard.lines[0]
    rows = Store(tmp_path / "run").masks("otsu", Cell("identity", 0))
    assert rows["group"].nunique() == 1
    everything = replace(settings, out=tmp_path / "all", split="all")
    assert read_record(run_evaluation(everything)).dataset.images == 9


def test_a_baseline_is_tested_on_what_a_training_held_out(cells, tmp_path):
    training = make_training(tmp_path / "mine", pairs_in(tmp_path / "cells"))
    ids = [
        Store(run_evaluation(config(cells, tmp_path / name, **changes))).masks(
            model, Cell("identity", 0)
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
    assert dataset.subset == (f"test part of `{training}`: 2 images spread over the groups, seed 0")


def test_the_default_data_are_announced(tmp_path, monkeypatch):
    monkeypatch.delenv("ROBUST_DATA_SEGMENTATION", raising=False)
    monkeypatch.chdir(tmp_path)
    heard = Heard()
    settings = replace(config(tmp_path, tmp_path / "run", limit=2), data=None)
    assert read_record(run_evaluation(settings, heard)).dataset.demonstration
    assert heard.lines[0].startswith("No --data: using nuclei-mini (a demonstration set), 194 im")


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
        ({"per_class": 3}, "`--per-class 3` does not go with segmenters.\nTheir images have masks"),
        ({"apply_at": "crop"}, "`--apply-at crop` does not .*\n.*there is no crop to transform"),
        ({"label_space": "cifar10"}, "`--label-space` does not go with segmenters"),
        ({"labels": "labels.csv"}, "`--labels` does not go with segmenters"),
        ({"split": "test"}, "`--split test` finds no images in `pairs.csv`"),
        ({"models": (replace(OTSU, preprocessing={"crop": 3}),)}, "preprocessing has no `crop`"),
        ({"models": (OTSU, ModelRequest("vmamba-pico"))}, "do not go into one run"),
        ({"models": (ModelRequest("unet"),)}, "`unet` has no published weights"),
    ],
)
def test_settings_without_meaning_are_refused_before_anything_is_written(
    cells, tmp_path, changes, named
):
    with pytest.raises(UsageError, match=named):
        run_evaluation(config(cells, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_split_does_not_go_with_classifiers(tmp_path):
    settings = config(tmp_path, tmp_path / "run", models=(ModelRequest("vmamba-pico"),))
    with pytest.raises(UsageError, match="`--split test` does not go with classifiers"):
        run_evaluation(replace(settings, split="test"))


def test_a_classifiers_run_is_not_continued_with_segmenters(cells, tmp_path):
    from tests.evaluation.photos import config as of_photos
    from tests.evaluation.photos import make_photos

    run_evaluation(of_photos(make_photos(tmp_path / "photos"), tmp_path / "run"))
    with pytest.raises(UsageError, match="holds a run with other settings"):
        run_evaluation(config(cells, tmp_path / "run"))


def test_unreadable_masks_are_counted_as_unreadable_images(cells, tmp_path):
    (tmp_path / "cells" / "masks" / "ann-0.png").write_bytes(b"no picture")
    settings = config(cells, tmp_path / "run")
    with pytest.raises(RunError, match="cannot be read: 1; tolerated: 0"):
        run_evaluation(settings)
    run = run_evaluation(replace(settings, allow_unreadable=0.2))
    assert table(run)["n"].tolist() == [8, 8]
    assert "its mask" in Store(run).skipped()["reason"][0]
