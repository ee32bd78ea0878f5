"""The fine-tuning of classifiers: every mode, from weights with other classes."""

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
from robustcli.finetuning.finetune_plan import plan_finetuning
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.finetuning.record import SWEEPS, read_finetune_record
from robustcli.finetuning.selection import FreezeRule
from robustcli.reports.console import finetune_table
from robustcli.reports.finetuning_findings import read_finetuning
from robustcli.reports.render import render
from tests.training.runs import TINY_VMAMBA as TINY
from tests.training.runs import Heard, tiny_classifier, words_of


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the very small VMamba, for ten classes."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(networks.create("vmamba-pico", TINY).state_dict(), path)
    return path


def tuning(
    photos: Path | None, out: Path, pretrained: Path | None = None, *, training: Any = None,
    **said: Any,
) -> FinetuneConfig:  # fmt: skip
    config = tiny_classifier(photos, out, **(training or {}))
    rule = said.get("rule")
    profiled = None if rule is not None and rule.pattern is not None else 2
    return FinetuneConfig(config, pretrained, **{"profile_iterations": profiled, **said})


@pytest.fixture(scope="module")
def whole(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    rule = FreezeRule(quantile=0.5)
    return run_finetuning(tuning(photos, out, weights, mode="all", rule=rule, sweep=True))


def test_the_head_is_new_and_all_else_is_of_the_file(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    setup = plan_finetuning(tuning(photos, tmp_path / "run", weights, mode="full"), Heard())
    assert setup.heads == ("classifier.head.",)
    network, origin = setup.network("full")
    assert origin == str(weights)
    given = load_file(weights)
    for name, tensor in network.state_dict().items():
        if name.startswith(setup.heads):
            assert tensor.shape[0] == 3
        else:
            assert torch.equal(tensor, given[name]), name


def test_half_of_the_state_space_blocks_are_frozen_and_no_head(whole: Path) -> None:
    frozen = pd.read_csv(whole / "frozen.csv")
    held = frozen[frozen["frozen"] == 1]
    assert len(held) == frozen["mamba"].sum() // 2
    assert held["mamba"].eq(1).all()
    moved = pd.read_csv(whole / "freeze" / "iterations.csv")["trainable"]
    assert moved.iloc[-1] == moved.iloc[0] - held["count"].sum()
    heads = frozen[frozen["name"].str.startswith("classifier.head")]
    assert heads["why"].tolist() == ["a head of the new task"] * 2


def test_a_frozen_prefix_is_bit_identical_after_training(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    rule = FreezeRule(pattern="layers.0")
    run = run_finetuning(tuning(photos, tmp_path / "run", weights, mode="freeze", rule=rule))
    trained, given = load_file(run / "freeze" / "weights.safetensors"), load_file(weights)
    for name, tensor in trained.items():
        if name.startswith("layers.0."):
            assert torch.equal(tensor, given[name]), name
    assert not torch.equal(
        trained["layers.1.blocks.0.op.in_proj.weight"],
        given["layers.1.blocks.0.op.in_proj.weight"],
    )


def test_the_record_and_the_report_are_a_classifiers(whole: Path) -> None:
    record = read_finetune_record(whole)
    assert (record.task, record.status, record.heads) == ("cls", "complete", ["classifier.head."])
    assert list(pd.read_csv(whole / "sweep.csv")) == list(SWEEPS["cls"])
    render(whole)
    results = pd.read_csv(whole / "results.csv")
    assert results["mode"].tolist() == ["scratch", "full", "freeze"]
    assert {"top1", "top1_low", "top1_minus_full_p", "baseline_top1"} <= set(results)
    texts = [p for p in whole.rglob("*") if p.suffix in (".md", ".csv", ".json", ".html")]
    assert len(texts) > 10
    for path in texts:
        if path.name != "run.json":  # it has the keys of every task
            assert "dice" not in words_of(path), path
    told = (whole / "report.md").read_text(encoding="utf-8")
    for words in ("McNemar's exact test", "most frequent class", "time saved %", "3 classes"):
        assert words in told
    assert {"gradients.png", "modes.png", "sweep.png"} <= {
        path.name for path in (whole / "figures").iterdir()
    }
    assert "top-1" in finetune_table(read_finetuning(whole))


def test_the_same_command_again_does_nothing(whole: Path, photos: Path, weights: Path) -> None:
    before = (whole / "full" / "weights.safetensors").stat().st_mtime_ns
    rule = FreezeRule(quantile=0.5)
    run_finetuning(tuning(photos, whole, weights, mode="full", rule=rule))
    assert (whole / "full" / "weights.safetensors").stat().st_mtime_ns == before


def test_lora_leaves_a_plain_network(photos: Path, weights: Path, tmp_path: Path) -> None:
    run = run_finetuning(tuning(photos, tmp_path / "run", weights, mode="lora"))
    trained, given = load_file(run / "lora" / "weights.safetensors"), load_file(weights)
    assert trained.keys() == given.keys()
    changed = {n for n in trained if trained[n].shape == given[n].shape
               and not torch.equal(trained[n], given[n])}  # fmt: skip
    assert changed
    assert all("_proj" in name or name.startswith("classifier.head") for name in changed)


def test_a_network_without_state_space_blocks_says_so(photos: Path, tmp_path: Path) -> None:
    network = initialised(resolve("resnet10t"), {}, 0)
    path = tmp_path / "resnet.safetensors"
    save_file(network.state_dict(), path)
    small = {"model": "resnet10t", "model_args": {}, "window": 32, "epochs": 2}
    heard = Heard()
    run = run_finetuning(
        tuning(photos, tmp_path / "run", path, mode="freeze", training=small,
               rule=FreezeRule(threshold=1e-6)), heard,
    )  # fmt: skip
    assert "has no state-space block" in "\n".join(heard.lines)
    assert (run / "freeze" / "test").is_dir()


def test_frozen_batch_norm_stands_still(photos: Path, tmp_path: Path) -> None:
    network = initialised(resolve("resnet10t"), {}, 0)
    path = tmp_path / "resnet.safetensors"
    save_file(network.state_dict(), path)
    small = {"model": "resnet10t", "model_args": {}, "window": 32, "epochs": 1}
    rule = FreezeRule(pattern="layer1*")
    run = run_finetuning(
        tuning(photos, tmp_path / "run", path, mode="freeze", training=small, rule=rule)
    )
    trained, given = load_file(run / "freeze" / "weights.safetensors"), load_file(path)
    for name, tensor in given.items():
        if name.startswith("layer1"):
            assert torch.equal(trained[name], tensor), name
    assert not torch.equal(trained["layer2.0.bn1.running_mean"], given["layer2.0.bn1.running_mean"])


def test_a_dry_run_counts_and_writes_nothing(photos: Path, weights: Path, tmp_path: Path) -> None:
    rule = FreezeRule(pattern="patch_embed*")
    config = tuning(photos, tmp_path / "run", weights, mode="all", rule=rule)
    plan = forecast_finetuning(config, Heard())
    told = plan.as_text() + plan.as_json()
    assert "the class with the highest score" in told
    assert "dice" not in told
    assert plan.training.images == {"train": 30, "val": 3, "test": 3}
    assert not (tmp_path / "run").exists()


def test_the_bundled_weights_are_found(photos: Path, tmp_path: Path) -> None:
    config = tuning(photos, tmp_path / "run", mode="full", training={"model_args": {}})
    heard = Heard()
    plan = plan_finetuning(config, heard)
    assert plan.pretrained is not None
    assert "Starting from the bundled `vmamba-pico`, trained on CIFAR-10." in heard.lines


@pytest.mark.parametrize("name", ["vmamba-pico", "resnet-pico"])
def test_the_bundled_photos_serve_where_no_data_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROBUST_DATA_CIFAR10", raising=False)
    monkeypatch.chdir(tmp_path)  # no `robust.toml`
    training = {"model": name, "model_args": {}}
    heard = Heard()
    plan = plan_finetuning(tuning(None, tmp_path / "run", mode="full", training=training), heard)
    assert (
        "`--data` is not set; using cifar10-mini (a demonstration set), 960 images"
        in heard.lines[0]
    )
    assert plan.training.recipe.name == "cifar10-mini"
    assert plan.training.index.classes.name == "cifar10"


@pytest.mark.parametrize(
    ("said", "training", "message"),
    [
        (
            {},
            {"data": None, "model": "test_vit", "model_args": {}},
            "`--data` is not set, and `test_vit` on",
        ),
        ({"pretrained": Path("nowhere")}, {}, "`--pretrained nowhere` does not exist"),
        ({}, {"model_args": {"dim": 16}}, "do not fit `vmamba-pico`"),
        (
            {},
            {"model": "vmamba-t", "model_args": {}, "offline": True},
            "has no weights on this machine",
        ),
    ],
)
def test_what_stops_it(
    photos: Path, tmp_path: Path, said: Any, training: Any, message: str
) -> None:
    given = {"data": photos, **training}
    config = tuning(given.pop("data"), tmp_path / "run", mode="full", training=given, **said)
    with pytest.raises(UsageError, match=message):
        plan_finetuning(config, Heard())
    assert not (tmp_path / "run").exists()


def test_a_shape_that_differs_is_named(photos: Path, weights: Path, tmp_path: Path) -> None:
    config = tuning(photos, tmp_path / "run", weights, training={"model_args": {**TINY, "dim": 16}})
    with pytest.raises(UsageError, match=r"`patch_embed\.[^`]*` is \(") as told:
        plan_finetuning(config, Heard())
    assert "classifier.head" not in str(told.value)
