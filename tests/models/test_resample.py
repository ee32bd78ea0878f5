"""Stems and downsamplings of VMamba."""

import torch

from robustcli.models.resample import PatchMerging, downsample_v3, stem_v1, stem_v2
from tests.models import golden


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
