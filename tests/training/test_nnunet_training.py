"""Trainings with nnU-Net's recipe, end to end: files, and equal weights after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics.functional.classification import binary_f1_score

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.training_run import read_header
from robustcli.core.errors import UsageError
from robustcli.evaluation.cell_table import table
from robustcli.nnunet.inference import Mirrored
from robustcli.reports.render import render
from robustcli.training import recipes
from robustcli.training.config import TrainConfig
from robustcli.training.engine import run_training
from robustcli.training.mask_samples import MaskBatch
from robustcli.training.procedures.nnunet import NnUNetModule, poly_lr
from robustcli.training.record import AVERAGED, VALIDATIONS, read_train_record
from robustcli.training.trainer import DurableCheckpoints
from tests.training.runs import (
    RECIPE,
    TINY_UMAMBA,
    Interrupting,
    Recorder,
    Run,
    recorded_training,
    same_state,
    tiny_umamba,
    weights_of,
)

TIME_COLUMNS = ["seconds", "waiting_share", "val_seconds"]
LIGHT_RECIPE = recipes.NAMED_RECIPES["nnunet-light"]


@pytest.fixture(autouse=True)
def few_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.NAMED_RECIPES, "nnunet-light", RECIPE)


@pytest.fixture(scope="module")
def finished_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Returns the run and the listener of an uninterrupted training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.NAMED_RECIPES, "nnunet-light", RECIPE)
        return recorded_training(tiny_umamba(data, tmp_path_factory.mktemp("whole") / "run"))


def test_metrics_have_the_average_and_the_rate_of_each_epoch(finished_run: Run) -> None:
    run, listener = finished_run
    metrics = pd.read_csv(run / "metrics.csv")
    assert tuple(metrics.columns) == (*VALIDATIONS["seg"].metrics, AVERAGED)
    assert metrics["step"].tolist() == [4, 8, 12]
    assert metrics["lr"].tolist() == pytest.approx([poly_lr(e, 3, 1e-2) for e in range(3)])
    assert metrics["val_loss"].between(-1, 3).all()
    assert metrics["train_loss"].iloc[-1] < metrics["train_loss"].iloc[0]
    expected = metrics["val_dice"].ewm(alpha=0.1, adjust=False).mean()
    np.testing.assert_allclose(metrics[AVERAGED], expected, rtol=1e-5)
    assert (listener.total, listener.done) == (36, 36)


def test_the_record_names_recipe_and_choice(finished_run: Run) -> None:
    record = read_train_record(finished_run[0])
    assert record.recipe.patches == RECIPE.patches
    assert (record.recipe.batch_size, record.recipe.window) == (3, 16)
    best = 1 + int(pd.read_csv(finished_run[0] / "metrics.csv")[AVERAGED].to_numpy().argmax())
    assert record.chosen_epoch == best
    assert "moving average of the dice on validation patches" in str(record.chosen_why)


def test_the_weights_alone_say_how_to_predict(finished_run: Run) -> None:
    """The image is normalised and padded with zeros, and the scores of its flips are averaged."""
    header = read_header(finished_run[0] / "weights.safetensors")
    assert (header.overlap, header.window, header.nnunet.mirror_axes) == (0.5, 16, (0, 1))
    segmenter = load(ModelRequest(str(finished_run[0])), "seg")
    image = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    values = image.astype(np.float64)
    padded = np.zeros((1, 3, 16, 16), np.float32)
    z = (values - values.mean((0, 1))) / values.std((0, 1))
    padded[0, :, :, 2:14] = z.transpose(2, 0, 1)
    with torch.inference_mode():
        scores = Mirrored(segmenter.network, (0, 1))(torch.from_numpy(padded))
    expected = scores.softmax(1)[0, 1, :, 2:14].numpy()
    np.testing.assert_allclose(segmenter.probabilities([image])[0], expected, atol=1e-5)


def test_the_held_out_images_are_measured_and_reported(
    finished_run: Run, blank_figures: None
) -> None:
    assert table(finished_run[0] / "test")["dice"].between(0, 1).all()
    render(finished_run[0])
    report = (finished_run[0] / "report.md").read_text()
    assert "moving average of the validation dice, 0.9 of the old" in report
    render(finished_run[0] / "test")
    test_report = (finished_run[0] / "test" / "report.md").read_text()
    assert "normalised as in nnU-Net (zscore), 4 flips averaged" in test_report


@pytest.mark.usefixtures("unscored")
def test_an_interrupted_training_ends_with_the_same_weights(
    finished_run: Run, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_training(tiny_umamba(data, run), Interrupting(after=18))
    assert len(pd.read_csv(run / "metrics.csv")) == 1
    torch.manual_seed(99)
    run_training(tiny_umamba(data, run))
    assert same_state(weights_of(run), weights_of(finished_run[0]))
    expected_metrics, resumed = (
        pd.read_csv(r / "metrics.csv").drop(columns=TIME_COLUMNS) for r in (finished_run[0], run)
    )
    pd.testing.assert_frame_equal(expected_metrics, resumed)


def test_another_recipe_does_not_go_on_with_it(finished_run: Run, data: Path) -> None:
    with pytest.raises(UsageError, match="training with other settings") as caught:
        run_training(tiny_umamba(data, finished_run[0], recipe=None, model_args=TINY_UMAMBA))
    assert "`--recipe` was nnunet-light, now it is patient" in caught.value.why


def test_its_validation_is_nnunets_pseudo_dice(finished_run: Run) -> None:
    """Recomputes the last epoch's value from the checkpoint's weights with torchmetrics."""
    run, _ = finished_run
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watching(NnUNetModule):
        def validation_step(self, batch: MaskBatch, batch_idx: int) -> None:
            with torch.inference_mode():
                outputs.append((self.network(batch.images)[0].argmax(1), batch.masks[:, 0]))

    from robustcli.training.datamodule import BatchSettings, DecodedSubset, decoded_once
    from robustcli.training.procedures.nnunet import PatchData
    from robustcli.training.train_plan import plan_training

    record = read_train_record(run)
    config = tiny_umamba(Path(record.dataset.location), run)
    selection = plan_training(config, Recorder())
    network = load(ModelRequest(str(run)), "seg").network
    state = DurableCheckpoints().load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    network.load_state_dict({key.removeprefix("network."): v for key, v in state.items()})
    module = Watching(network, selection.recipe)
    pairs = selection.splits.val.samples
    with decoded_once(pairs, run / "cache") as decoded:
        subset = DecodedSubset.of(pairs, decoded)
        data = PatchData(subset, subset, selection.recipe, BatchSettings(0, 0))
        loader = data.val_dataloader()
        loader.batch_sampler.sampler.set_epoch(2)  # type: ignore[attr-defined]
        for number, batch in enumerate(loader):
            module.validation_step(batch, number)
    logits = torch.cat([s for s, _ in outputs]).flatten()
    targets = torch.cat([t for _, t in outputs]).flatten()
    logged_dice = pd.read_csv(run / "metrics.csv")["val_dice"].iloc[-1]
    assert logged_dice == pytest.approx(binary_f1_score(logits, targets).item(), abs=1e-6)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [("unet", {"features": [4, 8]}), ("ulvm", {}), ("umamba-enc", TINY_UMAMBA)],
)
def test_other_networks_train_too(
    data: Path, tmp_path: Path, model: str, arguments: dict[str, Any]
) -> None:
    """A single logit, probabilities, and state-space blocks at several resolutions."""
    overrides = {"model": model, "model_args": arguments, "window": 32 if model == "ulvm" else 16}
    run = run_training(tiny_umamba(data, tmp_path / "run", **overrides, epochs=1))
    metrics = pd.read_csv(run / "metrics.csv")
    assert not metrics.isna().any(axis=None)
    assert table(run / "test")["dice"].between(0, 1).all()


def test_two_devices_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`--recipe nnunet-light` trains on one device"):
        run_training(tiny_umamba(data, tmp_path / "run", devices=2, batch_size=4))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_light_recipe_learns_from_the_bundled_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipes.NAMED_RECIPES, "nnunet-light", LIGHT_RECIPE)
    run = run_training(
        TrainConfig(
            "umamba-pico", data="nuclei-mini:stained", out=tmp_path / "run", device="cpu",
            recipe="nnunet-light", epochs=2, window=64, batch_size=2, limit=14,
        )
    )  # fmt: skip
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics["step"].tolist() == [25, 50]
    assert metrics["train_loss"].iloc[1] < metrics["train_loss"].iloc[0] - 0.1
