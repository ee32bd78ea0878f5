"""Study files: what they say, what overrides them, and what is wrong with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from robustcli.evaluation import evaluate, prediction
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.mask_files import PredictedMasks
from robustcli.training import engine
from tests.cli.conftest import Asked, Robust, python

SMALL = """
command: eval
model: vmamba-pico
untrained: true
transform: [fliplr, flipud]
limit: 20
workers: 0
device: cpu
"""


@pytest.fixture
def configs(asked: Asked) -> list[EvalConfig]:
    """The configurations that `robust eval` made; each run ends there."""
    return asked(evaluate, "run_evaluation")


def write(content: str, name: str = "study.yaml") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(content, encoding="utf-8")
    return name


def test_any_option_of_the_command(robust: Robust, configs: list[EvalConfig]) -> None:
    file = write("""
        model: resnet18
        model-arg: {pad_type: same, num_classes: 10}
        transform: [fog*, paper21]
        severity: [1, 3]
        mean: [0.5, 0.5, 0.5]
        std: 0.1,0.2,0.3
        allow_unreadable: 5e-1
        per-class: 15
        apply-at: crop
        devices: 2
        offline: yes
        fresh: false
        limit: ~
        ignore: 255
        label-space: no
        fail-under: [clean=3, 'mean=4']
    """)
    assert robust("eval", "--config", file).code == 1
    (config,) = configs
    (model,) = config.models
    assert model.arguments == {"pad_type": "same", "num_classes": 10}
    assert model.preprocessing == {"mean": (0.5, 0.5, 0.5), "std": (0.1, 0.2, 0.3)}
    assert (config.transforms, config.severities) == (("fog*", "paper21"), (1, 3))
    assert (config.allow_unreadable, config.per_class, config.apply_at) == (0.5, 15, "crop")
    assert (config.devices, config.offline, config.fresh) == (2, True, False)
    assert (config.limit, config.ignore, config.label_space) == (None, "255", "no")
    assert config.fail_under == ("clean=3", "mean=4")


def test_flags_and_the_environment_override(
    robust: Robust, configs: list[EvalConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("model: [a, b]\ntransform: fog\nseed: 3\nlimit: 9\noffline: false\n")
    monkeypatch.setenv("ROBUST_OFFLINE", "1")
    robust("eval", "--config", file, "--model", "c", "--seed", "0")
    (config,) = configs
    assert [model.name for model in config.models] == ["c"]
    assert (config.seed, config.limit, config.offline) == (0, 9, True)


def test_paths_are_relative_to_the_file(robust: Robust, configs: list[EvalConfig]) -> None:
    Path("studies/photos").mkdir(parents=True)
    Path("studies/trained").mkdir()
    Path("studies/trained/run.json").write_text("{}")
    file = write("""
        model: [trained, resnet18]
        transform: fog
        data: photos
        labels: sub/l.csv
        plugin: [p.py, /abs/q.py]
        out: results
    """, "studies/study.yaml")  # fmt: skip
    robust("eval", "--config", file)
    (config,) = configs
    assert [model.name for model in config.models] == ["studies/trained", "resnet18"]
    assert (config.data, config.labels) == ("studies/photos", Path("studies/sub/l.csv"))
    assert config.plugins == (Path("studies/p.py"), Path("/abs/q.py"))
    assert config.out == Path("studies/results")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("cifar10_mini", "cifar10_mini"),
        ("nuclei-mini:stained", "nuclei-mini:stained"),
        ("cifar10-mni", "cifar10-mni"),  # a typo gets its suggestion
        ("photos/val:cat", "studies/photos/val:cat"),
        ("elsewhere", "studies/elsewhere"),
    ],
)
def test_names_of_data_sets_are_no_paths(
    robust: Robust, configs: list[EvalConfig], data: str, expected: str
) -> None:
    file = write(f"model: a\ntransform: fog\ndata: {data}\n", "studies/study.yaml")
    robust("eval", "--config", file)
    assert configs[0].data == expected


def test_all_errors_at_once_with_their_lines(robust: Robust, configs: list[EvalConfig]) -> None:
    file = write("""command: eval
modle: vmamba-pico
model: vmamba-pico
seed: abc
limit: 1.5
data: [a, b]
per-class: 3
per_class: 4
untrained: maybe
apply-at: middle
severity: [1, two]
mean: {a: 1}
model-arg: nonsense
runs:
  - {seed: 3, command: eval}
  - 4
label-space: !!python/object/apply:os.system ["true"]
""")
    outcome = robust("eval", "--config", file)
    assert (outcome.code, outcome.out, configs) == (2, "", [])
    first, *lines, last = outcome.err.splitlines()
    assert first == "Error: `study.yaml` has 13 errors."
    numbers = [int(line.split(":")[1]) for line in lines]
    assert numbers == [2, 4, 5, 6, 8, 9, 10, 11, 12, 13, 15, 16, 17]
    text = "\n".join(lines)
    for words in (
        "study.yaml:2: `modle` is not an option of `robust eval`. Did you mean `model`?",
        "study.yaml:4: `seed`: 'abc' is not a valid integer.",
        "study.yaml:6: `data`: it takes one value, got a list.",
        "study.yaml:8: `per_class` is already set in line 7.",
        "study.yaml:9: `untrained`: expected true or false, got `maybe`.",
        "study.yaml:10: `apply-at`: 'middle' is not one of",
        "study.yaml:11: `severity`: `1,two` is not a comma-separated list",
        "study.yaml:13: `model-arg`: `nonsense` is not KEY=VALUE.",
        "study.yaml:15: `command` is only allowed at the top level of the file.",
        "study.yaml:17: `label-space`: the tag",
    ):
        assert words in text
    assert "robust eval --help" in last


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "contains no options"),
        ("- a\n- b\n", "contains no options"),
        ("model: [a\nb: 3", r"`study.yaml:2` is not YAML"),
        ("model: a\n---\nmodel: b\n", "is not YAML"),
        ("command: train seg\n", "is for `robust train seg`, not for `robust eval`"),
    ],
)
def test_files_that_are_no_study(robust: Robust, content: str, message: str) -> None:
    outcome = robust("eval", "--config", write(content))
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


def test_a_file_that_is_not_there(robust: Robust) -> None:
    outcome = robust("eval", "--config", "none.yaml")
    assert outcome.code == 2
    assert "`--config none.yaml` cannot be read." in outcome.err


def test_what_neither_names_is_missing_as_ever(robust: Robust) -> None:
    outcome = robust("eval", "--config", write("transform: fog\n"))
    assert outcome.code == 2
    assert "Missing option '--model'" in outcome.err


def test_a_dry_run_shows_where_each_setting_comes_from(robust: Robust) -> None:
    outcome = robust("eval", "--config", write(SMALL), "--dry-run", "--seed", "5")
    assert outcome.code == 0
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert lines[0] == "Settings (study.yaml):"
    assert "transform: fliplr, flipud study.yaml:5" in lines
    assert "seed: 5 flag" in lines
    assert "precision: fp32 default" in lines
    assert "untrained: true study.yaml:4" in lines
    assert "Predictions: 60 to compute, 0 already exist" in lines
    document = json.loads(robust("eval", "--config", "study.yaml", "--dry-run", "--json").out)
    assert document["settings"]["limit"] == {"value": 20, "from": "study.yaml:6"}
    assert document["forecast"]["predictions"] == 60


def test_several_runs_in_one_call(robust: Robust, tmp_path: Path) -> None:
    runs = "fail-under: [clean=99]\nruns:\n  - {seed: 1, out: one}\n  - {out: two, limit: 10}\n"
    outcome = robust("eval", "--config", write(SMALL + runs), "--json")
    assert outcome.code == 4  # both are computed before the command fails
    document = json.loads(outcome.out)
    assert {run: content["results"][0]["n"] for run, content in document.items()} == {
        "one": 20,
        "two": 10,
    }
    assert "Gates failed in 2 runs." in outcome.err
    recorded = json.loads((tmp_path / "two/study.json").read_text())
    content = Path("study.yaml").read_bytes()
    assert recorded["sha256"] == hashlib.sha256(content).hexdigest()
    assert (recorded["file"], recorded["run"], recorded["runs"]) == ("study.yaml", 2, 2)
    assert recorded["settings"]["limit"] == {"value": 10, "from": "study.yaml:12"}
    assert recorded["settings"]["seed"] == {"value": 0, "from": "default"}
    text = robust("eval", "--config", "study.yaml", "--fail-under", "clean=0")
    assert text.code == 0
    assert text.out.count("Report: ") == 2
    assert "study.yaml, run 2 of 2." in text.err
    assert robust("eval", "--config", "study.yaml", "--fresh", "--limit", "3").code == 4
    assert json.loads((tmp_path / "two/study.json").read_text())["settings"]["limit"] == {
        "value": 3,
        "from": "flag",
    }


def test_runs_do_not_share_a_folder(robust: Robust, configs: list[EvalConfig]) -> None:
    file = write(SMALL + "runs:\n  - {seed: 1}\n  - {seed: 2}\n")
    outcome = robust("eval", "--config", file, "--out", "one")
    assert (outcome.code, configs) == (2, [])
    assert "Several runs of `study.yaml` use the same folder `one`." in outcome.err


def test_trainings_have_study_files_too(robust: Robust, asked: Asked) -> None:
    configs = asked(engine, "run_training")
    file = write("command: train cls\nmodel: vmamba-pico\nlr: 1e-4\nepochs: 2\nquick: on\n")
    assert robust("train", "cls", "--config", file).code == 1
    (config,) = configs
    assert (config.model, config.lr, config.epochs, config.quick) == (
        "vmamba-pico", 1e-4, 2, True
    )  # fmt: skip
    outcome = robust("train", "seg", "--config", file)
    assert "is for `robust train cls`, not for `robust train seg`" in outcome.err


def test_a_fine_tuning_takes_its_model_from_the_file(robust: Robust) -> None:
    outcome = robust("finetune", "--config", write("model: umamba-pico\nfreeze-treshold: 1\n"))
    assert outcome.code == 2
    assert "`freeze-treshold` is not an option of `robust finetune`" in outcome.err
    assert "Did you mean `freeze-threshold`" in outcome.err


def test_masks_of_a_study(robust: Robust, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def note(config: prediction.PredictConfig, _: object) -> PredictedMasks:
        seen.extend([config.data, config.out])
        return PredictedMasks((Path("m.png"),), 0)

    monkeypatch.setattr(prediction, "predict", note)
    data = "photos: [nuclei-mini]\ndata: [a, b]\n"
    file = write(f"command: predict\nmodel: otsu\n{data}out: masks\n", "s/study.yaml")
    outcome = robust("predict", "--config", file, "--json")
    assert json.loads(outcome.out) == ["m.png"]
    assert seen == [(Path("nuclei-mini"), Path("s/a"), Path("s/b")), Path("s/masks")]


def test_yaml_is_loaded_only_with_a_study_file() -> None:
    code = (
        "import sys\nfrom robustcli.cli import main\n"
        "try: main(['eval', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('yaml' in sys.modules)"
    )
    assert python("-c", code).returncode == 0
