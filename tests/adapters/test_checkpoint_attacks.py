"""Files with code in them are refused, and the code is never run."""

from __future__ import annotations

import os
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from robustcli.adapters.checkpoint import read_weights
from robustcli.core.errors import UsageError
from tests.adapters.files import STATE, saved


class Runs:
    """Runs `function(*arguments)` when it is unpickled."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def attacks(target: Path) -> list[Runs]:
    return [
        Runs(os.system, f"touch {target}"),
        Runs(eval, f"open({str(target)!r}, 'w').close()"),
        Runs(open, str(target), "w"),
        Runs(Path.touch, target),
    ]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_never_run(tmp_path: Path, number: int, zipped: bool) -> None:
    attack = attacks(tmp_path / "created")[number]
    path = saved(
        {"model": STATE, "x": attack}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(
        UsageError, match=r"`.*w\.pth` was refused, and nothing in it was run\.\nIt "
    ):
        read_weights(path)
    assert not (tmp_path / "created").exists()


def test_the_attack_of_the_test_above_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(attacks(tmp_path / "created")[1]))
    assert (tmp_path / "created").exists()


def test_code_in_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(attacks(tmp_path / "created")[1]))
    with pytest.raises(UsageError, match="cannot be read as weights"):
        read_weights(tmp_path / "w.pkl")
    assert not (tmp_path / "created").exists()


def test_the_refusal_says_what_it_found_and_what_to_do(tmp_path: Path) -> None:
    path = saved(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(UsageError) as caught:
        read_weights(path)
    assert caught.value.why.endswith(" GLOBAL torch.nn.modules.linear.Linear.")
    assert "safetensors" in caught.value.todo


BESIDE = {"fraction": Fraction(1, 2), "slice": slice(1, 2)}


@pytest.mark.parametrize("name", BESIDE)
def test_no_message_advises_to_load_a_file_unsafely(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_weights(saved({"model": STATE, "x": BESIDE[name]}, tmp_path / "w.pth"))
    assert "weights_only" not in str(caught.value)
