"""The catalogue of model names, as data only, so that listing needs neither torch nor timm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

IN1K = "ImageNet-1K only"
FOREGROUND = "foreground"
"""The label space of segmenters: foreground and background."""


@dataclass(frozen=True)
class ModelEntry:
    """One model of the catalogue.

    Args:
        name: Name that users type.
        family: Family of networks, such as `vmamba`.
        builder: A row of `networks.BUILDERS`; `foreign` for networks outside of them.
        variant: Name of the network in its builder.
        parameters: Number of parameters; 0 if it is known only after building.
        published: For a classifier, top-1 on ImageNet-1K's validation set at 224 pixels in
            percent, as stated by its authors or timm. For a segmenter, dice of its paper in [0, 1].
        pretraining: Data of the published weights.
        licence: Licence of the published weights; without weights, of the original code.
        source: Origin of the model.
        label_space: Label space of its outputs.
        weights_url: Address of the official weights.
        asset: Name of a bundled file.
        alias: Whether it is another name of another entry.
        unchecked: Doubts about the address of the weights.
        task: `cls` for classifiers, `seg` for segmenters.
        published_iou: Intersection over union of a segmenter in [0, 1], if published.
        remark: Remark on the published numbers.
    """

    name: str
    family: str
    builder: Literal["vmamba", "vim", "cifar", "timm", "zoo", "smp", "otsu", "foreign"]
    variant: str
    parameters: int
    published: float | None
    pretraining: str
    licence: str
    source: str
    label_space: str = "imagenet-1k"
    weights_url: str | None = None
    asset: str | None = None
    alias: bool = False
    unchecked: str = ""
    task: Literal["cls", "seg"] = "cls"
    published_iou: float | None = None
    remark: str = ""

    @property
    def weights_file(self) -> str | None:
        """The file name of the official weights."""
        return None if self.weights_url is None else self.weights_url.rsplit("/", 1)[1]

    @property
    def on_timms_hub(self) -> bool:
        """Whether timm downloads the official weights."""
        return self.builder == "timm" and self.asset is None

    @property
    def network(self) -> str:
        """The name of the network; for a training run, that of the trained network."""
        return f"smp:{self.variant}" if self.builder == "smp" else self.variant


@dataclass(frozen=True)
class ModelRequest:
    """One `--model` with its options.

    Args:
        name: A name of the catalogue or of timm, `smp:ARCHITECTURE/ENCODER`, the folder of a
            training run, or a foreign network: `module:attribute`, a TorchScript or ONNX file,
            `hf:`, `hf-hub:` or `open-clip:`.
        weights: A file or the folder of a training run; None for the official weights.
        arguments: Builder arguments (`--model-arg`).
        preprocessing: Overridden fields of Preprocessing or, for a segmenter, MaskPreprocessing.
        label_space: Label space of the classes, if the weights do not define it.
        untrained: Whether to evaluate the network with random weights; every output states it.
        module: A network in memory, or a function that builds one.
        classes: Names of the outputs of a foreign network, in order.
        number_classes: Whether to number unnamed classes instead of refusing the model.
        called: Name in rows and tables, if it differs from `name` (`evaluation/look_up.py`).
        run_code: Whether Python and TorchScript code may be executed for it. False if a file names
            the model and not the user.
        opened: The opened foreign model, so that a request opens it only once.
    """

    name: str
    weights: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    label_space: str | None = None
    untrained: bool = False
    module: Any = field(default=None, compare=False, repr=False)
    classes: tuple[str, ...] | None = None
    number_classes: bool = field(default=False, compare=False)
    called: str | None = None
    run_code: bool = field(default=True, compare=False)
    opened: list[Any] = field(default_factory=list, init=False, compare=False, repr=False)


_PAPER = "https://github.com/lxaw/mamba-tumor-seg"
_RESENC = "https://github.com/MIC-DKFZ/dynamic-network-architectures"
_SWIN_UMAMBA = "https://github.com/JiarunLiu/Swin-UMamba"
_NONE = "no published weights"
_SEE = "see source"
_ON_IMAGENET = "no published weights; training starts from an encoder pretrained on ImageNet-1K"
_SLIP = "The value 0.79955 in the paper is a misprint of 0.79555: the recorded run has 0.7955."
_DISCREPANCY = (
    "The paper prints Dice 0.8454 and IoU 0.7260; the only recorded evaluation of the same code "
    "has 0.7945 and 0.6750."
)
# Source: Table I of "Mamba-Based Tumor Segmentation" (Crews and Whalen, 2024) for the Dice; the IoU
# from the outputs of its notebooks, those of the ResNets and SegFormer from its results file.
_TABLE_I: tuple[tuple[str, str, int, float, float, str], ...] = (
    ("ulvm", "ulvm", 49_457, 0.79955, 0.6725, _SLIP),
    ("ulvm_v1", "ulvm", 217_165, 0.8409, 0.7359, ""),
    ("ulvm_v2", "ulvm", 42_737, 0.8243, 0.7100, ""),
    ("ulvm_v3", "ulvm", 176_453, 0.8109, 0.7068, ""),
    ("ulvm_v4", "ulvm", 1_135_309, 0.8548, 0.7531, ""),
    ("ulvm_v5", "ulvm", 703_885, 0.8633, 0.7638, ""),
    ("ulvm_v6", "ulvm", 769_677, 0.8628, 0.7630, ""),
    ("umambabot", "umambabot", 9_813_700, 0.8799, 0.7908, ""),
    ("umambabot_pp", "umambabot", 10_076_356, 0.8867, 0.8004, ""),
    ("unet", "unet", 7_765_985, 0.8929, 0.8071, ""),
    ("segformer", "segformer", 17_782_913, 0.8454, 0.7260, _DISCREPANCY),
    ("resnet18_seg", "resnet_seg", 13_930_497, 0.8648, 0.7623, ""),
    ("resnet50_seg", "resnet_seg", 42_909_633, 0.8672, 0.7661, ""),
)
_OTHERS: tuple[tuple[str, str, int, str, str], ...] = (
    ("vmunet", "vmunet", 27_427_561, _SEE, "https://github.com/JCruan519/VM-UNet"),
    ("umamba", "umamba", 11_257_608, _SEE, "https://github.com/bowang-lab/U-Mamba"),
    ("umamba-enc", "umamba", 10_126_856, _SEE, "https://github.com/bowang-lab/U-Mamba"),
    ("umamba-nomamba", "umamba", 9_561_864, _SEE, "https://github.com/bowang-lab/U-Mamba"),
    ("resenc", "resenc", 11_269_130, "Apache-2.0", _RESENC),
    ("swin-umamba", "swin-umamba", 59_886_344, "Apache-2.0", _SWIN_UMAMBA),
    ("swin-umamba-d", "swin-umamba", 27_491_528, "Apache-2.0", _SWIN_UMAMBA),
    ("swin-umamba-pico", "swin-umamba", 1_404_968, "Apache-2.0", _SWIN_UMAMBA),
)


CONTROLS: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("umamba", "umamba-enc", "umamba-pico"), ("umamba-nomamba", "resenc")
)
"""Maps networks to similar networks without Mamba; `--ablate scan` gives a closer control."""


def segmenters() -> Iterator[ModelEntry]:
    """The segmenters of the tumour paper's table, further ones, and the baseline."""
    for name, family, parameters, dice, iou, remark in _TABLE_I:
        pretraining = _ON_IMAGENET if family == "resnet_seg" else _NONE
        yield ModelEntry(
            name, family, "zoo", name, parameters, dice, pretraining, "none stated", _PAPER,
            label_space=FOREGROUND, task="seg", published_iou=iou, remark=remark,
        )  # fmt: skip
    for name, family, parameters, licence, source in _OTHERS:
        yield ModelEntry(
            name, family, "zoo", name, parameters, None, _NONE, licence, source,
            label_space=FOREGROUND, task="seg",
        )  # fmt: skip
    yield ModelEntry(
        "umamba-pico", "umamba", "zoo", "umamba-pico", 182_982, None, "nuclei-mini:fluorescence",
        "Apache-2.0", "recipes/train_umamba_pico.py", label_space=FOREGROUND,
        asset="umamba-pico.safetensors", task="seg",
    )  # fmt: skip
    yield ModelEntry(
        "otsu", "threshold", "otsu", "otsu", 0, None, "none: nothing in it is learned",
        "Apache-2.0", "https://doi.org/10.1109/TSMC.1979.4310076", label_space=FOREGROUND,
        task="seg",
    )  # fmt: skip


_VMAMBA = "https://github.com/MzeroMiko/VMamba"
_RELEASES = f"{_VMAMBA}/releases/download"
# Source of the table: VMamba's README and assets/performance.md.
_VMAMBA_RELEASES: tuple[tuple[str, int, float, str], ...] = (
    ("vmamba-t-s1l8", 30_249_064, 82.6, "%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"),
    ("vmamba-t-s2l5", 30_705_832, 82.5, "%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth"),
    ("vmamba-t-v0", 22_893_448, 82.2, "%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth"),
    ("vmamba-s-s2l15", 50_147_752, 83.6, "%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"),
    ("vmamba-s-s1l20", 49_012_840, 83.3, "%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth"),
    ("vmamba-s-v0", 44_417_416, 83.5, "%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth"),
    ("vmamba-b-s2l15", 88_557_800, 83.9, "%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"),
    ("vmamba-b-s1l20", 86_614_504, 83.8, "%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth"),
    ("vmamba-b-v0", 76_254_056, 83.7, "%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth"),
)
_FRONT_PAGE = {
    "vmamba-t": "vmamba-t-s1l8",
    "vmamba-s": "vmamba-s-s2l15",
    "vmamba-b": "vmamba-b-s2l15",
}
# Source of the table: Vim's README. All five files lie on the hub in three repositories.
_VIM_RELEASES: tuple[tuple[str, str, int, float, str], ...] = (
    ("vim-t", "tiny", 7_148_008, 76.1, "vim_t_midclstok_76p1acc.pth"),
    ("vim-t-plus", "tiny", 7_250_344, 78.3, "vim_t_midclstok_ft_78p3acc.pth"),
    ("vim-s", "small", 25_796_584, 80.5, "vim_s_midclstok_80p5acc.pth"),
    ("vim-s-plus", "small", 26_001_256, 81.6, "vim_s_midclstok_ft_81p6acc.pth"),
    ("vim-b", "base", 97_598_440, 81.9, "vim_b_midclstok_81p9acc.pth"),
)
_CONFIRMED = "vim-t"  # by the authors, in Vim's issue 26
# Source of the published numbers: timm's results-imagenet.csv, at 224 pixels.
_TIMM: tuple[tuple[str, str, str, int, float, str], ...] = (
    ("swin-t", "swin", "swin_tiny_patch4_window7_224.ms_in1k", 28_288_354, 81.388, "MIT"),
    ("swin-s", "swin", "swin_small_patch4_window7_224.ms_in1k", 49_606_258, 83.228, "MIT"),
    ("swin-b", "swin", "swin_base_patch4_window7_224.ms_in1k", 87_768_224, 83.604, "MIT"),
    ("convnext-t", "convnext", "convnext_tiny.fb_in1k", 28_589_128, 82.066, "Apache-2.0"),
    ("convnext-s", "convnext", "convnext_small.fb_in1k", 50_223_688, 83.144, "Apache-2.0"),
    ("convnext-b", "convnext", "convnext_base.fb_in1k", 88_591_464, 83.838, "Apache-2.0"),
)


def _release(name: str, variant: str) -> ModelEntry:
    row = next(row for row in _VMAMBA_RELEASES if row[0] == variant)
    _, parameters, published, asset = row
    url = f"{_RELEASES}/{asset}"
    return ModelEntry(
        name, "vmamba", "vmamba", variant, parameters, published, IN1K, "MIT", _VMAMBA,
        weights_url=url, alias=name != variant,
    )  # fmt: skip


def _vim(name: str, size: str, parameters: int, published: float, file: str) -> ModelEntry:
    hub = f"https://huggingface.co/hustvl/Vim-{size}-midclstok"
    unchecked = (
        "" if name == _CONFIRMED
        else f"The file name is taken from third-party scripts; its folder is {hub}/tree/main."
    )  # fmt: skip
    return ModelEntry(
        name, "vim", "vim", name, parameters, published, IN1K, "Apache-2.0",
        "https://github.com/hustvl/Vim", weights_url=f"{hub}/resolve/main/{file}",
        unchecked=unchecked,
    )  # fmt: skip


CIFAR100_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR100_STD = (0.2675, 0.2565, 0.2761)
"""Normalisation of "Mamba vs State-of-the-Art" (its `vim` and `vit`), also for CIFAR-10."""
_AS_RUN = (
    '"Mamba vs State-of-the-Art" trained it with 1,000 outputs (1,958,536 parameters; with patches '
    "of 8 pixels 1,974,664) on the 10 classes of CIFAR-10."
)
_PATCHES = "`--model-arg patch_size=8` uses patches of 8 pixels: {:,} parameters."
TRAINED_AS = {"resnet18": "cifar-resnet18", "resnet50": "cifar-resnet50"}
"""Names shared with timm, and their networks in `robust train`; elsewhere they are timm's."""
# Source of the first two: "Mamba vs State-of-the-Art for Vision Tasks" (2024) and its notebooks.
_CIFAR: tuple[tuple[str, str, str, int, str, str, str], ...] = (
    ("vim", "vim", "vim", 1_791_226, "Apache-2.0", "https://github.com/hustvl/Vim",
     f"{_PATCHES.format(1_807_354)} {_AS_RUN}"),
    ("vit", "vit", "cifar", 1_751_186, "MIT", "https://github.com/lucidrains/vit-pytorch",
     _PATCHES.format(1_767_602)),
    ("resnet9", "resnet9", "cifar", 6_573_120, "MIT",
     "https://github.com/davidcpage/cifar10-fast", ""),
    ("cifar-resnet18", "cifar-resnet", "cifar", 11_173_962, "Apache-2.0",
     "https://arxiv.org/abs/1512.03385",
     "`resnet18` in `robust train cls`; the network of timm is `timm:resnet18`."),
    ("cifar-resnet50", "cifar-resnet", "cifar", 23_520_842, "Apache-2.0",
     "https://arxiv.org/abs/1512.03385",
     "`resnet50` in `robust train cls`; the network of timm is `timm:resnet50`."),
)  # fmt: skip


def cifar_classifiers() -> Iterator[ModelEntry]:
    """Networks for 32 x 32 pixels without published weights; parameters for 10 classes."""
    for name, family, builder, parameters, licence, source, remark in _CIFAR:
        yield ModelEntry(
            name, family, builder, name, parameters, None, "none", licence, source,  # type: ignore[arg-type]
            label_space="cifar10", remark=remark,
        )  # fmt: skip


def _entries() -> Iterable[ModelEntry]:
    yield from (_release(name, variant) for name, variant in _FRONT_PAGE.items())
    yield from (_release(row[0], row[0]) for row in _VMAMBA_RELEASES)
    yield from (_vim(*row) for row in _VIM_RELEASES)
    for name, family, variant, parameters, published, licence in _TIMM:
        source = f"https://huggingface.co/timm/{variant}"
        yield ModelEntry(
            name, family, "timm", variant, parameters, published, IN1K, licence, source
        )
    yield ModelEntry(
        "vmamba-pico", "vmamba", "vmamba", "vmamba-pico", 556_938, None, "CIFAR-10", "Apache-2.0",
        "recipes/train_cifar10_pico.py", label_space="cifar10", asset="vmamba-pico.safetensors",
    )  # fmt: skip
    yield ModelEntry(
        "resnet-pico", "resnet", "timm", "resnet_pico", 545_226, None, "CIFAR-10", "Apache-2.0",
        "recipes/train_cifar10_pico.py", label_space="cifar10", asset="resnet-pico.safetensors",
    )  # fmt: skip
    yield from cifar_classifiers()
    yield from segmenters()


CATALOGUE: dict[str, ModelEntry] = {entry.name: entry for entry in _entries()}
