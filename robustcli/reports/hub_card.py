"""Model card section and metadata with the results of a run, and `.eval_results` files.

Sources: huggingface/hub-docs, `modelcard.md` (`model-index`), `docs/hub/eval-results.md` and
`eval_results.yaml` (`.eval_results/*.yaml`: a list of entries with `dataset.id`, `dataset.task_id`
and `value`; each variant of one benchmark is in a separate file, distinguished by `notes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.core.errors import UsageError
from robustcli.core.names import file_name
from robustcli.finetuning.record import MODES
from robustcli.reports.findings import Findings, read_findings, records
from robustcli.reports.markdown import from_template
from robustcli.reports.numbers import cell_label, is_missing
from robustcli.reports.run_export import PublishConfig, RunExport
from robustcli.reports.scoring import Measure
from robustcli.tasks.record import ModelRecord

BEGIN, END = "<!-- robust:begin -->", "<!-- robust:end -->"
YAML_BEGIN, YAML_END = "# robust:begin", "# robust:end"
_OURS = "# Written by `robust publish`"
_HUB_TASKS = {"cls": "image-classification", "seg": "image-segmentation"}
_METRICS = {
    "cls": (("top1", "accuracy", "top-1"), ("top5", "accuracy", "top-5")),
    "seg": (("dice", "dice", "dice"), ("iou", "iou", "IoU")),
}
"""Per task: column of the results, type of the metric on the Hub, name of the metric."""


@dataclass(frozen=True)
class _Results:
    """The results of the model of the card."""

    findings: Findings
    model: ModelRecord

    @property
    def rows(self) -> list[dict[str, Any]]:
        return records(self.findings.of_model(self.model.name))


def card_folder(config: PublishConfig) -> Path:
    """The folder of the card, by default in that of the run."""
    return config.out or config.run / "hub-card"


def card_files(export: RunExport, config: PublishConfig) -> dict[Path, str]:
    """The contents of `README.md` and `.eval_results/*.yaml` of a card, by path.

    In an existing card, only the text between its marked lines is changed.

    Raises:
        UsageError: The run has several models and none was named, or a file exists that this
            command did not write.
    """
    results = _results(export, config.model)
    metadata = _metadata(export, results, config)
    section = f"{BEGIN}\n{_section(export, results).strip()}\n{END}"
    path = card_folder(config) / "README.md"
    text = _updated(path, metadata, section) if path.is_file() else _new(results, metadata, section)
    _validate(path, text)
    files = {path: text}
    if config.dataset_id is not None:
        files |= _eval_results(export, results, config)
    return files


def _results(export: RunExport, chosen: str | None) -> _Results:
    """The held-out results of the chosen model, or of the only one.

    Raises:
        UsageError: The chosen model does not exist, or there are several and none was chosen.
    """
    run = export.run
    if export.kind == "train":
        findings = read_findings(run / "test")
        _chosen(run, chosen, [model.name for model in findings.models], "models")
        return _Results(findings, findings.models[0])
    if export.kind == "finetune":
        modes = [mode for mode in MODES if (run / mode / "test" / "run.json").is_file()]
        mode = _chosen(run, chosen, list(modes), "modes")
        findings = read_findings(run / mode / "test")
        return _Results(findings, findings.models[0])
    findings = read_findings(run)
    name = _chosen(run, chosen, [model.name for model in findings.models], "models")
    return _Results(findings, next(m for m in findings.models if m.name == name))


def _chosen(run: Path, chosen: str | None, names: list[str], kind: str) -> str:
    if chosen is None and len(names) == 1:
        return names[0]
    if chosen in names:
        return str(chosen)
    raise UsageError(
        f"`{run}` has the {kind} {', '.join(f'`{name}`' for name in names)}"
        + (f", not `{chosen}`." if chosen else "."),
        "A model card describes one model.",
        f"Select it: `--model {names[0]}`." if names else "Evaluate it first.",
    )


# The metadata and the section.


def _metadata(export: RunExport, results: _Results, config: PublishConfig) -> str:
    """`model-index` as YAML."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index
    from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined,unused-ignore]

    record, task = results.findings.record, results.findings.record.task
    dataset = record.dataset
    entries = [
        EvalResult(
            task_type=_HUB_TASKS[task],
            dataset_type=config.dataset_id or file_name(dataset.name),
            dataset_name=dataset.name,
            dataset_config=cell_label(row["transform"], int(row["severity"])),
            dataset_split=record.split or None,
            dataset_revision=config.dataset_revision,
            metric_type=kind,
            metric_name=name,
            metric_value=round(float(row[column]), 6),
            metric_args=_arguments(export, row, column, results.findings.scoring.measure),
            source_name="robust" if config.source_url else None,
            source_url=config.source_url,
        )
        for row in results.rows
        for column, kind, name in _METRICS[task]
        if name in results.findings.scoring.heads and not is_missing(row.get(column))
    ]
    index = eval_results_to_model_index(results.model.name, entries)
    return str(yaml_dump({"model-index": index}))


def _arguments(
    export: RunExport, row: Mapping[str, Any], column: str, measure: Measure
) -> dict[str, Any]:
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    interval = (
        {}
        if is_missing(low) or is_missing(high)
        else {
            "low": round(float(str(low)), 6),
            "high": round(float(str(high)), 6),
            "interval": measure.interval,
        }
    )
    return {"n": int(row["n"]), **interval, "run": export.digest}


def _section(export: RunExport, results: _Results) -> str:
    record = results.findings.record
    lines = [
        {"label": cell_label(row["transform"], int(row["severity"])), "row": row}
        for row in results.rows
    ]
    return from_template(
        "hub_card",
        model=results.model,
        dataset=record.dataset,
        images=results.findings.expected,
        measure=results.findings.scoring.measure,
        lines=lines,
        partial=export.partial,
        software=" and ".join(
            f"{name} {record.versions[name]}"
            for name in ("robust", "torch")
            if name in record.versions
        ),
        device=record.device,
        precision=record.precision,
        seed=record.seed,
        digest=export.digest,
    )


# The card: a new one, or an existing one with its marked lines replaced.


def _new(results: _Results, metadata: str, section: str) -> str:
    front = f"---\n{YAML_BEGIN}\n{metadata}{YAML_END}\n---\n"
    return f"{front}\n# {results.model.name}\n\n{section}\n"


def _updated(path: Path, metadata: str, section: str) -> str:
    """The card in `path` with the text between its marked lines replaced; the rest is unchanged.

    Raises:
        UsageError: It has no marked lines, or a `model-index` outside of them.
    """
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UsageError(
            f"`{path}` is a model card without markers for the results.",
            "Only the text between two marker lines is changed.",
            f"Add these two lines once, at the position of the results:\n{BEGIN}\n{END}\nand, for "
            "`model-index`, these two lines to its front matter (between the "
            f"`---`):\n{YAML_BEGIN}\n{YAML_END}",
        )
    before, after = text[: text.index(BEGIN)], text[text.index(END) + len(END) :]
    text = f"{before}{section}{after}"
    lines = text.splitlines(keepends=True)
    marks = [number for number, line in enumerate(lines) if line.strip() in (YAML_BEGIN, YAML_END)]
    end = next((n for n, line in enumerate(lines) if n and line.strip() == "---"), 0)
    if not marks:
        return text
    if len(marks) != 2 or marks[1] > end or lines[marks[0]].strip() != YAML_BEGIN:
        raise UsageError(
            f"The marked lines in the front matter of `{path}` are not in order.",
            f"Expected one `{YAML_BEGIN}` and then one `{YAML_END}`, both between the `---`.",
            "Correct them, or remove both, so that the metadata is not changed.",
        )
    unmarked_lines = [*lines[1 : marks[0]], *lines[marks[1] + 1 : end]]
    if any(line.startswith("model-index:") for line in unmarked_lines):
        raise UsageError(
            f"`{path}` has a `model-index` outside of the marked lines.",
            "A card has only one.",
            "Remove it, or remove the two marked lines, so that the metadata is not changed.",
        )
    return "".join([*lines[: marks[0] + 1], metadata, *lines[marks[1] :]])


def _validate(path: Path, text: str) -> None:
    """Checks, without an upload, that the Hub's library can read the card.

    Raises:
        UsageError: The library cannot read it.
    """
    from huggingface_hub import ModelCard

    try:
        ModelCard(text)
    except Exception as error:
        raise UsageError(
            f"The front matter of `{path}` cannot be read.",
            f"The error of the Hub's library is: {str(error).splitlines()[0]}.",
            "Correct it, then repeat the command.",
        ) from error


# `.eval_results/*.yaml`.


def _eval_results(export: RunExport, results: _Results, config: PublishConfig) -> dict[Path, str]:
    """A file for each transform, by path.

    Raises:
        UsageError: A file exists that `robust publish` did not write.
    """
    from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined,unused-ignore]

    record = results.findings.record
    measure = results.findings.scoring.measure
    files = {}
    for row in results.rows:
        severity = f"-severity-{int(row['severity'])}" if int(row["severity"]) else ""
        name = f"robust-{file_name(results.model.name)}-{row['transform']}{severity}.yaml"
        path = card_folder(config) / ".eval_results" / name
        if path.is_file() and not path.read_text(encoding="utf-8").startswith(_OURS):
            raise UsageError(
                f"`{path}` exists and was not written by `robust publish`.",
                "It is not overwritten.",
                "Move it, or use another `--out`.",
            )
        if is_missing(row[measure.column]):
            continue
        entry: dict[str, Any] = {
            "dataset": {"id": config.dataset_id, "task_id": config.task_id},
            "value": round(float(row[measure.column]), 6),
            "date": record.updated.date().isoformat(),
        }
        if config.dataset_revision:
            entry["dataset"]["revision"] = config.dataset_revision
        if config.source_url:
            entry["source"] = {"url": config.source_url, "name": "robust"}
        entry["notes"] = _notes(export, results, row, measure)
        files[path] = f"{_OURS}; run {export.key}.\n{yaml_dump([entry])}"
    return files


def _notes(export: RunExport, results: _Results, row: Mapping[str, Any], measure: Measure) -> str:
    dataset = results.findings.record.dataset
    label = cell_label(row["transform"], int(row["severity"]))
    condition = "on untouched images" if row["transform"] == "identity" else f"under {label}"
    part = f", {dataset.subset}" if dataset.subset else ""
    low, high = row[f"{measure.column}_low"], row[f"{measure.column}_high"]
    interval = "no interval" if is_missing(low) else f"{measure.interval}: {low:.4f} to {high:.4f}"
    parts = [
        f"{measure.name} (a fraction) of {results.model.name} {condition}",
        interval,
        f"n = {int(row['n'])} of {dataset.images_available} images{part}",
        *(sentence.rstrip(".") for sentence in dataset.rules),
        *(["partial run"] if export.partial else []),
        f"robust run {export.digest}",
    ]
    return "; ".join(parts)
