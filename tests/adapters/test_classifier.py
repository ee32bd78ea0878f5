"""What a classifier answers, against plain torch, and what a first pass of it says."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.classifier import Classifier
from robustcli.adapters.load import load
from robustcli.adapters.model import (
    ModelFacts,
    Precision,
    Trial,
    check_class_scores,
    check_finite,
    first_pass,
    made_up_image,
    norms_of_one_value,
    number_format,
)
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import RunError, UsageError

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
FACTS = ModelFacts("tiny", "tiny", "tiny", {}, 0, "none", "", "none", True, "cifar10", None)


class Tiny(nn.Module):
    """Pools and projects; remembers what it was given."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 16, classes)
        generator = torch.Generator().manual_seed(classes)
        nn.init.normal_(self.head.weight, std=3, generator=generator)
        nn.init.normal_(self.head.bias, generator=generator)
        self.given: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.given = x
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))
        return logits


def classifier(classes: int = 10, precision: Precision = "fp32") -> Classifier:
    preprocessing = Preprocessing(None, 8, mean=MEAN, std=STD)
    made = Classifier(Tiny(classes), preprocessing, replace(FACTS, name=f"tiny{classes}"))
    return made.to(torch.device("cpu"), precision)


def views(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


def by_hand(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = network(normalize(images.double() / 255, MEAN, STD).float())
    return out


@pytest.fixture
def high_precision() -> Iterator[None]:
    """The setting of a caller who allows TF32 for matrix products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.usefixtures("high_precision")
def test_fp32_is_not_rounded_to_tf32_on_nvidia_gpus(precision: Precision) -> None:
    """Torch's default for float32 convolutions."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    seen = []
    model = classifier(precision=precision)
    model.network.register_forward_hook(
        lambda *_: seen.append((cudnn.allow_tf32, matmul.allow_tf32))
    )
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (True, True)
    model.logits(views())
    assert seen == [(False, False)]
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (True, True)


_NEWER_PLACES = (
    *("cudnn.conv", "cudnn.rnn", "cuda.matmul", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"),
)


def _precision_of_float32() -> list[Any]:
    backends: Any = torch.backends
    old = [backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()]
    if not hasattr(backends.cuda.matmul, "fp32_precision"):  # torch before 2.9
        return old
    return old + [operator.attrgetter(name)(backends).fp32_precision for name in _NEWER_PLACES]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.usefixtures("high_precision")
def test_a_caller_has_its_own_precision_back(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    matmul: Any = torch.backends.cuda.matmul
    if precision == "highest" and hasattr(matmul, "fp32_precision"):
        matmul.fp32_precision = "none"  # torch's default
    before = _precision_of_float32()
    classifier().logits(views())
    assert _precision_of_float32() == before
    with suppress(RuntimeError), number_format(torch.device("cpu"), "fp32"):
        assert torch.get_float32_matmul_precision() == "highest"
        raise RuntimeError
    assert _precision_of_float32() == before


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="since torch 2.9"
)
@pytest.mark.parametrize("place", ["", "cuda.matmul", "cudnn.conv", "mkldnn.conv"])
def test_fp32_is_not_rounded_by_a_callers_newer_settings(place: str) -> None:
    backends: Any = torch.backends
    changed = operator.attrgetter(place)(backends) if place else backends
    places = {name: operator.attrgetter(name)(backends) for name in _NEWER_PLACES}
    before, changed.fp32_precision = changed.fp32_precision, "tf32"
    try:
        chosen = {name: each.fp32_precision for name, each in places.items()}
        assert "tf32" in chosen.values()
        with number_format(torch.device("cpu"), "fp32"):
            assert {each.fp32_precision for each in places.values()} == {"ieee"}
        assert {name: each.fp32_precision for name, each in places.items()} == chosen
    finally:
        changed.fp32_precision = before


def test_logits_are_those_of_the_normalised_images() -> None:
    model = classifier()
    output = model.logits(views())
    torch.testing.assert_close(output, by_hand(model.network, views()), rtol=1e-5, atol=1e-5)
    assert output.dtype == torch.float32
    assert not output.requires_grad


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_type_and_device_of_the_users_code_change_nothing(default: torch.dtype) -> None:
    model, images = classifier(), views()
    expected = model.logits(images)
    torch.set_default_dtype(default)
    torch.set_default_device("meta")
    try:
        model.try_out()
        output = model.logits(images)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(output, expected)


def test_the_network_sees_each_channel_with_its_own_mean_and_std() -> None:
    model = classifier()
    model.logits(torch.full((1, 3, 8, 8), 51, dtype=torch.uint8))
    seen = model.network.given
    expected = torch.tensor([(0.2 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(seen[0, :, 0, 0], expected)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_half_precision_runs_the_layers_in_it_and_returns_float32(
    precision: Precision, dtype: torch.dtype
) -> None:
    model, seen = classifier(precision=precision), []
    model.network.head.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    output = model.logits(views())
    assert seen == [dtype]
    assert output.dtype == torch.float32
    expected = by_hand(model.network, views())
    error = (output - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.02, "rounded, and not more than that"


def test_full_precision_is_exempt_from_an_autocast_around_it() -> None:
    model = classifier()
    with torch.autocast("cpu", torch.bfloat16):
        output = model.logits(views())
    torch.testing.assert_close(output, by_hand(model.network, views()), rtol=1e-5, atol=1e-5)


def test_predictions_against_numpy() -> None:
    model, targets = classifier(), torch.tensor([3, 1, 4, 1, 5, 9])
    answer = model.predict(views(), targets)
    logits = by_hand(model.network, views()).double().numpy()
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = powers / powers.sum(1, keepdims=True)
    np.testing.assert_array_equal(answer.top5, np.argsort(-logits, 1)[:, :5])
    np.testing.assert_allclose(answer.probability, probabilities.max(1), rtol=1e-4)
    rows = np.arange(6)
    np.testing.assert_allclose(answer.target_probability, probabilities[rows, targets], rtol=1e-4)
    assert answer.top5.dtype == np.int32
    assert answer.probability.dtype == answer.target_probability.dtype == np.float32


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_top5_of_fewer_classes_is_all_of_them(classes: int) -> None:
    prediction = classifier(classes).predict(views(), torch.zeros(6, dtype=torch.long))
    assert prediction.top5.shape == (6, classes)
    assert {tuple(sorted(row)) for row in prediction.top5.tolist()} == {tuple(range(classes))}


def test_a_batch_is_its_images_one_by_one() -> None:
    model, targets = classifier(), torch.arange(6)
    full = model.predict(views(), targets)
    for i in range(6):
        prediction = model.predict(views()[i : i + 1], targets[i : i + 1])
        np.testing.assert_array_equal(prediction.top5[0], full.top5[i])
        np.testing.assert_allclose(
            prediction.target_probability[0], full.target_probability[i], rtol=1e-4
        )


def test_to_gives_the_classifier_itself() -> None:
    model = classifier()
    assert model.to(torch.device("cpu"), "bf16") is model
    assert (model.device, model.precision) == (torch.device("cpu"), "bf16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_answers_are_those_of_the_cpu() -> None:
    expected = classifier().predict(views(), torch.arange(6))
    prediction = classifier().to(torch.device("cuda"), "fp32").predict(views(), torch.arange(6))
    np.testing.assert_array_equal(prediction.top5, expected.top5)
    np.testing.assert_allclose(prediction.probability, expected.probability, rtol=1e-4)


# The first pass.


FLAT, ONE = {"depths": (1, 1, 1, 1)}, {"depth": 1}


def request(name: str, **more: object) -> ModelRequest:
    arguments = more.pop("arguments", {})
    return ModelRequest(name, arguments=arguments, preprocessing=more, untrained=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "small", "crop", "words"),
    [
        ("swin-t", FLAT, 256, r"\(1, 3, 256, 256\).*made for 224 x 224(.|\n)*img_size=256`"),
        ("vit_tiny_patch16_224", ONE, 256, r"`--crop 224`, or build .* `--model-arg img_size=256`"),
        (
            "convnext-t",
            FLAT,
            20,
            r"Kernel size.*smallest supported size is 32 x 32.\nUse `--crop 224`",
        ),
        pytest.param(  # its random weights take seconds
            "inception_v3",
            {},
            64,
            r"smallest supported size is 75 x 75.\nUse `--crop 299`",
            marks=pytest.mark.slow,
        ),
        ("vim-t", ONE, 256, r"this Vim needs 224 x 224(.|\n)*`--crop`(.|\n)*img_size=256"),
    ],
)
def test_a_size_that_the_network_cannot_take(
    name: str, small: dict[str, object], crop: int, words: str
) -> None:
    classifier = load(request(name, crop=crop, resize=crop, arguments=small), "cls")
    with pytest.raises(UsageError, match=words):
        classifier.try_out()


@pytest.mark.parametrize(
    ("name", "small"), [("swin-t", FLAT), ("vit_tiny_patch16_224", ONE), ("vim-t", ONE)]
)
def test_the_advice_to_build_it_for_the_size_works(name: str, small: dict[str, object]) -> None:
    classifier = load(request(name, arguments={**small, "img_size": 256}), "cls")
    assert classifier.preprocessing.crop == 256
    classifier.try_out()


def test_a_greyscale_network_gets_greyscale_images() -> None:
    classifier = load(request("resnet18", arguments={"in_chans": 1}), "cls")
    preprocessing = classifier.preprocessing
    assert preprocessing.channels == 1
    assert preprocessing.mean == pytest.approx((0.449,))
    assert preprocessing.std == pytest.approx((0.226,))
    assert "greyscale" in classifier.notes[0]
    classifier.try_out()
    assert classifier.logits(made_up_image((1, 64, 64))).shape == (1, 1000)


@pytest.mark.parametrize("count", [2, 4, 0, True])
def test_other_numbers_of_channels_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match=rf"in_chans={count}` is not supported(.|\n)*`in_chans=1`"):
        load(request("resnet18", arguments={"in_chans": count}), "cls")


def test_a_network_that_answers_otherwise_is_refused() -> None:
    with pytest.raises(UsageError, match="is built without a classifier"):
        load(request("resnet18", arguments={"features_only": True}), "cls")
    with pytest.raises(UsageError, match="does not have the output of a classifier"):
        check_class_scores(torch.zeros(1, 5, 7, 7), 5, Trial("x", "timm:x"))


@pytest.mark.parametrize(
    ("precision", "words"),
    [("fp16", "--precision bf16` or `--precision fp32"), ("bf16", "--precision fp32"),
     ("fp32", "other weights")],
)  # fmt: skip
def test_answers_that_are_not_numbers(precision: str, words: str) -> None:
    tried = replace(Trial("x", "timm:x"), precision=precision)
    with pytest.raises(UsageError, match=words):
        check_finite(torch.tensor([1.0, float("nan")]), tried)
    check_finite(torch.tensor([1.0, float("inf")]), tried)


@pytest.mark.parametrize(
    ("precision", "words"),
    [("bf16", "range of `--precision bf16`.\nUse `--precision fp32`"), ("fp32", "other weights")],
)
def test_an_image_without_probabilities_is_no_prediction(precision: Precision, words: str) -> None:
    class Overflowing(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x.mean((1, 2, 3))[:, None] > 1, torch.inf, super().forward(x))

    images = views(2)
    model = classifier(precision=precision)
    model.network = Overflowing(10)
    model.predict(images, torch.tensor([0, 0]))
    images[1] = 255
    for answer in (
        lambda: model.predict(images, torch.tensor([0, 0])), lambda: model.ranked(images, 2)
    ):  # fmt: skip
        with pytest.raises(RunError, match=f"`tiny10` returns NaN .*(.|\n)*{words}"):
            answer()


def test_a_machine_that_fails_is_not_the_images_fault() -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: no kernel image is available")

    with pytest.raises(RuntimeError, match="no kernel image"):
        first_pass(fail, Trial("x", "timm:x"))


def test_an_unknown_scan_backend_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_SCAN_BACKEND", "nonsense")
    with pytest.raises(UsageError, match="No scan backend is called `nonsense`") as refused:
        load(ModelRequest("vmamba-pico"), "cls").try_out()
    assert "--crop" not in refused.value.todo


def test_batch_norms_that_see_one_value_are_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)).eval()
    with norms_of_one_value(network) as norms:
        network(torch.rand(1, 3, 9, 9))
        assert norms == []
        network(torch.rand(1, 3, 3, 3))
    assert norms == ["1", "2"]
    assert not network[1]._forward_pre_hooks
