"""Study files: the options of a command in a YAML file, `--config study.yaml`.

Keys are the long options of the command, with `-` or `_`; options on the command line override the
file. The key `command` is the command that the file is for; the key `runs` is a list of runs, each
with the keys in which it differs. Scalars are read as text, as if they were typed after the option,
so YAML's type conversion (`no` as false, `1e-4` as text) has no effect.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from robustcli.cli.shared_options import Assignment, Numbers
from robustcli.cli.stored_places import LocalPath, PlacesCommand
from robustcli.cli.terminal import only_documents, print_json, say_safely
from robustcli.core.errors import GateError, UsageError
from robustcli.core.names import canonical, nearest
from robustcli.core.objects import names_url, path_here
from robustcli.core.ranks import is_first_process

if TYPE_CHECKING:
    from yaml.nodes import MappingNode, Node

COMMAND, RUNS = "command", "runs"
_META = "robustcli.study"
_UNRECORDED = ("config", "help", "as_json", "quiet", "dry_run")  # options without effect on results
_FLAGS = {
    **dict.fromkeys(("true", "yes", "on"), True), **dict.fromkeys(("false", "no", "off"), False)
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Converted value of one option in a study file, and its line number."""

    value: Any
    line: int


@dataclass(frozen=True)
class Study:
    """A study file; `runs` contains the settings of each run by name of the click parameter."""

    path: Path
    sha256: str
    runs: tuple[Mapping[str, Setting], ...]


@dataclass
class Invocation:
    """One call of a command with a study file.

    Args:
        study: The study file.
        args: Command-line arguments after the command.
        number: Index of the current run, from 0.
        settings: Settings of the current run, see `_settings`.
        documents: JSON documents of finished runs by the run's folder, printed together at the end.
    """

    study: Study
    args: tuple[str, ...]
    number: int = 0
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)

    def record(self, run: Path) -> None:
        """Writes the resolved settings to `RUN/study.json`."""
        from robustcli.core.io import write_text
        from robustcli.core.rundir import STUDY_FILE

        content = {
            "schema_version": 1,
            "file": str(self.study.path),
            "sha256": self.study.sha256,
            "run": self.number + 1,
            "runs": len(self.study.runs),
            "settings": self.settings,
        }
        write_text(run / STUDY_FILE, json.dumps(content, indent=2) + "\n")


def current_invocation() -> Invocation | None:
    """The invocation of the current command with a study file; None without one."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(_META)


config_option = click.option(
    "--config", type=LocalPath(), metavar="FILE", expose_value=False,
    help="A YAML file with options of this command; options on the command line override it "
        "(docs/studies.md).",
)  # fmt: skip


class StudyCommand(PlacesCommand):
    """A click command with `--config`, which runs once for each run of the study file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Like click; settings of the study file override defaults, flags override the file."""
        if _META not in ctx.meta and not ctx.resilient_parsing:
            file = self.typed(ctx, args)[0].get("config")
            if isinstance(file, str | Path):
                study = read_study(path_here(file, "`--config`"), ctx)
                ctx.meta[_META] = Invocation(study, tuple(args))
                ctx.default_map = _default_map(study, 0)
        rest = super().parse_args(ctx, args)
        self._set_arguments(ctx)
        return rest

    def _set_arguments(self, ctx: click.Context) -> None:
        """Sets arguments with any number of values; click before 8.3 ignores their defaults."""
        defaults = ctx.default_map or {}
        for param in self.params:
            name = param.name or ""
            if param.nargs == -1 and name in defaults and not ctx.params[name]:
                ctx.params[name] = param.type_cast_value(ctx, defaults[name])
                ctx.set_parameter_source(name, ParameterSource.DEFAULT_MAP)

    def invoke(self, ctx: click.Context) -> Any:
        """Invokes the command for each run; failed gates raise an error after the last run.

        Raises:
            GateError: Gates of some runs failed.
            UsageError: Two runs would share a folder.
        """
        with only_documents() if ctx.params["as_json"] else nullcontext():
            return self._invoke_runs(ctx)

    def _invoke_runs(self, ctx: click.Context) -> Any:
        invocation: Invocation | None = ctx.meta.get(_META)
        if invocation is None:
            return super().invoke(ctx)
        contexts = [ctx]
        for number in range(1, len(invocation.study.runs)):
            defaults = _default_map(invocation.study, number)
            contexts.append(
                self.make_context(
                    ctx.info_name, list(invocation.args), ctx.parent, default_map=defaults
                )
            )
        _check_folders(invocation.study, contexts)
        failures: list[GateError] = []
        try:
            for number, context in enumerate(contexts):
                invocation.number = number
                invocation.settings = _settings(self, context, invocation.study, number)
                _announce(context, invocation)
                try:
                    with context:
                        super().invoke(context)
                except GateError as error:
                    failures.append(error)
        finally:
            _print_documents(invocation)
        if failures:
            raise joined_gates(failures)
        return None


def joined_gates(failures: Sequence[GateError]) -> GateError:
    """Joins several errors into one that contains all messages."""
    if len(failures) == 1:
        return failures[0]
    return GateError(
        f"Gates failed in {len(failures)} runs.",
        "\n".join(f"{error.what}\n{error.why}" for error in failures),
        "The runs are complete; their reports contain all numbers.",
        failures[0].run,
    )


def _check_folders(study: Study, contexts: Sequence[click.Context]) -> None:
    folders = [str(context.params["out"]) for context in contexts if context.params["out"]]
    shared = next((folder for folder in folders if folders.count(folder) > 1), None)
    if shared is not None:
        raise UsageError(
            f"Several runs of `{study.path}` use the same folder `{shared}`.",
            "Each run needs a separate folder.",
            f"Give each entry of `{RUNS}` a different `out`, or omit it for a name from the "
            "settings.",
        )


def _announce(context: click.Context, invocation: Invocation) -> None:
    """Prints the number of the run, and with `--dry-run` its settings."""
    if not is_first_process():
        return
    params, study = context.params, invocation.study
    of = f", run {invocation.number + 1} of {len(study.runs)}" if len(study.runs) > 1 else ""
    if params.get("dry_run") and not params["as_json"]:
        click.echo(f"Settings ({study.path}{of}):")
        rows = [(f"  {k}:", _shown(s["value"]), s["from"]) for k, s in invocation.settings.items()]
        key, value = (max(len(row[column]) for row in rows) for column in (0, 1))
        for row in rows:
            say_safely(f"{row[0]:<{key}}  {row[1]:<{value}}  {row[2]}")
        click.echo("")
    elif of and not params["quiet"]:
        click.echo(f"{study.path}{of}.", err=True)


def _shown(value: object) -> str:
    if value is None or value == []:
        return "not set"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _print_documents(invocation: Invocation) -> None:
    documents = invocation.documents
    if documents and len(invocation.study.runs) == 1:
        print_json(json.dumps(*documents.values(), indent=1))
    elif documents:
        print_json(json.dumps(documents, indent=1))


def _default_map(study: Study, number: int) -> dict[str, Any]:
    return {name: setting.value for name, setting in study.runs[number].items()}


def _settings(
    command: click.Command, context: click.Context, study: Study, number: int
) -> dict[str, dict[str, Any]]:
    """By key, the resolved value and its source: flag, environment, file or default."""
    settings = {}
    for parameter in command.params:
        name = parameter.name
        if name is None or name in _UNRECORDED:
            continue
        source = context.get_parameter_source(name)
        origin = "default"
        if source is ParameterSource.COMMANDLINE:
            origin = "flag"
        elif source is ParameterSource.ENVIRONMENT:
            origin = "environment"
        elif source is ParameterSource.DEFAULT_MAP:
            origin = f"{study.path}:{study.runs[number][name].line}"
        settings[_key(parameter)] = {"value": _plain(context.params[name]), "from": origin}
    return settings


def _plain(value: Any) -> Any:
    """`value` in a form for JSON; pairs of `--model-arg` become KEY=VALUE."""
    if isinstance(value, tuple):
        if len(value) == 2 and isinstance(value[0], str) and not isinstance(value[1], str | Path):
            return f"{value[0]}={value[1]}"
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, os.PathLike) else value


# Parsing of study files.


def read_study(path: Path, ctx: click.Context) -> Study:
    """Reads the study file `path` for the command of `ctx`.

    Raises:
        UsageError: The file cannot be read, is for another command, or has errors; all errors are
            reported.
    """
    import yaml  # imported late: takes 30 ms

    try:
        content = path.read_bytes()
        root = yaml.compose(content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UsageError(
            f"`--config {path}` cannot be read.",
            f"The error of the file system is: {error.strerror or error}.",
            "Pass a YAML file with options of the command.",
        ) from error
    except RecursionError as error:
        raise UsageError(
            f"`{path}` is refused.", "It is nested too deeply: options may have two levels.",
            "Write one `option: value` per line, such as `model: vmamba-pico`.",
        ) from error  # fmt: skip
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        location = path if mark is None else f"{path}:{mark.line + 1}"
        raise UsageError(
            f"`{location}` is not YAML.",
            f"{getattr(error, 'problem', None) or error}.",
            "Write one `option: value` per line, such as `model: vmamba-pico`.",
        ) from error
    reader = _Reader(path, ctx)
    runs = reader.runs(root)
    if reader.errors:
        count = len(reader.errors)
        raise UsageError(
            f"`{path}` has {count} error{'s' if count > 1 else ''}.",
            "\n".join(f"  {path}:{line}: {text}" for line, text in sorted(reader.errors)),
            f"`robust {reader.command} --help` lists the options; docs/studies.md describes the "
            "file.",
        )
    return Study(path, hashlib.sha256(content).hexdigest(), runs)


class _Reader:
    """Converts the nodes of a study file to settings and collects errors.

    Args:
        path: The file.
        ctx: Click context of the command.
    """

    def __init__(self, path: Path, ctx: click.Context) -> None:
        self.path, self.ctx = path, ctx
        self.command = _command_name(ctx)
        self.parameters = {
            canonical(_key(p)): p
            for p in ctx.command.params
            if p.name not in ("config", "help") and p.name is not None
        }
        self.errors: list[tuple[int, str]] = []

    def error(self, node: Node, text: str) -> None:
        """Adds an error at `node`."""
        entry = (node.start_mark.line + 1, text)
        if entry not in self.errors:
            self.errors.append(entry)

    def runs(self, root: Node | None) -> tuple[Mapping[str, Setting], ...]:
        """The settings of each run; not valid if `errors` is not empty.

        Raises:
            UsageError: The file is empty, not a mapping, or for another command.
        """
        if root is None or root.id != "mapping":
            raise UsageError(
                f"`{self.path}` contains no options.",
                "Expected lines such as `model: vmamba-pico`.",
                f"`robust {self.command} --help` lists the options.",
            )
        common: dict[str, Setting] = {}
        several: list[dict[str, Setting]] = []
        for key, node, value in self._entries(root):
            if key == COMMAND:
                self._check_command(value)
            elif key == RUNS:
                several = self._several(value)
            else:
                self._add(common, key, node, value)
        return tuple({**common, **run} for run in several) or (common,)

    def _check_command(self, node: Node) -> None:
        command = " ".join(str(node.value).split()) if node.id == "scalar" else None
        if command is None:
            self.error(node, f"`{COMMAND}` takes the name of a command, such as `{self.command}`.")
        elif command.removeprefix("robust ") != self.command:
            raise UsageError(
                f"`{self.path}` is for `robust {command}`, not for `robust {self.command}`.",
                f"Line {node.start_mark.line + 1} is `{COMMAND}: {command}`.",
                "Use it with that command, or write another file for this command.",
            )

    def _several(self, node: Node) -> list[dict[str, Setting]]:
        entries = node.value if node.id == "sequence" else []
        if not entries:
            self.error(node, f"`{RUNS}` takes a list with the options of each run.")
        runs = []
        for entry in entries:
            settings: dict[str, Setting] = {}
            if entry.id != "mapping":
                self.error(entry, f"An entry of `{RUNS}` takes options, such as `data: DIR`.")
                continue
            for key, key_node, value in self._entries(entry):
                if key in (COMMAND, RUNS):
                    self.error(key_node, f"`{key}` is only allowed at the top level of the file.")
                else:
                    self._add(settings, key, key_node, value)
            runs.append(settings)
        return runs

    def _entries(self, mapping: MappingNode) -> Iterator[tuple[str, Node, Node]]:
        """Yields key, node of the key, node of the value; duplicate keys are errors."""
        lines: dict[str, int] = {}
        for node, value in mapping.value:
            key = canonical(str(node.value)) if node.id == "scalar" else ""
            if key in lines:
                self.error(node, f"`{node.value}` is already set in line {lines[key]}.")
                continue
            lines[key] = node.start_mark.line + 1
            yield key, node, value

    def _add(self, settings: dict[str, Setting], key: str, node: Node, value: Node) -> None:
        parameter = self.parameters.get(key)
        if parameter is None:
            close = nearest(key, [*self.parameters, COMMAND, RUNS])
            hint = f" Did you mean `{close[0]}`?" if close else ""
            self.error(node, f"`{node.value}` is not an option of `robust {self.command}`.{hint}")
            return
        if value.tag == "tag:yaml.org,2002:null":
            return  # null: ignored
        if not _is_plain(value):
            self.error(value, f"`{_key(parameter)}`: the tag `{value.tag}` is not supported.")
            return
        try:
            texts = self._texts(parameter, value)
            converted = parameter.type_cast_value(self.ctx, texts)
        except click.UsageError as error:
            self.error(value, f"`{_key(parameter)}`: {error.message}")
            return
        assert parameter.name is not None
        settings[parameter.name] = Setting(converted, value.start_mark.line + 1)

    def _texts(self, parameter: click.Parameter, node: Node) -> Any:
        """The value in the form of click's command-line values: strings, or a bool for a flag.

        Raises:
            click.UsageError: The node has another structure than the option needs.
        """
        if getattr(parameter, "is_flag", False):
            flag = _FLAGS.get(_text(node).lower())
            if flag is None:
                raise click.UsageError(f"expected true or false, got `{_text(node)}`.")
            return flag
        if parameter.multiple or parameter.nargs == -1:
            nodes = node.value if node.id == "sequence" else [node]
            if node.id == "mapping" and isinstance(parameter.type, Assignment):
                return tuple(f"{_text(key)}={_text(value)}" for key, value in node.value)
            return tuple(self._located(parameter, _text(item)) for item in nodes)
        if node.id == "sequence" and isinstance(parameter.type, Numbers):
            return ",".join(map(_text, node.value))
        if node.id == "sequence":
            raise click.UsageError(
                f"it takes one value, got a list. Several runs in one call are a list `{RUNS}`."
            )
        return self._located(parameter, _text(node))

    def _located(self, parameter: click.Parameter, text: str) -> str:
        """`text`; a relative path is resolved against the folder of the study file."""
        base = self.path.parent
        if names_url(text):
            return text
        name = "data" if parameter.name == "photos" else parameter.name
        is_path = isinstance(parameter.type, click.Path) and name != "data"
        if is_path or _is_path(name, text, base):
            return str(base / Path(text).expanduser())
        return text


def _text(node: Node) -> str:
    """The text of a scalar.

    Raises:
        click.UsageError: The node is not a scalar.
    """
    if node.id != "scalar" or not _is_plain(node):
        raise click.UsageError(f"expected a single value, got a {node.id} (`{node.tag}`).")
    return str(node.value)


def _is_plain(node: Node) -> bool:
    """Whether the tag of a node is a standard YAML type, as it is without an explicit tag."""
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    return kind in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map", "value")


def _is_path(name: str | None, text: str, base: Path) -> bool:
    """Whether `text` is a file or folder, for options that accept a path or a name."""
    from robustcli.data.labels import BUNDLED_SPACES
    from robustcli.data.named_datasets import DATASETS, find_named

    path = base / Path(text).expanduser()
    if name == "data":
        if find_named(text) or find_named(text.rpartition(":")[0]):
            return False
        is_typo = "/" not in text and bool(nearest(text, [item.name for item in DATASETS]))
        return path.exists() or not is_typo
    if name == "label_space":
        return canonical(text) not in BUNDLED_SPACES and path.is_file()
    if name in ("model", "models"):
        from robustcli.adapters.catalogue import CATALOGUE

        return canonical(text) not in map(canonical, CATALOGUE) and (path / "run.json").is_file()
    return False


def _key(parameter: click.Parameter) -> str:
    """Key of a parameter in a study file: its long option, or its name."""
    long = [option for option in parameter.opts if option.startswith("--")]
    return long[0].removeprefix("--") if long else str(parameter.name)


def _command_name(ctx: click.Context) -> str:
    """The words of the command after `robust`, such as `eval` or `train seg`."""
    command: list[str] = []
    context: click.Context | None = ctx
    while context is not None and context.parent is not None:
        command.insert(0, context.info_name or "")
        context = context.parent
    return " ".join(command)
