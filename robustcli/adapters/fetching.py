"""Weights and data by name onto this machine, and the Hugging Face hub without its retries."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants

from robustcli.adapters.cache_paths import hub_file, local_path
from robustcli.adapters.catalogue import CATALOGUE
from robustcli.core.errors import RunError, UsageError, first_line
from robustcli.core.names import find
from robustcli.data.download import fetch_dataset, fetch_file, file_sha256
from robustcli.data.named_datasets import DATASETS

# The Hugging Face hub without its retries: where its host is unknown, no attempt is made.


@contextmanager
def hub(*, offline: bool) -> Iterator[None]:
    """A context in which the hub's client answers from its cache alone if it cannot be reached.

    Its client would try for three quarters of a minute and print each attempt.
    """
    logger = logging.getLogger("huggingface_hub")
    before, level = constants.HF_HUB_OFFLINE, logger.level
    constants.HF_HUB_OFFLINE = before or offline or unreachable() is not None
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logger.setLevel(level)


def unreachable() -> str | None:
    """Why the hub cannot be reached from here; None if it may be, as always behind a proxy."""
    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    if urllib.request.getproxies():
        return None
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"the network knows no `{host}` ({error.strerror})"
    return None


def why_none(error: Exception, *, offline: bool) -> str:
    """Why no file came from the hub, in words."""
    if offline:
        return "`--offline` forbids the network"
    return unreachable() or f"{type(error).__name__}: {first_line(error)}"


# Weights and data by name, onto this machine.


@dataclass(frozen=True)
class Fetched:
    """Where a download lies; `pinned` if its hash was known beforehand."""

    name: str
    path: Path
    sha256: str
    pinned: bool


def fetch(name: str, *, offline: bool) -> Fetched:
    """The weights or the data set called `name`, downloaded if it is not here.

    Raises:
        UsageError: Nothing is called so, or it is not here and `offline` is set.
        RunError: The download failed.
    """
    datasets = {dataset.name: dataset for dataset in DATASETS}
    known = find(
        name, [*CATALOGUE, *datasets], kind="model or data set", listing="robust list models"
    )
    if known in datasets:
        path = fetch_dataset(known, offline=offline)
        return Fetched(known, path, file_sha256(path), datasets[known].sha256 is not None)
    entry = CATALOGUE[known]
    if entry.builder == "timm":
        path = _from_hub(entry.variant, offline)
        return Fetched(known, path, file_sha256(path), pinned=True)
    if entry.weights_url is None and entry.asset is None:
        raise UsageError(
            f"`{known}` has no published weights.",
            "",
            f"Train it: `robust train {entry.task} --model {known}`.",
        )
    path = local_path(entry)
    if entry.weights_url is not None:
        fetch_file(entry.weights_url, path, sha256=None, offline=offline)
    return Fetched(known, path, file_sha256(path), pinned=entry.asset is not None)


def _from_hub(variant: str, offline: bool) -> Path:
    """Timm's weights through the hub's client, which resumes and checks by itself."""
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
        # The client raises classes of four libraries; all mean that no weights came.
        raise RunError(
            f"`{variant}` could not be downloaded.",
            f"The reason: {why_none(error, offline=offline)}.",
            f"It is at https://huggingface.co/timm/{variant}; use a copy with `--weights FILE`.",
        ) from error
