"""The recipes `paper`, `fair` and `speedrun` of classifiers: values, averages, clock, trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch import nn

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load, resolve
from robustcli.core.errors import UsageError
from robustcli.data.splits import read_splits
from robustcli.evaluation.cell_table import table
from robustcli.reports.render import render
from robustcli.training.classifier_training import check_finetunes, class_recipe
from robustcli.training.config import TrainConfig
from robustcli.training.engine import run_training
from robustcli.training.lit_module import average
from robustcli.training.procedures.photos import SpeedClock, speed_in_words
from robustcli.training.recipes import CLASS_RECIPES, FAIR_RATES, SCHEDULES, recipe_named
from robustcli.training.record import read_train_record
from robustcli.training.seed_runs import train_seeds
from robustcli.training.train_plan import forecast_training, plan_training
from tests.training.images import write_photos
from tests.training.runs import (
    Recorder,
    Run,
    killed_after_one_epoch,
    last_weights,
    recorded_training,
    same_state,
    tiny_classifier,
    weights_of,
    words_of,
)
from tests.training.test_processes import run_script

TINY_VIM: dict[str, Any] = {"dim": 16, "depth": 1, "patch_size": 8}


def recipe(name: str, model: str = "vim", **overrides: Any) -> Any:
    return class_recipe(
        TrainConfig(model, recipe=name, **overrides), 32, "some data", resolve(model)
    )


def test_the_paper_recipe_has_the_values_of_its_code() -> None:
    """Source: section 4 of the description of the paper's repository."""
    row = recipe("paper")
    assert (row.optimizer, row.lr, row.weight_decay, row.schedule) == ("Adam", 1e-3, 0, "constant")
    assert (row.batch_size, row.epochs, row.loss, row.clip) == (64, 100, "cross-entropy", None)
    assert row.photos.mean == (0.5071, 0.4867, 0.4408)
    assert row.photos.std == (0.2675, 0.2565, 0.2761)
    assert (row.photos.outputs, row.photos.validates_on) == (1000, "test")
    assert (row.photos.ema, row.photos.expected_top1) == (None, 0.8947)
    other_recipe = recipe("paper", "resnet-pico").photos
    assert (other_recipe.outputs, other_recipe.expected_top1) == (None, None)
    assert recipe("paper", quick=True).photos.expected_top1 is None


def test_the_fair_recipe_differs_between_families_in_the_learning_rate_only() -> None:
    rows = [recipe("fair", model) for model in ("vim", "vmamba-pico", "resnet-pico", "resnet10t")]
    assert len({replace(row, lr=0.0) for row in rows}) == 1
    assert [row.lr for row in rows[:3]] == [FAIR_RATES[n] for n in ("vim", "vmamba", "resnet")]
    assert recipe("fair", lr=0.5).lr == 0.5


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("nnunet", {}, "`--recipe nnunet` is for segmenters"),
        ("patient", {}, "`--recipe patient` is for segmenters"),
        ("pape", {}, "No recipe of classifiers is called `pape`"),
        ("fair", {"target": 0.9}, "`--target 0.9` cannot be used with `--recipe fair`"),
        ("speedrun", {"target": 1.5}, "`--target 1.5` is out of range"),
    ],
)
def test_options_that_do_not_fit_a_recipe_are_refused(
    name: str, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(name, **overrides)


@pytest.mark.parametrize("name", ["paper", "fair", "speedrun"])
def test_a_segmenter_has_no_such_recipe(name: str) -> None:
    with pytest.raises(UsageError, match=f"`--recipe {name}` is for classifiers"):
        recipe_named(name, "unet")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("paper", {"aug": "light"}, "`--aug light` cannot be used with `--recipe paper`"),
        ("paper", {"loss": "cross-entropy"}, "`--loss cross-entropy` cannot be used with"),
        (
            "speedrun",
            {"aug": "randaugment"},
            "`--aug randaugment` cannot be used with `--recipe spe",
        ),
        ("speedrun", {"aug": "light"}, "`--aug light` cannot be used with `--recipe speedrun`"),
        ("speedrun", {"workers": 2}, "`--workers 2` cannot be used with `--recipe speedrun`"),
        ("speedrun", {"devices": 2}, "`--recipe speedrun` trains on one device, not in 2"),
    ],
)
def test_options_without_effect_in_a_recipe_are_refused(
    photos: Path, tmp_path: Path, name: str, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run_training(tiny_classifier(photos, tmp_path / "run", recipe=name, **overrides))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["paper", "speedrun"])
def test_recipes_from_random_weights_are_refused_for_fine_tuning(name: str) -> None:
    check_finetunes(TrainConfig("vim", recipe="fair"))
    with pytest.raises(
        UsageError, match=f"`--recipe {name}` cannot be used with `robust finetune`"
    ):
        check_finetunes(TrainConfig("vim", recipe=name))


def test_the_triangular_schedule_rises_and_falls() -> None:
    factor = SCHEDULES["triangular"]
    values = [factor(step, 100) for step in range(101)]
    assert (values[0], values[19], values[20], values[60], values[100]) == (0.05, 1, 1, 0.5, 0)
    assert factor(0, 1) == 1


def test_the_average_by_hand() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    averaged = average(network, 0.6)
    weight, mean = 0.0, 0.0
    for step in range(6):
        with torch.no_grad():
            network[0].weight.fill_(step + 1.0)
        network[1].running_mean.fill_(10.0 * step)
        network[1].num_batches_tracked.fill_(step)
        averaged.update_parameters(network)
        old_share = 0.0 if step == 0 else min(0.6, (1 + step) / (10 + step))
        weight = old_share * weight + (1 - old_share) * (step + 1)
        mean = old_share * mean + (1 - old_share) * 10 * step
    assert float(averaged.module[0].weight) == pytest.approx(weight, rel=1e-6)
    assert float(averaged.module[1].running_mean) == pytest.approx(mean, rel=1e-6)
    assert int(averaged.module[1].num_batches_tracked) == 5
    assert not any(p.requires_grad for p in averaged.parameters())
    assert all(p.requires_grad for p in network.parameters())


def fair_config(photos: Path, out: Path, **overrides: Any) -> TrainConfig:
    return tiny_classifier(photos, out, recipe="fair", **{"epochs": 2, **overrides})


@pytest.fixture(scope="module")
def finished_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return recorded_training(fair_config(photos, tmp_path_factory.mktemp("fair") / "run"))


def test_the_averaged_weights_are_written(finished_run: Run) -> None:
    run, listener = finished_run
    assert "The weights are averaged" in "\n".join(listener.lines)
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    kept_weights = weights_of(run)
    for name, tensor in kept_weights.items():
        assert torch.equal(tensor, state[f"averaged.module.{name}"])
    assert any(
        not torch.equal(kept_weights[n], t)
        for n, t in last_weights(run).items()
        if n in kept_weights
    )
    record = read_train_record(run)
    assert (record.recipe.photos.ema, record.recipe.name) == (0.999, "fair")
    assert record.faults == []


@pytest.mark.usefixtures("unscored")
def test_a_killed_fair_training_ends_with_the_same_average(
    finished_run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fair_config(photos, tmp_path / "run")
    killed_after_one_epoch(monkeypatch, config)
    run = run_training(config)
    assert same_state(weights_of(run), weights_of(finished_run[0]))
    old_state, new_state = (
        torch.load(r / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for r in (finished_run[0], run)
    )
    assert same_state(old_state, new_state)
    assert int(new_state["averaged.n_averaged"]) == 6


def paper_config(photos: Path, out: Path, **overrides: Any) -> TrainConfig:
    settings = {"recipe": "paper", "epochs": 2, "model": "vim", "model_args": TINY_VIM}
    return tiny_classifier(photos, out, **settings, **overrides)


@pytest.fixture(scope="module")
def paper(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return recorded_training(paper_config(photos, tmp_path_factory.mktemp("paper") / "run"))


def test_the_paper_validates_on_what_it_tests_on(paper: Run) -> None:
    run, listener = paper
    record = read_train_record(run)
    assert {name: part.images for name, part in record.splits.items()} == {
        "train": 33, "val": 3, "test": 3,
    }  # fmt: skip
    splits = read_splits(run / "splits.csv")
    assert sorted(splits.values()).count("test") == 3
    assert set(splits.values()) == {"train", "test"}
    metrics, rows = pd.read_csv(run / "metrics.csv"), table(run / "test")
    assert rows["top1"].iloc[0] == pytest.approx(metrics["val_top1"].max())
    assert "on the test images, as in the paper" in record.chosen_why
    assert len(record.faults) == 6
    assert all(f"- {fault}" in listener.lines for fault in record.faults)


def test_a_report_lists_the_faults(paper: Run, blank_figures: None) -> None:
    render(paper[0])
    text = words_of(paper[0] / "report.md")
    assert "\n## known faults of this recipe" in text
    page_text = " ".join(text.split())
    for fault in read_train_record(paper[0]).faults:
        assert fault.lower() in page_text


def test_the_papers_head_is_cut_to_the_classes(paper: Run, photos: Path) -> None:
    run = paper[0]
    trained_head = last_weights(run)["head.weight"]
    assert trained_head.shape == (1000, 16)
    assert weights_of(run)["head.weight"].shape == (3, 16)
    classifier = load(ModelRequest(str(run)), "cls")
    assert tuple(classifier.preprocessing.mean) == (0.5071, 0.4867, 0.4408)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert classifier.logits(images).shape == (2, 3)
    with safe_open(run / "weights.safetensors", "pt") as file:
        assert "head.bias" in file.keys()  # noqa: SIM118  not a dictionary


@pytest.mark.usefixtures("unscored")
def test_each_seed_of_the_paper_is_the_training_of_that_seed(
    paper: Run, photos: Path, tmp_path: Path
) -> None:
    run = train_seeds(paper_config(photos, tmp_path / "run", seeds=1))
    assert same_state(weights_of(run / "seed-0"), weights_of(paper[0]))


def test_the_published_head_has_the_published_size(photos: Path, tmp_path: Path) -> None:
    config = TrainConfig("vim", str(photos), tmp_path / "run", recipe="paper", device="cpu")
    plan = plan_training(config, Recorder())
    assert sum(p.numel() for p in plan.task.start(plan).network.parameters()) == 1_958_536


def speedrun(photos: Path, out: Path, **overrides: Any) -> TrainConfig:
    return tiny_classifier(
        photos, out, recipe="speedrun", **{"epochs": 3, "target": 0.01, "lr": 0.05, **overrides}
    )


@pytest.fixture(scope="module")
def speedrun_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return recorded_training(speedrun(photos, tmp_path_factory.mktemp("fast") / "run"))


def test_the_clock_counts_training_steps_only(speedrun_run: Run) -> None:
    run, listener = speedrun_run
    record, metrics = read_train_record(run), pd.read_csv(run / "metrics.csv")
    speed = record.speed
    assert (speed.target, speed.images) == (0.01, 90)
    assert 0 < speed.warm_up_seconds < speed.seconds < metrics["seconds"].sum()
    first_epoch = metrics.loc[metrics["val_top1"] >= 0.01, "epoch"].min()
    assert speed.reached_epoch == first_epoch
    assert speed.seconds_to_target <= speed.seconds
    rate = (90 - 10) / (speed.seconds - speed.warm_up_seconds)
    assert speed.images_per_second == pytest.approx(rate)
    assert speed_in_words(speed) in listener.lines
    assert record.recipe.precision == "fp32"
    assert (record.chosen_epoch, record.chosen_why) == (
        3, "the last epoch, as defined by recipe `speedrun`",
    )  # fmt: skip


def test_a_report_says_how_fast_it_was(speedrun_run: Run, blank_figures: None) -> None:
    render(speedrun_run[0])
    assert "images per second" in words_of(speedrun_run[0] / "report.md")


@pytest.mark.usefixtures("unscored")
def test_a_killed_speedrun_ends_with_the_same_weights_and_all_seconds(
    speedrun_run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = speedrun(photos, tmp_path / "run")
    killed_after_one_epoch(monkeypatch, config)
    run = run_training(config)
    assert same_state(weights_of(run), weights_of(speedrun_run[0]))
    speed = read_train_record(run).speed
    assert speed.images == 90


def test_a_target_that_is_not_reached_has_no_seconds(tmp_path: Path) -> None:
    clock = SpeedClock(tmp_path, 0.94, Recorder())
    clock.seconds, clock.warm_up, clock.images, clock.warm_up_images = 5.0, 1.0, 50, 10
    record = clock.record()
    assert (record.reached_epoch, record.seconds_to_target) == (None, None)
    assert record.images_per_second == 10.0
    assert "were not correct after 5.0 s" in speed_in_words(record)


@pytest.mark.parametrize("name", ["paper", "fair", "speedrun"])
def test_quick_shortens_every_recipe(photos: Path, tmp_path: Path, name: str) -> None:
    config = tiny_classifier(photos, tmp_path / "run", recipe=name, epochs=None, quick=True)
    forecast = forecast_training(replace(config, batch_size=None), Recorder())
    assert (forecast.recipe.epochs, forecast.recipe.images_per_epoch) == (2, 512)
    assert forecast.as_dict()["recipe"]["photos"] is not None
    assert forecast.disk_bytes == 4 * forecast.parameters * (9 if name == "fair" else 7)


def test_other_recipes_have_no_such_settings(photos: Path, tmp_path: Path) -> None:
    plan = plan_training(tiny_classifier(photos, None), Recorder())  # type: ignore[arg-type]
    assert plan.recipe.photos is None
    assert CLASS_RECIPES["classes"].photos is None


_SCRIPT = """
import sys
from pathlib import Path
from robustcli.training.engine import run_training
from tests.training.test_class_recipes import fair_config

run_training(fair_config(Path(sys.argv[1]), Path(sys.argv[2]), devices=2, aug="none"))
print("finished")
"""


@pytest.mark.slow
def test_two_processes_average_as_one(tmp_path: Path) -> None:
    data = write_photos(tmp_path / "paints", 12)
    run = tmp_path / "run"
    run_script(_SCRIPT, tmp_path, data, run)
    single = run_training(fair_config(data, tmp_path / "single", aug="none"))
    # Two halves of a batch are summed in another order: rounding errors of six steps.
    for name, tensor in weights_of(single).items():
        np.testing.assert_allclose(weights_of(run)[name], tensor, rtol=1e-2, atol=1e-3)
