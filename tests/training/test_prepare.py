"""What is looked up before a training begins, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustcli.adapters.weights_header import WeightsHeader, write_weights
from robustcli.core.errors import UsageError
from robustcli.training.prepare import select
from tests.training.pairs import write_pairs
from tests.training.runs import Heard, small


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "data", 14)


def test_protocol_parts_and_recipe_are_announced(data: Path, tmp_path: Path) -> None:
    heard = Heard()
    select(small(data, tmp_path / "run"), heard)
    assert heard.lines == [
        "Protocol `patient`: train 12 images, val 1 images, test 1 images (train part, split by "
        "image, seed 0).",
        "Recipe `patient` (ours): 3 epochs, batch 4, window 16, bce-dice loss, AdamW at 0.01, "
        "warmup-cosine, augmentation light.",
    ]


def test_a_default_is_announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUST_DATA_SEGMENTATION", raising=False)
    heard = Heard()
    config = small(tmp_path, tmp_path / "run", limit=30)
    chosen = select(type(config)(model="ulvm", limit=30), heard)
    assert heard.lines[0].startswith(
        "No --data: using nuclei-mini (a demonstration set), 30 images, "
    )
    assert " photos, " in heard.lines[1]
    assert chosen.recipe.name == "nuclei-mini"
    assert chosen.run.parent == Path("runs")


def test_the_paper_takes_whole_images_in_opencvs_order(data: Path, tmp_path: Path) -> None:
    usual = select(small(data, tmp_path / "run"), Heard())
    paper = select(small(data, tmp_path / "run", protocol="paper"), Heard())
    assert (usual.whole, usual.channels) == (False, "rgb")
    assert (paper.whole, paper.channels) == (True, "bgr")
    assert paper.per_epoch == len(paper.splits.train.pairs) == 11
    quick = select(small(data, tmp_path / "run", quick=True), Heard())
    assert quick.per_epoch == 12  # no more than there are


def test_somebody_elses_folder_is_left_alone(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        select(small(data, run), Heard())
    with pytest.raises(UsageError, match="is a file"):
        select(small(data, run / "thesis.tex"), Heard())


def test_a_run_is_no_network(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    header = WeightsHeader(
        model="ulvm", arguments={}, window=16, channels="rgb", threshold=0.5, protocol="patient",
        trained_on="elsewhere", images_sha256="0" * 64,
    )  # fmt: skip
    (tmp_path / "mine").mkdir()
    write_weights(tmp_path / "mine" / "weights.safetensors", {"w": torch.zeros(1)}, header)
    with pytest.raises(UsageError, match=r"`--model mine` is a folder"):
        select(small(data, tmp_path / "run", model="mine", model_args={}), Heard())


def test_a_network_goes_before_a_folder_of_its_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ulvm").mkdir()
    (tmp_path / "ulvm" / "run.json").write_text("{}")
    found = select(small(data, tmp_path / "run", model="ulvm", model_args={}), Heard())
    assert found.entry.name == "ulvm"


def test_one_patient_cannot_be_split(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 2)
    with pytest.raises(UsageError, match="cannot be split by image"):
        select(small(data, tmp_path / "run"), Heard())


@pytest.mark.parametrize("by", ["--devices", "torchrun"])
def test_a_batch_divides_among_the_processes_whoever_starts_them(
    by: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "torchrun":
        said = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        for name, value in (said | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
            monkeypatch.setenv(name, value)
    config = small(data, tmp_path / "run", batch_size=5, devices=2 if by == "--devices" else 1)
    with pytest.raises(UsageError, match="batch of 5 does not divide among 2 processes"):
        select(config, Heard())


def test_all_devices_of_a_machine_without_gpu_are_explained(data: Path, tmp_path: Path) -> None:
    heard = Heard()
    assert select(small(data, tmp_path / "run", devices="all"), heard).on.world == 1
    assert "`--devices all` counts GPUs; on cpu it is 1 process." in heard.lines[0]
