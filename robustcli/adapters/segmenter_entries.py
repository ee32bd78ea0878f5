"""The segmenters known by name: data only."""

from __future__ import annotations

from collections.abc import Iterator

from robustcli.adapters.entry import FOREGROUND, ModelEntry

_PAPER = "https://github.com/lxaw/mamba-tumor-seg"
_NONE = "no published weights"
_SEE = "see source"
_ON_IMAGENET = "no published weights; training starts from an encoder that saw ImageNet-1K"
_SLIP = "The paper's 0.79955 is a slip for 0.79555: the run on record gives 0.7955."
_DISCREPANCY = (
    "The paper prints Dice 0.8454 and IoU 0.7260; the only evaluation on record of the same code "
    "gives 0.7945 and 0.6750."
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
)


def segmenters() -> Iterator[ModelEntry]:
    """The tumour paper's table, what goes beyond it, and the baseline."""
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
