"""The group of commands: help, typing errors, exit codes, and how fast it answers."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from robustcli import __version__
from robustcli.cli.main import COMMANDS, READER_GONE, main
from robustcli.core.errors import MachineError, RobustError, RunError, UsageError
from tests.cli.conftest import REPOSITORY, Robust, python

BUDGET_S = 0.3
WIDEST = max(map(len, COMMANDS))
AT_ONCE = [["--help"], ["list", "models"], ["list", "transforms"], ["list", "datasets"]]


def test_help_shows_every_command_and_examples_on_their_own_lines(robust: Robust) -> None:
    result = robust("--help")
    assert result.code == 0
    for name, (_, text) in COMMANDS.items():
        assert f"  {name:<{WIDEST}}  {text}\n" in result.out
    assert "\n  robust eval --model vmamba-pico --transform paper21\n  robust eval" in result.out
    assert "\\b" not in result.out


@pytest.mark.parametrize("name", COMMANDS)
def test_both_help_options_exist_without_a_parent_context(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert click.Context(command, **command.context_settings).help_option_names == ["-h", "--help"]


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(robust: Robust, name: str, flag: str) -> None:
    result = robust(name, flag)
    assert result.code == 0
    assert result.out.startswith(f"Usage: robust {name} [OPTIONS]")
    assert "\\b" not in result.out
    assert result.err == ""


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["finetune", "umamba", "--mode", "full", "--mode", "freeze"], "--mode"),
        (["train", "seg", "--model", "ulvm", "--model", "unet"], "--model"),
        (["eval", "--model", "a", "--model", "b", "--seed", "1", "--seed", "1"], "--seed"),
        (["compare", "runs/a", "--out", "x", "--out", "y"], "--out"),
    ],
)
def test_an_option_with_one_value_cannot_be_repeated(
    robust: Robust, arguments: list[str], option: str
) -> None:
    result = robust(*arguments)
    assert result.code == 2
    assert f"`{option}` takes one value, but 2 are given. Run the command once" in result.err
    assert robust(*arguments, "--help").code == 0


def test_help_is_shown_beside_a_study_file_that_cannot_be_read(robust: Robust) -> None:
    result = robust("eval", "--config", "missing.yaml", "--help")
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_short_help_says_what_the_command_says(name: str) -> None:
    """Both are written by hand: `robust --help` must not import the commands."""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    first = COMMANDS[name][1].split()[0]
    assert (command.help or "").startswith(first)


def options() -> list[tuple[str, click.Option]]:
    context = click.Context(main)
    found = [(name, main.get_command(context, name)) for name in COMMANDS]
    return [(n, p) for n, c in found if c for p in c.params if isinstance(p, click.Option)]


def test_every_option_has_a_help_text() -> None:
    assert [(name, option.name) for name, option in options() if not option.help] == []


def test_commands_that_compute_have_the_options_of_the_interface() -> None:
    flags = {flag for name, option in options() if name == "eval" for flag in option.opts}
    promised = (
        "--model --weights --model-arg --resize --crop --interpolation --mean --std --data "
        "--label-space --transform --severity --per-class --seed --batch-size --workers --device "
        "--out --dry-run --limit --precision --json --quiet --fresh --offline --untrained "
        "--apply-at --plugin"
    )
    assert set(promised.split()) <= flags


def test_version(robust: Robust) -> None:
    assert robust("--version").out == f"robust, version {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("evl", "eval"), ("reprot", "report"), ("lst", "list"), ("docter", "doctor")],
)
def test_a_typo_gets_the_nearest_command(robust: Robust, typed: str, meant: str) -> None:
    result = robust(typed, "--anything")
    assert result.code == 2
    assert f"Error: No such command `{typed}`. Did you mean `{meant}`?" in result.err


def test_a_command_like_no_other(robust: Robust) -> None:
    result = robust("xyz")
    assert result.code == 2
    assert "No such command" in result.err


def test_no_command_is_a_question_for_help(robust: Robust) -> None:
    result = robust()
    assert result.code == 2
    assert "Commands:" in result.out + result.err


def test_an_unknown_option(robust: Robust) -> None:
    result = robust("list", "models", "--jsn")
    assert result.code == 2
    assert "--json" in result.err


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def outcome(
    error: BaseException, capsys: pytest.CaptureFixture[str],
    callback: Callable[[], None] | None = None,
) -> tuple[object, str]:  # fmt: skip
    """The exit code and message of a command that raises `error`, or calls `callback`."""
    group = type(main)("robust", commands={})
    command = click.Command("x", callback=callback or failing(error))
    group.resolve_command = lambda ctx, args: ("x", command, [])  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as stopped:
        group.main(["x"])
    result = capsys.readouterr()
    assert result.out == ""
    return stopped.value.code, result.err


@pytest.mark.parametrize(("kind", "code"), [(RunError, 1), (UsageError, 2), (MachineError, 3)])
def test_errors_become_three_lines_and_an_exit_code(
    kind: type[RobustError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    error = kind("`--x` is wrong.", "Expected 1.", "Use 1.")
    assert outcome(error, capsys) == (code, "Error: `--x` is wrong.\nExpected 1.\nUse 1.\n")


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (
            "eval --model vmmba-b --transform perspectiv --transform fliplx "
            "--transform fliplr --data nowhere --device cuda:99",
            ["perspectiv", "fliplx", "vmmba-b", "nowhere", "cuda:99"],
        ),
        ("eval --model vmamba-pico --weights nofile --transform perspectiv",
         ["perspectiv", "nofile"]),
        (
            "explain --model vmmba-pico --transform perspectiv --data nowhere",
            ["perspectiv", "vmmba-pico", "nowhere"],
        ),
        ("train seg --model ulvm_v55 --data nowhere --seed 9223372036854775808",
         ["ulvm_v55", "9223372036854775808", "nowhere"]),
        ("finetune umamba --data nowhere --pretrained nofile", ["nowhere", "nofile"]),
    ],
)  # fmt: skip
def test_all_wrong_settings_are_told_at_once(
    robust: Robust, arguments: str, wrong: list[str]
) -> None:
    outcome = robust(*arguments.split())
    assert outcome.code == 2
    assert outcome.err.startswith(f"Error: {len(wrong)} settings are wrong.\n1. ")
    told = [line for line in outcome.err.splitlines() if line[:1].isdecimal()]
    assert len(told) == len(wrong)
    for name, line in zip(wrong, told, strict=True):
        assert name in line


def test_sigterm_is_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    """As a scheduler ends a job: a run can go on afterwards."""

    def ended() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    code, output = outcome(KeyboardInterrupt(), capsys, ended)
    assert code == 130
    assert "Interrupted. Written files are kept" in output
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort(), EOFError()])
def test_interrupted(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = outcome(error, capsys)
    assert code == 130
    assert (
        "Interrupted. Written files are kept: repeat the command to continue from them.\n" in output
    )


def test_errors_of_click_itself(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = outcome(click.ClickException("Out of something."), capsys)
    assert (code, output) == (1, "Error: Out of something.\n")


@pytest.mark.parametrize(
    "arguments", [["list", "models"], ["--help"], ["list", "models", "--json"]]
)
def test_a_reader_who_leaves_is_no_error(arguments: list[str]) -> None:
    """`robust list models | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = python("-m", "robustcli", *arguments, stdout=writing)
    finally:
        os.close(writing)
    assert (process.returncode, process.stderr) == (READER_GONE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_on_a_full_disk_is_named() -> None:
    with Path("/dev/full").open("w") as full:
        process = python("-m", "robustcli", "list", "transforms", stdout=full.fileno())
    assert process.returncode == 1
    assert "The output of the command cannot be written.\n" in process.stderr
    assert "redirect the output to another file" in process.stderr


@pytest.mark.skipif(os.name == "nt", reason="closes the streams in a POSIX shell")
def test_closed_streams_give_their_numbers_to_no_file(tmp_path: Path) -> None:
    """`robust ... >&-`: the next file would be written to by what C libraries print."""
    code = (
        "import sys\nfrom robustcli.cli import main\n"
        "try:\n    main(['list', 'models'])\n"
        "finally:\n    file = open(sys.argv[1], 'w'); print(file.fileno(), file=file)\n"
    )
    process = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code,
         str(tmp_path / "number")],
        check=False, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert process.returncode == 0
    assert int((tmp_path / "number").read_text()) > 2


def test_a_deleted_current_folder_is_named(
    robust: Robust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    result = robust("eval", "--model", "resnet-pico", "--transform", "identity")
    assert result.code == 3
    assert "The current folder does not exist any more." in result.err
    assert robust("eval", "--help").code == 0


def test_a_broken_pipe_to_a_process_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = importlib.import_module("robustcli.cli.main")
    monkeypatch.setattr(reader, "_reader_is_gone", lambda: False)
    code, output = outcome(BrokenPipeError(32, "Broken pipe"), capsys)
    assert code == 1
    assert output.startswith("Error: A loader process ended without an error message.\n")


def processor_time_of_children() -> float:
    """Seconds, of all child processes that have ended."""
    used = os.times()
    return used.children_user + used.children_system


@pytest.mark.parametrize("arguments", AT_ONCE, ids=" ".join)
def test_it_answers_at_once_and_without_torch(arguments: list[str]) -> None:
    """Processor time, and the best of several: what it needs, not what else the machine does."""
    code = (
        "import sys\nfrom robustcli.cli import main\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    best = float("inf")
    for _ in range(10):
        started = processor_time_of_children()
        process = python("-c", code, *arguments)
        best = min(best, processor_time_of_children() - started)
        assert process.returncode == 0, process.stderr
        assert process.stdout
        assert not {"torch", "timm", "pandas", "matplotlib"} & set(process.stderr.split())
        if best <= BUDGET_S:
            break
    assert best <= BUDGET_S


def test_the_module_is_the_command() -> None:
    process = python("-m", "robustcli", "list", "nothing")
    assert process.returncode == 2
    assert "models" in process.stderr
    assert process.stdout == ""


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["tr"], {"train"}),
        (["eval", "--model", "vmamba-p"], {"vmamba-pico"}),
        (["eval", "--transform", "persp"], {"perspective"}),
        (["train", "seg", "--model", "umamba-e"], {"umamba-enc"}),
        (["train", "seg", "--model", "vmamba-p"], {"vmamba-p"}),  # no segmenter: a file, perhaps
        (["finetune", "umamba-p"], {"umamba-pico"}),
        (["train", "cls", "--recipe", "spee"], {"speedrun"}),
        (["train", "seg", "--recipe", "pa"], {"patient"}),  # `paper` is for classifiers
        (["finetune", "--recipe", "pa"], {"paper", "patient"}),
        (["train", "seg", "--recipe", "ulvm"], {"ulvm"}),  # a network: a file, perhaps
        (["list", "mod"], {"models"}),
    ],
)
def test_shells_complete_commands_and_names(typed: list[str], expected: set[str]) -> None:
    completion = ShellComplete(main, {}, "robust", "_ROBUST_COMPLETE")
    assert {i.value for i in completion.get_completions(typed[:-1], typed[-1])} == expected


def test_completion_imports_no_torch() -> None:
    words = {"COMP_WORDS": "robust eval --model vmamba-p", "COMP_CWORD": "3"}
    program = (
        "import sys\nfrom robustcli.cli.main import main\n"
        "try:\n    main(prog_name='robust')\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    variables = {**words, "_ROBUST_COMPLETE": "bash_complete", "PYTHONPATH": str(REPOSITORY)}
    process = python("-c", program, env={**os.environ, **variables})
    assert (process.stdout, process.stderr) == ("plain,vmamba-pico\n", "")


def test_a_loader_process_that_the_same_signal_ended_is_no_failure(
    robust: Robust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler sends SIGTERM to all processes, and torch raises in the middle of the ending."""

    def ends(*arguments: object, **options: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    monkeypatch.setattr(click.Group, "main", ends)
    outcome = robust("list", "models")
    assert outcome.code == 130
    assert outcome.err.startswith("Interrupted. Written files are kept")
