"""Opens data sets from folders, archives, tables and registered names."""

from __future__ import annotations

import os
import posixpath
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.core.errors import UsageError, first_line
from robustcli.core.names import canonical
from robustcli.core.objects import names_url
from robustcli.data import advice
from robustcli.data.archives import archive_stem, is_tar, is_zip, list_tar, list_zip
from robustcli.data.cifar import SUFFIXES as CIFAR_SUFFIXES
from robustcli.data.cifar import by_cifar_files
from robustcli.data.dataset import Dataset, FileRef, Sample
from robustcli.data.download import fetch_dataset
from robustcli.data.hub_datasets import HubName, names_hub_dataset, parse_hub_name, read_hub
from robustcli.data.labels import (
    AnyClasses,
    ExpectedClasses,
    LabelSpace,
    ModelClasses,
    read_label_space,
)
from robustcli.data.layouts import (
    MASK_RECOGNISERS,
    Layout,
    are_parts,
    by_tiny_imagenet,
    class_recognisers,
    find_layout,
    names_shards,
    read_shards,
    unwrapped,
)
from robustcli.data.listing import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    list_folder,
    named_like_image,
    normalised_path,
)
from robustcli.data.manifest import (
    read_class_manifest,
    read_labels,
    read_mask_manifest,
    with_groups,
)
from robustcli.data.named_datasets import (
    DATASETS,
    SEGMENTATION,
    NamedDataset,
    find_named,
    require_tar,
)
from robustcli.data.natural_shifts import (
    AnswerClasses,
    NaturalShift,
    Superclasses,
    allowed_answers,
    find_shift,
    find_superclasses,
    read_objectnet,
    read_real_labels,
)
from robustcli.data.object_files import (
    address_of,
    folder_at,
    open_address,
    split_address,
)
from robustcli.data.published_masks import LABEL_FILES, PUBLISHED_MASKS, SIDE_SUFFIXES
from robustcli.data.tables import TABLE_SUFFIXES, Say, ignore_note, read_text

if TYPE_CHECKING:
    from robustcli.data.mask_classes import ClassesOption, ClassTable
    from robustcli.data.mask_values import ValueOption

SETTINGS = Path("robust.toml")
# Uninformative names of folders: the name of the parent folder is prepended.
_GENERAL = ("val", "validation", "valid", "test", "train", "images", "kaggle_3m", "tiff")


@dataclass(frozen=True)
class Classes:
    """Options to open images with classes.

    Args:
        model: Name of the model's label space. None in training, which accepts any classes: sorted
            by name, or in the order of a bundled label space with exactly these classes.
        label_space: Label space of the data, its name, or a classes file; None to recognise it.
            Only used with `model`.
        labels: File with the label of each image, for folders and archives without classes.
        splits: Whether the class folders may be in folders `train`, `val` and `test`, which then
            define the split of an image. Always allowed in training.
        answers: Classes that a model may predict.
        offline: Whether to use only data on this machine.
    """

    model: str | None = None
    label_space: str | LabelSpace | None = None
    labels: Path | None = None
    splits: bool = False
    answers: AnswerClasses = "auto"
    offline: bool = False


@dataclass(frozen=True)
class Masks:
    """Options to open images with masks; mask values are interpreted once per data set.

    Args:
        foreground: Foreground values (see `mask_values.decide`); None to determine them from the
            masks.
        ignore: Values of pixels to ignore.
        classes: Table of several classes (see `mask_classes.parse_classes`).
        surveyed: Whether to read the masks and determine the interpretation of their values. If
            not, each mask is later interpreted separately.
        offline: Whether to use only data on this machine.
    """

    foreground: ValueOption = None
    ignore: ValueOption = None
    classes: ClassesOption = None
    surveyed: bool = True
    offline: bool = False


def open_dataset(data: str | None, truth: Classes | Masks) -> Dataset:
    """All images of a data set with their classes or masks, sorted by id.

    Args:
        data: A folder or archive in one of the layouts, a manifest, or the name of a data set, each
            optionally followed by `:FOLDER` to select a folder; a data set of the Hugging Face hub
            (`hub_datasets`); or an address in an object store (`object_files`). None for the
            default data (`default_data`) of the model's label space, or for masks of
            `segmentation`.
        truth: Whether the images have classes or masks, with options.

    Raises:
        UsageError: The data do not exist, their layout is unknown, images lack their masks, classes
            are unknown or not those of the model, or the values of masks are ambiguous.
    """
    if data is None:
        label_space = truth.model if isinstance(truth, Classes) else SEGMENTATION
        assert label_space is not None, "training requires `--data`"
        data = default_data(label_space).data
    source, folder = _source_and_folder(data, masks=isinstance(truth, Masks))
    named_data = find_named(source)
    if isinstance(truth, Classes):
        dataset = _with_classes(source, named_data, truth)
    else:
        dataset = _with_masks(source, named_data, truth)
    if folder is None:
        return dataset
    folder = normalised_path(posixpath.normpath(folder))  # as ids are
    samples = tuple(s for s in dataset.samples if s.image_id.startswith(f"{folder}/"))
    if not samples:
        raise advice.no_such_folder(source, dataset, folder)
    name = f"{dataset.name}:{folder}"
    return replace(dataset, name=name, samples=samples, available=len(samples), evaluated=None)


@dataclass(frozen=True)
class DefaultData:
    """The default data, and the setting that defines them, which the caller announces."""

    data: str
    origin: str


def default_data(label_space: str) -> DefaultData:
    """The default data of `label_space`: from the environment, `robust.toml`, or bundled.

    Raises:
        UsageError: No default is set and none is bundled, or `robust.toml` cannot be read.
    """
    default = find_default(label_space)
    if default is not None:
        return default
    variable = variable_for(label_space)
    fitting = [dataset for dataset in DATASETS if dataset.label_space == label_space]
    options = [
        "--data DIR",
        f"{variable}=DIR in the environment, or `{label_space}" + ' = "DIR"` below `[data]` in '
        f"`{SETTINGS}`",
        *(f"--data {d.name}, after `robust fetch {d.name}` ({d.images:,} images)" for d in fitting),
    ]
    raise UsageError(
        f"No data is specified for the label space `{label_space}`.",
        "No data set for it is bundled with robust, and no default is set.",
        "Specify the data in one of these ways:\n" + "\n".join(f"  {option}" for option in options),
    )


def find_default(label_space: str) -> DefaultData | None:
    """Like `default_data`, but returns None if no default is set and none is bundled.

    Raises:
        UsageError: `robust.toml` cannot be read.
    """
    variable = variable_for(label_space)
    if os.environ.get(variable):
        return DefaultData(os.environ[variable], f"environment variable {variable}")
    configured = _from_settings(label_space)
    if configured is not None:
        return DefaultData(configured, f"`{SETTINGS}`")
    fitting = (dataset for dataset in DATASETS if dataset.label_space == label_space)
    return next((DefaultData(d.name, "bundled") for d in fitting if d.default_for), None)


def variable_for(label_space: str) -> str:
    """Name of the environment variable for default data, such as `ROBUST_DATA_IMAGENET_1K`."""
    return f"ROBUST_DATA_{canonical(label_space).replace('-', '_').upper()}"


def _from_settings(label_space: str) -> str | None:
    if not SETTINGS.is_file():
        return None
    try:
        data = tomllib.loads(read_text(SETTINGS)).get("data", {})
    except (tomllib.TOMLDecodeError, RecursionError) as error:  # the latter if nested deeply
        raise UsageError(
            f"`{SETTINGS}` cannot be read.",
            f"{first_line(error)}.",
            "Correct it, or specify the data with `--data`.",
        ) from error
    if not isinstance(data, dict):
        raise UsageError(
            f"`{SETTINGS}`: `data` must be a table.",
            f"Got `{data}`.",
            'Write `[data]` on a separate line and `imagenet-1k = "DIR"` below it.',
        )
    value = next((v for k, v in data.items() if canonical(k) == canonical(label_space)), None)
    if value is not None and not isinstance(value, str):
        raise UsageError(
            f"`{SETTINGS}`: `{label_space}` must be a string.",
            f"Expected the path or name of a data set, got `{value}`.",
            f'Write `{label_space} = "DIR"` below `[data]`.',
        )
    return value


def check_data_exists(data: str, *, masks: bool) -> None:
    """Raises UsageError if the data set `data` does not exist, without listing its files.

    Args:
        data: See `open_dataset`.
        masks: Whether images with masks are needed; only for the advice in the message.
    """
    _source_and_folder(data, masks=masks)


def _source_and_folder(data: str, *, masks: bool) -> tuple[str, str | None]:
    """Splits `data` into the data set and the folder after a colon, None without a folder."""
    if names_url(data):
        return split_address(data)
    if _exists(data):
        return data, None
    source, colon, folder = data.rpartition(":")
    # `C:\data` is a path, not the folder `\data` of a data set `C`.
    if colon and folder and folder[0] not in "/\\" and _exists(source):
        return source, folder.strip("/")
    raise advice.missing_data_error(data, masks=masks)


def _exists(data: str) -> bool:
    is_name = find_named(data) is not None or names_shards(data) or names_hub_dataset(data)
    return is_name or Path(data).expanduser().exists()


def _with_classes(data: str, named: NamedDataset | None, truth: Classes) -> Dataset:
    if named and named.label_space == SEGMENTATION:
        raise advice.has_masks(named, truth.model)
    notes: list[str] = []
    path, hub = _location(data, named, offline=truth.offline)
    expected, shift, superclasses = _expected_classes(path, named, truth, notes.append)
    objects = None
    if shift is not None and shift.name == "ObjectNet" and hub is None and truth.labels is None:
        images = _listed(path, IMAGE_SUFFIXES, notes.append)
        texts = _listed(path, frozenset({".json"}), ignore_note)
        objects = read_objectnet(path, images, texts, notes.append)
    if objects is not None and shift is not None:
        layout, classes = objects
        shift = replace(shift, classes=classes)
    elif hub is not None:
        layout = _hub_layout(hub, truth, expected, notes.append)
    else:
        layout = _class_layout(path, truth, expected, notes.append)
    labels = {label for image in layout.labelled for label in (image.label, *image.also)}
    space = _label_space(path, labels, expected)
    targets = {label: index for label in labels if (index := space.index_of(label)) is not None}
    samples = [
        Sample(labelled.image, targets[labelled.label], labelled.image.relative, labelled.split,
               also=tuple(targets[label] for label in labelled.also))
        for labelled in layout.labelled
    ]  # fmt: skip
    answers = None
    if truth.model is not None and superclasses is None:
        answers = allowed_answers(path, shift, set(targets.values()), truth.answers, notes.append)
    return replace(
        _dataset(path, named, samples, notes, layout), label_space=space, answers=answers,
        members=superclasses.members if superclasses else None,
    )  # fmt: skip


def _expected_classes(
    path: Path, named: NamedDataset | None, truth: Classes, say: Say
) -> tuple[ExpectedClasses, NaturalShift | None, Superclasses | None]:
    """The expected classes, and the data set with a natural shift or the superclasses at `path`."""
    if truth.model is None:
        return AnyClasses(_name(path)), None, None
    is_imagenet_model = truth.model == "imagenet-1k"
    shift = find_shift(path) if is_imagenet_model else None
    space = truth.label_space or (named.label_space if named else None)
    space = space or (truth.model if shift else None)
    if isinstance(space, str):
        space = read_label_space(space, say)
    if is_imagenet_model and (space is None or space.name == truth.model) and truth.labels is None:
        superclasses = find_superclasses(path)
        if superclasses is not None:
            _announce_superclasses(path, truth, say)
            space = superclasses.space
            return ModelClasses(space, space.name), shift, superclasses
    return ModelClasses(space, truth.model), shift, None


def _announce_superclasses(path: Path, truth: Classes, say: Say) -> None:
    if truth.answers != "auto":
        raise UsageError(
            f"`--answers {truth.answers}` cannot be used with `{path}`.",
            "Its folders are the 16 superclasses of LAION-C, and a model predicts one of these.",
            "Omit `--answers`.",
        )
    say(
        "LAION-C: models predict one of its 16 superclasses, by the mean probability of their "
        "ImageNet classes, as in the evaluation of its authors."
    )


def _hub_layout(name: HubName, truth: Classes, expected: ExpectedClasses, say: Say) -> Layout[str]:
    if truth.labels is not None:
        raise _labels_itself(truth.labels, str(name.place))
    return read_hub(
        name, "label", say, offline=truth.offline,
        all_splits=truth.splits or truth.model is None,
        space=expected.label_space if isinstance(expected, ModelClasses) else None,
    )  # fmt: skip


def _labels_itself(labels: Path, data: str) -> UsageError:
    return UsageError(
        f"`--labels {labels}` cannot be used with `--data {data}`.",
        "This data set already contains the class of each image.",
        "Omit `--labels`.",
    )


def _class_layout(path: Path, truth: Classes, expected: ExpectedClasses, say: Say) -> Layout[str]:
    holds_labels = _is_table(path) or names_shards(str(path))
    files = [] if holds_labels else _listed(path, IMAGE_SUFFIXES, say)
    if not files:
        return _self_labelled(path, truth.labels, say)
    is_archive = not path.is_dir()
    if truth.labels is not None:
        is_real = truth.labels.suffix.lower() == ".json"
        return (read_real_labels if is_real else read_labels)(
            truth.labels, _innermost(files) if is_archive else files, say
        )
    tiny = by_tiny_imagenet(path, files, lambda: _listed(path, frozenset({".txt"}), ignore_note))
    if tiny is not None:
        return tiny
    # Common outer folders of an archive are skipped, because a path cannot select a folder in it.
    recognisers = class_recognisers(expected, splits=truth.splits or truth.model is None)
    layout = None
    is_flat = all(file.folder is None for file in files)
    is_class_folder = is_flat and expected.fit({path.resolve().name}) is not None
    if is_archive or not is_class_folder:
        layout = find_layout(path, files, recognisers, inside=is_archive)
    if layout is None:
        if isinstance(expected, AnyClasses):
            inner = {file.relative.split("/")[1] for file in files if file.relative.count("/") > 1}
            if are_parts(files) and len(inner) == 1:
                raise advice.one_class(path, inner.pop())
            raise advice.no_own_classes(path, files)
        raise advice.no_classes(path, files, expected)
    return layout


def _self_labelled(path: Path, labels: Path | None, say: Say) -> Layout[str]:
    """The images of a table, of shards or of CIFAR's files, which contain the classes."""
    if labels is not None:
        raise _labels_itself(labels, str(path))
    if _is_table(path):
        return read_class_manifest(path, say)
    if names_shards(str(path)):
        return read_shards(str(path), say)
    published = by_cifar_files(path, _listed(path, CIFAR_SUFFIXES, ignore_note))
    if published is None:
        raise advice.no_images(path, advice.CLASSES_IN_WORDS)
    return published


def _innermost(files: Sequence[FileRef]) -> Sequence[FileRef]:
    inner = unwrapped(files)
    return _innermost(inner) if inner else files


def _label_space(path: Path, labels: set[str], expected: ExpectedClasses) -> LabelSpace:
    space = expected.fit(labels)
    if isinstance(expected, AnyClasses):
        if space is None:
            raise advice.one_class(path, *labels)
        return space
    if space is None:
        raise advice.unknown_labels(path, labels, expected)
    if canonical(space.name) != canonical(expected.model):
        raise advice.other_label_space(path, space, expected.model)
    return space


def _with_masks(data: str, named: NamedDataset | None, truth: Masks) -> Dataset:
    if named and named.label_space != SEGMENTATION:
        raise advice.classes_not_masks(named)
    notes, tables = list[str](), list[FileRef]()
    path, hub = _location(data, named, offline=truth.offline)
    if hub is not None:
        layout = read_hub(hub, "mask", notes.append, offline=truth.offline)
    else:
        layout, tables = _mask_layout(path, notes.append)
    samples = [
        Sample(pair.image, pair.label, pair.group or pair.image.relative, pair.split)
        for pair in layout.labelled
    ]
    _check_groups(path, samples, layout.grouping)
    dataset = _dataset(path, named, samples, notes, layout)
    return _surveyed(dataset, truth, layout, tables) if truth.surveyed else dataset


def _mask_layout(path: Path, say: Say) -> tuple[Layout[FileRef], list[FileRef]]:
    """The images with their masks, and the files with tables of classes in the data set."""
    if _is_table(path):
        tables = [FileRef(name, path.parent / name) for name in LABEL_FILES]
        return read_mask_manifest(path, say), [file for file in tables if file.path.is_file()]
    listed_files = _listed(path, MASK_SUFFIXES | SIDE_SUFFIXES, say, named_like=MASK_SUFFIXES)
    files = [file for file in listed_files if named_like_image(file.relative, MASK_SUFFIXES)]
    known = find_layout(path, listed_files, PUBLISHED_MASKS, inside=True)
    if known is None and not files:
        raise advice.no_images(path, advice.LAYOUTS_IN_WORDS)
    layout = known or find_layout(path, files, MASK_RECOGNISERS, inside=True)
    if layout is None:
        raise advice.no_masks(path, files)
    groups = groups_file(path)
    layout = with_groups(layout, groups, say) if groups.is_file() else layout
    table_path = path.with_name(f"{archive_stem(path)}.{LABEL_FILES[0]}")
    if not path.is_dir() and table_path.is_file():
        listed_files = [FileRef(LABEL_FILES[0], table_path)]
    return layout, [file for file in listed_files if file.file_name in LABEL_FILES]


def find_table(files: Sequence[FileRef], say: Say) -> ClassTable | None:
    """The table of classes in `files` with the fewest parent folders; None without one.

    At equal depth, `labels.json` precedes nnU-Net's `dataset.json`. `say` receives a note about a
    file without a table.

    Raises:
        UsageError: The table is invalid, or files of equal name and depth have different contents.
    """
    from robustcli.data.mask_classes import parse_table  # lazy: imports numpy

    def rank(file: FileRef) -> tuple[int, int]:
        return file.relative.count("/"), LABEL_FILES.index(file.file_name)

    for file in sorted(files, key=lambda file: (rank(file), file.relative)):
        content = file.read()
        table = parse_table(content, file.file_name, say)
        if table is None:
            continue
        if any(
            rank(candidate) == rank(file) and candidate.read() != content for candidate in files
        ):
            raise UsageError(
                f"Several files `{file.file_name}` in the data set contain different classes.",
                f"{', '.join(f'`{f}`' for f in files if rank(f) == rank(file))}.",
                "Specify the file to use with `--classes FILE`.",
            )
        return table
    return None


def groups_file(location: Path) -> Path:
    """Path of the optional table of groups: `DIR/groups.csv`, or `NAME.groups.csv` for a tar."""
    if location.is_dir():
        return location / "groups.csv"
    return location.with_name(archive_stem(location) + ".groups.csv")


def _check_groups(path: Path, samples: Sequence[Sample], grouping: str) -> None:
    """Raises UsageError for a group in two splits, which would leak training data into test."""
    splits: dict[str, set[str | None]] = defaultdict(set)
    for sample in samples:
        splits[sample.group].add(sample.split)
    divided = sorted(group for group, names in splits.items() if len(names) > 1)
    if divided:
        raise advice.groups_in_two_splits(path, divided, len(splits), grouping)


def _surveyed(
    dataset: Dataset, truth: Masks, layout: Layout[FileRef], tables: Sequence[FileRef]
) -> Dataset:
    """`dataset` with the interpretation of its masks, by options, a table, or the layout."""
    from robustcli.data.mask_classes import published_table  # lazy: imports numpy
    from robustcli.data.masks import survey

    masks = [sample.mask for sample in dataset.samples]
    classes, table_notes = truth.classes, list[str]()
    if classes is None and truth.foreground is None:
        classes = find_table(tables, table_notes.append) or published_table(layout.classes)
    reading, notes = survey(
        masks, dataset.location, foreground=truth.foreground, ignore=truth.ignore, classes=classes
    )
    samples = tuple(replace(sample, reading=reading) for sample in dataset.samples)
    notes = (*dataset.notes, *table_notes, *notes)
    return replace(dataset, samples=samples, reading=reading, notes=notes)


def _location(
    data: str, named: NamedDataset | None, *, offline: bool
) -> tuple[Path, HubName | None]:
    """The local path of a data set; for one of the hub, its short and its complete name."""
    if names_hub_dataset(data):
        hub = parse_hub_name(data)
        return hub.place, hub
    if named and named.downloads_itself:
        return fetch_dataset(named.name, offline=offline), None
    if named:
        return require_tar(named), None
    if names_url(data):
        return open_address(data, offline=offline), None
    path = Path(data).expanduser()
    is_archive = is_tar(path) or is_zip(path)
    if not (path.is_dir() or is_archive or path.suffix.lower() in TABLE_SUFFIXES):
        raise advice.unreadable_kind(data)
    return path, None


def _is_table(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in TABLE_SUFFIXES


def _listed(
    path: Path, suffixes: frozenset[str], say: Say, *, named_like: frozenset[str] | None = None
) -> list[FileRef]:
    """The files in a folder or archive with one of `suffixes`.

    `say` receives notes about excluded files; with `named_like`, only about those with one of these
    suffixes.
    """
    stored = folder_at(path)
    if stored is not None:
        listing = stored.listing(suffixes)
    else:
        list_archive = list_zip if is_zip(path) else list_tar
        listing = (list_folder if path.is_dir() else list_archive)(path, suffixes)
    for note in listing.only(named_like or suffixes).notes(address_of(path) or path):
        say(note)
    return listing.files


def _dataset(
    path: Path, named: NamedDataset | None, samples: Sequence[Sample], notes: Sequence[str],
    layout: Layout[Any],
) -> Dataset:  # fmt: skip
    return Dataset(
        name=layout.name or (named.name if named else _name(path)),
        location=layout.location or address_of(path) or str(path.resolve()),
        samples=tuple(sorted(samples, key=lambda sample: sample.image_id)),
        grouping=layout.grouping,
        available=len(samples),
        demonstration=named is not None and named.demonstration,
        evaluated=layout.evaluated,
        tolerance=layout.tolerance,
        notes=tuple(dict.fromkeys((*notes, *layout.notes))),
    )


def _name(path: Path) -> str:
    path = path.resolve()
    name = f"{path.parent.name}/{path.name}" if path.name.lower() in _GENERAL else path.name
    return normalised_path(name)
