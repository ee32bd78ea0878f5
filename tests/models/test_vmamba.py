"""VMamba and its mixer SS2D against the official code, and what its parts promise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robustcli.core.errors import UsageError
from robustcli.models.scan.base import CROSS
from robustcli.models.vmamba import (
    SS2D,
    VARIANTS,
    Mixing,
    PatchMerging,
    VMambaConfig,
    VSSBlock,
    build,
    downsample_v3,
    mixing,
    stem_v1,
    stem_v2,
)
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


def test_patch_merging_agrees_with_the_official_one_on_odd_sizes():
    assert golden.worst_module_error("patchmerge_v1_odd", PatchMerging(8)) < 1e-12


def test_patch_merging_takes_the_corners_column_by_column():
    merge = PatchMerging(1).eval()
    with torch.no_grad():
        merge.norm.weight.fill_(1)
        merge.reduction.weight.copy_(torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0]]))
        x = torch.tensor([[0.0, 1.0], [2.0, 4.0]])[None, ..., None]  # rows (0 1) and (2 4)
        merged = merge(x).flatten()
    mean, std = 1.75, 1.479019945774904  # of 0, 1, 2, 4
    expected = torch.tensor([(2 - mean) / std, (1 - mean) / std])  # down first, then across
    assert torch.allclose(merged, expected, atol=1e-4)


def test_stems_shrink_by_their_strides():
    x = golden.images(2, 3, 32, 48)
    assert stem_v1(8)(x).shape == (2, 8, 12, 8)
    assert stem_v2(8, (2, 2))(x).shape == (2, 8, 12, 8)
    assert stem_v2(8, (2, 1))(x).shape == (2, 16, 24, 8)


def test_downsampling_halves_and_doubles():
    assert downsample_v3(8)(golden.images(2, 7, 6, 8)).shape == (2, 4, 3, 16)


# Source of the counts: the specification's table, counted on the official modules.
RELEASES = {
    "vmamba-t-s1l8": ("vmamba_tiny_s1l8", 30_249_064),
    "vmamba-t-s2l5": ("vmamba_tiny_s2l5", 30_705_832),
    "vmamba-t-v0": ("vmamba_tiny_v0", 22_893_448),
    "vmamba-s-s2l15": ("vmamba_small_s2l15", 50_147_752),
    "vmamba-s-s1l20": ("vmamba_small_s1l20", 49_012_840),
    "vmamba-s-v0": ("vmamba_small_v0", 44_417_416),
    "vmamba-b-s2l15": ("vmamba_base_s2l15", 88_557_800),
    "vmamba-b-s1l20": ("vmamba_base_s1l20", 86_614_504),
    "vmamba-b-v0": ("vmamba_base_v0", 76_254_056),
}
SMALL_VMAMBA = {"depths": (1, 2), "dim": 16, "num_classes": 3}


@pytest.mark.parametrize(
    "variant",  # the larger ones repeat the tiny ones' blocks; their names and shapes are below
    [n if n.startswith("vmamba-t") else pytest.param(n, marks=pytest.mark.slow) for n in RELEASES],
)
def test_agrees_with_the_official_logits(variant):
    assert golden.logits_error(RELEASES[variant][0], lambda: build(variant)) <= 2e-5


@pytest.mark.parametrize("variant", RELEASES)
def test_names_and_shapes_are_the_official_ones_and_their_number_the_published_one(variant):
    name, parameters = RELEASES[variant]
    network = golden.published(variant)
    assert golden.shapes(network) == golden.layout(name)
    assert golden.parameters(network) == parameters


def test_the_block_agrees_with_the_official_one_and_its_gradients():
    block = VSSBlock(16, 0.0, VMambaConfig((1,), 16, ssm_ratio=1.0))
    assert golden.worst_module_error("vssblock_v05noz", block, channels_first=True) < 1e-12


@pytest.mark.parametrize(("height", "width"), [(33, 47), (230, 90)])
@pytest.mark.parametrize("variant", ["vmamba-t-s1l8", "vmamba-t-v0"])
def test_takes_images_of_any_size(variant, height, width):
    network = golden.fill(build(variant, **SMALL_VMAMBA), golden.strong)
    with torch.no_grad():
        logits = network(golden.images(2, 3, height, width))
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


def test_head_normalises_then_pools_then_projects():
    network = golden.fill(build("vmamba-t-s2l5", **SMALL_VMAMBA), golden.strong)
    x = golden.images(2, 3, 40, 40)
    with torch.no_grad():
        features = network.forward_features(x)
        norm, head = network.classifier.norm, network.classifier.head
        pooled = F.layer_norm(features, (32,), norm.weight, norm.bias).mean((1, 2))
        assert torch.allclose(network.forward_head(features, pre_logits=True), pooled, atol=1e-6)
        assert torch.allclose(network(x), pooled @ head.weight.T + head.bias, atol=1e-5)


def test_drop_path_rises_over_the_blocks():
    network = golden.published("vmamba-t-s1l8")
    blocks = [b for stage in network.layers for b in stage.blocks]
    rates = [block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx([0.2 * i / 13 for i in range(14)])


@torch.no_grad()
def test_starts_as_mamba_starts():
    torch.manual_seed(0)
    mixer = build("vmamba-t-v0", depths=(1,), dim=64).layers[0].blocks[0].op
    steps = F.softplus(mixer.dt_projs_bias)
    assert float(steps.min()) >= 1e-3 * 0.999
    assert float(steps.max()) <= 0.1 * 1.001
    assert torch.allclose(mixer.A_logs.exp()[5], torch.arange(1.0, 17))
    assert bool((mixer.Ds == 1).all())
    assert float(mixer.in_proj.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(mixer.dt_projs_weight.abs().max()) == pytest.approx(4**-0.5, rel=0.01)
    assert float(mixer.x_proj_weight.abs().max()) == pytest.approx(128**-0.5, rel=0.01)


def test_drop_path_is_that_of_the_published_trainings():
    rates = {name: config.drop_path for name, config in VARIANTS.items() if name != "vmamba-pico"}
    assert rates == {
        "vmamba-t-v0": 0.2, "vmamba-s-v0": 0.3, "vmamba-b-v0": 0.6,
        "vmamba-t-s2l5": 0.2, "vmamba-s-s2l15": 0.3, "vmamba-b-s2l15": 0.6,
        "vmamba-t-s1l8": 0.2, "vmamba-s-s1l20": 0.3, "vmamba-b-s1l20": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(dtype):
    network = golden.fill(build("vmamba-t-s1l8", depths=(1, 1), dim=32), golden.strong)
    x = golden.images(2, 3, 64, 64)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", dtype=dtype):
            half = network(x).float()
        pure = network.to(dtype)(x.to(dtype)).float()
    tolerance = 0.05 * float(exact.abs().max())
    assert float((half - exact).abs().max()) < tolerance
    assert float((pure - exact).abs().max()) < tolerance


@pytest.mark.parametrize(
    ("tag", "options"),
    [
        ("ss2d_v05noz_r1", {"d_state": 1, "ratio": 1.0, "gate": False, "conv_bias": False}),
        ("ss2d_v05noz_r2", {"d_state": 1, "ratio": 2.0, "gate": False, "conv_bias": False}),
        ("ss2d_v0", {"d_state": 16, "ratio": 2.0, "gate": True, "conv_bias": True}),
    ],
)
def test_the_mixer_agrees_with_the_official_module_and_its_gradients(tag, options):
    first = not options["gate"]  # the official v0 is channels-last, as ours always is
    error = golden.worst_module_error(tag, SS2D(16, **options), channels_first=first)
    assert error < 1e-12
