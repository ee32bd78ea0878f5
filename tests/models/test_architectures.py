"""Networks by name: listing, options, weight decay, and what every network of this room keeps."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical
from robustcli.evaluation.export_formats import any_batch
from robustcli.models import umamba, vim, vmamba
from robustcli.models.architectures import (
    ARCHITECTURES,
    architecture,
    changed,
    check_multiple,
    everything_decays,
    mamba_decays,
    parameter_groups,
    vmamba_decays,
)
from tests.models import golden


def test_options_reach_the_configuration():
    network = architecture("umamba").build(features=[4, 8], strides=[1, 2], num_classes=5)
    assert network.config.features == (4, 8)
    assert network.decoder.seg_layers[0].out_channels == 5


def test_a_name_in_any_spelling_and_one_that_is_unknown():
    assert len({canonical(name) for name in ARCHITECTURES}) == len(ARCHITECTURES)
    assert architecture(" Umamba_ENC ").name == "umamba-enc"
    with pytest.raises(UsageError, match=r"(?s)No network is called `umambo`.*`umamba`"):
        architecture("umambo")


def test_listing_imports_no_torch():
    code = (
        "import sys, robustcli.models.architectures as r; r.architecture('vim'); print(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'torch'" not in done.stdout
    assert "'robustcli.models.architectures'" in done.stdout


def _undecayed(network, rule):
    return {name for name, p in network.named_parameters() if not rule(name, p)}


def test_vmamba_leaves_out_vectors_and_biases_but_decays_step_sizes_and_states():
    network = vmamba.build("vmamba-t-v0", depths=(1,), dim=16)
    out = _undecayed(network, vmamba_decays)
    prefix = "layers.0.blocks.0.op."
    kept = {name for name, _ in network.named_parameters()} - out
    assert {prefix + "A_logs", prefix + "dt_projs_bias", prefix + "x_proj_weight"} <= kept
    assert {prefix + "Ds", prefix + "conv2d.bias", prefix + "out_norm.weight"} <= out
    assert "classifier.head.bias" in out


def test_vim_leaves_out_states_of_both_directions_and_the_embeddings():
    out = _undecayed(vim.build("vim-t", depth=1, img_size=32), mamba_decays)
    mixer = "layers.0.mixer."
    assert out == {
        "cls_token", "pos_embed", "patch_embed.proj.bias", "head.bias", "norm_f.weight",
        "layers.0.norm.weight",
        *(mixer + p for p in ("A_log", "D", "A_b_log", "D_b", "conv1d.bias", "conv1d_b.bias")),
        mixer + "dt_proj.bias", mixer + "dt_proj_b.bias",
    }  # fmt: skip


def test_the_segmentation_projects_decay_everything():
    network = umamba.build("umamba", features=(4, 8), strides=(1, 2))
    assert _undecayed(network, everything_decays) == set()


def test_groups_hold_each_trainable_parameter_once():
    network = vim.build("vim-t", depth=2, img_size=32)
    network.head.weight.requires_grad_(False)
    groups = parameter_groups(network, 0.05, mamba_decays)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_an_optimizer_takes_the_groups_and_an_undecayed_parameter_stays():
    network = vim.build("vim-t", depth=1, img_size=32)
    before = network.layers[0].mixer.A_log.detach().clone()
    optimizer = torch.optim.SGD(parameter_groups(network, 0.5, mamba_decays), lr=1.0)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    weight = network.head.weight.detach().clone()
    optimizer.step()
    assert torch.equal(network.layers[0].mixer.A_log, before)
    assert torch.allclose(network.head.weight, weight / 2)


def test_no_group_is_empty():
    network = umamba.build("umamba", features=(4, 8), strides=(1, 2))
    assert len(parameter_groups(network, 0.1, everything_decays)) == 1


def test_every_architecture_names_a_rule():
    by_task = {"cls": mamba_decays, "seg": everything_decays}
    for entry in ARCHITECTURES.values():
        expected = {"vmamba": vmamba_decays}.get(entry.family, by_task[entry.task])
        assert entry.decays is expected, entry.name


@dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (1, 2)
    depth: int = 3


def test_named_fields_change_and_lists_become_tuples_at_every_level():
    config = Config()
    assert changed(config, {"depth": 5}, model="m") == Config(depth=5)
    assert config == Config()
    assert changed(Config(), {"widths": [[1, 2], 3]}, model="m").widths == ((1, 2), 3)


def test_an_unknown_name_is_told_with_the_nearest_and_all():
    with pytest.raises(
        UsageError, match=r"(?s)`m` has no option `dept=\.\.\.`.*`depth`\?.*widths, depth"
    ):
        changed(Config(), {"dept": 5}, model="m")
    with pytest.raises(UsageError, match=r"(?s)no option `zzz=\.\.\.`\.\nIts options"):
        changed(Config(), {"zzz": 5}, model="m")


@pytest.mark.parametrize(("height", "width"), [(31, 48), (32, 40)])
def test_each_axis_is_checked_against_its_own_step(height, width):
    check_multiple(torch.zeros(1, 1, 32, 48), (32, 16))
    with pytest.raises(UsageError, match=rf"(?s){height} x {width} pixels, .*of 32 and 16.*pad"):
        check_multiple(torch.zeros(1, 1, height, width), (32, 16))


# A sibling of each is tried in every run: vmamba-t-s1l8, vim, ulvm.
NAMES = [name for name in golden.SMALL if name not in ("vmamba-pico", "umambabot")]
SLOW = ("vmamba-t-v0", "vim-t", "vim-t-plus", "ulvm_v3", "ulvm_v4")
# Tracing takes seconds; these have both scans, each kind of Mamba block, and convolutions.
TRACED = ("vim", "umamba", "vmunet", "vit")


def _cases(quick):
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]


@cache
def _filled(name: str) -> torch.nn.Module:
    return golden.fill(architecture(name).build(**golden.SMALL[name][0]), golden.strong)


@pytest.fixture(params=_cases(set(NAMES) - set(SLOW)))
def case(request) -> tuple[torch.nn.Module, Tensor]:
    size = golden.SMALL[request.param][1]
    return copy.deepcopy(_filled(request.param)), golden.images(2, 3, size, size)


@pytest.mark.parametrize("case", _cases(TRACED), indirect=True)
@torch.no_grad()
def test_compiles_and_exports_whole_without_changing_the_result(case):
    network, x = case
    expected = network(x)
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(network, (x,), dynamic_shapes=any_batch()).module()
    for traced in (compiled, exported):
        assert torch.allclose(traced(x), expected, atol=1e-4)
    assert torch.allclose(exported(x[:1]), expected[:1], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_gives_no_nan(case, dtype):
    network, x = case
    for scale in (1, 100):
        with torch.autocast("cpu", dtype=dtype):
            assert network(scale * x).isfinite().all()


@torch.no_grad()
def test_float64_takes_float64_and_agrees_with_float32(case):
    network, x = case
    single = network(x)
    double = network.double()(x.double())
    assert double.dtype == torch.float64
    assert golden.distance(single, double.numpy()) <= 1e-3 * float(double.abs().max())


def test_every_parameter_that_serves_gets_a_finite_gradient(case):
    network, x = case
    network.train()(x).square().mean().backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None}
    assert all("seg_layers" in name or "out_layers" in name for name in idle)
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(bool(grad.isfinite().all()) for grad in grads)


@torch.no_grad()
def test_neither_the_layout_nor_the_rest_of_the_batch_matters_and_the_input_is_left(case):
    network, x = case
    before = x.clone()
    expected = network(x)
    assert torch.equal(x, before)
    assert torch.allclose(network(x[1:]), expected[1:], atol=1e-4)
    channels_last = x.to(memory_format=torch.channels_last)
    strided = torch.stack((x, x), -1)[..., 0]
    for other in (channels_last, strided):
        assert torch.allclose(network(other), expected, atol=1e-4)
