"""The list of transforms, and the cells of a command line."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from robustcli.core.errors import UsageError
from robustcli.transforms.imagenet_c import IMAGENET_C
from robustcli.transforms.paper21 import PAPER21
from robustcli.transforms.registry import (
    IDENTITY,
    TransformCell,
    image_seed,
    resolve_transforms,
    transforms,
)


def test_the_same_pixels_in_an_array_of_its_own(picture: NDArray[np.uint8]) -> None:
    same = IDENTITY.apply(picture, seed=3, severity=0)
    np.testing.assert_array_equal(same, picture)
    assert not np.shares_memory(same, picture)
    assert (IDENTITY.available(), IDENTITY.parameters(0)) == ((0,), {})


LISTING = """
import sys, time
begin = time.process_time()
from robustcli.transforms.registry import transforms
names = [one.name for one in transforms()]
took = time.process_time() - begin
heavy = {"imgaug", "imagecorruptions", "cv2", "scipy", "skimage", "numba", "torch", "PIL"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
print(took, len(names))
"""


def _names(cells: list[TransformCell]) -> list[str]:
    return [cell.transform.name for cell in cells]


def test_listing_is_quick_and_imports_nothing_heavy() -> None:
    command = [sys.executable, "-c", LISTING]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    times = [float(run.stdout.split()[0]) for run in runs]
    assert min(times) <= 0.3
    assert all(run.stdout.split()[1] == "41" for run in runs)


def test_every_name_is_safe_as_a_folder_and_every_summary_one_line() -> None:
    for transform in transforms():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", transform.name)
        assert transform.summary
        assert "\n" not in transform.summary


def test_identity_is_first_and_once() -> None:
    assert _names(resolve_transforms([], None)) == ["identity"]
    assert _names(resolve_transforms(["fliplr", "identity", "clean"], [])) == ["identity", "fliplr"]


def test_identity_stays_at_severity_0() -> None:
    cells = resolve_transforms(["identity", "affine"], [2, 5])
    assert [(cell.transform.name, cell.severity) for cell in cells] == [
        ("identity", 0),
        ("affine", 2),
        ("affine", 5),
    ]


def test_presets() -> None:
    assert len(resolve_transforms(["paper21"], None)) == 22
    assert len(resolve_transforms(["ImageNet_C"], None)) == 1 + 19 * 5
    assert len(resolve_transforms(["all"], None)) == 1 + 21 + 19 * 5
    assert len(resolve_transforms(["paper21"], [1, 3, 5])) == 1 + 16 * 3 + 5


def test_repeats_are_dropped_and_the_order_is_as_typed() -> None:
    cells = resolve_transforms(["perspective", "flip*", "perspective", "paper21"], None)
    assert _names(cells)[:4] == ["identity", "perspective", "fliplr", "flipud"]
    assert len(cells) == 22
    assert [cell.severity for cell in resolve_transforms(["c_fog"], [5, 1, 5])[1:]] == [1, 5]


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Gaussian-Blur", "gaussian_blur"),
        ("Piecewise Affine", "piecewise_affine"),
        ("PerspectiveTransform", "perspective"),
        ("Multiply 0", "multiply_per_channel"),
        ("multiply", "multiply"),
        ("fog", "c_fog"),
        ("jpeg-compression", "c_jpeg_compression"),
        ("imagenet-c/gaussian_blur", "c_gaussian_blur"),
        ("ImageNet_C-Fog", "c_fog"),
        ("imagenetc:saturate", "c_saturate"),
    ],
)
def test_spellings(typed: str, name: str) -> None:
    assert set(_names(resolve_transforms([typed], None))[1:]) == {name}


def test_an_unknown_name_is_shown_as_typed_and_a_severity_gets_its_option() -> None:
    with pytest.raises(UsageError, match=r"No transform is called `c_Fogg_y`"):
        resolve_transforms(["c_Fogg_y"], None)
    with pytest.raises(UsageError, match=r"Use `--transform c_fog --severity 3`"):
        resolve_transforms(["c_fog:3"], None)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"called `perspctive`.\nDid you mean `perspective`\?"):
        resolve_transforms(["perspctive"], None)
    with pytest.raises(UsageError, match=r"No transform matches `zz\*`"):
        resolve_transforms(["zz*"], None)


def test_a_plugin_file_adds_names(plugin_file: Path) -> None:
    same = plugin_file.parent / ".." / plugin_file.parent.name / plugin_file.name
    cells = resolve_transforms(["darker", "all"], None, [plugin_file, plugin_file, same])
    assert [(c.transform.name, c.severity) for c in cells[1:4]] == [
        ("darker", 1),
        ("darker", 2),
        ("darker", 3),
    ]
    assert _names(cells)[-3:] == ["grain", "roll_random", "roll_random"]
    with pytest.raises(UsageError, match="called `darker`"):
        resolve_transforms(["darker"], None)


@pytest.mark.parametrize("name", ["affine", "c_fog", "all", "identity"])
def test_a_plugin_needs_a_name_of_its_own(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from robustcli.transforms import transform\n"
        f"@transform(name={name!r})\ndef mine(image, rng, value):\n    return image\n"
    )
    with pytest.raises(UsageError, match=f"transform `{name}` of a plugin needs another name"):
        resolve_transforms(["identity"], None, [path])


def test_a_plugin_may_be_called_as_an_alias_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from robustcli.transforms import transform\n"
        "@transform()\ndef fog(image, rng, value):\n    return image\n"
    )
    assert _names(resolve_transforms(["fog"], None, [path])) == ["identity", "fog"]


def test_seeds_differ_by_every_part_and_by_nothing_else() -> None:
    base = (0, "affine", 1, "a/b.jpg")
    others = [(1, *base[1:]), (0, "crop", 1, "a/b.jpg"), (0, "affine", 2, "a/b.jpg")]
    others.append((0, "affine", 1, "a/c.jpg"))
    seeds = [image_seed(*parts) for parts in (base, *others)]
    assert len(set(seeds)) == 5
    assert image_seed(*base) == seeds[0]
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) > 2**60


FLIP = next(transform for transform in PAPER21 if transform.name == "fliplr")
BLUR = next(transform for transform in PAPER21 if transform.name == "gaussian_blur")
FOG = next(transform for transform in IMAGENET_C if transform.corruption == "fog")


def named(pattern: str, *severities: int) -> list[tuple[str, int]]:
    cells = resolve_transforms((pattern,), severities)
    return [(cell.transform.name, cell.severity) for cell in cells][1:]


def grouped(*severities: int) -> list[tuple[str, int]]:
    """The cells of FLIP, BLUR and FOG as members of one preset."""
    group = [replace(member, family="published") for member in (FLIP, BLUR, FOG)]
    cells = resolve_transforms(("published",), severities, published=group)
    return [(cell.transform.name, cell.severity) for cell in cells][1:]


def test_without_severities_0_or_else_all() -> None:
    assert named("gaussian_blur") == [("gaussian_blur", 0)]
    assert named("c_fog") == [("c_fog", severity) for severity in (1, 2, 3, 4, 5)]


def test_a_named_transform_takes_every_severity_or_is_refused() -> None:
    assert named("gaussian_blur", 0, 3) == [("gaussian_blur", 0), ("gaussian_blur", 3)]
    with pytest.raises(UsageError, match=r"`fliplr` has no severity 3.\nIts only severity is 0"):
        named("fliplr", 0, 3)


def test_in_a_group_each_takes_what_it_has() -> None:
    assert sorted(grouped(0, 5)) == [
        *(("c_fog", 5), ("fliplr", 0)),
        *(("gaussian_blur", 0), ("gaussian_blur", 5)),
    ]


def test_in_a_group_a_severity_must_be_somewhere_and_nothing_is_left_out_silently() -> None:
    with pytest.raises(
        UsageError, match=r"No transform of `published` has severity 9.\nTheir severities are 0, 1"
    ):
        grouped(9)
    with pytest.raises(UsageError, match="`c_fog` has no severity 0"):
        grouped(0)
