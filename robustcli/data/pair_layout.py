"""What a layout makes of files: pairs, and what their groups are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.data.advice import listed
from robustcli.data.index import ImageRef
from robustcli.data.listing import Entry
from robustcli.data.pairs import PairRef


@dataclass(frozen=True)
class Layout:
    """The pairs that were found.

    Args:
        pairs: In no particular order.
        grouping: What a group is, in the singular: `patient`, `photo`, `image`.
        tolerance: See `PairIndex`.
    """

    pairs: tuple[PairRef, ...]
    grouping: str
    tolerance: int | None = None


def pair(image: Entry, mask: Entry, group: str | None = None, split: str | None = None) -> PairRef:
    """The pair of two files, named by the image's relative path; a group of its own by default."""
    return PairRef(_ref(image), _ref(mask), image.relative if group is None else group, split)


def match(
    location: Path, images: Mapping[str, Entry], masks: Mapping[str, Entry]
) -> list[tuple[Entry, Entry]]:
    """Each image with the mask of the same key.

    Args:
        location: The data set, for the message.
        images: The images by key.
        masks: The masks by key.

    Raises:
        UsageError: An image has no mask, or a mask no image.
    """
    lonely = {
        "image": sorted(images[key].relative for key in images.keys() - masks.keys()),
        "mask": sorted(masks[key].relative for key in masks.keys() - images.keys()),
    }
    if any(lonely.values()):
        raise _unpaired(location, lonely["image"], lonely["mask"], len(images), len(masks))
    return [(image, masks[key]) for key, image in images.items()]


def by_key(location: Path, keyed: Iterable[tuple[str, Entry]]) -> dict[str, Entry]:
    """The files by key.

    Raises:
        UsageError: Two files have the same key.
    """
    found: dict[str, list[Entry]] = defaultdict(list)
    for key, entry in keyed:
        found[key].append(entry)
    twice = {key: entries for key, entries in found.items() if len(entries) > 1}
    if twice:
        names = sorted(entry.relative for entry in twice[min(twice)])
        raise UsageError(
            f"`{location}` has {len(twice)} names more than once.",
            f"{listed(names)} differ in nothing but the suffix: which one belongs to "
            "which file cannot be told.",
            "Rename or remove all but one, or name the pairs in a CSV (`image,mask`).",
        )
    return {key: entries[0] for key, entries in found.items()}


def stem(entry: Entry) -> str:
    """The relative path without its suffix."""
    folder, slash, name = entry.relative.rpartition("/")
    return folder + slash + name.rpartition(".")[0]


def _ref(entry: Entry) -> ImageRef:
    return ImageRef(entry.relative, 0, entry.path, entry.member, entry.offset, entry.size)


def _unpaired(
    location: Path, without_mask: list[str], without_image: list[str], images: int, masks: int
) -> UsageError:
    counts, names = [], []
    if without_mask:
        counts.append(f"{len(without_mask)} of {images} images have no mask")
        names.append(f"Without a mask: {listed(without_mask)}.")
    if without_image:
        counts.append(f"{len(without_image)} of {masks} masks have no image")
        names.append(f"Without an image: {listed(without_image)}.")
    return UsageError(
        f"In `{location}` {' and '.join(counts)}.",
        " ".join(names),
        "Add the missing files (an all-black mask says: nothing to be found), remove the others, "
        "or name the pairs that count in a CSV (`image,mask`).",
    )
