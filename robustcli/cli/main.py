"""The `robust` command: lazy import of subcommands; conversion of errors to exit codes."""

from __future__ import annotations

import importlib
import os
import select
import sys
import traceback
from typing import Any

import click

from robustcli import __version__
from robustcli.core.errors import RobustError, RunError
from robustcli.core.machine import complete_user, wait_briefly
from robustcli.core.names import nearest
from robustcli.core.signals import interruptible, was_interrupted

_HELP_OPTIONS = ["-h", "--help"]
# Module and first help line by name. Defined here so that `robust --help` imports no command.
COMMANDS = {
    "eval": ("robustcli.cli.eval", "Measure models on transformed images."),
    "train": ("robustcli.cli.train", "Train a segmenter or a classifier."),
    "finetune": (
        "robustcli.cli.finetune",
        "Fine-tune a model; freeze parameters with small gradients.",
    ),
    "explain": ("robustcli.cli.explain", "Show what a model looks at, with scores."),
    "predict": ("robustcli.cli.predict", "Label photos, or write masks for images."),
    "export": ("robustcli.cli.export", "Export a network to ONNX or TorchScript, and verify it."),
    "compare": ("robustcli.cli.compare", "Compare models by paired tests."),
    "report": ("robustcli.cli.report", "Write the reports of runs again."),
    "verify": ("robustcli.cli.verify", "Check whether this machine reproduces a run."),
    "publish": ("robustcli.cli.publish", "Send a run to a tracker, or write a model card."),
    "list": ("robustcli.cli.list_command", "List models, transforms, data sets or recipes."),
    "fetch": ("robustcli.cli.fetch", "Download weights or data by name."),
    "doctor": ("robustcli.cli.doctor", "Show versions, devices, kernels and caches."),
}
INTERRUPTED = 130
READER_GONE = 141  # exit code of a program that ends by SIGPIPE


class LostProcessError(Exception):
    """A child process of this command ended unexpectedly."""


class LazyGroup(click.Group):
    """A click group that imports the module of a command on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of the documentation."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports and returns the command `cmd_name`; None if it does not exist."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        # Click caches the help option of the first context, which may have no parent.
        command.context_settings.setdefault("help_option_names", _HELP_OPTIONS)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click, but suggests the nearest name for a typo."""
        close = nearest(args[0], COMMANDS) if args[0] not in COMMANDS else []
        if close:
            ctx.fail(f"No such command `{args[0]}`. Did you mean `{close[0]}`?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; distinguishes broken pipes (click treats all as closed output).

        Raises:
            LostProcessError: The broken pipe is connected to a child process.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if _reader_is_gone():
                raise click.exceptions.Exit(READER_GONE) from error
            raise LostProcessError("the pipe to a process of this command broke") from error

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the command and exits: 0 done, 1 failed, 2 usage, 3 environment, 130 interrupted.

        Errors of libraries and of this program are explained by `failures`, for all commands.
        """
        _open_closed_streams()
        wait_briefly()
        complete_user()
        try:
            with interruptible():
                status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as error:
            status = error.exit_code
        except click.ClickException as error:
            from robustcli.core.ranks import is_first_process

            if is_first_process():  # all processes of a job have the same command line
                error.show()
            status = error.exit_code
        except RobustError as error:
            from robustcli.cli.failures import print_known

            status = _say_interrupted() if was_interrupted() else print_known(error)
        except (KeyboardInterrupt, click.Abort):
            status = _say_interrupted()
        except SystemExit:
            if type(sys.stdout).__name__.lstrip("_") != "PacifyFlushWrapper":  # private since 8.5
                raise
            status = READER_GONE  # raised in `--help`, which click prints
        except Exception as error:
            status = _say_interrupted() if was_interrupted() else _say_failed(error)
        code = _flushed(status if isinstance(status, int) else 0)
        if code == INTERRUPTED and _thread_hangs():
            os._exit(code)
        sys.exit(code)


def _open_closed_streams() -> None:
    """Opens the null device for each standard stream that is closed, as in some services.

    A file of results would otherwise get the free file number, and with it the messages that C
    libraries write to standard error.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest free number: that of the stream
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def _say_interrupted() -> int:
    click.echo(
        "Interrupted. Written files are kept: repeat the command to continue from them.", err=True
    )
    return INTERRUPTED


def _say_failed(error: Exception) -> int:
    """Prints the error of a library, of the system or of this program; returns the exit code."""
    from robustcli.cli.failures import print_known, print_unexpected

    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    if isinstance(error, OSError) and innermost.f_globals.get("__name__") == "click.utils":
        return print_known(
            RunError(
                "The output of the command cannot be written.",
                f"The error of the file system is: {error.strerror or error}.",
                "Free some space, or redirect the output to another file, then repeat the command: "
                "finished results are kept and not computed again.",
            )
        )
    return print_unexpected(error)


def _thread_hangs() -> bool:
    """Whether a thread hangs at an image; Python would wait for it at exit."""
    watchdog = sys.modules.get("robustcli.core.watchdog")  # not imported if no image was used
    return watchdog is not None and bool(watchdog.thread_hangs())


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe whose reader has closed it."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(state & select.POLLERR for _, state in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # `poll` or a file number is not available
        return True


def _flushed(status: int) -> int:
    """`status`, or `READER_GONE` if the reader of standard output has ended (`robust ... | head`).

    Discards output that could not be written, because Python would report an error at exit.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return READER_GONE
    except (OSError, ValueError):  # output is closed, or the disk is full
        return status or 1
    return status


@click.group(cls=LazyGroup, context_settings={"help_option_names": _HELP_OPTIONS})
@click.version_option(__version__, prog_name="robust")
def main() -> None:
    """Measure the robustness of vision models; train and fine-tune small Mamba networks.

    \b
    robust eval --model vmamba-pico --transform paper21
    robust eval --model vmamba-b --model swin-b --transform perspective --data DIR
    robust train seg --model ulvm_v5
    robust finetune umamba --freeze-threshold 1e-6
    robust report runs/eval-vmamba-pico-1a2b3c4d
    """  # noqa: D301  click reads the backspace: keep these lines apart
