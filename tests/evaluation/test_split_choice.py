"""Which images are evaluated: held-out ones, unless the user says else."""

from dataclasses import replace
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.index import ImageRef
from robustcli.data.pairs import PairIndex, PairRef
from robustcli.evaluation.split_choice import choose_part
from robustcli.evaluation.training_data import TrainingData

IDS = [f"{number}.png" for number in range(10)]
PARTS = {name: "train" if n < 6 else "val" if n < 8 else "test" for n, name in enumerate(IDS)}


def pair(name: str, split: str | None = None) -> PairRef:
    ref = ImageRef(name, 0, Path(name))
    return PairRef(ref, ref, name, split)


INDEX = PairIndex("cells", "/cells", tuple(map(pair, IDS)), "image", 10)
RUN = TrainingData("run", INDEX.digest, PARTS)


class Heard:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def chosen(index=INDEX, wanted="auto", trainings=(RUN,)):
    """The ids, the split and what was said."""
    heard = Heard()
    part = choose_part(index, wanted, trainings, heard)
    return [pair.image_id for pair in part.index.pairs], part.split, heard.lines


def test_a_model_is_tested_on_what_it_has_not_seen_and_says_so():
    ids, split, said = chosen()
    assert (ids, split) == (["8.png", "9.png"], "test")
    assert said == [
        "`run` was trained on this data: only the 2 of 10 images that were held out for testing "
        "are used (`--split all` takes all)."
    ]
    assert choose_part(INDEX, "auto", [RUN], Heard()).index.subset == "test part of `run`"


def test_the_ids_decide_where_the_list_is_another_one():
    part = replace(INDEX, pairs=INDEX.pairs[:9], subset="nine")
    assert chosen(part)[0] == ["8.png"]
    assert choose_part(part, "auto", [RUN], Heard()).index.subset == "nine, test part of `run`"


def test_models_of_other_data_and_of_none_take_everything_silently():
    foreign = TrainingData("foreign", "0" * 64, {"x.png": "train"})
    assert chosen(trainings=(foreign,)) == (IDS, "all", [])
    assert chosen(trainings=()) == (IDS, "all", [])


def test_several_models_are_tested_on_what_none_has_seen():
    other = TrainingData("other", None, PARTS | {"8.png": "train", "0.png": "test"})
    assert chosen(trainings=(RUN, other))[0] == ["9.png"]
    disjoint = TrainingData("other", None, dict.fromkeys(IDS, "train"))
    with pytest.raises(UsageError, match="No image of `cells` is in the test part of `run` and"):
        chosen(trainings=(RUN, disjoint))


def test_all_takes_all_and_says_that_it_flatters():
    ids, split, said = chosen(wanted="all")
    assert (ids, split) == (IDS, "all")
    assert said == ["`run` was trained on some of these images: the numbers flatter it."]


def test_a_part_can_be_named():
    assert chosen(wanted="val") == (["6.png", "7.png"], "val", [])
    given = replace(INDEX, pairs=tuple(pair(name, PARTS[name]) for name in IDS))
    assert chosen(given, "val", ())[0] == ["6.png", "7.png"], "the data's own"
    assert chosen(given, "auto", ())[1] == "all"
    swapped = replace(RUN, parts=dict.fromkeys(IDS, "val"))
    assert chosen(given, "val", (swapped,))[0] == IDS, "the training's goes before"


def test_a_part_that_nothing_tells_is_an_error():
    with pytest.raises(UsageError, match="The data is not split, and no model was trained on it"):
        chosen(wanted="test", trainings=())
    given = replace(INDEX, pairs=tuple(pair(name, "train") for name in IDS))
    with pytest.raises(
        UsageError, match=r"`--split test` finds no images in `cells`\.\nThe data has train\."
    ):
        chosen(given, "test", ())


def test_weights_that_do_not_tell_what_they_saw_are_not_trusted():
    bare = TrainingData("mine.safetensors", INDEX.digest, {})
    with pytest.raises(UsageError, match=r"Which images `mine\.safetensors` has not seen"):
        chosen(trainings=(bare,))
    assert chosen(wanted="all", trainings=(bare,))[0] == IDS
