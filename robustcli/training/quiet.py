"""Lightning without its own messages: what matters of them, the listener is told."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("lightning.pytorch", "lightning.fabric")
_KNOWN = (
    # Loader processes cost more than they bring where images are cached: `--workers` decides.
    r".*does not have many workers which may be a bottleneck.*",
    # Epochs of a few steps are usual here.
    r"The number of training batches .* is smaller than the logging interval.*",
    # Between torch and Lightning: torch renamed what Lightning 2.6 still calls.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    # Under DDP, of Mamba's convolution over channels: a copy of 64 numbers.
    r"Grad strides do not match bucket view strides.*",
    # The folder of checkpoints is there when a run goes on.
    r"Checkpoint directory .* exists and is not empty.*",
)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Silences Lightning's notes and the warnings that are about what is done on purpose."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in _KNOWN:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
