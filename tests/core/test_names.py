"""Names as people type them."""

from __future__ import annotations

import pytest

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, counted, file_name, find, is_glob, matching, nearest

KNOWN = ("perspective", "Gaussian_Blur", "gaussian_noise", "vmamba-t-s1l8", "fog")


@pytest.mark.parametrize(
    "typed", ["Gaussian_Blur", "gaussian-blur", "GAUSSIAN_BLUR", " gaussian-Blur "]
)
def test_every_spelling_finds_the_registered_one(typed: str) -> None:
    assert find(typed, KNOWN, kind="transform", listing="list") == "Gaussian_Blur"


def test_canonical() -> None:
    assert canonical(" VMamba_T_s1l8\n") == "vmamba-t-s1l8"


@pytest.mark.parametrize(
    ("typed", "best"),
    [
        ("perpsective", "perspective"),
        ("perspectiv", "perspective"),
        ("gausian-noise", "gaussian_noise"),
        ("GaussianBlur", "Gaussian_Blur"),
        ("vmamba-t-s1l9", "vmamba-t-s1l8"),
        ("fogg", "fog"),
    ],
)
def test_a_typo_gets_the_nearest_name(typed: str, best: str) -> None:
    assert nearest(typed, KNOWN)[0] == best
    with pytest.raises(UsageError, match=rf"No transform is called `{typed}`\.\nDid you.*`{best}`"):
        find(typed, KNOWN, kind="transform", listing="robust list transforms")


def test_nearest_gives_the_best_first_and_so_many_at_most() -> None:
    assert nearest("gaussian", KNOWN) == ["Gaussian_Blur", "gaussian_noise"]
    assert nearest("gaussian", KNOWN, most=1) == ["Gaussian_Blur"]
    assert nearest("zzz", KNOWN) == []


def test_a_name_like_no_other_gets_the_command_that_lists_them() -> None:
    with pytest.raises(UsageError) as caught:
        find("zzz", KNOWN, kind="model", listing="robust list models")
    assert (
        str(caught.value)
        == "No model is called `zzz`.\n`robust list models` lists the valid names."
    )


def test_a_name_like_no_other_gets_all_of_a_few() -> None:
    with pytest.raises(UsageError) as caught:
        find("zzz", ("bce", "dice"), kind="loss", listing="list")
    assert str(caught.value) == (
        "No loss is called `zzz`.\nExpected `bce` or `dice`.\n`list` lists the valid names."
    )


@pytest.mark.parametrize(
    ("name", "is_one"), [("c_*", True), ("fo?", True), ("[ab]c", True), ("fog", False), ("", False)]
)
def test_is_glob(name: str, is_one: bool) -> None:
    assert is_glob(name) is is_one


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [
        ("*", list(KNOWN)),
        ("gaussian-*", ["Gaussian_Blur", "gaussian_noise"]),
        ("GAUSSIAN*", ["Gaussian_Blur", "gaussian_noise"]),
        ("fo[gx]", ["fog"]),
        ("f?g", ["fog"]),
        ("Fog", ["fog"]),
    ],
)
def test_globs_match_in_every_spelling_and_keep_the_order(pattern: str, hits: list[str]) -> None:
    assert matching(pattern, KNOWN, kind="transform", listing="list") == hits


def test_a_glob_that_matches_nothing() -> None:
    with pytest.raises(
        UsageError, match=r"No transform matches `zz\*`\.\n`robust list transforms`"
    ):
        matching("zz*", KNOWN, kind="transform", listing="robust list transforms")


def test_a_plain_name_that_matches_nothing_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean `fog`"):
        matching("fogg", KNOWN, kind="transform", listing="list")


def test_of_names_that_differ_only_in_spelling_the_typed_one_is_found() -> None:
    names = ["net_a", "net-a", "Net-A"]
    assert [find(name, names, kind="model", listing="x") for name in names] == names


def test_names_may_come_from_a_generator() -> None:
    assert matching("f*", (name for name in KNOWN), kind="x", listing="y") == ["fog"]
    assert find("fog", (name for name in KNOWN), kind="x", listing="y") == "fog"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("vmamba-t-s1l8", "vmamba-t-s1l8"),
        ("resnet50.tv_in1k", "resnet50.tv_in1k"),
        ("hf-hub:timm/resnet18", "hf-hub-timm-resnet18"),
        ("runs/train-ulvm", "runs-train-ulvm"),
        ("C:\\runs\\train ulvm", "C--runs-train ulvm"),
        ('a*b?c"d<e>f|g\th', "a-b-c-d-e-f-g-h"),
        ("..", "-"),
        ("runs.", "runs"),
    ],
)
def test_a_name_becomes_a_file_name_of_every_system(name: str, file: str) -> None:
    assert file_name(name) == file


def test_counts_agree_with_their_noun() -> None:
    assert counted(1, "image") == "1 image"
    assert counted(15000, "image") == "15,000 images"
    assert counted(2, "class", "classes") == "2 classes"
