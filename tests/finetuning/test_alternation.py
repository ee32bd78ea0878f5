"""Steps timed in turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from robustcli.finetuning import alternation
from robustcli.finetuning.alternation import seconds_ratios
from robustcli.models.registry import architecture
from robustcli.models.weight_decay import everything_decays
from robustcli.training.module import SegmentationModule
from robustcli.training.recipes import recipe_for

CPU = torch.device("cpu")


@pytest.fixture
def module() -> SegmentationModule:
    network = architecture("unet").build(features=(8, 16))
    return SegmentationModule(
        network, recipe_for("unet", "patient", "x"), channels="rgb", decays=everything_decays,
        val_groups=(),
    )  # fmt: skip


def test_a_step_without_a_way_back_is_shorter(module: SegmentationModule) -> None:
    names = [name for name, _ in module.network.named_parameters()]
    head = [name for name in names if "head" in name or name.startswith(names[-1].split(".")[0])]
    kept = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    body = [name for name in names if name not in head]
    nothing, most = seconds_ratios(module, [[], body], 2, CPU, rounds=7)
    assert most.low <= most.median <= most.high < 0.9
    assert nothing.median == pytest.approx(1, abs=0.4)
    for name, parameter in module.network.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter, kept[name])


def test_ratios_are_of_the_same_round(
    module: SegmentationModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that gets slower from round to round changes no ratio; two rounds do not count."""
    order: list[float] = []

    def fake(own: SegmentationModule, size: int, device: torch.device) -> Callable[[], float]:
        share = 1.0 if all(p.requires_grad for p in own.network.parameters()) else 0.5

        def step() -> float:
            order.append(share)
            number = (len(order) + 1) // 2  # of the round, the first being 1
            return 2.0**number * (share if number > 2 else 1 / share)

        return step

    monkeypatch.setattr(alternation, "make_step", fake)
    first = next(name for name, _ in module.network.named_parameters())
    (ratio,) = seconds_ratios(module, [[first]], 1, CPU, rounds=6)
    assert (ratio.median, ratio.low, ratio.high) == (0.5, 0.5, 0.5)
    assert order == [1.0, 0.5, 0.5, 1.0] * 4
