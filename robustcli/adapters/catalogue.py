"""The models known by name: data only, so that listing them needs neither torch nor timm."""

from __future__ import annotations

from collections.abc import Iterable

from robustcli.adapters.entry import IN1K, ModelEntry
from robustcli.adapters.segmenter_entries import segmenters

__all__ = ["CATALOGUE", "IN1K", "ModelEntry"]

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
        else f"The file's name comes from other people's scripts; its folder is {hub}/tree/main."
    )  # fmt: skip
    return ModelEntry(
        name, "vim", "vim", name, parameters, published, IN1K, "Apache-2.0",
        "https://github.com/hustvl/Vim", weights_url=f"{hub}/resolve/main/{file}",
        unchecked=unchecked,
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
        "recipes/train_vmamba_pico.py", label_space="cifar10", asset="vmamba-pico.safetensors",
    )  # fmt: skip
    yield ModelEntry(
        "vim", "vim", "vim", "vim", 1_791_226, None, "none", "Apache-2.0",
        "https://github.com/hustvl/Vim", label_space="cifar10",
    )  # fmt: skip
    yield from segmenters()


CATALOGUE: dict[str, ModelEntry] = {entry.name: entry for entry in _entries()}
