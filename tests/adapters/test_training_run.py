"""The folder of a training run as a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.training_run import (
    entry_of_run,
    header_of,
    is_run,
    read_trained,
    weights_in,
)
from robustcli.adapters.weights_header import write_weights
from robustcli.core.errors import UsageError
from tests.adapters.files import STATE
from tests.adapters.runs import header


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
        found = read_trained(path, CATALOGUE["unet"])
        assert (found.path, found.header) == (run / "weights.safetensors", header("unet"))
        torch.testing.assert_close(found.state, STATE, rtol=0, atol=0)


def test_a_file_without_header_is_taken_at_its_word(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    assert read_trained(tmp_path / "w.pth", CATALOGUE["unet"]).header is None


def test_a_run_that_did_not_finish(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no finished training run(.|\n)*Repeat the command"):
        weights_in(tmp_path)
    assert weights_in(tmp_path / "w.pth") == tmp_path / "w.pth"


def test_weights_of_another_model(run: Path) -> None:
    message = (
        r"`.*weights\.safetensors` does not hold the weights of `ulvm_v5`\.\n"
        r"Its header says that it is of `unet`\.\nName the model `unet` with these weights\."
    )
    with pytest.raises(UsageError, match=message):
        read_trained(run, CATALOGUE["ulvm_v5"])


def test_spelling_does_not_make_another_model(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", STATE, header("UMamba_ENC"))
    assert read_trained(tmp_path / "w.safetensors", CATALOGUE["umamba-enc"]).header is not None


def test_a_run_whose_weights_say_nothing(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    with pytest.raises(UsageError, match=r"does not say which network(.|\n)*`--model NAME --weig"):
        header_of(tmp_path)


def test_the_entry_has_the_runs_name_and_the_networks_facts(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert header_of(run) == header("unet")
    monkeypatch.chdir(run)
    for path in (run, Path()):
        entry = entry_of_run(path, CATALOGUE["unet"])
        assert (entry.name, entry.network) == ("train-unet-1a2b", "unet")
        assert (entry.published, entry.task) == (0.8929, "seg")


def test_a_checkpoint_of_a_training_is_of_its_network(run: Path, tmp_path: Path) -> None:
    """Lightning's files have no header; the finished run's weights say what is in them."""
    (run / "checkpoints").mkdir()
    last = run / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": {f"network.{k}": t for k, t in STATE.items()}}, last)
    assert read_trained(last, CATALOGUE["unet"]).header == header("unet")
    with pytest.raises(UsageError, match="does not hold the weights of `segformer`"):
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
    with pytest.raises(UsageError, match=r"is a folder, and(.|\n)*Name the file: `.*model\.safet"):
        weights_in(tmp_path)
