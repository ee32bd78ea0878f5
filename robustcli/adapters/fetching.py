"""Local paths and downloads of weights and data."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from huggingface_hub import constants, utils

from robustcli.adapters.catalogue import CATALOGUE, ModelEntry
from robustcli.core.errors import RobustError, RunError, UsageError, first_line
from robustcli.core.names import find
from robustcli.data.download import fetch_dataset, fetch_file, file_sha256
from robustcli.data.named_datasets import DATASETS, data_home

if TYPE_CHECKING:
    from torch import Tensor


def local_path(entry: ModelEntry) -> Path:
    """Path of the weights of a catalogue entry after `robust fetch`."""
    if entry.asset is not None:
        return Path(str(files("robustcli") / "assets" / entry.asset))
    assert entry.weights_file is not None, f"{entry.name} has no published weights"
    return data_home() / "weights" / entry.weights_file


def hub_file(variant: str) -> Path | None:
    """Path of timm's weights `variant` in the hub's cache; None if they are not downloaded.

    Reads the documented layout of the cache (huggingface_hub, "Understand caching") without the
    client, whose import would slow down `robust list`.
    """
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{caches}/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    snapshots = cache / f"models--timm--{variant}" / "snapshots"
    if not os.access(snapshots, os.R_OK):  # `glob` fails in a folder without permission
        return None
    weight_files = sorted(snapshots.glob("*/model.safetensors"))
    return weight_files[-1] if weight_files else None


def is_here(entry: ModelEntry) -> bool:
    """Whether the weights of `entry` are on this machine."""
    if entry.on_timms_hub:
        return hub_file(entry.variant) is not None
    if entry.asset is None and entry.weights_file is None:
        return False
    return os.access(local_path(entry), os.R_OK)


def check_published(entry: ModelEntry) -> None:
    """Raises UsageError if `entry` has no official weights."""
    if entry.weights_url is None and entry.asset is None:
        raise UsageError(
            f"`{entry.name}` has no published weights.",
            "An untrained network knows nothing.",
            f"Train it (`robust train {entry.task} --model {entry.name}`) and pass the folder of "
            "the run, or pass weights with `--weights FILE`; `--untrained` uses the network with "
            "random weights.",
        )


def official_weights(entry: ModelEntry, *, offline: bool) -> Path:
    """The official weights file of `entry`, downloaded if necessary.

    Raises:
        UsageError: The file is missing and cannot be downloaded; the message has address, file
            and option.
    """
    check_published(entry)
    path = local_path(entry)
    if path.is_file() or entry.weights_url is None:
        return path
    try:
        fetch_file(entry.weights_url, path, sha256=None, offline=offline)
    except RobustError as error:
        raise UsageError(
            f"The weights of `{entry.name}` are not on this machine.",
            f"{error.what} {error.why} {entry.unchecked}".strip(),
            f"Download {entry.weights_url} to `{path}`, or pass a copy with `--weights FILE`.",
        ) from error
    return path


def state_digest(state: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of all tensors, in the order of names."""
    import torch  # not needed by `robust list`

    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def hub(*, offline: bool) -> Iterator[None]:
    """A context in which the hub's client uses only its cache if the hub cannot be reached.

    The client would otherwise try for 45 seconds and print each attempt.
    """
    logger = logging.getLogger("huggingface_hub")
    before, level = constants.HF_HUB_OFFLINE, logger.level
    _set_offline(before or offline or unreachable() is not None)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _set_offline(before)
        logger.setLevel(level)


def _set_offline(offline: bool) -> None:
    """Sets whether the hub's client is offline, also for its open sessions."""
    if offline != constants.HF_HUB_OFFLINE:
        constants.HF_HUB_OFFLINE = offline
        # Before huggingface-hub 1, a session is offline for as long as the process runs.
        getattr(utils, "reset_sessions", lambda: None)()


def unreachable() -> str | None:
    """The reason why the hub cannot be reached; None if it might be, as behind a proxy."""
    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    if urllib.request.getproxies():
        return None
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"the host name `{host}` cannot be resolved ({error.strerror})"
    return None


def hub_failure_reason(error: Exception, *, offline: bool) -> str:
    """The reason in words why the hub gave no file."""
    if offline:
        return "`--offline` forbids downloads"
    return unreachable() or f"{type(error).__name__}: {first_line(error)}"


@dataclass(frozen=True)
class Fetched:
    """Path of a download; `pinned` if its hash was known in advance."""

    name: str
    path: Path
    sha256: str
    pinned: bool


def fetch(name: str, *, offline: bool) -> Fetched:
    """The weights or the data set called `name`, downloaded if necessary.

    Raises:
        UsageError: The name is unknown, or `offline` is set and the file is missing.
        RunError: The download failed.
    """
    datasets = {dataset.name: dataset for dataset in DATASETS}
    registered = find(
        name, [*CATALOGUE, *datasets], kind="model or data set", listing="robust list models"
    )
    if registered in datasets:
        path = fetch_dataset(registered, offline=offline)
        published = datasets[registered].sha256
        return Fetched(registered, path, published or file_sha256(path), published is not None)
    entry = CATALOGUE[registered]
    if entry.on_timms_hub:
        path = _from_hub(entry.variant, offline)
        return Fetched(registered, path, file_sha256(path), pinned=True)
    if entry.weights_url is None and entry.asset is None:
        raise UsageError(
            f"`{registered}` has no published weights.",
            "",
            f"Train it: `robust train {entry.task} --model {registered}`.",
        )
    path = local_path(entry)
    if entry.weights_url is not None:
        fetch_file(entry.weights_url, path, sha256=None, offline=offline)
    return Fetched(registered, path, file_sha256(path), pinned=entry.asset is not None)


def _from_hub(variant: str, offline: bool) -> Path:
    """Downloads timm's weights with the hub's client, which resumes and checks downloads."""
    cached = hub_file(variant)
    if cached is not None:
        return cached
    if offline:
        raise UsageError(f"`{variant}` is not in the hub's cache, and `--offline` is set.")
    from huggingface_hub import hf_hub_download

    try:
        with hub(offline=offline):
            return Path(hf_hub_download(f"timm/{variant}", "model.safetensors"))
    except Exception as error:
        # The client raises exceptions of four libraries; all mean that the download failed.
        raise RunError(
            f"`{variant}` could not be downloaded.",
            f"The reason: {hub_failure_reason(error, offline=offline)}.",
            f"It is at https://huggingface.co/timm/{variant}; use a copy with `--weights FILE`.",
        ) from error
