"""`robust finetune` as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import robustcli
from robustcli.finetuning import mode_trainings
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.selection import FreezeRule
from robustcli.training.config import TrainConfig
from tests.cli.conftest import Asked, Robust, put_run
from tests.training.images import write_pairs

TINY = ["--data", "pairs", "--recipe", "patient", "--epochs", "1", "--window", "32", "--batch-size",
        "4", "--device", "cpu", "--workers", "0", "--profile-iterations", "2"]  # fmt: skip


@pytest.fixture(scope="session")
def _tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pairs/` and, once a test made it, `run/`: training costs seconds."""
    folder = tmp_path_factory.mktemp("tuned")
    write_pairs(folder / "pairs", 20)
    return folder


@pytest.fixture
def here(_tuned: Path, robust: Robust, tmp_path: Path) -> Path:
    """The working folder with data and a finished fine-tuning."""
    shutil.copytree(_tuned / "pairs", "pairs")
    put_run(_tuned / "run", lambda: robust("finetune", *RUN, "--quiet"))
    return tmp_path


RUN = ["umamba-pico", *TINY, "--out", "run", "--freeze-quantile", "0.5"]


def test_it_prints_a_row_for_each_mode(robust: Robust, here: Path) -> None:
    outcome = robust("finetune", *RUN)
    assert outcome.code == 0, outcome.err
    assert "full: `run/full` is already finished." in outcome.err
    rows = [line.split()[0] for line in outcome.out.splitlines() if line]
    modes = [name for name in rows if name in ("scratch", "full", "freeze")]
    assert modes[:3] == ["scratch", "full", "freeze"]
    assert outcome.out.splitlines()[-1] == "Report: run/report.md"
    again = robust("report", "run")
    assert again.code == 0, again.err


def test_json_is_one_document(robust: Robust, here: Path) -> None:
    outcome = robust("finetune", *RUN, "--json", "--quiet")
    assert outcome.err == ""
    rows = json.loads(outcome.out)
    assert [row["mode"] for row in rows] == ["scratch", "full", "freeze"]
    assert all(0 <= row["dice"] <= 1 for row in rows)


def test_a_mode_is_a_model_of_the_other_commands(robust: Robust, here: Path) -> None:
    outcome = robust("eval", "--model", "run/freeze", "--data", "pairs", "--transform", "fliplr",
                  "--out", "ev", "--workers", "0", "--device", "cpu")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "were held out for testing" in outcome.err


def test_in_python(here: Path) -> None:
    run = robustcli.Finetuning(Path("run"))
    table = run.table()
    assert table["mode"].tolist() == ["scratch", "full", "freeze"]
    assert table["dice"].between(0, 1).all()
    assert sorted(run.profile()["iteration"].unique()) == [0, 1]
    assert run.decisions()["frozen"].sum() > 0
    assert run.training("freeze").weights.is_file()
    assert run.record.model == "umamba-pico"


def test_a_dry_run_trains_nothing_and_says_what_would_freeze(robust: Robust, here: Path) -> None:
    outcome = robust("finetune", "umamba-pico", *TINY, "--out", "other", "--dry-run",
                  "--profile", "run/gradients.parquet", "--freeze-quantile", "0.5")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert not (here / "other").exists()
    frozen = pd.read_csv("run/frozen.csv")["frozen"].sum()
    assert (
        sum("frozen: among the lowest 0.5" in line for line in outcome.out.splitlines()) == frozen
    )
    assert "parameters" in outcome.out
    assert f"Frozen: {frozen} of 143 tensors" in outcome.err


def test_every_option_reaches_the_configuration(robust: Robust, asked: Asked) -> None:
    configs = asked(mode_trainings, "run_finetuning")
    outcome = robust(
        "finetune", "umamba", "--pretrained", "w", "--data", "d", "--mode", "freeze",
        "--iterations", "9", "--protocol", "paper", "--limit", "8", "--model-arg", "a=1",
        "--freeze-relative", "0.1", "--freeze-scope", "all", "--statistic", "rms",
        "--profile-iterations", "5", "--profile", "p", "--profile-only", "--recipe", "nnunet",
        "--quick", "--lr", "0.2", "--out", "o", "--seed", "7", "--fresh", "--offline",
        "--ablate", "scan",
    )  # fmt: skip
    assert outcome.code == 1
    (config,) = configs
    training = TrainConfig(
        "umamba", "d", Path("o"), "paper", 8, model_args={"a": 1}, quick=True, lr=0.2, seed=7,
        fresh=True, offline=True, command=config.training.command, recipe="nnunet", ablate="scan",
    )  # fmt: skip
    rule = FreezeRule(0.1, kind="rms", relative=True, scope="all")
    assert config == FinetuneConfig(
        training, Path("w"), "freeze", rule, 5, Path("p"), True, 9
    )  # fmt: skip
    assert config.training.command.split()[0] == "robust"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["umamba_v9"], "No model is called `umamba_v9`"),
        (["vmamba-b"], "`--data` is not set, and `vmamba-b` has no default"),
        (["unet"], "`unet` has no weights on this machine to fine-tune"),
        (
            ["umamba", "--freeze-threshold", "-1"],
            "`--freeze-threshold -1` is not a valid gradient threshold",
        ),
        (
            ["umamba", "--freeze-relative", "-1"],
            "`--freeze-relative -1` is not a valid gradient threshold",
        ),
        (["umamba", "--freeze-quantile", "2"], "`--freeze-quantile 2` is not a fraction"),
        (["umamba", "--freeze", "nothing.*", "--dry-run"], "`--freeze nothing.*` matches no param"),
        (["umamba", "--freeze", "a", "--freeze-threshold", "1"], "exclude each other"),
        (["umamba", "--freeze-relative", "1", "--freeze-threshold", "1"], "exclude each other"),
        (["umamba", "--profile", "nowhere"], "`--profile nowhere` does not exist"),
        (["umamba", "--pretrained", "nowhere"], "`--pretrained nowhere` does not exist"),
        (["umamba", "--recipe", "nothing"], "nothing"),
    ],
)
def test_what_is_refused(robust: Robust, arguments: list[str], message: str) -> None:
    outcome = robust("finetune", *arguments, "--offline", "--device", "cpu")
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert not Path("runs").exists()


def test_the_package_is_also_the_function(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[FinetuneConfig] = []

    def note(config: FinetuneConfig, _: object) -> Path:
        asked.append(config)
        return tmp_path

    monkeypatch.setattr(mode_trainings, "run_finetuning", note)
    made = robustcli.finetune("umamba", "d", out=tmp_path, mode="full", iterations=3, lr=0.5)
    assert made == robustcli.Finetuning(tmp_path)
    (config,) = asked
    assert (config.mode, config.iterations, config.training.lr) == ("full", 3, 0.5)
    assert config.rule == FreezeRule(threshold=1e-6)
    assert config.training.command == "robustcli.finetune(...)"
