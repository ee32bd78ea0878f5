"""`robust eval` of what cannot be carried out: exit code 2, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Robust


def eval_of(model: str, transform: str = "identity", *more: str) -> list[str]:
    """The arguments of an evaluation."""
    return ["eval", "--model", model, "--transform", transform, *more]


def pico(*more: str) -> list[str]:
    """Those of one that would run, but for `more`."""
    return eval_of("vmamba-pico", "identity", *more)


REFUSED = {
    "unknown model": (eval_of("vmamba-pcio"), "No model is called `vmamba-pcio`.\nDid you mean "),
    "timm's typo": (eval_of("resnet5O"), " or `resnet50` or "),
    "unknown transform": (eval_of("vmamba-pico", "perspektive"), "Did you mean `perspective`"),
    "no glob matches": (eval_of("vmamba-pico", "zz*"), "No transform matches `zz*`."),
    "no data": (eval_of("vmamba-t"), "No data is named for the label space `imagenet-1k`"),
    "no such data": (pico("--data", "nowhere"), "There is no data at"),
    "other label space": (
        eval_of("vmamba-t", "identity", "--data", "cifar10-mini"), "imagenet-1k"
    ),
    "no weights file": (
        pico("--weights", "none.pth"), "no weights file `none.pth`"
    ),
    "unknown device": (pico("--device", "tpuu"), "`--device tpuu`"),
    "unknown argument": (
        pico("--untrained", "--model-arg", "width=3"), "width=..."
    ),
    "one file for two": (
        pico("--model", "vmamba-t", "--weights", "w.pth"),
        "`--weights` and `--model-arg` go with one `--model`.\nGot 2 models.\nRun the command once",
    ),
    "two label spaces": (
        pico("--model", "vmamba-t"), "tell the same classes apart"
    ),
    "twice": (pico("--model", "VMAMBA_pico"), "was given twice"),
    "not empty": (pico("--untrained", "--out", "full"), "is not empty"),
    "too many a class": (
        pico("--untrained", "--per-class", "97"),
        "`--per-class 97` is more than there is",
    ),
    "no model": (["eval", "--transform", "identity"], "Missing option '--model'"),
    "no transform": (["eval", "--model", "vmamba-pico"], "Missing option '--transform'"),
    "std of two": (pico("--std", "1,2"), "`--std 1,2` has 2 numbers."),
    "std of zero": (
        pico("--untrained", "--std", "0,1,1"), "above zero"
    ),
    "no pixels": (pico("--crop", "0"), "--crop"),
    "no number": (pico("--limit", "few"), "--limit"),
    "no pair": (pico("--model-arg", "x"), "`x` is not KEY=VALUE"),
    "wrong precision": (pico("--precision", "fp8"), "--precision"),
    "other backend": (
        pico("--untrained", "--scan-backend", "cpuu"), "`cpu`"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_carried_out_ends_with_2_and_says_why(
    robust: Robust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("ROBUST_SCAN_BACKEND", "")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    arguments, words = REFUSED[case]
    told = (
        robust(*arguments, "--device", "cpu") if "--device" not in arguments else robust(*arguments)
    )
    assert told.code == 2, told.err
    assert words in told.err
    assert "Traceback" not in told.err
    assert told.out == ""
    assert (tmp_path / "full" / "thesis.txt").exists()


def test_missing_weights_give_address_file_and_flag(robust: Robust, tmp_path: Path) -> None:
    (tmp_path / "photos" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "photos" / "n01440764" / "tench.jpg")
    told = robust(*eval_of("vmamba-t", "identity", "--data", "photos", "--offline"))
    file = "vssm1_tiny_0230s_ckpt_epoch_264.pth"
    assert told.code == 2
    assert told.err.startswith("Error: The weights of `vmamba-t` are not here.\n")
    assert f"https://github.com/MzeroMiko/VMamba/releases/download/%23v2cls/{file} to " in told.err
    assert (
        f"`{tmp_path / 'home' / 'weights' / file}`, or name a copy with `--weights FILE`"
        in told.err
    )
    assert not (tmp_path / "runs").exists()


def test_with_json_a_refusal_prints_nothing_on_standard_output(robust: Robust) -> None:
    told = robust(*eval_of("vmamba-pcio"), "--json")
    assert (told.code, told.out) == (2, "")
