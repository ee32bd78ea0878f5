"""One made-up image through a network before anything is decoded: what it says becomes advice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.model import (
    Trial,
    check_class_scores,
    check_finite,
    first_pass,
    made_up_image,
    norms_of_one_value,
)
from robustcli.core.errors import UsageError


def request(name: str, **more: object) -> ModelRequest:
    arguments = more.pop("arguments", {})
    return ModelRequest(name, arguments=arguments, preprocessing=more, untrained=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "crop", "words"),
    [
        ("swin-t", 256, r"\(1, 3, 256, 256\).*made for 224 x 224(.|\n)*img_size=256`"),
        ("vit_tiny_patch16_224", 256, r"`--crop 224`, or build .* `--model-arg img_size=256`"),
        ("convnext-t", 20, r"Kernel size.*smallest supported size is 32 x 32.\nUse `--crop 224`"),
        pytest.param(  # its random weights take seconds
            "inception_v3",
            64,
            r"smallest supported size is 75 x 75.\nUse `--crop 299`",
            marks=pytest.mark.slow,
        ),
        ("vim-t", 256, r"this Vim needs 224 x 224(.|\n)*`--crop`(.|\n)*img_size=256"),
    ],
)
def test_a_size_that_the_network_cannot_take(name: str, crop: int, words: str) -> None:
    classifier = load(request(name, crop=crop, resize=crop), "cls")
    with pytest.raises(UsageError, match=words):
        classifier.try_out()


@pytest.mark.parametrize("name", ["swin-t", "vit_tiny_patch16_224", "vim-t"])
def test_the_advice_to_build_it_for_the_size_works(name: str) -> None:
    classifier = load(request(name, arguments={"img_size": 256}), "cls")
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


def test_a_machine_that_fails_is_not_the_images_fault() -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: no kernel image is available")

    with pytest.raises(RuntimeError, match="no kernel image"):
        first_pass(fail, Trial("x", "timm:x"))


def test_batch_norms_that_see_one_value_are_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)).eval()
    with norms_of_one_value(network) as norms:
        network(torch.rand(1, 3, 9, 9))
        assert norms == []
        network(torch.rand(1, 3, 3, 3))
    assert norms == ["1", "2"]
    assert not network[1]._forward_pre_hooks
