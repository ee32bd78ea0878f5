"""From a name as users type it to a classifier or segmenter with weights."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from robustcli.adapters.catalogue import CATALOGUE, IN1K, ModelRequest
from robustcli.adapters.classifier import Classifier
from robustcli.adapters.fetching import state_digest
from robustcli.adapters.load import load, resolve
from robustcli.adapters.networks import BUILDERS, OFFICIAL, create, create_model
from robustcli.adapters.preprocessing import CIFAR10, Preprocessing
from robustcli.adapters.segmenter import MaskPreprocessing, Otsu
from robustcli.adapters.training_run import ClassifierHeader, write_weights
from robustcli.core.errors import UsageError
from robustcli.models.vmamba import build
from robustcli.nnunet.files import write_results
from robustcli.nnunet.normalisation import NnUNetInference
from robustcli.nnunet.plans_json import make_plan
from tests.adapters.files import assert_holds, header, trained, vim_as_run


def test_every_entry_of_the_catalogue_has_a_builder_and_every_builder_is_used() -> None:
    assert {entry.builder for entry in CATALOGUE.values()} | {"smp"} == set(BUILDERS)


def test_preprocessing_is_that_of_the_official_evaluations() -> None:
    assert (OFFICIAL.resize, OFFICIAL.crop, OFFICIAL.interpolation) == (256, 224, "bicubic")
    assert (OFFICIAL.mean, OFFICIAL.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (CIFAR10.resize, CIFAR10.crop) == (32, 32)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("vim-s-plus", {"depth": 1, "dim": 16}), ("vmamba-t", {"depths": (1, 1), "dim": 16})],
)
def test_releases_get_the_official_preprocessing(name: str, arguments: dict[str, object]) -> None:
    model = load(ModelRequest(name, arguments=arguments, untrained=True), "cls")
    assert (model.preprocessing, model.facts.arguments) == (OFFICIAL, arguments)
    assert model.facts.family == model.facts.builder.split(":")[0] == name.split("-")[0]
    assert model.facts.scans
    if name.startswith("vim"):
        larger = ModelRequest(name, arguments={**arguments, "img_size": 384}, untrained=True)
        steps = load(larger, "cls").preprocessing
        assert (steps.resize, steps.crop) == (438, 384)


@pytest.mark.parametrize("name", ["vim", "vit", "resnet9", "cifar-resnet18"])
def test_a_network_for_cifar_takes_whole_photos_in_the_size_it_was_built_for(name: str) -> None:
    small = {
        "vim": {"depth": 1, "dim": 16}, "vit": {"depth": 1}, "resnet9": {"channels": [4, 4, 8, 8]},
        "cifar-resnet18": {"depths": [1, 1, 1, 1]},
    }[name]  # fmt: skip
    model = load(ModelRequest(name, arguments=small, untrained=True), "cls")
    assert model.preprocessing == CIFAR10
    assert (model.facts.label_space, model.facts.scans) == ("cifar10", name == "vim")
    if name.startswith("vi"):
        larger = load(ModelRequest(name, arguments={**small, "img_size": 64}, untrained=True))
        assert (larger.preprocessing.resize, larger.preprocessing.crop) == (64, 64)


def test_resnet18_is_timms_but_in_training() -> None:
    plain, prefixed = resolve("resnet18"), resolve("timm:resnet18")
    assert (plain.builder, plain.variant, plain.label_space) == ("timm", "resnet18", "imagenet-1k")
    assert prefixed == plain
    assert resolve("timm:resnet18.a1_in1k").name == "resnet18.a1_in1k"
    assert resolve("CIFAR_ResNet18").builder == "cifar"


SMALL_VIM = {"depth": 1, "dim": 16}


def test_a_vim_as_its_paper_ran_it_is_evaluated_over_the_classes_it_has(tmp_path: Path) -> None:
    """Its authors left 1,000 outputs on ten classes; the others were never right.

    It is normalised as in its training.
    """
    request = vim_as_run(tmp_path / "as_run.pth")
    model = load(request, "cls")
    views = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    logits = model.logits(views)
    assert logits.shape == (3, 10)
    with torch.no_grad():
        assert torch.equal(logits, model.network(model.normalised(views))[:, :10])
    predictions = model.predict(views, torch.tensor([0, 1, 2]))
    assert predictions.top5.max() < 10
    assert (model.facts.label_space, model.facts.arguments["num_classes"]) == ("cifar10", 1000)
    assert model.facts.parameters == sum(p.numel() for p in model.network.parameters())
    assert any("1,000 outputs. Only the first 10" in note for note in model.notes)
    assert model.preprocessing.mean == (0.5071, 0.4867, 0.4408)
    assert model.preprocessing.std == (0.2675, 0.2565, 0.2761)
    assert any("standard deviation of CIFAR-100" in note for note in model.notes)
    typed = load(replace(request, preprocessing={"mean": (0.5, 0.5, 0.5)}), "cls").preprocessing
    assert (typed.mean, typed.std) == ((0.5, 0.5, 0.5), (0.2675, 0.2565, 0.2761))


def test_a_checkpoint_of_nnunet_gets_the_preprocessing_of_its_plan(tmp_path: Path) -> None:
    plan = make_plan((32, 32), ["R", "G", "B"], images=10, features=(8, 32))
    network = create_model("umamba", in_channels=3, num_classes=2, **plan.options)
    file = write_results(tmp_path, network, plan=plan, epochs=1) / "fold_all/checkpoint_final.pth"
    model = load(ModelRequest("umamba", file), "seg")
    assert model.preprocessing.nnunet == NnUNetInference(plan.channels, (0, 1))
    assert model.preprocessing.window == 32
    assert any("is a checkpoint of nnU-Net" in note for note in model.notes)
    content = torch.load(file, weights_only=True)
    swin = create_model("swin-umamba-pico").state_dict()
    torch.save({**content, "network_weights": swin}, tmp_path / "swin.pth")  # without plans.json
    model = load(ModelRequest("swin-umamba-pico", tmp_path / "swin.pth"), "seg")
    assert model.preprocessing.nnunet == NnUNetInference(plan.channels, (0, 1))


@pytest.mark.parametrize(
    ("name", "options"), [("vmunet", {"dim": 16}), ("unet", {}), ("swin-umamba-pico", {})]
)
def test_a_segmenter_has_the_classes_of_the_head_in_its_file(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    source = create_model(name, num_classes=5, **options)
    torch.save(source.state_dict(), tmp_path / "best.pth")
    model = load(ModelRequest(name, tmp_path / "best.pth", arguments=options), "seg")
    assert_holds(model.network, source.state_dict())
    assert model.for_classes(["a", "b", "c", "d"]).classes == ("a", "b", "c", "d")
    other = ModelRequest(name, tmp_path / "best.pth", {**options, "num_classes": 3})
    with pytest.raises(UsageError, match="with their own `num_classes=5`"):
        load(other, "seg")


@pytest.mark.parametrize(
    ("name", "authors"),
    [("vmunet", "from 0 to 255"), ("unet", "blue, green, red, and .* logit 0.5"),
     ("ulvm", r"passes blue, green, red\."), ("umamba", "")],
)  # fmt: skip
def test_weights_that_do_not_define_their_preprocessing_are_announced(
    tmp_path: Path, name: str, authors: str
) -> None:
    small = {"dim": 16} if name == "vmunet" else {}
    torch.save(create_model(name, **small).state_dict(), tmp_path / "best.pth")
    model = load(ModelRequest(name, tmp_path / "best.pth", arguments=small), "seg")
    (note,) = model.notes
    assert re.search(rf"does not define its preprocessing.*0\.5\. .*{authors}", note)


def test_other_numbers_of_outputs_must_be_named(tmp_path: Path) -> None:
    network = create_model("vim", num_classes=100, **SMALL_VIM)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"has 100 classes; `cifar10` has 10"):
        load(ModelRequest("vim", tmp_path / "w.pth", arguments=SMALL_VIM), "cls")


def test_weights_trained_here_may_have_more_outputs_than_classes(tmp_path: Path) -> None:
    network = create_model("vim", num_classes=12, **SMALL_VIM)
    header = ClassifierHeader(
        model="vim", arguments={**SMALL_VIM, "num_classes": 12}, window=32, trained_on="0" * 64,
        images_sha256="0" * 64, label_space="three", classes=("a", "b", "c"),
        class_names=("a", "b", "c"), preprocessing=asdict(CIFAR10),
    )  # fmt: skip
    write_weights(tmp_path / "w.safetensors", network.state_dict(), header)
    model = load(ModelRequest("vim", tmp_path / "w.safetensors"), "cls")
    assert model.logits(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 3)
    assert any("12 outputs. Only the first 3" in note for note in model.notes)


TIMM = "test_resnet.r160_in1k"  # timm's own smallest, 1000 classes
UNTRAINED = ModelRequest("vmamba-pico", untrained=True)


@pytest.fixture
def pico_file(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    save_file(build("vmamba-pico").state_dict(), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def classes_file(folder: Path, count: int) -> str:
    path = folder / f"classes{count}.txt"
    path.write_text("".join(f"class {number}\n" for number in range(count)))
    return str(path)


def logits(model: Classifier) -> torch.Tensor:
    side = model.preprocessing.crop
    return model.logits(torch.arange(3 * side * side, dtype=torch.uint8).view(1, 3, side, side))


def test_a_name_in_any_spelling() -> None:
    for typed in ("vmamba-b", "VMamba_B", "VMAMBA-B", " vmamba_b "):
        assert resolve(typed) is CATALOGUE["vmamba-b"]


def test_any_timm_name() -> None:
    entry = resolve("resnet50.a1_in1k")
    assert (entry.name, entry.variant, entry.builder) == ("resnet50.a1_in1k",) * 2 + ("timm",)
    assert (entry.pretraining, entry.label_space) == (IN1K, "imagenet-1k")
    assert entry.source == "https://huggingface.co/timm/resnet50.a1_in1k"


@pytest.mark.parametrize("file", ["nets.py", "./nets.py"])
def test_a_python_file_without_the_name_of_its_network_is_told_so(file: str) -> None:
    with pytest.raises(UsageError, match=rf"Python file(.|\n)*`--model {file}:build`"):
        resolve(file)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("vmamba-pcio", "vmamba-pico"),
        ("vmanba-t-v0", "vmamba-t-v0"),
        ("swin-bb", "swin-b"),
        ("resnet5O", "resnet50"),  # from timm
        ("mobilnetv2_100.ra_in1k", "mobilenetv2_100"),
    ],
)
def test_a_typo_gets_the_nearest_names_of_ours_and_of_timms(typed: str, meant: str) -> None:
    message = rf"No model is called `{typed}`\.\nDid you mean .*`{meant}`.*\?\n`robust list models`"
    with pytest.raises(UsageError, match=message):
        resolve(typed)
    with pytest.raises(UsageError, match=r"No model is called `§§§`\.\n`robust list models` lists"):
        resolve("§§§")


def test_facts_of_an_untrained_model() -> None:
    model = load(UNTRAINED, "cls", seed=3)
    facts = model.facts
    assert (facts.name, facts.family, facts.builder) == (
        "vmamba-pico", "vmamba", "vmamba:vmamba-pico"
    )  # fmt: skip
    assert facts.parameters == 556_938
    assert facts.weights_sha256 == state_digest(model.network.state_dict())
    assert (facts.label_space, model.preprocessing) == ("cifar10", CIFAR10)
    assert facts.scans
    assert not model.network.training


@pytest.mark.parametrize("name", ["vmamba-pico", TIMM, "ulvm_v2"])
def test_an_untrained_network_is_decided_by_the_seed_alone(
    name: str, attempts: list[object]
) -> None:
    request = ModelRequest(name, untrained=True)
    first = load(request, seed=1, offline=True).facts
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert load(request, seed=1).facts.weights_sha256 == first.weights_sha256
    assert torch.equal(torch.get_rng_state(), state)
    assert load(request, seed=2).facts.weights_sha256 != first.weights_sha256
    assert (first.untrained, first.pretraining) == (True, "none (untrained)")
    assert first.weights == "none: initialised with seed 1"
    assert first.scans == (name != TIMM)
    assert attempts == []


def test_weights_from_a_file(pico_file: Path) -> None:
    model = load(ModelRequest("VMAMBA_PICO", weights=pico_file), "cls")
    torch.manual_seed(5)
    same = Classifier(build("vmamba-pico").eval(), CIFAR10, model.facts)
    torch.testing.assert_close(logits(model), logits(same), rtol=0, atol=0)
    assert model.facts.weights == str(pico_file)
    assert model.facts.pretraining == "unknown (weights from a file)"
    assert not model.facts.untrained


def test_missing_official_weights(home: Path) -> None:
    message = (
        r"The weights of `vmamba-t` are not on this machine\.(.|\n)*Download "
        r"https://github\.com/MzeroMiko"
    )
    with pytest.raises(UsageError, match=message):
        load(ModelRequest("vmamba-t"), "cls", offline=True)
    with pytest.raises(UsageError, match="could not be downloaded"):
        load(ModelRequest("swin-t"), "cls", offline=True)


def test_official_preprocessing_and_what_a_user_changes_of_it() -> None:
    request = ModelRequest("vmamba-pico", preprocessing={"crop": 28, "mean": (0.5, 0.5, 0.5)},
                           untrained=True)  # fmt: skip
    expected = Preprocessing(32, 28, "bilinear", (0.5, 0.5, 0.5), CIFAR10.std)
    assert load(request, "cls").preprocessing == expected
    bad = ModelRequest("vmamba-pico", preprocessing={"std": (0, 1, 1)}, untrained=True)
    with pytest.raises(UsageError, match="must be above zero in every channel"):
        load(bad, "cls")


def test_timm_preprocessing_is_the_models_own() -> None:
    preprocessing = load(ModelRequest(TIMM, untrained=True), "cls").preprocessing
    assert (preprocessing.resize, preprocessing.crop) == (168, 160)
    assert preprocessing.interpolation == "bilinear"


def test_classes_that_are_not_the_label_space(tmp_path: Path) -> None:
    request = ModelRequest("vmamba-pico", arguments={"num_classes": 7}, untrained=True)
    message = r"`vmamba-pico` has 7 classes; `cifar10` has 10\.\nSpecify the 7 .*FILE`"
    with pytest.raises(UsageError, match=message):
        load(request, "cls")
    named = ModelRequest("vmamba-pico", arguments={"num_classes": 7}, untrained=True,
                         label_space=classes_file(tmp_path, 7))  # fmt: skip
    assert load(named, "cls").facts.label_space == "classes7"


def test_an_imagenet_network_has_neither_cifars_classes_nor_no_head() -> None:
    request = ModelRequest(TIMM, untrained=True, label_space="cifar10")
    with pytest.raises(UsageError, match="has 1000 classes; `cifar10` has 10"):
        load(request, "cls")
    request = ModelRequest(TIMM, arguments={"num_classes": 0}, untrained=True)
    with pytest.raises(UsageError, match="has 0 classes; `imagenet-1k` has 1000"):
        load(request, "cls")


def test_the_names_of_segmenters_and_of_training_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve("ULVM-v5") is CATALOGUE["ulvm_v5"]
    trained(tmp_path / "ulvm_v5", "ulvm_v2")
    monkeypatch.chdir(tmp_path)
    assert resolve("ulvm_v5") is CATALOGUE["ulvm_v5"]
    run = resolve("./ulvm_v5")
    assert (run.name, run.network, run.published) == ("ulvm_v5", "ulvm_v2", 0.8243)
    (tmp_path / "photos").mkdir()
    with pytest.raises(UsageError, match="No model is called `photos`"):
        resolve("photos")
    (tmp_path / "photos" / "run.json").touch()
    with pytest.raises(UsageError, match=r"`photos` is not a finished training run"):
        resolve("photos")


OWN: list[tuple[str, dict[str, object]]] = [
    (TIMM, {}), ("vmamba-pico", {}), ("vim", {"depth": 1, "dim": 16}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), OWN)
@pytest.mark.parametrize("message", [True, False])
def test_the_users_own_classes(
    tmp_path: Path, name: str, arguments: dict[str, object], message: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    seven = {**arguments, "num_classes": 7}
    space = classes_file(tmp_path, 7)
    fresh = ModelRequest(name, arguments=seven, untrained=True, label_space=space)
    source = load(fresh, "cls", seed=4)
    save_file(source.network.state_dict(), tmp_path / "w.safetensors")
    request = ModelRequest(name, tmp_path / "w.safetensors", seven if message else arguments,
                           label_space=space)  # fmt: skip
    caplog.clear()
    model = load(request, "cls")
    assert torch.equal(logits(model), logits(source))
    assert (model.facts.label_space, model.facts.arguments) == ("classes7", seven)
    refusal = f"its head has 7 classes, so that `{name}` has 7 too"
    assert (refusal in caplog.text) is not message
    for count in (3, 12):
        other = classes_file(tmp_path, count)
        with pytest.raises(UsageError, match=rf"has 7 classes; `.*{count}.txt` has"):
            load(replace(request, label_space=other), "cls")
    with pytest.raises(UsageError, match=r"(?s)7.*5|5.*7"):
        load(replace(request, arguments={**arguments, "num_classes": 5}), "cls")


@pytest.mark.parametrize("before", ["hf-hub:timm/", "hf_hub:timm/", "timm/"])
def test_timms_own_spellings_are_the_same_model(before: str) -> None:
    assert resolve(f"{before}resnet50.a1_in1k") == resolve("resnet50.a1_in1k")
    untrained = load(ModelRequest(f"{before}{TIMM}", untrained=True), "cls")
    assert untrained.facts.name == TIMM


def test_another_model_of_the_hub_is_evaluated_and_not_trained() -> None:
    with pytest.raises(UsageError, match=r"can be evaluated, but not trained(.|\n)*robust eval"):
        resolve("hf-hub:somebody/resnet18")


REAL = Path(__file__).parents[3] / "shared/data/weights/ultralight_vmunet_DIP_epoch68.pth"
ARGUMENTS = {"features": [4, 8]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return trained(tmp_path / "train-unet-1a2b", "unet", **ARGUMENTS)


def test_a_run_is_a_model(run: Path) -> None:
    model = load(ModelRequest(str(run)), "seg")
    assert model.preprocessing == MaskPreprocessing(64, "bgr", 0.6224593)
    assert model.header == header("unet", arguments=ARGUMENTS)
    facts = model.facts
    assert (facts.name, facts.family, facts.builder) == ("train-unet-1a2b", "unet", "zoo:unet")
    assert facts.arguments == ARGUMENTS
    assert facts.weights == str(run / "weights.safetensors")
    assert facts.weights_sha256 == state_digest(model.network.state_dict())
    assert facts.pretraining == "trained here (protocol paper)"
    assert (facts.untrained, facts.label_space, facts.scans) == (False, "foreground", False)
    assert facts.parameters == sum(p.numel() for p in create("unet", ARGUMENTS).parameters())
    assert not model.network.training


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_name_with_the_run_as_weights(run: Path, kind: str) -> None:
    weights = run if kind == "folder" else run / "weights.safetensors"
    model = load(ModelRequest("UNet", weights=weights), "seg")
    assert model.facts.name == "unet"
    same = load(ModelRequest(str(run)), "seg")
    assert model.preprocessing == same.preprocessing
    assert_holds(model.network, dict(same.network.state_dict()))


def test_what_the_user_says_goes_before_the_header(run: Path) -> None:
    changes = {"threshold": 0.3, "channels": "rgb"}
    model = load(ModelRequest(str(run), preprocessing=changes), "seg")
    assert model.preprocessing == MaskPreprocessing(64, "rgb", 0.3)
    with pytest.raises(
        UsageError, match="matches none of the published networks: pass the options"
    ):
        load(ModelRequest(str(run), arguments={"features": [4, 16]}), "seg")


def test_a_name_goes_before_a_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run.rename(run.with_name("unet"))
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UsageError, match="`unet` has no published weights"):
        load(ModelRequest("unet"), "seg")
    assert load(ModelRequest("./unet"), "seg").facts.weights == "unet/weights.safetensors"


@pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/data")
def test_a_real_checkpoint() -> None:
    model = load(ModelRequest("ulvm", weights=REAL), "seg")
    assert model.preprocessing == MaskPreprocessing(256)
    assert (model.facts.parameters, model.header) == (49_457, None)
    assert model.facts.pretraining == "unknown (weights from a file)"
    assert model.facts.scans
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    (probabilities,) = model.probabilities([image])
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = create_model("ulvm", weights=REAL)(x)
    np.testing.assert_allclose(probabilities, expected[0, 0].numpy(), atol=1e-4)


@pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/data")
def test_a_real_checkpoint_of_another_variant_says_which_it_is() -> None:
    message = r"does not contain the weights of `ulvm_v5`(.|\n)*weights of `ulvm`: use this name"
    with pytest.raises(UsageError, match=message):
        load(ModelRequest("ulvm_v5", weights=REAL), "seg")


@pytest.mark.parametrize("name", ["unet", "smp:Unet/resnet18"])
def test_nothing_is_predicted_without_weights(name: str) -> None:
    if name.startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch")
    message = (
        rf"`{name}` has no published weights(.|\n)*`robust train seg --model {name}`(.|\n)*--un"
    )
    with pytest.raises(UsageError, match=message):
        load(ModelRequest(name), "seg")


def test_each_network_gets_its_own_window() -> None:
    arguments = {"patch_size": 64, "features": (4, 8, 16), "strides": (1, 2, 2)}
    request = ModelRequest("umamba-enc", arguments=arguments, untrained=True)
    assert load(request, "seg").preprocessing.window == 64
    assert load(ModelRequest("segformer", untrained=True), "seg").preprocessing.window == 224


def test_the_baseline_needs_nothing() -> None:
    model = load(ModelRequest("Otsu"), "seg")
    assert (model.facts.name, model.facts.parameters, model.preprocessing.window) == ("otsu", 0, 0)
    assert not model.facts.untrained
    assert model.facts.weights == "none needed"
    image = np.zeros((3, 200, 3), np.uint8)
    image[:, :5] = 99
    (prediction,) = model.predict([image])
    np.testing.assert_array_equal(prediction, image[..., 0] == 99)


def test_the_baseline_takes_no_weights(run: Path) -> None:
    with pytest.raises(UsageError, match=r"`otsu` has no weights(.|\n)*Omit `--weights`"):
        load(ModelRequest("otsu", weights=run), "seg")


def test_a_network_of_the_other_task_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"`vmamba-pico` is a classifier(.|\n)*lists the segmenters"
    ):
        load(ModelRequest("vmamba-pico"), "seg")
    for name in ("unet", "otsu"):
        message = rf"`{name}` is a segmenter(.|\n)*lists the classifiers"
        with pytest.raises(UsageError, match=message):
            load(ModelRequest(name, untrained=True), "cls")


def test_of_several_classes_a_network_with_a_sigmoid_gives_logits() -> None:
    request = ModelRequest("ulvm", arguments={"num_classes": 3}, untrained=True)
    assert not load(request, "seg").answers_probabilities
    assert load(replace(request, arguments={}), "seg").answers_probabilities


def test_the_baseline_has_nothing_to_load_and_nothing_to_set() -> None:
    otsu = BUILDERS["otsu"]
    assert otsu.with_weights is None
    network = otsu.create("otsu", {})
    assert isinstance(network, Otsu)
    assert not network.training
    assert list(network.parameters()) == []
    with pytest.raises(UsageError, match=r"`otsu` has no option `bins=\.\.\.`"):
        otsu.create("otsu", {"bins": 3})
