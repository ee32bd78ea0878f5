"""Which of a segmenter's several classes is explained: all of them, or one that `--class` names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelRequest
from robustcli.core.errors import UsageError
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.evaluate import evaluate
from robustcli.explanation import block, input_methods
from robustcli.explanation.config import ExplainConfig
from robustcli.explanation.explaining import class_logits, explain, is_most_probable
from robustcli.explanation.inputs import mask_class_number
from robustcli.explanation.record import read_explain_record, read_explained_rows
from tests.training.runs import Recorder

SIDE = 256
"""Of the window of a network that names no other: smaller pictures are mirrored at their edges."""
RED, GREEN = 4.0, 3.0
"""Logits of the two classes on their own colour; on any other colour they are the negative."""


class Colours(nn.Module):
    """Background 0; class 1 where the image is red, class 2 where it is green."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[1, 0], self.conv.weight[2, 1] = 2 * RED, 2 * GREEN
            self.conv.bias.copy_(torch.tensor([0.0, -RED, -GREEN]))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.conv(x)
        return scores


@pytest.fixture(scope="module", autouse=True)
def _few_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_methods, "WINDOWS_ACROSS", 2)
        patch.setattr(block, "CURVE_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture with a red and a green square on black, and its masks of indices 1 and 2."""
    folder = tmp_path_factory.mktemp("data")
    image, mask = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    image[8:24, 8:24, 0], mask[8:24, 8:24] = 255, 1
    image[32:56, 32:56, 1], mask[32:56, 32:56] = 255, 2
    for name, pixels in (("images", image), ("masks", mask)):
        (folder / name).mkdir()
        Image.fromarray(pixels).save(folder / name / "a.png")
    return folder


def explained(data: Path, out: Path, name: str | None, heard: Recorder, **said: object) -> Path:
    settings: dict[str, object] = {
        "mask_classes": "1=red,2=green", "workers": 0, "device": "cpu", "limit": 1,
        "methods": ("occlusion",), **said,
    }  # fmt: skip
    models = (ModelRequest("colours", module=Colours()),)
    config = ExplainConfig(models, (), str(data), out, class_name=name, **settings)  # type: ignore[arg-type]
    return explain(config, heard)


def share(logit: float, *others: float) -> float:
    """The softmax's share of `logit`, by hand."""
    return math.exp(logit) / sum(map(math.exp, (logit, *others)))


def test_the_logit_of_a_class_is_the_log_odds_of_its_softmax() -> None:
    scores = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    network = nn.Identity()
    for number in (1, 2, 3):
        logits = class_logits(network, scores, number, 3)
        assert logits.shape == (2, 1, 8, 8)
        assert torch.allclose(logits[:, 0].sigmoid(), scores.softmax(1)[:, number], atol=1e-6)
        expected = scores.numpy().argmax(1) == number
        assert np.array_equal(is_most_probable(network, scores, number, 3).numpy(), expected)


def test_a_class_is_named_or_numbered() -> None:
    classes = ("left_lung", "right_lung", "heart")
    assert [mask_class_number(name, classes) for name in ("Heart", "right-lung", "1")] == [3, 2, 1]
    for name, words in (("hart", "Did you mean `heart`"), ("4", r"1 to 3"), ("0", r"1 to 3")):
        with pytest.raises(UsageError, match=rf"No class is called `{name}`(.|\n)*{words}"):
            mask_class_number(name, classes)
    with pytest.raises(UsageError, match="cannot be used with this segmenter"):
        mask_class_number("heart", ())


def test_one_class_is_explained_inside_its_own_mask(data: Path, tmp_path: Path) -> None:
    green, red, both = (Recorder() for _ in range(3))
    runs = {
        "green": explained(data, tmp_path / "green", "green", green),
        "red": explained(data, tmp_path / "red", "1", red),
        None: explained(data, tmp_path / "both", None, both),
    }
    probabilities = {}
    for name, run in runs.items():
        assert read_explain_record(run).mask_class == name
        rows = read_explained_rows(run)
        for kind in ("true", "predicted"):  # the network is right on every pixel
            probabilities[name, kind] = rows.loc[rows["target_kind"] == kind, "probability"].item()
    inside_green, inside_red = share(GREEN, 0, -RED), share(RED, 0, -GREEN)
    for kind in ("true", "predicted"):
        assert probabilities["green", kind] == pytest.approx(inside_green, abs=1e-5)
        assert probabilities["red", kind] == pytest.approx(inside_red, abs=1e-5)
        # Of all together: any class against background, over the pixels of both squares.
        any_green, any_red = 1 - share(0, GREEN, -RED), 1 - share(0, RED, -GREEN)
        mean = (24**2 * any_green + 16**2 * any_red) / (24**2 + 16**2)
        assert probabilities[None, kind] == pytest.approx(mean, abs=1e-5)
    assert any("`green` against all others" in line for line in green.lines)
    assert any("`--class NAME`" in line and "`red`, `green`" in line for line in both.lines)


def test_another_class_is_another_explanation(data: Path, tmp_path: Path) -> None:
    out = explained(data, tmp_path / "run", "green", Recorder())
    with pytest.raises(UsageError, match=r"`--class`(.|\n)*green(.|\n)*red"):
        explained(data, out, "red", Recorder())
    with pytest.raises(UsageError, match="No class is called `blue`"):
        explained(data, tmp_path / "other", "blue", Recorder())


def test_a_class_of_a_finished_evaluation_is_explained(data: Path, tmp_path: Path) -> None:
    colours = ModelRequest(f"{__file__}:Colours")
    settings: dict[str, object] = {"workers": 0, "device": "cpu"}
    run = evaluate(
        EvalConfig(
            (colours,), (), str(data), tmp_path / "run", mask_classes="1=red,2=green", **settings
        )  # type: ignore[arg-type]
    )
    config = ExplainConfig(
        (), (), None, tmp_path / "explained", source=run, class_name="green", limit=1,
        methods=("occlusion",), **settings,
    )  # type: ignore[arg-type]  # fmt: skip
    with pytest.raises(UsageError, match=r"network `.*:Colours`: `.*SHA-256 .* \(as in the run\)"):
        explain(config, Recorder())
    allowed = replace(config, run_code=True)
    assert read_explain_record(explain(allowed, Recorder())).mask_class == "green"
