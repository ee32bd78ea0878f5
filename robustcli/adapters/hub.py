"""The Hugging Face hub without its retries: where its host is unknown, no attempt is made."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants

from robustcli.core.errors import first_line


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
