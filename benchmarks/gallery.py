"""Makes the page `docs/gallery.md`, with the results of evaluations of trained networks.

`python benchmarks/gallery.py` runs the evaluations of STUDIES into `runs/gallery` (existing results
are not computed again), and writes their numbers to `docs/gallery.json`, their figures to
`docs/images`, and the page. A study whose data are not on this machine keeps its earlier numbers.
`--page-only` runs no evaluation: it writes the page from `docs/gallery.json`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from robustcli.core.io import write_bytes, write_text
from robustcli.core.machine import processor
from robustcli.reports.numbers import p_value, percent, percent_range, probability

ROOT = Path(__file__).parents[1]
NUMBERS = ROOT / "docs" / "gallery.json"
PAGE = ROOT / "docs" / "gallery.md"
IMAGES = ROOT / "docs" / "images"
RUNS = "runs/gallery"
MOST_BYTES = 150_000
"""Maximum size of a figure in bytes."""

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """One `robust eval`: the name of its folder in RUNS, and its options."""

    name: str
    options: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The run folder, relative to the root of the repository."""
        return f"{RUNS}/{self.name}"

    @property
    def command(self) -> tuple[str, ...]:
        """The command line, without the name of the program."""
        return ("eval", *self.options, "--out", self.folder)


@dataclass(frozen=True)
class Study:
    """A comparison of two classifiers, and its section of the page.

    Args:
        name: Key in NUMBERS.
        title: Heading of the section.
        about: Description of the comparison, in Markdown.
        remark: Interpretation of the verdict and its limits, printed below it.
        evaluations: The runs of the two classifiers.
        figures: Maps file names in `docs/images` to the source file in RUNS and the caption.
        needs: Required files and folders that are not part of the repository.
    """

    name: str
    title: str
    about: str
    remark: str
    evaluations: tuple[Evaluation, ...]
    figures: Mapping[str, tuple[str, str]]
    needs: tuple[str, ...] = ()

    @property
    def comparison(self) -> tuple[str, ...]:
        """The command that compares the two classifiers."""
        runs = (evaluation.folder for evaluation in self.evaluations)
        return ("compare", *runs, "--out", f"{RUNS}/{self.name}-compared")


PHOTOS = "../shared/data/imagenet_sample/val"
WEIGHTS = "../shared/data/weights/mobilenetv2_100_timm_from_tf2ptq.pth"
_MOBILENET = (
    *("--model", "mobilenetv2_100", "--weights", WEIGHTS, "--model-arg", "pad_type=same"),
    *("--resize", "256", "--crop", "224", "--interpolation", "bilinear", "--data", PHOTOS),
    *("--transform", "perspective", "--transform", "gaussian_blur", "--workers", "0"),
)
STUDIES = (
    Study(
        "demo",
        "Two bundled classifiers of similar size under 21 transforms",
        "`vmamba-pico`, a state-space network, and `resnet-pico`, a residual network, both for "
        "images of 32 x 32 pixels. They are evaluated on the 960 bundled test images of CIFAR-10, "
        "as by `make demo`.",
        "The result is about two trained networks, not about two families of networks. Both were "
        "trained with the same recipe for the same number of epochs on the same 50,000 images, "
        "but only once, so the effect of another seed is unknown.",
        (
            Evaluation(
                "demo",
                ("--model", "vmamba-pico", "--model", "resnet-pico", "--transform", "paper21"),
            ),
        ),
        {
            "demo-differences.png": (
                "demo/figures/differences.png",
                "Differences of top-1 with paired 95 % intervals. Differences that are significant "
                "after Holm's correction have the colour of the better model, all others are grey.",
            ),
            "demo-all-transforms.png": (
                "demo/figures/all_transforms.png",
                "Top-1 under each transform with 95 % intervals.",
            ),
            "demo-contact-sheet.png": (
                "demo/figures/contact_sheet.png",
                "What each transform does to one of the images.",
            ),
        },
    ),
    Study(
        "mobilenet",
        "One network, two preprocessings: MobileNetV2 on 500 photos of ImageNet",
        "The same weights are evaluated in two runs: with the mean and the standard deviation of "
        "their training (0.5 in each channel, run `mean-0.5`), and with ImageNet's, which most "
        "networks use (run `mean-imagenet`). The runs are compared like two models.",
        "The photos are very probably training images of the network, so its accuracy on new "
        "photos is lower. Both preprocessings are evaluated on the same photos. The licence of the "
        "photos allows research but not publication, so none is shown. The weights are from the "
        "Coral project (Apache-2.0); the photos are from "
        "https://github.com/EliSchwartz/imagenet-sample-images, half of its 1,000 classes.",
        (
            Evaluation("mean-0.5", (*_MOBILENET, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")),
            Evaluation(
                "mean-imagenet",
                (*_MOBILENET, "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"),
            ),
        ),
        {
            "mobilenet-differences.png": (
                "mobilenet-compared/figures/pair-1.png",
                "Top-1 of `mean-0.5` minus top-1 of `mean-imagenet`, with paired 95 % intervals.",
            ),
        },
        needs=(PHOTOS, WEIGHTS),
    ),
)


def run(command: Sequence[str]) -> None:
    """Runs `robust` with `command` in the root of the repository; raises if it fails."""
    print(shlex.join(("robust", *command)), flush=True)
    subprocess.run([sys.executable, "-m", "robustcli", *command], cwd=ROOT, check=True)


def measured(study: Study) -> dict[str, Any]:
    """Runs `study`; returns its numbers in the format of NUMBERS."""
    for evaluation in study.evaluations:
        run((*evaluation.command, "--quiet"))
    run((*study.comparison, "--quiet"))
    for name, (source, _) in study.figures.items():
        picture = (ROOT / RUNS / source).read_bytes()
        if len(picture) > MOST_BYTES:
            sys.exit(f"{source} has {len(picture):,} bytes; the page takes {MOST_BYTES:,}.")
        write_bytes(IMAGES / name, picture)
    folders = [ROOT / evaluation.folder for evaluation in study.evaluations]
    compared = _read(ROOT / RUNS / f"{study.name}-compared" / "results.json")
    labels = [model["label"] for model in compared["models"]]
    rows = [row for folder in folders for row in _read(folder / "results.json")]
    return {
        "ran": _circumstances(folders),
        "images": compared["n"],
        "models": [
            {key: model[key] for key in ("label", "name", "parameters", "weights_sha256")}
            for model in compared["models"]
        ],
        "scores": [
            {"label": label, **{key: _shortened(row[key]) for key in _SCORE}}
            for label, rows_of_model in zip(labels, _by_model(rows), strict=True)
            for row in rows_of_model
        ],
        "verdicts": [
            {key: _shortened(verdict[key]) for key in _VERDICT} for verdict in compared["verdicts"]
        ],
        "ranking": [{key: _shortened(rank[key]) for key in _RANK} for rank in compared["ranking"]],
        "claims": [claim["sentence"] for claim in compared["claims"]],
    }


_SCORE = ("transform", "n", "correct", "top1", "top1_low", "top1_high", "drop", "retention")
_VERDICT = ("transform", "difference", "low", "high", "p", "p_adjusted", "outcome")
_RANK = ("model", "mean", "low", "high", "probabilities")
_DIGITS = 8  # significant digits; the page shows at most four


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _shortened(value: object) -> object:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _by_model(rows: Sequence[Numbers]) -> Iterator[list[Numbers]]:
    """Groups the rows by model and run; each group starts with the untouched images."""
    starts = [place for place, row in enumerate(rows) if row["transform"] == "identity"]
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield list(rows[start:end])


def _circumstances(folders: Sequence[Path]) -> dict[str, Any]:
    record = _read(folders[-1] / "run.json")
    sessions = [_read(file) for folder in folders for file in (folder / "sessions").iterdir()]
    seen = sum(model["images"] for session in sessions for model in session["models"].values())
    rows = sum(row["n"] for folder in folders for row in _read(folder / "results.json"))
    seconds = round(sum(session["seconds"] for session in sessions))
    return {
        "date": record["updated"][:10],
        "processor": processor(),
        "device": record["device"],
        # Killed sessions leave no record of their time.
        "seconds": seconds if seen == rows else None,
        "versions": {name: record["versions"][name] for name in ("robust", "torch", "timm")},
    }


def page(numbers: Mapping[str, Numbers]) -> str:
    """The page, in Markdown."""
    sections = [_section(study, numbers[study.name]) for study in STUDIES if study.name in numbers]
    return "\n\n".join((_HEAD, *sections)) + "\n"


_HEAD = (
    "# Gallery\n\nResults of evaluations of trained networks, with the commands that repeat them. "
    "`make gallery` runs them and writes this page,\n`gallery.json` and the figures. "
    "[Reports](report.md), [compare](compare.md) and [formulas](formats.md) explain the tables.\n"
    "`drop` is clean top-1 minus top-1 under the transform, in percentage points; `retention` is "
    "top-1 under the\ntransform divided by clean top-1, in percent."
)


def _section(study: Study, numbers: Numbers) -> str:
    commands = [*(evaluation.command for evaluation in study.evaluations), study.comparison]
    figures = [
        f"![{caption}](images/{name})\n\n*{caption}*"
        for name, (_, caption) in study.figures.items()
    ]
    verdicts = [f"**{sentence}**" for sentence in numbers["claims"]]
    return "\n\n".join(
        (
            f"## {study.title}",
            study.about,
            "```\n" + "\n".join(shlex.join(("robust", *command)) for command in commands) + "\n```",
            _ran(numbers),
            _models(numbers),
            *verdicts,
            _untouched(numbers),
            study.remark,
            _differences(numbers),
            *figures[:1],
            _ranking(numbers),
            *(_scores(label, numbers) for label in _labels(numbers)),
            *figures[1:],
        )
    )


def _ran(numbers: Numbers) -> str:
    ran = numbers["ran"]
    versions = ", ".join(f"{name} {version}" for name, version in ran["versions"].items())
    took = "" if ran["seconds"] is None else f" in {ran['seconds']:,} s"
    return (
        f"Run on {ran['date']} on {ran['processor']}, {ran['device']}{took}, while other programs "
        f"were running; {versions}. {numbers['images']} images."
    )


def _labels(numbers: Numbers) -> list[str]:
    return [model["label"] for model in numbers["models"]]


def _models(numbers: Numbers) -> str:
    rows = [
        (
            f"`{model['label']}`",
            f"{model['parameters']:,}",
            f"`{model['weights_sha256'][:12]}`",
            _training(model["name"]),
        )
        for model in numbers["models"]
    ]
    told = any(row[-1] for row in rows)
    header = ("model", "parameters", "weights (SHA-256)", "training")
    return _table(header if told else header[:-1], rows if told else [row[:-1] for row in rows])


def _training(name: str) -> str:
    """A description of the training of a bundled model; empty for other models."""
    file = files("robustcli") / "assets" / f"{name}.json"
    if not file.is_file():
        return ""
    facts = json.loads(file.read_text(encoding="utf-8"))
    return (
        f"{facts['recipe']['epochs']} epochs of 50,000 images, seed {facts['recipe']['seed']}; "
        f"{100 * facts['test_top1']:.2f} % of {facts['test_images']:,} test images"
    )


def _untouched(numbers: Numbers) -> str:
    first, second = _labels(numbers)
    clean = next(v for v in numbers["verdicts"] if v["transform"] == "identity")
    n = numbers["images"]
    ahead = {"first ahead": f"`{first}` is ahead", "second ahead": f"`{second}` is ahead"}
    return (
        f"On clean images, top-1 of `{first}` minus top-1 of `{second}` is "
        f"{_signed(clean['difference'], n)} percentage points (95 % interval "
        f"{percent(clean['low'], n)} to {percent(clean['high'], n)}): "
        f"{ahead.get(clean['outcome'], clean['outcome'])}, adjusted p "
        f"{_equals(clean['p_adjusted'])}. All p-values are from McNemar's exact test on the same "
        f"images, with Holm's correction over the {len(numbers['verdicts'])} rows of the table."
    )


def _differences(numbers: Numbers) -> str:
    first, second = _labels(numbers)
    n = numbers["images"]
    scores = {(row["label"], row["transform"]): row for row in numbers["scores"]}
    ahead = {"first ahead": f"`{first}`", "second ahead": f"`{second}`"}
    rows = [
        (
            verdict["transform"],
            *(percent(scores[label, verdict["transform"]]["top1"], n) for label in (first, second)),
            _signed(verdict["difference"], n),
            f"{percent(verdict['low'], n)} to {percent(verdict['high'], n)}",
            p_value(verdict["p_adjusted"]),
            ahead.get(verdict["outcome"], "not shown"),
        )
        for verdict in numbers["verdicts"]
    ]
    header = (
        *("transform", f"`{first}` top-1 %", f"`{second}` top-1 %", "difference"),
        *("95 % interval", "adjusted p", "ahead"),
    )
    return _table(header, rows)


def _ranking(numbers: Numbers) -> str:
    n = numbers["images"]
    rows = [
        (
            f"`{rank['model']}`",
            percent(rank["mean"], n),
            percent_range(rank["low"], rank["high"], n, "-"),
            *(probability(share) for share in rank["probabilities"]),
        )
        for rank in numbers["ranking"]
    ]
    header = ("mean over the transforms", "top-1 %", "95 % interval", "P(rank 1)", "P(rank 2)")
    return _table(header, rows)


def _scores(label: str, numbers: Numbers) -> str:
    rows = [
        (
            row["transform"],
            f"{row['correct']} of {row['n']}",
            percent(row["top1"], row["n"]),
            percent_range(row["top1_low"], row["top1_high"], row["n"], "-"),
            percent(row["drop"], row["n"]),
            percent(row["retention"], row["n"]),
        )
        for row in numbers["scores"]
        if row["label"] == label
    ]
    header = ("transform", "correct", "top-1 %", "95 % interval", "drop", "retention %")
    return f"### `{label}`\n\n{_table(header, rows)}"


def _signed(difference: float, n: int) -> str:
    return f"{'+' if difference > 0 else ''}{percent(difference, n)}"


def _equals(p: float) -> str:
    shown = p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Runs the studies whose data exist, then writes numbers, figures and page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--page-only", action="store_true", help="write the page without evaluations"
    )
    parser.add_argument("--study", choices=[s.name for s in STUDIES], help="run only this study")
    parser.add_argument("--afresh", action="store_true", help="delete the stored runs first")
    arguments = parser.parse_args()
    numbers: dict[str, Any] = _read(NUMBERS) if NUMBERS.is_file() else {}
    chosen = [study for study in STUDIES if arguments.study in (None, study.name)]
    for study in () if arguments.page_only else chosen:
        missing = [path for path in study.needs if not (ROOT / path).exists()]
        if missing:
            print(f"{study.title}: not run, there is no {' and no '.join(missing)}.")
            continue
        for evaluation in study.evaluations if arguments.afresh else ():
            shutil.rmtree(ROOT / evaluation.folder, ignore_errors=True)
        numbers[study.name] = measured(study)
    write_text(NUMBERS, json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    write_text(PAGE, page(numbers))
    print(f"Written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
