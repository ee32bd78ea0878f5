"""Fine-tuning of classifiers: every mode, from weights with other classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from robustcli.adapters import networks
from robustcli.adapters.load import resolve
from robustcli.adapters.trainable import initialised
from robustcli.core.errors import UsageError
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.dry_run import forecast_finetuning
from robustcli.finetuning.finetune_plan import finetune_record, plan_finetuning
from robustcli.finetuning.finetuning_task import ClassifierFinetuning
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.finetuning.record import SWEEPS, read_finetune_record
from robustcli.finetuning.selection import FreezeRule
from robustcli.reports.finetuning_findings import read_finetuning
from robustcli.reports.finetuning_page import finetune_table
from robustcli.reports.render import render
from tests.training.runs import TINY_VMAMBA as TINY
from tests.training.runs import Recorder, tiny_classifier, words_of


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns weights of a very small VMamba with ten classes."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(networks.create("vmamba-pico", TINY).state_dict(), path)
    return path


def tiny_tuning(
    photos: Path | None, out: Path, pretrained: Path | None = None, *, training: Any = None,
    **overrides: Any,
) -> FinetuneConfig:  # fmt: skip
    config = tiny_classifier(photos, out, **(training or {}))
    rule = overrides.get("rule")
    profiled = None if rule is not None and rule.pattern is not None else 2
    return FinetuneConfig(config, pretrained, **{"profile_iterations": profiled, **overrides})


@pytest.fixture(scope="module")
def finished_run(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    rule, few_rules = FreezeRule(quantile=0.5), (FreezeRule(pattern="patch_embed*"),)
    config = tiny_tuning(
        photos, out, weights, mode="all", rule=rule, sweep=True, training={"epochs": 1}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifierFinetuning, "rules", few_rules)
        return run_finetuning(config)


def test_the_head_is_new_and_other_weights_are_those_of_the_file(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    setup = plan_finetuning(tiny_tuning(photos, tmp_path / "run", weights, mode="full"), Recorder())
    assert setup.heads == ("classifier.head.",)
    network, origin = setup.network("full")
    assert origin == str(weights)
    start = load_file(weights)
    for name, tensor in network.state_dict().items():
        if name.startswith(setup.heads):
            assert tensor.shape[0] == 3
        else:
            assert torch.equal(tensor, start[name]), name


def test_half_of_the_state_space_blocks_are_frozen_and_no_head(finished_run: Path) -> None:
    frozen = pd.read_csv(finished_run / "frozen.csv")
    frozen_rows = frozen[frozen["frozen"] == 1]
    assert len(frozen_rows) == frozen["mamba"].sum() // 2
    assert frozen_rows["mamba"].eq(1).all()
    trained_counts = pd.read_csv(finished_run / "freeze" / "iterations.csv")["trainable"]
    assert trained_counts.iloc[-1] == trained_counts.iloc[0] - frozen_rows["count"].sum()
    heads = frozen[frozen["name"].str.startswith("classifier.head")]
    assert heads["why"].tolist() == ["a head of the new task"] * 2


def test_the_record_and_the_report_are_a_classifiers(
    finished_run: Path, blank_figures: None
) -> None:
    record = read_finetune_record(finished_run)
    assert (record.task, record.status, record.heads) == ("cls", "complete", ["classifier.head."])
    assert list(pd.read_csv(finished_run / "sweep.csv")) == list(SWEEPS["cls"])
    render(finished_run)
    results = pd.read_csv(finished_run / "results.csv")
    assert results["mode"].tolist() == ["scratch", "full", "freeze"]
    assert {"top1", "top1_low", "top1_minus_full_p", "baseline_top1"} <= set(results)
    texts = [p for p in finished_run.rglob("*") if p.suffix in (".md", ".csv", ".json", ".html")]
    assert len(texts) > 10
    for path in texts:
        if path.name != "run.json":  # `run.json` has the keys of all tasks
            assert "dice" not in words_of(path), path
    report = (finished_run / "report.md").read_text(encoding="utf-8")
    for text in ("McNemar's exact test", "most frequent class", "time saved %", "3 classes"):
        assert text in report
    assert {"gradients.png", "modes.png", "sweep.png"} <= {
        path.name for path in (finished_run / "figures").iterdir()
    }
    assert "top-1" in finetune_table(read_finetuning(finished_run))


@pytest.mark.usefixtures("unscored")
def test_lora_leaves_a_plain_network(photos: Path, weights: Path, tmp_path: Path) -> None:
    config = tiny_tuning(photos, tmp_path / "run", weights, mode="lora", training={"epochs": 1})
    run = run_finetuning(config)
    after, before = load_file(run / "lora" / "weights.safetensors"), load_file(weights)
    assert after.keys() == before.keys()
    changed_names = {n for n in after if after[n].shape == before[n].shape
               and not torch.equal(after[n], before[n])}  # fmt: skip
    assert changed_names
    assert all("_proj" in name or name.startswith("classifier.head") for name in changed_names)


@pytest.mark.usefixtures("unscored")
def test_statistics_of_frozen_batch_norm_do_not_change(photos: Path, tmp_path: Path) -> None:
    network = initialised(resolve("resnet-pico"), {}, 0)
    path = tmp_path / "resnet.safetensors"
    save_file(network.state_dict(), path)
    resnet_settings = {"model": "resnet-pico", "model_args": {}, "window": 32, "epochs": 1}
    rule = FreezeRule(pattern="stages.0*")
    run = run_finetuning(
        tiny_tuning(
            photos, tmp_path / "run", path, mode="freeze", training=resnet_settings, rule=rule
        )
    )
    after, before = load_file(run / "freeze" / "weights.safetensors"), load_file(path)
    for name, tensor in before.items():
        if name.startswith("stages.0."):
            assert torch.equal(after[name], tensor), name
    name = "stages.1.0.conv1_kxk.bn.running_mean"
    assert not torch.equal(after[name], before[name])


def test_a_dry_run_counts_and_writes_nothing(photos: Path, weights: Path, tmp_path: Path) -> None:
    rule = FreezeRule(pattern="patch_embed*")
    config = tiny_tuning(photos, tmp_path / "run", weights, mode="all", rule=rule)
    plan = forecast_finetuning(config, Recorder())
    output = plan.as_text() + plan.as_json()
    assert "the class with the highest score" in output
    assert "dice" not in output
    assert plan.training.images == {"train": 30, "val": 3, "test": 3}
    assert not (tmp_path / "run").exists()


def test_the_bundled_weights_are_found(photos: Path, tmp_path: Path) -> None:
    config = tiny_tuning(photos, tmp_path / "run", mode="full", training={"model_args": {}})
    listener = Recorder()
    plan = plan_finetuning(config, listener)
    assert plan.pretrained is not None
    assert "Starting from the bundled `vmamba-pico`, trained on CIFAR-10." in listener.lines


def test_weights_that_were_trained_on_held_out_images_are_announced_and_recorded(
    finished_run: Path, photos: Path, tmp_path: Path
) -> None:
    warnings = {}
    for split_seed in (0, 3):
        training = {"seed": 3, "split_seed": split_seed}
        config = tiny_tuning(
            photos, tmp_path / f"{split_seed}", finished_run / "full", training=training
        )
        listener = Recorder()
        plan = plan_finetuning(config, listener)
        warnings[split_seed] = [line for line in listener.lines if line.startswith("WARNING")]
    assert warnings[0] == []
    assert "of 3 held-out images: the scores are too high. Use the split" in warnings[3][0]
    network, origin = plan.network("full")
    record = finetune_record(plan, network)
    assert record.pretrained.startswith(f"{origin} (these weights were trained on ")
    for mode, is_warned in (("full", True), ("scratch", False)):
        described = plan.mode_plan(mode, tmp_path / "x").described("origin")
        assert ("held-out" in described) == is_warned


@pytest.mark.parametrize("name", ["vmamba-pico", "resnet-pico"])
def test_the_bundled_photos_serve_where_no_data_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROBUST_DATA_CIFAR10", raising=False)
    monkeypatch.chdir(tmp_path)  # a folder without `robust.toml`
    training = {"model": name, "model_args": {}}
    listener = Recorder()
    plan = plan_finetuning(
        tiny_tuning(None, tmp_path / "run", mode="full", training=training), listener
    )
    assert "`--data` is not set; using cifar10-mini (a demonstration set), 960 images" in "\n".join(
        listener.lines
    )
    assert plan.training.recipe.name == "cifar10-mini"
    assert plan.training.index.classes.name == "cifar10"


@pytest.mark.parametrize(
    ("overrides", "training", "message"),
    [
        (
            {},
            {"data": None, "model": "test_vit", "model_args": {}},
            "`--data` is not set, and `test_vit` has no default",
        ),
        ({"pretrained": Path("nowhere")}, {}, "`--pretrained nowhere` does not exist"),
        (
            {},
            {"model": "vmamba-t", "model_args": {}, "offline": True},
            "has no weights on this machine",
        ),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, overrides: Any, training: Any, message: str
) -> None:
    settings = {"data": photos, **training}
    config = tiny_tuning(
        settings.pop("data"), tmp_path / "run", mode="full", training=settings, **overrides
    )
    with pytest.raises(UsageError, match=message):
        plan_finetuning(config, Recorder())
    assert not (tmp_path / "run").exists()


def test_a_shape_that_differs_is_named(photos: Path, weights: Path, tmp_path: Path) -> None:
    config = tiny_tuning(
        photos, tmp_path / "run", weights, training={"model_args": {**TINY, "dim": 16}}
    )
    with pytest.raises(UsageError, match=r"`patch_embed\.[^`]*` is \(") as caught:
        plan_finetuning(config, Recorder())
    assert "classifier.head" not in str(caught.value)
