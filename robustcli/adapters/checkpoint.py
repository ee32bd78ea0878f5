"""Weights from a file, without ever running what a file may hold."""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robustcli.core.errors import UsageError, first_line

WRAPPERS = ("model_ema", "model", "state_dict", "network_weights", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")


class _Inert:
    """Stands in for a class named in a checkpoint: its contents, none of its behaviour."""

    def __new__(cls, *_: Any) -> OrderedDict[str, Any]:  # type: ignore[misc]
        """A plain ordered dict, for torch's unpickler fills no class but its own."""
        return OrderedDict()


class _InertValue:
    """Stands in for a value whose making the file describes: nothing is made, nothing is kept."""

    def __new__(cls, *_: Any) -> _InertValue:
        """An empty object, whatever it should have been made of."""
        return object.__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Forgets what the object should have held."""


# What the official files of the field hold beside the weights. None of it is imported or called:
# settings of VMamba and Vim, and the NumPy numbers in nnU-Net's log (NumPy 1 and 2 name them so).
_SETTINGS = ("yacs.config.CfgNode", "argparse.Namespace")
_NUMBERS = ("numpy.dtype", "numpy.ndarray", *(
    f"numpy.{core}.multiarray.{maker}"
    for core in ("core", "_core") for maker in ("scalar", "_reconstruct")
))  # fmt: skip
_KNOWN: list[Any] = [(_Inert, name) for name in _SETTINGS]
_KNOWN += [(_InertValue, name) for name in _NUMBERS]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in `path`: safetensors, or a torch file, bare or wrapped by its trainer.

    A wrapped file gives its averaged weights (`model_ema`) where it has them, else `model`,
    `state_dict`, `network_weights` or `model_state_dict`. Prefixes left by DataParallel and
    torch.compile are removed.

    Raises:
        UsageError: The file is missing, damaged, holds code, or holds no weights.
    """
    if not path.is_file():
        raise UsageError(f"There is no weights file `{path}`.", "", "Check the path.")
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    state = _unwrap(content)
    if not state:
        raise UsageError(
            f"`{path}` holds no weights.",
            f"Expected tensors by name, or one of the keys {', '.join(WRAPPERS)}; "
            f"got {_described(content)}.",
        )
    return {_plain(key): tensor for key, tensor in state.items()}


def _safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _torch_file(path: Path) -> object:
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_KNOWN),
        ):
            warnings.simplefilter("ignore")  # of foreign formats, which the messages below tell
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch wraps what its unpickler says in the advice to load the file unsafely after all.
        said = error.__context__ or error
        if any(word in str(said) for word in ("GLOBAL", "<class", "reduce")):
            raise _refused(path, said) from error
        raise _damaged(path, said) from error
    except Exception as error:
        # On damaged bytes the unpickler fails anywhere: IndexError, TypeError, AssertionError, ...
        raise _damaged(path, error) from error


def _refused(path: Path, said: BaseException) -> UsageError:
    found = first_line(said).split(" was not an allowed")[0].rstrip(".")
    return UsageError(
        f"`{path}` was refused, and nothing in it was run.",
        f"It holds more than weights: {found}.",
        "Ask its author for a safetensors file, or convert it yourself where you trust it: "
        "torch.save({k: v for k, v in model.state_dict().items()}, FILE).",
    )


def _damaged(path: Path, error: BaseException) -> UsageError:
    return UsageError(
        f"`{path}` cannot be read as weights.",
        f"Expected a safetensors or torch file; reading it failed with: {first_line(error)}",
        "Download it again; a partial download is the usual cause.",
    )


def _unwrap(content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return _unwrap(content[key])
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _plain(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        return f"the keys {', '.join(map(str, list(content)[:5])) or '(none)'}"
    return f"a {type(content).__name__}"
