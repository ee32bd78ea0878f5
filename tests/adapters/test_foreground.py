"""One foreground score per pixel, from networks of every kind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.adapters.foreground import (
    at_size,
    first,
    foreground_logits,
    is_probability,
    native_window,
    raw_output,
)
from robustcli.adapters.otsu import Otsu
from robustcli.core.errors import UsageError
from robustcli.models.registry import ARCHITECTURES, architecture
from tests.models import golden

SEGMENTERS = [name for name, one in ARCHITECTURES.items() if one.task == "seg"]


class Says(nn.Module):
    """Answers what it was told, whatever the input."""

    def __init__(self, answer: Tensor | list[Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, _: Tensor) -> Tensor | list[Tensor]:
        return self.answer


def scores(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return architecture(name).build(**options)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_of_several_classes_all_but_the_first_are_foreground(classes: int) -> None:
    given = scores(2, classes, 4, 5)
    found = foreground_logits(given).sigmoid()
    torch.testing.assert_close(found, given.softmax(1)[:, 1:].sum(1, keepdim=True))


def test_one_class_stays_as_it_is() -> None:
    given = scores(2, 1, 4, 5)
    assert foreground_logits(given) is given


def test_huge_logits_stay_finite() -> None:
    given = torch.tensor([3e4, -3e4]).view(1, 2, 1, 1)
    assert foreground_logits(given).item() == -6e4


def test_of_deep_supervision_the_first_counts() -> None:
    given = [scores(1, 1, 8, 8), scores(1, 1, 4, 4)]
    assert first(given) is given[0]
    assert first(tuple(given)) is given[0]
    assert raw_output(Says(given), torch.zeros(1, 3, 8, 8)) is given[0]


def test_a_quarter_is_enlarged_as_the_paper_did() -> None:
    given = scores(2, 1, 4, 6)
    expected = F.interpolate(given, scale_factor=4, mode="bilinear", align_corners=False)
    found = raw_output(Says(given), torch.zeros(2, 3, 16, 24))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert at_size(given, (4, 6)) is given


def test_segformer_and_resnet_answer_at_the_inputs_size() -> None:
    x = golden.images(1, 3, 64, 96)
    for name in ("segformer", "resnet18_seg"):
        network = architecture(name).build().eval()
        with torch.no_grad():
            assert raw_output(network, x).shape == (1, 1, 64, 96)


def test_which_answers_are_probabilities() -> None:
    found = {name for name in SEGMENTERS if is_probability(on_meta(name))}
    assert found == {name for name in SEGMENTERS if name.startswith("ulvm")} | {"vmunet"}
    assert is_probability(Otsu())
    assert not is_probability(on_meta("vmunet", num_classes=2))  # its logits are then a softmax's


def test_probabilities_of_several_classes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"network has 3 outputs(.|\n)*`num_classes=1`"):
        is_probability(on_meta("ulvm", num_classes=3))


def test_the_window_of_each() -> None:
    expected = dict.fromkeys(SEGMENTERS, 256) | {"segformer": 224, "umamba-pico": 128}
    assert {name: native_window(on_meta(name)) for name in SEGMENTERS} == expected
    assert native_window(on_meta("umamba-enc", patch_size=64)) == 64
    assert native_window(on_meta("resnet18_seg", output=128)) == 128
