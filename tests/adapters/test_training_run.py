"""The folder of a training run as a model."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from robustcli.adapters import training_run
from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.load import resolve
from robustcli.adapters.training_run import (
    EarlierTraining,
    WeightsHeader,
    header_of,
    is_run,
    read_header,
    read_trained,
    weights_in,
    write_weights,
)
from robustcli.core.errors import RunError, UsageError
from robustcli.nnunet.normalisation import Channel, Intensities, NnUNetInference
from tests.adapters.files import STATE, header


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "train-unet-1a2b"
    write_weights(folder / "weights.safetensors", STATE, header("unet"))
    return folder


def test_a_folder_is_a_run_by_what_it_holds(run: Path, tmp_path: Path) -> None:
    assert is_run(run)
    (tmp_path / "begun").mkdir()
    assert not is_run(tmp_path / "begun")
    (tmp_path / "begun" / "run.json").touch()
    assert is_run(tmp_path / "begun")
    assert not is_run(tmp_path / "nothing")


def test_folder_and_file_are_the_same_weights(run: Path) -> None:
    for path in (run, run / "weights.safetensors"):
        result = read_trained(path, CATALOGUE["unet"])
        assert (result.path, result.header) == (run / "weights.safetensors", header("unet"))
        torch.testing.assert_close(result.state, STATE, rtol=0, atol=0)


def test_a_folder_that_is_no_run_is_answered_with_its_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not a training run(.|\n)*contains no weights"):
        weights_in(tmp_path)
    file = tmp_path / "fold_0" / "checkpoint_final.pth"  # a results folder of nnU-Net
    file.parent.mkdir()
    file.touch()
    assert weights_in(tmp_path) == file


def test_a_run_that_did_not_finish(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    with pytest.raises(
        UsageError, match=r"is not a finished training run(.|\n)*Repeat the training command"
    ):
        weights_in(tmp_path)
    assert weights_in(tmp_path / "w.pth") == tmp_path / "w.pth"
    (tmp_path / "run.json").write_text('{"transforms": []}')
    with pytest.raises(UsageError, match="contains an evaluation, not a training"):
        weights_in(tmp_path)


def test_weights_of_another_model(run: Path) -> None:
    message = (
        r"`.*weights\.safetensors` does not contain the weights of `ulvm_v5`\.\nAccording to its "
        r"header it contains weights of `unet`\.\nUse these weights with the model `unet`\."
    )
    with pytest.raises(UsageError, match=message):
        read_trained(run, CATALOGUE["ulvm_v5"])
    write_weights(run / "w.safetensors", STATE, header("UMamba_ENC"))
    assert read_trained(run / "w.safetensors", CATALOGUE["umamba-enc"]).header is not None


def test_a_run_whose_weights_say_nothing(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    with pytest.raises(
        UsageError, match=r"does not contain the name of its network(.|\n)*`--model NAME --weig"
    ):
        header_of(tmp_path)


def test_the_entry_has_the_runs_name_and_the_networks_facts(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert header_of(run) == header("unet")
    monkeypatch.chdir(run)
    for path in (str(run), "."):
        entry = resolve(path)
        assert (entry.name, entry.network) == ("train-unet-1a2b", "unet")
        assert (entry.published, entry.task) == (0.8929, "seg")


def test_a_checkpoint_of_a_training_is_of_its_network(run: Path, tmp_path: Path) -> None:
    """Lightning's files have no header; the finished run's weights say what is in them."""
    (run / "checkpoints").mkdir()
    last = run / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": {f"network.{k}": t for k, t in STATE.items()}}, last)
    assert read_trained(last, CATALOGUE["unet"]).header == header("unet")
    with pytest.raises(UsageError, match="does not contain the weights of `segformer`"):
        read_trained(last, CATALOGUE["segformer"])
    elsewhere = tmp_path / "checkpoints" / "last.ckpt"
    elsewhere.parent.mkdir()
    last.rename(elsewhere)
    assert read_trained(elsewhere, CATALOGUE["unet"]).header is None


def test_a_header_whatever_the_ending(run: Path) -> None:
    (run / "weights.safetensors").rename(run / "best.pth")
    assert read_trained(run / "best.pth", CATALOGUE["unet"]).header == header("unet")


def test_a_folder_of_another_program_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match=r"is a folder, but(.|\n)*Pass the file: `.*model\.safet"):
        weights_in(tmp_path)


HEADER = WeightsHeader(
    model="umamba", arguments={"features": [4, 8], "strides": [1, 2]}, window=128, channels="bgr",
    threshold=0.6224593, protocol="paper", trained_on="ab12", images_sha256="cd34",
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run" / "weights.safetensors"
    write_weights(path, STATE, HEADER)
    assert read_header(path) == HEADER
    torch.testing.assert_close(load_file(path), STATE, rtol=0, atol=0)
    with safe_open(path, framework="np") as file:
        assert set(file.metadata()) == {"robust"}
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_a_header_is_read_as_written(tmp_path: Path) -> None:
    inference = NnUNetInference((Channel("ct", True, Intensities(1, 2, 3, 4)), Channel()), (1,))
    earlier = (EarlierTraining(trained_on="0" * 64, seen={"a/é.png": "1" * 64}), EarlierTraining())
    nnunet = HEADER.model_copy(update={"overlap": 0.25, "nnunet": inference, "earlier": earlier})
    for written in (HEADER, nnunet):
        write_weights(tmp_path / "weights.safetensors", STATE, written)
        assert read_header(tmp_path / "weights.safetensors") == written


def test_any_layout_in_memory_can_be_written(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).view(2, 3).t().requires_grad_()
    write_weights(tmp_path / "w.safetensors", {"a": matrix}, HEADER)
    torch.testing.assert_close(load_file(tmp_path / "w.safetensors")["a"], matrix.detach())


def test_files_without_a_header(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "bare.safetensors")
    save_file(STATE, tmp_path / "other.safetensors", metadata={"format": "pt"})
    torch.save(STATE, tmp_path / "w.pth")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 40)
    for name in ("bare.safetensors", "other.safetensors", "w.pth", "damaged.safetensors", "none"):
        assert read_header(tmp_path / name) is None
    assert read_trained(tmp_path / "w.pth", CATALOGUE["unet"]).header is None


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("{", "Expecting property name"),
        (HEADER.model_dump_json().replace('"umamba"', "7"), "valid string at model"),
        (HEADER.model_dump_json().replace(":1,", ":2,", 1), "should be 1 at schema_version"),
        (HEADER.model_dump_json()[:-1] + ',"more":1}', "not permitted at more"),
        (
            HEADER.model_dump_json().replace(
                '"nnunet":null', '"nnunet":{"channels":[{"scheme":"other"}]}'
            ),
            "Input should be 'zscore'.* at nnunet.channels.0.scheme",
        ),
    ],
)
def test_a_header_of_another_version(tmp_path: Path, message: str, words: str) -> None:
    save_file(STATE, tmp_path / "w.safetensors", metadata={"robust": message})
    with pytest.raises(UsageError, match=rf"header of `.*w\.safetensors` cannot be(.|\n)*{words}"):
        read_header(tmp_path / "w.safetensors")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, STATE, HEADER)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training_run, "save_file", full)
    with pytest.raises(RunError, match=r"Cannot write `.*w\.safetensors`\.\n.*No space left"):
        write_weights(path, {}, HEADER)
    assert path.read_bytes() == before


def test_what_the_library_cannot_write_is_told_as_the_file_systems_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own errors are no OSErrors: here a real one, of a folder that vanished."""
    path = tmp_path / "w.safetensors"
    elsewhere = partial(save_file, filename=tmp_path / "gone" / "w.safetensors")
    monkeypatch.setattr(training_run, "save_file", lambda state, _, **__: elsewhere(state))
    with pytest.raises(RunError, match=r"Cannot write `.*w\.safetensors`(.|\n)*No such file"):
        write_weights(path, STATE, HEADER)
    assert list(tmp_path.iterdir()) == []
