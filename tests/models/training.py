"""One training step of the tumour paper's models, as their goldens were taken."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import golden


def bce_dice(probabilities: Tensor, target: Tensor) -> Tensor:
    shared = (probabilities * target).sum((1, 2, 3))
    both = probabilities.sum((1, 2, 3)) + target.sum((1, 2, 3))
    dice = 1 - ((2 * shared + 1) / (both + 1)).mean()
    return dice + F.binary_cross_entropy(probabilities, target)


def pooled_dice(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.sigmoid()
    return 1 - (2 * (p * target).sum() + 100) / (p.sum() + target.sum() + 100)


def enlarged(logits: Tensor) -> Tensor:
    return F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Step:
    loss_error: float
    norm_error: float
    worst_parameter_error: float


def step_errors(name: str, network: nn.Module, loss_of, finish=None) -> Step:
    """Errors of loss, gradient norm and each parameter's, relative to the official ones.

    `finish` is what the official training did to the outputs before the loss.
    A parameter's error counts relative to its own norm, or to 1e-4 of the whole where that is more:
    biases before a norm have no gradient but rounding.
    """
    expected, norms = golden.arrays(f"{name}.npz"), golden.facts(f"{name}.gradnorm_B.json")
    network = golden.fill(network, golden.rule_b).train()
    output = network(golden.images(2, 3, 64, 64))
    output = finish(output) if finish else output
    rng = np.random.default_rng(1)
    target = torch.from_numpy((rng.random(tuple(output.shape)) < 0.1).astype(np.float32))
    loss = loss_of(output, target)
    loss.backward()
    ours = {
        key: float(p.grad.double().norm())
        for key, p in network.named_parameters()
        if p.grad is not None
    }
    assert ours.keys() == norms.keys()
    total = math.sqrt(sum(value**2 for value in ours.values()))
    official = float(expected["train64_B_gradnorm"])
    worst = max(abs(ours[k] - v) / (v + 1e-4 * official) for k, v in norms.items())
    loss_error = abs(float(loss.detach()) - float(expected["train64_B_loss"]))
    return Step(loss_error, abs(total / official - 1), worst)


def output_errors(
    name: str, network: nn.Module, rule: str, sizes: tuple[int, ...] = (256,)
) -> float:
    """Largest error at 64 pixels and `sizes` under rule `A` or `B`, relative to the outputs' peaks.

    Outputs that the golden holds thinned (those of fixed size) are thinned alike.
    """
    expected = golden.arrays(f"{name}.npz")
    golden.fill(network, {"A": golden.rule_a, "B": golden.rule_b}[rule])
    errors = []
    for size in (64, *sizes):
        with torch.no_grad():
            output = network(golden.images(2, 3, size, size))
        peak = float(output.abs().max())
        parts = {f"{rule}_out{size}{key}": part for key, part in _parts(output, size).items()}
        known = [key for key in parts if key in expected]
        errors += [golden.distance(parts[key], expected[key]) / peak for key in known]
    if not errors:
        golden.pytest.skip(f"needs ../shared/golden/{name}.npz for rule {rule}")
    return max(errors)


def _parts(output: Tensor, size: int) -> dict[str, Tensor]:
    side = output.shape[-1]
    step = side // 8
    return {
        "": output[..., ::4, ::4] if side > size else output,
        "_first16": output.flatten()[:16],
        "_center16": output[0, 0, side // 2, :16],
        "_grid8": output[:, 0, step // 2 :: step, step // 2 :: step],
    }
