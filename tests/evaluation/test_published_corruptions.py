"""Published corruptions as transforms: each image gets its file, or the run is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import RunError, UsageError
from robustcli.core.listener import Silent
from robustcli.data.sources import Classes, open_dataset
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.forecast import forecast
from robustcli.evaluation.published_corruptions import bind_published, find_published
from robustcli.evaluation.record import PARITY, read_record
from robustcli.evaluation.store import Store
from robustcli.metrics.paired import class_difference
from robustcli.metrics.severity_scores import ALEXNET_ERROR, corruption_errors
from robustcli.reports.evaluation_page import evaluation_report
from robustcli.reports.findings import read_findings
from robustcli.tasks.base import measure
from robustcli.transforms.base import Cell
from robustcli.transforms.registry import image_seed, resolve_transforms, transforms
from tests.data.published_files import cifar_images, write_cifar10, write_cifar_c, write_tree
from tests.evaluation.photos import CLASSES, config, make_photos

NOISE, FOG = "gaussian_noise", "fog"
NAMES = [f"{name}/{index}.png" for name in CLASSES for index in range(3)]


def pictures(*corruptions: str, severities=(1, 2), size=(32, 32)):
    """Returns a different random picture for each corruption, severity and image."""
    keys = [(c, s, n) for c in corruptions for s in severities for n in NAMES]
    return {
        key: np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        for number, key in enumerate(keys)
    }


@pytest.fixture
def clean(tmp_path):
    return make_photos(tmp_path / "photos")


def digests(run, name, severity, view="original"):
    rows = Store(run).inputs(view, Cell(name, severity))
    return dict(zip(rows["image_id"], rows["digest"], strict=True))


def digest(pixels):
    return measure(pixels, pixels).digest


def test_each_image_gets_its_own_published_picture(tmp_path, clean):
    published = pictures(NOISE, FOG)
    tree = write_tree(tmp_path / "c", published)
    run = run_evaluation(config(clean, tmp_path / "run", "published/*", published=(tree,)))
    for corruption in (NOISE, FOG):
        for severity in (1, 2):
            assert digests(run, f"published_{corruption}", severity) == {
                name: digest(published[corruption, severity, name]) for name in NAMES
            }
    numbers = table(run)
    assert list(numbers["transform"]) == [
        "identity", "published_fog", "published_fog", "published_gaussian_noise",
        "published_gaussian_noise",
    ]  # fmt: skip
    assert (numbers["n"] == 12).all()


def test_the_groups_of_imagenet_cs_archives_are_looked_through(tmp_path):
    write_tree(tmp_path / "c" / "blur", pictures("defocus_blur"))
    write_tree(tmp_path / "c" / "noise", pictures(NOISE, severities=(5,)))
    published_set = find_published([tmp_path / "c"])
    severities = {corruption.name: corruption.severities for corruption in published_set}
    assert severities == {"published_defocus_blur": (1, 2), "published_gaussian_noise": (5,)}


def test_workers_give_the_same_rows(tmp_path, clean):
    tree = write_tree(tmp_path / "c", pictures(NOISE))
    settings = {"published": (tree,), "severities": (1,)}
    single = run_evaluation(config(clean, tmp_path / "a", "published", NOISE, **settings))
    run = run_evaluation(config(clean, tmp_path / "b", "published", NOISE, workers=2, **settings))
    assert table(run).equals(table(single))


def test_a_crop_is_not_resized_again(tmp_path, clean):
    """A model that resizes to 48 and crops 24 gets the centre of the published 32 pixels."""
    published = pictures(NOISE, severities=(1,))
    tree = write_tree(tmp_path / "c", published)
    model = ModelRequest("vmamba-pico", untrained=True, preprocessing={"resize": 48, "crop": 24})
    for apply_at in ("crop", "original"):
        settings = config(
            clean, tmp_path / apply_at, "published", published=(tree,), models=(model,),
            apply_at=apply_at,
        )  # fmt: skip
        run = run_evaluation(settings)
        parameters = read_record(run).transforms[1].parameters
        assert parameters["preprocessing"] == "centre crop only"
    view = read_record(tmp_path / "crop").models[0].view
    name = NAMES[4]
    expected = digest(np.ascontiguousarray(published[NOISE, 1, name][4:28, 4:28]))
    assert digests(tmp_path / "crop", "published_gaussian_noise", 1, view)[name] == expected
    rows = [
        Store(tmp_path / place).rows("vmamba-pico", Cell("published_gaussian_noise", 1), "cls")
        for place in ("crop", "original")
    ]
    assert rows[0].equals(rows[1])


def test_pictures_of_the_clean_images_size_are_resized_like_these(tmp_path, clean):
    published = pictures(NOISE, severities=(1,), size=(36, 40))
    tree = write_tree(tmp_path / "c", published)
    run = run_evaluation(
        config(clean, tmp_path / "run", "published", published=(tree,), apply_at="crop")
    )
    record = read_record(run)
    assert record.transforms[1].parameters["preprocessing"] == "the model's own"
    steps = record.models[0].preprocessing
    clean_preprocessing = Preprocessing(steps.resize, steps.crop, steps.interpolation)
    view = record.models[0].view
    assert digests(run, "published_gaussian_noise", 1, view)[NAMES[0]] == digest(
        clean_preprocessing.apply(published[NOISE, 1, NAMES[0]])
    )


def test_a_crop_that_is_too_small_is_enlarged():
    small_image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    crop = Preprocessing(64, 48, "bilinear").apply_to_crop(small_image)
    expected = Image.fromarray(small_image).resize((48, 48), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(crop, np.asarray(expected))


def test_missing_pictures_are_named_before_the_run(tmp_path, clean):
    published = pictures(NOISE, FOG)
    del published[FOG, 2, NAMES[5]]
    tree = write_tree(tmp_path / "c", published)
    settings = config(clean, tmp_path / "run", "published", published=(tree,))
    with pytest.raises(UsageError, match=f"for 1 clean images are.*fog/2/{NAMES[5]}".replace(
        ".*", r"[\s\S]*"
    )):  # fmt: skip
        run_evaluation(settings)
    with pytest.raises(UsageError, match="are missing"):
        forecast(settings, Silent())
    assert not (tmp_path / "run").exists()
    run_evaluation(replace(settings, severities=(1,)))


def test_missing_classes_and_damaged_pictures_stop_the_run_and_are_named(tmp_path, clean):
    tree = write_tree(tmp_path / "c", pictures(NOISE))
    settings = config(clean, tmp_path / "run", "published", published=(tree,))
    (tree / NOISE / "2" / NAMES[11]).write_bytes(b"no picture")
    with pytest.raises(RunError, match=r"gaussian_noise/2/ship/2\.png` cannot be read"):
        run_evaluation(settings)
    shutil.rmtree(tree / NOISE / "1" / "cat")
    with pytest.raises(UsageError, match=r"gaussian_noise/1/cat/0\.png"):
        run_evaluation(settings)


def test_a_run_continues_and_changed_pictures_are_refused(tmp_path, clean):
    tree = write_tree(tmp_path / "c", pictures(NOISE))
    settings = config(clean, tmp_path / "run", "published", published=(tree,))
    run = run_evaluation(replace(settings, severities=(1,)))
    first = (run / "predictions").rglob("*.parquet")
    before = {path: path.stat().st_mtime_ns for path in first}
    moved_tree = shutil.copytree(tree, tmp_path / "elsewhere")
    run_evaluation(replace(settings, published=(moved_tree,)))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(table(run)) == 3
    Image.new("RGB", (32, 32)).save(tree / NOISE / "1" / NAMES[0])
    with pytest.raises(UsageError, match="parameters of transform `published_gaussian_noise`"):
        run_evaluation(settings)


def test_suffixes_of_clean_and_published_names_may_differ(tmp_path, clean):
    published = {(c, s, n.replace(".png", ".JPEG")): p for (c, s, n), p in pictures(NOISE).items()}
    tree = write_tree(tmp_path / "c", published)
    run = run_evaluation(config(clean, tmp_path / "run", "published", published=(tree,)))
    assert (table(run)["n"] == 12).all()


TEST, LABELS = cifar_images(20, seed=9), [i % 10 for i in range(20)]
ARRAYS = {NOISE: cifar_images(100, seed=1), FOG: cifar_images(100, seed=2)}


@pytest.fixture
def cifar(tmp_path):
    write_cifar_c(tmp_path / "CIFAR-10-C", ARRAYS, LABELS)
    return write_cifar10(tmp_path, TEST, LABELS)


def test_rows_of_arrays_are_found_by_severity_and_image(tmp_path, cifar):
    settings = config(
        cifar, tmp_path / "run", "published", published=(tmp_path / "CIFAR-10-C",), limit=10
    )
    run = run_evaluation(settings)
    for name, array in ARRAYS.items():
        for severity in range(1, 6):
            shown_digests = digests(run, f"published_{name}", severity)
            assert len(shown_digests) == 10
            for image_id, published in shown_digests.items():
                row = (severity - 1) * 20 + int(image_id.removeprefix("test/"))
                assert published == digest(array[row])
    assert read_record(run).transforms[1].parameters["preprocessing"] == "the model's own"


def test_other_clean_images_are_refused(tmp_path, cifar, clean):
    published = (tmp_path / "CIFAR-10-C",)
    with pytest.raises(UsageError, match="order of CIFAR's published test images"):
        run_evaluation(config(clean, tmp_path / "run", "published", published=published))
    write_cifar_c(tmp_path / "CIFAR-10-C", {}, [*LABELS[:-1], 3])
    with pytest.raises(
        UsageError, match="image 19 has class 3, but in the data set it has class 9"
    ):
        run_evaluation(config(cifar, tmp_path / "run", "published", published=published))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((100, 32, 32), np.uint8), "uint8 of shape"),
        (np.zeros((100, 32, 32, 3), np.float32), "float32 of shape"),
        (np.zeros((95, 32, 32, 3), np.uint8), "there are 100 labels"),
        (np.array([{"a": 1}]), "cannot be read"),
    ],
)
def test_arrays_unlike_the_published_ones_are_refused(tmp_path, cifar, array, message):
    np.save(tmp_path / "CIFAR-10-C" / "snow.npy", array, allow_pickle=True)
    with pytest.raises(UsageError, match=message):
        find_published([tmp_path / "CIFAR-10-C"])


def test_an_array_that_breaks_off_is_refused(tmp_path, cifar):
    path = tmp_path / "CIFAR-10-C" / f"{FOG}.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"fog\.npy"):
        find_published([path.parent])


def test_a_folder_without_corruptions_says_what_was_expected(tmp_path, clean):
    with pytest.raises(UsageError, match="CORRUPTION/SEVERITY/WNID"):
        find_published([clean])
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "blur.tar").write_bytes(b"")
    with pytest.raises(UsageError, match=r"Unpack its archives first: `blur\.tar`"):
        find_published([tmp_path / "tars"])
    with pytest.raises(UsageError, match="is not a folder"):
        find_published([tmp_path / "absent"])


def test_a_benchmark_that_is_named_as_data_says_where_it_belongs(tmp_path, cifar):
    write_tree(tmp_path / "c" / "noise", pictures(NOISE))
    for data in (tmp_path / "c", tmp_path / "c" / "noise", tmp_path / "CIFAR-10-C"):
        with pytest.raises(UsageError, match=f"--published {data}"):
            run_evaluation(config(data, tmp_path / "run"))
    run = run_evaluation(config(tmp_path / "c" / "noise" / NOISE / "1", tmp_path / "run"))
    assert read_record(run).dataset.images == 12


def test_two_corruptions_of_one_name_are_refused(tmp_path):
    write_tree(tmp_path / "a", pictures(NOISE))
    write_tree(tmp_path / "b", pictures(NOISE))
    with pytest.raises(UsageError, match="`gaussian_noise` was found twice") as caught:
        find_published([tmp_path / "a", tmp_path / "b"])
    assert f"It is in `{tmp_path / 'a'}` and in `{tmp_path / 'b'}`." in str(caught.value)


@pytest.mark.parametrize("name", ["published", "published/*", "published_fog", "published/fog"])
def test_published_names_without_a_folder_say_what_is_missing(name):
    with pytest.raises(UsageError, match="Set `--published`"):
        resolve_transforms([name], None)


def test_masks_have_no_published_pictures(tmp_path):
    tree = write_tree(tmp_path / "c", pictures(NOISE))
    cells = resolve_transforms(["published"], None, (), find_published([tree]))
    with pytest.raises(UsageError, match="cannot be used with segmenters"):
        bind_published(cells, None)


def test_without_an_evaluation_published_pictures_are_refused(tmp_path, clean):
    tree = write_tree(tmp_path / "c", pictures(NOISE))
    (published_set,) = find_published([tree])
    with pytest.raises(UsageError, match="only has images of its benchmark"):
        published_set.apply(np.zeros((8, 8, 3), np.uint8), seed=0, severity=1)


# Parity of computed and published corruptions.


def test_parity_compares_ours_with_theirs_on_the_same_images(tmp_path, clean):
    """Equal pictures give no difference; other pictures give the paired difference."""
    noise = next(item for item in transforms() if item.name == "c_gaussian_noise")
    dataset = open_dataset(str(clean), Classes("cifar10"))
    preprocessing = Preprocessing(32, 32, "bicubic")
    published = {}
    for sample in dataset.samples:
        crop = preprocessing.apply(np.asarray(Image.open(sample.image.path)))
        seed = image_seed(0, noise.name, 1, sample.image_id)
        published[NOISE, 1, sample.image_id] = noise.apply(crop, seed=seed, severity=1)
        published[FOG, 1, sample.image_id] = crop
    tree = write_tree(tmp_path / "c", published)
    model = ModelRequest(
        "vmamba-pico", untrained=True,
        preprocessing={"resize": 32, "crop": 32, "interpolation": "bicubic"},
    )  # fmt: skip
    settings = config(
        clean, tmp_path / "run", "published", "imagenet-c/gaussian_noise", "c_fog",
        published=(tree,), severities=(1,), apply_at="crop", models=(model,),
    )  # fmt: skip
    run = run_evaluation(settings)
    by_name = {item.transform: item for item in PARITY.read(run)}
    assert by_name["published_gaussian_noise"].identical == 12
    assert by_name["published_gaussian_noise"].psnr_db is None
    lines = {line.corruption: line for line in read_findings(run).parity}
    assert lines[NOISE].difference is not None
    assert lines[NOISE].difference.value == 0
    view = read_record(run).models[0].view
    fog = Store(run).inputs(view, Cell("c_fog", 1))
    # The published fog is the clean crop: its PSNR to the computed fog is that of fog and crop.
    assert by_name["published_fog"].psnr_db == pytest.approx(fog["psnr_db"].mean())
    rows = [
        Store(run).rows("vmamba-pico", Cell(name, 1), "cls") for name in ("c_fog", "published_fog")
    ]
    hits = [(r["prediction"] == r["target"]).to_numpy() for r in rows]
    assert lines[FOG].difference == class_difference(*rows)
    assert lines[FOG].difference.value == pytest.approx(hits[1].mean() - hits[0].mean())
    text = evaluation_report(run).markdown
    assert "Published images compared with this program's corruptions" in text
    assert "same pixels" in text


def test_mce_of_published_pictures_stands_beside_that_of_ours():
    import pandas as pd

    rows = [{"model": "m", "transform": "identity", "severity": 0, "top1": 0.7, "n": 10,
             "paired_n": 10}]  # fmt: skip
    families = {"identity": "identity"}
    for prefix, family, top1 in (("c_", "imagenet-c", 0.5), ("published_", "published", 0.25)):
        for corruption in ALEXNET_ERROR:
            families[prefix + corruption] = family
            rows += [
                {"model": "m", "transform": prefix + corruption, "severity": s, "top1": top1,
                 "n": 10, "paired_n": 10} for s in range(1, 6)
            ]  # fmt: skip
    errors = corruption_errors(pd.DataFrame(rows), label_space="imagenet-1k", families=families)
    assert [row.family for row in errors] == ["imagenet-c", "published"]
    inverse = sum(1 / error for error in ALEXNET_ERROR.values()) / 15
    assert errors[0].mce == pytest.approx(0.5 * inverse)
    assert errors[1].mce == pytest.approx(0.75 * inverse)


def test_list_shows_published_corruptions(tmp_path):
    from click.testing import CliRunner

    from robustcli.cli.main import main

    tree = write_tree(tmp_path / "c", pictures(NOISE))
    command = ["list", "transforms", "published*", "--published", str(tree), "--json"]
    rows = json.loads(CliRunner().invoke(main, command).output)
    assert [(row["name"], row["severities"]) for row in rows] == [
        ("published_gaussian_noise", "1,2")
    ]
    refused_result = CliRunner().invoke(main, ["list", "models", "--published", str(tree)])
    assert refused_result.exit_code == 2
