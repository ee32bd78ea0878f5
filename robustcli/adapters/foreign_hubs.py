"""Networks of the Hugging Face hub, or of a folder in its format, and of open_clip.

`hf:ORG/NAME` loads with transformers, `hf-hub:ORG/NAME` with timm; `@REVISION` after the name pins
a version. The commit is always recorded. Weights are read from safetensors only, and code of a
repository is never run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.adapters import timm_library
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.fetching import hub, hub_failure_reason, state_digest
from robustcli.adapters.foreign_files import ForeignNetwork, optional_library
from robustcli.adapters.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from robustcli.adapters.strict_loading import choose, load_strictly, shapes_of
from robustcli.core.errors import MachineError, UsageError, first_line
from robustcli.core.io import parse_json
from robustcli.core.names import did_you_mean, nearest
from robustcli.data.labels import LabelSpace, read_label_space

_FILES = ["*.json", "*.safetensors"]
_SAFE = ".safetensors"
_PIL = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling
_RESCALE = 1 / 255
_TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Repository:
    """A folder in the hub's format, and its origin."""

    folder: Path
    origin: str

    def read(self, name: str) -> dict[str, Any]:
        """Reads a JSON file of the folder.

        Raises:
            UsageError: The file does not exist or is not a JSON object.
        """
        try:
            content = parse_json((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"`{self.origin}` has no readable `{name}`.", first_line(error),
                "Name a model in the format of the hub.",
            ) from error  # fmt: skip
        if not isinstance(content, dict):
            raise UsageError(f"`{name}` of `{self.origin}` is not a JSON object.")
        return content


def open_repository(name: str, *, offline: bool) -> Repository:
    """Opens the repository `ORG/NAME` or `ORG/NAME@REVISION` of the hub, or a local folder.

    Raises:
        UsageError: It does not exist, or contains no safetensors file.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _with_safetensors(Repository(folder, str(folder)))
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        with hub(offline=offline):
            snapshot = Path(
                snapshot_download(
                    repo, revision=revision or None, allow_patterns=_FILES, local_files_only=offline
                )
            )
    except Exception as error:  # the client raises exceptions of four libraries
        raise UsageError(
            f"`{name}` could not be downloaded from the Hugging Face hub.",
            f"The reason: {hub_failure_reason(error, offline=offline)}.",
            "Check the name (`ORG/NAME`, `ORG/NAME@REVISION`), or pass a folder with its files.",
        ) from error
    commit = snapshot.name  # the cache has one folder per commit
    return _with_safetensors(Repository(snapshot, f"https://huggingface.co/{repo}@{commit}"))


def _with_safetensors(repository: Repository) -> Repository:
    if any(repository.folder.glob(f"*{_SAFE}")):
        return repository
    raise UsageError(
        f"`{repository.origin}` contains no weights as safetensors.",
        "Other weights files may contain code and are not read.",
        "Convert it (`model.save_pretrained(FOLDER, safe_serialization=True)`), and pass the "
        "folder; on the hub, look for a revision with safetensors (`@refs/pr/NUMBER`).",
    )


def _repository_of(request: ModelRequest, *, offline: bool) -> Repository:
    if request.arguments:
        raise UsageError(
            f"`{request.name}` does not support `--model-arg`.", "Its configuration is on the hub.",
            "Omit it.",
        )  # fmt: skip
    return open_repository(request.name.partition(":")[2], offline=offline)


# transformers.

OLDEST_TRANSFORMERS = (4, 56)
"""The first version with the argument `dtype`; as in `pyproject.toml`."""


def transformers_model(request: ModelRequest, *, offline: bool) -> ForeignNetwork:
    """An image classifier or a semantic segmenter of transformers.

    Raises:
        MachineError: transformers is not installed.
        UsageError: It is for another task, needs code of the repository, or cannot be read.
    """
    transformers = optional_library("transformers", request.name, extra="hf")
    installed = tuple(int(number) for number in re.findall(r"\d+", transformers.__version__)[:2])
    if installed < OLDEST_TRANSFORMERS:
        needed = ".".join(map(str, OLDEST_TRANSFORMERS))
        raise MachineError(
            f"`{request.name}` needs transformers {needed} or newer.",
            f"Version {transformers.__version__} is installed.",
            "Install a newer one: `pip install --upgrade 'robustcli[hf]'`.",
        )
    repository = _repository_of(request, offline=offline)
    config = repository.read("config.json")
    loader = getattr(transformers, _loader_name(request.name, config))
    transformers.utils.logging.disable_progress_bar()
    network = _pretrained(request.name, loader, repository)
    return ForeignNetwork(
        network.float().eval(),
        family=str(config.get("model_type", "transformers")),
        origin=repository.origin,
        digest=state_digest(network.state_dict()),
        pretraining="see its model card",
        preprocessing=_processor(repository),
        preprocessing_source="its `preprocessor_config.json`",
        classes=_labels(config),
        channels=int(config.get("num_channels", 3)),
        users_code=False,
    )


def _loader_name(name: str, config: Mapping[str, Any]) -> str:
    """The class of transformers that loads the model `name` with this `config.json`."""
    architecture = next(iter(config.get("architectures") or ()), "")
    if "auto_map" in config:
        raise UsageError(
            f"`{name}` needs its own Python code, which is not run.",
            "Its `config.json` has an `auto_map`.",
            "If you trust it, load it in your own code, and pass a function: `--model "
            "my_module:build`.",
        )
    for task in ("ForImageClassification", "ForSemanticSegmentation"):
        if architecture.endswith(task):
            return f"AutoModel{task}"
    raise UsageError(
        f"`{name}` is neither an image classifier nor a semantic segmenter.",
        f"Its architecture is `{architecture or 'not stated'}`.",
        "Use a model of the task image-classification or image-segmentation.",
    )


def _pretrained(name: str, loader: Any, repository: Repository) -> nn.Module:
    """The network with all its weights, read from safetensors."""
    try:
        network, info = loader.from_pretrained(
            repository.folder, use_safetensors=True, trust_remote_code=False, local_files_only=True,
            dtype=torch.float32, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # from transformers, safetensors or torch
        raise UsageError(
            f"transformers cannot load `{name}`.", f"The error is: {first_line(error)}.",
            "Check its files, and the version of transformers that it requires.",
        ) from error  # fmt: skip
    missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if missing:
        raise UsageError(
            f"`{repository.origin}` is incomplete.",
            f"{len(missing)} weights of the network are not in its files (`{missing[0]}`, ...) "
            "and would be random.",
            "Name a repository with a trained head.",
        )
    loaded: nn.Module = network
    return loaded


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes in order; None if they are only numbered, as by transformers."""
    labels = {int(key): str(value) for key, value in (config.get("id2label") or {}).items()}
    ordered = tuple(labels[n] for n in sorted(labels))
    numbered = tuple(f"LABEL_{n}" for n in range(len(ordered)))
    return None if ordered == numbered else ordered


def _processor(repository: Repository) -> Preprocessing | None:
    """The preprocessing in `preprocessor_config.json`; None without the file.

    Raises:
        UsageError: The scale of pixel values is not 1/255.
    """
    if not (repository.folder / "preprocessor_config.json").is_file():
        return None
    processor = repository.read("preprocessor_config.json")
    if (
        processor.get("do_rescale", True)
        and abs(processor.get("rescale_factor", _RESCALE) - _RESCALE) > 1e-9
    ):
        raise UsageError(
            f"The image processor of `{repository.origin}` scales values by "
            f"{processor.get('rescale_factor')}, not by 1/255.",
            "Values are scaled to [0, 1] here before mean and std.",
            "Load it in your own code, and pass a function: `--model my_module:build`.",
        )
    mean, std = processor.get("image_mean", IMAGENET_MEAN), processor.get("image_std", IMAGENET_STD)
    if not processor.get("do_normalize", True):
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    filter_ = _PIL.get(int(processor.get("resample", 2)), "bilinear")
    resized, crop_side = _side(processor.get("size")), _side(processor.get("crop_size"))
    resize = resized if processor.get("do_resize", True) else None
    has_crop = processor.get("do_center_crop", processor.get("crop_size") is not None)
    size = processor.get("size")
    shortest = isinstance(size, dict) and "shortest_edge" in size
    if shortest and "crop_pct" in processor and resized is not None:  # ConvNeXt's processor
        if resized < 384:
            return Preprocessing(
                int(resized / processor["crop_pct"]), resized, filter_, tuple(mean), tuple(std)
            )
        shortest = False
    crop = crop_side if has_crop and crop_side is not None else resized
    if crop is None:
        return None
    cuts = shortest or (has_crop and crop_side is not None and crop_side != resized)
    mode: Literal["center", "squash"] = "center" if cuts or resize is None else "squash"
    return Preprocessing(resize, crop, filter_, tuple(mean), tuple(std), mode)


def _side(size: object) -> int | None:
    """Side in pixels of a processor's size; None for rectangles and missing sizes."""
    if isinstance(size, int):
        return size
    if not isinstance(size, Mapping):
        return None
    if "shortest_edge" in size:
        return int(size["shortest_edge"])
    height, width = size.get("height"), size.get("width")
    return int(height) if height is not None and height == width else None


# timm's format on the hub.

_SETTINGS = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std", "num_classes")
"""Settings of a repository that are used: those of preprocessing, none that downloads files."""


def timm_model(request: ModelRequest, *, offline: bool) -> ForeignNetwork:
    """A timm network on the hub, with `config.json` and `model.safetensors`.

    Raises:
        UsageError: It is not a timm model, or its weights do not match.
    """
    repository = _repository_of(request, offline=offline)
    config = repository.read("config.json")
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not timm_library.has_architecture(architecture):
        raise UsageError(
            f"`{request.name}` is not a model of timm.",
            f"Its `config.json` names the architecture `{architecture}`.",
            "For a model of transformers, write `hf:ORG/NAME`.",
        )
    timm_config = config.get("pretrained_cfg") or {}
    classes = int(config.get("num_classes", timm_config.get("num_classes", 1000)))
    settings = {key: timm_config[key] for key in _SETTINGS if timm_config.get(key) is not None}
    overlay = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    arguments = {**(config.get("model_args") or {}), "num_classes": classes}
    network = timm_library.create(architecture, {**arguments, "pretrained_cfg_overlay": overlay})
    files = sorted(repository.folder.glob(f"*{_SAFE}"))
    state = read_weights(next((f for f in files if f.name == "model.safetensors"), files[0]))
    choice = choose(state, shapes_of(network.state_dict()))
    load_strictly(network, choice.state, model=architecture, origin=repository.origin, advice=None)
    labels = config.get("label_names") or timm_config.get("label_names")
    return ForeignNetwork(
        network.float().eval(),
        family=architecture,
        origin=repository.origin,
        digest=state_digest(network.state_dict()),
        pretraining="see its model card",
        preprocessing=timm_library.timm_preprocessing(network),
        preprocessing_source="its timm configuration",
        classes=tuple(map(str, labels)) if isinstance(labels, list) else None,
        users_code=False,
    )


# open_clip: zero-shot classification by the names of classes.


class ZeroShot(nn.Module):
    """CLIP as a classifier: scaled cosine similarity of the image and the text of each class.

    Args:
        clip: The open_clip model; only its image encoder is kept.
        texts: Text features of the classes (classes, D), normalised to length 1.
    """

    def __init__(self, clip: Any, texts: Tensor) -> None:
        super().__init__()
        self.visual = clip.visual
        self.register_buffer("texts", texts)
        self.register_buffer("scale", clip.logit_scale.detach().exp())

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        features = self.visual(images)
        features = F.normalize(features[0] if isinstance(features, tuple) else features, dim=-1)
        assert isinstance(self.texts, Tensor), "a buffer"
        assert isinstance(self.scale, Tensor), "a buffer"
        logits: Tensor = self.scale * features @ self.texts.T
        return logits


def clip_model(request: ModelRequest, *, offline: bool) -> ForeignNetwork:
    """An open_clip model as a zero-shot classifier of the named classes.

    Raises:
        MachineError: open_clip is not installed.
        UsageError: The model or its weights are unknown or not downloaded, or the template has
            no `{}`.
    """
    open_clip = optional_library("open_clip", request.name, extra="clip")
    arguments = dict(request.arguments)
    template = str(arguments.pop("prompt", _TEMPLATE))
    if arguments or "{}" not in template:
        raise UsageError(
            f"`{request.name}` supports only one `--model-arg`: `prompt=TEXT`, with `{{}}` for "
            "the class.",
            f"Got {', '.join(f'{k}={v}' for k, v in request.arguments.items())}.",
            f"For example `--model-arg prompt='{_TEMPLATE}'`.",
        )
    name, tag, weights = _clip_source(open_clip, request)
    if request.classes is not None:
        space = LabelSpace("classes", request.classes, request.classes)
    else:
        space = read_label_space(request.label_space or "imagenet-1k")
    clip, tokens = _clip_with_weights(open_clip, request, name, tag, weights, offline=offline)
    with torch.inference_mode():
        prompts = [template.format(_plain(class_name)) for class_name in space.names]
        texts = torch.cat(
            [clip.encode_text(tokens(prompts[n : n + 64]), normalize=True)
             for n in range(0, len(prompts), 64)]
        )  # fmt: skip
    network = ZeroShot(clip, texts.clone())
    origin = "none: initialised with seed 0" if request.untrained else str(weights or tag)
    default = "" if "prompt" in request.arguments else " (`--model-arg prompt=TEXT` changes it)"
    return ForeignNetwork(
        network.eval(),
        family="clip",
        origin=f"open_clip {name}, {origin}",
        digest=state_digest(network.state_dict()),
        pretraining="none (untrained)" if request.untrained
        else f"image and text pairs (open_clip, {tag or 'weights from a file'})",
        preprocessing=_clip_preprocessing(clip.visual.preprocess_cfg),
        preprocessing_source="its configuration of open_clip",
        space=space,
        arguments={"prompt": template},
        notes=(f"`{request.name}` classifies by the text `{template}` of each class of "
               f"{space.name}{default}.",),
        users_code=False,
    )  # fmt: skip


def _clip_source(open_clip: Any, request: ModelRequest) -> tuple[str, str, Path | None]:
    """Name of the architecture, tag of its weights, and their file if they are in one."""
    name, _, tag = request.name.partition(":")[2].partition("/")
    if name not in open_clip.list_models():
        raise UsageError(
            f"open_clip has no model `{name}`.",
            did_you_mean(nearest(name, open_clip.list_models())),
            "Write `open-clip:MODEL/PRETRAINED`, such as `open-clip:ViT-B-32/laion2b_s34b_b79k`.",
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    weights = request.weights or (Path(tag) if tag and Path(tag).is_file() else None)
    if weights is None and not request.untrained and tag not in tags:
        raise UsageError(
            f"`{request.name}` is not the name of weights of `{name}`.",
            f"It has {', '.join(f'`{tag_name}`' for tag_name in tags[:8]) or 'none'}.",
            "Write `open-clip:MODEL/PRETRAINED`, or pass a file with `--weights FILE`.",
        )
    return name, tag, weights


def _clip_with_weights(
    open_clip: Any, request: ModelRequest, name: str, tag: str, weights: Path | None, *,
    offline: bool,
) -> tuple[Any, Any]:  # fmt: skip
    """The open_clip model, and its tokenizer."""
    by_tag = weights is None and not request.untrained
    try:
        with hub(offline=offline), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            clip = open_clip.create_model(
                name, pretrained=tag if by_tag else None, load_weights=by_tag, weights_only=True
            ).float().eval()  # fmt: skip
            tokens = open_clip.get_tokenizer(name)
    except Exception as error:  # from the hub's client or open_clip
        raise UsageError(
            f"The weights of `{request.name}` could not be downloaded.",
            f"The reason: {hub_failure_reason(error, offline=offline)}.",
            "Pass a copy with `--weights FILE`.",
        ) from error
    if weights is not None:
        choice = choose(read_weights(weights), shapes_of(clip.state_dict()))
        load_strictly(clip, choice.state, model=name, origin=str(weights), advice=None)
    return clip, tokens


def _plain(name: str) -> str:
    """The class name in plain words."""
    return name.replace("_", " ").split(",")[0]


def _clip_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    size = config["size"]
    side = int(size if isinstance(size, int) else size[0])
    squash = config.get("resize_mode", "shortest") == "squash"
    return Preprocessing(
        side, side, str(config.get("interpolation", "bicubic")), tuple(config["mean"]),
        tuple(config["std"]), "squash" if squash else "center",
    )  # fmt: skip
