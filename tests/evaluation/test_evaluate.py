"""Evaluations end to end: files, resuming, adding models and transforms, refusals."""

import hashlib
import json
import shutil
from dataclasses import replace
from multiprocessing import current_process
from pathlib import Path

import pytest
import torch
from PIL import Image

from robustcli.adapters.load import load
from robustcli.core.errors import RunError, UsageError
from robustcli.data.decode import decode
from robustcli.data.sources import Classes, open_dataset
from robustcli.evaluation import evaluate
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.look_up import distinct_names
from robustcli.evaluation.record import EVALUATION, read_record, read_sessions
from robustcli.evaluation.store import Store
from robustcli.training.trainer import default_workers
from robustcli.transforms.base import Cell
from tests.evaluation.photos import PICO, config, make_photos


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns photos and a finished evaluation of them, which tests only read."""
    folder = tmp_path_factory.mktemp("finished")
    photos = make_photos(folder / "photos")
    return photos, run_evaluation(config(photos, folder / "out" / "run"))


def contents(run: Path) -> dict[str, str]:
    """Returns the hash of every row file."""
    files = sorted([*run.glob("predictions/**/*.parquet"), *run.glob("inputs/**/*.parquet")])
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def small_blocks(monkeypatch, size=4):
    monkeypatch.setattr("robustcli.evaluation.look_up.BLOCK_SIZE", size)


def test_rows_are_the_models_answers(finished):
    photos, run = finished
    rows = Store(run).rows("vmamba-pico", Cell("identity", 0), "cls").set_index("image_id")
    classifier = load(PICO, "cls")
    for ref in open_dataset(str(photos), Classes("cifar10")).samples:
        view = torch.from_numpy(classifier.preprocessing.apply(decode(ref.image))).permute(2, 0, 1)
        mean, std = (torch.tensor(v)[:, None, None] for v in (
            classifier.preprocessing.mean, classifier.preprocessing.std))  # fmt: skip
        with torch.inference_mode():
            chances = classifier.network(((view / 255 - mean) / std)[None]).softmax(1)[0]
        row = rows.loc[ref.image_id]
        assert row["target"] == ref.target
        assert row["prediction"] == chances.argmax()
        assert row["top5"].tolist() == chances.topk(5).indices.tolist()
        assert row["probability"] == pytest.approx(chances.max().item(), abs=1e-6)
        assert row["target_probability"] == pytest.approx(chances[ref.target].item(), abs=1e-6)


def test_a_finished_run_is_complete_and_says_what_it_was(finished):
    _, run = finished
    assert [p.name for p in run.parent.iterdir()] == ["run"]
    record = read_record(run)
    assert record.status == "complete"
    assert [(t.name, t.severity) for t in record.transforms] == [("identity", 0), ("fliplr", 0)]
    assert record.models[0].untrained
    assert record.models[0].parameters == 556_938
    assert record.dataset.images == 12
    assert record.versions["torch"] == torch.__version__.split("+")[0]
    assert sum(s.models["vmamba-pico"].images for s in read_sessions(run)) == 24
    assert {p.name for p in (run / "samples").iterdir()} == {
        "photos.json", "clean.png", "identity-s0.png", "fliplr-s0.png"
    }  # fmt: skip


def test_the_same_command_again_computes_nothing(photos, tmp_path, monkeypatch):
    settings = config(photos, tmp_path / "run")
    before = contents(run_evaluation(settings))
    monkeypatch.setattr(evaluate, "batch_stream", None)  # an error if anything is computed
    assert contents(run_evaluation(settings)) == before


def test_a_process_that_may_not_start_others_evaluates_without_them(photos, tmp_path, monkeypatch):
    """As those of `multiprocessing.Pool`."""
    monkeypatch.setitem(current_process()._config, "daemon", True)
    assert run_evaluation(config(photos, tmp_path / "run", workers=None, limit=4))
    assert default_workers(torch.device("cuda")) == 0


def test_adding_a_transform_computes_only_that(photos, tmp_path, monkeypatch):
    run = run_evaluation(config(photos, tmp_path / "run", "fliplr"))
    written_paths = []
    real = evaluate.write_rows
    monkeypatch.setattr(
        evaluate, "write_rows", lambda p, *a: written_paths.append(p) or real(p, *a)
    )
    run_evaluation(config(photos, run, "fliplr", "invert", command="robust eval again"))
    assert read_record(run).command == "robustcli.evaluate(...)\nrobust eval again"
    assert {p.parent.parent.name for p in written_paths} == {"transform=invert"}
    expected = run_evaluation(config(photos, tmp_path / "whole", "fliplr", "invert"))
    assert contents(run) == contents(expected)


def test_versions_and_devices_of_all_processes_that_computed_rows_are_recorded(photos, tmp_path):
    run = run_evaluation(config(photos, tmp_path / "run", limit=4))
    here = read_record(run)
    gpu = {"versions": here.versions | {"torch": "1.0"}, "device": "NVIDIA H100"}
    EVALUATION.update(run, **gpu)
    run_evaluation(config(photos, run, limit=4))  # computes nothing
    assert (read_record(run).versions, read_record(run).device) == (*gpu.values(),)
    for names in (["invert"], ["invert", "fliplr"]):
        run_evaluation(config(photos, run, *names, limit=4))
        both = read_record(run)
        assert both.versions == here.versions | {"torch": f"1.0 and {here.versions['torch']}"}
        assert both.device == f"NVIDIA H100 and {here.device}"


def test_adding_a_model_computes_only_that_and_keeps_the_first(photos, tmp_path):
    run = run_evaluation(config(photos, tmp_path / "run"))
    before = contents(run)
    resnet = replace(PICO, name="resnet10t", arguments={"num_classes": 10}, label_space="cifar10",
                    preprocessing={"resize": 32, "crop": 32})  # fmt: skip
    run_evaluation(config(photos, run, models=(resnet,), label_space="cifar10"))
    after = contents(run)
    assert before.items() < after.items()
    assert table(run)["model"].unique().tolist() == ["vmamba-pico", "resnet10t"]
    assert read_record(run).status == "complete"


def test_going_on_after_a_crash_gives_the_bytes_of_an_unbroken_run(photos, tmp_path, monkeypatch):
    small_blocks(monkeypatch)
    names = ("fliplr", "affine", "cutout", "invert")
    uninterrupted = run_evaluation(config(photos, tmp_path / "unbroken", *names))
    real, written_paths = evaluate.write_rows, []

    def failing_write(path, *rest):
        written_paths.append(path)
        if len(written_paths) == 14:
            raise KeyboardInterrupt
        real(path, *rest)

    monkeypatch.setattr(evaluate, "write_rows", failing_write)
    settings = config(photos, tmp_path / "broken", *names)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(settings)
    assert read_record(tmp_path / "broken").status == "partial"
    assert len(contents(tmp_path / "broken")) == 13
    monkeypatch.setattr(evaluate, "write_rows", real)
    resumed_run = run_evaluation(settings)
    assert contents(resumed_run) == contents(uninterrupted)
    assert table(resumed_run).equals(table(uninterrupted))


def test_a_full_disk_fails_the_run_and_keeps_what_is_there(photos, tmp_path, monkeypatch):
    small_blocks(monkeypatch)
    real = evaluate.write_samples
    monkeypatch.setattr(evaluate, "write_samples", lambda *a: None)
    writes = iter(range(5))

    def fail_replace(path: Path, target: Path) -> Path:
        if path.name.startswith(".block") and next(writes, None) is None:
            raise OSError(28, "No space left on device")
        return path.rename(target)

    monkeypatch.setattr(Path, "replace", fail_replace)
    settings = config(photos, tmp_path / "run")
    with pytest.raises(RunError, match="No space left on device"):
        run_evaluation(settings)
    monkeypatch.undo()
    assert len(contents(tmp_path / "run")) == 5
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert read_record(tmp_path / "run").status == "failed"
    small_blocks(monkeypatch)
    run_evaluation(settings)
    assert real is evaluate.write_samples
    assert read_record(tmp_path / "run").status == "complete"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "`--seed` was 0, now it is 1"),
        ({"apply_at": "crop"}, "`--apply-at` was original, now it is crop"),
        ({"precision": "bf16"}, "`--precision` was fp32, now it is bf16"),
        ({"limit": 5}, "Its images differ: 12 .*, now 5"),
        ({"models": (replace(PICO, preprocessing={"crop": 24}),)}, "preprocessing .* was "),
        ({"models": (replace(PICO, arguments={"ssm_ratio": 2.0}),)}, r"\(`--weights`\) was "),
    ],
)
def test_other_settings_are_named_and_nothing_is_touched(finished, changes, message):
    photos, run = finished
    before = contents(run)
    with pytest.raises(UsageError, match=message):
        run_evaluation(config(photos, run, **changes))
    assert contents(run) == before
    assert read_record(run).status == "complete"


def test_fresh_discards_the_old_run_and_nothing_else(photos, tmp_path):
    run = run_evaluation(config(photos, tmp_path / "run", "invert"))
    (run / "notes.txt").write_text("mine")
    run_evaluation(config(photos, run, "fliplr", seed=1, fresh=True))
    assert read_record(run).seed == 1
    assert not list(run.glob("predictions/*/transform=invert"))
    assert (run / "notes.txt").read_text() == "mine"


def test_fresh_never_deletes_a_folder_that_is_no_run(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file` is a file"):
        run_evaluation(config(photos, tmp_path / "file"))
    keep = tmp_path / "mine" / "thesis.txt"
    keep.parent.mkdir()
    keep.write_text("years of work")
    with pytest.raises(UsageError, match="is not empty and contains no run"):
        run_evaluation(config(photos, keep.parent, fresh=True))
    assert keep.exists()


@pytest.mark.parametrize(("share", "images", "most"), [(0.29, 100, 29), (0.01, 199, 1), (0, 9, 0)])
def test_the_tolerated_share_of_unreadable_images_is_exact(tmp_path, share, images, most):
    settings = config(tmp_path, tmp_path / "run", allow_unreadable=share)
    assert settings.most_unreadable(images) == most


def test_one_unreadable_image_in_twelve_is_too_many_unless_allowed(photos, tmp_path):
    (photos / "cat" / "1.png").write_bytes(b"no picture")
    settings = config(photos, tmp_path / "run")
    with pytest.raises(
        RunError,
        match=r"1 image cannot be read; the limit is 0.\n  cat/1.png: not in a supported",
    ):
        run_evaluation(settings)
    run = run_evaluation(replace(settings, allow_unreadable=0.1))
    assert read_record(run).status == "complete"
    assert table(run)["n"].tolist() == [11, 11]
    skipped = Store(run).skipped()
    assert skipped["image_id"].tolist() == ["cat/1.png"]
    assert "not in a supported image format" in skipped["reason"][0]


@pytest.mark.parametrize(
    "names", [("runs/a", "runs-a"), ("hf-hub:timm/a", "hf-hub-timm-a"), ("Mine", "mine")]
)
def test_two_models_do_not_share_a_folder_of_rows(names):
    with pytest.raises(UsageError, match=f"`--model {names[0]}` and .* would use the same folder"):
        distinct_names([replace(PICO, name=name) for name in names], names)


def test_other_images_of_the_same_names_are_another_run(photos, tmp_path, monkeypatch):
    """Two data sets with equal file names once shared one run, with the rows of the first."""
    monkeypatch.chdir(tmp_path)
    other_photos = shutil.copytree(photos, tmp_path / "other")
    flipped = Image.open(other_photos / "cat" / "1.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flipped.save(other_photos / "cat" / "1.png")
    copied = shutil.copytree(photos, tmp_path / "copied")
    runs = [
        run_evaluation(replace(config(p, Path()), out=None)) for p in (photos, other_photos, copied)
    ]
    assert runs[0] == runs[2] != runs[1]
    assert contents(runs[0]) != contents(runs[1])
    first, second = (evaluate._facts(config(photos, Path()), read_record(r)) for r in runs[:2])
    assert first["images"] != second["images"], "ranks with other images must differ"
    with pytest.raises(
        UsageError, match=r"files with the same names in `.*other` have different contents"
    ):
        run_evaluation(config(other_photos, runs[0]))
    flipped.save(copied / "cat" / "1.png")
    with pytest.raises(UsageError, match=r"files of `.*copied` have changed since"):
        run_evaluation(config(copied, runs[2]))


def test_a_run_of_a_version_without_hashes_of_contents_goes_on(photos, tmp_path):
    run = run_evaluation(config(photos, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    assert record["dataset"].pop("contents")
    (run / "run.json").write_text(json.dumps(record))
    before = contents(run)
    assert contents(run_evaluation(config(photos, run))) == before
    assert read_record(run).dataset.contents


def test_the_default_folder_changes_with_what_changes_rows_only(photos):
    base = replace(config(photos, Path()), out=None)
    folder = base.directory("digest")
    assert folder.name.startswith("eval-vmamba-pico-")
    assert replace(base, transforms=("invert",)).directory("digest") == folder
    both_models = (PICO, replace(PICO, name="resnet18", untrained=False))
    assert replace(base, models=both_models).directory("digest") == folder
    other_configs = (
        replace(base, seed=1),
        replace(base, precision="bf16"),
        replace(base, apply_at="crop"),
        replace(base, models=(replace(PICO, weights=Path("a.pth")),)),
    )
    assert len({folder, base.directory("x"), *(o.directory("digest") for o in other_configs)}) == 6
