"""Expected outputs of the official code, and the rules that fill networks for them.

The full set lies beside the repository in `../shared/golden`; a few of its arrays are copied to
`tests/golden`, so that a clone alone is tested too. Rules and provenance: `tests/golden/README.md`.
The training steps are of the tumour paper's models, as their goldens were taken.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.adapters.model import shapes_only
from robustcli.models.architectures import architecture
from robustcli.models.scan import reference

ROOT = Path(__file__).resolve().parents[2]
PLACES = (ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden")

SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "vmamba-pico": ({"depths": (1, 1), "dim": 16}, 16),
    "vmamba-t-s1l8": ({"depths": (1, 1), "dim": 16}, 40),
    "vmamba-t-v0": ({"depths": (1, 1), "dim": 16}, 40),
    "vim-t": ({"depth": 2, "img_size": 48}, 48),
    "vim-t-plus": ({"depth": 1, "img_size": 32}, 32),
    "vim": ({"depth": 2}, 32),
    "vit": ({"depth": 2}, 32),
    "resnet9": ({"channels": (4, 8, 8, 16)}, 16),
    "cifar-resnet18": ({"depths": (1, 1, 1, 1)}, 16),
    "umamba": ({"features": (4, 8, 16), "strides": (1, 2, 2)}, 32),
    "umamba-enc": ({"features": (4, 8, 16), "strides": (1, 2, 2), "patch_size": 16}, 16),
    "umamba-nomamba": ({"features": (4, 8, 16), "strides": (1, 2, 2)}, 16),
    "resenc": ({"features": (4, 8, 8), "strides": (1, 2, 2), "n_blocks": (1, 2, 1)}, 16),
    "vmunet": ({"dim": 16, "depths": (1, 1), "depths_decoder": (1, 1)}, 16),
    "swin-umamba": ({"dim": 8, "depths": (1, 1)}, 16),
    "swin-umamba-d": ({"dim": 8, "depths": (1, 1)}, 16),
    "ulvm": ({}, 32),
    "ulvm_v3": ({}, 32),
    "ulvm_v4": ({"widths": (16, 32, 32, 64, 64, 64)}, 64),
    "umambabot": ({"features": (8, 16)}, 16),
    "umambabot_pp": ({"features": (8, 16)}, 16),
    "unet": ({"features": (4, 8, 16)}, 16),
    "segformer": ({"widths": (8, 16), "depths": (1, 1), "heads": (1, 2), "patches": (7, 3),
                   "strides": (4, 2), "reductions": (2, 1), "decoder": 8}, 32),
    "resnet18_seg": ({"output": 64}, 64),
}  # fmt: skip
"""Options of small networks of each kind, and the side of an image for each."""

Rule = Callable[[str, tuple[int, ...]], np.ndarray]


def place(file: str) -> Path:
    """Where `file` lies; skips the test where it does not."""
    folders = [folder / file for folder in PLACES if (folder / file).is_file()]
    if not folders:
        pytest.skip(f"needs ../shared/golden/{file}")
    return folders[0]


def arrays(file: str) -> dict[str, np.ndarray]:
    with np.load(place(file)) as stored:
        return dict(stored)


def facts(file: str) -> dict[str, Any]:
    return json.loads(place(file).read_text())


def layout(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in facts(f"{name}.layout.json").items()}


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@cache
def published(name: str) -> Any:
    """The network `name` of the registry as published, without numbers; not to be changed."""
    with shapes_only():
        return architecture(name).build()


def noise(key: str, shape: tuple[int, ...]) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(shape)


def strong(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Rule "strong" of the official models, in float64."""
    z, leaf = noise(key, shape), key.rsplit(".", 1)[-1]
    if leaf in ("A_log", "A_logs", "A_b_log"):
        return np.log(np.arange(1, shape[1] + 1)) + 0.1 * z
    if leaf in ("Ds", "D", "D_b"):
        return 0.5 + 0.1 * z
    if leaf == "skip_scale" or (len(shape) == 1 and leaf == "weight"):
        return 1 + 0.1 * z
    if key.endswith(("x_proj_weight", "x_proj.weight", "x_proj_b.weight")):
        return 2 * z / math.sqrt(shape[-1])
    if key.endswith(("dt_projs_weight", "dt_proj.weight", "dt_proj_b.weight")):
        return 0.5 * z / math.sqrt(shape[-1])
    if key.endswith(("dt_projs_bias", "dt_proj.bias", "dt_proj_b.bias")):
        return -3 + 0.5 * z
    if leaf in ("pos_embed", "cls_token"):
        return 0.5 * z
    if leaf == "running_var":
        return 0.5 + 0.05 * np.abs(z)
    return z / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.05 * z


def rule_a(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Rule A of the seed papers' models, in float32: it sees convolutions, not the scan."""
    z, leaf = noise(key, shape).astype(np.float32), key.rsplit(".", 1)[-1]
    if leaf in ("A_log", "A_b_log"):
        return np.log(np.arange(1, shape[1] + 1, dtype=np.float32)) + np.zeros_like(z)
    if leaf == "running_var":
        return np.abs(np.float32(0.05) * z) + np.float32(0.5)
    values = np.float32(1) if len(shape) == 1 and leaf == "weight" else np.float32(0)
    return values + np.float32(0.05) * z


def rule_b(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Rule B of the seed papers' models, in float32: the scan matters."""
    z, leaf = noise(key, shape).astype(np.float32), key.rsplit(".", 1)[-1]
    tenth = np.float32(0.1) * z
    if leaf == "running_var":
        return np.abs(z) * np.float32(0.05) + np.float32(0.5)
    if leaf == "running_mean":
        return np.float32(0.05) * z
    if leaf in ("A_log", "A_b_log"):
        return np.log(np.arange(1, shape[1] + 1, dtype=np.float32)) + tenth
    if leaf in ("D", "D_b", "skip_scale") or (len(shape) == 1 and leaf == "weight"):
        return np.float32(1) + tenth
    if key.endswith(("dt_proj.bias", "dt_proj_b.bias")):
        return np.float32(-3) + np.float32(0.5) * z
    if len(shape) < 2:
        return tenth
    gain = 1.0 if len(shape) == 4 else 1.5
    return z * np.float32(gain / math.sqrt(math.prod(shape[1:])))


def fill(network: nn.Module, rule: Rule, names: Mapping[str, str] | None = None) -> nn.Module:
    """`network` with every float tensor set by `rule`, in eval mode; counters stay as they are.

    `names` maps a key of ours to the key that the rule is to be asked for.
    """
    state = {
        key: torch.from_numpy(
            np.asarray(rule((names or {}).get(key, key), tuple(tensor.shape)), np.float32)
        )
        for key, tensor in network.state_dict().items()
        if tensor.is_floating_point()
    }
    network.load_state_dict({**network.state_dict(), **state})
    return network.eval()


@contextmanager
def unset() -> Iterator[None]:
    """Networks built here hold whatever memory held: for those whose every number `fill` sets."""
    with ExitStack() as patches:
        for name in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_"):
            patches.enter_context(mock.patch.object(nn.init, name, lambda tensor, *_, **__: tensor))
        yield


def images(*shape: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def distance(ours: Tensor, theirs: np.ndarray) -> float:
    """Largest absolute difference."""
    return float((ours.detach().double() - torch.from_numpy(theirs).double()).abs().max())


def logits_error(name: str, build: Callable[[], nn.Module]) -> float:
    """How far the logits of a network filled by `strong` are from the official ones."""
    with unset():
        network = build()
    fill(network, strong)
    with torch.no_grad():
        logits = network(images(2, 3, 224, 224))
    return distance(logits, arrays(f"{name}.strong.npz")["logits"])


def worst_module_error(tag: str, module: nn.Module, *, channels_first: bool = False) -> float:
    """Largest error of output and gradients against `modules.npz`, relative to each array's peak.

    All in float64, which the reference scan serves. `channels_first` says that the arrays are
    (B, C, H, W); our modules are channels-last.
    """
    stored = arrays("modules.npz")
    if f"{tag}/x" not in stored:
        pytest.skip(f"needs ../shared/golden/modules.npz for {tag}")
    values = {key: torch.from_numpy(stored[f"{tag}/{key}"]) for key in ("x", "g_y")}
    if channels_first:
        values = {key: tensor.permute(0, 2, 3, 1) for key, tensor in values.items()}
    module.double()
    module.load_state_dict(
        {key: torch.from_numpy(stored[f"{tag}/param/{key}"]) for key in module.state_dict()}
    )
    x = values["x"].clone().requires_grad_()
    y = module(x)
    y.backward(values["g_y"])
    ours = {"y": y, "grad_x": x.grad}
    if channels_first:
        ours = {key: tensor.permute(0, 3, 1, 2) for key, tensor in ours.items()}
    ours |= {f"grad/{key}": p.grad for key, p in module.named_parameters()}
    return max(
        distance(tensor, stored[f"{tag}/{key}"]) / float(np.abs(stored[f"{tag}/{key}"]).max())
        for key, tensor in ours.items()
    )


def block_error(name: str, block: nn.Module, *inputs: Tensor) -> float:
    """Largest error against `seeds_blocks.npz` under rule B, relative to each output's peak."""
    stored, keys = arrays("seeds_blocks.npz"), facts("seeds_blocks.layout.json")[name]
    if f"{name}.out0" not in stored:
        pytest.skip(f"needs ../shared/golden/seeds_blocks.npz for {name}")
    assert shapes(block) == {key: tuple(shape) for key, shape in keys.items()}
    fill(block, rule_b)
    with torch.no_grad():
        outputs = block(inputs[0] if len(inputs) == 1 else inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    theirs = [stored[f"{name}.out{i}"] for i in range(len(outputs))]
    return max(
        distance(a, b) / float(np.abs(b).max()) for a, b in zip(outputs, theirs, strict=True)
    )


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

    def errors(self, other: Step) -> NDArray[np.float64]:
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
    stored, norms = arrays(f"{name}.npz"), facts(f"{name}.gradnorm_B.json")
    official = Step(float(stored["train64_B_loss"]), norms)
    assert official.norm == pytest.approx(float(stored["train64_B_gradnorm"]), rel=1e-5)
    network = fill(network, rule_b).train()
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
    x = images(2, 3, 64, 64).to(dtype).contiguous(memory_format=memory_format)
    output = network(x)
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


def output_errors(name: str, network: nn.Module, rule: str, sizes: tuple[int, ...]) -> float:
    """Largest error at 64 pixels and `sizes` under rule `A` or `B`, relative to the outputs' peaks.

    Outputs that the golden holds thinned (those of fixed size) are thinned alike.
    """
    expected = arrays(f"{name}.npz")
    fill(network, {"A": rule_a, "B": rule_b}[rule])
    errors = []
    for size in (64, *sizes):
        with torch.no_grad():
            output = network(images(2, 3, size, size))
        peak = float(output.abs().max())
        parts = {f"{rule}_out{size}{key}": part for key, part in _parts(output, size).items()}
        known = [key for key in parts if key in expected]
        errors += [distance(parts[key], expected[key]) / peak for key in known]
    if not errors:
        pytest.skip(f"needs ../shared/golden/{name}.npz for rule {rule}")
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
