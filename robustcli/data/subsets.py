"""Subsets that are the same on every machine: pure functions of image ids and seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.data.dataset import ImageIndex, ImageRef, Indexed, PairIndex, PairRef

# Subsets that are the same on every machine: a pure function of image ids and seed.


def take(index: ImageIndex, *, per_class: int | None, limit: int | None, seed: int) -> ImageIndex:
    """The part of `index` that was asked for, sorted by id.

    Each image has a place in its class, drawn from its id and the seed alone. So 10 per class are
    among the 15 per class of the same seed, and images that join a class do not reshuffle the rest.

    Args:
        index: The whole data set.
        per_class: Images of each class; None for all.
        limit: Images at most, spread evenly over the classes; applies after `per_class`.
        seed: Which images; the same seed takes the same images.

    Raises:
        UsageError: A number is below 1, or a class has fewer than `per_class` images.
    """
    for option, number in (("--per-class", per_class), ("--limit", limit)):
        if number is not None and number < 1:
            raise UsageError(
                f"`{option} {number}` takes no images.",
                "Expected a whole number from 1.",
                f"Leave out `{option}` to take all images.",
            )
    ranked = _ranked_images(index.images, seed)
    words = []
    if per_class is not None:
        _check_classes(index, per_class)
        ranked = [(rank, image) for rank, image in ranked if rank < per_class]
        words.append(f"{per_class} per class")
    if limit is not None and limit < len(ranked):
        ranked = ranked[:limit]
        words.append(f"{limit} images spread over the classes")
    images = tuple(sorted((image for _, image in ranked), key=lambda image: image.image_id))
    subset = within(index, f"{', '.join(words)}, seed {seed}") if words else index.subset
    return replace(index, images=images, subset=subset)


def within(index: Indexed, taken: str) -> str:
    """The words for a part `taken` of `index`, which may be a part of a data set itself."""
    return f"{index.subset}: {taken}" if index.subset else taken


def _ranked_images(images: Iterable[ImageRef], seed: int) -> list[tuple[int, ImageRef]]:
    """The images with their place in their class: all first places first, each round shuffled."""
    classes: dict[int, list[tuple[int, ImageRef]]] = defaultdict(list)
    for image in images:
        classes[image.target].append((identity_seed(seed, image.image_id), image))
    placed = []
    for members in classes.values():
        members.sort(key=lambda member: (member[0], member[1].image_id))
        placed += [(rank, key, image) for rank, (key, image) in enumerate(members)]
    placed.sort(key=lambda one: (one[0], one[1], one[2].image_id))
    return [(rank, image) for rank, _, image in placed]


def _check_classes(index: ImageIndex, per_class: int) -> None:
    counts: dict[int, int] = defaultdict(int)
    for image in index.images:
        counts[image.target] += 1
    smallest = min(counts, key=lambda target: (counts[target], target))
    if counts[smallest] < per_class:
        raise UsageError(
            f"`--per-class {per_class}` is more than there is.",
            f"The smallest class, `{index.label_space.ids[smallest]}` "
            f"({index.label_space.names[smallest]}), has {counts[smallest]}.",
            f"Use `--per-class {counts[smallest]}` or less, or `--limit`.",
        )


# A part of the pairs that is the same on every machine: a pure function of ids and seed.


def take_pairs(index: PairIndex, *, limit: int | None, seed: int) -> PairIndex:
    """At most `limit` pairs of `index`, spread evenly over its groups, sorted by id.

    Each pair has a place in its group, drawn from its id and the seed alone; all first places come
    first, in an order of their own, then all second ones. So a smaller limit takes a part of what a
    larger one takes. Of every split that the data gives, the very first pair goes before all.

    Args:
        index: The whole data set.
        limit: Pairs at most; None for all.
        seed: Which pairs; the same seed takes the same pairs.

    Raises:
        UsageError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(
            f"`--limit {limit}` takes no images.",
            "Expected a whole number from 1.",
            "Leave out `--limit` to take all images.",
        )
    if limit is None or limit >= len(index.pairs):
        return index
    kept = _ranked_pairs(index, seed)[:limit]
    return replace(
        index,
        pairs=tuple(sorted(kept, key=lambda pair: pair.image_id)),
        subset=within(index, f"{limit} images spread over the {index.grouping}s, seed {seed}"),
    )


def _ranked_pairs(index: PairIndex, seed: int) -> list[PairRef]:
    keyed = {pair.image_id: identity_seed(seed, pair.image_id) for pair in index.pairs}
    groups: dict[str, list[PairRef]] = defaultdict(list)
    for pair in sorted(index.pairs, key=lambda pair: (keyed[pair.image_id], pair.image_id)):
        groups[pair.group].append(pair)
    placed = [(rank, pair) for members in groups.values() for rank, pair in enumerate(members)]
    placed.sort(key=lambda one: (one[0], keyed[one[1].image_id], one[1].image_id))
    ranked = [pair for _, pair in placed]
    firsts = {pair.split: pair for pair in reversed(ranked)}
    return sorted(ranked, key=lambda pair: firsts[pair.split] is not pair)
