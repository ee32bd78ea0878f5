"""From a name as users type it to a segmenter with weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.fetching import state_digest
from robustcli.adapters.load import load
from robustcli.adapters.networks import BUILDERS, create, create_model
from robustcli.adapters.segmenter import MaskPreprocessing, Otsu
from robustcli.core.errors import UsageError
from tests.adapters.files import assert_holds, random_state
from tests.adapters.runs import header, trained

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


@pytest.mark.parametrize(
    ("named", "really"),
    [("unet", "segformer"), ("resnet18_seg", "resnet50_seg"), ("ulvm_v5", "ulvm_v6"),
     ("segformer", "unet"), ("umambabot", "resnet18_seg")],
)  # fmt: skip
def test_a_file_of_another_network_says_which_it_is(
    tmp_path: Path, named: str, really: str
) -> None:
    save_file(create(really, {}).state_dict(), tmp_path / "w.safetensors")
    message = (
        rf"does not contain the weights of `{named}`(.|\n)*weights of `{really}`: use this name"
    )
    with pytest.raises(UsageError, match=message):
        load(ModelRequest(named, weights=tmp_path / "w.safetensors"), "seg")


def test_a_run_of_another_network_says_which_it_is(run: Path) -> None:
    with pytest.raises(UsageError, match="According to its header it contains weights of `unet`"):
        load(ModelRequest("ulvm", weights=run), "seg")


def test_another_number_of_classes_is_told(tmp_path: Path) -> None:
    """Of a transposed convolution too, whose weight begins with the inputs."""
    save_file(create("resnet18_seg", {"num_classes": 3}).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"with 3 classes: set `num_classes=3`"):
        load(ModelRequest("resnet18_seg", weights=tmp_path / "w.safetensors"), "seg")


@pytest.mark.parametrize("name", ["unet", "smp:Unet/resnet18"])
def test_nothing_is_predicted_without_weights(name: str) -> None:
    if name.startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch")
    message = (
        rf"`{name}` has no published weights(.|\n)*`robust train seg --model {name}`(.|\n)*--un"
    )
    with pytest.raises(UsageError, match=message):
        load(ModelRequest(name), "seg")


def test_an_untrained_network_is_decided_by_the_seed_alone() -> None:
    request = ModelRequest("ulvm_v2", untrained=True)
    first = load(request, "seg", seed=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = load(request, "seg", seed=1)
    assert again.facts.weights_sha256 == first.facts.weights_sha256
    assert torch.equal(torch.get_rng_state(), state)
    assert load(request, "seg", seed=2).facts.weights_sha256 != first.facts.weights_sha256
    assert (first.facts.untrained, first.facts.pretraining) == (True, "none (untrained)")
    assert first.facts.weights == "none: initialised with seed 1"


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


def test_a_classifier_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"`vmamba-pico` is a classifier(.|\n)*lists the segmenters"
    ):
        load(ModelRequest("vmamba-pico"), "seg")


def test_of_several_classes_a_network_with_a_sigmoid_gives_logits() -> None:
    request = ModelRequest("ulvm", arguments={"num_classes": 3}, untrained=True)
    assert not load(request, "seg").answers_probabilities
    assert load(replace(request, arguments={}), "seg").answers_probabilities


def test_weights_in_half_precision_become_float32(tmp_path: Path) -> None:
    state = {k: t.half() for k, t in random_state(create("ulvm", {})).items()}
    save_file(state, tmp_path / "w.safetensors")
    model = load(ModelRequest("ulvm", weights=tmp_path / "w.safetensors"), "seg")
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}


def test_the_baseline_has_nothing_to_load_and_nothing_to_set() -> None:
    otsu = BUILDERS["otsu"]
    assert otsu.with_weights is None
    network = otsu.create("otsu", {})
    assert isinstance(network, Otsu)
    assert not network.training
    assert list(network.parameters()) == []
    with pytest.raises(UsageError, match=r"`otsu` has no option `bins=\.\.\.`"):
        otsu.create("otsu", {"bins": 3})
