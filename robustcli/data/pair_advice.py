"""What is wrong with the data for a segmenter, and what to do about it, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.core.names import nearest
from robustcli.data.datasets import DATASETS, LISTING, SEGMENTATION, Dataset
from robustcli.data.listing import IMAGE_SUFFIXES, Entry
from robustcli.data.pairs import PairIndex
from robustcli.data.tables import TABLE_SUFFIXES
from robustcli.data.tar import TAR_SUFFIXES

LAYOUTS_IN_WORDS = """Put the files into one of these layouts:
  DIR/images/NAME.png  DIR/masks/NAME.png                paired folders, at any depth
  DIR/PATIENT/NAME.tif  DIR/PATIENT/NAME_mask.tif        as LGG's kaggle_3m
  DIR/tiff/SPLIT/NAME.tiff  DIR/tiff/SPLIT_labels/NAME.tif  as Massachusetts Roads
  FILE.csv                                               columns image, mask, [patient], [split]"""


def no_layout(location: Path, entries: Sequence[Entry]) -> UsageError:
    """There are images at `location`, but which of them are masks is not known."""
    if location.name.lower() in ("images", "masks") or _is_one_patient(entries):
        return UsageError(
            f"`{location}` is one level too low.",
            "It holds only one of the folders that belong together.",
            f"Name the folder above it: `--data {location.resolve().parent}`.",
        )
    return UsageError(
        f"`{location}` has no known layout of images and masks.",
        f"It holds {len(entries)} images, such as `{min(entry.relative for entry in entries)}`.",
        LAYOUTS_IN_WORDS,
    )


def no_images(location: Path) -> UsageError:
    """There is no image at `location`."""
    return UsageError(
        f"`{location}` holds no images.",
        f"Files that end in {', '.join(sorted(IMAGE_SUFFIXES))} were looked for, at any depth.",
        LAYOUTS_IN_WORDS,
    )


def no_masks(dataset: Dataset) -> UsageError:
    """A data set for classifiers was named."""
    ours = ", ".join(f"`--data {d.name}`" for d in DATASETS if d.label_space == SEGMENTATION)
    return UsageError(
        f"`{dataset.name}` has no masks.",
        f"It is a set for classifiers of `{dataset.label_space}`.",
        f"Name images with masks: {ours}, or a folder of your own.",
    )


def no_data(data: str) -> UsageError:
    """There is nothing at the path `data`."""
    close = nearest(data, (d.name for d in DATASETS if d.label_space == SEGMENTATION))
    return UsageError(
        f"There is no data at `{data}`.",
        f"Did you mean the data set {' or '.join(f'`{c}`' for c in close)}?"
        if close
        else f"It is no folder or file here (`{Path.cwd()}`), and no data set is called so.",
        f"Check the path; `{LISTING}` shows the data sets that have names.",
    )


def unreadable_kind(data: str) -> UsageError:
    """`data` is a file of a kind that holds no data set."""
    return UsageError(
        f"`{data}` cannot be read as data.",
        f"Expected a folder, a table ({', '.join(sorted(TABLE_SUFFIXES))}) or a tar "
        f"({', '.join(TAR_SUFFIXES)}).",
        "Unpack other archives first; for one image, name the folder above its folder.",
    )


def no_such_folder(data: str, index: PairIndex, folder: str) -> UsageError:
    """No pair of `index`, which the user called `data`, lies in `folder`."""
    counts = Counter(p.image_id.rpartition("/")[0] for p in index.pairs if "/" in p.image_id)
    shown = ", ".join(f"`{name}` ({count})" for name, count in counts.most_common(5))
    return UsageError(
        f"`{data}` has no folder `{folder}`.",
        f"Its folders: {shown}{' and others' if len(counts) > 5 else ''}."
        if counts
        else "It has no folders.",
        f"Write `--data {data}:FOLDER` with one of them, or leave `:{folder}` out.",
    )


def _is_one_patient(entries: Sequence[Entry]) -> bool:
    flat = all(entry.folder is None for entry in entries)
    return flat and any(entry.relative.rpartition(".")[0].endswith("_mask") for entry in entries)
