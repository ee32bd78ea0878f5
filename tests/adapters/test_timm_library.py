"""Timm models by their own names, against timm itself, and `resnet-pico`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import is_model_pretrained, model_entrypoint
from torch import Tensor, nn

from robustcli.adapters import timm_library
from robustcli.adapters.catalogue import CATALOGUE, IN1K, ModelRequest
from robustcli.adapters.fetching import fetch, is_here, local_path
from robustcli.adapters.load import load
from robustcli.adapters.model import shapes_only
from robustcli.adapters.networks import create_model
from robustcli.adapters.strict_loading import heads_in
from robustcli.adapters.timm_library import has_architecture, pretraining
from robustcli.core.errors import UsageError

NAME = "test_resnet.r160_in1k"  # timm's own smallest


def test_known_names_and_suggestions() -> None:
    assert timm_library.has_architecture("resnet50")
    assert timm_library.has_architecture("resnet50.a1_in1k")
    assert not timm_library.has_architecture("resnet5O")
    assert not timm_library.has_architecture("vmamba-t")
    assert timm_library.suggestions("resnet5O")[0] == "resnet50"
    assert "swin_base_patch4_window7_224" in timm_library.suggestions(
        "swin_base_patch4_window7.tag"
    )


@pytest.mark.parametrize("pretrained", [True, False])
def test_an_unknown_tag(pretrained: bool, attempts: list[object]) -> None:
    message = (
        r"timm cannot build `resnet18\.nosuch`\.\nThe error is: .*nosuch.*\nCheck the tag after the"
    )
    with pytest.raises(UsageError, match=message):
        timm_library.create("resnet18.nosuch", pretrained=pretrained, arguments={})
    assert pretrained or attempts == []


@pytest.mark.parametrize(
    "arguments", [{"depths_typo": 3}, {"num_classes": "ten"}, {"global_pool": "none-such"}]
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_an_argument_that_does_not_fit(arguments: dict[str, object], pretrained: bool) -> None:
    with pytest.raises(UsageError, match=r"timm cannot build `.*\nThe error is: .+\n.*--model-arg"):
        timm_library.create(NAME, pretrained=pretrained, arguments=arguments, offline=True)


def test_offline_never_tries_the_network_and_names_the_address(attempts: list[object]) -> None:
    for name, address in {
        NAME: f"https://huggingface.co/timm/{NAME} (model.safetensors)",
        "gcvit_xxtiny.in1k": str(timm.models.get_pretrained_cfg("gcvit_xxtiny.in1k").url),
    }.items():
        why = rf"The weights of `{name}` could not be downloaded\.\nThe (.|\n)*"
        todo = re.escape(f"They are at {address}: pass a copy with")
        with pytest.raises(UsageError, match=why + todo):
            timm_library.create(name, pretrained=True, arguments={}, offline=True)
    assert attempts == []


def test_an_error_without_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wordless(Exception):  # noqa: N818
        """As httpx and others raise them."""

    def fail(*_: object, **__: object) -> None:
        raise Wordless

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr("robustcli.adapters.fetching.unreachable", lambda: None)
    with pytest.raises(UsageError, match="The reason: Wordless: Wordless"):
        timm_library.create(NAME, pretrained=True, arguments={})


def test_weights_from_the_hubs_cache_need_no_network(home: Path, attempts: list[object]) -> None:
    network = timm_library.create(NAME, pretrained=False, arguments={})
    snapshot = home / "hub" / f"models--timm--{NAME}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    save_file(network.state_dict(), snapshot / "model.safetensors")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    loaded = timm_library.create(NAME, pretrained=True, arguments={}, offline=True)
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], tensor, rtol=0, atol=0)
    assert attempts == []


def test_load_is_strict() -> None:
    network = timm_library.create(NAME, pretrained=False, arguments={})
    state = network.state_dict()
    loaded = timm_library.with_weights(NAME, state, origin="w.pth", arguments={})
    torch.testing.assert_close(loaded.state_dict()["fc.weight"], state["fc.weight"])
    assert not loaded.training
    state.pop("fc.bias")
    message = rf"`w\.pth` does not contain the weights of `{NAME}`\.\n.*1 missing \(`fc\.bias`\)"
    with pytest.raises(UsageError, match=message):
        timm_library.with_weights(NAME, state, origin="w.pth", arguments={})


def swins(network: nn.Module) -> dict[str, Tensor]:
    """As Swin's authors have it: downsampling ends a stage, masks are saved, the head is plain."""
    state = {}
    for key, tensor in network.state_dict().items():
        stage = re.match(r"layers\.(\d)\.downsample", key)
        name = f"layers.{int(stage[1]) - 1}{key[8:]}" if stage else key
        state[name.replace("head.fc.", "head.")] = tensor
    return state | {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}


def convnexts(network: nn.Module) -> dict[str, Tensor]:
    """As ConvNeXt's authors have it."""
    names = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc(\d)", r"pwconv\1"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    )
    state = network.state_dict()
    for pattern, new in names:
        state = {re.sub(pattern, new, key): tensor for key, tensor in state.items()}
    return state


AUTHORS: list[tuple[str, Callable[[nn.Module], dict[str, Tensor]]]] = [
    ("swin_tiny_patch4_window7_224", swins),
    ("convnext_atto", convnexts),
]
SHALLOW = {"depths": (2, 1, 1, 1)}


@pytest.mark.parametrize(("name", "authors", "classes"), [(*AUTHORS[0], 4), (*AUTHORS[1], 1000)])
def test_files_under_their_authors_own_names(
    name: str, authors: Callable[[nn.Module], dict[str, Tensor]], classes: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    torch.manual_seed(3)
    theirs = timm.create_model(name, num_classes=classes, **SHALLOW).eval()
    state = authors(theirs)
    assert state.keys() != theirs.state_dict().keys()
    caplog.clear()
    loaded = timm_library.with_weights(name, state, origin="w.pth", arguments=SHALLOW)
    with torch.no_grad():
        images = torch.rand(1, 3, 224, 224)
        torch.testing.assert_close(loaded(images), theirs(images), rtol=0, atol=0)
    refusal = f"; its head has 4 classes, so that `{name}` has 4 too" if classes == 4 else ""
    home = model_entrypoint(name).__module__
    message = f"`w.pth`: its tensors are renamed by timm's filter of `{home}`{refusal}."
    assert caplog.messages == [message]


def test_a_file_under_its_authors_names_stays_strict() -> None:
    name, authors = AUTHORS[1]
    state = authors(timm.create_model(name, **SHALLOW))
    for change in ({"stages.0.0.dwconv.bias": None}, {"stray.weight": torch.ones(1)}):
        changed = {key: t for key, t in (state | change).items() if t is not None}
        with pytest.raises(UsageError, match=r"does not contain the weights of `convn"):
            timm_library.with_weights(name, changed, origin="w.pth", arguments=SHALLOW)


def test_positions_for_images_of_another_size_are_said(caplog: pytest.LogCaptureFixture) -> None:
    name, small = "vit_tiny_patch16_224", {"depth": 1}
    state = timm.create_model(name, **small).state_dict()
    caplog.clear()
    loaded = timm_library.with_weights(name, state, origin="w", arguments={**small, "img_size": 96})
    assert loaded.state_dict()["pos_embed"].shape == (1, 37, 192)
    assert "`pos_embed` is resized from (1, 197, 192) to (1, 37, 192)" in caplog.text


FAMILIES = ("swin_transformer", "convnext", "deit", "regnet")


def filters() -> dict[str, list[str]]:
    """Timm's modules that filter files, and the names of the networks in them."""
    folder = Path(timm.models.__file__).parent
    result: dict[str, list[str]] = {
        file.stem: [] for file in folder.glob("[a-z]*.py")
        if "pretrained_filter_fn=" in file.read_text(encoding="utf-8")
    }  # fmt: skip
    for name in timm.list_models():
        home = model_entrypoint(name).__module__.rpartition(".")[2]
        if home in result:
            result[home].append(name)
    return result


@pytest.mark.parametrize(
    "families", [FAMILIES, pytest.param((), marks=pytest.mark.slow, id="all of timm's")]
)
@pytest.mark.filterwarnings("ignore")  # timm's own, of names that it gave up
def test_the_filter_of_every_family_is_found(families: tuple[str, ...]) -> None:
    filter_names = filters()
    assert len(filter_names) > 40
    for family in families or filter_names:
        names = sorted(filter_names[family], key=len)[:4]  # of some models nothing is published
        assert any(timm_library.checkpoint_filter(name) for name in names), family


def test_a_constructor_that_reads_its_numbers_gets_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of RegNet does in timm up to 1.0.21."""
    build = timm.create_model

    def read_and_build(*arguments: object, **options: object) -> nn.Module:
        assert torch.zeros(1).item() == 0  # which is an error without numbers
        return build(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", read_and_build)
    assert timm_library.checkpoint_filter("convnext_atto") is not None
    assert timm_library.checkpoint_filter(NAME) is None  # it has none


def test_the_classes_of_the_head_decide_and_are_said(caplog: pytest.LogCaptureFixture) -> None:
    state = timm.create_model(NAME, num_classes=4).state_dict()
    caplog.clear()
    loaded = timm_library.with_weights(NAME, state, origin="w.pth", arguments={})
    assert loaded.num_classes == 4
    torch.testing.assert_close(loaded.state_dict()["fc.weight"], state["fc.weight"])
    assert caplog.messages == [f"`w.pth`: its head has 4 classes, so that `{NAME}` has 4 too."]
    caplog.clear()
    timm_library.with_weights(NAME, state, origin="w.pth", arguments={"num_classes": 4})
    assert caplog.messages == []

    message = r"`num_classes=5` contradicts the weights in `w\.pth`\.\nTheir head has 4 classes"
    with pytest.raises(UsageError, match=message):
        timm_library.with_weights(NAME, state, origin="w.pth", arguments={"num_classes": 5})


def test_a_backbone_says_what_it_is_good_for() -> None:
    network = timm.create_model(NAME)
    state = {k: t for k, t in network.state_dict().items() if not k.startswith(heads_in(network))}
    with pytest.raises(UsageError, match=r"2 missing(.|\n)*without its head(.|\n)*robust finetune"):
        timm_library.with_weights(NAME, state, origin="w.pth", arguments={})


PREPROCESSED = [
    "resnet50.a1_in1k",  # tested at 288, trained at 224
    "swin_tiny_patch4_window7_224.ms_in1k",
    "vit_base_patch16_224.augreg_in21k_ft_in1k",  # mean 0.5
    "inception_v3.tv_in1k",  # 299
    "vit_base_patch16_clip_224.openai",
    "resnet18.tv_in1k",  # bilinear
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k",  # squash
]


@pytest.mark.parametrize("name", PREPROCESSED)
def test_preprocessing_is_timms_own(name: str) -> None:
    with shapes_only():
        network = timm.create_model(name)
    preprocessing = timm_library.timm_preprocessing(network)
    config = resolve_data_config({}, model=network)
    assert (preprocessing.mean, preprocessing.std) == (tuple(config["mean"]), tuple(config["std"]))
    theirs = create_transform(**config, normalize=False)
    generator = np.random.default_rng(0)
    for size in ((400, 301), (120, 500)):
        image = generator.integers(0, 256, (*size, 3), np.uint8)
        expected = theirs(Image.fromarray(image)).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(preprocessing.apply(image), expected)


def test_a_crop_mode_that_is_not_supported() -> None:
    network = timm_library.create(NAME, pretrained=False, arguments={})
    network.pretrained_cfg = {**network.pretrained_cfg, "crop_mode": "border"}
    with pytest.raises(UsageError, match=r"crop mode `border` is not supported\.\n.*`--resize`"):
        timm_library.timm_preprocessing(network)


ONLY = [
    "convnext_base.fb_in1k",
    "swin_base_patch4_window7_224.ms_in1k",
    "resnet50.tv_in1k",
    "resnet50.a1_in1k",
    "vit_base_patch16_224.augreg_in1k",
    "deit_base_patch16_224.fb_in1k",
    "tf_efficientnetv2_s.in1k",
    "hiera_base_224.mae_in1k_ft_in1k",
    "coatnet_0_rw_224.sw_in1k",
    "nest_base_jx.goog_in1k",
    "tresnet_l.miil_in1k",
    "tresnet_l.miil_in1k_448",
    "caformer_b36.sail_in1k_384",
    "mobilenetv2_100",
]
MORE = [
    "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "convnext_base.fb_in22k",
    "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "regnety_160.sw_in12k_ft_in1k",
    "tf_efficientnet_b0.ns_jft_in1k",
    "resnet50.fb_swsl_ig1b_ft_in1k",
    "resnet50.fb_ssl_yfcc100m_ft_in1k",
    "vit_base_patch16_clip_224.laion2b_ft_in12k_in1k",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch14_dinov2.lvd142m",
    "regnety_160.swag_ft_in1k",
    "regnety_160.swag_lc_in1k",
    "regnety_320.seer_ft_in1k",
    "eva_giant_patch14_224.clip_ft_in1k",
    "hgnet_base.ssld_in1k",
    "eva02_large_patch14_448.mim_m38m_ft_in1k",
    "mvitv2_base_cls.fb_inw21k",
    "resnetv2_50x1_bit.goog_distilled_in1k",
    "nextvit_base.bd_ssld_6m_in1k",
    # Timm's own bare names: what the catalogue's short names must not mean.
    "swin_base_patch4_window7_224",
    "convnext_base",
]


def test_what_saw_imagenet_1k_only_and_what_saw_more() -> None:
    assert all(has_architecture(name) for name in (*ONLY, *MORE))
    assert {name: pretraining(name) for name in ONLY} == dict.fromkeys(ONLY, IN1K)
    more = "more than ImageNet-1K (timm tag "
    assert [name for name in MORE if not pretraining(name).startswith(more)] == []


def test_other_tags_are_given_as_they_are() -> None:
    assert pretraining("vit_base_patch16_224.mae") == "timm tag mae"
    assert pretraining("vit_base_patch16_224.dino") == "timm tag dino"


def test_no_larger_data_set_hides_behind_a_tag_that_ends_in_in1k() -> None:
    """Whoever adds a tag to timm with a new data set shows up here."""
    tags = {n.split(".", 1)[1] for n in timm.list_pretrained() if pretraining(n) == IN1K}
    parts = {part for tag in tags for part in tag.split("_")}
    large = re.compile(r"\d{2,}(k|m|b)$|inst|clip|jft|laion|web")
    assert not {part for part in parts if large.search(part)}


ASSET = local_path(CATALOGUE["resnet-pico"])


def test_the_name_is_not_one_of_timms_own() -> None:
    """Else a newer timm would silently mean another network by it."""
    assert model_entrypoint("resnet_pico").__module__ == timm_library.__name__
    assert not is_model_pretrained("resnet_pico")


def test_it_has_about_the_size_of_vmamba_pico_and_sees_as_many_positions() -> None:
    sizes = [CATALOGUE[name].parameters for name in ("resnet-pico", "vmamba-pico")]
    assert abs(sizes[0] - sizes[1]) < sizes[1] / 20
    stages = timm.create_model("resnet_pico", features_only=True)
    sides = [tuple(stage.shape[1:]) for stage in stages(torch.zeros(1, 3, 32, 32))]
    assert sides == [(32, 16, 16), (64, 8, 8), (120, 4, 4)]


def test_the_bundled_file_is_loaded_whole_and_nothing_is_downloaded(
    attempts: list[object],
) -> None:
    model = load(ModelRequest("ResNet_pico"), "cls")
    facts = model.facts
    assert (facts.name, facts.builder) == ("resnet-pico", "timm:resnet_pico")
    assert (facts.weights, facts.pretraining) == ("resnet-pico.safetensors", "CIFAR-10")
    assert not facts.untrained
    torch.testing.assert_close(model.network.state_dict(), load_file(ASSET), rtol=0, atol=0)
    assert model.preprocessing == load(ModelRequest("vmamba-pico"), "cls").preprocessing
    assert is_here(CATALOGUE["resnet-pico"])
    assert fetch("resnet-pico", offline=True).path == ASSET
    assert attempts == []


def test_in_python_it_is_the_same_network_and_loading_is_strict(tmp_path: Path) -> None:
    network = create_model("resnet-pico", weights=ASSET)
    torch.testing.assert_close(network.state_dict(), load_file(ASSET), rtol=0, atol=0)
    assert create_model("resnet-pico", num_classes=3).num_classes == 3
    state = load_file(ASSET)
    del state["stem.conv.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="does not contain the weights of `resnet_pico`"):
        load(ModelRequest("resnet-pico", weights=tmp_path / "w.safetensors"), "cls")
