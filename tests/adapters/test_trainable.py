"""Networks as a training begins with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from robustcli.adapters import networks, timm_library
from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.load import resolve
from robustcli.adapters.model import shapes_only
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.adapters.strict_loading import heads_in
from robustcli.adapters.trainable import (
    heads_of,
    is_encoder_file,
    load_encoder,
    sized_preprocessing,
    start_classifier,
    start_segmenter,
    transfer,
)
from robustcli.core.errors import UsageError
from robustcli.models.architectures import architecture
from robustcli.models.umamba import UMamba
from robustcli.nnunet.files import upstream_state
from robustcli.nnunet.plans_json import make_plan
from tests.adapters.files import assert_holds, meta_state, old_name, random_state, trained
from tests.models import golden
from tests.nnunet.nnunet_files import PLAN, network

TINY = {"depths": [1, 1], "dim": 8}
PICO = resolve("vmamba-pico")


def start(
    name: str, weights: Path | None = None, arguments: Mapping[str, Any] | None = None, **how: Any
) -> tuple[nn.Module, str]:
    seed = how.pop("seed", 0)
    return start_segmenter(resolve(name), arguments or {}, seed=seed, weights=weights, **how)


@pytest.fixture(scope="module")
def resnet() -> Any:
    """A segmenter whose encoder the tests replace."""
    return architecture("resnet18_seg").build()


@pytest.fixture(scope="module")
def classifier_state() -> dict[str, Tensor]:
    state: dict[str, Tensor] = torchvision.models.resnet18().state_dict()
    return state


@pytest.mark.parametrize("name", ["ulvm_v5", "unet", "umambabot"])
def test_the_seed_and_the_name_decide_and_nothing_else(name: str) -> None:
    first, origin = start(name, seed=4)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again, _ = start(name, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert_holds(again, dict(first.state_dict()))
    other, _ = start(name, seed=5)
    key = next(k for k, t in first.state_dict().items() if t.ndim == 4)
    assert not torch.equal(other.state_dict()[key], first.state_dict()[key])
    assert origin == "none: initialised with seed 4"


def test_a_resnet_does_not_start_untrained_silently(attempts: list[object]) -> None:
    name = "resnet18_seg"
    message = (
        rf"`{name}` starts from ImageNet weights, which are not on this machine\.\n.*`--offline` "
        r"forbids(.|\n)*`--weights FILE`, or .*`--untrained`"
    )
    with pytest.raises(UsageError, match=message):
        start(name, offline=True)
    assert attempts == []
    with pytest.raises(UsageError, match=r"which are not on this machine\.\n.*the host name"):
        start(name)


def test_an_encoder_of_smp_does_not_start_untrained_silently(attempts: list[object]) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    message = r"`smp:Unet/resnet18` starts from ImageNet weights, which are not on this machine"
    with pytest.raises(UsageError, match=message):
        start("smp:Unet/resnet18", offline=True)
    network, origin = start("smp:Unet/resnet18", untrained=True, seed=1)
    assert origin == "none: initialised with seed 1"
    assert not network.training
    assert attempts == []


both_depths = pytest.mark.parametrize(  # the deeper one has more blocks of timm's
    ("name", "depth"),
    [("resnet18_seg", 18), pytest.param("resnet50_seg", 50, marks=pytest.mark.slow)],
)


@both_depths
def test_timms_weights_of_torchvision_go_into_the_encoder(
    name: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    expected: Any = timm.create_model(f"resnet{depth}")

    def create(source: str, **options: Any) -> nn.Module:
        asked.append((source, options["pretrained"], options["offline"]))
        return expected

    monkeypatch.setattr(timm_library, "create", create)
    network: Any
    network, origin = start(name)
    source = f"resnet{depth}.tv_in1k"
    assert asked == [(source, True, False)]
    assert timm.models.get_pretrained_cfg(source).url  # timm has weights of this name
    assert origin == f"encoder: https://huggingface.co/timm/{source}"
    assert torch.equal(network.encoder[7][1].conv2.weight, expected.layer4[1].conv2.weight)


@pytest.mark.parametrize("name", ["resnet18_seg", "smp:Unet/resnet18"])
def test_a_file_of_the_encoder(
    name: str, classifier_state: dict[str, Tensor], tmp_path: Path
) -> None:
    if name.startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch")
    torch.save(classifier_state, tmp_path / "resnet18-f37072fd.pth")
    network: Any
    network, origin = start(name, tmp_path / "resnet18-f37072fd.pth", seed=3)
    assert origin == f"encoder: {tmp_path / 'resnet18-f37072fd.pth'}"
    held = {tuple(t.shape): t for t in network.encoder.state_dict().values() if t.ndim == 4}
    assert torch.equal(held[(64, 3, 7, 7)], classifier_state["conv1.weight"])
    again, _ = start(name, tmp_path / "resnet18-f37072fd.pth", seed=3)
    assert_holds(again, dict(network.state_dict()))  # the decoder follows the seed


@pytest.mark.parametrize("name", ["swin-umamba", "swin-umamba-d"])
@pytest.mark.parametrize("old", [True, False], ids=["old names", "current names"])
def test_the_encoder_of_a_swin_umamba_from_a_vmamba(
    name: str, old: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classifier = architecture("vmamba-t-v0").build(**TINY)
    state = random_state(classifier)
    file = tmp_path / "vssmtiny.pth"
    named = {old_name(key): tensor for key, tensor in state.items()} if old else state
    torch.save({"model": named}, file)
    network, origin = start(name, file, TINY, seed=3)
    assert origin == f"encoder: {file}"
    own = dict(network.state_dict())
    for theirs, ours in (
        ("layers.1.blocks.0.op.x_proj_weight", "layers.1.blocks.0.self_attention.x_proj_weight"),
        ("layers.0.downsample.reduction.weight", "downsamples.0.reduction.weight"),
        ("patch_embed.2.bias", "patch_embed.norm.bias"),
    ):
        assert torch.equal(own[f"vssm_encoder.{ours}"], state[theirs])
    initial, _ = start(name, None, TINY, seed=3)
    assert all(
        torch.equal(own[key], tensor)
        for key, tensor in initial.state_dict().items()
        if not key.startswith("vssm_encoder.")
    )
    copied = len(own) - len([key for key in own if not key.startswith("vssm_encoder.")])
    if name == "swin-umamba":
        assert f"{copied - 3} of {copied} tensors of the encoder are copied" in caplog.text
        assert "`patch_embed.norm.weight` keep their initial values" in caplog.text
    else:
        assert f"{copied} of {copied} tensors of the encoder are copied" in caplog.text


def test_the_encoder_of_a_control_without_scan_and_of_another_number_of_classes(
    tmp_path: Path,
) -> None:
    state = random_state(architecture("vmamba-t-v0").build(**TINY))
    torch.save(state, tmp_path / "w.pth")
    options = {**TINY, "ablate": "scan"}
    network, _ = start("swin-umamba-d", tmp_path / "w.pth", options, classes=("a", "b"))
    own = network.state_dict()
    assert own["decoder.seg_layers.1.bias"].shape == (3,)
    assert not [key for key in own if key.endswith("A_logs")]
    key = "layers.0.blocks.0.{}.in_proj.weight"
    assert torch.equal(own["vssm_encoder." + key.format("self_attention")], state[key.format("op")])


@pytest.mark.parametrize("other", ["vmamba-t-s1l8", "vmamba-t-v0"])
def test_another_vmamba_is_refused(other: str, tmp_path: Path) -> None:
    torch.save(architecture(other).build(depths=(1, 2), dim=8).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"weights of `the encoder`(?s:.*)is `vmamba-t-v0`"):
        start("swin-umamba", tmp_path / "w.pth", TINY)


def test_a_run_and_a_whole_segmenter_to_go_on_from(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "unet", features=[4, 8])
    network: Any
    network, origin = start("unet", run)
    assert origin == str(run / "weights.safetensors")
    assert network.config.features == (4, 8)
    network, origin = start("resnet18_seg", untrained=True, seed=8)
    assert origin == "none: initialised with seed 8"
    torch.save(network.state_dict(), tmp_path / "w.pth")
    again, origin = start("resnet18_seg", tmp_path / "w.pth")
    assert_holds(again, dict(network.state_dict()))
    assert origin == str(tmp_path / "w.pth")


def test_a_file_of_another_network_says_which_it_is(tmp_path: Path) -> None:
    torch.save(start("ulvm")[0].state_dict(), tmp_path / "w.pth")
    for name in ("resnet18_seg", "ulvm_v5"):
        with pytest.raises(UsageError, match="These are the weights of `ulvm`: use this name"):
            start(name, tmp_path / "w.pth")
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(UsageError, match="Pass weights of the same encoder architecture"):
        start("resnet18_seg", tmp_path / "encoder.pth")


@pytest.mark.parametrize("name", ["otsu", "vmamba-pico"])
def test_what_does_not_learn_to_segment_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"`{name}` is not a segmenter that can be trained"):
        start(name)


@pytest.mark.parametrize("name", ["umamba-enc", "swin-umamba-pico", "segformer", "resnet50_seg"])
def test_other_names_start(name: str) -> None:
    with shapes_only():
        network, _ = start(name, untrained=True)
    assert sum(p.numel() for p in network.parameters()) == CATALOGUE[name].parameters


def test_the_seed_decides_and_the_callers_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, words = start_classifier(PICO, 3, TINY, seed=0)
    assert torch.equal(torch.rand(3), expected)
    again, _ = start_classifier(PICO, 3, TINY, seed=0)
    other, _ = start_classifier(PICO, 3, TINY, seed=1)
    key = "layers.0.blocks.0.op.in_proj.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    assert words == "none: initialised with seed 0"
    assert first(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_the_preprocessing_is_the_networks_own_or_that_of_a_window() -> None:
    preprocessing = sized_preprocessing(PICO, TINY, None)
    assert (preprocessing.resize, preprocessing.crop) == (32, 32)
    assert preprocessing.interpolation == "bilinear"
    resnet = resolve("resnet10t")
    assert sized_preprocessing(resnet, {}, 44) == Preprocessing(
        resize=sized_preprocessing(resnet, {}, None).resize * 44 // 176, crop=44,
        interpolation="bicubic",
    )  # fmt: skip


def test_a_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(UsageError, match="Set its size with `--window`") as error:
        sized_preprocessing(resolve("vim-t"), {"depth": 1}, 40)
    assert "--model-arg img_size=40" in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "heads"),
    [
        ("resnet10t", {}, ("fc.",)),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}, ("head.", "head_dist.")),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, ("head.fc.",)),
    ],
)
def test_the_heads_are_those_of_timms_contract(
    name: str, options: dict[str, object], heads: tuple[str, ...]
) -> None:
    assert heads_in(timm.create_model(name, **options)) == heads
    assert heads_in(networks.create("vmamba-pico", TINY)) == ("classifier.head.",)


def test_all_but_the_head_is_copied_also_from_another_number_of_classes() -> None:
    state = networks.create("vmamba-pico", TINY).state_dict()
    network = networks.create("vmamba-pico", {**TINY, "num_classes": 3})
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    transfer(network, state, PICO, ("classifier.head.",), "here")
    for name, tensor in network.state_dict().items():
        expected = before[name] if name.startswith("classifier.head.") else state[name]
        assert torch.equal(tensor, expected), name


def test_what_does_not_fit_is_named_and_nothing_is_copied() -> None:
    state = dict(networks.create("vmamba-pico", {**TINY, "dim": 16}).state_dict())
    state.pop("patch_embed.0.bias")
    network = networks.create("vmamba-pico", TINY)
    before = network.state_dict()["layers.1.blocks.0.op.Ds"].clone()
    with pytest.raises(UsageError, match=r"`patch_embed\.0\.weight` is \(8,") as error:
        transfer(network, state, PICO, ("classifier.head.",), "here")
    assert "`patch_embed.0.bias` is missing" in str(error.value)
    assert "classifier.head" not in str(error.value)
    assert torch.equal(network.state_dict()["layers.1.blocks.0.op.Ds"], before)


def test_a_deeper_network_of_the_same_names_is_refused() -> None:
    """ResNet-18's names and shapes are all in ResNet-34's file: loading would look right."""
    with shapes_only():
        state = timm.create_model("resnet34").state_dict()
    network = timm.create_model("resnet18", num_classes=3)
    with pytest.raises(UsageError, match=r"`layer1\.2\.conv1\.weight` is unknown"):
        transfer(network, state, resolve("resnet18"), ("fc.",), "here")


def test_a_file_with_prefix_and_authors_names(caplog: pytest.LogCaptureFixture) -> None:
    name, shallow = "swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}
    theirs = timm.create_model(name, **shallow).state_dict()
    state = {f"encoder.{key.replace('head.fc.', 'head.')}": t for key, t in theirs.items()}
    state = {
        re.sub(r"layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) - 1}.down", key): tensor
        for key, tensor in state.items()
    }
    network = timm.create_model(name, num_classes=3, **shallow)
    caplog.clear()
    transfer(network, state, resolve(name), ("head.fc.",), "w.pth")
    assert network.num_classes == 3
    for key, tensor in network.state_dict().items():
        if not key.startswith("head.fc."):
            assert torch.equal(tensor, theirs[key]), key
    assert "prefix `encoder.` removed" in caplog.text
    assert "timm's filter" in caplog.text


class Features(nn.Module):
    """Torchvision's ResNet up to its last map."""

    def __init__(self, full: torchvision.models.ResNet) -> None:
        super().__init__()
        self.whole = full

    def forward(self, x: Tensor) -> Tensor:
        w = self.whole
        x = w.maxpool(w.relu(w.bn1(w.conv1(x))))
        out: Tensor = w.layer4(w.layer3(w.layer2(w.layer1(x))))
        return out


@both_depths
def test_the_encoder_computes_what_the_classifier_computes(name: str, depth: int) -> None:
    full = getattr(torchvision.models, f"resnet{depth}")()
    golden.fill(full, golden.rule_b)
    state = full.state_dict()
    with shapes_only():
        assert list(timm.create_model(f"resnet{depth}").state_dict()) == list(state)
    network: Any = architecture(name).build().eval()
    load_encoder(network, state, origin="w")
    x = golden.images(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.encoder(x), Features(full)(x), rtol=0, atol=0)


def test_old_files_without_counters_and_files_without_head_leave_the_decoder_alone(
    resnet: Any, classifier_state: dict[str, Tensor]
) -> None:
    before = {k: t.clone() for k, t in resnet.decoder.state_dict().items()}
    old = {k: t for k, t in classifier_state.items() if not k.endswith("num_batches_tracked")}
    headless = {k: t for k, t in old.items() if not k.startswith("fc.")}
    for values in (old, headless):
        nn.init.zeros_(resnet.encoder[0].weight)
        load_encoder(resnet, values, origin="w")
        torch.testing.assert_close(resnet.encoder[0].weight, classifier_state["conv1.weight"])
    torch.testing.assert_close(resnet.decoder.state_dict(), before, rtol=0, atol=0)


def test_another_encoder_is_refused(resnet: Any) -> None:
    before = resnet.encoder[0].weight.clone()
    message = r"`w` does not contain the w.* `the encoder`(.|\n)*same encoder arch"
    for other in ("resnet34", "resnet50", "squeezenet1_0"):
        with shapes_only():
            state = getattr(torchvision.models, other)().state_dict()
        with pytest.raises(UsageError, match=message):
            load_encoder(resnet, state, origin="w")
    assert torch.equal(resnet.encoder[0].weight, before)


def test_an_encoder_below_a_prefix_but_not_that_of_a_segmenter(
    resnet: Any, classifier_state: dict[str, Tensor]
) -> None:
    state, network = classifier_state, resnet
    assert is_encoder_file(state)
    assert not is_encoder_file(meta_state("resnet18_seg"))
    assert not is_encoder_file(meta_state("segformer"))
    for prefix in ("backbone.", "encoder.", "model.encoder."):
        below = {f"{prefix}{key}": tensor for key, tensor in state.items() if key[:3] != "fc."}
        assert is_encoder_file(below)
        load_encoder(network, below, origin="w")
        torch.testing.assert_close(network.encoder[0].weight, state["conv1.weight"])
    with pytest.raises(UsageError, match="unknown"):
        load_encoder(network, {**below, "decoder.weight": torch.ones(1)}, origin="w")


ORGANS = replace(PLAN, dataset={**PLAN.dataset, "labels": {"background": 0, "a": 1, "b": 2}})


def transferred(
    target: UMamba, state: Mapping[str, Tensor], patch: tuple[int, int] | None = None
) -> list[str]:
    entry = resolve("umamba" if target.config.mamba == "bottleneck" else "umamba-enc")
    return transfer(target, state, entry, heads_of(entry), "there", patch=patch)


@pytest.mark.parametrize("model", ["umamba", "umamba-enc"])
@pytest.mark.parametrize("copies", [True, False])
def test_all_but_the_heads_is_copied_from_either_spelling(model: str, copies: bool) -> None:
    """The heads of `copies` would fit."""
    source, target = network(model, PLAN if copies else ORGANS, seed=1), network(model, seed=2)
    heads = {k: v.clone() for k, v in target.state_dict().items() if ".seg_layers." in k}
    state = upstream_state(source) if copies else source.state_dict()
    names = transferred(target, state)
    after = target.state_dict()
    assert names == [name for name in after if ".seg_layers." not in name]
    assert all(torch.equal(after[name], source.state_dict()[name]) for name in names)
    assert heads
    assert all(torch.equal(after[name], head) for name, head in heads.items())


def test_tensors_that_are_missing_are_named_and_nothing_is_copied() -> None:
    state = network(seed=1).state_dict()
    del state["mamba_layer.mamba.D"], state["encoder.stem.0.conv1.bias"]
    target = network(seed=2)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        transferred(target, state)
    assert "2 differ: `encoder.stem.0.conv1.bias` is missing; `mamba_layer.mamba.D` is missing" in (
        caught.value.why
    )
    assert "nnUNetv2_move_plans_between_datasets" in caught.value.todo
    assert all(torch.equal(before[name], t) for name, t in target.state_dict().items())


def test_other_input_channels_and_another_patch_size_of_the_encoder_variant_say_so() -> None:
    grey = make_plan((32, 32), ("MR",), images=50, features=(4, 64))
    with pytest.raises(UsageError, match=r"(?s)is \(4, 1, 3, 3\), not \(4, 3, 3, 3\).*channels mu"):
        transferred(network(), network(plan=grey).state_dict())
    other = make_plan((48, 32), ("R", "G", "B"), images=50, features=(4, 64))
    with pytest.raises(UsageError, match=r"(?s)mamba_layers.*`umamba-enc` depend on the patch"):
        transferred(network("umamba-enc"), network("umamba-enc", other).state_dict())
    assert transferred(network("umamba"), network("umamba", other).state_dict())


def test_shapes_that_agree_by_chance_do_not_hide_another_patch_size() -> None:
    """Last stage: 16 channels of 16 pixels as tokens at one patch, 24 pixels of 16 at the other."""
    plans = [
        make_plan((side, 32), ("R", "G", "B"), images=50, features=(4, 16)) for side in (32, 48)
    ]
    target, source = (network("umamba-enc", plan) for plan in plans)
    assert transferred(target, source.state_dict())
    with pytest.raises(UsageError, match=r"(?s)for patches of 48 x 32 pixels.*for 32 x 32.*umamba"):
        transferred(target, source.state_dict(), patch=plans[1].patch)
    assert transferred(target, source.state_dict(), patch=plans[0].patch)
    bottleneck = network("umamba", plans[0])
    assert transferred(bottleneck, network("umamba", plans[1]).state_dict(), patch=plans[1].patch)
