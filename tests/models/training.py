"""One training step of the tumour paper's models, as their goldens were taken."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.models.scan import reference
from tests.models import golden

Loss = Callable[[Tensor, Tensor], Tensor]


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
    """The loss of a training step, and the norm of each parameter's gradient."""

    loss: float
    norms: Mapping[str, float]

    @property
    def norm(self) -> float:
        """Of all gradients together."""
        return math.sqrt(sum(value**2 for value in self.norms.values()))

    def errors(self, other: "Step") -> NDArray[np.float64]:
        """How far `other` is from this: the loss, the norm, and the worst parameter's norm.

        Norms count relative to themselves, a parameter's also to 1e-4 of the whole where that is
        more: biases before a normalisation have no gradient but rounding.
        """
        assert self.norms.keys() == other.norms.keys()
        small = 1e-4 * self.norm
        worst = max(abs(other.norms[k] - v) / (v + small) for k, v in self.norms.items())
        return np.array([abs(other.loss - self.loss), abs(other.norm / self.norm - 1), worst])


# Of loss, norm and worst parameter: what rounding may cost however well-behaved the network is.
FLOORS = np.array([1e-6, 1e-5, 1e-4])
# The stored numbers are one float32 computation of another machine. Its error and ours are draws
# from one distribution, of which a few are known: five times the largest covers the rest.
DRAWS = 5
# More noise than this would hide a wrong gradient, so the comparison would say nothing.
MOST_NOISE = np.array([1e-5, 1e-2, 5e-2])


def assert_step_agrees(name: str, network: nn.Module, loss_of: Loss, finish=None) -> None:
    """Compares a step in float64 with the official one, by the float32 noise of this network.

    Batch normalisation over two images of 64 pixels is ill-conditioned, and a max pool turns
    rounding into another choice: the same step in float32 differs by up to 1 % in the gradient of
    a parameter, from one kernel to another and so from one processor to another. So the tolerance
    is measured here, by steps in float32 that add up in other orders.

    `finish` is what the official training did to the outputs before the loss.
    """
    stored, norms = golden.arrays(f"{name}.npz"), golden.facts(f"{name}.gradnorm_B.json")
    official = Step(float(stored["train64_B_loss"]), norms)
    assert official.norm == pytest.approx(float(stored["train64_B_gradnorm"]), rel=1e-5)
    network = golden.fill(network, golden.rule_b).train()
    steps = list(_float32_steps(network, loss_of, finish))
    with mock.patch.object(reference, "_loop", fast_loop):
        network.to(memory_format=torch.contiguous_format)
        exact = _step(network.double(), loss_of, finish)  # the same numbers, not rounded on
    noise = np.max([exact.errors(step) for step in steps], 0)
    assert (noise <= MOST_NOISE).all(), noise
    errors = exact.errors(official)
    assert (errors <= np.maximum(FLOORS, DRAWS * noise)).all(), (errors, noise)


def _float32_steps(network: nn.Module, loss_of: Loss, finish) -> Iterator[Step]:
    """By torch's default kernels, by those of its own, and by those for channels that come last."""
    yield _step(network, loss_of, finish)
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield _step(network, loss_of, finish)
    finally:
        torch._C._set_mkldnn_enabled(before)
    network.to(memory_format=torch.channels_last)
    yield _step(network, loss_of, finish, memory_format=torch.channels_last)


def _step(network: nn.Module, loss_of: Loss, finish, memory_format=torch.contiguous_format) -> Step:
    network.zero_grad()
    dtype = next(network.parameters()).dtype
    images = golden.images(2, 3, 64, 64).to(dtype).contiguous(memory_format=memory_format)
    output = network(images)
    output = finish(output) if finish else output
    rng = np.random.default_rng(1)
    target = torch.from_numpy((rng.random(tuple(output.shape)) < 0.1).astype(np.float32))
    loss = loss_of(output, target.to(dtype))
    loss.backward()
    gradients = {k: p.grad for k, p in network.named_parameters() if p.grad is not None}
    return Step(loss.item(), {k: g.double().norm().item() for k, g in gradients.items()})


def fast_loop(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's loop without an index into a large tensor at each step.

    Each such index has a gradient of that tensor's size, which makes the reference's backward pass
    take time with the square of the length.
    """
    decays = torch.exp(dt[..., None] * A[:, None])  # (B, D, L, N)
    inputs = (dt * u)[..., None] * B.mT
    state, states = torch.zeros_like(inputs[:, :, 0]), []
    for decay, added in zip(decays.unbind(2), inputs.unbind(2), strict=True):
        state = torch.addcmul(added, decay, state)
        states.append(state)
    return (torch.stack(states, 2) * C.mT).sum(-1), state


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
