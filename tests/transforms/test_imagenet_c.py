from __future__ import annotations

from imgaug.augmenters import imgcorruptlike

from robustcli.transforms.imagenet_c import IMAGENET_C


def test_the_19_of_the_benchmark_in_its_order() -> None:
    names, _ = imgcorruptlike.get_corruption_names("common")
    more, _ = imgcorruptlike.get_corruption_names("validation")
    assert [one.corruption for one in IMAGENET_C] == [*names, *more]
    assert [one.name for one in IMAGENET_C] == [f"c_{name}" for name in (*names, *more)]


def test_they_have_five_severities_and_no_range() -> None:
    assert all(one.available() == (1, 2, 3, 4, 5) for one in IMAGENET_C)
    assert not any(one.assumed for one in IMAGENET_C)


def test_only_the_elastic_one_moves_a_mask() -> None:
    assert [one.corruption for one in IMAGENET_C if one.geometric] == ["elastic_transform"]
