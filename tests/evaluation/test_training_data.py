"""What the files of a training run tell of its data."""

import hashlib

import pytest
from safetensors.torch import save_file

from robustcli.adapters.load import ModelRequest
from robustcli.core.errors import UsageError
from robustcli.data.open import open_classes
from robustcli.evaluation.training_data import TrainingData, parts_of, training_data
from tests.evaluation.cells import OTSU, pairs_in
from tests.evaluation.trained import make_training
from tests.training.photos import write_photos


@pytest.fixture
def index(tmp_path):
    return pairs_in(tmp_path / "cells")


def test_a_run_tells_its_data_and_its_parts(index, tmp_path):
    run = make_training(tmp_path / "run", index)
    for request in (
        ModelRequest(str(run)),
        ModelRequest("ulvm_v2", weights=run),
        ModelRequest("ulvm_v2", weights=run / "weights.safetensors"),
    ):
        told = training_data(request)
        assert told.digest == index.digest
        assert set(told.parts.values()) == {"train", "val", "test"}
        assert told.overlaps(index)


def test_weights_that_left_their_run_still_name_the_data(index, tmp_path):
    run = make_training(tmp_path / "run", index)
    file = (run / "weights.safetensors").rename(tmp_path / "mine.safetensors")
    told = training_data(ModelRequest("ulvm_v2", weights=file))
    assert (told.digest, dict(told.parts)) == (index.digest, {})
    assert told.overlaps(index)


def test_another_name_of_the_folder_changes_nothing(index, tmp_path):
    told = training_data(ModelRequest(str(make_training(tmp_path / "run", index))))
    renamed = pairs_in(tmp_path / "elsewhere" / "other name")
    assert renamed.location != index.location
    assert told.overlaps(renamed)


def test_a_part_of_the_data_overlaps_and_other_data_does_not(index, tmp_path):
    told = training_data(ModelRequest(str(make_training(tmp_path / "run", index))))
    some = index.part(frozenset(pair.image_id for pair in index.pairs[:2]), "two")
    assert some.digest != index.digest
    assert told.overlaps(some)
    assert not told.overlaps(index.part(frozenset(), "none"))


def test_nothing_is_told_by_other_files(index, tmp_path):
    from torch import zeros

    save_file({"a": zeros(1)}, tmp_path / "foreign.safetensors")
    foreign = ModelRequest("unet", weights=tmp_path / "foreign.safetensors")
    assert training_data(foreign) is None
    assert training_data(OTSU) is None
    run = make_training(tmp_path / "run", index)
    assert training_data(ModelRequest("ulvm_v2", weights=run, untrained=True)) is None


def test_damaged_splits_are_an_error(index, tmp_path):
    run = make_training(tmp_path / "run", index)
    (run / "splits.csv").write_text("image_id,group,split\na.png,a,dev\n")
    with pytest.raises(UsageError, match="names splits that do not exist"):
        parts_of(run)


def test_files_of_the_same_name_are_told_apart_by_what_is_in_them(tmp_path):
    first, second = (
        open_classes(str(write_photos(tmp_path / name / "paints", 2, seed=seed)))
        for name, seed in (("first", 0), ("second", 1))
    )
    assert first.digest == second.digest, "the names alone are the same"
    photo = first.images[0]
    seen = {photo.image_id: hashlib.sha256(photo.path.read_bytes()).hexdigest()}
    told = TrainingData("run", first.digest, {photo.image_id: "train"}, seen)
    assert told.overlaps(first)
    assert not told.overlaps(second)
    lacking = second.part(frozenset({second.images[1].image_id}), "one image")
    assert not told.overlaps(lacking)
    unknown = TrainingData("run", None, {second.images[1].image_id: "test"}, {"gone.png": "0"})
    assert unknown.overlaps(lacking), "no file can be compared: the names decide"
