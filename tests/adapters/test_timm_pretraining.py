"""What timm's weights saw: the words that keep a comparison fair."""

from __future__ import annotations

import re

import pytest
import timm

from robustcli.adapters.catalogue import IN1K
from robustcli.adapters.timm_library import known, pretraining

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


@pytest.mark.parametrize("name", ONLY)
def test_what_saw_imagenet_1k_only(name: str) -> None:
    assert known(name)
    assert pretraining(name) == IN1K


@pytest.mark.parametrize("name", MORE)
def test_what_saw_more(name: str) -> None:
    assert known(name)
    assert pretraining(name).startswith("more than ImageNet-1K (timm tag ")


def test_other_tags_are_given_as_they_are() -> None:
    assert pretraining("vit_base_patch16_224.mae") == "timm tag mae"
    assert pretraining("vit_base_patch16_224.dino") == "timm tag dino"


def test_no_larger_data_set_hides_behind_a_tag_that_ends_in_in1k() -> None:
    """Whoever adds a tag to timm with a new data set shows up here."""
    tags = {n.split(".", 1)[1] for n in timm.list_pretrained() if pretraining(n) == IN1K}
    parts = {part for tag in tags for part in tag.split("_")}
    large = re.compile(r"\d{2,}(k|m|b)$|inst|clip|jft|laion|web")
    assert not {part for part in parts if large.search(part)}
