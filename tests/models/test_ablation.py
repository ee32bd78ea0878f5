"""Networks without their scan: what is left of a block, which parameters go, what stays alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.models import mamba, vmamba
from robustcli.models.ablation import (
    ScanBlock,
    ablate_network,
    has_scan,
    removed_parameters,
    scan_blocks,
    scan_parameters,
)
from robustcli.models.architectures import ARCHITECTURES, architecture
from robustcli.models.mamba import BidirectionalMamba, Mamba
from robustcli.models.vmamba import SS2D
from tests.models import golden

SCANNING = [name for name in golden.SMALL if architecture(name).scans and name[-4:] != "plus"]


SHALLOW = {"vmamba": {"depths": (1, 1, 1, 1)}, "vim": {"depth": 2}}


def _ss2d(**changes: object) -> SS2D:
    return SS2D(6, **{"d_state": 2, "ratio": 2.0, "gate": True, "conv_bias": True, **changes})


BLOCKS: dict[str, tuple[Callable[[], ScanBlock], tuple[int, ...]]] = {
    "mamba": (lambda: Mamba(6), (2, 9, 6)),
    "both directions": (lambda: BidirectionalMamba(6), (2, 9, 6)),
    "ss2d, gated": (_ss2d, (2, 5, 4, 6)),
    "ss2d, not gated": (lambda: _ss2d(gate=False, conv_bias=False), (2, 5, 4, 6)),
    "ss2d, no norm": (lambda: _ss2d(norm="none"), (2, 5, 4, 6)),
}


def filled(block: ScanBlock) -> ScanBlock:
    return golden.fill(block, golden.strong).double()


@pytest.fixture(params=BLOCKS)
def block_and_input(request: pytest.FixtureRequest) -> tuple[Callable[[], ScanBlock], Tensor]:
    make, shape = BLOCKS[request.param]
    torch.manual_seed(0)
    return make, torch.randn(shape, dtype=torch.float64)


@torch.no_grad()
def test_equals_the_block_whose_state_is_never_read(block_and_input):
    """C = 0 takes the state out of the real scan; D = 1, as it is initialised, passes its input."""
    make, x = block_and_input
    ablated, full = filled(make()), filled(make())
    ablated.remove_scan()
    assert not torch.allclose(ablated(x), full(x), atol=1e-3)
    for name, parameter in full.named_parameters():
        if name in ("D", "D_b", "Ds"):
            parameter.fill_(1)
        if name.startswith("x_proj"):  # rows: rank, then B, then C
            states = full.A_logs.shape[1] if isinstance(full, SS2D) else 16
            parameter[..., -states:, :] = 0
    assert torch.allclose(ablated(x), full(x), rtol=0, atol=1e-12)


ONE_OF_EACH_FAMILY = {entry.family: name for name, entry in ARCHITECTURES.items()}.values()


@pytest.mark.parametrize("name", sorted({*SCANNING, *ONE_OF_EACH_FAMILY, "umamba-nomamba"}))
def test_a_network_with_a_scan_loses_it_and_any_other_one_says_that_it_has_none(name):
    spec = architecture(name)
    options = SHALLOW.get(spec.family, {})
    with torch.device("meta"):
        network = spec.build(**options)
        assert has_scan(network) == spec.scans
        if not spec.scans:
            with pytest.raises(UsageError, match=r"no state-space scan|no option `ablate="):
                spec.build(ablate="scan")
            return
        ablated = spec.build(**options, ablate="scan")
    assert not has_scan(ablated)
    assert len(scan_blocks(ablated)) == len(scan_blocks(network)) > 0
    removed = removed_parameters(ablated)
    assert removed == scan_parameters(network)
    shapes = golden.shapes(network)
    assert golden.shapes(ablated) == {k: v for k, v in shapes.items() if k not in removed}
    count = sum(math.prod(shape) for shape in removed.values())
    assert golden.parameters(network) - golden.parameters(ablated) == count > 0


@pytest.mark.parametrize("name", SCANNING)
def test_a_network_and_its_control_start_alike_and_the_control_learns(name, monkeypatch):
    options, side = golden.SMALL[name]
    torch.manual_seed(3)
    network = architecture(name).build(**options)
    torch.manual_seed(3)
    ablated = architecture(name).build(**options, ablate="scan")
    start = network.state_dict()
    assert all(torch.equal(tensor, start[key]) for key, tensor in ablated.state_dict().items())

    def never(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("it scans")

    monkeypatch.setattr(mamba, "selective_scan", never)
    monkeypatch.setattr(vmamba, "ss2d_scan", never)
    x = golden.images(2, 3, side, side)
    golden.fill(ablated, golden.strong).eval()(x).square().mean().backward()
    unused = {key for key, p in ablated.named_parameters() if p.grad is None or not p.grad.any()}
    heads = ("seg_layers", "out_layers.1")  # of lower resolution
    assert all(any(h in key for h in heads) or _cancelled(key) for key in unused), unused
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert ablated(100 * x).isfinite().all()


def _cancelled(key: str) -> bool:
    """Whether an instance norm behind it takes a bias out again, or position 0 alone is read."""
    return key.endswith("bias")


def test_an_unknown_ablation_and_a_network_without_a_scan_are_refused():
    with pytest.raises(UsageError, match=r"ablate=gate.*"):
        architecture("ulvm").build(ablate="gate")
    with pytest.raises(UsageError, match=r"(?s)`plain`.*no state-space scan.*vmamba-t.*ulvm_v6"):
        ablate_network(nn.Linear(2, 2), "scan", model="plain")
