"""`robust explain` from settings to rows, arrays and messages."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import robustcli
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.cli.main import main
from robustcli.core.errors import MachineError, RunError, UsageError
from robustcli.evaluation.evaluate import evaluate
from robustcli.evaluation.loader import Source
from robustcli.evaluation.store import Store
from robustcli.explanation import block, input_methods
from robustcli.explanation import explaining as engine
from robustcli.explanation.block import insertion_and_deletion
from robustcli.explanation.config import ExplainConfig
from robustcli.explanation.explaining import explain, explain_forecast
from robustcli.explanation.network import ExplainedNetwork
from robustcli.explanation.record import (
    EXPLANATION,
    read_arrays,
    read_explain_record,
    read_explained_rows,
)
from robustcli.metrics.explanation_scores import curve_area
from robustcli.transforms.base import CLEAN, Cell
from tests.adapters.files import vim_as_run
from tests.builders import RunPlan, build_run, model
from tests.evaluation.photos import PICO, config, make_photos
from tests.explanation.networks import explained, small_vmamba
from tests.training.runs import Recorder, recorded_training, tiny_classifier

FAST = ("grad-cam", "occlusion")
KEYS = ["method", "image_id", "view", "target_kind"]
NAMED = ("cat/1.png", "ship/0.png", "dog/2.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_methods, "CLIMB_STEPS", 2)
        patch.setattr(input_methods, "PATH_POINTS", 4)
        patch.setattr(input_methods, "WINDOWS_ACROSS", 2)
        patch.setattr(block, "CURVE_STEPS", 2)
        yield


def settings(data: Path | None, out: Path, **changes: object) -> ExplainConfig:
    chosen: dict[str, object] = {
        "images": NAMED, "methods": FAST, "workers": 0, "device": "cpu", "batch_size": 2,
    } | changes  # fmt: skip
    requests = chosen.pop("models", (PICO,))
    transforms = chosen.pop("transforms", ("fliplr",))
    return ExplainConfig(requests, transforms, None if data is None else str(data), out, **chosen)


@pytest.fixture(scope="module")
def explained_run(photos, few_steps, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    methods = ("grad-cam", "occlusion", "attention", "maximised-noise", "erf")
    boxes = out.with_name("boxes.csv")
    boxes.write_text("image,xmin,ymin,xmax,ymax\ncat/1.png,0,0,40,36\n")
    return explain(settings(photos, out, methods=methods, sanity=True, boxes=boxes))


def test_rows_say_what_was_explained(explained_run):
    rows = read_explained_rows(explained_run)
    record = read_explain_record(explained_run)
    assert record.status == "complete"
    assert record.images == list(NAMED)
    assert dict(rows.groupby("method").size()) == {
        "grad-cam": 12, "occlusion": 12, "maximised-noise": 12, "attention": 6, "erf": 3,
    }  # fmt: skip
    cam = rows[rows["method"] == "grad-cam"]
    for name, of_photo in cam.groupby("image_id"):
        clean, moved = (of_photo[of_photo["view"] == view] for view in ("clean", "transformed"))
        # The predicted class is that of the transformed photo, in both views.
        answer = moved["prediction"].iloc[0]
        predicted = of_photo[of_photo["target_kind"] == "predicted"]
        assert set(predicted["target_class"]) == {answer}
        assert set(of_photo["flipped"]) == {bool(clean["prediction"].iloc[0] != answer)}
        true = of_photo[of_photo["target_kind"] == "true"]
        assert set(true["target_label"]) == {str(name).split("/")[0]}
        assert set(true["target_class"]) == set(true["true_class"])
        assert clean["map_similarity"].isna().all()
        assert moved["map_similarity"].between(-1, 1).all()
        assert moved["map_moved"].all()
    assert cam["insertion_auc"].between(0, 1).all()
    boxed = cam["image_id"] == "cat/1.png"
    assert (cam.loc[boxed, "pointing_hit"] == True).all()  # noqa: E712  the box is the whole photo
    assert cam.loc[~boxed, "pointing_hit"].isna().all()
    assert cam["sanity_similarity"].between(-1, 1).all()
    learned = rows[rows["method"] == "maximised-noise"]
    assert learned["picture_probability"].between(0, 1).all()
    assert learned["insertion_auc"].isna().all()
    assert set(rows.loc[rows["method"] == "erf", "view"]) == {"clean"}


def test_curves_of_a_method_without_a_target_follow_the_answer(explained_run):
    rows = read_explained_rows(explained_run)
    rows = rows[rows["method"] == "attention"]
    assert (rows["prediction"] != 0).any()  # else class 0 would do
    classifier = load(PICO, "cls", offline=True)
    arrays = read_arrays(explained_run, rows["array_file"].iloc[0])
    photos = torch.from_numpy(arrays.photos[rows["photo_index"]]).permute(0, 3, 1, 2)
    maps = torch.from_numpy(arrays.maps[rows["array_index"]].astype(np.float32))
    curves = insertion_and_deletion(
        explained(classifier.network, "vmamba", mean=classifier.preprocessing.mean),
        classifier.normalised(photos),
        torch.tensor(rows["prediction"].to_numpy(dtype=np.int64)), maps, batch_size=6,
    )  # fmt: skip
    for name, curve in zip(("insertion_auc", "deletion_auc"), curves, strict=True):
        np.testing.assert_allclose(rows[name], curve_area(curve.double().numpy()), atol=1e-6)


def test_outputs_that_are_no_classes_are_neither_predicted_nor_explained(photos, tmp_path):
    request = vim_as_run(tmp_path / "as_run.pth")
    run = explain(settings(photos, tmp_path / "run", models=(request,), methods=("occlusion",)))
    rows = read_explained_rows(run)
    assert rows["prediction"].max() < 10
    assert set(rows["target_class"]) <= set(range(10))


def test_arrays_hold_maps_and_what_the_network_saw(explained_run):
    rows = read_explained_rows(explained_run)
    for _, row in rows[rows["method"] == "occlusion"].iterrows():
        arrays = read_arrays(explained_run, row["array_file"])
        assert arrays.image_ids[row["photo_index"]] == row["image_id"]
        assert arrays.views[row["photo_index"]] == row["view"]
        assert arrays.maps[row["array_index"]].shape == arrays.photos.shape[1:3] == (32, 32)
        assert arrays.maps.dtype == np.float32
    clean, moved = (
        arrays.photos[[i for i, view in enumerate(arrays.views) if view == name]]
        for name in ("clean", "transformed")
    )
    # Flipped left to right; of 35 columns the crop takes 32, which is one less on the left.
    flipped = clean[:, :, ::-1].astype(int)
    assert np.abs(flipped[:, :, 1:] - moved[:, :, :-1]).mean() < 1
    learned = rows[rows["method"] == "maximised-noise"]
    arrays = read_arrays(explained_run, learned["array_file"].iloc[0])
    assert arrays.pictures is not None
    assert len(arrays.pictures) == learned["target_class"].nunique()  # equal ones are made once


def numbers(run: Path) -> pd.DataFrame:
    rows = read_explained_rows(run).sort_values(KEYS).set_index(KEYS)
    return rows.drop(columns=["array_file"])


def maps(run: Path) -> np.ndarray:
    rows = read_explained_rows(run).sort_values(KEYS)
    return np.stack(
        [read_arrays(run, r["array_file"]).maps[r["array_index"]] for _, r in rows.iterrows()]
    ).astype(float)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 3, "workers": 2},
        pytest.param({"batch_size": 1}, marks=pytest.mark.slow),  # two seconds each
        pytest.param({"batch_size": 8}, marks=pytest.mark.slow),
    ],
    ids=lambda changes: "-".join(f"{k}{v}" for k, v in changes.items()),
)
def test_batch_size_and_workers_change_nothing(photos, tmp_path, explained_run, changes):
    run = explain(settings(photos, tmp_path / "run", sanity=True, **changes))
    reference = numbers(explained_run).loc[list(FAST)].drop(columns="pointing_hit")
    same = numbers(run).drop(columns="pointing_hit").sort_index()
    pd.testing.assert_frame_equal(
        same, reference.sort_index(), rtol=1e-3, atol=1e-3, check_dtype=False
    )
    full = maps(explained_run)
    rows = read_explained_rows(explained_run).sort_values(KEYS)["method"].isin(FAST).to_numpy()
    # sums whose order differs
    assert np.allclose(maps(run), full[rows], rtol=1e-3, atol=1e-4 * np.abs(full[rows]).max())


def test_an_interrupted_run_goes_on_with_what_is_missing(photos, tmp_path, monkeypatch):
    wrote: list[Path] = []
    real = engine.write_block

    def failing(path: Path, *rest: object) -> None:
        if len(wrote) == 1:
            raise KeyboardInterrupt
        wrote.append(path)
        real(path, *rest)

    monkeypatch.setattr(engine, "write_block", failing)
    asked = settings(photos, tmp_path / "run", images=NAMED[:1])
    with pytest.raises(KeyboardInterrupt):
        explain(asked)
    run = tmp_path / "run"
    assert read_explain_record(run).status == "partial"
    assert len(read_explained_rows(run)) == 4
    EXPLANATION.update(run, device="another")
    before = wrote[0].read_bytes()
    monkeypatch.setattr(engine, "write_block", lambda *a: (wrote.append(a[0]), real(*a)))
    heard = Recorder()
    explain(asked, heard)
    assert len(wrote) == 2
    assert wrote[0].read_bytes() == before
    assert read_explain_record(run).status == "complete"
    assert (heard.total, heard.done) == (8, 8)
    full = explain(settings(photos, tmp_path / "whole", images=NAMED[:1]))
    device = read_explain_record(full).device
    assert read_explain_record(run).device == f"another and {device}"
    EXPLANATION.update(run, device="another")
    explain(asked)  # computes nothing
    assert read_explain_record(run).device == "another"
    for path in sorted(run.rglob("block-*")):
        other = full / path.relative_to(run)
        assert path.read_bytes() == other.read_bytes()


def test_more_methods_join_a_run_and_other_settings_are_refused(photos, tmp_path):
    out = tmp_path / "run"
    pico = {"models": (ModelRequest("vmamba-pico"),)}  # an untrained one depends on the seed
    explain(settings(photos, out, methods=("grad-cam",), **pico))
    explain(settings(photos, out, methods=("erf",), **pico))
    assert read_explain_record(out).methods == ["grad-cam", "erf"]
    for changes, message in (
        ({"layer": "layers.0"}, "`--layer`"),
        ({"transforms": ("flipud",)}, "`--transform` was identity, fliplr"),
        ({"images": NAMED[:1]}, "contains explanations of other photos"),
    ):
        with pytest.raises(UsageError, match=message):
            explain(settings(photos, out, methods=("grad-cam",), **pico, **changes))
    EXPLANATION.update(out, schema_version=1)
    with pytest.raises(UsageError, match="earlier version"):
        explain(settings(photos, out, methods=("erf",), **pico))
    explain(settings(photos, out, methods=("grad-cam",), images=NAMED[:1], fresh=True, **pico))
    assert read_explain_record(out).images == ["cat/1.png"]


# Which photos.


def probabilities(run: Path, cell: Cell) -> pd.Series:
    rows = Store(run).rows("vmamba-pico", cell, "cls")
    return rows.set_index("image_id")["target_probability"]


def test_photos_of_a_run_are_limited_as_in_an_evaluation(photos, tmp_path):
    pico = {"models": (ModelRequest("vmamba-pico"),), "seed": 3}
    run = evaluate(config(photos, tmp_path / "eval", "fliplr", **pico))
    part = evaluate(config(photos, tmp_path / "part", "identity", limit=5, **pico))
    asked = settings(
        None, tmp_path / "out", models=(), source=run, images=(), limit=5, methods=("attention",)
    )
    ids = Store(part).rows("vmamba-pico", CLEAN, "cls")["image_id"].tolist()
    assert read_explain_record(explain(asked)).images == sorted(ids)
    for change, message in (
        ({"seed": 5}, r"`--seed 5` cannot be used with this run\.\n.* with `--seed 3`"),
        ({"apply_at": "crop"}, r"`--apply-at crop` cannot be used with this run\."),
    ):
        with pytest.raises(UsageError, match=message):
            explain(replace(asked, **change))


def test_the_worst_photos_of_a_finished_run(photos, tmp_path):
    run = evaluate(config(photos, tmp_path / "eval", "fliplr", "invert", models=(PICO,)))
    fall = probabilities(run, CLEAN) - probabilities(run, Cell("invert", 0))
    expected = fall.sort_values(ascending=False).index[:3].tolist()
    asked = settings(
        None, tmp_path / "out", models=(), source=run, images=(), worst=3,
        transforms=("invert",), methods=("grad-cam",),
    )  # fmt: skip
    explained = explain(asked)
    assert read_explain_record(explained).images == expected
    assert read_explain_record(explained).choice.source == str(run)
    assert not (explained / "evaluation").exists()
    rows = read_explained_rows(explained)
    stored = Store(run).rows("vmamba-pico", Cell("invert", 0), "cls").set_index("image_id")
    mine = rows[(rows["view"] == "transformed") & (rows["target_kind"] == "true")]
    for _, row in mine.iterrows():
        assert row["prediction"] == stored.loc[row["image_id"], "prediction"]
        assert row["probability"] == pytest.approx(
            stored.loc[row["image_id"], "target_probability"], abs=1e-5
        )
    # Evaluating finds the same photos.
    again = explain(
        settings(photos, tmp_path / "own", images=(), worst=3, transforms=("invert",),
                 methods=("grad-cam",))
    )  # fmt: skip
    assert read_explain_record(again).images == expected
    assert (again / "evaluation" / "run.json").is_file()
    # Of several transforms the one with the fewest right answers is taken.
    heard = Recorder()
    explain(replace(asked, transforms=(), out=tmp_path / "auto"), heard)
    assert any(line.startswith("`--transform` is not set; using `") for line in heard.lines)
    fewer = replace(asked, worst=None, limit=2)
    assert explain_forecast(replace(fewer, out=tmp_path / "new"), Recorder()).photos == 2
    with pytest.raises(UsageError, match="contains explanations of other photos"):
        explain_forecast(fewer, Recorder())
    for changes, message in (
        ({"split": "test"}, "`--split` cannot be used with a finished run"),
        ({"foreground": "1"}, "`--foreground 1` cannot be used with classifiers"),
        ({"precision": "bf16"}, r"(?s)`--precision bf16` has no effect.*predictions of RUN"),
        ({"severities": (3,)}, r"(?s)has no transform at severity 3.*no transform at a fixed"),
    ):
        with pytest.raises(UsageError, match=message):
            explain_forecast(replace(asked, **changes), Recorder())
    with pytest.raises(UsageError, match=r"No transform of the run is called `flipud`"):
        explain(replace(asked, transforms=("flipud",), out=tmp_path / "none"))
    shutil.move(photos, tmp_path / "moved")
    try:
        with pytest.raises(MachineError, match=r"(?s)images of .* cannot be opened.*`--data DIR`"):
            explain(replace(asked, out=tmp_path / "gone"))
        explain(replace(asked, out=tmp_path / "found", data=str(tmp_path / "moved")))
    finally:
        shutil.move(tmp_path / "moved", photos)


def test_the_run_of_a_training_is_complete_and_keeps_its_name(photos, tmp_path):
    trained, _ = recorded_training(tiny_classifier(photos, tmp_path / "mine", epochs=1))
    asked = settings(
        None, tmp_path / "out", models=(), source=trained, images=(), worst=1, transforms=(),
        methods=("grad-cam",),
    )  # fmt: skip
    run = explain(asked)
    record = read_explain_record(run)
    assert record.status == "complete"
    assert record.model.name == "mine"
    assert set(read_explained_rows(run)["model"]) == {"mine"}
    with pytest.raises(UsageError, match=r"has no transform to explain(?s:.*)`--model"):
        explain(replace(asked, transforms=("fliplr",), out=tmp_path / "other"))


def test_a_class_a_subset_and_what_does_not_exist(photos, tmp_path):
    def forecast(**changes: object):
        return explain_forecast(settings(photos, tmp_path / "x", **changes), Recorder())

    assert forecast(images=(), class_name="Cat").photos == 3
    assert forecast(images=(), class_name="cat", limit=2).photos == 2
    assert forecast(images=(), limit=5).photos == 5
    plan = forecast(images=())
    assert (plan.photos, plan.chosen_by, plan.predictions) == (8, "the worst", 24)
    assert json.loads(plan.as_json())["rows"] == 8 * 4 * 2
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,xmin,ymin,xmax,ymax\nowl/1.png,0,0,4,4\n")
    for changes, message in (
        ({"images": ("cat/1.pgn",)}, r"No image is called `cat/1.pgn`(?s:.*)`cat/1.png`"),
        ({"images": ("elsewhere/cat/1.png",)}, r"(?s)Did you mean `"),
        ({"images": (), "class_name": "catt"}, r"No class is called `catt`(?s:.*)`cat`"),
        ({"images": (), "class_name": "frog"}, r"No image contains `frog`"),
        ({"worst": 2}, "`--image` cannot be used with `--worst`"),
        ({"models": ()}, "needs a model or a finished run"),
        ({"models": (PICO, PICO)}, "accepts only one model"),
        ({"methods": ("maximised-nose",)}, r"(?s)No method is called.*`maximised-noise`"),
        ({"precision": "bf16"}, r"(?s)`--precision bf16` has no effect.*without predictions"),
        ({"transforms": (), "severities": (3,)}, "`--severity` cannot be used without"),
        ({"transforms": (), "apply_at": "crop"}, "`--apply-at` cannot be used without"),
        ({"methods": ("occlusion",), "layer": "layers.0"}, r"(?s)`--layer layers.0`.*`grad-cam`"),
        ({"layer": "layer.x"}, "No layer is called `layer.x`"),
        ({"boxes": boxes}, "has no box of these images"),
    ):
        with pytest.raises(UsageError, match=message):
            forecast(**changes)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"untrained": True}, "`untrained` cannot be used with a finished run"),
        ({"model_args": {"dim": 8}}, "`model_args` cannot be used with a finished run"),
        ({"preprocessing": {"crop": 24}}, "`preprocessing` cannot be used with a finished run"),
        ({"per_class": 1}, "`--per-class` cannot be used with"),
        ({"fail_under": "clean=90"}, "There is no argument `fail_under`"),
        ({"mask_class": "cat"}, "There is no argument `mask_class`"),
    ],
)
def test_the_function_refuses_what_has_no_effect(tmp_path, arguments, message):
    build_run(tmp_path / "run", RunPlan(models=(model("vmamba-b"),), images=4))
    with pytest.raises(UsageError, match=message):
        robustcli.explain(run=tmp_path / "run", out=tmp_path / "out", **arguments)


def test_a_dry_run_refuses_other_settings_in_an_existing_folder(explained_run, photos):
    def forecast(**changes: object) -> Recorder:
        heard = Recorder()
        boxes = explained_run.with_name("boxes.csv")
        asked = {"sanity": True, "boxes": boxes, "methods": ("grad-cam",)} | changes
        explain_forecast(settings(photos, explained_run, **asked), heard)
        return heard

    before = (explained_run / "run.json").read_bytes()
    forecast()
    for changes, message in (
        ({"sanity": False}, "`--sanity` was True, now it is False"),
        ({"transforms": ("flipud",)}, "`--transform` was"),
        ({"images": NAMED[:2]}, "explanations of other photos"),
    ):
        with pytest.raises(UsageError, match=message):
            forecast(**changes)
    forecast(sanity=False, fresh=True)
    assert any("not compared" in line for line in forecast(images=(), worst=3).lines)
    assert (explained_run / "run.json").read_bytes() == before


# Networks and photos that are difficult.


class Poisoned(nn.Module):
    """A small network whose gradients are NaN where a photo is bright; its answers are numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = (x.flatten(1).mean(1) > 1)[:, None, None, None]
        zero = torch.where(bright, (x - x).abs().sqrt(), torch.zeros_like(x))  # sqrt'(0) is inf
        return self.conv(x + 0 * zero).mean((2, 3))


def test_gradients_that_are_no_numbers_are_told_and_nothing_else_is_lost(tmp_path):
    data = make_photos(tmp_path / "photos", per_class=1)
    Image.new("RGB", (32, 32), "white").save(data / "cat" / "0.png")
    torch.manual_seed(0)
    with pytest.raises(RunError, match=r"(?s)`integrated-gradients` of `cat/0.png`.*not finite.*"
                       r"`--method occlusion`.*All other maps are kept"):  # fmt: skip
        robustcli.explain(
            Poisoned(), data, out=tmp_path / "run", images=["cat/0.png", "dog/0.png"],
            methods=["integrated-gradients", "occlusion"], workers=0, device="cpu",
            label_space="cifar10",
        )  # fmt: skip
    record = read_explain_record(tmp_path / "run")
    assert record.status == "partial"
    assert set(read_explained_rows(tmp_path / "run")["method"]) == {"occlusion"}


def test_a_method_that_fails_on_one_photo_loses_no_other_maps(photos, tmp_path, monkeypatch):
    real, calls = input_methods.occlusion, []

    def failing(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) > 1:
            raise UsageError("`--method occlusion` cannot be used with this network.")
        return real(*args, **options)

    monkeypatch.setattr(input_methods, "occlusion", failing)
    asked = settings(photos, tmp_path / "run", batch_size=8, methods=("occlusion", "grad-cam"))
    with pytest.raises(RunError, match=r"(?s)occlusion.*All other maps are kept"):
        explain(replace(asked, transforms=("fliplr", "invert")))
    assert read_explain_record(tmp_path / "run").status == "partial"
    assert set(read_explained_rows(tmp_path / "run")["method"]) >= {"grad-cam"}


def test_a_photo_of_one_pixel_and_a_network_in_memory(tmp_path):
    data = make_photos(tmp_path / "photos", per_class=1)
    Image.new("RGB", (1, 1), "red").save(data / "cat" / "0.png")
    network = small_vmamba(num_classes=10).train()
    asked = [p.requires_grad for p in network.parameters()]
    run = robustcli.explain(
        network, data, "perspective", out=tmp_path / "run", images=["cat/0.png"],
        methods=["occlusion", "grad-cam"], workers=0, device="cpu", label_space="cifar10",
        layer="layers.0.blocks", preprocessing={"resize": 32, "crop": 32},
    )  # fmt: skip
    assert network.training
    assert [p.requires_grad for p in network.parameters()] == asked
    rows = run.rows()
    assert len(rows) == 8
    arrays = run.arrays(rows.iloc[0])
    assert arrays.relevance.shape == arrays.photo.shape[:2] == (32, 32)
    assert run.record.layer == "layers.0.blocks"
    assert run.report().is_file()


def test_a_network_without_gradients_says_which_methods_fit(photos, tmp_path):
    class Frozen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.detach().flatten(1)[:, :10]

    asked = {"workers": 0, "device": "cpu", "label_space": "cifar10", "images": NAMED[:1]}
    with pytest.raises(UsageError, match=r"(?s)`--method grad-cam` cannot be used.*`occlusion`"):
        robustcli.explain(Frozen(), photos, out=tmp_path / "no", methods="grad-cam", **asked)
    run = robustcli.explain(Frozen(), photos, out=tmp_path / "yes", **asked)
    assert set(run.rows()["method"]) == {"occlusion"}


def test_segmenters_are_explained_inside_their_masks(tmp_path):
    asked = settings(
        None, tmp_path / "run", models=(ModelRequest("ulvm_v6", untrained=True),),
        images=(), limit=1, methods=("grad-cam",),
    )  # fmt: skip
    with pytest.raises(UsageError, match="explains classes, not masks"):
        explain(replace(asked, methods=("maximised-photo",)))
    rows = read_explained_rows(explain(asked))
    assert len(rows) == 4
    assert set(rows["target_kind"]) == {"true", "predicted"}
    assert rows["target_label"].str.contains("mask").all()
    assert rows["target_class"].isna().all()
    assert rows["probability"].between(0, 1).all()
    assert rows.loc[rows["target_kind"] == "true", "pointing_hit"].notna().any()


class Bright(nn.Module):
    """Foreground where the image is bright: the mask moves along with the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        nn.init.constant_(self.conv.weight, 10.0)
        nn.init.constant_(self.conv.bias, -20.0)

    def forward(self, x):
        return self.conv(x)


def test_a_mask_that_moves_with_its_object_is_the_same_answer(tmp_path):
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    image[8:24, 4:20], mask[8:24, 4:20] = 255, 255
    for folder, pixels in (("images", image), ("masks", mask)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    run = explain(
        settings(
            tmp_path, tmp_path / "run", models=(ModelRequest("bright", module=Bright()),),
            images=(), limit=1, methods=("occlusion",), transforms=("fliplr", "invert"),
        )
    )  # fmt: skip
    flipped = read_explained_rows(run).groupby("transform")["flipped"].first()
    assert not flipped["fliplr"]  # at the other side, as its object
    assert flipped["invert"]  # the background is bright now


class FaintRed(nn.Module):
    """Logits far below the smallest number of float16; class 1 never has evidence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red = self.conv(x).sigmoid().mean((2, 3)) * 1e-9
        return torch.cat((red, -red, *[0 * red] * 8), 1)


def test_small_maps_are_stored_exactly_and_maps_of_zeros_have_no_scores(tmp_path):
    data = make_photos(tmp_path / "photos", per_class=1)
    heard, pixels = Recorder(), {"resize": 32, "crop": 32}
    request = ModelRequest(
        "faint", module=FaintRed(), label_space="cifar10", preprocessing=pixels
    )  # fmt: skip
    run = explain(
        settings(
            data, tmp_path / "run", images=(), methods=("grad-cam",), transforms=("identity",),
            models=(request,),
        ),
        heard,
    )  # fmt: skip
    told = " ".join(heard.lines)
    assert "explaining all 4 photos" in told
    assert "`--transform` is not set" not in told
    assert "`--layer` is not set; using the output of `conv`" in told
    rows = read_explained_rows(run)
    stored = maps(run)
    zero = ~stored.any((1, 2))
    assert zero.any()
    assert (stored[~zero].max((1, 2)) < 1e-7).all()
    ordered = rows.sort_values(KEYS)
    assert (ordered["insertion_auc"].isna() == zero).all()
    assert (ordered["deletion_auc"].isna() == zero).all()


# The command.


def test_the_command_prints_numbers_or_a_document(photos, tmp_path):
    typed = ["explain", "--model", "vmamba-pico", "--untrained", "--data", str(photos),
             "--transform", "fliplr", "--image", "cat/1.png", "--method", "grad-cam",
             "--workers", "0", "--out", str(tmp_path / "run")]  # fmt: skip
    plan = CliRunner().invoke(main, [*typed, "--dry-run"])
    assert plan.exit_code == 0, plan.output
    assert "Photos:      1 (named)" in plan.output
    assert not (tmp_path / "run").exists()
    done = CliRunner().invoke(main, [*typed, "--json"])
    assert done.exit_code == 0, done.output
    records = json.loads(done.stdout)
    assert {record["method"] for record in records} == {"grad-cam"}
    assert (tmp_path / "run" / "report.html").is_file()
    assert list((tmp_path / "run" / "panels").glob("*.png"))
    wrong = CliRunner().invoke(main, ["explain", str(tmp_path / "run"), "--crop", "32"])
    assert wrong.exit_code == 2
    assert "`--crop` cannot be used with a finished run" in wrong.output
    again = CliRunner().invoke(main, ["explain", str(tmp_path / "run")])
    assert again.exit_code == 2  # an explanation is no evaluation
    assert "contains an explanation, not an evaluation" in again.output


def test_where_memory_runs_out_smaller_batches_explain_the_same(photos, tmp_path, monkeypatch):
    """On the device, and in the loader, whose photos then come in parts of a block."""
    few = {"images": NAMED[:2], "methods": ("grad-cam",)}
    alone = explain(settings(photos, tmp_path / "alone", batch_size=1, **few))
    compute, decode_all = ExplainedNetwork.logits, Source._decode_first

    def limited(self, pixels):
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(self, pixels)

    def limited_loader(self, images):
        if len(images) > 1:
            raise MemoryError
        return decode_all(self, images)

    monkeypatch.setattr(ExplainedNetwork, "logits", limited)
    monkeypatch.setattr(Source, "_decode_first", limited_loader)
    lines = Recorder()
    run = explain(settings(photos, tmp_path / "run", batch_size=4, **few), lines)
    pd.testing.assert_frame_equal(read_explained_rows(run), read_explained_rows(alone))
    told = [line for line in lines.lines if "memory" in line]
    assert "Out of memory on cpu: `vmamba-pico` continues with batches of 1." in told
    assert sum("loader process" in line for line in told) == 1
    assert len(told) == 2
    assert lines.done == lines.total
