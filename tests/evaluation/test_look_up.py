"""Task and names of the models of one run: distinct by their paths, and equal in every command."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from robustcli import create_model
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.fetching import state_digest
from robustcli.adapters.load import resolve
from robustcli.adapters.training_run import ClassifierHeader, write_weights
from robustcli.core.errors import UsageError
from robustcli.core.listener import Silent
from robustcli.data.labels import read_label_space
from robustcli.evaluation import evaluate
from robustcli.evaluation import forecast as forecasts
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.look_up import called, distinct_names, look_up, task_of
from robustcli.evaluation.record import read_record
from robustcli.evaluation.store import Store
from robustcli.tasks.classification import ClassificationTask
from robustcli.tasks.record import ModelRecord
from robustcli.tasks.segmentation import SegmentationTask
from robustcli.transforms.base import CLEAN
from tests.data.published_files import write_tree
from tests.evaluation.photos import CLASSES, CROP32, config, make_photos
from tests.training.runs import TINY_VMAMBA, Recorder


def test_the_models_determine_the_task():
    assert isinstance(task_of([resolve("vmamba-pico")]), ClassificationTask)
    assert isinstance(task_of([resolve("unet"), resolve("otsu")]), SegmentationTask)


@pytest.mark.parametrize("names", [("vmamba-pico", "unet"), ("unet", "vmamba-pico")])
def test_both_in_one_run_are_refused(names):
    with pytest.raises(
        UsageError, match="A classifier and a segmenter cannot be evaluated in the same run"
    ) as e:
        task_of([resolve(name) for name in names])
    assert (
        "`vmamba-pico` needs images with classes, and `unet` needs images with masks" in e.value.why
    )


@pytest.mark.parametrize("name", ["vim", "cifar-resnet18", "ulvm", "smp:Unet/resnet18"])
def test_a_network_without_weights_is_refused_before_the_data_are_read(name):
    # Also by `--dry-run`, and by `robust explain`.
    asked = EvalConfig((ModelRequest(name),), ("crop",), "no-such-folder")
    with pytest.raises(UsageError, match=f"`{name}` has no published weights"):
        look_up(asked, Recorder())


def runs(*places: str) -> list[ModelRequest]:
    for place in places:
        Path(place).mkdir(parents=True, exist_ok=True)
        weights = {"weight": torch.tensor(list(place.encode()))}
        save_file(weights, Path(place) / "weights.safetensors")
    return [ModelRequest(place) for place in places]


def names_of(requests: Sequence[ModelRequest], recorded: Sequence[ModelRecord] = ()) -> list[str]:
    usual_names = [Path(request.name).name for request in requests]
    return list(distinct_names(requests, usual_names, recorded))


def recorded(name: str, run: str, digest: str = "") -> ModelRecord:
    weights = f"{run}/weights.safetensors"
    return ModelRecord.model_construct(name=name, weights=weights, weights_sha256=digest)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (("a/seed-0", "b/seed-1"), ["seed-0", "seed-1"]),
        (("a/seed-0", "b/seed-0"), ["a/seed-0", "b/seed-0"]),
        (("a/full", "b/full", "b/lora"), ["a/full", "b/full", "lora"]),
        (("x/a/full", "y/a/full", "x/b/full"), ["x/a/full", "y/a/full", "b/full"]),
        (("a/Seed-0", "b/seed-0"), ["a/Seed-0", "b/seed-0"]),
        (("a/b-c", "x/a-b-c", "y/b-c"), ["work/a/b-c", "x/a-b-c", "y/b-c"]),
    ],
)
def test_each_name_has_as_many_path_parts_as_distinguish_it(places, names):
    requests = runs(*places)
    for order in itertools.permutations(range(len(places))):
        assert names_of([requests[n] for n in order]) == [names[n] for n in order]


def test_a_run_that_is_called_like_another_model_gives_way():
    requests = [ModelRequest("vmamba-pico"), *runs("mine/vmamba_pico")]
    assert list(distinct_names(requests, ["vmamba-pico", "vmamba_pico"])) == [
        "vmamba-pico",
        "vmamba_pico",
    ]
    assert list(distinct_names(requests, ["vmamba-pico", "vmamba-pico"])) == [
        "vmamba-pico",
        "mine/vmamba_pico",
    ]


def test_exported_files_of_one_name_are_told_apart(tmp_path):
    requests = [ModelRequest("a/model.onnx"), ModelRequest(str(tmp_path / "b" / "model.onnx"))]
    assert names_of(requests) == ["a/model.onnx", "b/model.onnx"]


def test_python_files_of_one_name_are_told_apart():
    a, b = ModelRequest("a/net.py:build"), ModelRequest("b/net.py:build")
    assert names_of([a, b]) == ["a/net.py:build", "b/net.py:build"]
    assert names_of([a, ModelRequest("a/net.py:other")]) == ["net.py:build", "net.py:other"]
    with pytest.raises(UsageError, match="was given twice"):
        names_of([a, ModelRequest("./a/net.py:build")])
    in_run = ModelRecord.model_construct(
        name="net.py:build", weights="made by code", builder="import:a/net.py:build"
    )
    assert names_of([b, a], [in_run]) == ["b/net.py:build", "net.py:build"]
    assert names_of([b], [in_run]) == ["b/net.py:build"]


@pytest.mark.parametrize("second", ["a/seed-0", "b/../a/seed-0"])
def test_one_run_given_twice_is_refused(second):
    requests = runs("a/seed-0", "b/seed-0")[:1]
    with pytest.raises(UsageError, match="was given twice"):
        names_of([*requests, ModelRequest(second)])


def test_a_model_of_the_folder_keeps_its_name_there():
    a, b = runs("a/seed-0", "b/seed-0")
    first = [recorded("seed-0", "a/seed-0")]
    assert names_of([b, a], first) == ["b/seed-0", "seed-0"]
    assert names_of([b], first) == ["b/seed-0"]
    both_models = [recorded("a/seed-0", "a/seed-0"), recorded("b/seed-0", "b/seed-0")]
    assert names_of([a], both_models) == ["a/seed-0"]


def test_a_copy_or_a_moved_run_keeps_its_name(tmp_path):
    a, b, c = runs("a/seed-0", "b/seed-0", "c/seed-0")
    digest = state_digest({"weight": torch.tensor(list(b"b/seed-0"))})
    moved_copy = recorded("seed-0", "a/seed-0", digest)
    assert names_of([b], [moved_copy]) == ["seed-0"]
    assert names_of([a, b], [moved_copy]) == ["seed-0", "b/seed-0"]
    other_model = recorded("seed-0", "a/seed-0", "another digest")
    assert names_of([b], [other_model]) == ["b/seed-0"]
    assert names_of([c], [recorded("seed-0", "moved/seed-0")]) == ["seed-0"]


def test_only_other_names_than_usual_are_announced():
    requests, messages = runs("a/seed-0", "c/lora"), []
    result = called(requests, ("a/seed-0", "lora"), ("seed-0", "lora"), messages.append)
    assert [request.called for request in result] == ["a/seed-0", None]
    assert "`a/seed-0`" in messages[0]
    assert "lora" not in messages[0]
    assert called(requests, ("x", "y"), ("x", "y"), messages.append) == tuple(requests)
    assert len(messages) == 1


def untrained_run(place: str, seed: int) -> ModelRequest:
    """Returns untrained weights under the header of a training."""
    arguments = {**TINY_VMAMBA, "num_classes": 10}
    torch.manual_seed(seed)
    state = create_model("vmamba-pico", **arguments).state_dict()
    state["classifier.head.weight"] = torch.randn_like(state["classifier.head.weight"])
    space = read_label_space("cifar10")
    header = ClassifierHeader(
        model="vmamba-pico", arguments=arguments, window=32, trained_on="elsewhere",
        images_sha256="", label_space="cifar10", classes=space.ids, class_names=space.names,
        preprocessing=asdict(CROP32),
    )  # fmt: skip
    Path(place).mkdir(parents=True)
    write_weights(Path(place) / "weights.safetensors", state, header)
    return ModelRequest(place)


def test_two_runs_of_one_name_are_evaluated_together_and_go_on_in_any_order(tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "photos", per_class=1)
    a, b = untrained_run("a/seed-0", 0), untrained_run("b/seed-0", 1)
    run = run_evaluation(config(photos, tmp_path / "both", models=(a, b)))
    assert [model.name for model in read_record(run).models] == ["a/seed-0", "b/seed-0"]
    assert sorted(path.name for path in (run / "predictions").iterdir()) == [
        "model=a-seed-0",
        "model=b-seed-0",
    ]
    for request in (a, b):
        single_run = run_evaluation(config(photos, tmp_path / request.name[0], models=(request,)))
        assert [model.name for model in read_record(single_run).models] == ["seed-0"]
        rows = [
            Store(folder).rows(name, CLEAN, "cls")
            for folder, name in ((single_run, "seed-0"), (run, request.name))
        ]
        assert rows[0].equals(rows[1])
        assert not rows[0]["probability"].equals(rows[0]["target_probability"])
    first, second = (Store(run).rows(name, CLEAN, "cls") for name in ("a/seed-0", "b/seed-0"))
    assert not first["probability"].equals(second["probability"])
    monkeypatch.setattr(evaluate, "batch_stream", None)  # an error if anything is computed
    for models in ((b, a), (b,)):
        run_evaluation(config(photos, run, models=models))
    assert [model.name for model in read_record(run).models] == ["a/seed-0", "b/seed-0"]


def test_a_second_run_of_the_same_name_joins_a_finished_evaluation(tmp_path):
    photos = make_photos(tmp_path / "photos", per_class=1)
    a, b = untrained_run("a/seed-0", 0), untrained_run("b/seed-0", 1)
    run = run_evaluation(config(photos, tmp_path / "run", models=(a,)))
    before = Store(run).rows("seed-0", CLEAN, "cls")
    run_evaluation(config(photos, run, models=(b, a)))
    assert [model.name for model in read_record(run).models] == ["seed-0", "b/seed-0"]
    assert Store(run).rows("seed-0", CLEAN, "cls").equals(before)
    assert (
        not Store(run).rows("b/seed-0", CLEAN, "cls")["probability"].equals(before["probability"])
    )


def test_a_forecast_counts_downloads_by_any_spelling(tmp_path, monkeypatch):
    """Names of timm are not in the catalogue; untrained networks are not downloaded."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(forecasts, "_seconds_per_image", lambda *_: 0.0)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "photos" / "n01440764_tench.png")

    def megabytes(name: str, **changes: object) -> float:
        models = (ModelRequest(name, **changes),)  # type: ignore[arg-type]
        settings = config(tmp_path / "photos", tmp_path / "run", models=models)
        return forecasts.forecast(settings, Silent()).download_bytes / 1e6

    assert megabytes("test_resnet.r160_in1k") == pytest.approx(1.87, abs=0.01)
    monkeypatch.setattr(forecasts, "_trial_models", lambda _: {})  # sizes of the catalogue
    assert megabytes("Vim_T") == pytest.approx(28.6, abs=0.1)
    assert megabytes("vim-t", untrained=True) == 0


def test_options_about_transforms_that_are_not_selected_are_announced(tmp_path):
    data = make_photos(tmp_path / "photos", per_class=1)
    pixels = np.zeros((32, 32, 3), np.uint8)
    tree = write_tree(tmp_path / "c", {("fog", 1, f"{name}/0.png"): pixels for name in CLASSES})
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from robustcli.transforms import transform\n\n@transform()\n"
        "def unused(image, rng, value):\n    return image\n"
    )
    options = {"plugins": (plugin,), "published": (tree,), "severities": (1,)}

    def announced(*names):
        listener = Recorder()
        look_up(config(data, tmp_path / "run", *names, **options), listener)
        return [line.partition(" has no effect")[0] for line in listener.lines]

    ignored = [f"`--plugin {plugin}`", f"`--published {tree}`", "`--severity`"]
    assert announced("identity") == ignored
    assert announced("c_fog") == ignored[:2]
    options["severities"] = None
    assert announced("unused", "published/*") == []


def test_a_forecast_refuses_other_settings_of_the_models_of_a_finished_run(tmp_path):
    data = make_photos(tmp_path / "photos", per_class=1)

    def settings(**changes):
        models = (ModelRequest("vmamba-pico", **changes),)
        return config(data, tmp_path / "run", "identity", models=models)

    run = run_evaluation(settings(preprocessing={"resize": 40}))
    known = forecasts.forecast(settings(preprocessing={"resize": 40}), Silent())
    assert (known.predictions, known.predictions_there) == (4, 4)
    for changes, named in (
        ({}, "was resize=40, now it is resize=32"),
        ({"preprocessing": {"resize": 40}, "untrained": True}, "`--untrained` was False"),
    ):
        with pytest.raises(UsageError, match=named):
            forecasts.forecast(settings(**changes), Silent())
        with pytest.raises(UsageError, match=r"`vmamba-pico`: .* was .*, now it is"):
            run_evaluation(settings(**changes))
    assert forecasts.forecast(replace(settings(), fresh=True), Silent()).predictions_there == 0
    assert read_record(run).status == "complete"
