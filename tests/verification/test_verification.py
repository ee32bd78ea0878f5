"""Runs that are reproduced, and runs whose files, data or weights were changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import robustcli
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.networks import create_model
from robustcli.core.errors import MachineError, UsageError
from robustcli.data.sources import Masks, open_dataset
from robustcli.evaluation.evaluate import evaluate
from robustcli.verification.recorded_run import VerifyConfig
from robustcli.verification.verification import Verification, verify
from tests.data.published_files import write_tree
from tests.evaluation.cells import OTSU, make_pairs, make_training
from tests.evaluation.photos import CLASSES, config, make_photos

BLOCK = "predictions/model=vmamba-pico/transform=additive_gaussian_noise/severity=0"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photos and, in `run`, an evaluation of them."""
    folder = tmp_path_factory.mktemp("photos")
    make_photos(folder / "data")
    evaluate(config(folder / "data", folder / "run", "additive_gaussian_noise", "fliplr"))
    return folder


@pytest.fixture
def run(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos / "run", tmp_path / "run"))


def checked(run: Path, **changes: Any) -> Verification:
    return verify(VerifyConfig(run, **{"device": "cpu", "sample": None} | changes))


def differences_of(run: Path, **changes: Any) -> list[tuple[str, str, str | None]]:
    """Place, quantity and image of each difference."""
    (check,) = checked(run, **changes).checks
    return [(each.place, each.quantity, each.image_id) for each in check.differences]


def edit(file: Path, row: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    """Changes a row of `file`; returns its image."""
    table = pq.read_table(file, partitioning=None)
    rows = table.to_pylist()
    rows[row] |= change(rows[row])
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    return str(rows[row]["image_id"])


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_an_untouched_run_is_reproduced_and_not_written_to(run: Path) -> None:
    before = fingerprint(run)
    result = checked(run)
    (check,) = result.checks
    assert result.reproduced
    assert (check.blocks, len(check.sampled), check.rows) == (3, 3, 36)
    assert (check.pixels, check.equal_pixels) == (36, 36)
    assert (check.agreement.rows, check.agreement.equal, check.agreement.tied) == (36, 36, 0)
    assert check.causes == []
    assert fingerprint(run) == before


def test_the_sample_is_drawn_by_seed_and_covers_transforms_first(photos: Path) -> None:
    drawn = [checked(photos / "run", sample=2, seed=seed).checks[0].sampled for seed in (0, 0, 5)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 2
    everything = checked(photos / "run").checks[0].sampled
    assert set(drawn[2]) < set(everything)


def test_an_edited_row_is_named(run: Path) -> None:
    file = run / BLOCK / "block-000000.parquet"
    image = edit(file, 4, lambda row: {"probability": row["probability"] + 0.01})
    (check,) = checked(run).checks
    difference = next(single for single in check.differences if single.place == "predictions")
    assert (difference.image_id, difference.transform) == (image, "additive_gaussian_noise")
    assert difference.model == "vmamba-pico"
    assert difference.stored == pytest.approx(difference.recomputed + 0.01, abs=1e-6)
    assert image in difference.words
    assert str(round(difference.stored, 6)) in difference.words


def test_a_wrong_label_is_found_in_blocks_that_are_not_recomputed(run: Path) -> None:
    sampled = checked(run, sample=1).checks[0].sampled
    unsampled = next(item for item in checked(run).checks[0].sampled if item not in sampled)
    model, transform, severity, number = unsampled.split("/")
    folder = f"predictions/model={model}/transform={transform}/severity={severity}"
    image = edit(run / folder / f"block-{int(number):06d}.parquet", 0, lambda row: {"target": 9})
    assert ("rows", "target", image) in differences_of(run, sample=1)


def test_a_flipped_bit_is_found(run: Path) -> None:
    file = run / BLOCK / "block-000000.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 1
    file.write_bytes(content)
    (check,) = checked(run).checks
    assert not check.reproduced
    assert all(each.transform == "additive_gaussian_noise" for each in check.differences)


def test_a_missing_row_is_named(run: Path) -> None:
    file = run / BLOCK / "block-000000.parquet"
    table = pq.read_table(file, partitioning=None)
    pq.write_table(table.slice(1), file)
    image = table["image_id"][0].as_py()
    assert ("rows", "rows of the image", image) in differences_of(run)


def test_other_pixels_are_named(run: Path) -> None:
    file = run / "inputs/view=original/transform=fliplr/severity=0/block-000000.parquet"
    image = edit(file, 2, lambda _: {"digest": "0" * 32})
    assert differences_of(run) == [("pixels", "digest of the pixels", image)]
    noise = run / "inputs/view=original/transform=additive_gaussian_noise/severity=0"
    image = edit(noise / "block-000000.parquet", 1, lambda row: {"psnr_db": row["psnr_db"] + 1})
    assert ("pixels", "PSNR (dB)", image) in differences_of(run)


def test_an_edited_table_of_results_is_found(run: Path, blank_figures: None) -> None:
    robustcli.Run(run).report()
    assert differences_of(run, sample=1) == []
    table = run / "results.csv"
    lines = table.read_text().splitlines()
    fields = lines[1].split(",")
    fields[5] = "0.99"
    table.write_text("\n".join([lines[0], ",".join(fields), *lines[2:]]) + "\n")
    assert differences_of(run, sample=1) == [("results.csv", "top1", None)]


def test_other_versions_and_parameters_are_listed(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["versions"]["torch"] = "1.0"
    record["device"] = "cpu (x86_64, 1 thread) and NVIDIA H100"
    record["transforms"][1]["parameters"] = {"sigma": 1}
    (run / "run.json").write_text(json.dumps(record))
    (check,) = checked(run).checks
    assert [difference.place for difference in check.differences] == ["parameters"]
    assert any(cause.startswith("torch ") and "1.0 in the run" in cause for cause in check.causes)
    assert any("NVIDIA H100 in the run" in cause for cause in check.causes)
    assert check.tolerance.value == 5e-3  # of probability: a GPU and a CPU


def test_data_that_moved_are_named_by_the_user(photos: Path, run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["dataset"]["location"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(MachineError, match="--data DIR"):
        checked(run)
    assert checked(run, data=str(photos / "data")).reproduced


def test_other_data_under_the_same_names_are_not_the_runs(
    photos: Path, run: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(photos / "data", tmp_path / "other"))
    with Image.open(other / "cat" / "1.png") as picture:
        picture.transpose(Image.Transpose.ROTATE_180).save(other / "cat" / "1.png")
    with pytest.raises(MachineError, match=r"`cat/1\.png` has different pixels"):
        checked(run, data=str(other))
    (other / "cat" / "1.png").unlink()
    with pytest.raises(MachineError, match=r"1 of the 12 images .*\n.*`cat/1\.png`"):
        checked(run, data=str(other))


def test_other_weights_are_not_the_runs(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["models"][0]["weights_sha256"] = "ab" * 32
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        MachineError, match=r"The weights of `vmamba-pico` were not found"
    ) as caught:
        checked(run)
    assert "--weights FILE" in str(caught.value)


def test_runs_with_nothing_to_verify(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        checked(tmp_path)
    shutil.rmtree(run / "predictions")
    with pytest.raises(UsageError, match="has no predictions yet"):
        checked(run)


@pytest.fixture
def segmenters(tmp_path: Path) -> Path:
    """A folder with pairs, a training of them, and in its `test` their evaluation."""
    pairs = make_pairs(tmp_path / "data")
    training = make_training(tmp_path / "net", open_dataset(str(pairs), Masks(surveyed=False)))
    models = (ModelRequest(str(training)), OTSU)
    evaluate(config(pairs, training / "test", "affine", models=models, split="all"))
    head = {"kind": "train", "status": "complete"}
    (training / "run.json").write_text(json.dumps(head))
    return training


def test_segmenters_and_their_training(segmenters: Path) -> None:
    result = checked(segmenters)
    (check,) = result.checks
    assert result.reproduced, result.as_text()
    assert check.run == segmenters / "test"
    assert check.agreement.rows == check.agreement.equal == 9 * 2 * 2
    file = segmenters / "test/predictions/model=otsu/transform=affine/severity=0"
    image = edit(
        file / "block-000000.parquet", 0, lambda row: {"tp": row["tp"] - 30, "fn": row["fn"] + 30}
    )
    assert ("predictions", "counts of pixels", image) in differences_of(segmenters)


def test_weights_of_a_training_that_were_replaced(segmenters: Path) -> None:
    other = make_training(
        segmenters.parent / "other",
        open_dataset(str(segmenters.parent / "data" / "pairs.csv"), Masks(surveyed=False)),
        seed=1,
    )
    kept = segmenters.parent / "kept.safetensors"
    (segmenters / "weights.safetensors").rename(kept)
    shutil.copy(other / "weights.safetensors", segmenters / "weights.safetensors")
    assert [place for place, _, _ in differences_of(segmenters)] == ["weights"]
    (segmenters / "weights.safetensors").unlink()
    with pytest.raises(MachineError, match="The weights of `net` were not found"):
        checked(segmenters)
    assert checked(segmenters, weights=(kept,)).reproduced


def test_json_says_the_same_as_the_text(run: Path) -> None:
    edit(run / BLOCK / "block-000000.parquet", 4, lambda _: {"probability": 0.0})
    result = robustcli.verify(run, sample=None, device="cpu")
    document = json.loads(result.as_json())
    assert document["reproduced"] is False
    (evaluation,) = document["evaluations"]
    assert evaluation["answers"]["rows"] == 36
    assert {item["place"] for item in evaluation["differences"]} <= {"rows", "predictions"}
    assert result.as_text().startswith(f"This machine does NOT reproduce `{run}`.")


def test_outputs_that_are_no_classes_are_left_out_as_in_the_evaluation(
    photos: Path, tmp_path: Path
) -> None:
    small = {"depth": 1, "dim": 16}
    torch.save(create_model("vim", num_classes=1000, **small).state_dict(), tmp_path / "as_run.pth")
    model = ModelRequest("vim", tmp_path / "as_run.pth", arguments=small)
    run = evaluate(replace(config(photos / "data", tmp_path / "run"), models=(model,)))
    assert differences_of(run) == []


OWN_NETWORK = """
from torch import nn

def build(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, 10))
"""


def test_networks_of_users_are_built_again_from_their_files(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OWN_NETWORK, encoding="utf-8")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 10, 20), torch.nn.AdaptiveAvgPool2d(1))
    with warnings.catch_warnings(action="ignore"):  # newer torch deprecates it
        torch.jit.trace(network, torch.zeros(1, 3, 20, 20)).save(str(tmp_path / "net.ts"))
    sizes = {"resize": 40, "crop": 36}  # other than those that are tried without a record
    names = (f"{tmp_path / 'net.py'}:build", str(tmp_path / "net.ts"))
    models = tuple(ModelRequest(name, preprocessing=sizes) for name in names)
    run = evaluate(replace(config(photos / "data", tmp_path / "run"), models=models))
    with pytest.raises(UsageError, match=r"`.*net.py`, SHA-256 .* \(as in the run\)\n.*net.ts`"):
        checked(run)
    assert differences_of(run, run_code=True) == []
    (tmp_path / "net.ts").rename(tmp_path / "moved.ts")
    with pytest.raises(MachineError, match=r"network `net.ts` of .*(?s:.*)`--weights FILE`"):
        checked(run, run_code=True)
    assert differences_of(run, weights=(tmp_path / "moved.ts",), run_code=True) == []
    exported = replace(config(photos / "data", tmp_path / "exported"), models=models[1:])
    (tmp_path / "moved.ts").rename(tmp_path / "net.ts")
    run = evaluate(exported)
    assert differences_of(run, weights=(tmp_path / "net.ts",)) == []  # named by the user
    code = tmp_path / "net.py"
    code.write_text(OWN_NETWORK + "# changed\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"Python file of `.*net.py:build` has changed"):
        evaluate(replace(config(photos / "data", tmp_path / "run"), models=models[:1]))
    in_memory = (ModelRequest("mine", module=network, preprocessing=sizes),)
    run = evaluate(replace(config(photos / "data", tmp_path / "memory"), models=in_memory))
    with pytest.raises(MachineError, match=r"`mine` of .* was in memory"):
        checked(run)


def test_a_network_that_returns_nan_is_a_difference_as_the_stored_row_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        "import os, torch",
        "class Pooled(torch.nn.Module):",
        "    def forward(self, x):",
        "        factor = float(os.environ['FACTOR']) if len(x) > 1 else 1.0",
        "        return torch.cat([x.mean((2, 3)) * factor] * 4, 1)[:, :10]",
    )
    (tmp_path / "net.py").write_text("\n".join(lines), encoding="utf-8")
    network = ModelRequest(f"{tmp_path / 'net.py'}:Pooled", preprocessing={"crop": 32})
    monkeypatch.setenv("FACTOR", "1")
    run = evaluate(replace(config(photos / "data", tmp_path / "run"), models=(network,)))
    assert differences_of(run, run_code=True) == []
    file = next(run.rglob("predictions/**/*.parquet"))
    image = edit(file, 4, lambda _: {"probability": float("nan")})
    monkeypatch.setenv("FACTOR", "nan")
    differences = differences_of(run, run_code=True)
    assert ("rows", "probability", image) in differences
    assert ("predictions", "output", None) in differences


def test_a_run_with_several_plugins_is_reproduced(photos: Path, tmp_path: Path) -> None:
    files = [tmp_path / name / "mine.py" for name in ("a", "b")]  # of the same name
    for number, path in enumerate(files):
        path.parent.mkdir()
        path.write_text(
            "from robustcli.transforms import transform\n\n@transform()\n"
            f"def shift{number}(image, rng, value):\n    return image + {number + 1}\n",
            encoding="utf-8",
        )
    names, plugins = ("shift0", "shift1"), {"plugins": tuple(files)}
    typed = f"robust eval --plugin {files[0]} --plugin={files[1]}"
    run = evaluate(config(photos / "data", tmp_path / "run", *names, command=typed, **plugins))
    with pytest.raises(UsageError, match=r"(?s)plugin: .*a/mine.py.* plugin: .*b/mine.py"):
        checked(run)
    assert differences_of(run, run_code=True) == []
    assert differences_of(run, **plugins) == []


def test_published_images_are_read_from_the_folder_of_the_runs_command(
    photos: Path, tmp_path: Path
) -> None:
    names = [f"{name}/{number}.png" for name in CLASSES for number in range(3)]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    tree = write_tree(tmp_path / "c", {("fog", 1, name): pixels for name in names})
    typed = f"robust eval --published {tree}"
    settings = {"published": (tree,), "command": typed}
    run = evaluate(config(photos / "data", tmp_path / "run", "published/*", **settings))
    assert differences_of(run) == []
    Image.fromarray(255 - pixels).save(tree / "fog" / "1" / names[0])
    assert ("parameters", "parameters of the transform", None) in differences_of(run)
    tree.rename(tmp_path / "moved")
    with pytest.raises(MachineError, match=r"(?s)published images .* not found.*Restore the bench"):
        checked(run)


def test_moved_files_that_the_run_does_not_use_are_named(
    photos: Path, run: Path, segmenters: Path, tmp_path: Path
) -> None:
    weights = segmenters / "weights.safetensors"
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from robustcli.transforms import transform\n\n@transform()\n"
        "def unused(image, rng, value):\n    return image\n"
    )
    labels = tmp_path / "labels.csv"
    (check,) = checked(run, weights=(weights,), plugins=(plugin,)).checks
    assert [difference.place for difference in check.differences] == []
    unused = [note.partition(" was not used")[0] for note in check.notes]
    assert unused == [f"`--weights {weights}`", "`--plugin`"]
    (check,) = checked(segmenters / "test", label_space="cifar10", labels=labels).checks
    assert [note.split()[0] for note in check.notes] == ["`--label-space`", "`--labels`"]


def test_a_training_that_moved_is_named_by_its_weights(segmenters: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(segmenters / "test", tmp_path / "run"))
    moved = segmenters.rename(tmp_path / "moved")
    with pytest.raises(MachineError, match="The weights of `net` were not found"):
        checked(run)
    assert checked(run, weights=(moved,)).reproduced
