"""`robust verify`: exit codes and output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustcli.evaluation.evaluate import evaluate
from tests.cli.conftest import Robust
from tests.evaluation.photos import config, make_photos


@pytest.fixture
def run(tmp_path: Path) -> Path:
    evaluate(config(make_photos(tmp_path / "data"), tmp_path / "run"))
    return Path("run")


def test_exit_codes(robust: Robust, run: Path, tmp_path: Path) -> None:
    outcome = robust("verify", "run", "--device", "cpu", "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("This machine reproduces `run`.")
    (file,) = (tmp_path / "run").glob("predictions/*/transform=fliplr/*/*.parquet")
    table = pq.read_table(file, partitioning=None)
    rows = table.to_pylist()
    rows[0]["target_probability"] = 0.9
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    outcome = robust("verify", "run", "--device", "cpu", "--sample", "all", "--json", "--quiet")
    assert outcome.code == 1
    assert json.loads(outcome.out)["reproduced"] is False
    shutil.rmtree(tmp_path / "data")
    outcome = robust("verify", "run", "--device", "cpu")
    assert outcome.code == 3
    assert "--data DIR" in outcome.err
    assert robust("verify", "nothing").code == 2
    assert robust("verify", "run", "--sample", "0").code == 2
