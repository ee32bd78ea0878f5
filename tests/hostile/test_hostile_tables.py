"""Hostile tables, settings and descriptions: one clear message, and literally displayed names."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.core.io import parse_json
from robustcli.core.names import FORMULA_SIGNS, printable
from robustcli.data.dataset import Dataset, FileRef, Sample
from robustcli.data.splits import Splits, read_splits, write_splits
from tests.hostile.conftest import CONTROL_CODES, Robust
from tests.hostile.images import photo


def mark_slow(cases: Iterable[str], fast_cases: Iterable[str]) -> list[ParameterSet]:
    """Returns the cases as parameters; all but the representative `fast_cases` are slow."""
    fast_set = set(fast_cases)
    return [pytest.param(c, marks=[] if c in fast_set else pytest.mark.slow) for c in cases]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for n in range(3):
        photo(n).save(folder / f"{n}.png")
    return folder


EVAL = ("eval", "--model", "resnet-pico", "--transform", "identity", "--label-space", "cifar10")
TABLES: dict[str, bytes] = {
    "device": b"path,label\n/dev/zero,cat\n0.png,dog\n",
    "outside, not there": b"path,label\n../../../nothing/there.png,cat\n",
    "home of another": b"path,label\n~root/x.png,cat\n",
    "NUL in a name": b"path,label\n0\0.png,cat\n",
    "only NUL": bytes(5000),
    "endless cell": b"path,label\n" + b"x" * 3_000_000 + b",cat\n",
    "long name": b"path,label\n" + b"a" * 300 + b".png,cat\n",
    "100,000 columns": b"path" + b",x" * 60_000 + b"\n0.png" + b",1" * 60_000 + b"\n",
    "open quote": b'path,label\n"0.png,cat\n' * 3,
    "all bytes": bytes(range(256)) * 40,
    "half of UTF-16": b"\xff\xfe" + b"\x00\xd8" * 9,
    "lone surrogate": b"path,label\n\xed\xa0\x80.png,cat\n",
    "escape in a name": b"path,label\n\x1b]0;x\x07.png,cat\n",
    "escape in a class": b"path,label\n0.png,\x1b[31mcat\n1.png,=1+1\n",
    "escape in a column": b"\x1b[31mpath,\x1b[2Jlabel\n0.png,cat\n",
    "NUL as separator": b"sep=\0\npath\0label\n",
    "empty": b"",
    "header": b"path,label\n",
    "repeated": b"path,label\n" + b"0.png,cat\n" * 1000,
}


@pytest.mark.parametrize(
    "kind", mark_slow(TABLES, ["NUL in a name", "endless cell", "long name", "escape in a class"])
)
def test_a_table_gives_one_message(robust: Robust, data: Path, kind: str) -> None:
    (data / "table.csv").write_bytes(TABLES[kind])
    text = robust(*EVAL, "--data", data / "table.csv", "--dry-run", code=2)
    assert text.count("Error: ") == 1
    assert len(text) < 40_000


def test_a_file_outside_that_is_no_image_is_never_shown(robust: Robust, data: Path) -> None:
    """A table may contain absolute paths to any file; they are decoded as images only."""
    (data.parent / "secret.txt").write_text("the secret")
    (data / "table.csv").write_text("path,label\n../secret.txt,cat\n0.png,dog\n")
    text = robust(*EVAL, "--data", data / "table.csv", "--out", "run", code=1)
    assert "../secret.txt" in text
    run_files = [path for path in Path("run").rglob("*") if path.is_file()]
    assert run_files
    assert not [path for path in run_files if b"the secret" in path.read_bytes()]


CONFIGS = {
    "code": "model: !!python/object/apply:os.system ['touch ran']",
    "name of code": "model: !!python/name:os.system",
    "laughs": "a: &a [x, x]\n"
    + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}' if n else '*a'] * 9)}]\n" for n in range(9))
    + "model: *a8",
    "deep": "model: " + "[" * 3000 + "]" * 3000,
    "deep mappings": "{a: " * 3000,
    "holds itself": "model: &a [*a]",
    "types": "batch-size: {a: 1}\nseed: [1, 2]\nseverity: yes\nworkers: 1e999\nlimit: -1",
    "control": "\x00\x01", "escape": '"\\e[31mx": 1', "twice": "model: a\nmodel: b",
    "long number": "seed: " + "9" * 9000, "date": "seed: 2020-01-01", "set": "model: !!set {a, b}",
    "binary": "model: !!binary aGFsbG8=", "text": "just a text", "list": "- model", "empty": "",
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_settings_file_gives_one_message(robust: Robust, tmp_path: Path, kind: str) -> None:
    (tmp_path / "study.yaml").write_text(CONFIGS[kind])
    robust("eval", "--config", "study.yaml", "--dry-run", code=2)
    assert not (tmp_path / "ran").exists()


JSON = {
    "deep list": "[" * 200_000, "deep object": '{"a":' * 100_000, "number": "1", "null": "null",
    "list": "[1, [2]]", "NUL": "\0", "NaN": '{"schema_version": NaN}', "text": '"x"',
    "long number": '{"schema_version": ' + "9" * 5000 + "}",
    "twice": '{"labels": 1, "labels": 2}', "escape": '{"\\u001b[31m": "\\u001b[31m"}',
    "types": '{"labels": {"background": "x"}, "configurations": [1], "plans_name": 3, '
    '"command": "eval", "kind": ["a"], "schema_version": 1}',
}  # fmt: skip


@pytest.mark.parametrize("kind", mark_slow(JSON, ["deep object"]))
def test_descriptions_beside_data_weights_and_runs(robust: Robust, data: Path, kind: str) -> None:
    """`labels.json`, `dataset.json`, `plans.json`, `run.json`, description of an exported file."""
    masks = data.parent / "masks"
    for folder in ("images", "masks"):
        (masks / folder).mkdir(parents=True)
    values = (np.arange(24)[:, None] // 8).repeat(24, axis=1).astype(np.uint8)
    photo().save(masks / "images" / "0.png")
    Image.fromarray(values).save(masks / "masks" / "0.png")
    seg = ("eval", "--model", "ulvm_v5", "--untrained", "--transform", "identity", "--dry-run")
    for name in ("labels.json", "dataset.json"):
        (masks / name).write_text(JSON[kind])
        robust(*seg, "--data", masks, "--classes", "all", code=(0, 2))
        (masks / name).unlink()
    nnunet = data.parent / "nnunet"
    (nnunet / "fold_0").mkdir(parents=True)
    (nnunet / "fold_0" / "checkpoint_final.pth").write_bytes(b"x")
    for name in ("plans.json", "dataset.json"):
        (nnunet / name).write_text(JSON[kind])
    robust(
        "finetune", "umamba", "--pretrained", nnunet, "--data", "nuclei-mini", "--dry-run", code=2
    )
    run = data.parent / "run"
    run.mkdir()
    (run / "weights.safetensors").write_bytes(b"x" * 20)
    for name in ("run.json", "results.json"):
        (run / name).write_text(JSON[kind])
    for command in (("report", run), ("compare", run, run), ("verify", run),
                    ("publish", "hub-card", run)):  # fmt: skip
        robust(*command, code=(1, 2))
    robust(*EVAL, "--data", "cifar10-mini", "--out", run, "--dry-run", code=(1, 2))
    robust("eval", "--model", run, "--transform", "identity", "--dry-run", code=2)


def test_json_that_python_cannot_hold_is_a_value_error() -> None:
    assert parse_json('{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 200_000)


HOSTILE_NAMES = (
    "=cmd|' -C calc'!A0", "+1", "-2+3", "@SUM(1)", "<script>alert(1)<_script>",
    "<img src=x onerror=1>",
    "`code` | *b* [x](javascript:1)", "\\input{x} $y$ & % # _ ^", "\x1b]0;t\x07\x1b[31mred",
    "\u202eevil",
)  # fmt: skip


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_names_of_files_and_classes_stay_names_in_every_output(
    robust: Robust, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for n, name in enumerate(HOSTILE_NAMES):
        (data / name).mkdir(parents=True)
        photo(n).save(data / name / f"{name} {n}.png")
    (tmp_path / "classes.txt").write_text("\n".join(HOSTILE_NAMES))
    options = ("--model", "resnet-pico", "--label-space", "classes.txt")
    robust("eval", *options, "--transform", "identity", "--data", data, "--out", "run", code=0)
    robust("predict", *options, data, "--csv", "--out", "labels", code=0)
    latex = robust("report", "run", "--format", "latex", code=0)
    assert "\\input" not in latex
    texts = [path for folder in ("run", "labels") for path in (tmp_path / folder).rglob("*")
             if path.suffix in (".csv", ".md", ".html", ".json", ".tex")]  # fmt: skip
    assert {path.suffix for path in texts} >= {".csv", ".md", ".html", ".json"}
    for path in texts:
        text = path.read_text(encoding="utf-8")
        assert not CONTROL_CODES.search(text), path.name
        if path.suffix == ".csv":
            cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
            formulas = [cell for cell in cells if cell.startswith(FORMULA_SIGNS)]
            assert not [cell for cell in formulas if not re.fullmatch(r"-?[\d.e-]+", cell)]
    page = _Tags()
    page.feed((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert not [a for a in images if "onerror" in a or a.get("src") == "x"]
    assert not [a for tag, a in page.tags if (a.get("href") or "").startswith("javascript")]
    with (tmp_path / "labels" / "labels.csv").open(newline="", encoding="utf-8") as file:
        names = {row["name"] for row in csv.DictReader(file)}
    expected = {printable(f"'{n}" if n.startswith(FORMULA_SIGNS) else n) for n in HOSTILE_NAMES}
    assert names <= expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plain ñ 中\n\tx", "plain ñ 中\n\tx"), ("\x1b[31m", r"\x1b[31m"), ("a\u202eb", r"a\u202eb"),
     ("\x9b0m", r"\x9b0m"), ("a\rb", r"a\rb"), ("\udcff", r"\udcff"), ("\u200d", "\u200d")],
)  # fmt: skip
def test_what_a_terminal_would_obey_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_splits_are_no_formulas_and_are_read_as_written(tmp_path: Path) -> None:
    ids = ["=1+1.png", "+x.png", "-y.png", "@z.png", "'=quoted.png", "''=twice.png", "plain.png",
           "'plain.png", " cat /left.png", "right.png "]  # fmt: skip
    samples = tuple(Sample(FileRef(name, tmp_path / name), 0, name) for name in ids)
    dataset = Dataset("d", str(tmp_path), samples)
    none = Dataset("d", str(tmp_path), ())
    write_splits(tmp_path / "splits.csv", Splits(train=dataset, val=none, test=none))
    text = (tmp_path / "splits.csv").read_text()
    assert not [cell for line in csv.reader(text.splitlines()) for cell in line
                if cell.startswith(FORMULA_SIGNS)]  # fmt: skip
    assert sorted(read_splits(tmp_path / "splits.csv")) == sorted(ids)


def test_a_table_that_is_a_link_to_a_device_is_no_table(robust: Robust, data: Path) -> None:
    (data / "table.csv").symlink_to("/dev/zero")
    os.mkfifo(data / "pipe.csv")
    robust(*EVAL, "--data", data / "table.csv", "--dry-run", code=2)
    robust(*EVAL, "--data", "/dev/zero", "--dry-run", code=2)
    robust(*EVAL, "--data", data / "pipe.csv", "--dry-run", code=2)


def test_messages_keep_their_three_parts() -> None:
    error = UsageError("what \x1b", "why", "todo")
    assert printable(str(error)).splitlines() == ["what \\x1b", "why", "todo"]
