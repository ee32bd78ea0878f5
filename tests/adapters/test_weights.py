"""Official weights: where they are, and what is said when they are not."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.places import local_path
from robustcli.adapters.weights import hash_state, official_weights
from robustcli.core.errors import UsageError

ENTRY = CATALOGUE["vmamba-t"]


def test_a_file_that_is_there_is_taken(attempts: list[object]) -> None:
    path = local_path(ENTRY)
    path.parent.mkdir()
    path.write_bytes(b"weights")
    assert official_weights(ENTRY, offline=False) == path
    assert attempts == []


def test_bundled_weights_need_no_download(attempts: list[object]) -> None:
    entry = CATALOGUE["vmamba-pico"]
    assert official_weights(entry, offline=True) == local_path(entry)
    assert attempts == []


def test_missing_weights_get_address_file_and_flag(attempts: list[object]) -> None:
    with pytest.raises(UsageError) as caught:
        official_weights(ENTRY, offline=True)
    assert caught.value.what == "The weights of `vmamba-t` are not here."
    assert "`--offline` forbids the network" in caught.value.why
    assert str(ENTRY.weights_url) in caught.value.todo
    assert f"to `{local_path(ENTRY)}`" in caught.value.todo
    assert "`--weights FILE`" in caught.value.todo
    assert attempts == []


def test_an_address_that_nobody_confirmed_comes_with_its_folder(attempts: list[object]) -> None:
    entry = CATALOGUE["vim-s"]
    folder = r"https://huggingface\.co/hustvl/Vim-small-midclstok/tree/main"
    with pytest.raises(UsageError, match=rf"The file's name comes from .*its folder is {folder}"):
        official_weights(entry, offline=True)
    with pytest.raises(UsageError) as caught:
        official_weights(CATALOGUE["vim-t"], offline=True)
    assert "its folder" not in str(caught.value)
    assert "Vim-tiny-midclstok/resolve/main/vim_t_midclstok_76p1acc.pth" in caught.value.todo


def test_without_a_network_the_same_is_said(attempts: list[object]) -> None:
    with pytest.raises(
        UsageError, match=r"The weights of `vmamba-t` are not here\.\nCannot download"
    ):
        official_weights(ENTRY, offline=False)
    assert attempts == ["github.com"]


def test_a_download_ends_where_it_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")
    entry = replace(ENTRY, weights_url=(tmp_path / "w.pth").as_uri())
    path = official_weights(entry, offline=False)
    assert path == local_path(entry)
    assert path.read_bytes() == b"weights"


def test_hash_state_by_hand() -> None:
    state = {"b": torch.tensor([[1.0, -2.0]]), "a": torch.tensor(7, dtype=torch.int64)}
    content = (
        b"a torch.int64 ()\n" + struct.pack("<q", 7) + b"b torch.float32 (1, 2)\n"
        + struct.pack("<2f", 1, -2)
    )  # fmt: skip
    assert hash_state(state) == hashlib.sha256(content).hexdigest()
    # Written into every run.json: it must never change.
    pinned = "7fc81a725f77639304ed8a5d03930d04263924600bfa341544d61feb17cd6a87"
    assert hash_state(state) == pinned


def test_the_hash_depends_on_names_types_shapes_and_values_but_not_on_order() -> None:
    state = {"a": torch.ones(2, 3), "b": torch.zeros(2)}
    variants = [
        state,
        {"x": state["a"], "b": state["b"]},
        {**state, "a": torch.ones(3, 2)},
        {**state, "a": torch.ones(2, 3, dtype=torch.float64)},
        {**state, "b": torch.tensor([0.0, 1e-30])},
        {"a": state["a"]},
    ]
    assert len({hash_state(variant) for variant in variants}) == len(variants)
    assert hash_state(dict(reversed(state.items()))) == hash_state(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.uint8])
def test_every_type_can_be_hashed(dtype: torch.dtype) -> None:
    assert len(hash_state({"a": torch.ones(3, dtype=dtype), "e": torch.empty(0)})) == 64


def test_memory_layout_does_not_count() -> None:
    matrix = torch.arange(6.0).view(2, 3)
    assert hash_state({"a": matrix.t().contiguous().t()}) == hash_state({"a": matrix})
    assert hash_state({"a": matrix.requires_grad_()}) == hash_state({"a": matrix.detach()})


def test_a_network_without_published_weights_says_how_to_get_some() -> None:
    with pytest.raises(UsageError, match="`vim` has no published weights") as told:
        official_weights(CATALOGUE["vim"], offline=False)
    assert "robust train cls --model vim" in str(told.value)
