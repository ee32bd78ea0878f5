"""Data sets of the Hugging Face hub: `hf:ORG/NAME@REVISION:SPLIT`, images are read on demand.

The library `datasets` reports the Parquet files of each split and their columns. Opening a data set
reads only the columns of labels and names from these files; images are read on demand
(`hub_files`). A sample is a fixed row of a fixed file, independent of the process that reads it and
of the order.

The name of a branch is resolved to a commit once, and everything is read from that commit. Code of
a repository is never run: `datasets` from version 4 on cannot run it.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from robustcli.core.errors import MachineError, RunError, UsageError, first_line
from robustcli.core.io import parse_json, replacing, write_text
from robustcli.core.names import counted, did_you_mean, nearest
from robustcli.data.advice import quoted
from robustcli.data.hub_files import (
    HUB_PREFIX,
    TIMEOUT_S,
    HubCommit,
    RemoteFile,
    RowGroup,
    broken_transfer,
    fetching,
    local_file_name,
    not_here,
    repo_home,
)
from robustcli.data.labels import BUNDLED_SPACES, LabelSpace, read_label_space
from robustcli.data.layouts import SPLIT_NAMES, Labelled, Layout
from robustcli.data.listing import normalised_path
from robustcli.data.tables import Say

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


def names_hub_dataset(data: str) -> bool:
    """Whether `data` names a data set of the hub; `hf://` begins an address of files instead."""
    return data.startswith(HUB_PREFIX) and not data.startswith(f"{HUB_PREFIX}//")


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
        return Path(f"{HUB_PREFIX}{self.repo}")

    def spelled(self, commit: str, split: str | None) -> str:
        """The complete name of `split` at `commit`, in the notation of `parse_hub_name`."""
        known = ((name, getattr(self, name)) for name in _OPTIONS)
        options = "&".join(f"{name}={value}" for name, value in known if value is not None)
        return (
            f"{HUB_PREFIX}{self.repo}@{commit}"
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


def read_hub(
    name: HubName, truth: Literal["label", "mask"], say: Say, *, offline: bool,
    all_splits: bool = True, space: LabelSpace | None = None,
) -> Layout[Any]:  # fmt: skip
    """The images of a split with the names of their classes, or with their masks.

    The name of the layout is `NAME:SPLIT`, its location the complete name with the commit.

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
    source = HubCommit(name.repo, _commit(name, say, offline), offline)
    published = _published(name, source)
    columns = _chosen(name, published, truth)
    taken = _taken_splits(name, source, published, columns, say, all_splits, space)
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
        f"kept in `{source.home}`."
    )
    labelled = [
        one_image if only_split is None else Labelled(one_image.image, one_image.label)
        for images in taken.values() for one_image in images
    ]  # fmt: skip
    short = name.repo.partition("/")[2]
    return Layout(
        tuple(labelled), name=short if only_split is None else f"{short}:{only_split}",
        location=name.spelled(source.commit, only_split),
    )  # fmt: skip


def _taken_splits(
    name: HubName, source: HubCommit, published: Published, columns: _Columns, say: Say,
    all_splits: bool, space: LabelSpace | None,
) -> dict[str, list[Labelled[Any]]]:  # fmt: skip
    """The images of each split that is used: all of the requested ones, or the first with labels.

    Raises:
        UsageError: No split has labels, or the requested one has not.
    """
    splits = _splits(name, published, all_splits)
    taken: dict[str, list[Labelled[Any]]] = {}
    for split in splits:
        rows = _rows(name, source, published, split, columns)
        if not rows.ids:
            say(f"`{name.place}`: the split `{split}` has no rows and is skipped.")
            continue
        if rows.unlabelled:
            if len(splits) == 1 or rows.unlabelled < len(rows.ids):
                raise _no_labels(name, split, rows.unlabelled, columns)
            say(f"`{name.place}`: the split `{split}` has no labels and is skipped.")
            continue
        taken[split] = list(_labelled(source, published, split, columns, rows, space))
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
    return taken


# Resolution of the commit.


def _commit(name: HubName, say: Say, offline: bool) -> str:
    """The commit of the revision, from the hub; if `offline`, the last one from the hub."""
    revision = name.revision or "main"
    if _COMMIT.fullmatch(revision):
        return revision
    file = repo_home(name.repo) / "refs" / f"{local_file_name(revision)}.txt"
    if offline:
        if not file.is_file():
            raise not_here(name.repo, f"the commit of `{revision}` was never looked up")
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
            name.repo, revision=revision, timeout=TIMEOUT_S
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
        raise broken_transfer(name.repo, "The hub could not be reached", error) from error
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


def _published(name: HubName, source: HubCommit) -> Published:
    """The published files, from the cache or else from the hub."""
    from pydantic import TypeAdapter

    file = source.home / f"files-{local_file_name(name.config or 'default')}.json"
    try:
        known = parse_json(file.read_text(encoding="utf-8"))
        if known["format"] == _FORMAT:
            return TypeAdapter(Published).validate_python(known)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not cached, another format or damaged: fetched again
    source.check_online("its list of files was never downloaded")
    published = _look_up(name, source.commit)
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

    with fetching(name.repo, path):
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
            raise UsageError(
                f"`{name.place}` has no split `{name.split}`.",
                f"It has {', '.join(f'`{split}`' for split in files)}. "
                f"{did_you_mean(nearest(name.split, files))}".rstrip(),
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
    name: HubName, source: HubCommit, published: Published, split: str, columns: _Columns
) -> _Rows:
    """Ids and labels of a split, from the cache or else from the hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = None if columns.masks else columns.truth
    key = "-".join(map(local_file_name, (published.config, split, columns.image, label or "none")))
    file = source.home / f"rows-{key}.parquet"
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException):
        source.check_online(f"the labels of its split `{split}` were never downloaded")
        table = _fetched_rows(name, source, published, split, columns)
        with replacing(file) as temporary:
            pq.write_table(table, temporary)
    labels = table.column("label").to_pylist()
    unlabelled = 0 if columns.masks else sum(not label for label in labels)
    return _Rows(table.column("id").to_pylist(), labels, unlabelled)


def _fetched_rows(
    name: HubName, source: HubCommit, published: Published, split: str, columns: _Columns
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

        with fetching(source.repo, file.path):
            remote = RemoteFile(source.repo, source.commit, file.path, file.size)
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
            f"Delete `{source.home}` and repeat the command.",
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
    source: HubCommit, published: Published, split: str, columns: _Columns, rows: _Rows,
    space: LabelSpace | None,
) -> Iterator[Labelled[Any]]:  # fmt: skip
    part = SPLIT_NAMES.get(split.lower())
    truth = published.by_name[columns.truth]
    names = class_names(truth.names, space) if truth.kind == "class" else ()
    number = 0
    for file in published.files[split]:
        for group, length in enumerate(file.rows):
            images, masks = (
                RowGroup(source, file.path, file.size, group, published.by_name[column].leaf)
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
