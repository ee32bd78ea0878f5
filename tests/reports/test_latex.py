"""LaTeX tables: they compile with any names, and contain the results."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from robustcli.reports.latex import bold, cell, tex
from robustcli.reports.render import REPORT_FORMATS, document, zoo_document
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.explanation_runs import build_explanation
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.mask_runs import MaskPlan, build_masks
from tests.reports.seeded_runs import build_class_seeds, build_seeds, build_tuned_seeds
from tests.reports.train_runs import TrainPlan, build_class_training, build_training

HOSTILE = "a_b&c%d#e$f{g}h\\i~j^k<l>|\"m'n`\N{EN DASH}\N{CJK UNIFIED IDEOGRAPH-4E2D}\u00e9-1"
COMMANDS = {
    *("begin", "end", "caption", "label", "centering", "toprule", "midrule", "bottomrule"),
    *("footnotesize", "setlength", "tabcolsep"),
    *("texttt", "textbf", "textbackslash", "textasciicircum", "textasciitilde", "textless"),
    *("textgreater", "textbar", "char", "textquotesingle", "textasciigrave", "endhead"),
    *("endfirsthead", "endfoot"),
}


def check(document: str) -> list[list[list[str]]]:
    """Returns the cells of each table; raises AssertionError for LaTeX errors."""
    text = re.sub(r"(?m)^%.*\n", "", document)  # comments
    assert text.isprintable() or set(text) - {"\n"}
    commands = re.findall(r"\\([a-zA-Z]+|.)", text)
    assert {name for name in commands if name.isalpha()} <= COMMANDS
    assert {name for name in commands if not name.isalpha()} <= set("{}$&#_%\\")
    text_without_commands = re.sub(r"\\[a-zA-Z]+|\\[^\\a-zA-Z]", "", text.replace("\\\\", "\n"))
    assert not set(text_without_commands) & set("%#_^\\"), "a special character is not escaped"
    depth = 0
    for character in text_without_commands:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert all(line.count("$") % 2 == 0 for line in text_without_commands.splitlines())
    environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            environments.append(name)
        else:
            assert environments.pop() == name
    assert environments == []
    tables = []
    for columns, body in re.findall(
        r"\\begin\{(?:tabular|longtable)\}\{([lr]+)\}(.*?)\\end\{(?:tabular|longtable)\}",
        text,
        re.S,
    ):
        lines = re.findall(r"(?m)^(?!\\(?:caption|label|\w+rule|end))(.*) \\\\$", body)
        cells = [re.split(r"(?<!\\) & ", line) for line in lines]
        assert {len(row) for row in cells} == {len(columns)}
        tables.append(cells)
    return tables


def runs(folder: Path) -> dict[str, Path]:
    data = {"name": HOSTILE}
    models = (model(HOSTILE), model("b"))
    cells = (IDENTITY, *paper21()[:3], *imagenet_c()[:45])
    return {
        "evaluation": build_run(
            folder / "a", RunPlan(models, cells, images=20, dataset=data, samples=False)
        ),
        "segmenters": build_masks(folder / "b", MaskPlan(dataset=data)),
        "training": build_training(folder / "c", TrainPlan(dataset=data)),
        "paper": build_training(folder / "d", TrainPlan(protocol="paper")),
        "fine-tuning": build_finetuning(folder / "e", FinetunePlan(modes=("full", "freeze"))),
        "profile": build_finetuning(folder / "o", FinetunePlan(modes=())),
        "part": build_run(folder / "f", RunPlan(transforms=cells[:3], done=0.5)),
        "nothing": build_run(folder / "g", RunPlan(transforms=cells[:3], done=0.0)),
        "no masks": build_masks(folder / "h", MaskPlan(transforms=cells[:3], done=0.0)),
        "begun": build_training(folder / "i", TrainPlan(measured=False, finished=0)),
        "seeds": build_seeds(folder / "j"),
        "seeds of classifiers": build_class_seeds(folder / "k"),
        "seeds of modes": build_tuned_seeds(folder / "l"),
        "explanation": build_explanation(folder / "m"),
        "classifier": build_class_training(folder / "n"),
    }


def test_tables_of_every_run_compile(tmp_path: Path) -> None:
    texts = {name: document(run, "latex") for name, run in runs(tmp_path).items()}
    texts["zoo"] = zoo_document([tmp_path / "c", tmp_path / "d"], tmp_path / "zoo", "latex")
    for name, text in texts.items():
        assert len(check(text)) >= 1, name
        assert ("Partial run" in text) == (name in ("part", "nothing", "no masks", "begun"))
        assert re.search(r"\bseeds? 0|\bseeds\b", text.lower()), name
        assert "nan" not in text
    assert not list(tmp_path.rglob("report.*")), "no report may be written"
    assert r"\begin{longtable}{lrr}" in texts["evaluation"]
    latex = shutil.which("pdflatex")
    if latex is None:
        return  # the checks above replace it
    body = "\n".join(texts.values())
    packages = r"\usepackage[T1]{fontenc}\usepackage{booktabs,longtable}"
    (tmp_path / "x.tex").write_text(
        rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}"
    )
    subprocess.run([latex, "-interaction=nonstopmode", "-halt-on-error", "x.tex"],
                   cwd=tmp_path, check=True, capture_output=True)  # fmt: skip


def test_the_check_finds_errors_of_latex(tmp_path: Path) -> None:
    text = document(build_masks(tmp_path, MaskPlan(transforms=(IDENTITY,))), "latex")
    for latex in ("a_b", "50 %", "a & b", "{", "\\unknown", "x^2", "#1"):
        with pytest.raises(AssertionError):
            check(text.replace("identity", latex))


def test_the_caption_says_what_the_numbers_are_of(tmp_path: Path) -> None:
    run = build_masks(tmp_path, MaskPlan(transforms=(IDENTITY, *paper21()[:2])))
    text = document(run, "latex")
    assert "$n = 24$ images" in text
    assert r"95 \% bootstrap intervals over 8 patients" in text
    assert "robust 0.1.0" in text


def test_captions_say_what_counts_as_a_correct_prediction(tmp_path: Path) -> None:
    run = build_run(tmp_path, RunPlan(dataset={"answers": [0, 3], "several_labels": True}))
    for caption in re.findall(r"\\caption{.*}", document(run, "latex")):
        assert "Models predict only the 2 classes of the data" in caption
        assert "A prediction of any true class of an image is correct." in caption


def test_numbers_are_those_of_the_results(tmp_path: Path) -> None:
    import pandas as pd

    run = build_run(tmp_path / "run", RunPlan(transforms=(IDENTITY, *paper21()[:3])))
    (tmp_path / "r.csv").write_text(document(run, "csv"))
    table = pd.read_csv(tmp_path / "r.csv")
    scores, drops = check(document(run, "latex"))
    for row, (_, number) in zip(table.to_dict("records"), scores[1:], strict=True):
        low, high = 100 * row["top1_low"], 100 * row["top1_high"]
        assert number == f"{100 * row['top1']:.1f} ({low:.1f}--{high:.1f})"
    for row, (_, number) in zip(table.to_dict("records")[1:], drops[1:], strict=True):
        assert number.replace("$-$", "-").startswith(f"{100 * row['drop']:.1f} (")


def test_special_characters_are_escaped() -> None:
    assert tex("a_1 \\ ~") == r"a\_1 \textbackslash{} \textasciitilde{}"
    assert tex("\u4e2d\u00e9\x07") == "U+4E2D\u00e9U+0007"
    assert tex(None) == "--"


def test_negative_numbers_have_a_minus_sign_in_bold_too() -> None:
    assert cell("-0.24 (-0.33 to 0.1)") == "$-$0.24 ($-$0.33 to 0.1)"
    assert bold("-0.24") == r"\textbf{$-$0.24}"


def test_the_command_knows_the_formats() -> None:
    from robustcli.cli.report import DOCUMENT_FORMATS as OF_THE_COMMAND

    assert OF_THE_COMMAND == REPORT_FORMATS
