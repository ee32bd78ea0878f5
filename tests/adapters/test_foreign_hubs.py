"""Networks in the formats of hubs, from local folders: transformers, timm, open_clip."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import robustcli
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.foreign import open_foreign
from robustcli.adapters.foreign_hubs import open_repository
from robustcli.adapters.load import load
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import MachineError, UsageError
from robustcli.data.labels import read_label_space

CIFAR = read_label_space("cifar10").ids


def photo(side: tuple[int, int] = (50, 40)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (*side, 3), np.uint8)


def vit(folder: Path, labels: tuple[str, ...] = CIFAR, **processor: object) -> Path:
    """A tiny ViT of transformers with its processor."""
    transformers = pytest.importorskip("transformers", "4.56", reason="needs the extra `hf`")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=8, id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    defaults = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True,
        "do_normalize": True, "size": {"height": 32, "width": 32}, "resample": 2,
        "rescale_factor": 1 / 255, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps({**defaults, **processor}))
    return folder


def views(model: Any, images: list[np.ndarray[Any, Any]]) -> torch.Tensor:
    steps = model.preprocessing
    return torch.from_numpy(np.stack([steps.apply(image).transpose(2, 0, 1) for image in images]))


# transformers.


@pytest.mark.parametrize("interpolation", [2, 3])
def test_a_classifier_of_transformers_answers_as_transformers_does(
    tmp_path: Path, interpolation: int
) -> None:
    folder = vit(tmp_path / "vit", resample=interpolation)
    model = load(ModelRequest(f"hf:{folder}"), "cls", offline=True)
    import transformers

    module = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    # transformers' own steps by hand: resize with Pillow, scale, normalise
    resample = Image.Resampling(interpolation)
    pixels = np.asarray(Image.fromarray(photo()).resize((32, 32), resample), np.float32) / 255
    pixels = (pixels - np.float32([0.5, 0.4, 0.3])) / np.float32([0.5, 0.6, 0.7])
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels.transpose(2, 0, 1))[None]).logits
    torch.testing.assert_close(model.logits(views(model, [photo()])), expected)
    assert model.facts.name == "hf:vit"
    assert model.facts.label_space == "cifar10"


def test_a_run_of_a_hub_folder_records_it_and_goes_on(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit")
    settings: dict[str, Any] = {"limit": 10, "device": "cpu", "workers": 0, "offline": True}
    out = tmp_path / "run"
    for _ in range(2):
        run = robustcli.evaluate(f"hf:{folder}", "cifar10-mini", "grayscale", out=out, **settings)
    assert len(list((out / "sessions").iterdir())) == 1
    assert run.record.models[0].weights == str(folder)
    state = load_file(folder / "model.safetensors")
    state["classifier.bias"] += 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="`hf:vit`: the hash of the weights"):
        robustcli.evaluate(f"hf:{folder}", "cifar10-mini", "grayscale", out=out, **settings)


def test_labels_say_what_the_classes_are(tmp_path: Path) -> None:
    turned = (*CIFAR[1:], CIFAR[0])
    timms, _ = timm_folder(tmp_path / "mine", label_names=turned)
    opened = open_foreign(ModelRequest(f"hf-hub:{timms}"), offline=True)
    assert opened.space is not None
    assert opened.space.ids == turned
    opened = open_foreign(ModelRequest(f"hf:{vit(tmp_path / 'a', turned)}"), offline=True)
    assert opened.names_classes
    assert opened.space is not None
    assert opened.space.ids == turned
    unnamed = tuple(f"LABEL_{n}" for n in range(10))
    opened = open_foreign(ModelRequest(f"hf:{vit(tmp_path / 'b', unnamed)}"), offline=True)
    assert opened.space == read_label_space("cifar10")
    assert not opened.names_classes


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": {"height": 224, "width": 224}}, (224, 224, "squash")),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224},
          "do_center_crop": True}, (256, 224, "center")),
        ({"size": 224}, (224, 224, "squash")),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (256, 224, "center")),
        ({"size": {"shortest_edge": 384}, "crop_pct": 1.0}, (384, 384, "squash")),
        ({"size": {"height": 224, "width": 224}, "do_resize": False,
          "crop_size": {"height": 200, "width": 200}, "do_center_crop": True},
         (None, 200, "center")),
    ],
)  # fmt: skip
def test_processors_of_transformers(
    tmp_path: Path, processor: dict[str, object], expected: tuple[int | None, int, str]
) -> None:
    from robustcli.adapters.foreign_hubs import Repository, _processor

    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": 3, **processor}))
    preprocessing = _processor(Repository(tmp_path, "here"))
    assert preprocessing is not None
    assert (preprocessing.resize, preprocessing.crop, preprocessing.mode) == expected
    assert preprocessing.interpolation == "bicubic"


def test_a_processor_that_scales_otherwise_is_refused(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit", rescale_factor=1 / 127.5)
    with pytest.raises(UsageError, match="not by 1/255"):
        load(ModelRequest(f"hf:{folder}"), offline=True)


def test_code_and_pickles_of_a_repository_are_refused(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(UsageError, match="its own Python code, which is not run"):
        load(ModelRequest(f"hf:{folder}"), offline=True)
    other = {**config, "architectures": ["ViTModel"]}
    (folder / "config.json").write_text(json.dumps(other))
    with pytest.raises(UsageError, match="neither an image classifier nor a semantic segmenter"):
        load(ModelRequest(f"hf:{folder}"), offline=True)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="no weights as safetensors"):
        load(ModelRequest(f"hf:{folder}"), offline=True)


def test_a_head_is_never_made_up(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit")
    state = load_file(folder / "model.safetensors")
    body = {key: value for key, value in state.items() if not key.startswith("classifier")}
    save_file(body, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"is incomplete(.|\n)*would be random"):
        load(ModelRequest(f"hf:{folder}"), offline=True)


def test_a_segmenter_of_transformers_answers_as_transformers_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", "4.56", reason="needs the extra `hf`")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[1, 1], hidden_sizes=[8, 8],
        patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 1], mlp_ratios=[1, 1],
        decoder_hidden_size=8, id2label={0: "background", 1: "nucleus"},
        label2id={"background": 0, "nucleus": 1},
    )  # fmt: skip
    network = transformers.SegformerForSemanticSegmentation(config).eval()
    network.save_pretrained(tmp_path)
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.6, 0.7]
    settings = {"size": {"height": 64, "width": 64}, "image_mean": mean, "image_std": std}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model = load(ModelRequest(f"hf:{tmp_path}"), "seg", offline=True)
    image = photo((64, 64))
    pixels = (image.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    with torch.inference_mode():
        logits = network(torch.from_numpy(pixels.transpose(2, 0, 1))[None]).logits
        logits = torch.nn.functional.interpolate(
            logits, (64, 64), mode="bilinear", align_corners=False
        )
    expected = logits.softmax(1)[0, 1].numpy()
    # one class more or less is a difference of logits before or after the bilinear enlargement
    np.testing.assert_allclose(model.probabilities([image])[0], expected, atol=1e-5)
    assert any("background is `background`, foreground `nucleus`" in n for n in model.notes)


def test_a_name_that_is_not_there_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="`--offline` forbids downloads"):
        open_repository("someone/something", offline=True)


# timm's format.


def timm_folder(folder: Path, **config: object) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=10, channels=(8, 8, 8, 8)).eval()
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    defaults = {
        "architecture": "resnet10t", "num_classes": 10, "model_args": {"channels": [8, 8, 8, 8]},
        "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 0.8, "interpolation": "bilinear",
                           "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**defaults, **config}))
    return folder, network


def test_a_network_of_timm_from_a_folder(tmp_path: Path) -> None:
    folder, network = timm_folder(tmp_path / "mine")
    model = load(ModelRequest(f"hf-hub:{folder}"), "cls", offline=True)
    preprocessing = Preprocessing(80, 64, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert model.preprocessing == preprocessing
    seen = views(model, [photo()])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    with torch.inference_mode():
        expected = network((seen.float() / 255 - mean) / std)
    torch.testing.assert_close(model.logits(seen), expected)
    assert model.facts.name == "hf-hub:mine"


def test_what_is_not_timms_is_refused(tmp_path: Path) -> None:
    folder, _ = timm_folder(tmp_path / "mine", architecture="no_such_network")
    with pytest.raises(UsageError, match=r"is not a model of timm(.|\n)*`hf:ORG/NAME`"):
        load(ModelRequest(f"hf-hub:{folder}"), offline=True)


# open_clip.


@pytest.fixture
def tiny_clip(tmp_path: Path) -> str:
    open_clip = pytest.importorskip("open_clip", reason="needs the extra `clip`")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16,
                       "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2,
                     "layers": 1},
    }  # fmt: skip
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    return "tiny-clip"


def test_zero_shot_answers_as_open_clip_does(tiny_clip: str, tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(1)
    clip = open_clip.create_model(tiny_clip, load_weights=False).eval()
    weights = tmp_path / "clip.safetensors"
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, weights)
    request = ModelRequest(
        f"open-clip:{tiny_clip}", weights, {"prompt": "one {} here"}, label_space="cifar10"
    )
    model = load(request, "cls", offline=True)
    seen = views(model, [photo()])
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in (model.preprocessing.mean, model.preprocessing.std)
    )
    words = open_clip.get_tokenizer(tiny_clip)([f"one {name} here" for name in CIFAR])
    with torch.inference_mode():
        images = clip.encode_image((seen.float() / 255 - mean) / std)
        texts = clip.encode_text(words)
        cosines = torch.nn.functional.cosine_similarity(images, texts)
        expected = (clip.logit_scale.exp() * cosines)[None]
    torch.testing.assert_close(model.logits(seen), expected, atol=1e-4, rtol=1e-5)
    assert model.facts.arguments == {"prompt": "one {} here"}
    assert not model.facts.untrained


def test_another_prompt_is_another_network(tiny_clip: str) -> None:
    def digest(prompt: str) -> str:
        request = ModelRequest(
            f"open-clip:{tiny_clip}", None, {"prompt": prompt}, label_space="cifar10",
            untrained=True,
        )  # fmt: skip
        return load(request, "cls", offline=True).facts.weights_sha256

    assert digest("a {}") == digest("a {}")
    assert digest("a {}") != digest("the {}")


def test_what_open_clip_does_not_have(tiny_clip: str) -> None:
    with pytest.raises(UsageError, match=r"has no model `tiny-clap`(.|\n)*`tiny-clip`"):
        load(ModelRequest("open-clip:tiny-clap/openai"), offline=True)
    with pytest.raises(UsageError, match="is not the name of weights of `tiny-clip`"):
        load(ModelRequest("open-clip:tiny-clip"), offline=True)
    with pytest.raises(UsageError, match=r"`prompt=TEXT`, with `{}`"):
        load(ModelRequest("open-clip:tiny-clip", None, {"prompt": "no place"}), offline=True)


def test_a_transformers_that_is_too_old_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = ModuleType("transformers")
    old.__version__ = "4.48.0.dev0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(MachineError, match=r"4\.56 or newer(.|\n)*4\.48\.0\.dev0 is installed"):
        load(ModelRequest(f"hf:{tmp_path}"))
