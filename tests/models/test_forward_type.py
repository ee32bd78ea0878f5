"""The names of VMamba's mixers, and what each part of a name changes."""

import pytest
import torch
import torch.nn.functional as F

from robustcli.core.errors import UsageError
from robustcli.models.forward_type import Mixing, mixing
from robustcli.models.scan.orders import CROSS
from robustcli.models.vmamba import build
from tests.models import golden

SMALL = {"depths": (1, 1), "dim": 16, "num_classes": 3}


def mixer(forward_type):
    network = build("vmamba-t-s1l8", forward_type=forward_type, **SMALL)
    return golden.fill(network, golden.strong).layers[0].blocks[0].op


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v0", Mixing()),
        ("v05", Mixing()),
        ("v05_noz", Mixing(gate=False)),
        ("v3_noz", Mixing(gate=False)),
        ("v01_noz_no32", Mixing(gate=False)),
        ("v04_nozact", Mixing(gate_activation=False)),
        ("v05_noz_oact", Mixing(gate=False, out_activation=True)),
        ("v051d_noz", Mixing(("row",) * 4, gate=False)),
        ("v052d", Mixing(("row", "row", "row-reversed", "row-reversed"))),
        (
            "v02_onsigmoid_nozact_noz_oact_no32",
            Mixing(CROSS, gate=False, gate_activation=False, norm="sigmoid", out_activation=True),
        ),
    ],
)
def test_says_what_the_release_says(name, expected):
    assert mixing(name) == expected


@pytest.mark.parametrize(
    "name", ["v2", "m0_noz", "v052dc_noz", "v05_onsoftmax", "v05_noz_nozact", "v05_oact_noz", ""]
)
def test_unknown_or_out_of_order_is_refused(name):
    with pytest.raises(UsageError, match=rf"(?s)`forward_type` `{name}` is not known.*v052d"):
        mixing(name)


def test_the_releases_were_trained_under_another_name_of_the_same_function():
    x = golden.images(1, 8, 6, 16)
    with torch.no_grad():
        assert torch.equal(mixer("v3_noz")(x), mixer("v05_noz")(x))


def test_layouts_of_the_parameters():
    layout = golden.shapes(mixer("v05"))
    assert golden.shapes(mixer("v052d")) == layout
    assert golden.shapes(mixer("v05_nozact")) == layout
    assert layout["in_proj.weight"] == (32, 16)
    without = golden.shapes(mixer("v05_onnone_noz"))
    assert without["in_proj.weight"] == (16, 16)
    assert not any("out_norm" in name for name in without)


@torch.no_grad()
def outputs(forward_type, x):
    """What the mixer gives out_proj, the sum of the directions and the gate, and the mixer."""
    seen, ours = {}, mixer(forward_type)
    ours.out_proj.register_forward_hook(lambda _, taken, __: seen.update(y=taken[0]))
    scan = ours._scan
    ours._scan = lambda u: seen.setdefault("scan", scan(u))
    ours(x)
    projected = ours.in_proj(x)
    gate = projected[..., 16:] if ours.gate else None
    return seen["y"], seen["scan"].permute(0, 2, 3, 1), gate, ours


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v05_onnone_noz", lambda y, z, _: y),
        ("v05_onsigmoid_noz", lambda y, z, _: torch.sigmoid(y)),
        ("v05_noz_oact", lambda y, z, norm: F.gelu(norm(y))),
        ("v05_onnone_nozact", lambda y, z, _: y * z),
        ("v05_onnone_oact", lambda y, z, _: F.gelu(y) * F.silu(z)),
    ],
)
def test_each_suffix_does_what_it_says(name, expected):
    with torch.no_grad():
        y, scanned, z, ours = outputs(name, golden.images(2, 5, 4, 16))
        torch.testing.assert_close(y, expected(scanned, z, ours.out_norm))


@pytest.mark.parametrize(("name", "reach"), [("v051d_noz", "after"), ("v052d_noz", "both")])
@torch.no_grad()
def test_directions_follow_the_rows(name, reach):
    """A changed pixel reaches the steps after it alone when every scan runs forward."""
    ours = mixer(name)
    x = golden.images(1, 16, 6, 7)
    changed = x.clone()
    changed[..., 3, 3] += 1
    moved = (ours._scan(changed) - ours._scan(x)).abs().amax(1).flatten() > 0
    assert moved[3 * 7 + 3 :].all()
    assert bool(moved[: 3 * 7 + 3].any()) == (reach == "both")


@torch.no_grad()
def test_a_bidirectional_scan_is_one_of_the_picture_and_one_of_it_turned_round():
    """A direction without B, C and D adds nothing: this is how each half is seen alone."""
    x = golden.images(1, 16, 3, 5)
    halves = []
    for silent, turned in (([2, 3], False), ([0, 1], True)):
        ours = mixer("v051d_noz")
        ours.x_proj_weight[silent] = 0
        ours.Ds.view(4, -1)[silent] = 0
        y = ours._scan(x.flip(2, 3) if turned else x)
        halves.append(y.flip(2, 3) if turned else y)
    torch.testing.assert_close(mixer("v052d_noz")._scan(x), sum(halves))
