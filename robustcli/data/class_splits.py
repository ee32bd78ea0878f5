"""Training, validation and test parts of images with classes: drawn by image, class by class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.data.index import ImageIndex, ImageRef
from robustcli.data.pair_drawing import HELD_OUT
from robustcli.data.splits import SPLITS, Splits


def class_splits(index: ImageIndex, *, seed: int) -> Splits[ImageIndex]:
    """80/10/10 % of each class, at least one image of every class in every part.

    Images of a class stand in an order drawn from (seed, id) alone, so the order of files does not
    matter. Parts that the data gives are kept; one that it does not give is drawn from its training
    images.

    Args:
        index: The data, perhaps with parts of its own.
        seed: Which images.

    Raises:
        UsageError: A class has too few images.
    """
    missing = [name for name in ("test", "val") if all(i.split != name for i in index.images)]
    parts: dict[str, set[str]] = {name: set() for name in SPLITS}
    for target in range(len(index.label_space.ids)):
        members = [image for image in index.images if image.target == target]
        for image in members:
            parts[image.split or "train"].add(image.image_id)
        drawn = _drawn(index, target, members, missing, seed)
        for name, ids in drawn.items():
            parts[name] |= ids
            parts["train"] -= ids
    how = _how(missing, seed)
    whole = f"{index.subset}; " if index.subset else ""
    return Splits(
        *(index.part(frozenset(parts[n]), f"{whole}{n} part, split {how}") for n in SPLITS)
    )


def _drawn(
    index: ImageIndex, target: int, members: list[ImageRef], missing: list[str], seed: int
) -> Mapping[str, set[str]]:
    """Of one class, the ids of each part that is to be drawn."""
    free = [image.image_id for image in members if (image.split or "train") == "train"]
    if len(free) <= len(missing):
        raise _too_few(index, target, len(free), missing)
    free.sort(key=lambda image_id: (identity_seed("split", seed, image_id), image_id))
    tenth = max(1, round(HELD_OUT * len(members)))
    count = min(tenth, (len(free) - 1) // max(1, len(missing)))
    found: dict[str, set[str]] = defaultdict(set)
    for place, name in enumerate(missing):
        found[name] = set(free[place * count : (place + 1) * count])
    return found


def _how(missing: list[str], seed: int) -> str:
    words = f"by image in each class, seed {seed}"
    if len(missing) == 2:
        return words
    return "as the data gives it" + (f", {missing[0]} {words}" if missing else "")


def _too_few(index: ImageIndex, target: int, free: int, missing: list[str]) -> UsageError:
    needed = len(missing) + 1
    parts = " and ".join(["train", *missing]) if missing else "train"
    return UsageError(
        f"The class `{index.label_space.ids[target]}` of `{index.name}` has too few images.",
        f"{parts} need one image of every class each, {needed} in all; there "
        f"{'is' if free == 1 else 'are'} {free} to draw from.",
        "Add images of that class, take its folder out, or leave `--limit` out.",
    )
