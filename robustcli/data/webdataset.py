"""WebDataset shards: `name-{000000..000009}.tar` with `KEY.jpg` and `KEY.cls` (or `KEY.json`).

A shard is read like any tar: its members are listed once, then each image is read by its offset. A
key is the file name up to its first dot, as in WebDataset.

Source: github.com/webdataset/webdataset, its description of the format.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from robustcli.core.errors import UsageError
from robustcli.core.io import parse_json
from robustcli.data.advice import quoted
from robustcli.data.archives import archive_stem, is_tar, list_tar
from robustcli.data.dataset import FileRef
from robustcli.data.layouts import Labelled, Layout
from robustcli.data.listing import IMAGE_SUFFIXES
from robustcli.data.tables import Say

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LABEL_SUFFIXES = frozenset({".cls", ".json"})
_JSON_KEYS = ("cls", "label", "class", "target", "wnid")
_MOST_SHARDS = 100_000


def names_shards(data: str) -> bool:
    """Whether `data` is a pattern of tar names with a range in braces."""
    return _BRACES.search(data) is not None and is_tar(Path(data))


def shards(pattern: str) -> list[Path]:
    """The paths of all shards of `pattern` in order; they need not exist.

    Raises:
        UsageError: A range is descending, or has too many shards.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [Path(pattern).expanduser()]
    first, last = int(match[1]), int(match[2])
    if last < first or last - first >= _MOST_SHARDS:
        raise UsageError(
            f"`{match[0]}` in `{pattern}` is not a range of shards.",
            f"Expected the first and the last number, at most {_MOST_SHARDS:,} apart.",
            "Write for example `name-{000000..000009}.tar`.",
        )
    width = len(match[1]) if match[1].startswith("0") else 0
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [
        path
        for number in range(first, last + 1)
        for path in shards(f"{before}{number:0{width}d}{after}")
    ]


def read_shards(pattern: str, say: Say) -> Layout[str]:
    """The images of all shards of `pattern`, with ids `SHARD/KEY.jpg` and their classes.

    Raises:
        UsageError: Shards are missing, an image has no class, or a key has several images.
    """
    paths = shards(pattern)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UsageError(
            f"{len(missing)} of the {len(paths)} shards of `{pattern}` are missing.",
            f"Missing: {quoted(missing)}.",
            "Download them, or specify only the numbers of existing shards.",
        )
    return Layout(tuple(labelled for path in paths for labelled in _shard_images(path, say)))


def _shard_images(path: Path, say: Say) -> Iterator[Labelled[str]]:
    listing = list_tar(path, IMAGE_SUFFIXES | _LABEL_SUFFIXES)
    for note in listing.notes(path):
        say(note)
    by_key: dict[str, dict[str, FileRef]] = defaultdict(dict)
    for file in listing.files:
        folder, slash, name = file.relative.rpartition("/")
        key, _, extension = name.partition(".")
        by_key[f"{folder}{slash}{key}"][f".{extension.lower()}"] = file
    for key, files in sorted(by_key.items()):
        images = sorted(files.keys() & IMAGE_SUFFIXES)
        if len(images) > 1:
            _unclear(path, key, f"It has {len(images)} images: {quoted(images)}.")
        if images:
            image = files[images[0]]
            yield Labelled(
                replace(image, relative=f"{archive_stem(path)}/{image.relative}"),
                _label(path, key, files),
            )


def _label(path: Path, key: str, files: dict[str, FileRef]) -> str:
    if ".cls" in files:
        return files[".cls"].read().decode("utf-8", "replace").strip()
    if ".json" not in files:
        _unclear(path, key, f"It has {quoted(sorted(files))}, but no `.cls` or `.json`.")
    try:
        content = parse_json(files[".json"].read())
    except ValueError as error:
        _unclear(path, key, f"Its `.json` cannot be read: {error}.")
    values = content if isinstance(content, dict) else {}
    label = next((values[key] for key in _JSON_KEYS if key in values), None)
    if isinstance(label, bool) or not isinstance(label, int | str):
        _unclear(path, key, f"Its `.json` has no {' or '.join(f'`{k}`' for k in _JSON_KEYS)}.")
    return str(label)


def _unclear(path: Path, key: str, reason: str) -> NoReturn:
    raise UsageError(
        f"The class of `{key}` in the shard `{path}` is not known.",
        reason,
        "Every key needs one image, and `KEY.cls` (a class or its number) or `KEY.json`.",
    )
