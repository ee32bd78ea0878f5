"""What the files of a training run tell of its data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.training_run import EarlierTraining, read_header, write_weights
from robustcli.core.errors import UsageError
from robustcli.data.dataset import Dataset, FileRef, Sample
from robustcli.data.sources import Classes, open_dataset
from robustcli.data.splits import read_earlier_splits, write_earlier_splits
from robustcli.tasks.base import TaskConfig
from robustcli.tasks.heldout import (
    TrainingData,
    choose_part,
    read_parts,
    training_data,
    trainings_of,
    trainings_of_initial,
    used_before,
)
from robustcli.tasks.segmentation import SegmentationTask
from tests.evaluation.cells import OTSU, make_training, pairs_in
from tests.training.images import write_photos
from tests.training.runs import Recorder

IDS = [f"{number}.png" for number in range(10)]
PARTS = {name: "train" if n < 6 else "val" if n < 8 else "test" for n, name in enumerate(IDS)}


def pair(name: str, split: str | None = None) -> Sample:
    ref = FileRef(name, Path(name))
    return Sample(ref, ref, name, split)


INDEX = Dataset("cells", "/cells", tuple(map(pair, IDS)), available=10)
RUN = TrainingData("run", INDEX.digest, PARTS)


def chosen(index=INDEX, part="auto", trainings=(RUN,)):
    """The ids, the split and the announcements."""
    heard = Recorder()
    chosen_part = choose_part(index, part, trainings, heard)
    ids = [pair.image_id for pair in chosen_part.dataset.samples]
    return ids, chosen_part.split, heard.lines


def test_a_model_is_tested_on_what_it_has_not_seen_and_says_so():
    ids, split, message = chosen()
    assert (ids, split) == (["8.png", "9.png"], "test")
    assert message == [
        "`run` was trained on this data: only the 2 of 10 images that were held out for testing "
        "are used (`--split all` uses all)."
    ]
    for trainings in ([RUN], [replace(RUN, model="./run"), RUN]):
        part = choose_part(INDEX, "auto", trainings, Recorder())
        assert part.dataset.subset == "test split of `run`"


def test_the_ids_decide_where_the_list_is_another_one():
    part = replace(INDEX, samples=INDEX.samples[:9], subset="nine")
    assert chosen(part)[0] == ["8.png"]
    assert (
        choose_part(part, "auto", [RUN], Recorder()).dataset.subset == "nine, test split of `run`"
    )


def test_models_of_other_data_and_of_none_take_everything_silently():
    foreign = TrainingData("foreign", "0" * 64, {"x.png": "train"})
    assert chosen(trainings=(foreign,)) == (IDS, "all", [])
    assert chosen(trainings=()) == (IDS, "all", [])


def test_several_models_are_tested_on_what_none_has_seen():
    other = TrainingData("other", None, PARTS | {"8.png": "train", "0.png": "test"})
    assert chosen(trainings=(RUN, other))[0] == ["9.png"]
    disjoint = TrainingData("other", None, dict.fromkeys(IDS, "train"))
    with pytest.raises(UsageError, match="No image of `cells` is in the test split of `run` and"):
        chosen(trainings=(RUN, disjoint))


def test_all_takes_all_and_says_that_it_flatters():
    ids, split, message = chosen(part="all")
    assert (ids, split) == (IDS, "all")
    assert message == [
        "`run` was trained on some of these images, so that its scores are too high."
    ]


def test_a_part_can_be_named():
    assert chosen(part="val") == (["6.png", "7.png"], "val", [])
    index = replace(INDEX, samples=tuple(pair(name, PARTS[name]) for name in IDS))
    assert chosen(index, "val", ())[0] == ["6.png", "7.png"], "of the data set"
    assert chosen(index, "auto", ())[1] == "all"
    swapped = replace(RUN, parts=dict.fromkeys(IDS, "val"))
    assert chosen(index, "val", (swapped,))[0] == IDS, "the training's goes before"


def test_a_part_that_nothing_tells_is_an_error():
    with pytest.raises(UsageError, match="The data set has no splits"):
        chosen(part="test", trainings=())
    index = replace(INDEX, samples=tuple(pair(name, "train") for name in IDS))
    with pytest.raises(
        UsageError,
        match=r"`--split test` selects no images of `cells`\.\nThe data set has the splits train\.",
    ):
        chosen(index, "test", ())


def test_weights_that_do_not_tell_what_they_saw_are_not_trusted():
    bare = TrainingData("mine.safetensors", INDEX.digest, {})
    with pytest.raises(
        UsageError, match=r"not known which images `mine\.safetensors` was not trained on"
    ):
        chosen(trainings=(bare,))
    assert chosen(part="all", trainings=(bare,))[0] == IDS


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
        training = training_data(request)
        assert training.digest == index.digest
        assert set(training.parts.values()) == {"train", "val", "test"}
        assert training.overlaps(index)


def test_weights_that_left_their_run_still_name_the_data(index, tmp_path):
    run = make_training(tmp_path / "run", index)
    file = (run / "weights.safetensors").rename(tmp_path / "mine.safetensors")
    training = training_data(ModelRequest("ulvm_v2", weights=file))
    assert (training.digest, dict(training.parts)) == (index.digest, {})
    assert training.overlaps(index)


def test_a_new_training_knows_how_many_held_out_images_its_weights_have_seen(index, tmp_path):
    run = make_training(tmp_path / "run", index)
    request = ModelRequest("ulvm_v2", weights=run)
    (training,) = trainings_of_initial(request)
    untouched = frozenset(name for name, part in training.parts.items() if part == "test")
    assert used_before([training], index, index.part(untouched, "test")) == ""
    seen = len(index.samples) - len(untouched)
    counts = (
        f"these weights were trained on {seen} of {len(index.samples)} held-out images: the "
        "scores are too high"
    )
    assert used_before([training], index, index) == counts
    foreign = TrainingData("foreign", "0" * 64, {"x.png": "train"})
    assert used_before([foreign, training, training], index, index) == counts
    (run / "splits.csv").unlink()
    assert "perhaps on held-out images" in used_before(trainings_of_initial(request), index, index)
    other_data = index.part(frozenset(), "none")
    assert used_before([training], other_data, other_data) == ""
    assert trainings_of_initial(OTSU) == ()


def test_a_training_scores_its_own_held_out_images(index, tmp_path):
    """Also those that the initial weights have seen; its record states how many these are."""
    run = make_training(tmp_path / "run", index)
    file = run / "weights.safetensors"
    header = read_header(file)
    earlier = (EarlierTraining(trained_on=index.digest),)
    write_weights(file, load_file(file), header.model_copy(update={"earlier": earlier}))
    models = (ModelRequest(str(run)),)
    trainings = trainings_of(TaskConfig(models, ("identity",)))
    assert [training.of_initial for training in trainings] == [False, True]
    assert trainings[1].parts == {}
    own = trainings_of(TaskConfig(models, ("identity",), splits_of=run))
    assert [training.of_initial for training in own] == [False, False]


@pytest.mark.parametrize("number", ["0", "x", "", "1001", "9" * 30, "-1", "1.0"])
def test_damaged_earlier_splits_are_an_error(number, tmp_path):
    file = tmp_path / "earlier_splits.csv"
    file.write_text(f"training,image_id,split\n{number},a.png,train\n")
    with pytest.raises(UsageError, match=r"earlier_splits\.csv"):
        read_earlier_splits(file)


def test_earlier_splits_are_read_as_written(tmp_path):
    file = tmp_path / "earlier_splits.csv"
    trainings = [{}, {"=a.png": "train", " b.png ": "test"}, {}, {'a,"b".png': "val"}]
    write_earlier_splits(file, trainings)
    assert read_earlier_splits(file) == trainings


def test_another_name_of_the_folder_changes_nothing(index, tmp_path):
    training = training_data(ModelRequest(str(make_training(tmp_path / "run", index))))
    renamed = pairs_in(tmp_path / "elsewhere" / "other name")
    assert renamed.location != index.location
    assert training.overlaps(renamed)


def test_a_part_of_the_data_overlaps_and_other_data_does_not(index, tmp_path):
    training = training_data(ModelRequest(str(make_training(tmp_path / "run", index))))
    some = index.part(frozenset(pair.image_id for pair in index.samples[:2]), "two")
    assert some.digest != index.digest
    assert training.overlaps(some)
    assert not training.overlaps(index.part(frozenset(), "none"))


def test_nothing_is_told_by_other_files(index, tmp_path):
    from torch import zeros

    save_file({"a": zeros(1)}, tmp_path / "foreign.safetensors")
    foreign = ModelRequest("unet", weights=tmp_path / "foreign.safetensors")
    assert training_data(foreign) is None
    assert training_data(OTSU) is None
    run = make_training(tmp_path / "run", index)
    assert training_data(ModelRequest("ulvm_v2", weights=run, untrained=True)) is None


@pytest.fixture
def no_default(monkeypatch, tmp_path):
    """Neither an environment variable nor `robust.toml` sets default data."""
    monkeypatch.delenv("ROBUST_DATA_SEGMENTATION", raising=False)
    monkeypatch.chdir(tmp_path)


def trained_on(run, index, location, **record):
    make_training(run, index)
    (run / "run.json").write_text(json.dumps({"dataset": {"location": str(location), **record}}))
    return ModelRequest(str(run))


def data_of(*models, **settings):
    """The data set that is used, and the announcements."""
    heard = Recorder()
    config = TaskConfig(models, ("identity",), **settings)
    return SegmentationTask().with_defaults(config, heard).data, heard.lines


@pytest.mark.usefixtures("no_default")
def test_without_data_the_images_of_the_training_are_used(index, tmp_path, monkeypatch):
    run = trained_on(tmp_path / "run", index, index.location)
    announced = f"`--data` is not set; using {index.location}, on which `{run.name}` was trained."
    assert data_of(run) == (index.location, [announced])
    assert data_of(OTSU, run)[0] == index.location, "a model without training fits all data"
    weights = ModelRequest("ulvm_v2", weights=tmp_path / "run" / "weights.safetensors")
    assert data_of(weights)[0] == index.location
    assert data_of(run, data="others") == ("others", [])
    assert data_of(OTSU) == (None, [])
    monkeypatch.setenv("ROBUST_DATA_SEGMENTATION", "mine")
    assert data_of(run) == (None, []), "the default of the user comes first"


@pytest.mark.usefixtures("no_default")
def test_the_demonstration_set_of_a_training_is_found_by_name(index, tmp_path):
    gone = tmp_path / "old environment" / "nuclei-mini.tar"
    run = trained_on(tmp_path / "run", index, gone, name="nuclei-mini:stained", demonstration=True)
    assert data_of(run)[0] == "nuclei-mini:stained"


@pytest.mark.usefixtures("no_default")
def test_missing_or_different_data_of_trainings_are_an_error(index, tmp_path):
    run = trained_on(tmp_path / "run", index, index.location)
    moved = trained_on(tmp_path / "moved", index, tmp_path / "gone")
    with pytest.raises(UsageError, match=f"the data of the training `{moved.name}` are missing"):
        data_of(moved)
    with pytest.raises(UsageError, match="were trained on different data") as caught:
        data_of(run, moved)
    assert caught.value.why == f"The data were `{index.location}` and `{tmp_path / 'gone'}`."


@pytest.mark.parametrize("content", ["", "[]", '{"dataset": 1}', '{"dataset": {"location": 1}}'])
def test_a_file_that_is_no_record_of_a_training_names_no_data(content, index, tmp_path):
    run = make_training(tmp_path / "run", index)
    (run / "run.json").write_text(content)
    assert training_data(ModelRequest(str(run))).data is None


def test_damaged_splits_are_an_error(index, tmp_path):
    run = make_training(tmp_path / "run", index)
    (run / "splits.csv").write_text("image_id,group,split\na.png,a,dev\n")
    with pytest.raises(UsageError, match="contains unknown splits"):
        read_parts(run)


def test_files_of_the_same_name_are_told_apart_by_what_is_in_them(tmp_path):
    first, second = (
        open_dataset(str(write_photos(tmp_path / name / "paints", 2, seed=seed)), Classes())
        for name, seed in (("first", 0), ("second", 1))
    )
    assert first.digest == second.digest, "the names alone are the same"
    photo = first.samples[0]
    seen = {photo.image_id: hashlib.sha256(photo.image.path.read_bytes()).hexdigest()}
    training = TrainingData("run", first.digest, {photo.image_id: "train"}, seen)
    assert training.overlaps(first)
    assert not training.overlaps(second)
    lacking = second.part(frozenset({second.samples[1].image_id}), "one image")
    assert not training.overlaps(lacking)
    unknown = TrainingData("run", None, {second.samples[1].image_id: "test"}, {"gone.png": "0"})
    assert unknown.overlaps(lacking), "no file can be compared: the names decide"
