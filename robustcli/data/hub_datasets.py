"""Data sets of the Hugging Face hub: `hf:ORG/NAME@REVISION:SPLIT`, images are read on demand.

The library `datasets` reports the Parquet files of each split and their columns. Opening a data set
reads only the columns of labels and names from these files. The first read of an image fetches its
complete row group, the smallest separately readable part of a Parquet file. The row group is cached
in the data home, for further transforms, commands and worker processes. So a sample is a fixed row
of a fixed file, independent of the process that reads it and of the order.

The name of a branch is resolved to a commit once, and everything is read from that commit. Code of
a repository is never run: `datasets` from version 4 on cannot run it.
"""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from robustcli.core.errors import MachineError, RobustError, RunError, UsageError, first_line
from robustcli.core.io import LONGEST_NAME, parse_json, refused, replacing, shortened, write_text
from robustcli.core.names import counted, nearest
from robustcli.data.advice import quoted
from robustcli.data.dataset import FileRef
from robustcli.data.download import TransferPace
from robustcli.data.labels import BUNDLED_SPACES, LabelSpace, read_label_space
from robustcli.data.layouts import SPLIT_NAMES, Labelled, Layout
from robustcli.data.listing import normalised_path
from robustcli.data.named_datasets import data_home, lock_on_this_machine
from robustcli.data.tables import Say

_PREFIX = "hf:"
OLDEST_DATASETS = (4, 0)
"""The first version that cannot run code of a repository; also in `pyproject.toml`."""
_NAME = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:?@\s]+))?(?::(?P<split>[\w.-]+))?"
    r"(?:\?(?P<options>.*))?"
)
_OPTIONS = ("config", "image", "label", "mask")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PREFERRED = ("test", "validation", "val", "valid", "dev", "train")
"""Preferred splits of an evaluation without a named split; the first one with labels is used."""
_IMAGE_NAMES = ("image", "img", "pixels", "photo", "picture", "jpg", "png")
_LABEL_NAMES = (
    *("label", "labels", "fine_label", "class", "target", "category", "cls", "class_name"),
    *("label_name", "wnid"),
)
_MASK_NAMES = ("mask", "label", "annotation", "segmentation_mask", "segmentation", "ground_truth")
_ID_NAMES = (
    *("image_id", "id", "file_name", "filename", "image_name", "file_path", "image_path", "path"),
    *("__key__", "key"),
)
_UNSAFE = re.compile(r"^/|\\|[\x00-\x1f\x7f]|(^|/)\.\.?(/|$)")
_AT_ONCE = 8
"""Number of files whose labels are read in parallel, because latency dominates."""
_TIMEOUT_S = 60
_CHUNK = 1 << 16
_MOST_BYTES = 2**32
"""Limit in bytes of one range request (a column of a row group, or a footer)."""
_PAUSES_S = (1.0, 4.0)
"""Delays in seconds before a failed transfer is repeated."""


def names_hub_dataset(data: str) -> bool:
    """Whether `data` names a data set of the hub; `hf://` begins an address of files instead."""
    return data.startswith(_PREFIX) and not data.startswith(f"{_PREFIX}//")


@dataclass(frozen=True)
class HubName:
    """The parsed name of a data set of the hub.

    Args:
        repo: `ORG/NAME`.
        revision: A branch, a tag or a commit; None for the branch `main`.
        split: Name of the split; None if the user named none.
        config: Subset of a repository with several subsets; None for its default.
        image: Column of images; None to detect it.
        label: Column of labels; None to detect it.
        mask: Column of masks; None to detect it.
    """

    repo: str
    revision: str | None = None
    split: str | None = None
    config: str | None = None
    image: str | None = None
    label: str | None = None
    mask: str | None = None

    @property
    def place(self) -> Path:
        """The name for messages: `hf:ORG/NAME`."""
        return Path(f"{_PREFIX}{self.repo}")

    def spelled(self, commit: str, split: str | None) -> str:
        """The complete name of `split` at `commit`, in the notation of `parse_hub_name`."""
        known = ((name, getattr(self, name)) for name in _OPTIONS)
        options = "&".join(f"{name}={value}" for name, value in known if value is not None)
        return (
            f"{_PREFIX}{self.repo}@{commit}"
            + (f":{split}" if split is not None else "")
            + (f"?{options}" if options else "")
        )


def parse_hub_name(data: str) -> HubName:
    """Parses `hf:ORG/NAME[@REVISION][:SPLIT][?OPTION=VALUE&...]`.

    Raises:
        UsageError: `data` is not such a name.
    """
    match = _NAME.fullmatch(data)
    pairs = (
        [option.partition("=") for option in (match["options"] or "").split("&")] if match else []
    )
    options = {name: value for name, equals, value in pairs if equals and value}
    wrong = [name for name, equals, value in pairs if name and not (equals and value)]
    wrong += sorted(set(options) - set(_OPTIONS))
    if match is None or wrong:
        raise UsageError(
            f"`{data}` is not a valid name of a data set on the Hugging Face hub.",
            f"`{wrong[0]}` is not one of {', '.join(f'`{o}=...`' for o in _OPTIONS)}."
            if wrong
            else "Expected `hf:ORG/NAME`, `hf:ORG/NAME@REVISION` or `hf:ORG/NAME@REVISION:SPLIT`.",
            "For example `--data hf:uoft-cs/cifar10@main:test`, or with columns "
            "`--data 'hf:uoft-cs/cifar100@main:test?label=fine_label'`.",
        )
    return HubName(match["repo"], match["revision"], match["split"], **options)


@dataclass(frozen=True)
class HubLayout:
    """The images of a data set of the hub.

    Args:
        layout: The labelled images.
        name: Name of the data set in tables of results: `NAME:SPLIT`.
        location: Complete name of the data set, with the commit.
    """

    layout: Layout[Any]
    name: str
    location: str


def read_hub(
    name: HubName, truth: Literal["label", "mask"], say: Say, *, offline: bool,
    all_splits: bool = True, space: LabelSpace | None = None,
) -> HubLayout:  # fmt: skip
    """The images of a split with the names of their classes, or with their masks.

    Args:
        name: The data set.
        truth: Whether the images have classes or masks.
        say: Receives notes on the selected commit, split and columns.
        offline: Whether to use only cached files.
        all_splits: Whether to read all splits if `name` has none, as for training and for masks.
        space: Label space whose ids replace class names if classes and order are equal; see
            `class_names`.

    Raises:
        MachineError: `datasets` is not installed, or too old.
        UsageError: The data set, split or column does not exist, has no labels or is not published
            as Parquet, or `offline` is set and a file is not cached.
        RunError: The transfer failed.
    """
    commit = _commit(name, say, offline)
    published = _published(name, commit, offline)
    columns = _chosen(name, published, truth)
    splits = _splits(name, published, all_splits)
    taken: dict[str, list[Labelled[Any]]] = {}
    for split in splits:
        rows = _rows(name, commit, published, split, columns, offline)
        if not rows.ids:
            say(f"`{name.place}`: the split `{split}` has no rows and is skipped.")
            continue
        if rows.unlabelled:
            if len(splits) == 1 or rows.unlabelled < len(rows.ids):
                raise _no_labels(name, split, rows.unlabelled, columns)
            say(f"`{name.place}`: the split `{split}` has no labels and is skipped.")
            continue
        taken[split] = list(
            _labelled(name, commit, published, split, columns, rows, space, offline)
        )
        if not all_splits:
            break
    if not taken:
        if not rows.ids:
            raise UsageError(
                f"The split `{splits[-1]}` of `{name.place}` has no rows.",
                "Its Parquet files are empty.",
                f"Use another split: `--data {name.place}@REVISION:SPLIT`.",
            )
        raise _no_labels(name, splits[0], rows.unlabelled, columns)
    only_split = next(iter(taken)) if len(taken) == 1 else None
    if len(published.files) > 1 and name.split is None:
        listed = ", ".join(f"`{split}`" for split in published.files)
        say(
            f"`{name.place}` has the splits {listed}: "
            + (f"`{only_split}` is used (`{name.place}@REVISION:SPLIT` selects another one)."
               if only_split else f"used for training and evaluation are {quoted(list(taken))}.")
        )  # fmt: skip
    size = sum(file.bytes_of(columns.image) for split in taken for file in published.files[split])
    say(
        f"`{name.place}`: {counted(sum(map(len, taken.values())), 'image')} in the column "
        f"`{columns.image}`, {size / 1e6:,.1f} MB: each part is downloaded when it is needed and "
        f"kept in `{_commit_home(name.repo, commit)}`."
    )
    labelled = [
        one_image if only_split is None else Labelled(one_image.image, one_image.label)
        for images in taken.values() for one_image in images
    ]  # fmt: skip
    short = name.repo.partition("/")[2]
    return HubLayout(
        Layout(tuple(labelled)),
        short if only_split is None else f"{short}:{only_split}",
        name.spelled(commit, only_split),
    )


# Resolution of the commit.


def _commit(name: HubName, say: Say, offline: bool) -> str:
    """The commit of the revision, from the hub; if `offline`, the last one from the hub."""
    revision = name.revision or "main"
    if _COMMIT.fullmatch(revision):
        return revision
    file = _repo_home(name.repo) / "refs" / f"{_local_file_name(revision)}.txt"
    if offline:
        if not file.is_file():
            raise _not_here(name.repo, f"the commit of `{revision}` was never looked up")
        commit = file.read_text(encoding="utf-8").strip()
    else:
        commit = _resolved(name, revision)
        write_text(file, commit + "\n")
    note = " (as last looked up; `--offline` forbids a new look-up)" if offline else ""
    say(
        f"`{name.place}`: `{revision}` is the commit {commit}{note}. To use the same images "
        f"later, write `{name.place}@{commit}`."
    )
    return commit


def _resolved(name: HubName, revision: str) -> str:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi(endpoint=constants.ENDPOINT).dataset_info(
            name.repo, revision=revision, timeout=_TIMEOUT_S
        )
    except GatedRepoError as error:
        raise UsageError(
            f"`{name.place}` can only be read by users who accepted its terms.",
            first_line(error),
            f"Accept them at https://huggingface.co/datasets/{name.repo}, then log in with "
            "`hf auth login` or set HF_TOKEN.",
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(
            f"`{name.place}` has no revision `{revision}`.", first_line(error),
            "Use a branch, a tag or a commit that is listed on its page on the hub.",
        ) from error  # fmt: skip
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"The Hugging Face hub has no data set `{name.repo}`, or you have no access to it.",
            first_line(error),
            "Check the name. For a private data set, log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except Exception as error:  # the hub client and its HTTP libraries raise various exceptions
        raise _broken_transfer(name.repo, "The hub could not be reached", error) from error
    assert info.sha is not None, "the hub names a commit for every revision"
    return info.sha


# Published files and columns.

ColumnKind = Literal["image", "class", "text", "number", "other"]


@dataclass(frozen=True)
class PublishedColumn:
    """A column of the Parquet files.

    Args:
        name: Name of the column.
        kind: Type of the values; `class` for class indices with names.
        names: Class names of a `class` column.
        leaf: For images, the Parquet path of the encoded bytes, such as `image.bytes`.
    """

    name: str
    kind: ColumnKind
    names: tuple[str, ...] = ()
    leaf: str = ""


@dataclass(frozen=True)
class PublishedFile:
    """A Parquet file.

    Args:
        path: Path in the repository.
        size: Size in bytes.
        rows: Number of rows of each row group.
        bytes: Compressed bytes of each row group, by column name.
    """

    path: str
    size: int
    rows: tuple[int, ...]
    bytes: Mapping[str, tuple[int, ...]] = field(repr=False)

    def bytes_of(self, column: str) -> int:
        """Compressed bytes of `column` in all row groups."""
        return sum(self.bytes.get(column, ()))


@dataclass(frozen=True)
class Published:
    """The columns of a data set, and the Parquet files of each split in order."""

    config: str
    columns: tuple[PublishedColumn, ...]
    files: Mapping[str, tuple[PublishedFile, ...]]

    @cached_property
    def by_name(self) -> dict[str, PublishedColumn]:
        """The columns by name."""
        return {column.name: column for column in self.columns}


_FORMAT = 1


def _published(name: HubName, commit: str, offline: bool) -> Published:
    """The published files at `commit`, from the cache or else from the hub."""
    from pydantic import TypeAdapter

    home = _commit_home(name.repo, commit)
    file = home / f"files-{_local_file_name(name.config or 'default')}.json"
    try:
        known = parse_json(file.read_text(encoding="utf-8"))
        if known["format"] == _FORMAT:
            return TypeAdapter(Published).validate_python(known)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not cached, another format or damaged: fetched again
    if offline:
        raise _not_here(name.repo, "its list of files was never downloaded")
    published = _look_up(name, commit)
    write_text(file, json.dumps({"format": _FORMAT, **asdict(published)}))
    return published


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MachineError(
            "`--data hf:` needs the library datasets.", "It is not installed.",
            "Install it: `pip install 'robustcli[hf]'`.",
        ) from error  # fmt: skip
    version = tuple(int(number) for number in re.findall(r"\d+", datasets.__version__)[:2])
    if version < OLDEST_DATASETS:
        raise MachineError(
            f"`--data hf:` needs datasets {'.'.join(map(str, OLDEST_DATASETS))} or newer.",
            f"Version {datasets.__version__} is installed, which may run code from a repository.",
            "Install a newer one: `pip install --upgrade 'robustcli[hf]'`.",
        )
    return datasets


def _look_up(name: HubName, commit: str) -> Published:
    """The splits as detected by `datasets`, with the metadata of their Parquet files."""
    import tempfile

    datasets = _library()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as cache:
            builder = datasets.load_dataset_builder(
                name.repo, name.config, revision=commit, cache_dir=cache
            )
    except Exception as error:  # `datasets` and its HTTP libraries raise various exceptions
        raise _undetermined(
            name, "files", error,
            "If the repository has several subsets, specify one: `--data "
            f"'{name.place}@REVISION:SPLIT?config=NAME'`. A repository that needs its own code is "
            "not supported.",
        ) from error  # fmt: skip
    finally:
        logger.setLevel(level)
    kind = type(builder).__module__.rpartition(".")[2]
    paths = {str(s): [_in_repo(p) for p in some]
             for s, some in (builder.config.data_files or {}).items()}  # fmt: skip
    names = [path for some in paths.values() for path in some]
    if kind != "parquet" or not names or not all(path.endswith(".parquet") for path in names):
        raise UsageError(
            f"`{name.place}` is not published as Parquet files.",
            f"`datasets` reads it as `{kind}`.",
            "The hub keeps a Parquet copy of most data sets: write "
            f"`{name.place}@refs/convert/parquet:SPLIT`. Or download it (`hf download --repo-type "
            f"dataset {name.repo} --local-dir DIR`) and pass the folder.",
        )
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        files = {
            split: list(pool.map(lambda path: _footer(name, commit, path), some))
            for split, some in paths.items()
        }
    schema = next(schema for some in files.values() for _, schema in some)
    try:
        features = builder.info.features or datasets.Features.from_arrow_schema(schema)
    except Exception as error:  # `datasets` raises various exceptions for metadata in the files
        raise _undetermined(
            name, "columns", error,
            "Tell the owner of the repository, or download the files and write a CSV with the "
            "columns `path` and `label`.",
        ) from error  # fmt: skip
    columns = tuple(_column(datasets, key, feature) for key, feature in features.items())
    return Published(
        str(builder.config.name), columns,
        {split: tuple(file for file, _ in some) for split, some in files.items()},
    )  # fmt: skip


def _undetermined(name: HubName, what: str, error: Exception, todo: str) -> UsageError:
    return UsageError(
        f"`datasets` cannot determine the {what} of `{name.place}`.",
        f"{type(error).__name__}: {first_line(error, 400)}.",
        todo,
    )


def _in_repo(url: str) -> str:
    """The path in the repository of a URL `hf://datasets/ORG/NAME@COMMIT/data/x.parquet`."""
    return str(url).partition("://")[2].split("/", 3)[3]


def _column(datasets: Any, name: str, feature: Any) -> PublishedColumn:
    if isinstance(feature, datasets.ClassLabel):
        return PublishedColumn(name, "class", tuple(map(str, feature.names)))
    if isinstance(feature, datasets.Image) or (
        isinstance(feature, dict) and set(feature) >= {"bytes", "path"}
    ):
        return PublishedColumn(name, "image", leaf=f"{name}.bytes")
    dtype = str(getattr(feature, "dtype", ""))
    if dtype in ("binary", "large_binary"):
        return PublishedColumn(name, "image", leaf=name)
    if dtype in ("string", "large_string"):
        return PublishedColumn(name, "text")
    if re.fullmatch(r"u?int\d+|bool", dtype):
        return PublishedColumn(name, "number")
    return PublishedColumn(name, "other")


def _footer(name: HubName, commit: str, path: str) -> tuple[PublishedFile, Any]:
    import pyarrow.parquet as pq

    with _fetching(name.repo, path):
        remote = RemoteFile(name.repo, commit, path)
        file = pq.ParquetFile(remote)
    metadata, groups = file.metadata, range(file.metadata.num_row_groups)
    sizes: dict[str, list[int]] = {}
    for group in groups:
        of_group: Counter[str] = Counter()
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            of_group[chunk.path_in_schema.partition(".")[0]] += chunk.total_compressed_size
        for column, size in of_group.items():
            sizes.setdefault(column, []).append(size)
    rows = tuple(metadata.row_group(group).num_rows for group in groups)
    known = {column: tuple(some) for column, some in sizes.items()}
    return PublishedFile(path, remote.size, rows, known), file.schema_arrow


# Selection of columns and splits.


@dataclass(frozen=True)
class _Columns:
    """The selected columns of images and truth; `masks`: whether the truth is masks or classes."""

    image: str
    truth: str
    masks: bool


def _chosen(name: HubName, published: Published, truth: Literal["label", "mask"]) -> _Columns:
    images = [c.name for c in published.columns if c.kind == "image"]
    if truth == "mask":
        mask = _single_column(
            name, published, "mask", name.mask, [i for i in images if i != name.image],
            [i for i in _MASK_NAMES if i != name.image], certain=False,
        )  # fmt: skip
        image_columns = [image for image in images if image != mask]
        return _Columns(
            _single_column(name, published, "image", name.image, image_columns, _IMAGE_NAMES),
            mask,
            masks=True,
        )
    image = _single_column(name, published, "image", name.image, images, _IMAGE_NAMES)
    classes = [c.name for c in published.columns if c.kind == "class"]
    plain = [
        c.name for c in published.columns if c.kind in ("text", "number") and c.name in _LABEL_NAMES
    ]
    label = _single_column(name, published, "label", name.label, classes or plain, _LABEL_NAMES)
    if published.by_name[label].kind not in ("class", "text", "number"):
        raise _wrong_column(name, published, "label", f"`{label}` contains no classes")
    return _Columns(image, label, masks=False)


def _single_column(
    name: HubName, published: Published, role: str, typed: str | None, fitting: Sequence[str],
    usual: Sequence[str], *, certain: bool = True,
) -> str:  # fmt: skip
    """Selects the column set by the user, the only candidate, or one with a usual name.

    Args:
        name: The data set, for messages.
        published: All columns.
        role: Role of the column: `image`, `label` or `mask`.
        typed: Column set by the user; None to detect it.
        fitting: Candidates of a suitable type.
        usual: Usual names of the column, by descending priority.
        certain: Whether a single candidate is selected whatever its name.

    Raises:
        UsageError: The column does not exist, has another type, or is ambiguous.
    """
    if typed is not None:
        if typed not in published.by_name:
            raise _wrong_column(name, published, role, f"no column is called `{typed}`")
        if role != "label" and published.by_name[typed].kind != "image":
            raise _wrong_column(name, published, role, f"`{typed}` contains no images")
        return typed
    if certain and len(fitting) == 1:
        return fitting[0]
    named = [column for column in usual if column in fitting]
    if not named or (certain and role == "label" and len(fitting) > 1 and len(named) > 1):
        several = f"{quoted(fitting)} are suitable" if fitting else "none is suitable"
        if role == "mask" and fitting:
            several = f"none of its columns of images is called {', '.join(_MASK_NAMES)}"
        raise _wrong_column(name, published, role, several)
    return named[0]


def _wrong_column(name: HubName, published: Published, role: str, reason: str) -> UsageError:
    kinds = ", ".join(f"`{c.name}` ({c.kind})" for c in published.columns)
    what = {
        "image": "images", "label": "the class of each image", "mask": "the mask of each image"
    }[role]  # fmt: skip
    return UsageError(
        f"It is not known which column of `{name.place}` contains {what}: {reason}.",
        f"Its columns: {kinds}.",
        f"Specify it: `--data '{name.place}@REVISION:SPLIT?{role}=COLUMN'`."
        + (" Images with classes are for classifiers." if role == "mask" else ""),
    )


def _splits(name: HubName, published: Published, all_splits: bool) -> list[str]:
    """The splits to read, by descending preference."""
    files = published.files
    if name.split is not None:
        if name.split not in files:
            close = nearest(name.split, files)
            suggestion = f" Did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else ""
            raise UsageError(
                f"`{name.place}` has no split `{name.split}`.",
                f"It has {', '.join(f'`{split}`' for split in files)}.{suggestion}",
                f"Write for example `--data {name.place}@{name.revision or 'main'}:"
                f"{next(iter(files))}`.",
            )
        return [name.split]
    if all_splits and len(files) > 1:
        parts = [split for split in files if split.lower() in SPLIT_NAMES]
        if "train" in (SPLIT_NAMES[split.lower()] for split in parts):
            return parts
    known = [split for split in _PREFERRED if split in files]
    if not known and len(files) > 1:
        raise UsageError(
            f"It is not known which split of `{name.place}` to use.",
            f"It has {', '.join(f'`{split}`' for split in files)}.",
            f"Specify one: `--data {name.place}@{name.revision or 'main'}:{next(iter(files))}`.",
        )
    return known or list(files)


# Names and labels of the rows, without the images.


@dataclass(frozen=True)
class _Rows:
    """Id and label of each row of a split; the label is a string, empty without one."""

    ids: Sequence[str]
    labels: Sequence[str]
    unlabelled: int


def _rows(
    name: HubName, commit: str, published: Published, split: str, columns: _Columns, offline: bool
) -> _Rows:
    """Ids and labels of a split, from the cache or else from the hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = None if columns.masks else columns.truth
    key = "-".join(map(_local_file_name, (published.config, split, columns.image, label or "none")))
    file = _commit_home(name.repo, commit) / f"rows-{key}.parquet"
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException):
        if offline:
            raise _not_here(
                name.repo, f"the labels of its split `{split}` were never downloaded"
            ) from None
        table = _fetched_rows(name, commit, published, split, columns)
        with replacing(file) as temporary:
            pq.write_table(table, temporary)
    labels = table.column("label").to_pylist()
    unlabelled = 0 if columns.masks else sum(not label for label in labels)
    return _Rows(table.column("id").to_pylist(), labels, unlabelled)


def _fetched_rows(
    name: HubName, commit: str, published: Published, split: str, columns: _Columns
) -> Any:
    """A table of ids and labels, from the columns without images."""
    import pyarrow as pa

    naming = [c for c in _ID_NAMES if c in published.by_name
              and published.by_name[c].kind in ("text", "number")]  # fmt: skip
    leaf = published.by_name[columns.image].leaf
    inner = f"{columns.image}.path" if leaf.endswith(".bytes") else None
    column_names = [
        *naming,
        *([inner] if inner else []),
        *([] if columns.masks else [columns.truth]),
    ]

    def read(file: PublishedFile) -> Any:
        import pyarrow.parquet as pq

        with _fetching(name.repo, file.path):
            remote = RemoteFile(name.repo, commit, file.path, file.size)
            return pq.ParquetFile(remote, pre_buffer=True).read(columns=column_names)

    files = published.files[split]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tables = list(pool.map(read, files))
    table = pa.concat_tables(tables)
    total = sum(sum(file.rows) for file in files)
    if table.num_rows != total and column_names:
        raise RunError(
            f"`{name.place}` changed while it was being read.",
            f"Its split `{split}` has {table.num_rows:,} rows instead of {total:,}.",
            f"Delete `{_commit_home(name.repo, commit)}` and repeat the command.",
        )
    paths = []
    if inner and columns.image in table.column_names:
        paths = [(row or {}).get("path") for row in table.column(columns.image).to_pylist()]
    columns_of_ids = (table.column(column).to_pylist() for column in naming)
    candidates = (_as_ids(values, total) for values in (*columns_of_ids, paths))
    ids = next(filter(None, candidates), None)
    width = len(str(max(0, total - 1)))
    ids = ids or [f"{row:0{width}d}" for row in range(total)]
    labels = [""] * total
    if not columns.masks:
        labels = _as_labels(published.by_name[columns.truth], table.column(columns.truth))
    return pa.table({"id": ids, "label": labels})


def _as_ids(values: Sequence[Any], total: int) -> list[str] | None:
    """`values` as image ids; None if one is missing, repeated, or an unsafe path."""
    if len(values) != total or any(value is None or value == "" for value in values):
        return None
    ids = [normalised_path(str(value)) for value in values]
    if len(set(ids)) < total or any(_UNSAFE.search(value) for value in ids):
        return None
    return ids


def _as_labels(column: PublishedColumn, values: Any) -> list[str]:
    """Each label as a string; class indices without a name and missing labels become empty."""
    labels = ["" if value is None else str(value) for value in values.to_pylist()]
    if column.kind == "class":
        known = {str(number) for number in range(len(column.names))}
        return [label if label in known else "" for label in labels]
    return labels


def class_names(names: Sequence[str], space: LabelSpace | None = None) -> list[str]:
    """Unique class names of a column: ids of a label space, else the published names.

    Returns the ids of `space`, or of the first bundled label space, with the same classes in the
    same order. Names are not sufficient: ImageNet on the hub has two classes `crane`, which
    only the order distinguishes. Without such a label space, the index is appended to names that
    occur several times.

    Args:
        names: Published names; one entry can contain several (`tench, Tinca tinca`).
        space: Label space to try before the bundled ones.
    """
    for known in (*([space] if space else []), *map(read_label_space, BUNDLED_SPACES)):
        if len(known.ids) == len(names) and all(
            {_plain(word) for word in (published, *published.split(","))}
            & {_plain(known.ids[index]), _plain(known.names[index])}
            for index, published in enumerate(names)
        ):
            return list(known.ids)
    times = Counter(names)
    return [n if times[n] == 1 else f"{n} ({index})" for index, n in enumerate(names)]


def _plain(word: str) -> str:
    return re.sub(r"[\W_]+", "", word.casefold())


def _labelled(
    name: HubName, commit: str, published: Published, split: str, columns: _Columns, rows: _Rows,
    space: LabelSpace | None, offline: bool,
) -> Iterator[Labelled[Any]]:  # fmt: skip
    part, home = SPLIT_NAMES.get(split.lower()), _commit_home(name.repo, commit)
    truth = published.by_name[columns.truth]
    names = class_names(truth.names, space) if truth.kind == "class" else ()
    number = 0
    for file in published.files[split]:
        for group, length in enumerate(file.rows):
            images, masks = (
                RowGroup(name.repo, commit, file.path, file.size, group,
                         published.by_name[column].leaf, home, offline)
                if published.by_name[column].kind == "image" else None
                for column in (columns.image, columns.truth)
            )  # fmt: skip
            assert images is not None, "a column of images was chosen"
            for row in range(length):
                image_id = f"{split}/{rows.ids[number]}"
                label = "" if columns.masks else rows.labels[number]
                yield Labelled(
                    images.ref(image_id, row),
                    masks.ref(image_id, row) if masks and columns.masks
                    else names[int(label)] if names else label,
                    part,
                )  # fmt: skip
                number += 1


def _no_labels(name: HubName, split: str, missing: int, columns: _Columns) -> UsageError:
    return UsageError(
        f"The split `{split}` of `{name.place}` has images without a class.",
        f"{missing:,} rows of its column `{columns.truth}` have no value: test splits are often "
        "published without labels.",
        f"Use another split (`--data {name.place}@REVISION:SPLIT`), or another column "
        "(`?label=COLUMN`).",
    )


# The images: range requests read one column of one row group of a Parquet file.


@dataclass(frozen=True)
class RowGroup:
    """One column of one row group of a file, fetched on the first read and then cached.

    Args:
        repo: `ORG/NAME`.
        commit: Commit of the repository.
        path: Path of the Parquet file in the repository.
        size: Size of the file in bytes.
        group: Index of the row group.
        leaf: Parquet path of the column of encoded images.
        home: Folder of the cache.
        offline: Whether to use only the cache.
    """

    repo: str
    commit: str
    path: str
    size: int
    group: int
    leaf: str
    home: Path
    offline: bool

    @property
    def cache_path(self) -> Path:
        """Path of the cached row group."""
        plain = _local_file_name(
            f"{self.path.removesuffix('.parquet')}-{self.group:05d}-{self.leaf}"
        )
        return self.home / "images" / f"{plain}.arrow"

    def ref(self, image_id: str, row: int) -> FileRef:
        """The image or mask in row `row` of the row group."""
        return FileRef(image_id, self.cache_path, f"row {row}", row, rows=self)

    def pin(self, row: int) -> str:
        """A permanent identifier of the bytes of a row: the contents of a commit never change."""
        return f"{self.repo}@{self.commit}/{self.path}/{self.leaf}/{self.group}/{row}"

    def shown(self, row: int) -> str:
        """Cache path and index of a row, for messages."""
        return f"{self.cache_path}:row {row}"

    def read(self, row: int) -> bytes:
        """The encoded image in a row.

        Raises:
            RunError: The row group is not cached, and the transfer failed.
            UsageError: The row group is not cached, and `offline` is set.
            OSError: The row is empty.
        """
        content = self._kept_row(row)
        if content is None:
            self._fetch()
            content = self._kept_row(row)
        if not content:
            raise OSError("its row contains no image")
        return content

    def _kept_row(self, row: int) -> bytes | None:
        """The cached bytes of a row, empty for an empty row; None if the row is not cached."""
        import pyarrow as pa

        try:
            with pa.memory_map(str(self.cache_path)) as mapped:
                column = pa.ipc.open_file(mapped).get_batch(0).column(0)
                return column[row].as_py() or b""
        except (OSError, pa.ArrowException):
            return None

    def _fetch(self) -> None:
        if self.offline:
            raise _not_here(
                self.repo, f"row group {self.group} of `{self.path}` is not on this machine"
            )
        try:
            lock = lock_on_this_machine(self.cache_path)
        except OSError as error:
            raise refused(self.cache_path, error) from error
        with lock:
            if self._kept_row(0) is None:  # another process may have fetched it in the meantime
                self._keep(self._column())

    def _column(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with _fetching(self.repo, self.path):
            remote = RemoteFile(self.repo, self.commit, self.path, self.size)
            metadata = _metadata(self.repo, self.commit, self.path, self.size)
            file = pq.ParquetFile(remote, metadata=metadata, pre_buffer=True)
            column = file.read_row_group(self.group, columns=[self.leaf]).column(0)
        values = column.combine_chunks()
        if pa.types.is_struct(values.type):
            values = values.flatten()[0]
        return values.cast(pa.large_binary())

    def _keep(self, values: Any) -> None:
        import pyarrow as pa

        batch = pa.record_batch([values], ["bytes"])
        with (
            replacing(self.cache_path) as temporary,
            pa.OSFile(str(temporary), "wb") as out,
            pa.ipc.new_file(out, batch.schema) as writer,
        ):
            writer.write_batch(batch)


@lru_cache(maxsize=64)
def _metadata(repo: str, commit: str, path: str, size: int) -> Any:
    """The footer of a file, cached in each process."""
    import pyarrow.parquet as pq

    return pq.read_metadata(RemoteFile(repo, commit, path, size))


class RefusedByHubError(OSError):
    """The hub responded with a permanent error, such as not found or forbidden."""


class RemoteFile(io.RawIOBase):
    """A file of a repository of the hub, read with range requests.

    Args:
        repo: `ORG/NAME`.
        commit: Commit of the repository.
        path: Path of the file in the repository.
        size: Size in bytes; None to request it from the hub.
    """

    def __init__(self, repo: str, commit: str, path: str, size: int | None = None) -> None:
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        self._url = hf_hub_url(
            repo, path, repo_type="dataset", revision=commit, endpoint=constants.ENDPOINT
        )
        self._headers = build_hf_headers()
        self._at = 0
        self.size = self._ask_size() if size is None else size

    def _ask_size(self) -> int:
        _, content_range = self._get(0, 1)
        size = content_range.rpartition("/")[2]
        if not (size.isascii() and size.isdecimal()):
            raise OSError(f"the hub reports a length of `{shortened(size, 40)}` bytes")
        return int(size)

    def _get(self, start: int, end: int) -> tuple[bytes, str]:
        """The bytes of [start, end), and the header `Content-Range` of the response.

        Failed transfers are repeated, except for permanent errors.
        """
        if end - start > _MOST_BYTES:
            raise OSError(f"{end - start:,} bytes in one request exceed the limit")
        for pause in (*_PAUSES_S, None):
            try:
                return self._get_once(start, end)
            except Exception as error:
                if pause is None or isinstance(error, RefusedByHubError):
                    raise
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _get_once(self, start: int, end: int) -> tuple[bytes, str]:
        headers = {
            **self._headers,
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        content, pace = bytearray(), TransferPace()
        with _opened(self._url, headers) as (response, chunks):
            status = response.status_code
            if 400 <= status < 500 and status not in (408, 429):
                reason = response.headers.get("X-Error-Message") or response.reason_phrase
                raise RefusedByHubError(f"the hub returned status {status}: {first_line(reason)}")
            content_range = str(response.headers.get("Content-Range", ""))
            if status != 206 or not content_range.startswith(f"bytes {start}-"):
                raise OSError(f"the hub returned status {status} instead of the requested range")
            for chunk in chunks:  # bounds the memory, whatever the server sends
                content += chunk
                pace.add(len(chunk))
                if len(content) > end - start:
                    raise OSError(f"more than the requested {end - start:,} bytes were received")
        if len(content) < end - start:
            raise OSError(f"{len(content):,} of {end - start:,} bytes were received")
        return bytes(content), content_range

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.IOBase`."""
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence] + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """See `io.RawIOBase`; returns `size` bytes unless the file ends before."""
        end = self.size if size < 0 else min(self.size, self._at + size)
        if end <= self._at:
            return b""
        content, _ = self._get(self._at, end)
        self._at = end
        return content


@contextmanager
def _opened(url: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, Iterable[bytes]]]:
    """The response of the hub, and an iterator of its undecoded body in chunks.

    Uses the session of the hub's client: httpx from huggingface-hub 1 on, requests before.
    """
    from huggingface_hub import utils

    client: Any = utils  # the functions typed as public depend on the version
    session = client.get_session()
    if callable(getattr(session, "stream", None)):  # httpx; in requests, `stream` is a flag
        with session.stream("GET", url, headers=headers, timeout=_TIMEOUT_S) as response:
            yield response, response.iter_raw()
        return
    with session.get(url, headers=headers, timeout=_TIMEOUT_S, stream=True) as response:
        response.reason_phrase = response.reason
        read = getattr(response.raw, "read1", response.raw.read)  # urllib3 before 2 has no `read1`
        yield response, iter(lambda: read(_CHUNK, decode_content=False), b"")


# Cache paths and errors.


def _local_file_name(text: str) -> str:
    """`text` with characters that are valid in a file name, shortened."""
    return shortened(re.sub(r"[^\w.-]", "--", text), LONGEST_NAME // 2)


def _repo_home(repo: str) -> Path:
    """The cache folder of the repository `repo`."""
    return data_home() / "hub" / repo.replace("/", "--")


def _commit_home(repo: str, commit: str) -> Path:
    """The cache folder of the repository `repo` at `commit`."""
    return _repo_home(repo) / commit


@contextmanager
def _fetching(repo: str, path: str) -> Iterator[None]:
    """Context that converts exceptions of the transfer and of Parquet to RunError."""
    try:
        yield
    except RobustError:
        raise
    except Exception as error:  # HTTP libraries and pyarrow raise various exceptions
        raise _broken_transfer(repo, f"`{path}` could not be read from the hub", error) from error


def _broken_transfer(repo: str, what: str, error: Exception) -> RunError:
    """The error for an unreachable hub or an unexpected response."""
    return RunError(
        f"`{_PREFIX}{repo}`: {what[0].lower() + what[1:] if what[0] != '`' else what}.",
        f"{type(error).__name__}: {first_line(error)}.",
        "Check the connection (and HF_TOKEN, if the data set needs it), then repeat the command: "
        "downloaded data and finished results are kept.",
    )


def _not_here(repo: str, reason: str) -> UsageError:
    """The error for data that are not cached while the network must not be used."""
    return UsageError(
        f"`{_PREFIX}{repo}` is not completely on this machine, and the network must not be "
        "used (`--offline`, `--dry-run`).",
        f"{reason[0].upper()}{reason[1:]} (searched in `{_repo_home(repo)}`).",
        "Run the command once with network access: the downloaded data is kept.",
    )
