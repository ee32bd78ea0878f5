"""Which part of the data is evaluated: what no model was trained on, unless the user says else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, cast

from robustcli.core.errors import UsageError
from robustcli.data.indexed import IndexT
from robustcli.evaluation.listener import Listener
from robustcli.evaluation.record import Split
from robustcli.evaluation.training_data import TrainingData


@dataclass(frozen=True)
class Part(Generic[IndexT]):
    """Some images of the data, and which part of it they are."""

    index: IndexT
    split: Split


def choose_part(
    index: IndexT,
    wanted: Literal["auto"] | Split,
    trainings: Sequence[TrainingData],
    listener: Listener,
) -> Part[IndexT]:
    """The part of `index` to evaluate.

    `auto` takes the held-out test images where a model was trained on images of `index`, else all.
    With several such models these are the images that all of them held out. A named part is that
    of the trainings, where there are any, else the data's own.

    Args:
        index: The whole data set.
        wanted: As the user said it.
        trainings: What the models were trained on.
        listener: Hears what was taken, and of test images that are none.

    Raises:
        UsageError: Which images are in the part is not known, or there are none.
    """
    known = [training for training in trainings if training.overlaps(index)]
    if wanted == "all" or (wanted == "auto" and not known):
        for training in known:
            listener.say(
                f"`{training.model}` was trained on some of these images: the numbers flatter it."
            )
        return Part(index, "all")
    split: Split = "test" if wanted == "auto" else wanted
    part = _of_trainings(index, split, known) if known else _own(index, split)
    if wanted == "auto":
        listener.say(
            f"`{known[0].model}` was trained on this data: only the {len(part.members)} of "
            f"{len(index.members)} images that were held out for testing are used "
            "(`--split all` takes all)."
        )
    return Part(part, split)


def _of_trainings(index: IndexT, split: Split, known: Sequence[TrainingData]) -> IndexT:
    for training in known:
        if not training.parts:
            raise _unknown_parts(training)
    ids = frozenset(
        pair.image_id
        for pair in index.members
        if all(training.parts.get(pair.image_id) == split for training in known)
    )
    names = " and ".join(dict.fromkeys(f"`{training.model}`" for training in known))
    if not ids:
        raise UsageError(
            f"No image of `{index.name}` is in the {split} part of {names}.",
            f"All {len(index.members)} images here are others, or were used otherwise in training.",
            "Name other data, evaluate models of different splits in separate runs, or take "
            "everything with `--split all`.",
        )
    return _part(index, ids, f"{split} part of {names}")


def _own(index: IndexT, split: Split) -> IndexT:
    ids = frozenset(pair.image_id for pair in index.members if pair.split == split)
    if not ids:
        given = sorted({pair.split for pair in index.members if pair.split is not None})
        raise UsageError(
            f"`--split {split}` finds no images in `{index.name}`.",
            f"The data has {', '.join(given)}."
            if given
            else "The data is not split, and no model was trained on it.",
            "Leave out `--split`, or name data with the folders or the column that tell.",
        )
    return _part(index, ids, f"{split} part of the data's own split")


def _part(index: IndexT, ids: frozenset[str], words: str) -> IndexT:
    return cast("IndexT", index.part(ids, f"{index.subset}, {words}" if index.subset else words))


def _unknown_parts(training: TrainingData) -> UsageError:
    return UsageError(
        f"Which images `{training.model}` has not seen is not known.",
        "Its weights say that it was trained on this data, but the `splits.csv` of that training "
        "is not beside them.",
        "Name the folder of the training run (`--model RUN`), copy its `splits.csv` beside the "
        "weights, or take all images with `--split all`.",
    )
